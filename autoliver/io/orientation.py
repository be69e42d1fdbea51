"""The anatomical order of a grid's axes, and the flips and permutations from one to another."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.io.volume import Geometry, is_flat

A = TypeVar("A", bound=np.generic)
T = TypeVar("T")

# The order of axial scans as scanners and most tools store them.
USUAL = "LPS"
# Per axis of ITK's space (LPS): the letter of the direction that grows, and of its opposite.
_LETTERS = (("L", "R"), ("P", "A"), ("S", "I"))
_AXIS = {letter: axis for axis, pair in enumerate(_LETTERS) for letter in pair}


class Reorientation(Record, frozen=True, kw_only=True):
    """A permutation of a grid's axes (z, y, x) followed by flips; nothing is interpolated.

    Attributes:
        axes: Per new axis, which old one it is.
        flips: Per new axis, whether it runs against the old one.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def inverse(self) -> "Reorientation":
        """The way back."""
        z, y, x = (self.axes.index(axis) for axis in range(3))
        return Reorientation(axes=(z, y, x), flips=(self.flips[z], self.flips[y], self.flips[x]))

    def then(self, other: "Reorientation") -> "Reorientation":
        """This one and another after it, as one."""
        z, y, x = (
            (self.axes[axis], self.flips[axis] != flip)
            for axis, flip in zip(other.axes, other.flips, strict=True)
        )
        return Reorientation(axes=(z[0], y[0], x[0]), flips=(z[1], y[1], x[1]))

    def array(self, array: npt.NDArray[A]) -> npt.NDArray[A]:
        """A view of an array whose last three axes are (z, y, x)."""
        lead = array.ndim - 3
        turned = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return turned[..., z, y, x]

    def values(self, zyx: tuple[T, T, T]) -> tuple[T, T, T]:
        """One value per axis, such as a spacing, in the new order."""
        z, y, x = (zyx[axis] for axis in self.axes)
        return z, y, x

    def bounds(
        self,
        bounds: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
        shape_zyx: tuple[int, int, int],
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """First and last-plus-one voxel per axis on the new grid, given those on the old one."""
        z, y, x = (
            (size - stop, size - start) if flip else (start, stop)
            for (start, stop), size, flip in zip(
                self.values(bounds), self.values(shape_zyx), self.flips, strict=True
            )
        )
        return z, y, x

    def geometry(self, geometry: Geometry) -> Geometry:
        """The same voxels in the same places, in the new order."""
        if self == Reorientation():
            return geometry
        matrix = np.array(geometry.direction).reshape(3, 3)
        spacing = self.values(geometry.spacing_mm)
        shape = self.values(geometry.shape_zyx)
        # Columns are in the order x, y, z.
        columns = {2 - axis: matrix[:, 2 - old] for axis, old in enumerate(self.axes)}
        origin = np.array(geometry.origin_xyz)
        for axis, flip in enumerate(self.flips):
            if flip:
                origin = origin + columns[2 - axis] * spacing[axis] * (shape[axis] - 1)
                columns[2 - axis] = -columns[2 - axis]
        direction = np.stack([columns[column] for column in range(3)], axis=1)
        return Geometry(
            shape_zyx=shape,
            spacing_mm=spacing,
            origin_xyz=(float(origin[0]), float(origin[1]), float(origin[2])),
            direction=tuple(float(value) for value in direction.ravel()),
        )


def axis_codes(geometry: Geometry) -> str:
    """The directions in the patient in which a grid's x, y and z indices grow, e.g. "LPS".

    Oblique axes count as the anatomical one that they are closest to.

    Returns:
        Three letters of L, R, P, A, S, I; "" for an image of a 2D file, which has no place in the
        patient.
    """
    if is_flat(geometry):
        return ""
    matrix = np.array(geometry.direction).reshape(3, 3)
    cosines = np.abs(matrix)
    letters = [""] * 3
    for _ in range(3):
        row, column = np.unravel_index(int(cosines.argmax()), (3, 3))
        letters[int(column)] = _LETTERS[int(row)][0 if matrix[row, column] >= 0 else 1]
        cosines[row, :] = cosines[:, column] = -1.0
    return "".join(letters)


def reorientation(source: str, target: str) -> Reorientation:
    """What brings a grid of one order of axes to another; nothing where one of them is unknown.

    Args:
        source: Axis codes as `axis_codes` gives them, "" for unknown.
        target: As well.
    """
    if not (source and target):
        return Reorientation()
    place = {_AXIS[letter]: index for index, letter in enumerate(source)}
    # From the order x, y, z of the codes to the order z, y, x of arrays.
    steps = [(place[_AXIS[letter]], letter) for letter in reversed(target)]
    z, y, x = ((2 - index, source[index] != letter) for index, letter in steps)
    return Reorientation(axes=(z[0], y[0], x[0]), flips=(z[1], y[1], x[1]))


def reorientation_to(geometry: Geometry, target: str) -> Reorientation:
    """What brings a grid to an order of axes; nothing where that is ""."""
    return reorientation(axis_codes(geometry), target) if target else Reorientation()


def commonest(codes: Iterable[str]) -> str:
    """The order of axes that most cases have; of several as common the usual one, "" for none."""
    known = [code for code in codes if code]
    return min(set(known), key=lambda code: (-known.count(code), code != USUAL, code), default="")
