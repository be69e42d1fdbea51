"""Images in memory: an array (c, z, y, x) and its grid; only io converts from other axis orders."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record


class Geometry(Record, frozen=True, kw_only=True):
    """The position of a voxel grid in the patient.

    Attributes:
        shape_zyx: Number of voxels per axis (z, y, x).
        spacing_mm: Distance of voxel centres per axis (z, y, x), in mm.
        origin_xyz: Centre of the first voxel (x, y, z), in mm; LPS, as in ITK.
        direction: The 3x3 direction cosines, row by row, in ITK's order (x, y, z).
    """

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_xyz: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Volume:
    """An image or a label map and its grid.

    Attributes:
        array: The voxels (c, z, y, x), float32 for images.
        geometry: The grid of one channel; its shape equals the array's last three axes.
    """

    array: npt.NDArray[np.generic]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.geometry.shape_zyx:
            raise ValueError(
                f"expected (c, z, y, x) on {self.geometry.shape_zyx}, got {self.array.shape}"
            )
