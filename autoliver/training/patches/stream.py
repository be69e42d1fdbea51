"""Batches as the network takes them: drawn, mapped to classes, on the device, augmented."""

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from autoliver.datasets.cases import CaseFacts
from autoliver.training.augment.batch import (
    AugmentSpec,
    augment_batch,
)
from autoliver.training.augment.cascade import show_previous
from autoliver.training.patches.cache import (
    CacheKind,
    DeviceStream,
    in_memory,
)
from autoliver.training.patches.loader import drawn_by_workers
from autoliver.training.patches.sampling import Batch, PatchStream

T = TypeVar("T")
_Drawn = tuple[Tensor, Tensor, tuple[CaseFacts, ...]]


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
    cases: tuple[CaseFacts, ...]
    seconds: float
    waited: float


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


def _ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The items, the next one being made by a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item
