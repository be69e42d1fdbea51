"""Intensities that cannot be measurements: far outside everything else in their image, or padding.

A single voxel of 3.4e38, which is what is left of infinity after `numpy.nan_to_num`, makes all
other voxels of an image equal once mean and deviation are taken.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

# So many times what 99 in 100 voxels reach: no scanner has this dynamic range.
_FAR = 1e6
_USUAL_PERCENT = 99.0
_SAMPLE = 1 << 20
# No unit in use makes such numbers; where others are far below, they stand for "not known".
_IMPOSSIBLE = 1e12
_PADDING_LEAST = 10  # voxels

_log = logging.getLogger(__name__)

Image = npt.NDArray[np.float32]
A = TypeVar("A", bound=np.generic)
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outliers:
    """A few voxels far outside all others.

    Attributes:
        where: (z, y, x), which.
        value: The largest of them by magnitude.
        low: The least of all other voxels.
        high: The greatest of all other voxels.
    """

    where: Mask
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In words."""
        count = int(self.where.sum())
        return (
            f"{count} of {self.where.size} voxels {'is' if count == 1 else 'are'} far outside all "
            f"others (up to {self.value:g}; the others range from {self.low:g} to {self.high:g})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding:
    """A value below all measured ones that fills voxels without a measurement.

    Attributes:
        where: (z, y, x), which voxels hold it.
        value: It.
        low: The least of all other voxels.
        shift: By how much it moves the mean of the image, in deviations of all other voxels.
    """

    where: Mask
    value: float
    low: float
    shift: float


def find_outliers(channel: npt.NDArray[Any]) -> Outliers | None:
    """Voxels whose magnitude is a million times what 99 in 100 non-zero voxels reach.

    Args:
        channel: (z, y, x), finite.
    """
    low, high = float(channel.min()), float(channel.max())
    largest = max(-low, high)
    if not largest:
        return None
    flat = channel.reshape(-1)
    sample = np.abs(flat[:: max(1, flat.size // _SAMPLE)])
    sample = sample[sample > 0]
    if not sample.size:
        return None
    # "lower", lest a percentile between two voxels be half of an outlier.
    usual = float(np.percentile(sample, _USUAL_PERCENT, method="lower"))
    if largest <= usual * _FAR:
        return None
    where = (channel > usual * _FAR) | (channel < -usual * _FAR)
    rest = channel[~where]
    return Outliers(
        where=where,
        value=low if -low > high else high,
        low=float(rest.min()),
        high=float(rest.max()),
    )


def without_impossible(image: npt.NDArray[A], *, name: str) -> npt.NDArray[A]:
    """Gives voxels with impossible values the nearest value that the image has elsewhere.

    These are outliers beyond 1e12. Images without any are returned as they are.

    Args:
        image: (c, z, y, x), finite; it stays as it is.
        name: The case's, for the warning.
    """
    result = image
    for index, channel in enumerate(image):
        largest = max(-float(channel.min()), float(channel.max()))
        if not _IMPOSSIBLE <= largest < np.inf:
            continue
        found = find_outliers(channel)
        if found is None:
            continue
        if result is image:
            result = image.copy()
        np.clip(channel, found.low, found.high, out=result[index])
        _log.warning("%s: channel %d: %s. They take the nearest of these.", name, index, found)
    return result


def find_padding(channel: Image, *, below: float | None) -> Padding | None:
    """The lowest value of an image where many voxels hold it and nothing else is near.

    Args:
        channel: (z, y, x), finite.
        below: Padding is below this value, that of air in CT. None: it is negative and further from
            the next value than all other values are from one another.
    """
    value = float(channel.min())
    if value >= (0.0 if below is None else below):
        return None
    where = channel == value
    count = int(np.count_nonzero(where))
    number = where.size - count
    if count < _PADDING_LEAST or not number:
        return None
    # Slice by slice, since float64 takes twice the memory of the image.
    low, high, mean = np.inf, -np.inf, 0.0
    for other in _others(channel, value):
        low, high = min(low, float(other.min())), max(high, float(other.max()))
        mean += float(other.sum()) / number
    if below is None and low - value <= high - low:
        return None
    squares = sum(float(((other - mean) ** 2).sum()) for other in _others(channel, value))
    deviation = (squares / number) ** 0.5
    moved = (mean - value) * count / where.size
    shift = moved / deviation if deviation else float("inf")
    return Padding(where=where, value=value, low=low, shift=shift)


def _others(channel: Image, value: float) -> Iterator[npt.NDArray[np.float64]]:
    """The voxels of each slice that do not hold a value, where there are any."""
    for plane in channel:
        other = plane[plane != value]
        if other.size:
            yield other.astype(np.float64)
