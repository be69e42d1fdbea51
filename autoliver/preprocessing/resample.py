"""Resamples images, labels and probabilities between grids, to the values that nnU-Net produces.

Spline interpolation is linear and separable: what scikit-image computes voxel by voxel from
4 x 4 x 4 neighbours is one matrix product per axis. The matrices here are scipy's own interpolation
applied to unit vectors, so the only approximation is float32 rounding.

If slices are much thicker than pixels, their axis is resampled separately: it takes the nearest
slice, and the slices are resampled one by one in their plane.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from autoliver.planning.nonzero import Box
from autoliver.preprocessing.majority import coded, majority, nearest_voxels

L = TypeVar("L", bound=np.integer)
G = TypeVar("G", bound=np.generic)
Order = Literal[1, 3]
Shape = tuple[int, int, int]
Matrix = npt.NDArray[np.float32]
# One (size after, size before) matrix per axis; None for an axis whose size does not change.
Operators = tuple[Matrix | None, Matrix | None, Matrix | None]

# nnU-Net's bound: above this ratio of largest to smallest spacing the slices are resampled alone.
_ANISOTROPY = 3.0
# The cubic spline's influence falls to a quarter per voxel: entries below this are 14 voxels away
# and together change a value by less than 1e-8 of the image's range.
_NEGLIGIBLE = 1e-8
# Rows of a matrix multiplied at a time, with only the columns in which they are non-zero.
_ROWS = 64


def separate_axis(spacing_from: Sequence[float], spacing_to: Sequence[float]) -> int | None:
    """Chooses the axis to resample separately, by nnU-Net's rule.

    Args:
        spacing_from: Three spacings in mm of the present grid.
        spacing_to: Three spacings in mm of the new grid.

    Returns:
        The coarsest axis of the first of the two grids that is anisotropic by more than a factor
        of 3; None if neither grid is, or if two axes of that grid are equally coarse.
    """
    for spacing in (spacing_from, spacing_to):
        coarsest = max(spacing)
        if coarsest / min(spacing) > _ANISOTROPY:
            axes = [axis for axis, value in enumerate(spacing) if coarsest / value == 1]
            return axes[0] if len(axes) == 1 else None
    return None


def resample_image(
    image: npt.NDArray[np.floating],
    shape_zyx: Shape,
    *,
    separate_axis: int | None = None,
    spare: bool = False,
) -> npt.NDArray[np.float32]:
    """Resamples an image with cubic splines and clips each channel to its original range.

    Args:
        image: (c, z, y, x).
        shape_zyx: Size of the new grid; both grids span the same box.
        separate_axis: The axis along which the nearest slices are taken, whose slices are clipped
            one by one; None: cubic splines along all axes.
        spare: Whether the image may be overwritten, which saves a copy of it.

    Returns:
        (c, *shape_zyx).
    """
    image = image.astype(np.float32, copy=False)
    if image.shape[1:] == tuple(shape_zyx):
        return image
    within = _within_slices(image.shape[1:], shape_zyx, separate_axis)
    operators = _operators(image.shape[1:], within, order=3)
    sides = tuple(axis for axis in range(3) if axis != separate_axis)
    result = np.empty((len(image), *shape_zyx), dtype=np.float32)
    for channel, target in zip(image, result, strict=True):
        low, high = channel.min(axis=sides, keepdims=True), channel.max(axis=sides, keepdims=True)
        # Values are taken relative to the lowest, so that constant air stays constant exactly.
        least = low.min()
        relative = np.subtract(channel, least, out=channel if spare else None)
        resampled = apply_operators(relative, operators)
        del relative
        resampled += least
        if resampled.shape == target.shape:
            np.clip(resampled, low, high, out=target)
        else:
            clipped = np.clip(resampled, low, high)
            target[:] = _nearest_slices(clipped, shape_zyx, separate_axis)
    return result


def resample_labels(
    labels: npt.NDArray[L], shape_zyx: Shape, *, separate_axis: int | None = None
) -> npt.NDArray[L]:
    """Resamples label maps: each voxel takes the label with the largest linear share.

    Of labels with equal shares the nearest voxel's label wins, else the smallest, as in nnU-Net
    2.8. Only voxels whose neighbours differ are computed, however many labels there are.

    Args:
        labels: (c, z, y, x), any label values.
        shape_zyx: Size of the new grid.
        separate_axis: The axis along which the nearest slices are taken; None: linear along all.

    Returns:
        (c, *shape_zyx), with the dtype of `labels`.
    """
    if labels.shape[1:] == tuple(shape_zyx):
        return labels
    within = _within_slices(labels.shape[1:], shape_zyx, separate_axis)
    result = np.empty((len(labels), *shape_zyx), dtype=labels.dtype)
    for channel, target in zip(labels, result, strict=True):
        codes, least = coded(channel)
        decided = _nearest_slices(majority(codes, within), shape_zyx, separate_axis)
        # Modulo the range of the type, as in `coded`.
        np.add(decided, least, out=target, dtype=target.dtype, casting="unsafe")
    return result


def linear_operators(
    shape_from: Sequence[int], shape_to: Sequence[int], *, separate_axis: int | None = None
) -> Operators:
    """Returns the matrices of linear resampling, for callers that apply them piece by piece.

    Args:
        shape_from: (z, y, x) of the present grid.
        shape_to: (z, y, x) of the new grid.
        separate_axis: The axis along which the nearest slices are taken; None: linear along all.

    Returns:
        One matrix per axis; None for an axis whose size does not change.
    """
    z, y, x = _operators(shape_from, _within_slices(shape_from, shape_to, separate_axis), order=1)
    if separate_axis is None:
        return z, y, x
    operators = [z, y, x]
    size, wanted = shape_from[separate_axis], shape_to[separate_axis]
    if size != wanted:
        operators[separate_axis] = np.eye(size, dtype=np.float32)[nearest_voxels(size, wanted)]
    return operators[0], operators[1], operators[2]


def cut_operators(
    operators: Operators, box: Sequence[slice], shape_to: Sequence[int]
) -> tuple[Operators, Box]:
    """Cuts resampling matrices to the part that needs no voxel outside a box.

    Args:
        operators: One matrix per axis; None for an axis whose size does not change.
        box: A range per axis of the present grid.
        shape_to: (z, y, x) of the whole new grid.

    Returns:
        Operators from the box to those voxels of the new grid that depend on the box alone, and
        the box of these voxels in the new grid.
    """
    cut: list[Matrix | None] = []
    places = []
    for matrix, part, size in zip(operators, box, shape_to, strict=True):
        if matrix is None:
            cut.append(None)
            places.append(slice(part.start, part.stop))
            continue
        used = matrix != 0
        used[:, part] = False
        within = np.flatnonzero(~used.any(axis=1))
        first, last = (int(within[0]), int(within[-1]) + 1) if len(within) else (size, size)
        cut.append(matrix[first:last, part])
        places.append(slice(first, last))
    return (cut[0], cut[1], cut[2]), (places[0], places[1], places[2])


def apply_operators(
    channel: npt.NDArray[np.floating], operators: Operators, *, rows: slice | None = None
) -> npt.NDArray[np.float32]:
    """Multiplies each axis with its matrix, beginning with those that shrink the array most.

    Args:
        channel: (z, y, x).
        operators: One matrix per axis; None for an axis whose size does not change.
        rows: Compute only this range of the first axis of the result; None: all of it.

    Returns:
        (z, y, x) with the new sizes; the input array itself if nothing changes.
    """
    first = operators[0]
    if rows is not None:
        if first is None:
            channel = channel[rows]
        else:
            columns = _support(first[rows])
            first, channel = first[rows, columns], channel[columns]
    result = np.ascontiguousarray(channel, dtype=np.float32)
    todo = [(axis, m) for axis, m in enumerate((first, *operators[1:])) if m is not None]
    with _blas().limit(limits=1):
        for axis, matrix in sorted(todo, key=lambda item: item[1].shape[0] / item[1].shape[1]):
            result = _multiply(result, matrix, axis)
    return result


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """Numpy's OpenBLAS, to keep it to one thread.

    The products are so small that its threads mostly wait for one another, spinning: with
    two of them a busy machine spends seven times the processor time of one.
    """
    return ThreadpoolController().select(internal_api="openblas")


def _multiply(array: npt.NDArray[np.float32], matrix: Matrix, axis: int) -> npt.NDArray[np.float32]:
    shape = [*array.shape]
    shape[axis] = len(matrix)
    result = np.empty(shape, dtype=np.float32)
    before, after = (a.reshape(a.shape[0], -1) if axis == 0 else a for a in (array, result))
    if axis == 2:
        before, after = (a.reshape(-1, a.shape[2]) for a in (array, result))
    for start in range(0, len(matrix), _ROWS):
        rows = slice(start, start + _ROWS)
        columns = _support(matrix[rows])
        block = matrix[rows, columns]
        if axis == 2:
            after[:, rows] = before[:, columns] @ block.T
        elif axis == 1:
            np.matmul(block, before[:, columns], out=after[:, rows])
        else:
            np.matmul(block, before[columns], out=after[rows])
    return result


def _support(rows: Matrix) -> slice:
    used = np.flatnonzero(rows.any(axis=0))
    return slice(int(used[0]), int(used[-1]) + 1)


def _within_slices(
    shape_from: Sequence[int], shape_to: Sequence[int], separate: int | None
) -> Shape:
    z, y, x = (
        before if axis == separate else after
        for axis, (before, after) in enumerate(zip(shape_from, shape_to, strict=True))
    )
    return z, y, x


def _nearest_slices(array: npt.NDArray[G], shape_zyx: Shape, axis: int | None) -> npt.NDArray[G]:
    if axis is None or array.shape[axis] == shape_zyx[axis]:
        return array
    return array.take(nearest_voxels(array.shape[axis], shape_zyx[axis]), axis=axis)


def _operators(shape_from: Sequence[int], shape_to: Sequence[int], *, order: Order) -> Operators:
    z, y, x = (
        None if before == after else _operator(before, after, order)
        for before, after in zip(shape_from, shape_to, strict=True)
    )
    return z, y, x


@lru_cache(maxsize=64)
def _operator(size: int, wanted: int, order: Order) -> Matrix:
    """Returns the (wanted, size) matrix of scikit-image's `resize` along one axis."""
    # Imported late: it takes a third of a second, which only commands that resample should wait.
    from scipy import ndimage

    unit: npt.NDArray[np.float64] = np.eye(size)
    columns = ndimage.zoom(
        unit, np.array([1.0, wanted / size]), order=order, mode="nearest", grid_mode=True
    )
    matrix = np.ascontiguousarray(columns.T, dtype=np.float32)
    matrix[np.abs(matrix) < _NEGLIGIBLE] = 0
    matrix.flags.writeable = False
    return matrix
