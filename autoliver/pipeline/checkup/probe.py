"""Times training steps on made-up cases, as many voxels as the time allows."""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.machine import Machine
from autoliver.networks.spec import UNetSpec
from autoliver.pipeline.run.batch import least_patch_gb
from autoliver.planning.plan import Configuration
from autoliver.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch

# Enough places for patches that show each label.
_PLACES = 500
_CASES = 2
_MARGIN = 1.25  # a case is larger than the patches that are drawn from it
_LEAST_SLICES = 8
# A training takes more than the bound of its memory (`autoliver.pipeline.run.batch`).
_TAKEN = 3.0
# Each batch that is timed is at least so many times as large as the one before.
_GROWTH = 4
# Steps whose time must fit: two that are timed, the first one, and held-out patches.
_STEPS = 3.0

STANDARD_LABELS = Labels(values={"background": (0,), "liver": (1,)})
# A small network in 3D, for machines without a dataset.
STANDARD = Configuration(
    spacing_mm=(1.0, 1.0, 1.0),
    median_shape=(96.0, 96.0, 96.0),
    patch_shape=(64, 64, 64),
    batch_size=2,
    batch_dice=False,
    normalization=("zscore",),
    mask_norm=(False,),
    network=UNetSpec(
        in_channels=1,
        out_channels=2,
        features=(8, 16, 32, 64),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3),) * 4,
        blocks_encoder=(2, 2, 2, 2),
        blocks_decoder=(2, 2, 2),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """The time of a whole batch.

    Attributes:
        train_s: Seconds of a training step.
        held_out_s: Seconds of a step on held-out patches.
        scaled: The share of the batch's voxels that was timed, 0 to 1.
    """

    train_s: float
    held_out_s: float
    scaled: float


_NO_TIME = Timing(train_s=0.0, held_out_s=0.0, scaled=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    """A case of noise, in memory; see `autoliver.training.patches.sampling.TrainingCase`."""

    facts: CaseFacts
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    previous: npt.NDArray[np.int16] | None
    values: tuple[int, ...]
    locations: dict[int, npt.NDArray[np.int32]]
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


def time_training(
    configuration: Configuration,
    labels: Labels,
    *,
    channels: int,
    device: "torch.device",
    seconds: float,
    room_gb: float,
) -> Timing | None:
    """Times steps of a training, of smaller batches where a whole one takes too long.

    Times of smaller batches are scaled by the number of voxels.

    Args:
        configuration: The network, its patch and its batch.
        labels: The labels that it learns.
        channels: Number of image channels.
        device: The device to compute on.
        seconds: About how long it may take.
        room_gb: The memory for a step.

    Returns:
        The times; None if not even the smallest batch fits into the memory.
    """
    import autoliver.training.loop  # noqa: F401 - which takes time that does not count

    rungs = _rungs([size for size in batches_of(configuration) if _taken_gb(size) <= room_gb])
    found: list[tuple[int, Timing]] = []
    begun = time.monotonic()
    for size in rungs:
        voxels, left = _voxels(size), seconds - (time.monotonic() - begun)
        if found and _STEPS * found[-1][1].train_s * voxels / found[-1][0] > left:
            break
        long = left / 2 if size is rungs[-1] else 0.0
        found.append((voxels, _timed(size, labels, channels, device, long)))
    return extrapolated(found, _voxels(configuration)) if found else None


def extrapolated(found: Sequence[tuple[int, Timing]], voxels: int) -> Timing:
    """Returns the time of a batch from those of smaller ones.

    A step takes some time whatever its batch, and more for each voxel; the last two batches tell
    how much. The result is at least the time of the last one, and at most proportional to it.

    Args:
        found: The number of voxels of each batch and its time, the smallest first.
        voxels: Number of voxels of the batch.
    """
    last_voxels, last = found[-1]
    # Without a smaller one, none of the time is taken to be there whatever the batch.
    before_voxels, before = found[-2] if len(found) > 1 else (0, _NO_TIME)

    def at(then: float, earlier: float) -> float:
        slope = max(0.0, then - earlier) / (last_voxels - before_voxels)
        return min(then * voxels / last_voxels, then + slope * (voxels - last_voxels))

    return Timing(
        train_s=at(last.train_s, before.train_s),
        held_out_s=at(last.held_out_s, before.held_out_s),
        scaled=last_voxels / voxels,
    )


def _rungs(sizes: Sequence[Configuration]) -> list[Configuration]:
    """Batches to time one after another, each several times as large as the one before."""
    rungs = list(sizes[:1])
    for size in sizes[1:]:
        if _voxels(rungs[0]) >= _GROWTH * _voxels(size):
            rungs.insert(0, size)
    return rungs


def _timed(
    configuration: Configuration,
    labels: Labels,
    channels: int,
    device: "torch.device",
    seconds: float,
) -> Timing:
    from autoliver.training.fold import FoldTask
    from autoliver.training.loop import time_steps

    cases = [_made_up(configuration, labels, channels, number) for number in range(_CASES)]
    with tempfile.TemporaryDirectory() as folder:
        task = FoldTask(
            configuration=configuration,
            labels=labels,
            train=cases,
            validation=cases,
            options=TrainingOptions(),
            folder=Path(folder),
            device=device,
            title="The probe",
            machine=Machine(cache="ram"),
        )
        times = time_steps(task, seconds=seconds)
    return Timing(train_s=times.train_s, held_out_s=times.held_out_s, scaled=1.0)


def batches_of(configuration: Configuration) -> Iterator[Configuration]:
    """Yields a configuration with ever smaller batches: fewer patches first, then smaller ones."""
    strides = configuration.network.total_stride
    batch, patch = configuration.batch_size, list(configuration.patch_shape)
    while True:
        yield configuration.replace(batch_size=batch, patch_shape=tuple(patch))
        if batch > 1:
            batch = (batch + 1) // 2
            continue
        # Two voxels along each axis at the deepest level, so that they can be normalised.
        halves = [max(2 * s, n // (2 * s) * s) for n, s in zip(patch, strides, strict=True)]
        axis = max(range(len(patch)), key=lambda a: patch[a] - halves[a])
        if halves[axis] >= patch[axis]:
            return
        patch[axis] = halves[axis]


def _voxels(configuration: Configuration) -> int:
    return configuration.batch_size * math.prod(configuration.patch_shape)


def _taken_gb(configuration: Configuration) -> float:
    return _TAKEN * configuration.batch_size * least_patch_gb(configuration)


def _made_up(configuration: Configuration, labels: Labels, channels: int, number: int) -> _Case:
    """A case of noise with stripes of every label."""
    rng = np.random.default_rng(number)
    sides = [math.ceil(_MARGIN * side) for side in configuration.patch_shape]
    shape = [*([_LEAST_SLICES] * (3 - len(sides))), *sides]
    image = rng.standard_normal((channels, *shape), dtype=np.float32)
    values = sorted({value for each in labels.values.values() for value in each})
    stripes = np.asarray(values, np.int16)[np.arange(shape[-1]) % len(values)]
    label = np.broadcast_to(stripes, (1, *shape)).astype(np.int16)
    previous = None if configuration.previous_stage is None else np.zeros_like(label)
    return _Case(
        facts=CaseFacts.named(f"made up {number}"),
        image=image,
        label=label,
        previous=previous,
        values=tuple(values),
        locations={value: _places(stripes, value, shape, rng) for value in values},
    )


def _places(
    stripes: npt.NDArray[np.int16], value: int, shape: Sequence[int], rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    z, y = (rng.integers(0, size, _PLACES) for size in shape[:2])
    x = rng.choice(np.flatnonzero(stripes == value), _PLACES)
    return np.stack([z, y, x], axis=1).astype(np.int32)
