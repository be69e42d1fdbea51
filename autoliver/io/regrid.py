"""Label maps from one voxel grid onto another, by the places that their headers say."""

import numpy as np
import numpy.typing as npt

from autoliver.io.volume import Geometry

Matrix = npt.NDArray[np.float64]


def nearest_on(
    array: npt.NDArray[np.integer], grid: Geometry, onto: Geometry
) -> npt.NDArray[np.integer]:
    """Returns a label map on another grid, each voxel with the value of the nearest one.

    Args:
        array: Labels (z, y, x) on `grid`.
        grid: The present grid.
        onto: The new grid.

    Returns:
        Labels (z, y, x) on the new grid; 0 beyond the present one.
    """
    from scipy.ndimage import affine_transform

    (there, there_origin), (here, here_origin) = _index_to_mm(onto), _index_to_mm(grid)
    back = np.linalg.inv(here)
    result: npt.NDArray[np.integer] = affine_transform(
        array,
        back @ there,
        offset=back @ (there_origin - here_origin),
        output_shape=onto.shape_zyx,
        order=0,
        mode="constant",
        cval=0,
        prefilter=False,
    )
    return result


def _index_to_mm(grid: Geometry) -> tuple[Matrix, Matrix]:
    """Matrix and offset from indices (z, y, x) to places (x, y, z) in mm."""
    direction = np.array(grid.direction).reshape(3, 3)
    columns = direction * np.array(grid.spacing_mm)[::-1]
    return columns[:, ::-1], np.array(grid.origin_xyz)
