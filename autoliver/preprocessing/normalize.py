"""Intensity normalisation, channel by channel, with nnU-Net's schemes; by the case's modality."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Modality
from autoliver.errors import DatasetError
from autoliver.planning.nonzero import MASK_BELOW
from autoliver.planning.plan import Configuration, IntensityStats, Normalization, Plan
from autoliver.preprocessing.crop import Cropped

# Constant images have no spread to divide by.
_LEAST_STD = 1e-8

_FAT_HU = -90.0
# What MR networks get to see of CT: soft tissue and fat, which MR shows, too; of air and bone only
# that they are dark and bright.
SOFT_TISSUE_HU = (-150.0, 250.0)


def normalize_case(
    cropped: Cropped,
    *,
    plan: Plan,
    configuration: Configuration,
    modality: Modality,
    where: str = "image",
) -> npt.NDArray[np.float32]:
    """Normalises a case as planned, or as its modality needs where the plan is for the other one.

    MR has no unit, so that a CT plan's window and scale mean nothing to it: its channels get the
    "zscore" of the image that a plan for MR gives them, inside the non-zero region by the planner's
    rule. CT that an MR plan gets is clipped to soft tissue first; where the plan follows one for
    CT, it is scaled as there, since that is how the network has learnt CT.

    Args:
        cropped: The case.
        plan: For which modality it is, and foreground intensities.
        configuration: Schemes.
        modality: Of the case; "other" is normalised as planned.
        where: The case's name for messages.

    Returns:
        (c, z, y, x), a new array.

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
    return normalize(
        image,
        schemes=schemes,
        mask_norm=masked,
        intensities=intensities,
        mask=cropped.mask,
        where=where,
    )


def hides_fat(plan: Plan) -> bool:
    """Whether fat is clipped to the value of air in some CT channel of a plan for CT."""
    lowest = [plan.intensities[index].percentile_00_5 for index in plan.ct_channels]
    return plan.modality == "CT" and any(low > _FAT_HU for low in lowest)


def renormalized(modality: Modality, plan: Plan, configuration: Configuration) -> tuple[int, ...]:
    """The channels whose planned normalisation is for the other modality than the case's.

    Args:
        modality: Of the case.
        plan: For which modality it is.
        configuration: Schemes.

    Returns:
        Their indices; none where case and plan agree, or one of them is "other".
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
        image: (c, z, y, x); left as it is.
        schemes: One per channel.
        mask_norm: Per channel, whether "zscore" looks only at the mask and leaves the rest alone.
        intensities: One per channel, of the dataset's foreground; what "ct" goes by.
        mask: (z, y, x), the voxels that count.
        where: The image's name for messages.

    Returns:
        (c, z, y, x), a new array.

    Raises:
        DatasetError: A channel said to be RGB has values outside 0 to 255.
    """
    result = np.array(image, dtype=np.float32, order="C")
    settings = zip(result, schemes, mask_norm, intensities, strict=True)
    for index, (channel, scheme, masked, stats) in enumerate(settings):
        match scheme:
            case "ct":
                _ct(channel, stats)
            case "zscore":
                _zscore(channel, mask if masked else None)
            case "rescale01":
                channel -= channel.min()
                channel /= max(float(channel.max()), _LEAST_STD)
            case "rgb":
                _rgb(channel, f"{where}, channel {index}")
            case "none":
                pass
    return result


def _ct(channel: npt.NDArray[np.float32], stats: IntensityStats) -> None:
    np.clip(channel, stats.percentile_00_5, stats.percentile_99_5, out=channel)
    channel -= stats.mean
    channel /= max(stats.std, _LEAST_STD)


def _zscore(channel: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_] | None) -> None:
    if mask is None or mask.all():
        mean, std = channel.mean(), channel.std()
        channel -= mean
        channel /= max(float(std), _LEAST_STD)
    elif mask.any():
        inside = channel[mask]
        channel[mask] = (inside - inside.mean()) / max(float(inside.std()), _LEAST_STD)


def _rgb(channel: npt.NDArray[np.float32], where: str) -> None:
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > 255:
        raise DatasetError(
            f"{where}: values from {low:g} to {high:g}, expected an RGB image's 0 to 255.",
            hint="Give the channel another name in dataset.json: 'rgb_to_0_1' is for 8-bit colour.",
        )
    channel /= 255.0
