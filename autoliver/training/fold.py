"""What a fold is trained from, and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoliver.datasets.cases import Labels
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.models.files import FoldFolder
from autoliver.planning.plan import Configuration
from autoliver.training.augment.batch import AugmentSpec, augmentation, initial_patch_shape
from autoliver.training.distributed import ALONE, Group
from autoliver.training.objectives.target import class_table, previous_table
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.cache import cases_gb, check_device, choose_cache, measure_room
from autoliver.training.patches.sampling import PatchSampler, PatchStream, TrainingCase
from autoliver.training.patches.stream import Patches
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
        machine: Where the cases lie meanwhile, worker processes and memory; none of it changes the
            outcome.
        network_gb: Memory of the GPU that the training needs beside the cases.
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
    machine: Machine = WHOLE_MACHINE
    network_gb: float = 0.0
    group: Group = ALONE
    start: Mapping[str, Tensor] | None = None

    @property
    def files(self) -> FoldFolder:
        """Where its state and its log lie."""
        return FoldFolder(self.folder)


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


def patch_stream(
    task: FoldTask, cases: Sequence[TrainingCase], spec: AugmentSpec | None, *, number: int
) -> PatchStream:
    """The numbered batches of a fold, or this process's part, large enough for augmentations.

    Args:
        task: The fold.
        cases: What to draw from.
        spec: Augmentations to come; None: none.
        number: Of the stream; those of a fold draw independently.
    """
    configuration = task.configuration
    patch = configuration.patch_shape
    drawn = patch if spec is None else initial_patch_shape(patch, spec)
    classes = class_table(task.labels)
    # Most labels are consecutive already; looking each voxel up takes longer than cutting it.
    consecutive = np.array_equal(classes, np.arange(-1, len(classes) - 1))
    sampler = PatchSampler(
        cases=cases,
        patch_shape=drawn,
        margin=tuple(d - p for d, p in zip(drawn, patch, strict=True)),
        batch_size=configuration.batch_size,
        foreground=task.options.foreground,
        classes=None if consecutive else classes,
        previous=None if configuration.previous_stage is None else previous_table(task.labels),
    )
    part = task.group.part(configuration.batch_size)
    return PatchStream(sampler=sampler, seed=(task.options.seed, number), part=part)


def open_patches(task: FoldTask) -> tuple[Patches, Patches]:
    """The training batches and those of the held-out cases, their cases where the task wants them.

    Raises:
        OptionError: They do not fit there.
    """
    # Mirroring or not, patches are of the same size.
    spec = augmentation(task.configuration, task.options.augment, mirror=True)
    check_device(task.machine.cache, task.device)
    gb = cases_gb([*task.train, *task.validation])
    room = measure_room(task.machine, task.device, network_gb=task.network_gb)
    kind = choose_cache(task.machine.cache, gb, room)
    workers = task.machine.loaders
    return (
        Patches(patch_stream(task, task.train, spec, number=0), kind, task.device, workers=workers),
        # Few and small: a thread is enough, whatever the cache.
        Patches(patch_stream(task, task.validation, None, number=1), kind, task.device),
    )
