"""The box around an organ: found in a label map, grown by a margin, and carried to other grids.

Ends of boxes that are floats are edges of voxels: voxel i reaches from i to i + 1.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoliver.datasets.lesions import connected_lesions
from autoliver.planning.nonzero import Box
from autoliver.preprocessing.case import CaseProperties
from autoliver.preprocessing.crop import Bounds

Ends = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


def organ_box(mask: npt.NDArray[np.bool_]) -> Bounds | None:
    """Returns the box of the largest connected component of a mask; None if the mask is empty.

    Voxels are connected through faces, edges and corners. Of several components of this size the
    first one counts.

    Args:
        mask: (z, y, x).

    Returns:
        First and last-plus-one voxel per axis.
    """
    from scipy import ndimage

    places = ndimage.find_objects(mask.view(np.uint8))
    if not places:
        return None
    outer = places[0]
    components, count = connected_lesions(mask[outer])
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    inner = ndimage.find_objects(components)[int(sizes.argmax())]
    z, y, x = (
        (whole.start + part.start, whole.start + part.stop)
        for whole, part in zip(outer, inner, strict=True)
    )
    return z, y, x


def grown_ends(box: Bounds, margin_mm: float, properties: CaseProperties) -> Ends:
    """Grows a box on a case's input grid by a margin, and carries it to the network's grid.

    Args:
        box: First and last-plus-one voxel per axis of the input.
        margin_mm: The margin on each side.
        properties: The case's properties.

    Returns:
        The ends on the network's grid, within it; at least one voxel long.
    """
    grid, turn = properties.geometry, properties.reorientation
    wide = [
        (low - margin_mm / mm, high + margin_mm / mm)
        for (low, high), mm in zip(box, grid.spacing_mm, strict=True)
    ]
    turned = [
        (grid.shape_zyx[axis] - wide[axis][1], grid.shape_zyx[axis] - wide[axis][0])
        if flip
        else wide[axis]
        for axis, flip in zip(turn.axes, turn.flips, strict=True)
    ]
    ends = []
    for axis, (start, stop), size in zip(
        properties.transpose_forward, properties.box, properties.shape_zyx, strict=True
    ):
        scale = size / (stop - start)
        low, high = ((end - start) * scale for end in turned[axis])
        low = min(max(low, 0.0), size - 1.0)
        ends.append((low, max(low + 1.0, min(high, float(size)))))
    z, y, x = ends
    return z, y, x


def inner_box(ends: Ends, shape_zyx: Sequence[int]) -> Box:
    """Returns the voxels whose centres lie within ends; at least one per axis."""
    found = []
    for (low, high), size in zip(ends, shape_zyx, strict=True):
        start = min(max(int(np.ceil(low - 0.5)), 0), size - 1)
        stop = min(int(np.floor(high - 0.5)) + 1, size)
        found.append(slice(start, max(start + 1, stop)))
    z, y, x = found
    return z, y, x


def outer_bounds(ends: Ends) -> Bounds:
    """Returns the first and last-plus-one of all voxels that ends touch."""
    z, y, x = ((int(np.floor(low)), int(np.ceil(high))) for low, high in ends)
    return z, y, x
