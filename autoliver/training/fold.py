"""The inputs and the result of training one fold."""

import gc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from autoliver.datasets.cases import Labels
from autoliver.errors import MachineError
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.memory import out_of_memory
from autoliver.models.files import FoldFolder
from autoliver.planning.plan import Configuration
from autoliver.training.augment.batch import AugmentSpec, augmentation, initial_patch_shape
from autoliver.training.distributed import ALONE, Group
from autoliver.training.objectives.target import needed_table, previous_table
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.cache import (
    CacheKind,
    Room,
    check_device,
    choose_cache,
    measure_need,
    measure_room,
    measure_voxels,
)
from autoliver.training.patches.outside import outside_map
from autoliver.training.patches.region import PatchBox
from autoliver.training.patches.sampling import PatchSampler, PatchStream, TrainingCase
from autoliver.training.patches.stream import Patches
from autoliver.training.progress import EpochLog
from autoliver.training.recipes import Recipe, SamplerKind

T = TypeVar("T")

_log = logging.getLogger(__name__)
_VALIDATION_SHARE = 5  # training batches per validation batch; nnU-Net has 250 and 50
# Share of the room for cases that drawn batches may take where the cases do not fit.
_KEPT_SHARE = 0.25
_BATCHES_ON_GPU = 3


@dataclass(frozen=True, kw_only=True)
class FoldTask:
    """The inputs of training one fold: what to train, on which data, and where.

    Attributes:
        configuration: The plan's decisions.
        labels: Names and values of the labels; values are mapped to consecutive classes.
        train: Cases to draw training patches from.
        validation: Held-out cases for the online validation; may be empty.
        options: The training's options.
        folder: Folder of resume.pt, progress.jsonl and progress.png.
        device: Device to train on.
        title: Name of the training in the progress bar, the plot and messages.
        machine: Where the cases are kept during training, the worker processes and the memory;
            none of it changes the result.
        network_gb: GPU memory that the training needs besides the cases, in GB.
        group: The processes that train the fold together; they do not change the result either.
        smaller: The command that plans a smaller network; empty if there is none.
        start: Initial weights, the complete state dict of the configuration's network; None:
            random initialisation.
        boxes: Names of the training and held-out cases -> the box that their patches lie on; cases
            without one are shown whole.
        replay: Cases of another dataset that `options.replay_share` of the patches come from, with
            the values of `labels` (`patches/replay.py`); may be empty.
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
    smaller: str = ""
    start: Mapping[str, Tensor] | None = None
    boxes: Mapping[str, PatchBox] = field(default_factory=dict)
    replay: Sequence[TrainingCase] = ()

    @property
    def files(self) -> FoldFolder:
        """The files of the state and the log."""
        return FoldFolder(self.folder)


@dataclass(frozen=True, kw_only=True)
class TrainedFold:
    """The result of training one fold.

    Attributes:
        weights: State dict of the network, on the CPU.
        logs: One log per finished epoch.
        recipe: The optimiser and learning rate that were used.
        mirror_axes: Patch axes along which training patches were flipped.
        finished: Whether the training reached its end; False if it was stopped before.
    """

    weights: dict[str, Tensor]
    logs: tuple[EpochLog, ...]
    recipe: Recipe
    mirror_axes: tuple[int, ...]
    finished: bool


def patch_stream(
    task: FoldTask,
    cases: Sequence[TrainingCase],
    spec: AugmentSpec | None,
    *,
    number: int,
    kind: SamplerKind = "proportional",
    replay: Sequence[TrainingCase] = (),
) -> PatchStream:
    """The numbered batches of a fold, or this process's part of them.

    Patches are drawn large enough for the augmentations that follow.

    Args:
        task: The fold.
        cases: Cases to draw patches from.
        spec: Augmentations that follow; None: none.
        number: Number of the stream; the streams of a fold draw independently.
        kind: How the cases are drawn.
        replay: Cases that a share of the patches are drawn from instead.
    """
    configuration = task.configuration
    patch, axes = configuration.drawn_shape, configuration.dimension
    drawn = patch if spec is None else initial_patch_shape(patch, spec)
    shown, far = [*cases, *replay], task.options.outside_negative
    sampler = PatchSampler(
        cases=shown,
        patch_shape=drawn[-axes:],
        margin=tuple(d - p for d, p in zip(drawn, patch, strict=True))[-axes:],
        slices=configuration.slices,
        batch_size=configuration.batch_size,
        # Each patch must have a class.
        foreground=1.0 if configuration.network.classifies else task.options.foreground,
        classes=needed_table(task.labels),
        previous=None if configuration.previous_stage is None else previous_table(task.labels),
        outside=None if far is None else [outside_map(c, task.labels, far) for c in shown],
        boxes=_boxes(task, cases, len(replay), exact=spec is None),
        replayed=len(replay),
        replay_share=task.options.replay_share,
        replay_first=task.options.replay_warmup * task.options.iterations,
        kind=kind,
    )
    part = task.group.part(configuration.batch_size)
    return PatchStream(
        sampler=sampler,
        seed=(task.options.seed, number),
        part=part,
        spatial=None if spec is None else spec.spatial,
    )


def _boxes(
    task: FoldTask, cases: Sequence[TrainingCase], replayed: int, *, exact: bool
) -> list[PatchBox | None] | None:
    """The box of each case, or None without any; exact ones are not moved at random."""
    if not task.boxes:
        return None
    found = [task.boxes.get(case.facts.name) for case in cases]
    if exact:
        found = [box and replace(box, jitter=(0.0, 0.0, 0.0)) for box in found]
    return [*found, *[None] * replayed]


def open_patches(task: FoldTask) -> tuple[Patches, Patches]:
    """Opens the training batches and the batches of the held-out cases.

    The cases are kept where `task.machine.cache` says.

    Raises:
        OptionError: The cases do not fit there.
    """
    # The size of the patches does not depend on mirroring.
    spec = augmentation(task.configuration, task.options.augment, mirror=True)
    check_device(task.machine.cache, task.device)
    outside = task.options.outside_negative is not None
    need = measure_need([*task.train, *task.replay, *task.validation], outside=outside)
    # Each view of a patch goes through the network. Its weights are counted as often, though they
    # are there once: they are small beside the feature maps.
    network_gb = task.network_gb * (1 if spec is None else spec.views)
    kind = task.options.sampler
    stream = patch_stream(task, task.train, spec, number=0, kind=kind, replay=task.replay)
    network_gb += batches_gb(stream)
    room = measure_room(task.machine, task.device, network_gb=network_gb)
    cache = choose_cache(task.machine.cache, need, room)
    workers = task.machine.loaders
    return Patches(stream, cache, task.device, workers=workers), _held_out(task, cache, room)


def batches_gb(stream: PatchStream) -> float:
    """The memory in GB of the batches that are on a GPU at a time.

    One is used; its memory is given back when the numbers of its step are read, which is one step
    late; and the next one is made beside it.
    """
    places = stream.places(0)
    if not places:
        return 0.0
    sampler = stream.sampler
    channels = sampler.cases[0].image.shape[0]
    each = measure_voxels(math.prod(sampler.box_shape), channels, sampler.label_channels)
    return _BATCHES_ON_GPU * len(places) * each


def with_room(task: FoldTask, run: Callable[[FoldTask, tuple[Patches, Patches]], T]) -> T:
    """Runs a training with its patches, and moves the cases out of a GPU that gets full.

    That is for `--cache auto`, whose estimate of what the training needs may be too low. The second
    run goes on from the state that the first one saved, with the same result. Processes that train
    together cannot move alone, and stop: the others would wait for this one.

    Args:
        task: The fold.
        run: Trains the fold with its training and its held-out batches.

    Raises:
        MachineError: The GPU of one of several processes gets full.
        RuntimeError: There is too little memory without any case on the GPU, too.
    """
    patches = None
    try:
        patches = open_patches(task)
        return run(task, patches)
    except RuntimeError as error:
        cached = patches is None or patches[0].cache == "gpu"
        movable = task.machine.cache == "auto" and cached
        if not movable or out_of_memory(error) != "accelerator":
            raise
        if task.group.size > 1:
            raise MachineError(
                f"{task.title}: the GPU of process {task.group.rank} has too little memory for the "
                "cases beside the training.",
                hint="Give the same command with --cache ram. It goes on after the last epoch that "
                "was saved, and the result is the same.",
            ) from error
    _log.warning(
        "%s: the GPU has too little memory for the cases beside the training, which goes on with "
        "the cases elsewhere. The result is the same.",
        task.title,
    )
    patches = None
    gc.collect()
    if task.device.type == "cuda":
        torch.cuda.empty_cache()
    elsewhere = replace(task, network_gb=math.inf)
    return run(elsewhere, open_patches(elsewhere))


def _held_out(task: FoldTask, cache: CacheKind, room: Room) -> Patches:
    """The batches of the held-out cases: the same ones after every epoch.

    They are kept if they take less memory than the cases, which then are not. These batches are
    few, so that a thread is enough to draw them, whatever the cache.
    """
    stream = patch_stream(task, task.validation, None, number=1)
    if cache == "gpu" or not task.validation:
        return Patches(stream, cache, task.device)
    sampler = stream.sampler
    voxels = math.prod(sampler.box_shape) * len(stream.places(0))
    each = measure_voxels(voxels, task.validation[0].image.shape[0], sampler.label_channels)
    size = each * held_out_steps(task.options.iterations)
    limit = _KEPT_SHARE * room.ram_gb
    if cache == "ram":
        limit = measure_need(task.validation).ram_gb
    if size > limit:
        return Patches(stream, cache, task.device)
    return Patches(stream, "disk", task.device, keep_gb=size)


def held_out_steps(steps: int) -> int:
    """Returns the number of batches of held-out patches after an epoch of so many steps."""
    return max(1, steps // _VALIDATION_SHARE)
