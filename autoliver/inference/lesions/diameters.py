"""Longest diameter of a lesion in the axial plane, and the longest one perpendicular to it.

A lesion is the union of its voxels, each a box, so that a single voxel has a size. Its outline in a
slice is measured at the outer corners of the pixels. Where a slice cuts the lesion into several
pieces, each is measured by itself, as a reader does.

The longest diameter is the largest distance of two points of a piece (RECIST 1.1). The
perpendicular one is the longest chord at a right angle to it within the convex hull of the same
piece. Pieces with equally long diameters count with the longer perpendicular one, and then the
first slice does.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.io.orientation import axis_codes
from autoliver.io.volume import Geometry

Points = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# Relative difference below which two lengths are equal.
_EQUAL = 1e-9


class Diameters(NamedTuple):
    """The diameters of a lesion.

    Attributes:
        longest_mm: The longest diameter.
        perpendicular_mm: The longest one at a right angle to it in the same slice.
        slice: Index of that slice.
    """

    longest_mm: float
    perpendicular_mm: float
    slice: int


def axial_axis(geometry: Geometry) -> int:
    """Returns the axis of an array (z, y, x) along which axial slices follow one another.

    It is the one nearest to the patient's superior-inferior axis; the first one for 2D files, whose
    place in the patient is unknown.
    """
    codes = axis_codes(geometry)
    return next((2 - index for index, letter in enumerate(codes) if letter in "SI"), 0)


def diameters(mask: Mask, spacing_mm: tuple[float, float, float], *, axis: int = 0) -> Diameters:
    """Measures a lesion.

    Args:
        mask: (z, y, x), with at least one voxel.
        spacing_mm: Voxel spacing along the three axes, in mm.
        axis: The axis along which axial slices follow one another, from `axial_axis`.
    """
    across = np.array([spacing for a, spacing in enumerate(spacing_mm) if a != axis])
    best = Diameters(0.0, 0.0, 0)
    if mask.all():  # a box, as most specks are: all slices are the same rectangle
        sides = np.delete(mask.shape, axis) * across
        longest = float(np.hypot(*sides))
        return Diameters(longest, longest * float(sides.min() / sides.max()), 0)
    for index, pixels in _pieces(np.moveaxis(mask, axis, 0)):
        if _diagonal(pixels, across) < best.longest_mm * (1 - _EQUAL):
            continue
        found = Diameters(*outline_diameters(_corners(pixels) * across), index)
        if _exceeds(found, best):
            best = found
    return best


def outline_diameters(points: Points) -> tuple[float, float]:
    """Measures the convex hull of points in a plane.

    Args:
        points: (n, 2) in mm, not all on one line.

    Returns:
        The largest distance of two points, and the longest chord of the hull perpendicular to it.
    """
    from scipy.spatial import ConvexHull

    hull = points[ConvexHull(points).vertices]
    lengths = np.linalg.norm(hull[:, None] - hull[None], axis=2)
    longest = float(lengths.max())
    pairs = np.argwhere(np.triu(lengths >= longest * (1 - _EQUAL)))
    return longest, max(_chord(hull, hull[b] - hull[a]) for a, b in pairs)


def _chord(hull: Points, along: Points) -> float:
    """The longest chord of a convex polygon (n, 2) perpendicular to its longest diameter.

    The length of the chord is concave and piecewise linear along the diameter, and bends only at
    corners, so that it is largest at one of them.
    """
    along = along / np.hypot(*along)
    place, height = hull @ along, hull @ np.array([-along[1], along[0]])
    first, last = int(place.argmin()), int(place.argmax())
    one, other = _way(len(hull), first, last), _way(len(hull), last, first)[::-1]
    sides = [np.interp(place, place[way], height[way]) for way in (one, other)]
    return float(np.abs(sides[0] - sides[1]).max())


def _way(corners: int, start: int, stop: int) -> list[int]:
    """The corners of a polygon from one to another."""
    return [(start + step) % corners for step in range((stop - start) % corners + 1)]


def _pieces(mask: Mask) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Yields the pieces of each slice, connected through edges and corners, the widest first.

    Each one comes with the index of its slice, as its pixels (n, 2).
    """
    from scipy.ndimage import find_objects, label

    within = np.zeros((3, 3, 3), dtype=bool)
    within[1] = True
    numbers, _ = label(mask, within)
    boxes = list(enumerate(find_objects(numbers), start=1))
    boxes.sort(key=lambda item: -max(part.stop - part.start for part in item[1][1:]))
    for number, box in boxes:
        z, y, x = box
        pixels = np.argwhere(numbers[z.start, y, x] == number)
        yield z.start, pixels + np.array([y.start, x.start])


def _corners(pixels: npt.NDArray[np.intp]) -> Points:
    """The corners (n, 2) of the first and last pixel of each row; no others are on the hull."""
    rows, starts = np.unique(pixels[:, 0], return_index=True)  # pixels are sorted by row
    ends = np.append(starts[1:], len(pixels)) - 1
    left, right = pixels[starts, 1] - 0.5, pixels[ends, 1] + 0.5
    return np.concatenate(
        [np.stack([rows + half, side], axis=1) for half in (-0.5, 0.5) for side in (left, right)]
    )


def _diagonal(pixels: npt.NDArray[np.intp], spacing_mm: Points) -> float:
    """That of the bounding box, which no diameter exceeds."""
    return float(np.linalg.norm((np.ptp(pixels, axis=0) + 1) * spacing_mm))


def _exceeds(one: Diameters, other: Diameters) -> bool:
    """Whether a piece counts rather than another."""
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        if abs(mine - theirs) > _EQUAL * max(mine, theirs):
            return mine > theirs
    return one.slice < other.slice
