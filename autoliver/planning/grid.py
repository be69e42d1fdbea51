"""Decides the target spacing, the axis order and the median size at full resolution."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.planning import reasons
from autoliver.planning.plan import CaseFingerprint

# An axis that is this many times coarser and shorter than the others gets a finer target spacing.
_ANISOTROPY = 3

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FullResolution:
    """The grid at full resolution. Spacing and shape are in the plan's axis order.

    Attributes:
        transpose: Order of the image axes (z, y, x) in the plan, the coarsest first.
        spacing_mm: Target spacing, 3 values.
        median_shape: Median size of the cases at this spacing in voxels, 3 values.
        spacing_reason: The reason for the spacing, for the plan.
        transpose_reason: The reason for the axis order, for the plan.
    """

    transpose: tuple[int, int, int]
    spacing_mm: FloatArray
    median_shape: FloatArray
    spacing_reason: str
    transpose_reason: str

    @property
    def flat(self) -> bool:
        """Whether the images have a single slice."""
        return bool(self.median_shape[0] == 1)

    @property
    def axes(self) -> str:
        """The names of the image axes in the plan's order, e.g. "zyx"."""
        return "".join("zyx"[axis] for axis in self.transpose)


def full_resolution(
    cases: Sequence[CaseFingerprint], *, spacing_mm: tuple[float, float, float] | None
) -> FullResolution:
    """Decides the grid that cases are resampled to.

    Args:
        cases: The fingerprints of at least one case.
        spacing_mm: The spacing (z, y, x) that the user asked for; None to derive it from the cases.
    """
    spacings = np.array([case.spacing_mm for case in cases], dtype=np.float64)
    shapes = np.array([case.shape_after_crop for case in cases], dtype=np.float64)
    if spacing_mm is None:
        target, spacing_reason = _target_spacing(spacings, np.percentile(shapes, 50, axis=0))
    else:
        target = np.array(spacing_mm, dtype=np.float64)
        spacing_reason = f"{reasons.millimetres(target)}, as asked for."
    first = int(np.argmax(target))
    next_mm = float(np.delete(target, first).max())
    transpose_reason = reasons.transpose("zyx"[first], float(target[first]), next_mm=next_mm)
    # The slice spacing of a single slice has no meaning, whatever the file says.
    single = [int(axis) for axis in np.flatnonzero(np.median(shapes, axis=0) == 1)][:1]
    if single:
        first = single[0]
        target[first] = np.median(spacings[:, first])
        transpose_reason = reasons.transpose_of_slice("zyx"[first])
    median_shape = np.median(np.rint(spacings / target * shapes), axis=0)
    median_shape[single] = 1
    second, third = (axis for axis in range(3) if axis != first)
    order = (first, second, third)
    return FullResolution(
        transpose=order,
        spacing_mm=target[list(order)],
        # The spacing that the user asked for may be larger than the whole extent of a case.
        median_shape=np.maximum(median_shape[list(order)], 1),
        spacing_reason=spacing_reason,
        transpose_reason=transpose_reason,
    )


def _target_spacing(spacings: FloatArray, median_shape: FloatArray) -> tuple[FloatArray, str]:
    """Returns the median spacing and its reason; an axis much coarser and shorter is made finer."""
    target: FloatArray = np.percentile(spacings, 50, axis=0)
    coarse = int(np.argmax(target))
    others = np.delete(target, coarse).max()
    is_coarse = target[coarse] > _ANISOTROPY * others
    is_short = median_shape[coarse] * _ANISOTROPY < np.delete(median_shape, coarse).min()
    if not (is_coarse and is_short):
        return target, reasons.spacing_of_median(target, len(spacings))
    median_mm = float(target[coarse])
    target[coarse] = np.percentile(spacings[:, coarse], 10)
    if target[coarse] < others:
        target[coarse] = others + 1e-5
    why = reasons.spacing_of_anisotropic(target, axis="zyx"[coarse], median_mm=median_mm)
    return target, why
