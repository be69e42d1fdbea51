"""Compares voxel grids, and corrects direction matrices that are not quite orthonormal."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.errors import DatasetError
from autoliver.io.volume import Geometry, is_flat

Array = npt.NDArray[Any]

# Largest deviation from an orthonormal matrix that counts as rounding; ITK uses a similar limit.
_ROUNDING = 1e-4
_SINGLE_PRECISION = 1e-5

Quantity = Literal["size", "spacing", "origin", "direction"]


class GridDifference(Record, frozen=True, kw_only=True):
    """One property in which two grids differ.

    Attributes:
        what: The property: size in voxels (z, y, x), spacing in mm (z, y, x), origin in mm (x, y,
            z), or direction.
        first: The property's value in the first grid.
        second: The property's value in the second grid.
        rounding: Whether the two values differ only by rounding.
    """

    what: Quantity
    first: tuple[float, ...]
    second: tuple[float, ...]
    rounding: bool

    def values(self) -> tuple[str, str]:
        """Returns both values as text, with enough digits to tell them apart."""
        for digits in (6, 9):
            texts = tuple(
                f"({', '.join(f'{v:.{digits}g}' for v in side)})"
                for side in (self.first, self.second)
            )
            if texts[0] != texts[1]:
                break
        return texts[0], texts[1]


def compare_grids(first: Geometry, second: Geometry) -> tuple[GridDifference, ...]:
    """Returns the differences of two grids, in the order size, spacing, origin, direction.

    Differences below 1e-5 are within single precision and are not reported. A difference counts as
    rounding if it is at most 1e-3 for spacings (relative), 1e-3 for direction cosines, and a tenth
    of a voxel for origins.

    Returns:
        The differences; empty if the grids are equal.
    """
    spacing = np.array(first.spacing_mm)
    shift = np.subtract(first.origin_xyz, second.origin_xyz)
    turn = np.subtract(first.direction, second.direction)
    compared: tuple[tuple[Quantity, Sequence[float], Sequence[float], Array, float], ...] = (
        ("size", first.shape_zyx, second.shape_zyx, _unequal(first, second), 0.0),
        ("spacing", *_stated(first, second), 1 - second.spacing_mm / spacing, 1e-3),
        ("origin", first.origin_xyz, second.origin_xyz, shift / spacing.min(), 0.1),
        ("direction", first.direction, second.direction, turn, 1e-3),
    )
    differences = []
    for what, a, b, relative, limit in compared:
        worst = float(np.abs(relative).max())
        if worst > _SINGLE_PRECISION:
            differences.append(
                GridDifference(what=what, first=tuple(a), second=tuple(b), rounding=worst <= limit)
            )
    return tuple(differences)


def refuse_other_grid(
    found: Geometry, image: Geometry, *, what: str, of: str = "its image"
) -> None:
    """Refuses a label map that does not lie on the grid of an image; rounding is no difference.

    Args:
        found: The grid of the label map.
        image: The grid that it should have.
        what: The label map, for the message: its path.
        of: What the image is, for the message.

    Raises:
        DatasetError: The grids differ.
    """
    for difference in compare_grids(found, image):
        if not difference.rounding:
            own, expected = difference.values()
            raise DatasetError(
                f"{what}: it has another grid than {of}: its {difference.what} is {own}, that of "
                f"{of} is {expected}.",
                hint="Save the label map on the grid of the image.",
            )


def _stated(first: Geometry, second: Geometry) -> tuple[Sequence[float], Sequence[float]]:
    """The spacings of both grids; if both are of 2D files, those in plane (y, x)."""
    start = int(is_flat(first) and is_flat(second))
    return first.spacing_mm[start:], second.spacing_mm[start:]


def _unequal(first: Geometry, second: Geometry) -> Array:
    return np.not_equal(first.shape_zyx, second.shape_zyx).astype(np.float64)


def orthonormal(direction: Array) -> tuple[Array, str]:
    """Returns the nearest orthonormal matrix, which is the polar factor, and a note.

    A matrix that is orthonormal but for rounding is returned as it is, with an empty note.
    """
    left, _, right = np.linalg.svd(direction)
    nearest = left @ right
    deviation = float(np.abs(nearest - direction).max())
    if deviation <= _ROUNDING:
        return direction, ""
    return nearest, (
        f"direction was not orthonormal (largest deviation {deviation:.1g}): "
        "nearest orthonormal one used"
    )


def geometry_from_xyz(
    size: Sequence[int], spacing_mm: Sequence[float], origin_mm: Sequence[float], direction: Array
) -> Geometry:
    """Converts the values of a file, which are in the order (x, y, z), to a geometry."""
    return Geometry(
        shape_zyx=(int(size[2]), int(size[1]), int(size[0])),
        spacing_mm=(float(spacing_mm[2]), float(spacing_mm[1]), float(spacing_mm[0])),
        origin_xyz=(float(origin_mm[0]), float(origin_mm[1]), float(origin_mm[2])),
        direction=tuple(float(v) for v in direction.ravel()),
    )
