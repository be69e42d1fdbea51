"""Rules that remove what is most likely wrong from a label map: distant pieces, specks."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record

L = TypeVar("L", bound=np.integer)


class CleaningRule(Record, frozen=True, kw_only=True):
    """One rule, for the union of some labels.

    Attributes:
        labels: Names of the labels whose union is cleaned.
        keep: "largest": the largest connected component; "least": every component of at least
            `least_ml`.
        least_ml: In millilitres.
    """

    labels: tuple[str, ...]
    keep: Literal["largest", "least"]
    least_ml: float = 0.0

    def __str__(self) -> str:
        """In words."""
        what = " + ".join(self.labels)
        if self.keep == "largest":
            return f"{what}: only the largest component"
        return f"{what}: components below {self.least_ml:g} ml removed"


def clean(
    segmentation: npt.NDArray[L],
    rules: Sequence[CleaningRule],
    *,
    values: Mapping[str, tuple[int, ...]],
    spacing_mm: Sequence[float],
) -> npt.NDArray[L]:
    """A label map with rules applied one after the other; what is removed becomes background.

    Components are connected through faces, edges and corners, as in nnU-Net.

    Args:
        segmentation: (z, y, x); not changed.
        rules: What to do.
        values: Label name -> values.
        spacing_mm: Three spacings.

    Returns:
        (z, y, x), the input itself where nothing is removed.
    """
    for rule in rules:
        union = np.isin(segmentation, [value for name in rule.labels for value in values[name]])
        gone = union & ~_kept(union, rule, voxel_ml=math.prod(spacing_mm) / 1000.0)
        if gone.any():
            segmentation = np.where(gone, np.zeros((), segmentation.dtype), segmentation)
    return segmentation


def _kept(
    mask: npt.NDArray[np.bool_], rule: CleaningRule, *, voxel_ml: float
) -> npt.NDArray[np.bool_]:
    from skimage.measure import label as connected_components

    components, count = connected_components(mask, return_num=True)
    sizes = np.bincount(components.reshape(-1), minlength=count + 1)
    sizes[0] = 0
    if rule.keep == "largest":
        keep = np.arange(count + 1) == sizes.argmax()
    else:
        keep = sizes * voxel_ml >= rule.least_ml
    keep[0] = False
    kept: npt.NDArray[np.bool_] = keep[components]
    return kept
