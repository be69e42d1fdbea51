"""Crops images to the region where any channel is non-zero."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.planning.nonzero import foreground_mask, nonzero_box, nonzero_mask

# First and last-plus-one voxel per axis, as stored in artefacts; a `Box` has slices instead.
Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# The label of voxels that show no patient, so that normalisation and losses can leave them out:
# background outside the mask, and the part of a patch beyond the image. The value nnU-Net uses.
OUTSIDE = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Cropped:
    """An image cropped to its non-zero region.

    Attributes:
        image: (c, z, y, x), a view of the input.
        label: (1, z, y, x), signed, `OUTSIDE` for background outside the mask; None for a case
            without a label.
        mask: (z, y, x), True where intensities count for normalisation: inside the non-zero
            region, and wherever the label is neither background nor to be ignored.
        box: First and last-plus-one voxel per input axis that the crop kept.
        kept: Share of the input's voxels that the crop kept, above 0 to 1.
        spare: Whether the image may be overwritten.
    """

    image: npt.NDArray[np.generic]
    label: npt.NDArray[np.signedinteger] | None
    mask: npt.NDArray[np.bool_]
    box: Bounds
    kept: float
    spare: bool = False


def crop_to_nonzero(
    image: npt.NDArray[np.generic],
    label: npt.NDArray[np.generic] | None = None,
    *,
    ignore: int | None = None,
    dtype: npt.DTypeLike = np.int16,
) -> Cropped:
    """Crops to the bounding box of the voxels that are non-zero in any channel.

    Args:
        image: (c, z, y, x).
        label: (1, z, y, x) on the same grid; None for a case without a label.
        ignore: The label of voxels that must not count; None where there is none.
        dtype: The signed type of the cropped label, which holds all its values.

    Returns:
        The cropped arrays, the mask and the box. An image of zeros is not cropped.
    """
    mask = nonzero_mask(image)
    where = nonzero_box(mask)
    mask = mask[where]
    cropped = None
    if label is not None:
        cropped = label[:, *where].astype(dtype)
        for plane, inside in zip(cropped[0], mask, strict=True):
            plane[(plane == 0) & ~inside] = OUTSIDE
            # Voxels to be ignored count by their intensities alone, as when there is no label.
            inside |= foreground_mask(plane, ignore)
    z, y, x = ((int(part.start), int(part.stop)) for part in where)
    kept = mask.size / image[0].size
    return Cropped(image=image[:, *where], label=cropped, mask=mask, box=(z, y, x), kept=kept)
