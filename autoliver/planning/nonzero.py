"""The non-zero region of an image, to which it is cropped and normalisation can be restricted."""

from typing import Any

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
# Half-open ranges along the axes (z, y, x) of a grid.
Box = tuple[slice, slice, slice]

# If cropping keeps less than this share of the voxels, statistics use only the non-zero mask.
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
    """Returns the mask of voxels where any channel is non-zero, with holes filled.

    A hole is a zero region that is not connected to the border of the image over voxel faces.

    Args:
        image: The image (c, z, y, x).

    Returns:
        The mask (z, y, x).
    """
    mask: BoolArray = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    # Filling never widens the bounding box, and outside it there are no holes.
    _fill(mask[bounding_box(mask)])
    return mask


def content_box(image: npt.NDArray[np.generic]) -> Box:
    """Returns `nonzero_box` of an image's mask (c, z, y, x), without a mask of the whole image."""
    places = [np.zeros(size, dtype=np.bool_) for size in image.shape[1:]]
    for z, planes in enumerate(np.moveaxis(image, 1, 0)):
        plane = (planes != 0).any(axis=0)
        places[0][z] = plane.any()
        places[1] |= plane.any(axis=1)
        places[2] |= plane.any(axis=0)
    if not places[0].any():
        places = [np.ones_like(place) for place in places]
    z_part, y_part, x_part = (bounding_box(place)[0] for place in places)
    return z_part, y_part, x_part


def nonzero_box(mask: BoolArray) -> Box:
    """Returns the box that cropping keeps: the mask's bounding box, or the whole grid if empty.

    Args:
        mask: The non-zero mask (z, y, x).
    """
    box = bounding_box(mask)
    z, y, x = box if mask[box].size else (slice(0, size) for size in mask.shape)
    return z, y, x


def bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    """Returns the smallest box that contains all true voxels; an empty box for an empty mask.

    Args:
        mask: A mask with any number of axes.

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


def _fill(mask: BoolArray) -> None:
    """Fills the holes of a mask in place, like scipy's binary_fill_holes with face neighbours.

    Background that a straight line along z or y reaches from outside is found first, with
    operations on whole slabs. Only the remaining pockets are flooded voxel by voxel. On scans this
    is four to ten times faster than growing the outside into the image voxel by voxel.
    """
    if min(mask.shape) < 3 or mask.all():
        return
    # The added border counts as seen but not as hidden, so that the flood never walks through it
    # and offsets into the flat array cannot wrap around.
    seen = np.ones([size + 2 for size in mask.shape], dtype=np.bool_)
    np.logical_not(_behind(mask), out=_inner(seen))
    hidden = np.zeros_like(seen)
    np.logical_not(mask, out=_inner(hidden))
    np.greater(_inner(hidden), _inner(seen), out=_inner(hidden))
    _flood(hidden, seen)
    mask |= _inner(hidden)


def _inner(array: BoolArray) -> BoolArray:
    return array[1:-1, 1:-1, 1:-1]


def _behind(mask: BoolArray) -> BoolArray:
    """Returns the foreground, and background that foreground encloses along both z and y."""
    result = np.ones_like(mask)
    for axis in (0, 1):
        planes, found = np.moveaxis(mask, axis, 0), np.moveaxis(result, axis, 0)
        for numbers in (range(len(planes)), range(len(planes) - 1, -1, -1)):
            # Operations on slabs in place are six times faster than logical_or.accumulate.
            passed = np.zeros_like(planes[0])
            for number in numbers:
                passed |= planes[number]
                found[number] &= passed
    return result


def _flood(hidden: BoolArray, seen: BoolArray) -> None:
    """Clears, in place, hidden voxels that are connected to a seen voxel over voxel faces."""
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
            # Cleared immediately, so that no other direction finds the same voxel again.
            flat_hidden[step] = False
            found.append(step)
        front = np.concatenate(found)
