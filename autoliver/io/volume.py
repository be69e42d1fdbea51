"""A volume in memory: channels on one grid. Array order is (c, z, y, x), converted once, in io."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record

# Slice spacing given to 2D images, in units of their in-plane spacing: that of nnU-Net, and our
# mark that the file was 2D.
FLAT_SPACING = 999.0


class NiftiForms(Record, frozen=True, kw_only=True):
    """How a NIfTI file says where it lies, number by number as in its header.

    Attributes:
        qform_code: What the qform refers to; 0: it is not to be used.
        sform_code: What the sform refers to; 0: it is not to be used.
        pixdim: The eight of the header.
        quaternion: b, c, d and the offsets x, y, z of the qform.
        sform: Three rows of four.
        units: Code of the units of space and time.
    """

    qform_code: int
    sform_code: int
    pixdim: tuple[float, ...]
    quaternion: tuple[float, ...]
    sform: tuple[float, ...]
    units: int


class Geometry(Record, frozen=True, kw_only=True):
    """Where a voxel grid lies in the patient.

    Attributes:
        shape_zyx: Voxels per axis.
        spacing_mm: Distance of voxel centres per axis, (z, y, x).
        origin_xyz: Centre of the first voxel in mm (LPS, as ITK).
        direction: The 3x3 direction cosines, row by row (ITK's order: x, y, z).
        forms: The header of a NIfTI file that says more than these do, so that what is written for
            it says the same; None where there is nothing more to say.
    """

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    forms: NiftiForms | None = None


def is_flat(geometry: Geometry) -> bool:
    """Whether a grid is that of a 2D file, which has no slice axis."""
    in_plane = max(geometry.spacing_mm[1:])
    one_slice = geometry.shape_zyx[0] == 1
    return one_slice and geometry.spacing_mm[0] >= 0.999 * FLAT_SPACING * in_plane


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """An image and its grid.

    Attributes:
        array: (c, z, y, x), float32 for images.
        geometry: The grid; its shape equals the array's last three axes.
        oriented: Whether it is known how the grid lies in the patient.
        notes: What its files say that deserves a look, one sentence each with the file's name.
    """

    array: npt.NDArray[np.generic]
    geometry: Geometry
    oriented: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.geometry.shape_zyx:
            raise ValueError(
                f"expected (c, z, y, x) on {self.geometry.shape_zyx}, got {self.array.shape}"
            )
