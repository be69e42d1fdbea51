"""Applies cleaning rules, which remove likely errors (distant pieces, specks) from a label map."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autoliver.models.selection import CleaningRule
from autoliver.planning.nonzero import bounding_box

L = TypeVar("L", bound=np.integer)

# For up to this many values, comparing with each one is faster than np.isin (15 times for a single
# value) and needs an eighth of the memory.
_FEW = 8


def clean(
    segmentation: npt.NDArray[L],
    rules: Sequence[CleaningRule],
    *,
    values: Mapping[str, tuple[int, ...]],
    spacing_mm: Sequence[float],
) -> npt.NDArray[L]:
    """Applies cleaning rules to a label map, one after the other.

    Removed voxels become background. Components are connected through faces, edges and corners, as
    in nnU-Net v2, unless a rule says otherwise.

    Args:
        segmentation: Label map (z, y, x); it is not changed.
        rules: The rules, in the order in which they are applied.
        values: Maps each label name to its values in the label map.
        spacing_mm: Voxel spacing along the three axes, in mm.

    Returns:
        The cleaned label map (z, y, x); the input array itself if nothing is removed.
    """
    for rule in rules:
        union = mask_of(segmentation, [value for name in rule.labels for value in values[name]])
        found = components(union, by_faces=rule.by_faces)
        keep = kept(rule, found.voxels, voxel_ml=math.prod(spacing_mm) / 1000.0)
        if not keep[1:].all():
            segmentation = segmentation.copy()
            segmentation[found.box][~keep[found.numbers] & union[found.box]] = 0
    return segmentation


@dataclass(frozen=True)
class Components:
    """The connected components of a mask.

    Attributes:
        box: The bounding box of the mask.
        numbers: (z, y, x), cropped to the box: the number of each voxel's component; 0 outside the
            mask.
        voxels: Number of voxels of each component, indexed by component number; entry 0 is 0.
    """

    box: tuple[slice, ...]
    numbers: npt.NDArray[np.integer]
    voxels: npt.NDArray[np.integer]


def components(mask: npt.NDArray[np.bool_], *, by_faces: bool = False) -> Components:
    """Finds the components of a mask (z, y, x), connected through faces, edges and corners.

    Args:
        mask: The mask.
        by_faces: Whether edges and corners do not connect.
    """
    # Imported here because it loads parts of scikit-image, which are only needed if there are
    # rules.
    from acvl_utils.morphology.morphology_helper import label_with_component_sizes

    box = bounding_box(mask)
    numbers, voxels = label_with_component_sizes(mask[box], 1 if by_faces else None)
    return Components(box, numbers, np.array([0, *voxels.values()], np.intp))


def kept(
    rule: CleaningRule, voxels: npt.NDArray[np.integer], *, voxel_ml: float
) -> npt.NDArray[np.bool_]:
    """Decides which components a rule keeps.

    Args:
        rule: The rule; its labels are not used here.
        voxels: Number of voxels of each component, as in `Components`.
        voxel_ml: Volume of one voxel, in ml.

    Returns:
        Whether each component is kept, indexed by component number; False for number 0.
    """
    keep: npt.NDArray[np.bool_] = voxels >= rule.least_ml / voxel_ml
    if rule.keep == "largest":
        keep = np.arange(len(voxels)) == voxels.argmax()
    keep[0] = False
    return keep


def mask_of(segmentation: npt.NDArray[np.integer], values: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Returns the mask of the voxels whose label is one of the values."""
    if len(values) > _FEW:
        return np.isin(segmentation, values)
    mask: npt.NDArray[np.bool_] = segmentation == values[0]
    for value in values[1:]:
        mask |= segmentation == value
    return mask
