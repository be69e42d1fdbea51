"""Affine resampling of volumes on a CPU core: linear for images, by largest share for labels.

On a CPU, torch samples volumes voxel by voxel, and labels would need one pass per label. Here the
patch is processed in blocks that stay in the CPU's cache. The eight neighbours of each voxel are
looked up corner by corner, with indices and shares that all channels use. Labels are weighed only
where the neighbours differ.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoliver.preprocessing.crop import OUTSIDE

G = TypeVar("G", bound=np.generic)
Index = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.signedinteger]
# Labels of a block as small numbers, counted from zero.
Ranks = npt.NDArray[np.unsignedinteger]
# Contribution of each patch axis to each source coordinate: [source axis][patch axis] -> (n,).
Terms = Sequence[Sequence[npt.NDArray[np.float64]]]

# Size of a block in voxels of the patch. Smaller blocks share less of the source, larger ones do
# not fit into the cache.
_BLOCK = (32, 32, 64)
# Margin around the part of the source that a block needs, so that rounding cannot leave it.
_MARGIN = 0.01
# The last of the three axes varies fastest, as in the arrays.
_CORNERS = tuple(product((0, 1), repeat=3))
# Scores of labels are multiplied by 1000 and compared in half precision, as in augment/spatial.py.
# This cannot distinguish from one half a share that differs from it by less than _TIE.
_SCORE, _TIE = 1000.0, 1.25e-4


def resample_affine(
    image: Tensor, label: Tensor, *, matrix: Tensor, into: tuple[Tensor, Tensor]
) -> None:
    """Fills a patch from a source that is rotated and scaled about the centres of both.

    Images are interpolated linearly, with zeros outside the source. For labels, the one with the
    largest share of the eight neighbours wins, and the nearest one among equal shares; outside the
    source the label is `OUTSIDE`.

    Args:
        image: (c, z, y, x), any float type, on the CPU.
        label: (k, z, y, x), any signed integer type.
        matrix: (3, 3), float64, from patch to source, in voxels.
        into: Filled in place: image (c, *patch), float32, and label (k, *patch), of the label's
            type.
    """
    patch, source = into[0].shape[1:], image.shape[1:]
    terms = _terms(matrix, patch, source)
    straight = torch.equal(matrix, matrix.diag().diag())
    for where in _blocks(patch):
        block = _Block.of(terms, where, straight=straight)
        for channel, target in zip(image, into[0], strict=True):
            target[where] = block.blend(block.cut(channel, 0).float().numpy())
        for channel, target in zip(label, into[1], strict=True):
            found = _resample_label(block, block.cut(channel, OUTSIDE).numpy())
            target[where] = torch.from_numpy(found)


def _terms(matrix: Tensor, patch: Sequence[int], source: Sequence[int]) -> Terms:
    lines = [np.arange(size) - (size - 1) / 2 for size in patch]
    middles = [(size - 1) / 2 for size in source]
    return [
        [middle + z * lines[0], y * lines[1], x * lines[2]]
        for (z, y, x), middle in zip(matrix.tolist(), middles, strict=True)
    ]


def _blocks(patch: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    for start in product(*map(range, (0, 0, 0), patch, _BLOCK)):
        yield tuple(slice(a, a + size) for a, size in zip(start, _BLOCK, strict=True))


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of a box of the source in which n voxels of the patch lie.

    Attributes:
        size: Shape of the box.
        first: Index of the first of the eight neighbours of each voxel in the flat box, (n,).
        shares: Interpolation weight of the second neighbour, one tensor (n,) per axis.
    """

    size: tuple[int, ...]
    first: Index
    shares: tuple[Tensor, ...]

    def only(self, points: Index) -> "_Cells":
        """The cells of some of the voxels, given by their indices."""
        shares = (torch.from_numpy(share.numpy().take(points)) for share in self.shares)
        return _Cells(self.size, self.first.take(points), tuple(shares))

    def corner(self, box: npt.NDArray[G], corner: Sequence[int]) -> npt.NDArray[G]:
        """The values (n,) of the box at one corner of each cell."""
        (z, y, x), (_, height, width) = corner, self.size
        # Indices are valid by construction; "clip" saves a pass that would check them first.
        return box.reshape(-1)[(z * height + y) * width + x :].take(self.first, mode="clip")

    def blend(self, box: Floats, *before: int) -> Tensor:
        """Interpolates the box linearly, (n,); `before` chooses a neighbour on the first axes."""
        if len(before) == len(self.size):
            return torch.from_numpy(self.corner(box, before))
        first, second = self.blend(box, *before, 0), self.blend(box, *before, 1)
        return torch.lerp(first, second, self.shares[len(before)])


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of the patch and the box of the source that it needs.

    Attributes:
        shape: Shape of the block, (dz, dy, dx).
        start: First voxel of the box; may be outside the source.
        cells: The cells of the block's voxels, in the order of the flat block.
        lines: Without rotation: per axis the first neighbours and the weights of the second ones,
            each (dz,), (dy,) or (dx,), which hold for the whole block. Empty with rotation.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    cells: _Cells
    lines: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, terms: Terms, where: Sequence[slice], *, straight: bool) -> "_Block":
        """Makes the block at a place of the patch; `straight` means without rotation."""
        starts, sizes, shares, floors = [], [], [], []
        for row in terms:
            z, y, x = (term[span] for term, span in zip(row, where, strict=True))
            ends = [(min(t[0], t[-1]), max(t[0], t[-1])) for t in (z, y, x)]
            low, high = (sum(end) for end in zip(*ends, strict=True))
            starts.append(math.floor(low - _MARGIN))
            sizes.append(math.floor(high + _MARGIN) + 2 - starts[-1])
            # Only coordinates relative to the box become float32, which is exact to 1e-5 there.
            plane = torch.from_numpy((z - starts[-1])[:, None, None] + y[:, None]).float()
            place = plane + torch.from_numpy(x).float()
            floor = place.floor()
            shares.append(place.sub_(floor))
            floors.append(floor.to(torch.int32))
        lines = []
        if straight:
            # Along each axis, the line through the first voxel represents all parallel lines.
            for axis, each in enumerate(zip(floors, shares, strict=True)):
                floor, share = (tensor.movedim(axis, -1)[0, 0] for tensor in each)
                lines.append((floor.long(), share))
        cell, rows, columns = floors
        cell.mul_(sizes[1]).add_(rows).mul_(sizes[2]).add_(columns)
        return cls(
            shape=tuple(cell.shape),
            start=tuple(starts),
            cells=_Cells(
                size=tuple(sizes),
                first=cell.flatten().long().numpy(),
                shares=tuple(share.flatten() for share in shares),
            ),
            lines=tuple(lines),
        )

    def cut(self, volume: Tensor, fill: int) -> Tensor:
        """Cuts the box out of a volume (z, y, x), contiguous, with `fill` outside the volume."""
        inner, place = [], []
        for start, size, total in zip(self.start, self.cells.size, volume.shape, strict=True):
            first = min(max(start, 0), total)
            last = max(min(start + size, total), first)
            inner.append(slice(first, last))
            place.append(slice(first - start, last - start))
        found = volume[tuple(inner)]
        if found.shape == self.cells.size:
            return found.contiguous()
        box = volume.new_full(self.cells.size, fill)
        box[tuple(place)] = found
        return box

    def blend(self, box: Floats) -> Tensor:
        """Interpolates the box linearly, (dz, dy, dx)."""
        if not self.lines:
            return self.cells.blend(box).view(self.shape)
        result = torch.from_numpy(box)
        for axis, (first, share) in enumerate(self.lines[:2]):
            near, far = (result.index_select(axis, first + step) for step in (0, 1))
            result = torch.lerp(near, far, share.reshape(-1, *[1] * (2 - axis)))
        # Along rows, a matrix product is faster than looking up single values.
        first, share = self.lines[2]
        matrix = torch.zeros(box.shape[2], len(first))
        matrix[first, torch.arange(len(first))] = 1 - share
        matrix[first + 1, torch.arange(len(first))] = share
        return result @ matrix


def _resample_label(block: _Block, box: LabelArray) -> LabelArray:
    low, high = int(box.min()), int(box.max())
    if low == high:
        return np.full(block.shape, low, box.dtype)
    ranks, values = _ranks(box, low, high)
    winner = ranks.reshape(-1).take(block.cells.first, mode="clip")
    spread = _spread(ranks).take(block.cells.first, mode="clip")
    points = np.flatnonzero(spread != 0)
    if len(points):
        cells = block.cells.only(points)
        floats = torch.from_numpy(ranks).float().numpy()
        if block.lines:
            blended = block.blend(floats).numpy().reshape(-1).take(points)
        else:
            blended = cells.blend(floats).numpy()
        winner[points] = _decide(ranks, cells, blended, spread.take(points) > 1)
    if len(values) == high - low + 1:
        return np.add(winner, low, dtype=box.dtype).reshape(block.shape)
    return values.take(winner, mode="clip").reshape(block.shape)


def _spread(ranks: Ranks) -> Ranks:
    """The difference between highest and lowest of the eight voxels of each cell of the flat box.

    The box is processed as one line, which is several times as fast. The voxel after the end of a
    row is not a neighbour, but the cells there are never used.
    """
    low = high = ranks.reshape(-1)
    for step in (1, ranks.shape[2], ranks.shape[1] * ranks.shape[2]):
        low, high = np.minimum(low[:-step], low[step:]), np.maximum(high[:-step], high[step:])
    return high - low


def _ranks(box: LabelArray, low: int, high: int) -> tuple[Ranks, LabelArray]:
    """Replaces labels by small numbers in the same order; also returns the label of each number."""
    span = high - low
    if span > np.iinfo(np.uint8).max:
        values, found = np.unique(box, return_inverse=True)
        return found.astype(np.uint16).reshape(box.shape), values
    ranks: Ranks = (box - low).astype(np.uint8)
    if span > 1:
        highest = ranks == span
        if np.logical_or(highest, ranks == 0).all():
            return highest.view(np.uint8), np.array([low, high], box.dtype)
    return ranks, np.arange(low, high + 1).astype(box.dtype)


def _decide(ranks: Ranks, cells: _Cells, blended: Floats, apart: npt.NDArray[np.bool_]) -> Ranks:
    """The winners (n,) of cells whose corners differ; by more than one if they are `apart`.

    Between two labels that differ by one, the rounded interpolated label is the winner. Only cells
    whose labels are further apart, or almost half-way, are weighed label by label.
    """
    rounded = np.rint(blended)
    winner: Ranks = rounded.astype(ranks.dtype)
    doubtful = np.flatnonzero(apart | (np.abs(blended - rounded) > 0.5 - _TIE))
    if len(doubtful):
        few = cells.only(doubtful)
        corners = np.stack([few.corner(ranks, corner) for corner in _CORNERS])
        winner[doubtful] = _weigh(corners, [share.numpy() for share in few.shares])
    return winner


def _weigh(corners: Ranks, shares: Sequence[Floats]) -> Ranks:
    z, y, x = ((1 - share, share) for share in shares)
    weights = np.stack([z[i] * y[j] * x[k] for i, j, k in _CORNERS])
    # The second neighbour along an axis is the nearer one where its share is above one half.
    far = [(share > 0.5).astype(np.intp) for share in shares]
    winner: Ranks = corners[far[0] * 4 + far[1] * 2 + far[2], np.arange(corners.shape[1])]
    # The nearest label mostly has more than half of the weight and thus wins.
    (open_,) = np.nonzero((weights * (corners == winner)).sum(0) < 0.5 + _TIE)
    if not len(open_):
        return winner
    corners, weights, nearest = corners[:, open_], weights[:, open_], winner[open_]
    scores = np.stack([(weights * (corners == each)).sum(0) for each in corners])
    scores = torch.from_numpy(scores * _SCORE).half().float().numpy()
    best = scores == scores.max(0)
    smallest = np.where(best, corners, np.iinfo(corners.dtype).max).min(0)
    winner[open_] = np.where((best & (corners == nearest)).any(0), nearest, smallest)
    return winner
