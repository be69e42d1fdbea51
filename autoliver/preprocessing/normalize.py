"""Normalises intensities channel by channel, with nnU-Net's schemes and by the case's modality."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Modality
from autoliver.errors import DatasetError
from autoliver.planning.nonzero import MASK_BELOW
from autoliver.planning.plan import Configuration, IntensityStats, Normalization, Plan
from autoliver.preprocessing.crop import Cropped

# Deviations below this part of the largest value are what float32 rounds; dividing by them would
# show nothing but rounding.
_ROUNDING = 2.0**-26
# Sums of squares of values within these powers of two are exact enough in float32. Others are
# brought to about 1 first: a power of two changes no digit.
_ORDINARY = range(-20, 41)

_FAT_HU = -90.0
# The part of CT that MR networks see: soft tissue and fat, which MR shows as well. Of air and bone
# they see only that these are dark and bright.
SOFT_TISSUE_HU = (-150.0, 250.0)


def normalize_case(
    cropped: Cropped,
    *,
    plan: Plan,
    configuration: Configuration,
    modality: Modality,
    where: str = "image",
) -> npt.NDArray[np.float32]:
    """Normalises a case as planned, or as its modality requires if the plan is for another one.

    MR intensities have no unit, so a CT plan's window and scale do not apply to them. An MR case
    under a CT plan gets "zscore" as under an MR plan; the planner's rule decides whether only the
    non-zero region counts. A CT case under an MR plan is clipped to soft tissue first. If that plan
    follows a CT plan, CT is scaled as in the CT plan, since the network learnt CT that way.

    Args:
        cropped: The case, cropped to its non-zero region.
        plan: The plan, with its modality and foreground intensities.
        configuration: The configuration, with one normalisation scheme per channel.
        modality: The case's modality; "other" is normalised as planned.
        where: The case's name, for messages.

    Returns:
        (c, z, y, x), a new array, or the image of the case if it is spare.

    Raises:
        DatasetError: See `normalize`.
    """
    image = cropped.image
    schemes, masked = list(configuration.normalization), list(configuration.mask_norm)
    intensities = list(plan.intensities)
    for index in renormalized(modality, plan, configuration):
        if modality == "CT" and plan.source_intensities:
            schemes[index], intensities[index] = "ct", plan.source_intensities[index]
            continue
        schemes[index], masked[index] = "zscore", cropped.kept < MASK_BELOW
        if modality == "CT":
            if image is cropped.image:
                image = image.astype(np.float32)
            np.clip(image[index], *SOFT_TISSUE_HU, out=image[index])
    # In C order, since the order of its sums decides the last bits of a mean.
    if cropped.spare:
        result = np.ascontiguousarray(image, dtype=np.float32)
    else:
        result = np.array(image, dtype=np.float32, order="C")
    settings = tuple(zip(schemes, masked, intensities, strict=True))
    _normalize(result, settings, mask=cropped.mask, where=where)
    return result


def hides_fat(plan: Plan) -> bool:
    """Whether a CT plan clips fat to the value of air in any of its CT channels."""
    lowest = [plan.intensities[index].percentile_00_5 for index in plan.ct_channels]
    return plan.modality == "CT" and any(low > _FAT_HU for low in lowest)


def renormalized(modality: Modality, plan: Plan, configuration: Configuration) -> tuple[int, ...]:
    """Finds the channels whose planned normalisation does not suit the case's modality.

    Args:
        modality: The case's modality.
        plan: The plan, with its modality.
        configuration: The configuration, with one normalisation scheme per channel.

    Returns:
        Channel indices; empty if case and plan have the same modality or one of them is "other".
    """
    planned: Normalization
    match modality, plan.modality:
        case "MR", "CT":
            planned = "ct"
        case "CT", "MR":
            planned = "zscore"
        case _:
            return ()
    return tuple(i for i, scheme in enumerate(configuration.normalization) if scheme == planned)


def normalize(
    image: npt.NDArray[np.generic],
    *,
    schemes: Sequence[Normalization],
    mask_norm: Sequence[bool],
    intensities: Sequence[IntensityStats],
    mask: npt.NDArray[np.bool_],
    where: str = "image",
) -> npt.NDArray[np.float32]:
    """Normalises each channel by its own scheme.

    Args:
        image: (c, z, y, x); it is not modified.
        schemes: One scheme per channel.
        mask_norm: Per channel, whether "zscore" uses only voxels in the mask and leaves the rest
            unchanged.
        intensities: The dataset's foreground statistics, one per channel; used by "ct".
        mask: (z, y, x), the voxels that count.
        where: The image's name, for messages.

    Returns:
        (c, z, y, x), a new array.

    Raises:
        DatasetError: A channel with the scheme "rgb" has values outside 0 to 255.
    """
    result = np.array(image, dtype=np.float32, order="C")
    settings = tuple(zip(schemes, mask_norm, intensities, strict=True))
    _normalize(result, settings, mask=mask, where=where)
    return result


def _normalize(
    image: npt.NDArray[np.float32],
    settings: Sequence[tuple[Normalization, bool, IntensityStats]],
    *,
    mask: npt.NDArray[np.bool_],
    where: str,
) -> None:
    """Normalises each channel in place; see `normalize`."""
    for index, (channel, setting) in enumerate(zip(image, settings, strict=True)):
        scheme, masked, stats = setting
        match scheme:
            case "ct":
                _ct(channel, stats)
            case "zscore":
                _zscore(channel, mask if masked else None)
            case "rescale01":
                _rescale01(channel)
            case "rgb":
                _rgb(channel, f"{where}, channel {index}")
            case "none":
                pass


def _ct(channel: npt.NDArray[np.float32], stats: IntensityStats) -> None:
    low, high = stats.percentile_00_5, stats.percentile_99_5
    np.clip(channel, low, high, out=channel)
    power = _power(low, high)
    if power:
        np.ldexp(channel, power, out=channel)
    scale = 2.0**power
    largest = max(abs(low), abs(high))
    channel -= stats.mean * scale
    channel /= max(stats.std, largest * _ROUNDING) * scale or 1.0


def _zscore(channel: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None) -> None:
    if mask is None or mask.all():
        _standardise(channel)
    elif mask.any():
        inside = channel[mask]
        _standardise(inside)
        channel[mask] = inside


def _standardise(values: npt.NDArray[np.float32]) -> None:
    """Mean 0 and deviation 1, in place; whatever the unit is: ADC in m^2/s is of order 1e-9."""
    largest = _to_ordinary(values)
    if not largest:
        return
    mean, std = values.mean(), values.std()
    values -= mean
    values /= max(float(std), largest * _ROUNDING)


def _rescale01(channel: npt.NDArray[np.float32]) -> None:
    if not _to_ordinary(channel):
        return
    channel -= channel.min()
    channel /= float(channel.max())


def _to_ordinary(values: npt.NDArray[np.float32]) -> float:
    """Brings values to where float32 can sum their squares, in place, by a power of two.

    Returns:
        The largest magnitude afterwards; 0 where all values were the same, which are 0 then.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        values[:] = 0
        return 0.0
    power = _power(low, high)
    if power:
        np.ldexp(values, power, out=values)
    return max(abs(low), abs(high)) * 2.0**power


def _power(low: float, high: float) -> int:
    """The power of two that brings a range to about 1, 0 where it is ordinary."""
    exponent = math.frexp(max(abs(low), abs(high)))[1]
    return 0 if exponent in _ORDINARY else -exponent


def _rgb(channel: npt.NDArray[np.float32], where: str) -> None:
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > 255:
        raise DatasetError(
            f"{where}: values from {low:g} to {high:g}, expected 0 to 255 as in an RGB image.",
            hint="Give the channel another name in dataset.json: 'rgb_to_0_1' is for 8-bit colour.",
        )
    channel /= 255.0
