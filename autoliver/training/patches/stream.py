"""Makes batches for the network: drawn, mapped to classes, moved to the device, augmented."""

import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from autoliver.datasets.cases import CaseFacts
from autoliver.memory import GB
from autoliver.training.augment.batch import (
    AugmentSpec,
    PlacedBatch,
    augment_batch,
    augment_placed,
)
from autoliver.training.augment.cascade import show_previous
from autoliver.training.patches.ahead import SendBuffers, ahead, timed
from autoliver.training.patches.cache import (
    CacheKind,
    DeviceStream,
    DrawnBatch,
    in_memory,
)
from autoliver.training.patches.loader import drawn_by_workers
from autoliver.training.patches.outside import measure_all
from autoliver.training.patches.sampling import Allocate, Batch, PatchStream
from autoliver.training.share import Part


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
        seconds: Seconds that the training's process waited for the batch: for its patches, and for
            their augmentation where that is not done while the step before is taken.
        waited: These seconds, and those that the device itself waited for earlier batches.
        outside: (b, 1, *patch), where labels that are unknown in a case are known to be absent;
            None: nowhere.
    """

    number: int
    image: Tensor
    target: Tensor
    cases: tuple[CaseFacts, ...]
    seconds: float = 0.0
    waited: float = 0.0
    outside: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """What of the batch is on the device."""
        return [each for each in (self.image, self.target, self.outside) if each is not None]


class Patches:
    """The batches of a stream on the device; each is a function of its number alone."""

    def __init__(
        self,
        stream: PatchStream,
        cache: CacheKind,
        device: torch.device,
        *,
        workers: int = 0,
        keep_gb: float = 0.0,
    ) -> None:
        """Brings the cases to the place where they are kept.

        Args:
            stream: The stream to draw from.
            cache: Where the cases are kept; "gpu" stands for `device`, whatever it is.
            device: Device of the batches.
            workers: Number of processes that draw patches from disk; 0: a thread of this process
                does.
            keep_gb: Memory for drawn batches, which are not drawn again; workers keep none.
        """
        self.stream = stream
        self.cache = cache
        # Patches that will be rotated are changed in place.
        self._room = round(keep_gb * GB) if stream.spatial is None else 0
        self._keeps = self._room > 0
        self._kept: dict[int, Batch] = {}
        self._drawing = threading.Lock()
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
        made = self._made(numbers, patch_shape, spec)
        with closing(timed(made, self.device, lambda each: each.tensors)) as ready:
            for batch, seconds, stalled in ready:
                yield replace(batch, seconds=seconds, waited=seconds + stalled)

    def redraw(self, number: int) -> Batch:
        """Draws a batch again, in memory, as large as patches are cut out at most.

        Meanwhile no thread draws from the same cases: their files and caches serve one at a time.
        """
        with self._drawing:
            return self.stream.draw_whole(number)

    def _made(
        self, numbers: range, patch_shape: Sequence[int], spec: AugmentSpec | None
    ) -> Generator[TrainingBatch, None, None]:
        """The batches on the device, augmented."""
        sampler = self.stream.sampler
        with closing(self._drawn(numbers)) as drawn:
            for number, found in zip(numbers, drawn, strict=True):
                generator = None
                if spec is None:
                    image, target = found.image, found.target.clamp_min(0)
                else:
                    seed = self.stream.augment_seed(number)
                    generator = torch.Generator().manual_seed(seed)
                    image, target = self._augmented(number, found, patch_shape, spec, generator)
                slices = sampler.slices
                if slices > 1:
                    image, target = image.flatten(1, 2), target[:, :, slices // 2]
                outside = None
                if sampler.outside is not None:
                    target, outside = target[:, :-1], target[:, -1:] > 0
                if sampler.previous is not None:
                    image, target = show_previous(
                        image,
                        target,
                        channels=int(sampler.previous.max()),
                        generator=generator,
                        part=self.stream.part,
                    )
                yield TrainingBatch(number, image, target, found.cases, outside=outside)

    def _augmented(
        self,
        number: int,
        found: DrawnBatch,
        patch_shape: Sequence[int],
        spec: AugmentSpec,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        if self.stream.spatial is None:
            return augment_batch(
                found.image,
                found.target,
                patch_shape=patch_shape,
                spec=spec,
                generator=generator,
                part=self.stream.part,
            )
        if self.stream.spatial != spec.spatial:
            raise ValueError("the patches were drawn for another rotation and scaling")
        size = len(found.image)
        batch = PlacedBatch(
            image=found.image,
            label=found.target,
            groups=self.stream.groups(number),
            wide=found.wide,
        )
        part = self.stream.part or Part(start=0, stop=size, whole=size)
        return augment_placed(batch, spec=spec, generator=generator, part=part)

    def _drawn(self, numbers: range) -> Generator[DrawnBatch, None, None]:
        if self._on_device is not None:
            yield from map(self._on_device.draw, numbers)
            return
        # On a CPU the arrays themselves become the batch, so that they cannot be used again.
        buffers = SendBuffers() if self.device.type == "cuda" else None
        with closing(ahead(self._source(numbers, buffers))) as coming:
            for batch, place in coming:
                sent = self._on(batch)
                if buffers is not None:
                    buffers.sent(place, torch.cuda.current_stream(self.device))
                yield sent

    def _source(
        self, numbers: range, buffers: SendBuffers | None
    ) -> Generator[tuple[DrawnBatch, int], None, None]:
        """The batches in memory of this process, each with the set of the buffers that has it."""
        allocate = np.empty if buffers is None else buffers.allocate
        if not self.workers:
            for number in numbers:
                place = 0 if buffers is None else buffers.begin()
                yield _to_send(self._here(number, allocate)), place
            return
        with closing(drawn_by_workers(self.stream, numbers, self.workers, allocate)) as drawn:
            for _ in numbers:
                place = 0 if buffers is None else buffers.begin()
                yield _to_send(next(drawn)), place

    def _here(self, number: int, allocate: Allocate) -> Batch:
        """A batch that this process draws, or has drawn before.

        Those that are kept lie in ordinary memory: page-locked memory would be lost to the whole
        machine until the training ends. They are copied into the memory that they are sent from.
        """
        if not self._keeps:
            with self._drawing:
                return self.stream.draw(number, allocate)
        batch = self._kept.get(number)
        if batch is None:
            with self._drawing:
                batch = self.stream.draw(number)
            self._keep(number, batch)
        if allocate is np.empty:
            return batch
        image = allocate(batch.image.shape, batch.image.dtype)
        label = allocate(batch.label.shape, batch.label.dtype)
        image[:], label[:] = batch.image, batch.label
        return replace(batch, image=image, label=label)

    def _on(self, batch: DrawnBatch) -> DrawnBatch:
        """The batch on the device."""
        pairs = ((batch.image, batch.target), *batch.wide)
        sent = [
            (one.to(self.device, non_blocking=True), other.to(self.device, non_blocking=True))
            for one, other in pairs
        ]
        return DrawnBatch(*sent[0], batch.cases, tuple(sent[1:]))

    def _keep(self, number: int, batch: Batch) -> None:
        size = batch.image.nbytes + batch.label.nbytes
        if size <= self._room:
            self._kept[number] = batch
            self._room -= size


def _to_send(batch: Batch) -> DrawnBatch:
    """The arrays of a batch as tensors in the same memory."""
    arrays = (batch.image, batch.label, *(array for pair in batch.wide for array in pair))
    image, target, *wide = (torch.from_numpy(array) for array in arrays)
    return DrawnBatch(image, target, batch.cases, tuple(zip(wide[::2], wide[1::2], strict=True)))
