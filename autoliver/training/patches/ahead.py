"""Makes the next batch while the current one is used: in a thread, and on a GPU beside its work."""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T = TypeVar("T")

# Sets of reused memory: one is copied to the GPU while the other is filled.
_SETS = 2
_MS_PER_S = 1000.0


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yields the items, and closes what makes them; a thread makes the next one meanwhile.

    That thread closes it, too: no one else may while it makes an item.
    """
    thread = ThreadPoolExecutor(1)
    try:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item
    finally:
        thread.submit(_close, items)
        thread.shutdown()


def _close(items: Iterator[Any]) -> None:
    if isinstance(items, Generator):
        items.close()


def timed(
    items: Iterator[T], device: torch.device, tensors: Callable[[T], Iterable[Tensor]]
) -> Generator[tuple[T, float, float], None, None]:
    """Yields the items and how long they were waited for, and closes what makes them.

    On a CUDA device the next item is made while the current one is used: a thread gives its work to
    a stream of its own, and the current stream waits for it there, not the CPU. On other devices an
    item is made when it is asked for.

    Args:
        items: The items.
        device: Where their tensors are made.
        tensors: The tensors of an item.

    Yields:
        Each item, the seconds that this process waited for it, and the seconds that the device
        waited for earlier ones, as far as they are known by now.
    """
    if device.type == "cuda":
        yield from _beside(items, device, tensors)
        return
    try:
        while True:
            start = time.monotonic()
            item = next(items, None)
            if item is None:
                return
            yield item, time.monotonic() - start, 0.0
    finally:
        _close(items)


def _beside(
    items: Iterator[T], device: torch.device, tensors: Callable[[T], Iterable[Tensor]]
) -> Generator[tuple[T, float, float], None, None]:
    side = _side_stream(device)
    waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def made() -> Generator[tuple[T, torch.cuda.Event], None, None]:
        try:
            while True:
                with torch.cuda.stream(side):
                    item, done = next(items, None), _event()
                    done.record(side)
                if item is None:
                    return
                yield item, done
        finally:
            _close(items)

    with contextlib.closing(ahead(made())) as coming:
        while True:
            start = time.monotonic()
            found = next(coming, None)
            if found is None:
                return
            item, done = found
            current = torch.cuda.current_stream(device)
            before, after = (_event(timing=True) for _ in range(2))
            before.record(current)
            current.wait_event(done)
            after.record(current)
            # Memory of the side stream is not to be given away before the current one has used it.
            for tensor in tensors(item):
                tensor.record_stream(current)
            waits.append((before, after))
            stalled = 0.0
            while waits and waits[0][1].query():  # type: ignore[no-untyped-call]
                first, last = waits.pop(0)
                stalled += first.elapsed_time(last) / _MS_PER_S
            yield item, time.monotonic() - start, stalled


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which batches are made: one, since memory is kept for each."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class SendBuffers:
    """Page-locked memory that batches are written into and copied to a GPU from, again and again.

    Locking memory takes longer than copying it, and only from locked memory are copies made while
    the CPU goes on.
    """

    def __init__(self, *, pinned: bool = True) -> None:
        """Makes buffers, which are empty; without `pinned` in ordinary memory."""
        self.pinned = pinned
        self._sets: list[list[Tensor]] = [[] for _ in range(_SETS)]
        self._copied: list[torch.cuda.Event | None] = [None] * _SETS
        self._set = self._used = 0

    def begin(self) -> int:
        """Begins a batch, once the copies of the batch that had this memory are made.

        Returns:
            The number of the set, for `sent`.
        """
        self._set, self._used = (self._set + 1) % _SETS, 0
        copied = self._copied[self._set]
        if copied is not None:
            copied.synchronize()
        return self._set

    def allocate(self, shape: tuple[int, ...], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """Gives an array of the batch; its values are those of an earlier one."""
        kind, own = np.dtype(kind), self._sets[self._set]
        size = int(np.prod(shape)) * kind.itemsize
        if self._used == len(own):
            own.append(torch.empty(0, dtype=torch.uint8))
        if own[self._used].numel() < size:
            own[self._used] = self._memory(size)
        buffer = own[self._used]
        self._used += 1
        return buffer.numpy()[:size].view(kind).reshape(shape)

    def _memory(self, size: int) -> Tensor:
        if self.pinned:
            with contextlib.suppress(RuntimeError):  # the host grants no more: copies take longer
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return torch.empty(size, dtype=torch.uint8)

    def sent(self, number: int, stream: torch.cuda.Stream) -> None:
        """Notes that the copies of a set have been given to a stream."""
        copied = _event()
        copied.record(stream)
        self._copied[number] = copied


def _event(*, timing: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timing)  # type: ignore[no-untyped-call]
