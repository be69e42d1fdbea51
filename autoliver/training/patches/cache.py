"""Keeps the training cases on the GPU, in memory or on disk while patches are drawn.

The batches are identical bit by bit wherever the cases are kept, so a training that was started
with one cache can be resumed with another.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from autoliver.datasets.cases import CaseFacts
from autoliver.errors import OptionError
from autoliver.machine import CacheChoice, Machine
from autoliver.memory import GB
from autoliver.preprocessing.crop import OUTSIDE
from autoliver.training.patches.sampling import (
    IMAGE_PAD,
    PatchPlace,
    PatchStream,
    Sliceable,
    TrainingCase,
)

CacheKind = Literal["gpu", "ram", "disk"]

_log = logging.getLogger(__name__)

_IMAGE_BYTES, _LABEL_BYTES = 4, 2  # float32, int16
_OUTSIDE_BYTES = 1 / 8  # of a map of `outside.py` in memory; on the GPU it is a label channel
# Memory for patches during augmentation, which the plan's memory target does not include.
_GPU_RESERVE_GB = 2.0
# Share of the host's memory that cases may take; on the CPU the network needs memory as well.
_RAM_SHARE, _RAM_SHARE_CPU = 0.8, 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Memory that cases may take.

    Attributes:
        gpu_gb: Memory of the training device, in GB; None if it is not a CUDA device.
        ram_gb: Memory of this machine, in GB.
    """

    gpu_gb: float | None
    ram_gb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Memory that cases take.

    Attributes:
        gpu_gb: Memory of the training device, in GB.
        ram_gb: Memory of this machine, in GB.
    """

    gpu_gb: float
    ram_gb: float


def measure_need(cases: Iterable[TrainingCase], *, outside: bool = False) -> Need:
    """Measures the memory that the images and labels of cases take when decompressed.

    Args:
        cases: The cases.
        outside: Whether there is a map for each case besides (`PatchSampler.outside`).
    """
    arrays, voxels = 0, 0
    for case in cases:
        channels, *shape = case.image.shape
        labels = 1 + (case.previous is not None)
        arrays += (_IMAGE_BYTES * channels + _LABEL_BYTES * labels) * math.prod(shape)
        voxels += math.prod(shape) * outside
    return Need(
        gpu_gb=(arrays + _LABEL_BYTES * voxels) / GB, ram_gb=(arrays + _OUTSIDE_BYTES * voxels) / GB
    )


def measure_voxels(voxels: int, channels: int, labels: int) -> float:
    """The memory in GB that so many voxels take, with image channels and label channels."""
    return voxels * (_IMAGE_BYTES * channels + _LABEL_BYTES * labels) / GB


def measure_room(machine: Machine, device: torch.device, *, network_gb: float = 0.0) -> Room:
    """Measures the memory that is currently left for cases.

    Args:
        machine: Provides the limit of the host's memory, and the number of folds that share the
            device. Each gets an equal part of the device, since others may not have begun yet.
        device: Device that the training runs on.
        network_gb: GPU memory that the training itself needs, in GB, with all views of its patches.
    """
    gpu_gb = None
    if device.type == "cuda":
        # Memory that PyTorch still caches from an earlier fold is released, to count as free.
        torch.cuda.empty_cache()
        free, total = (size / GB for size in torch.cuda.mem_get_info(device))
        own = min(free, total / machine.sharing)
        gpu_gb = max(0.0, own - network_gb - _GPU_RESERVE_GB)
    share = _RAM_SHARE_CPU if device.type == "cpu" else _RAM_SHARE
    return Room(gpu_gb=gpu_gb, ram_gb=share * machine.limits.budget_gb)


def choose_cache(choice: CacheChoice, need: Need, room: Room) -> CacheKind:
    """Chooses where cases are kept, and logs the choice with its reason.

    Args:
        choice: The value of `--cache`; "auto" takes the first place that the cases fit into.
        need: Memory that the cases need.
        room: Memory that they may take.

    Raises:
        OptionError: The cases do not fit into the chosen place.
    """
    gpu_gb = 0.0 if room.gpu_gb is None else room.gpu_gb
    fits = {
        "gpu": room.gpu_gb is not None and need.gpu_gb <= gpu_gb,
        "ram": need.ram_gb <= room.ram_gb,
    }
    if choice == "auto":
        kind: CacheKind = "gpu" if fits["gpu"] else "ram" if fits["ram"] else "disk"
    elif choice == "gpu" and not fits[choice]:
        raise _does_not_fit(choice, need.gpu_gb, gpu_gb)
    elif choice == "ram" and not fits[choice]:
        raise _does_not_fit(choice, need.ram_gb, room.ram_gb)
    else:
        kind = choice
    gpu = "no CUDA device" if room.gpu_gb is None else f"{gpu_gb:.1f} GB of the GPU"
    _log.info(
        "--cache %s: %s. The cases need %.1f GB; available are %s and %.1f GB of memory.",
        *(choice, kind, need.gpu_gb if kind == "gpu" else need.ram_gb, gpu, room.ram_gb),
    )
    return kind


def check_device(choice: CacheChoice, device: torch.device) -> None:
    """Refuses a cache that the device does not have.

    Raises:
        OptionError: The choice is "gpu", but the device is not a CUDA device.
    """
    if choice == "gpu" and device.type != "cuda":
        raise OptionError(
            "--cache gpu: the training does not run on a CUDA device.",
            hint="Use --cache auto, ram or disk.",
        )


def _does_not_fit(kind: Literal["gpu", "ram"], need_gb: float, room_gb: float) -> OptionError:
    of = "the GPU beside the network" if kind == "gpu" else "this machine's memory for them"
    other = "ram or disk" if kind == "gpu" else "disk, or allow more with --memory-gb"
    return OptionError(
        f"--cache {kind}: the cases need {need_gb:.1f} GB; there are {room_gb:.1f} GB of {of}.",
        hint=f"Use --cache {other}.",
    )


class _Kept:
    """An array that is read completely at its first access and then kept in memory."""

    def __init__(self, array: Sliceable) -> None:
        self.shape = array.shape
        self._array = array
        self._values: npt.NDArray[np.generic] | None = None

    def __getitem__(self, key: Any) -> npt.NDArray[np.generic]:
        if self._values is None:
            self._values = np.asarray(self._array[(slice(None),) * len(self.shape)])
        found: npt.NDArray[np.generic] = self._values[key]
        return found


class CaseInMemory:
    """A case whose arrays are kept in memory once its first patch is drawn."""

    def __init__(self, case: TrainingCase) -> None:
        self.facts = case.facts
        self.spacing_mm = case.spacing_mm
        self.locations: Mapping[int, npt.NDArray[np.int32]] = case.locations
        self.image = _Kept(case.image)
        self.label = None if case.label is None else _Kept(case.label)
        self.previous = None if case.previous is None else _Kept(case.previous)


def in_memory(cases: Sequence[TrainingCase]) -> list[TrainingCase]:
    """The cases, each read completely when its first patch is drawn."""
    return [CaseInMemory(case) for case in cases]


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """A `Batch` as tensors: patches, classes, cases, and the sources of turned patches."""

    image: Tensor
    target: Tensor
    cases: tuple[CaseFacts, ...]
    wide: tuple[tuple[Tensor, Tensor], ...] = ()


class DeviceStream:
    """A stream whose cases are kept on the device, in float32 and int16 as in the store.

    Half precision would fit twice as many cases but change their values.
    """

    def __init__(self, stream: PatchStream, device: torch.device) -> None:
        """Copies all cases to the device and shows a progress bar."""
        self.stream = stream
        self.device = device
        bar = tqdm(stream.sampler.cases, desc=f"cases to {device}", unit="case", disable=None)
        self._arrays = [self._upload(case, index) for index, case in enumerate(bar)]

    def draw(self, number: int) -> DrawnBatch:
        """A batch as by `PatchStream.draw`, but on the device."""
        places = self.stream.places(number)
        boxes = self.stream.boxes(number, places)
        image, target = self._cut(boxes.whole, boxes.shape)
        wide = tuple(self._cut(own, shape) for shape, own in boxes.wide)
        return DrawnBatch(image, target, self.stream.sampler.facts(places), wide)

    def _cut(
        self, places: Sequence[PatchPlace | None], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        sampler = self.stream.sampler
        channels = sampler.cases[0].image.shape[0]
        size = (len(places), channels, *shape)
        images = torch.full(size, IMAGE_PAD, dtype=torch.float32, device=self.device)
        # Outside the image the class is -1, as the label is.
        size = (len(places), sampler.label_channels, *shape)
        targets = torch.full(size, OUTSIDE, dtype=torch.int16, device=self.device)
        for place, image, target in zip(places, images, targets, strict=True):
            if place is not None:
                values, classes = self._arrays[place.case]
                sampler.paste(values, place.start, into=image)
                sampler.paste(classes, place.start, into=target)
        return (images[:, :, 0], targets[:, :, 0]) if sampler.flat else (images, targets)

    def _upload(self, case: TrainingCase, index: int) -> tuple[Tensor, Tensor]:
        everything, sampler = (slice(None),) * 4, self.stream.sampler
        image = np.ascontiguousarray(case.image[everything], np.float32)
        labels = np.concatenate([array[everything] for array in sampler.label_arrays(index)])
        label = np.ascontiguousarray(sampler.to_classes(labels))
        return torch.from_numpy(image).to(self.device), torch.from_numpy(label).to(self.device)
