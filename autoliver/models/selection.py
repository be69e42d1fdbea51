"""Which trained folds predict together, and how their label maps are cleaned."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import msgspec

from autoliver.artifacts import Artifact, Record
from autoliver.errors import ModelError

SELECTION_FILE = "model.json"


class CleaningRule(Record, frozen=True, kw_only=True):
    """One rule, for the union of some labels.

    Attributes:
        labels: Names of the labels whose union is cleaned.
        keep: "largest": the largest connected component; "least": every component of at least
            `least_ml`.
        least_ml: In millilitres.
    """

    labels: tuple[str, ...]
    keep: Literal["largest", "least"]
    least_ml: float = 0.0

    def __str__(self) -> str:
        """In words."""
        what = " + ".join(self.labels)
        if self.keep == "largest":
            return f"{what}: only the largest component"
        return f"{what}: components below {self.least_ml:g} ml removed"


class Chosen(Record, frozen=True, kw_only=True):
    """A run of which some folds predict.

    Attributes:
        run: Name of its folder in `runs/`.
        folds: Names of the folds: "0" to "4", or "all".
    """

    run: str
    folds: tuple[str, ...]


class Selection(Artifact, frozen=True, kw_only=True):
    """A model as a whole: the model.json beside `runs/`.

    Attributes:
        dataset: What it was trained on.
        members: Runs whose probabilities are averaged.
        cleaning: Rules applied to the label maps, in order.
        scores: Candidate -> mean Dice out of fold, of what was compared.
        why: How the choice came about, in sentences.
    """

    KIND: ClassVar[str] = "selection"

    dataset: str
    members: tuple[Chosen, ...]
    cleaning: tuple[CleaningRule, ...] = ()
    scores: dict[str, float] = msgspec.field(default_factory=dict)
    why: tuple[str, ...] = ()


def choose_folds(there: Sequence[str], folds: str | None, *, name: str) -> tuple[str, ...]:
    """The folds of a run that predict.

    Args:
        there: Its finished folds.
        folds: "0,2", "all", or None: the finished folds of the cross-validation, else `all`.
        name: The run's name, for the message.

    Raises:
        ModelError: A wanted fold is not finished.
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
    """The folds of a cascade's low-resolution run that predict for it: the same ones, else all.

    Args:
        there: Finished folds of the low-resolution run.
        chosen: Folds of the cascade.
        name: The name of the low-resolution run, for messages.
    """
    if all(fold in there for fold in chosen):
        return tuple(chosen)
    return choose_folds(there, None, name=name)
