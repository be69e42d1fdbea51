"""Whether slices make one volume: a stack of equal slices at equal distances, without tilt."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.io.dicom.planes import Plane
from autoliver.io.grids import geometry_from_xyz, orthonormal
from autoliver.io.volume import Geometry

Array = npt.NDArray[np.float64]

# Largest difference of direction cosines, and of spacings as a share, that counts as rounding.
_ALIKE = 1e-3
# Distance in mm of two slices that lie at one place.
SAME_PLACE_MM = 0.01
# How far a slice may lie from its place in a regular stack: as a share of the distance of slices,
# and, within the plane, of the smaller distance of voxels.
_OFF, _SHIFT = 0.1, 0.5
# Share above which it is said how irregular a stack is.
_NOTED = 0.02
_NO_THICKNESS_MM = 1.0


class NoStack(Exception):
    """Slices that make no volume; the text says why, with numbers, without a full stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """Slices that make a volume.

    Attributes:
        planes: The slices in the order of z.
        geometry: The grid.
        notes: What was noticed, a sentence each.
    """

    planes: tuple[Plane, ...]
    geometry: Geometry
    notes: tuple[str, ...]


def normal_of(plane: Plane) -> Array:
    """Returns the direction (x, y, z) in which the slices of a volume follow each other."""
    return np.cross(plane.axes[:3], plane.axes[3:])


def are_alike(one: Plane, other: Plane) -> bool:
    """Whether two slices have the same size, spacing and directions, but for rounding."""
    return (
        one.size == other.size
        and bool(np.allclose(one.spacing, other.spacing, rtol=_ALIKE, atol=0))
        and bool(np.allclose(one.axes, other.axes, rtol=0, atol=_ALIKE))
    )


def places(planes: Sequence[Plane]) -> Array:
    """Returns how far along their common normal slices lie, in mm."""
    return np.array([plane.position for plane in planes]) @ normal_of(planes[0])


def make_stack(planes: Sequence[Plane]) -> Stack:
    """Makes a volume of alike slices, each at a place of its own.

    Raises:
        NoStack: Slices are missing, irregular, tilted or shifted.
    """
    along = places(planes)
    order = np.argsort(along, kind="stable")
    planes, along = tuple(planes[i] for i in order), along[order]
    first, notes = planes[0], []
    if len(planes) == 1:
        step = first.thickness or _NO_THICKNESS_MM
        said = "its thickness" if first.thickness else "for want of a thickness"
        notes.append(f"One slice alone; {step:g} mm, {said}, taken for the distance of slices.")
    else:
        step = float(along[-1] - along[0]) / (len(planes) - 1)
        off = np.abs(along - (along[0] + step * np.arange(len(planes)))).max()
        if off > _OFF * step:
            raise NoStack(_irregular(planes, along))
        if off > _NOTED * step:
            notes.append(f"Slices lie up to {off:.2g} mm off a regular distance of {step:g} mm.")
        _check_tilt(planes, along)
    row, column = first.axes[:3], first.axes[3:]
    direction, _ = orthonormal(np.stack([row, column, normal_of(first)], axis=1))
    size = (first.size[1], first.size[0], len(planes))
    spacing = (first.spacing[1], first.spacing[0], step)
    geometry = geometry_from_xyz(size, spacing, first.position, direction)
    return Stack(planes=planes, geometry=geometry, notes=tuple(notes))


def _irregular(planes: Sequence[Plane], along: Array) -> str:
    """Says where slices are missing, or how much their distances vary."""
    steps = np.diff(along)
    usual = float(np.median(steps))
    missing = np.rint(steps / usual) - 1
    if missing.any() and np.abs(steps - usual * (missing + 1)).max() <= _OFF * usual:
        at = int(np.argmax(missing))
        one, other = planes[at], planes[at + 1]
        return (
            f"slices are missing: {missing.sum():.0f} in {np.count_nonzero(missing)} "
            f"{'gap' if np.count_nonzero(missing) == 1 else 'gaps'}, the largest of "
            f"{steps[at]:g} mm between {name_of(one)} and {name_of(other)}, where slices lie "
            f"{usual:g} mm apart"
        )
    return (
        f"the distance of slices varies from {steps.min():.4g} to {steps.max():.4g} mm, expected "
        "one distance"
    )


def _check_tilt(planes: Sequence[Plane], along: Array) -> None:
    """Refuses stacks whose slices do not lie straight above each other."""
    positions = np.array([plane.position for plane in planes])
    aside = positions - positions[0] - np.outer(along - along[0], normal_of(planes[0]))
    shift = np.linalg.norm(aside, axis=1)
    limit = _SHIFT * min(planes[0].spacing)
    if shift.max() <= limit:
        return
    # In a tilted stack the shift grows evenly from slice to slice.
    even = aside[-1] * ((along - along[0]) / (along[-1] - along[0]))[:, None]
    if np.linalg.norm(aside - even, axis=1).max() <= limit:
        degrees = math.degrees(math.atan2(shift[-1], along[-1] - along[0]))
        raise NoStack(
            f"the gantry was tilted by {degrees:.1f} degrees: each slice is shifted by "
            f"{shift[-1] / (len(planes) - 1):.3g} mm against the one before it"
        )
    worst = int(shift.argmax())
    raise NoStack(
        f"{name_of(planes[worst])} is shifted within its plane by {shift[worst]:.3g} mm against "
        f"{name_of(planes[0])}"
    )


def name_of(plane: Plane) -> str:
    """Returns how messages name a slice: its file and frame."""
    return plane.file.name if plane.frame is None else f"{plane.file.name} frame {plane.frame}"
