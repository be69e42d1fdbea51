"""What a fold is trained from, and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autoliver.datasets.cases import Labels
from autoliver.planning.plan import Configuration
from autoliver.training.distributed import ALONE, Group
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.cache import AUTO_CACHE, CacheOptions
from autoliver.training.patches.sampling import TrainingCase
from autoliver.training.progress import EpochLog
from autoliver.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class FoldTask:
    """What to train, on what, and where to keep the state.

    Attributes:
        configuration: The plan's decisions.
        labels: Names and values; values are mapped to consecutive classes.
        train: Cases to draw training patches from.
        validation: Held-out cases for the online validation; may be empty.
        options: The training's options.
        folder: Holds resume.pt, progress.jsonl and progress.png.
        device: Where to train.
        title: Names the training in the bar and the picture.
        cache: Where the cases shall lie meanwhile; changes nothing of the outcome.
        tensorboard: Whether each epoch is written for TensorBoard, too.
        group: The processes that train it together; changes nothing of the outcome, either.
        start: Weights to begin with: the whole state dict of the configuration's network; None:
            drawn ones.
    """

    configuration: Configuration
    labels: Labels
    train: Sequence[TrainingCase]
    validation: Sequence[TrainingCase]
    options: TrainingOptions
    folder: Path
    device: torch.device
    title: str
    cache: CacheOptions = AUTO_CACHE
    tensorboard: bool = False
    group: Group = ALONE
    start: Mapping[str, Tensor] | None = None

    @property
    def resume_path(self) -> Path:
        """The state to go on from."""
        return self.folder / "resume.pt"

    @property
    def progress_path(self) -> Path:
        """The log of finished epochs."""
        return self.folder / "progress.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainedFold:
    """What a training ended with.

    Attributes:
        weights: State dict of the network, on the CPU.
        logs: One entry per finished epoch.
        recipe: The optimiser and rate that were used.
        mirror_axes: Patch axes along which the network has seen flipped patches.
        finished: False when it was stopped before its end.
    """

    weights: dict[str, Tensor]
    logs: tuple[EpochLog, ...]
    recipe: Recipe
    mirror_axes: tuple[int, ...]
    finished: bool
