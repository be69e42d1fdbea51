"""Which trained folds predict together, and how their label maps are cleaned."""

from typing import ClassVar

import msgspec

from autoliver.artifacts import Artifact, Record
from autoliver.inference.clean import CleaningRule

SELECTION_FILE = "model.json"


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
