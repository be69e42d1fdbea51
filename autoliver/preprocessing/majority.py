"""Linear resampling of label maps: each voxel takes the label with the largest share of it.

A label's share is its binary mask interpolated linearly. All labels are resampled at once, and
shares are computed only for new voxels whose neighbours have different labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

L = TypeVar("L", bound=np.integer)
# Labels counted from 0; the largest value of the type is reserved for "not decided yet".
Codes = npt.NDArray[np.unsignedinteger]


def _centres(size: int, wanted: int) -> npt.NDArray[np.float64]:
    # In scipy's order of operations: ties between labels depend on the last bit.
    centres = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    return np.clip(centres, 0, size - 1)


def nearest_voxels(size: int, wanted: int) -> npt.NDArray[np.intp]:
    """Finds, along one axis, the old voxel nearest to each new voxel.

    Args:
        size: Size of the axis in voxels.
        wanted: Its size after resampling.

    Returns:
        (wanted,) indices of old voxels.
    """
    return np.floor(_centres(size, wanted) + 0.5).astype(np.intp)


@dataclass(frozen=True, slots=True)
class _Taps:
    """The neighbours of each new voxel along one axis, their weights and the nearest neighbour.

    There are two neighbours, or one if the size of the axis does not change.
    """

    indices: tuple[npt.NDArray[np.intp], ...]
    weights: tuple[npt.NDArray[np.float64], ...]
    nearest: npt.NDArray[np.intp]


def _taps(size: int, wanted: int) -> _Taps:
    if size == wanted:
        same = np.arange(size)
        return _Taps(indices=(same,), weights=(np.ones(size),), nearest=same)
    centres = _centres(size, wanted)
    lower = np.floor(centres)
    share = 1.0 - (centres - lower)
    index = lower.astype(np.intp)
    return _Taps(
        indices=(index, np.minimum(index + 1, size - 1)),
        weights=(share, 1.0 - share),
        nearest=nearest_voxels(size, wanted),
    )


def coded(labels: npt.NDArray[L]) -> tuple[Codes, L]:
    """Counts labels from the smallest one, in the smallest unsigned type with one value to spare.

    Args:
        labels: Label values, any shape.

    Returns:
        The differences to the smallest label, and the smallest label. Their sum, modulo the range
        of the labels' type, gives the labels again.
    """
    least = labels.min()
    codes: Codes = np.empty(labels.shape, np.min_scalar_type(int(labels.max()) - int(least) + 1))
    np.subtract(labels, least, out=codes, dtype=codes.dtype, casting="unsafe")
    return codes, least


def majority(codes: Codes, shape_zyx: tuple[int, int, int]) -> Codes:
    """Finds the label with the largest linear share at each voxel of the new grid.

    Of labels with equal shares the nearest voxel's label wins, else the smallest. The work is done
    slice by slice: a slice of labels stays in the cache, and most of its voxels lie between
    neighbours of one label.

    Args:
        codes: (z, y, x) labels, each less than the largest value of their type.
        shape_zyx: Size of the new grid; an axis whose size does not change is not resampled.

    Returns:
        (*shape_zyx) labels.
    """
    z, y, x = (_taps(n, m) for n, m in zip(codes.shape, shape_zyx, strict=True))
    unsure = np.iinfo(codes.dtype).max
    result = np.empty(shape_zyx, dtype=codes.dtype)
    for place, plane in enumerate(result):
        slices = [codes[index[place]] for index in z.indices]
        agreed = _agreed(slices)
        agreed = _agreed([agreed.take(index, 0) for index in y.indices])
        plane[:] = _agreed([agreed.take(index, 1) for index in x.indices])
        flat = plane.reshape(-1)
        points = np.flatnonzero(flat == unsure)
        if points.size:
            rows = points // len(x.nearest)
            columns = points - rows * len(x.nearest)
            shares = [weight[place] for weight in z.weights]
            values, weights = _corners(slices, shares, (y, x), rows, columns)
            nearest = codes[z.nearest[place]][y.nearest[rows], x.nearest[columns]]
            flat[points] = _decide(values, weights, nearest)
    return result


def _agreed(sides: Sequence[Codes]) -> Codes:
    """Returns the labels that all sides share, and the type's largest value where they differ."""
    if len(sides) == 1:
        return sides[0]
    first, second = sides
    result: Codes = first | (first != second) * first.dtype.type(np.iinfo(first.dtype).max)
    return result


def _corners(
    slices: Sequence[Codes],
    shares: Sequence[np.float64],
    plane: tuple[_Taps, _Taps],
    rows: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
) -> tuple[list[Codes], list[npt.NDArray[np.float64]]]:
    """Returns labels and weights of the 2, 4 or 8 voxels around each point, in scipy's order."""
    y, x = plane
    width = slices[0].shape[1]
    starts = [(index * width)[rows] for index in y.indices]
    steps = [index[columns] for index in x.indices]
    places = [start + step for start, step in product(starts, steps)]
    across = [weight[columns] for weight in x.weights]
    values = [layer.reshape(-1).take(each) for layer, each in product(slices, places)]
    weights = [
        (share * down)[rows] * each for share, down, each in product(shares, y.weights, across)
    ]
    return values, weights


def _decide(
    values: Sequence[Codes], weights: Sequence[npt.NDArray[np.float64]], nearest: Codes
) -> Codes:
    """Decides the voxels whose neighbours differ, summing in scipy's order to get the same ties."""
    low, high = values[0].copy(), values[0].copy()
    for value in values[1:]:
        np.minimum(low, value, out=low)
        np.maximum(high, value, out=high)
    third = np.zeros(len(low), dtype=np.bool_)
    below, above = np.zeros(len(low)), np.zeros(len(low))
    for value, weight in zip(values, weights, strict=True):
        third |= (value != low) & (value != high)
        part = weight * (value == high)
        above += part
        # Exact: the difference is the weight or zero.
        below += weight - part
    winner = np.where(above > below, high, low)
    np.copyto(winner, nearest, where=above == below)
    among = np.flatnonzero(third)
    if among.size:
        winner[among] = _vote(
            [value[among] for value in values],
            [weight[among] for weight in weights],
            nearest[among],
        )
    return winner


def _vote(
    values: Sequence[Codes], weights: Sequence[npt.NDArray[np.float64]], nearest: Codes
) -> Codes:
    """Decides like `_decide`, but among any number of labels."""

    def share(label: Codes) -> npt.NDArray[np.float64]:
        total = np.zeros(len(label))
        for value, weight in zip(values, weights, strict=True):
            total += weight * (value == label)
        return total

    best, winner = share(values[0]), values[0].copy()
    for value in values[1:]:
        score = share(value)
        better = (score > best) | ((score == best) & (value < winner))
        np.copyto(best, score, where=better)
        np.copyto(winner, value, where=better)
    return np.where(share(nearest) == best, nearest, winner)
