"""Describes which trained folds predict together and how their label maps are cleaned."""

from collections.abc import Container, Iterator, Sequence
from typing import ClassVar, Literal

import msgspec

from autoliver.artifacts import Artifact, Fault, Record, unfit, within
from autoliver.errors import ModelError
from autoliver.values import name_problem

SELECTION_FILE = "model.json"
# More networks than these are held by no memory.
MOST_FOLDS = 100
MOST_ML, MOST_TEMPERATURE = 1e6, 1000.0


class CleaningRule(Record, frozen=True, kw_only=True):
    """A rule that removes connected components from the union of some labels.

    Attributes:
        labels: Names of the labels whose union is cleaned.
        keep: What is kept: "largest": only the largest connected component; "least": every
            component of at least `least_ml`.
        least_ml: Smallest volume that is kept, in millilitres; used by "least".
        by_faces: Whether voxels are connected only through faces, as in nnU-Net v1, and not also
            through edges and corners.
    """

    labels: tuple[str, ...]
    keep: Literal["largest", "least"]
    least_ml: float = 0.0
    by_faces: bool = False

    def faults(self, known: Container[str] | None = None) -> Iterator[Fault]:
        """Yields labels that are not there or not known, and volumes that are none.

        Args:
            known: The labels that a model has; None if they are not known here.
        """
        if not self.labels or len(set(self.labels)) < len(self.labels):
            yield "labels", unfit(list(self.labels), "labels, each once")
        for name in self.labels:
            if known is not None and name not in known:
                yield "labels", unfit(name, "a label of the model")
        if not 0 <= self.least_ml <= MOST_ML:
            yield "least_ml", unfit(self.least_ml, f"0 to {MOST_ML:g}")

    def __str__(self) -> str:
        """Describes the rule in words."""
        what = " + ".join(self.labels)
        if self.keep == "largest":
            how = " connected through faces" if self.by_faces else ""
            return f"{what}: only the largest component{how}"
        return f"{what}: components below {self.least_ml:g} ml removed"


class Temperature(Record, frozen=True, kw_only=True):
    """A temperature of the probabilities of lesions' classes, and what it was learnt from.

    Attributes:
        value: The temperature; 1 changes nothing, above 1 makes probabilities less certain.
        lesions: Number of lesions, of cases that were held out in training.
        nll_before: Mean negative logarithm of the probability of the true class, as it was.
        nll_after: The same with the temperature.
        error_before: Expected calibration error, as it was.
        error_after: The same with the temperature.
        why: Why it is 1 or at an end of its range; empty otherwise.
    """

    value: float = 1.0
    lesions: int = 0
    nll_before: float | None = None
    nll_after: float | None = None
    error_before: float | None = None
    error_after: float | None = None
    why: str = ""

    def __str__(self) -> str:
        """Describes the temperature in a sentence."""
        if self.error_before is None or self.error_after is None:
            return f"Lesion classes: temperature {self.value:g}, since {self.why}."
        return (
            f"Lesion classes: temperature {self.value:.2f} from {self.lesions} out-of-fold "
            f"lesions, calibration error {self.error_before:.2f} -> {self.error_after:.2f}"
            f"{f' ({self.why})' if self.why else ''}."
        )


class Chosen(Record, frozen=True, kw_only=True):
    """A run and those of its folds that predict.

    Attributes:
        run: Name of the run's folder in `runs/`.
        folds: Names of the folds: "0" to "4", or "all".
    """

    run: str
    folds: tuple[str, ...]


class Selection(Artifact, frozen=True, kw_only=True):
    """The members and cleaning rules of a model, in the model.json beside `runs/`.

    Attributes:
        dataset: Name of the dataset that the model was trained on.
        members: Runs whose probabilities are averaged.
        cleaning: Rules applied to the label maps, in this order.
        scores: Candidate -> mean out-of-fold Dice, for the candidates that were compared.
        why: Reasons for the choice, one sentence each.
        temperature: The temperature of the probabilities of lesions' classes; None if the members
            tell no classes apart, or it was not learnt.
    """

    KIND: ClassVar[str] = "selection"

    dataset: str
    members: tuple[Chosen, ...]
    cleaning: tuple[CleaningRule, ...] = ()
    scores: dict[str, float] = msgspec.field(default_factory=dict)
    why: tuple[str, ...] = ()
    temperature: Temperature | None = None

    def faults(self) -> Iterator[Fault]:
        """Yields members and folds that repeat or are too many, and their names, and rules'."""
        runs = [chosen.run for chosen in self.members]
        if not runs or len(set(runs)) < len(runs):
            yield "members", unfit(runs, "at least one run, each once")
        if sum(len(chosen.folds) for chosen in self.members) > MOST_FOLDS:
            yield "members", f"found more than {MOST_FOLDS} folds, which no memory holds"
        for number, chosen in enumerate(self.members):
            for name in (chosen.run, *chosen.folds):
                if name_problem(name):
                    yield f"members[{number}]", unfit(name, name_problem(name))
            if len(set(chosen.folds)) < len(chosen.folds):
                yield f"members[{number}].folds", unfit(list(chosen.folds), "each fold once")
        for number, rule in enumerate(self.cleaning):
            yield from within(f"cleaning[{number}]", rule.faults())
        if self.temperature is not None and not 0 < self.temperature.value <= MOST_TEMPERATURE:
            found = self.temperature.value
            yield "temperature.value", unfit(found, f"above 0, at most {MOST_TEMPERATURE:g}")


def choose_folds(there: Sequence[str], folds: str | None, *, name: str) -> tuple[str, ...]:
    """Chooses the folds of a run that predict.

    Args:
        there: The run's finished folds.
        folds: The requested folds, e.g. "0,2" or "all"; None: the finished folds of the
            cross-validation, or `all` if there are none.
        name: The run's name, for messages.

    Raises:
        ModelError: A requested fold is not finished.
    """
    numbered = [fold for fold in there if fold != "all"]
    wanted = [fold.strip() for fold in folds.split(",")] if folds else numbered or list(there)
    missing = [fold for fold in wanted if fold not in there]
    if missing:
        raise ModelError(
            f"{name}: fold {missing[0]} is not trained.",
            hint=f"Finished folds: {', '.join(there)}.",
        )
    return tuple(wanted)


def choose_previous(there: Sequence[str], chosen: Sequence[str], *, name: str) -> tuple[str, ...]:
    """Chooses the folds of a low-resolution run that predict for a cascade: the same or, else, all.

    Args:
        there: Finished folds of the low-resolution run.
        chosen: Folds of the cascade that predict.
        name: The low-resolution run's name, for messages.
    """
    if all(fold in there for fold in chosen):
        return tuple(chosen)
    return choose_folds(there, None, name=name)
