"""Intensity normalisation, channel by channel, with nnU-Net's schemes."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoliver.errors import DatasetError
from autoliver.planning.plan import IntensityStats, Normalization

# Constant images have no spread to divide by.
_LEAST_STD = 1e-8


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
