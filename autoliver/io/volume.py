"""Images in memory: an array (c, z, y, x) and its grid; only io converts from other axis orders."""

from collections.abc import Sequence
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
    """The position of a voxel grid in the patient.

    Attributes:
        shape_zyx: Number of voxels per axis (z, y, x).
        spacing_mm: Distance of voxel centres per axis (z, y, x), in mm.
        origin_xyz: Centre of the first voxel (x, y, z), in mm; LPS, as in ITK.
        direction: The 3x3 direction cosines, row by row, in ITK's order (x, y, z).
        forms: The header of a NIfTI file, where it says more than these values, so that what is
            written for the file says the same; otherwise None.
    """

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    forms: NiftiForms | None = None


def is_flat(geometry: Geometry) -> bool:
    """Whether a grid is that of a 2D file, which has no slice axis."""
    return geometry.shape_zyx[0] == 1 and has_no_thickness(geometry.spacing_mm)


def has_no_thickness(spacing_mm: Sequence[float]) -> bool:
    """Whether a spacing (z, y, x) is that of a 2D file: its z is `FLAT_SPACING` times the others.

    No file says this z, so it should not be shown.
    """
    return spacing_mm[0] >= 0.999 * FLAT_SPACING * max(spacing_mm[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """An image or a label map and its grid.

    Attributes:
        array: The voxels (c, z, y, x), float32 for images.
        geometry: The grid of one channel; its shape equals the array's last three axes.
        oriented: Whether the grid's position in the patient is known.
        notes: Doubtful values in the headers of its files, one sentence each.
        spare: Whether nobody needs the voxels any more once it is preprocessed, so that the result
            may take their memory.
    """

    array: npt.NDArray[np.generic]
    geometry: Geometry
    oriented: bool = True
    notes: tuple[str, ...] = ()
    spare: bool = False

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.geometry.shape_zyx:
            raise ValueError(
                f"expected (c, z, y, x) on {self.geometry.shape_zyx}, got {self.array.shape}"
            )
