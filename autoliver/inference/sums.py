"""Adds up the weighted outputs of windows, and keeps only the rows that further windows touch.

Windows are visited slice by slice or slab by slab. Rows of the first axis that no further window
touches are finished: they are divided by their weights and handed over, and their memory is used
again. A GPU therefore holds the sums of one slab of windows, not of the whole scan. The values are
the same bit by bit, as every voxel adds up the same numbers in the same order. They stay in
float32: in this way they take less memory than float16 sums of a whole scan would.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from autoliver.inference.roi import Window
from autoliver.planning.nonzero import Box

_FLOAT32 = 4
_LEAST_VOXELS = 1 << 23  # of the rows that are kept


def rows_of(window: Window) -> tuple[int, int]:
    """Returns the first and last-plus-one row of the first axis that a window touches."""
    z = window[0]
    return (z, z + 1) if isinstance(z, int) else (z.start, z.stop)


def finished_before(windows: Sequence[Window]) -> list[int]:
    """Returns for every window the first row that it or a later window touches."""
    first, found = rows_of(windows[-1])[0], []
    for window in reversed(windows):
        first = min(first, rows_of(window)[0])
        found.append(first)
    return found[::-1]


def rows_kept(windows: Sequence[Window], shape_zyx: Sequence[int]) -> int:
    """Returns the number of rows that are kept at a time while windows are visited.

    These are at least all that windows to come have in common with past ones.

    Args:
        windows: The windows in the order in which they are visited.
        shape_zyx: Shape of the box that they span.
    """
    reached, most = 0, 0
    for window, first in zip(windows, finished_before(windows), strict=True):
        reached = max(reached, rows_of(window)[1])
        most = max(most, reached - first)
    return slab_rows(most, shape_zyx)


def slab_rows(least: int, shape_zyx: Sequence[int]) -> int:
    """Returns how many rows are kept where windows have so many in common, all of `least` at most.

    Of thin slabs more are kept, as each one that is handed over is waited for.
    """
    return min(shape_zyx[0], max(least, _LEAST_VOXELS // math.prod(shape_zyx[1:])))


def sums_bytes(classes: int, shape_zyx: Sequence[int], rows: int) -> int:
    """Returns the memory of `WeightedSums` in bytes.

    Args:
        classes: Number of rows of the networks' output.
        shape_zyx: Shape of the box that the windows span.
        rows: Rows that are kept.
    """
    return (classes + 1) * rows * math.prod(shape_zyx[1:]) * _FLOAT32


class WeightedSums:
    """The sums of logits and of weights in some rows of a box.

    Args:
        classes: Number of rows of the networks' output.
        box: The box that the windows span.
        weight: (*patch), the weight of each voxel of a window.
        rows: Rows that are kept at a time.
        device: Where they are added up.

    Attributes:
        device: Where they are added up.
    """

    def __init__(
        self, classes: int, box: Box, weight: Tensor, *, rows: int, device: torch.device
    ) -> None:
        shape = [part.stop - part.start for part in box]
        self.device = device
        self._box = box
        self._weight = weight.to(device)
        self._logits = torch.zeros((classes, rows, *shape[1:]), device=device)
        self._weights = torch.zeros((1, rows, *shape[1:]), device=device)
        self._first = box[0].start  # the row of the grid that the first kept one is
        self._pinned = Pinned()

    @property
    def reach(self) -> int:
        """The row of the grid up to which windows can be added before rows are finished."""
        return int(self._first + self._logits.shape[1])

    def add(self, window: Window, output: Tensor) -> None:
        """Adds the output (k, *patch) of a window, all rows of which are kept."""
        starts = (self._first, self._box[1].start, self._box[2].start)
        place = tuple(
            w - start if isinstance(w, int) else slice(w.start - start, w.stop - start)
            for w, start in zip(window, starts, strict=True)
        )
        if self.device.type == "cpu":
            output = self._pinned.copy(output)
        self._logits[:, *place].add_(output * self._weight)
        self._weights[:, *place].add_(self._weight)

    def finish(self, row: int) -> Iterator[tuple[int, Tensor]]:
        """Hands over the rows before one, which no further window touches.

        Args:
            row: The first row of the grid that a further window touches; the end of the box if
                there is none.

        Yields:
            The number of the first row, and the mean logits (k, rows, y, x). They are overwritten
            when more is added. Voxels that no window covers are NaN, and rows that were never
            kept, because no window touches them, are left out.
        """
        number = min(row - self._first, self._logits.shape[1])
        if number <= 0:
            return
        done = self._logits[:, :number]
        done /= self._weights[:, :number]
        yield self._first, done
        self._first = row
        if row >= self._box[0].stop:
            return
        for sums in (self._logits, self._weights):
            # Parts of `number` rows at a time do not overlap with the place that they move to.
            for start in range(0, sums.shape[1], number):
                part = sums[:, start : start + number]
                following = sums[:, start + number : start + 2 * number]
                part[:, : following.shape[1]] = following
                part[:, following.shape[1] :] = 0

    def move(self, device: torch.device) -> None:
        """Goes on with adding up on another device."""
        self._weight = self._weight.to(device)
        self._logits, self._weights = self._logits.to(device), self._weights.to(device)
        self.device = device


class Pinned:
    """Copies arrays of a GPU to the host through memory that does not move, which is faster."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def copy(self, array: Tensor) -> Tensor:
        """Returns an array on the host; it is overwritten by the next copy."""
        if array.device.type != "cuda":
            return array.cpu()
        if self._buffer is None or self._buffer.numel() < array.numel():
            try:
                self._buffer = torch.empty(array.numel(), dtype=array.dtype, pin_memory=True)
            except RuntimeError:  # the host grants no more of it: a plain copy is slower
                return array.cpu()
        return self._buffer[: array.numel()].view(array.shape).copy_(array)
