"""Changes of arrays line by line along their axes, as products with matrices."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autoliver.training.augment.rows import to_device

# Half-width of the blur kernel in standard deviations.
_BLUR_TRUNCATE = 3.0


def multiply_axes(array: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiplies each axis of an array by its matrix (wanted, size)."""
    result = array
    # The last axis comes first because a growing array then has its longest rows only at the end.
    for axis in reversed(range(array.ndim)):
        matrix, shape = matrices[axis], result.shape
        if axis == array.ndim - 1:
            result = result @ matrix.T
        else:
            folded = result.reshape(-1, shape[axis], shape[axis + 1 :].numel())
            result = matrix @ folded
        result = result.reshape(*shape[:axis], len(matrix), *shape[axis + 1 :])
    return result


def multiply_rows(arrays: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiplies each axis of arrays (k, *shape) by their own matrices (k, wanted, size)."""
    if len(arrays) == 1:
        return multiply_axes(arrays[0], [matrix[0] for matrix in matrices])[None]
    result, count = arrays, arrays.ndim - 1
    for axis in reversed(range(count)):
        matrix, shape = matrices[axis], result.shape
        before, after = shape[1 : axis + 1].numel(), shape[axis + 2 :].numel()
        wanted = matrix.shape[1]
        if axis == count - 1:
            result = result.reshape(len(arrays), before, -1) @ matrix.mT
        elif before == 1:
            result = matrix @ result.reshape(len(arrays), -1, after)
        else:
            # One product per array: the lines are brought to the end, and back.
            lines = result.reshape(len(arrays), before, -1, after).transpose(2, 3)
            product = lines.reshape(len(arrays), before * after, -1) @ matrix.mT
            result = product.reshape(len(arrays), before, after, wanted).transpose(2, 3)
        result = result.reshape(*shape[: axis + 1], wanted, *shape[axis + 2 :])
    return result


def blur_matrix(sigma: float, size: int) -> Tensor:
    """The matrix (size, size) that smoothes a line of `size` voxels with a Gaussian."""
    return blur_matrices(np.array([sigma]), size, torch.device("cpu"))[0]


def blur_matrices(sigmas: npt.NDArray[np.float64], size: int, device: torch.device) -> Tensor:
    """The matrices (k, size, size) that smooth a line with Gaussians of deviations (k,)."""
    # The odd widths nearest to 6 sigma + 0.5, as in nnU-Net; a half is rounded to even.
    widths = 2 * _BLUR_TRUNCATE * sigmas + 0.5
    nearest = np.rint(widths)
    nearest += np.where(nearest % 2 == 0, np.where(widths >= nearest, 1, -1), 0)
    halves = nearest // 2
    offset = np.arange(-halves.max(), halves.max() + 1)
    weights = np.exp(-0.5 * (offset / sigmas[:, None]) ** 2)
    weights *= np.abs(offset) <= halves[:, None]
    weights /= weights.sum(1, keepdims=True)
    # Mirrored about the first and the last voxel; a single voxel is mirrored onto itself.
    period = max(2 * (size - 1), 1)
    place = np.abs(np.arange(size)[:, None] + offset.astype(np.int64)) % period
    place = np.minimum(place, period - place) if size > 1 else np.zeros_like(place)
    return _scattered(place[None], weights[:, None], size, device)


def coarsened(arrays: Tensor, scales: Iterable[npt.NDArray[np.float64]]) -> Tensor:
    """Reduces the resolution of arrays by nearest neighbour and restores it linearly.

    The voxels are those of torch's interpolation, "nearest-exact" and then "linear".

    Args:
        arrays: (k, *shape), contiguous.
        scales: Per axis the scale of each array, (k,), 0 to 1.

    Returns:
        (k, *shape).
    """
    device, sizes = arrays.device, arrays.shape[1:]
    places: Tensor | None = None
    matrices, coarse = [], []
    for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True)):
        small = np.rint(size * scale).astype(np.int64)
        kept = _nearest(small, size) * sizes[axis + 1 :].numel()
        shape = [1] * len(sizes)
        shape[axis] = kept.shape[1]
        further = to_device(kept, device).view(-1, *shape)
        places = further if places is None else places + further
        matrices.append(_linear_matrices(small, size, device))
        coarse.append(kept.shape[1])
    if places is None:
        raise ValueError("arrays have no axes")
    found = arrays.view(len(arrays), -1).gather(1, places.view(len(arrays), -1))
    return multiply_rows(found.view(-1, *coarse), matrices)


def _nearest(small: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """The voxels that are kept of a line when it has `small` (k,) voxels, (k, largest of them)."""
    step = np.float32(size) / small.astype(np.float32)
    position = (np.arange(small.max(), dtype=np.float32) + np.float32(0.5)) * step[:, None]
    return np.minimum(position.astype(np.int64), size - 1)


def _linear_matrices(small: npt.NDArray[np.int64], size: int, device: torch.device) -> Tensor:
    """The matrices (k, size, largest of small) of torch's linear interpolation along a line."""
    step = small.astype(np.float32)[:, None] / np.float32(size)
    position = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.int64), small[:, None] - 1)
    second = np.minimum(first + 1, small[:, None] - 1)
    share = position - first
    places, weights = np.stack([first, second], 2), np.stack([1 - share, share], 2)
    return _scattered(places, weights, int(small.max()), device)


def _scattered(
    places: npt.NDArray[np.int64],
    weights: npt.NDArray[np.floating],
    width: int,
    device: torch.device,
) -> Tensor:
    """Matrices (k, n, width) with weights (k or 1, n or 1, t) at places (k or 1, n, t) of a row.

    Weights of the same place add up.
    """
    count, rows = max(len(places), len(weights)), places.shape[1]
    shape = (count, rows, places.shape[2])
    index = to_device(places, device).expand(shape)
    values = to_device(weights.astype(np.float32), device).expand(shape)
    return torch.zeros(count, rows, width, device=device).scatter_add_(2, index, values)
