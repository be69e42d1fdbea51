"""Batches as the network takes them: drawn, mapped to classes, on the device, augmented."""

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from autoliver.planning.plan import Configuration
from autoliver.training.augment.batch import (
    AugmentSpec,
    augment_batch,
    default_augment_spec,
    initial_patch_shape,
)
from autoliver.training.augment.cascade import show_previous
from autoliver.training.augment.choice import parse_augment
from autoliver.training.fold import FoldTask
from autoliver.training.objectives.target import class_table, previous_table
from autoliver.training.patches.cache import (
    CacheKind,
    DeviceStream,
    cases_gb,
    check_device,
    choose_cache,
    in_memory,
    measure_room,
)
from autoliver.training.patches.loader import drawn_by_workers, loader_workers
from autoliver.training.patches.sampling import Batch, PatchSampler, PatchStream, TrainingCase

T = TypeVar("T")
_Drawn = tuple[Tensor, Tensor, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A batch on the device.

    Attributes:
        number: Which of its stream.
        image: (b, c, *patch) float32, or (views * b, c, *patch) where patches are shown in several
            views; for a cascade with the channels of its first stage.
        target: (b, 1, *patch) of classes, int16.
        cases: The case of each patch.
        seconds: What it took: waiting, and the augmentations as far as they were waited for.
        waited: Seconds of it until the patches were there.
    """

    number: int
    image: Tensor
    target: Tensor
    cases: tuple[str, ...]
    seconds: float
    waited: float


def augmentation(
    configuration: Configuration, kind: str, *, mirror: bool, ignored: int | None = None
) -> AugmentSpec | None:
    """What may happen to training patches; None: nothing.

    Args:
        configuration: Of the patches.
        kind: As `--augment` says it.
        mirror: Whether they are flipped.
        ignored: The class of voxels without annotation.

    Raises:
        OptionError: The kind is unknown.
    """
    appearance = parse_augment(kind)
    if kind == "none":
        return None
    spec = default_augment_spec(
        configuration.patch_shape,
        mirror=mirror,
        masked_channels=tuple(i for i, used in enumerate(configuration.mask_norm) if used),
    )
    return spec.replace(appearance=appearance, ignored=ignored)


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


class Patches:
    """The batches of a stream on the device, each a function of its number alone."""

    def __init__(
        self, stream: PatchStream, cache: CacheKind, device: torch.device, *, workers: int = 0
    ) -> None:
        """Takes the cases where they shall lie.

        Args:
            stream: What is drawn.
            cache: Where its cases lie meanwhile; "gpu" is the device, whatever it is.
            device: Where batches are wanted.
            workers: Processes that draw patches from disk; 0: this one does.
        """
        self.stream = stream
        self.device = device
        self.workers = workers if cache == "disk" else 0
        self._on_device = DeviceStream(stream, device) if cache == "gpu" else None
        if cache == "ram":
            sampler = replace(stream.sampler, cases=in_memory(stream.sampler.cases))
            self.stream = replace(stream, sampler=sampler)

    def batches(
        self, numbers: range, *, patch_shape: Sequence[int], spec: AugmentSpec | None
    ) -> Generator[TrainingBatch, None, None]:
        """Batches, each drawn while the one before is worked on.

        Args:
            numbers: Which.
            patch_shape: Of the batches that come out.
            spec: Augmentations; None: none.
        """
        with closing(self._drawn(numbers)) as drawn:
            for number in numbers:
                start = time.monotonic()
                image, target, cases = next(drawn)
                waited = time.monotonic() - start
                generator = None
                if spec is None:
                    target = target.clamp_min(0)
                else:
                    seed = int(self.stream.rng(number).integers(2**62))
                    generator = torch.Generator().manual_seed(seed)
                    image, target = augment_batch(
                        image,
                        target,
                        patch_shape=patch_shape,
                        spec=spec,
                        generator=generator,
                        part=self.stream.part,
                    )
                previous = self.stream.sampler.previous
                if previous is not None:
                    image, target = show_previous(
                        image,
                        target,
                        channels=int(previous.max()),
                        generator=generator,
                        part=self.stream.part,
                    )
                yield TrainingBatch(number, image, target, cases, time.monotonic() - start, waited)

    def redraw(self, number: int) -> Batch:
        """A batch again, in memory and before its augmentations."""
        return self.stream.draw(number)

    def _drawn(self, numbers: range) -> Generator[_Drawn, None, None]:
        if self._on_device is not None:
            yield from map(self._on_device.draw, numbers)
            return
        with closing(self._source(numbers)) as source, closing(_ahead(source)) as ahead:
            for image, target, cases in ahead:
                yield (
                    image.to(self.device, non_blocking=True),
                    target.to(self.device, non_blocking=True),
                    cases,
                )

    def _source(self, numbers: range) -> Generator[_Drawn, None, None]:
        if not self.workers:
            yield from map(self._to_send, map(self.stream.draw, numbers))
            return
        with closing(drawn_by_workers(self.stream, numbers, self.workers)) as drawn:
            yield from map(self._to_send, drawn)

    def _to_send(self, batch: Batch) -> _Drawn:
        image, target = torch.from_numpy(batch.image), torch.from_numpy(batch.label)
        if self.device.type == "cuda":
            image, target = image.pin_memory(), target.pin_memory()
        return image, target, batch.cases


def open_patches(task: FoldTask) -> tuple[Patches, Patches]:
    """The training batches and those of the held-out cases, their cases where the task wants them.

    Raises:
        OptionError: They do not fit there.
    """
    # Mirroring or not, patches are of the same size.
    spec = augmentation(task.configuration, task.options.augment, mirror=True)
    check_device(task.cache.kind, task.device)
    gb = cases_gb([*task.train, *task.validation])
    kind = choose_cache(task.cache.kind, gb, measure_room(task.cache, task.device))
    workers = loader_workers(task.cache.limits)
    return (
        Patches(patch_stream(task, task.train, spec, number=0), kind, task.device, workers=workers),
        # Few and small: a thread is enough, whatever the cache.
        Patches(patch_stream(task, task.validation, None, number=1), kind, task.device),
    )


def _ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The items, the next one being made by a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item
