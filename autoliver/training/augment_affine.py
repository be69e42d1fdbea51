"""Affine resampling of volumes on a CPU core: linear for images, the largest share for labels.

torch samples volumes voxel by voxel on a CPU, and labels would need that once per label. Here the
patch is taken in blocks that stay in the cache: the eight neighbours of each voxel are looked up
corner by corner, with indices and shares that all channels have in common, and labels are weighed
only where neighbours differ.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Index = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.signedinteger]
# Labels of a block, as small numbers from zero on.
Ranks = npt.NDArray[np.unsignedinteger]
# What each patch axis adds to each source coordinate: [source axis][patch axis] -> (n,).
Terms = Sequence[Sequence[npt.NDArray[np.float64]]]

# Voxels of the patch in a block. Smaller ones share less source, larger ones leave the cache.
_BLOCK = (32, 32, 64)
# Added around the source that a block needs: rounding must not lead out of it.
_MARGIN = 0.01
# The last of the three axes changes first, as in the arrays.
_CORNERS = tuple(product((0, 1), repeat=3))
# Scores of labels are compared in half precision of thousandths (see augment_spatial), which near
# one half cannot tell apart what differs from it by less than this share.
_SCORE, _TIE = 1000.0, 1.25e-4


def resample_affine(
    image: Tensor, label: Tensor, *, matrix: Tensor, outside: int, into: tuple[Tensor, Tensor]
) -> None:
    """Fills a patch from a source that is turned and scaled, about the centres of both.

    Images are interpolated linearly, with zeros outside. Of labels, the one with the largest share
    of the eight neighbours wins, of equal ones the nearest.

    Args:
        image: (c, z, y, x), any float type, on the CPU.
        label: (k, z, y, x), any integer type with a sign.
        matrix: (3, 3), float64, from patch to source, in voxels.
        outside: Label outside of the source.
        into: Image (c, *patch), float32, and label (k, *patch), of the label's type.
    """
    patch, source = into[0].shape[1:], image.shape[1:]
    terms = _terms(matrix, patch, source)
    for where in _blocks(patch):
        block = _Block.of(terms, where)
        for channel, target in zip(image, into[0], strict=True):
            target[where] = block.blend(block.cut(channel, 0).float().numpy())
        for channel, target in zip(label, into[1], strict=True):
            found = _resample_label(block, block.cut(channel, outside).numpy())
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
class _Block:
    """A block of the patch, the box of the source it needs, and where its voxels lie in that.

    Attributes:
        shape: Of the block, (dz, dy, dx).
        start: First voxel of the box; may lie outside of the source.
        size: Of the box.
        cell: The first of the eight neighbours of each voxel, in the flat box, (dz * dy * dx,).
        shares: Of the second neighbour, one array (dz * dy * dx,) per axis.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]
    cell: Index
    shares: tuple[Tensor, ...]

    @classmethod
    def of(cls, terms: Terms, where: Sequence[slice]) -> "_Block":
        """The block at a place of the patch."""
        shape: tuple[int, ...] = ()
        starts, sizes, shares, floors = [], [], [], []
        for row in terms:
            z, y, x = (term[span] for term, span in zip(row, where, strict=True))
            ends = [(min(t[0], t[-1]), max(t[0], t[-1])) for t in (z, y, x)]
            low, high = (sum(end) for end in zip(*ends, strict=True))
            starts.append(math.floor(low - _MARGIN))
            sizes.append(math.floor(high + _MARGIN) + 2 - starts[-1])
            # In float32 only relative to the box, where that is exact to a part in 10^5.
            plane = torch.from_numpy((z - starts[-1])[:, None, None] + y[:, None]).float()
            place = plane + torch.from_numpy(x).float()
            floor = place.floor()
            shape = tuple(place.shape)
            shares.append(place.sub_(floor).flatten())
            floors.append(floor.to(torch.int32))
        cell, rows, columns = floors
        cell.mul_(sizes[1]).add_(rows).mul_(sizes[2]).add_(columns)
        return cls(
            shape=shape,
            start=tuple(starts),
            size=tuple(sizes),
            cell=cell.flatten().long().numpy(),
            shares=tuple(shares),
        )

    def cut(self, volume: Tensor, fill: int) -> Tensor:
        """The box of a volume (z, y, x), contiguous, with `fill` outside."""
        inner, place = [], []
        for start, size, total in zip(self.start, self.size, volume.shape, strict=True):
            first = min(max(start, 0), total)
            last = max(min(start + size, total), first)
            inner.append(slice(first, last))
            place.append(slice(first - start, last - start))
        found = volume[tuple(inner)]
        if found.shape == self.size:
            return found.contiguous()
        box = volume.new_full(self.size, fill)
        box[tuple(place)] = found
        return box

    def neighbours(
        self, box: npt.NDArray[np.generic], corner: tuple[int, ...], cell: Index
    ) -> npt.NDArray[np.generic]:
        """What the box holds at one corner of each cell, (n,)."""
        (z, y, x), (_, height, width) = corner, self.size
        # Indices are right by construction; "clip" spares a pass that would check them first.
        return box.reshape(-1)[(z * height + y) * width + x :].take(cell, mode="clip")

    def blend(self, box: Floats) -> Tensor:
        """Interpolates a box linearly, (dz, dy, dx)."""

        def along(*before: int) -> Tensor:
            if len(before) == len(self.size):
                return torch.from_numpy(self.neighbours(box, before, self.cell))
            return torch.lerp(along(*before, 0), along(*before, 1), self.shares[len(before)])

        return along().view(self.shape)


def _resample_label(block: _Block, box: Labels) -> Labels:
    low, high = int(box.min()), int(box.max())
    if low == high:
        return np.full(block.shape, low, box.dtype)
    ranks, values = _ranks(box, low, high)
    flat = ranks.reshape(-1)
    winner = flat.take(block.cell, mode="clip")
    points = np.flatnonzero(_mixed_cells(ranks).take(block.cell, mode="clip"))
    if len(points):
        cell = block.cell.take(points)
        corners = np.stack([block.neighbours(ranks, corner, cell) for corner in _CORNERS])
        shares = [torch.from_numpy(share.numpy().take(points)) for share in block.shares]
        winner[points] = _decide(corners, shares)
    return values.take(winner, mode="clip").reshape(block.shape)


def _mixed_cells(ranks: Ranks) -> npt.NDArray[np.bool_]:
    """Whether the eight voxels from each voxel on differ; of the flat box.

    In one line, which is several times as fast: what follows the end of a row is no neighbour, but
    nothing asks for the cells there.
    """
    low = high = ranks.reshape(-1)
    for step in (1, ranks.shape[2], ranks.shape[1] * ranks.shape[2]):
        low, high = np.minimum(low[:-step], low[step:]), np.maximum(high[:-step], high[step:])
    mixed: npt.NDArray[np.bool_] = low != high
    return mixed


def _ranks(box: Labels, low: int, high: int) -> tuple[Ranks, Labels]:
    """Labels as small numbers that keep their order, and the label of each number."""
    if high - low > 1:
        highest = box == high
        if np.logical_or(highest, box == low).all():
            return highest.view(np.uint8), np.array([low, high], box.dtype)
    if high - low <= np.iinfo(np.uint8).max:
        return (box - low).astype(np.uint8), np.arange(low, high + 1).astype(box.dtype)
    values, ranks = np.unique(box, return_inverse=True)
    return ranks.astype(np.uint16).reshape(box.shape), values


def _decide(corners: Ranks, shares: Sequence[Tensor]) -> Ranks:
    """The winner at points with neighbours (8, n); `shares` as in `_Block`.

    Between two labels that differ by one, the interpolated label itself says which it is. Only
    what lies between labels further apart, or half-way, is weighed label by label.
    """
    blended = torch.from_numpy(corners).float()
    for share in reversed(shares):
        blended = torch.lerp(blended[0::2], blended[1::2], share)
    between = blended[0].numpy()
    rounded = np.rint(between)
    winner: Ranks = rounded.astype(corners.dtype)
    apart = corners.max(0) - corners.min(0) > 1
    (doubtful,) = np.nonzero(apart | (np.abs(between - rounded) > 0.5 - _TIE))
    if len(doubtful):
        parts = [share.numpy().take(doubtful) for share in shares]
        winner[doubtful] = _weigh(corners.take(doubtful, axis=1), parts)
    return winner


def _weigh(corners: Ranks, shares: Sequence[Floats]) -> Ranks:
    z, y, x = ((1 - share, share) for share in shares)
    weights = np.stack([z[i] * y[j] * x[k] for i, j, k in _CORNERS])
    # The second neighbour along an axis is the nearer one where its share is above one half.
    far = [(share > 0.5).astype(np.intp) for share in shares]
    winner: Ranks = corners[far[0] * 4 + far[1] * 2 + far[2], np.arange(corners.shape[1])]
    # Most of the nearest labels have more than half of the weight.
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
