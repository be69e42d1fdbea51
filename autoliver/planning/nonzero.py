"""The non-zero region of an image: what cropping keeps and what normalisation may look at."""

from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
# Half-open ranges along the axes (z, y, x) of a grid.
Box = tuple[slice, slice, slice]

# Statistics look only inside the non-zero mask when cropping to it keeps less than this share.
MASK_BELOW = 0.75


def foreground_mask(label: npt.NDArray[Any], ignore: int | None) -> BoolArray:
    """Voxels that a label map marks as something: neither background nor to be ignored.

    Args:
        label: Of any shape; negative values are background.
        ignore: The value of voxels that must not count; None where there is none.
    """
    mask: BoolArray = label > 0
    if ignore is not None:
        mask &= label != ignore
    return mask


def nonzero_mask(image: npt.NDArray[np.generic]) -> BoolArray:
    """Where any channel is non-zero, enclosed holes filled.

    A hole is a zero region that no path over voxel faces connects with the border of the image.

    Args:
        image: (c, z, y, x).

    Returns:
        (z, y, x).
    """
    mask: BoolArray = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    # Filling never widens the bounding box, and outside it there are no holes.
    box = bounding_box(mask)
    mask[box] = _filled(mask[box])
    return mask


def nonzero_box(mask: BoolArray) -> Box:
    """What cropping to a non-zero mask keeps: its bounding box; the whole grid of an empty one.

    Args:
        mask: (z, y, x).
    """
    box = bounding_box(mask)
    z, y, x = box if mask[box].size else (slice(0, size) for size in mask.shape)
    return z, y, x


def bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    """The smallest box that holds every true voxel; an empty one for an empty mask.

    Args:
        mask: Any number of axes.

    Returns:
        One half-open slice per axis.
    """
    before = bounding_box(_any(mask, -1)) if mask.ndim > 1 else ()
    line = mask[before]
    while line.ndim > 1:
        line = _any(line, 0)
    found = np.flatnonzero(line)
    return (*before, slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0))


def _any(mask: BoolArray, axis: int) -> BoolArray:
    found: BoolArray = np.logical_or.reduce(mask, axis=axis)
    return found


def _filled(mask: BoolArray) -> BoolArray:
    """The mask with its holes filled, as scipy's binary_fill_holes with face neighbours.

    The background that a straight line along z or y from outside reaches is found first, with
    whole-slab operations; only the pockets behind it are flooded voxel by voxel. On scans this is
    four to ten times as fast as growing the outside into the image voxel by voxel.
    """
    if min(mask.shape) < 3 or mask.all():
        return mask
    # Beyond the rim is outside: seen, and no way to walk through, so flat offsets cannot wrap.
    seen = np.pad(~_behind(mask), 1, constant_values=True)
    hidden = np.pad(~mask, 1, constant_values=False)
    hidden &= ~seen
    _flood(hidden, seen)
    filled: BoolArray = mask | hidden[1:-1, 1:-1, 1:-1]
    return filled


def _behind(mask: BoolArray) -> BoolArray:
    """Foreground, and background enclosed by foreground along z as well as along y."""
    result = np.ones_like(mask)
    for axis in (0, 1):
        before, after = mask.copy(), mask.copy()
        # Slabs in place: six times as fast as logical_or.accumulate.
        ahead, back = np.moveaxis(before, axis, 0), np.moveaxis(after, axis, 0)
        for k in range(1, mask.shape[axis]):
            ahead[k] |= ahead[k - 1]
            back[-k - 1] |= back[-k]
        result &= before
        result &= after
    return result


def _flood(hidden: BoolArray, seen: BoolArray) -> None:
    """Clears, in place, the hidden voxels that a path over faces connects with a seen one."""
    _, rows, columns = hidden.shape
    offsets = [sign * step for step in (rows * columns, columns, 1) for sign in (1, -1)]
    flat_hidden, flat_seen = hidden.reshape(-1), seen.reshape(-1)
    candidates = np.flatnonzero(flat_hidden)
    reached = np.zeros(candidates.shape, dtype=np.bool_)
    for offset in offsets:
        reached |= flat_seen[candidates + offset]
    front = candidates[reached]
    flat_hidden[front] = False
    while front.size:
        found = []
        for offset in offsets:
            step = front + offset
            step = step[flat_hidden[step]]
            # Cleared at once, so that no other direction finds the same voxel again.
            flat_hidden[step] = False
            found.append(step)
        front = np.concatenate(found)
