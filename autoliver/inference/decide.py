"""Decides label maps row by row, while the windows of a case are still computed.

The logits of a whole scan are never held, neither on the GPU nor on the host: what returns is one
label for each voxel. On the host the labels are those of `backward_logits`, bit by bit. On a GPU
interpolation and rules are the same; sums of two products may differ in the last bit, and with them
the labels of voxels where two labels tie to within that.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoliver.datasets.cases import Labels
from autoliver.memory import out_of_memory
from autoliver.preprocessing.case import (
    CaseProperties,
    WayBack,
    decide_slab,
    slab_of,
    slabs,
    uncrop,
    written_values,
)
from autoliver.preprocessing.resample import Matrix

Array = npt.NDArray[np.float32]


def decide_rows(
    rows: Iterable[tuple[int, Tensor]], properties: CaseProperties, *, labels: Labels
) -> npt.NDArray[np.integer]:
    """Resamples logits to the input grid and decides the label of each voxel there.

    Args:
        rows: The first of some rows of the network's grid, and their logits (k, rows, y, x), from
            the first row of the grid to the last.
        properties: The case's properties.
        labels: The labels of the k rows of the output.

    Returns:
        (z, y, x) on the input grid, in the smallest unsigned type that holds the labels.

    Raises:
        ValueError: Rows are missing, or the output has another number of rows than the labels.
    """
    written = written_values(labels)
    back = WayBack.of(properties)
    dtype = np.min_scalar_type(max(written))
    cropped = np.zeros((1, *properties.shape_after_crop), dtype=dtype)
    decider = _Decider(back, written, regions=labels.has_regions)
    for first, logits in rows:
        if len(logits) != len(written):
            raise ValueError(f"expected {len(written)} rows of output, got {len(logits)}")
        for part, found in decider.take(first, logits):
            # One byte for each voxel returns, where labels fit into it.
            small = found.to(torch.uint8) if dtype == np.uint8 else found
            cropped[0, part] = small.cpu().numpy().astype(dtype, copy=False)
    if decider.decided < cropped.shape[1]:
        raise ValueError(f"rows are missing after {decider.decided} of {cropped.shape[1]}")
    return uncrop(cropped, properties).squeeze(0)


def decide_rows_on_host(
    rows: Iterable[tuple[int, Tensor]], properties: CaseProperties, *, labels: Labels
) -> npt.NDArray[np.integer]:
    """Decides the label of each voxel of the input grid as `backward_logits` does.

    Args:
        rows: As in `decide_rows`, on the host.
        properties: As in `decide_rows`.
        labels: As in `decide_rows`.

    Returns:
        As in `decide_rows`.

    Raises:
        ValueError: As in `decide_rows`.
    """
    number, shape = labels.out_channels, properties.shape_after_crop
    operators = WayBack.of(properties).operators
    cropped = np.zeros((1, *shape), dtype=np.min_scalar_type(max(written_values(labels))))
    # The same slabs as of the whole, since the shapes of products may decide their last bits.
    todo = deque((part, *slab_of(operators, part)) for part in slabs(shape))
    held = np.zeros((number, 0, 0, 0), dtype=np.float32)  # rows before those that are taken
    stop = 0
    for first, tensor in rows:
        if first > stop:
            raise ValueError(f"row {stop} is missing before row {first}")
        logits, stop = tensor.numpy(), first + tensor.shape[1]
        if len(logits) != number:
            raise ValueError(f"expected {number} rows of output, got {len(logits)}")
        while todo and todo[0][1].stop <= stop:
            part, columns, cut = todo.popleft()
            decide_slab(
                cropped[0, part], _between(held, logits, first, columns), cut, labels=labels
            )
        needed = min(todo[0][1].start, stop) if todo else stop
        # A copy, as the logits are overwritten.
        held = _between(held, logits, first, slice(needed, stop)).copy()
    if todo:
        raise ValueError(f"rows are missing after {todo[0][0].start} of {shape[0]}")
    return uncrop(cropped, properties).squeeze(0)


def _between(held: Array, logits: Array, first: int, rows: slice) -> Array:
    """Returns some rows of those that are held and those that follow them from `first` on."""
    own = logits[:, max(0, rows.start - first) : rows.stop - first]
    if rows.start >= first:
        return own
    before = first - held.shape[1]
    return np.concatenate([held[:, rows.start - before : rows.stop - before], own], axis=1)


class _Decider:
    """Takes rows of logits, and yields the labels of all rows of the crop that follow from them.

    Attributes:
        decided: Number of rows of the crop that are decided.
    """

    def __init__(self, back: WayBack, written: Sequence[int], *, regions: bool) -> None:
        self.decided = 0
        self._written, self._regions = written, regions
        self._shape = back.shape
        z, y, x = (_Taps.of(matrix) for matrix in back.operators)
        self._z, self._others = z, ((1, y), (2, x))
        # First and last row of the network's grid that each row of the crop depends on.
        count = back.shape[0]
        self._first = np.arange(count) if z is None else z.columns.min(axis=0)
        self._last = np.arange(count) if z is None else z.columns.max(axis=0)
        self._kept: Tensor | None = None  # rows that come before those that are taken

    def take(self, start: int, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yields ranges of rows of the crop, and their labels (rows, y, x)."""
        if self._kept is not None:  # the sums may have gone to the host since
            self._kept = self._kept.to(logits.device)
        kept = 0 if self._kept is None else self._kept.shape[1]
        stop = start + logits.shape[1]
        ready = int(np.searchsorted(self._last, stop))
        while self.decided < ready:
            # As many as are decided at a time on the host.
            part = next(slabs((ready - self.decided, *self._shape[1:])))
            rows = slice(self.decided, self.decided + part.stop)
            low, high = int(self._first[rows.start]), int(self._last[rows.stop - 1]) + 1
            if low < start - kept:
                raise ValueError(f"row {low} is missing before row {start}")
            make = partial(self._labels, rows, (low, high), start)
            labels, logits = self._with_room(make, logits)
            yield rows, labels
            self.decided = rows.stop
        needed = stop if ready == len(self._first) else min(stop, int(self._first[ready]))
        if needed < stop:
            self._kept, _ = self._with_room(partial(self._copied, (needed, stop), start), logits)
        else:
            self._kept = None

    def _with_room(self, make: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what is made of logits, and these: on the host, if the GPU gets full."""
        try:
            return make(logits), logits
        except RuntimeError as error:
            if logits.device.type == "cpu" or out_of_memory(error) != "accelerator":
                raise
        # Outside of the block, whose error keeps what it had made.
        logits = logits.cpu()
        self._kept = None if self._kept is None else self._kept.cpu()
        return make(logits), logits

    def _copied(self, span: tuple[int, int], start: int, logits: Tensor) -> Tensor:
        """Returns rows for later, as the logits are overwritten."""
        return torch.stack([self._rows(logits, n, span, start) for n in range(len(logits))])

    def _labels(self, rows: slice, span: tuple[int, int], start: int, logits: Tensor) -> Tensor:
        best = target = torch.zeros(())
        for number, value in enumerate(self._written):
            score = self._rows(logits, number, span, start)
            if self._z is not None:
                score = self._z.cut(rows, span[0]).apply(score, 0)
            for axis, taps in self._others:
                score = score if taps is None else taps.apply(score, axis)
            if number == 0:
                target = torch.zeros(score.shape, dtype=torch.int32, device=score.device)
            if self._regions:
                target.masked_fill_(score > 0, value)
            elif number == 0:
                best = score
                target.fill_(value)
            else:
                target.masked_fill_(score > best, value)
                best = torch.maximum(best, score)
        return target

    def _rows(self, logits: Tensor, number: int, span: tuple[int, int], start: int) -> Tensor:
        """Returns some rows of one row of the output, of those that are kept and those taken."""
        low, high = span
        own = logits[number, max(0, low - start) : max(0, high - start)]
        if low >= start or self._kept is None:
            return own
        before = start - self._kept.shape[1]
        kept = self._kept[number, low - before : min(high, start) - before]
        return torch.cat([kept, own])


class _Taps:
    """The non-zero entries of a matrix of linear interpolation, of which a row has one or two."""

    def __init__(self, columns: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> None:
        """Takes the columns (taps, rows) of the entries and their values."""
        self.columns, self.weights = columns, weights

    @classmethod
    def of(cls, matrix: Matrix | None) -> "_Taps | None":
        """Returns the entries of a matrix; None for an axis that does not change."""
        if matrix is None:
            return None
        used = matrix != 0
        number = int(used.sum(axis=1).max(initial=1))
        # Entries before others; rows with fewer of them repeat a column with weight 0.
        order = np.argsort(~used, axis=1, kind="stable")[:, :number]
        weights = np.take_along_axis(matrix, order, axis=1)
        columns = np.where(weights == 0, order[:, :1], order)
        return cls(columns.T, weights.T)

    def cut(self, rows: slice, first: int) -> "_Taps":
        """Returns some rows, for an array that begins at a column."""
        return _Taps(self.columns[:, rows] - first, self.weights[:, rows])

    def apply(self, array: Tensor, axis: int) -> Tensor:
        """Interpolates along an axis of (z, y, x)."""
        shape = [1, 1, 1]
        shape[axis] = self.columns.shape[1]
        total: Tensor | None = None
        for columns, weights in zip(self.columns, self.weights, strict=True):
            index = torch.from_numpy(np.ascontiguousarray(columns)).to(array.device)
            weight = torch.from_numpy(np.ascontiguousarray(weights)).to(array.device)
            values, weight = array.index_select(axis, index), weight.view(shape)
            total = values * weight if total is None else total.addcmul_(values, weight)
        if total is None:
            raise ValueError("a matrix has no entries")
        return total
