"""Describes which trained folds predict together and how their label maps are cleaned."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import msgspec

from autoliver.artifacts import Artifact, Record
from autoliver.errors import ModelError

SELECTION_FILE = "model.json"


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

    def __str__(self) -> str:
        """Describes the rule in words."""
        what = " + ".join(self.labels)
        if self.keep == "largest":
            how = " connected through faces" if self.by_faces else ""
            return f"{what}: only the largest component{how}"
        return f"{what}: components below {self.least_ml:g} ml removed"


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
    """

    KIND: ClassVar[str] = "selection"

    dataset: str
    members: tuple[Chosen, ...]
    cleaning: tuple[CleaningRule, ...] = ()
    scores: dict[str, float] = msgspec.field(default_factory=dict)
    why: tuple[str, ...] = ()


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
