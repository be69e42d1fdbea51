"""The grid and the intensities of whole images in a few numbers, and what a training set has shown.

Unlike a fingerprint's statistics, which are of labelled voxels, these are of all voxels: they say
how an image is stored (Hounsfield units, an offset, a window, another modality).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record

# Percentiles of an image are those of about so many of its voxels, evenly spread.
_SAMPLE = 1 << 20
# A voxel below it is clearly negative: CT has air and fat there, MR at most some noise.
CLEARLY_NEGATIVE = -10.0


class ChannelRange(Record, frozen=True, kw_only=True):
    """The intensities of one channel of one image, all voxels counted.

    Attributes:
        min: The lowest value.
        percentile_00_5: 0.5 percent of the voxels are lower.
        median: The median.
        percentile_99_5: 0.5 percent of the voxels are higher.
        max: The highest value.
        share_negative: The share of voxels at or below -10.
    """

    min: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    max: float
    share_negative: float

    @property
    def span(self) -> float:
        """The distance between the two outer percentiles."""
        return self.percentile_99_5 - self.percentile_00_5

    @property
    def constant(self) -> bool:
        """Whether every voxel has the same value."""
        return self.min == self.max

    @property
    def negative_ratio(self) -> float:
        """How far values reach below zero, as a share of how far they reach above it."""
        low, high = max(0.0, -self.percentile_00_5), max(0.0, self.percentile_99_5)
        return low / high if high else (math.inf if low else 0.0)


class CaseRange(Record, frozen=True, kw_only=True):
    """One case: its grid, and the intensities of its channels. Axes are (z, y, x).

    Attributes:
        name: The case.
        spacing_mm: Its spacing.
        shape: Its size in voxels.
        channels: One per channel, in their order.
    """

    name: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    channels: tuple[ChannelRange, ...]

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Its size in mm."""
        z, y, x = (n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True))
        return z, y, x


class SeenChannel(Record, frozen=True, kw_only=True):
    """One channel in all training images: the least and the greatest of their numbers.

    Attributes:
        min: The lowest value of all.
        max: The highest value of all.
        percentile_00_5: Of the images' 0.5 percentiles.
        median: Of the images' medians.
        percentile_99_5: Of the images' 99.5 percentiles.
        span: Of the distances between both percentiles.
        share_negative: Of the shares of voxels at or below -10.
        negative_ratio: The greatest share of the 99.5 percentile that a 0.5 percentile is below
            zero; at most 1000.
    """

    min: float
    max: float
    percentile_00_5: tuple[float, float]
    median: tuple[float, float]
    percentile_99_5: tuple[float, float]
    span: tuple[float, float]
    share_negative: tuple[float, float]
    negative_ratio: float


class SeenImages(Record, frozen=True, kw_only=True):
    """What the images that a model is trained on look like: least and greatest. Axes (z, y, x).

    Attributes:
        cases: How many there are.
        spacing_mm: Their spacing.
        extent_mm: Their size in mm.
        channels: One per channel, in their order.
    """

    cases: int
    spacing_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    extent_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    channels: tuple[SeenChannel, ...]


def channel_range(array: npt.NDArray[np.generic]) -> ChannelRange:
    """The intensities of one channel.

    Args:
        array: (z, y, x), finite.
    """
    values = _sample(array).astype(np.float64)
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    return ChannelRange(
        min=float(array.min()),
        percentile_00_5=float(low),
        median=float(median),
        percentile_99_5=float(high),
        max=float(array.max()),
        share_negative=float(np.mean(values <= CLEARLY_NEGATIVE)),
    )


def seen_images(cases: Sequence[CaseRange]) -> SeenImages | None:
    """What a training set has shown; None where nothing is known of it.

    Args:
        cases: Those that are trained on.
    """
    cases = [case for case in cases if case.channels]
    if not cases or len({len(case.channels) for case in cases}) > 1:
        return None
    return SeenImages(
        cases=len(cases),
        spacing_mm=_both_ends([case.spacing_mm for case in cases]),
        extent_mm=_both_ends([case.extent_mm for case in cases]),
        channels=tuple(
            _seen_channel(channel) for channel in zip(*(c.channels for c in cases), strict=True)
        ),
    )


def _seen_channel(images: Sequence[ChannelRange]) -> SeenChannel:
    def ends(name: str) -> tuple[float, float]:
        values = [float(getattr(image, name)) for image in images]
        return min(values), max(values)

    return SeenChannel(
        min=ends("min")[0],
        max=ends("max")[1],
        percentile_00_5=ends("percentile_00_5"),
        median=ends("median"),
        percentile_99_5=ends("percentile_99_5"),
        span=ends("span"),
        share_negative=ends("share_negative"),
        negative_ratio=min(1000.0, ends("negative_ratio")[1]),
    )


Triple = tuple[float, float, float]


def _both_ends(values: Sequence[Triple]) -> tuple[Triple, Triple]:
    low = [min(axis) for axis in zip(*values, strict=True)]
    high = [max(axis) for axis in zip(*values, strict=True)]
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _sample(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    flat = array.ravel()
    step = max(1, flat.size // _SAMPLE)
    # A step that shares no factor with a row or a slice looks at every column in turn.
    while step > 1 and any(math.gcd(step, size) > 1 for size in array.shape):
        step += 1
    return flat[::step]
