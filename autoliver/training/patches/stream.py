"""Makes batches for the network: drawn, mapped to classes, moved to the device, augmented."""

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
from autoliver.training.patches.outside import measure_all
from autoliver.training.patches.sampling import Batch, PatchStream

T = TypeVar("T")
_Drawn = tuple[Tensor, Tensor, tuple[CaseFacts, ...]]


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A batch on the device.

    Attributes:
        number: Number of the batch in its stream.
        image: (b, c, *patch), float32, or (views * b, c, *patch) if patches are shown in several
            views; for a cascade with the channels of its first stage. Neighbouring slices of a 2D
            patch are channels, those of the first image channel first.
        target: Classes (b, 1, *patch), int16.
        cases: The case of each patch.
        seconds: Seconds until the batch was ready: waiting for the patches, and augmentation as far
            as it is not asynchronous.
        waited: Seconds of these that were spent waiting for the patches.
        outside: (b, 1, *patch), where labels that are unknown in a case are known to be absent;
            None: nowhere.
    """

    number: int
    image: Tensor
    target: Tensor
    cases: tuple[CaseFacts, ...]
    seconds: float
    waited: float
    outside: Tensor | None = None


class Patches:
    """The batches of a stream on the device; each is a function of its number alone."""

    def __init__(
        self, stream: PatchStream, cache: CacheKind, device: torch.device, *, workers: int = 0
    ) -> None:
        """Brings the cases to the place where they are kept.

        Args:
            stream: The stream to draw from.
            cache: Where the cases are kept; "gpu" stands for `device`, whatever it is.
            device: Device of the batches.
            workers: Number of processes that draw patches from disk; 0: a thread of this process
                does.
        """
        self.stream = stream
        self.cache = cache
        self.device = device
        self.workers = workers if cache == "disk" else 0
        self._on_device = DeviceStream(stream, device) if cache == "gpu" else None
        if cache == "ram":
            sampler = replace(stream.sampler, cases=in_memory(stream.sampler.cases))
            self.stream = replace(stream, sampler=sampler)
        if self.workers and stream.sampler.outside is not None:
            measure_all(stream.sampler.outside)

    def batches(
        self, numbers: range, *, patch_shape: Sequence[int], spec: AugmentSpec | None
    ) -> Generator[TrainingBatch, None, None]:
        """Yields batches; the next one is drawn while the current one is processed.

        Args:
            numbers: Numbers of the batches.
            patch_shape: Shape of the patches after augmentation, with all slices of a 2D patch.
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
                slices = self.stream.sampler.slices
                if slices > 1:
                    image, target = image.flatten(1, 2), target[:, :, slices // 2]
                outside = None
                if self.stream.sampler.outside is not None:
                    target, outside = target[:, :-1], target[:, -1:] > 0
                previous = self.stream.sampler.previous
                if previous is not None:
                    image, target = show_previous(
                        image,
                        target,
                        channels=int(previous.max()),
                        generator=generator,
                        part=self.stream.part,
                    )
                seconds = time.monotonic() - start
                yield TrainingBatch(number, image, target, cases, seconds, waited, outside)

    def redraw(self, number: int) -> Batch:
        """Draws a batch again, in memory and without augmentations."""
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
    """Yields the items; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item
