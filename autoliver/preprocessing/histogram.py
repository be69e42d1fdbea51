"""Histograms of what a network has seen, and images whose values are matched to them.

A network that was trained on CT knows an MR case better if its grey values are distributed as those
of the training images are. Only the order of the values is kept.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.datasets.cases import Modality
from autoliver.errors import DatasetError
from autoliver.io.volume import Volume
from autoliver.planning.nonzero import nonzero_mask
from autoliver.planning.outliers import without_impossible
from autoliver.preprocessing.normalize import SOFT_TISSUE_HU

_QUANTILES = 129
# What is darker than this, of the range from the lowest to the highest values, is air.
_AIR = 0.05
_LOWEST, _HIGHEST = 0.5, 99.0  # percentiles


class Histogram(Record, frozen=True, kw_only=True):
    """The distribution of the values of one channel, as the network is given them.

    Attributes:
        air: The value of air.
        quantiles: Quantiles of the values in the body, at equal steps from 0 to 1.
    """

    air: float
    quantiles: tuple[float, ...]


def histogram_of(channel: npt.NDArray[np.floating], inside: npt.NDArray[np.bool_]) -> Histogram:
    """Computes the histogram of a channel.

    Args:
        channel: (z, y, x).
        inside: (z, y, x), the voxels that count.

    Returns:
        Its histogram. In a channel of one value all of it is body.
    """
    return _measured(channel, inside)[0]


def _measured(
    channel: npt.NDArray[np.floating], inside: npt.NDArray[np.bool_]
) -> tuple[Histogram, float]:
    """The histogram of a channel, and the value up to which it is air."""
    values = channel[inside] if inside.any() else channel.flatten()
    return _of_values(values)


def histogram_of_parts(
    parts: Iterable[tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]], count: int
) -> Histogram:
    """Computes the histogram of a channel that comes in parts, whose voxels are held once.

    Args:
        parts: Pairs of voxels and whether they count, of one shape.
        count: How many count; at least one.
    """
    values, start = np.empty(count, np.float32), 0
    for part, inside in parts:
        found = part[inside]
        values[start : start + len(found)] = found
        start += len(found)
    return _of_values(values)[0]


def _of_values(values: npt.NDArray[np.floating]) -> tuple[Histogram, float]:
    """As `_measured`, of the voxels that count, (n,), which are sorted in place."""
    low, high = np.percentile(values, [_LOWEST, _HIGHEST], overwrite_input=True)
    limit = float(low + _AIR * (high - low))
    values.sort()
    where = int(np.searchsorted(values, values.dtype.type(limit), side="right"))
    air, body = values[:where], values[where:]
    body = body if body.size else values
    found = _quantiles(body, np.linspace(0.0, 1.0, _QUANTILES))
    lowest = float(np.median(air, overwrite_input=True)) if air.size else float(found[0])
    return Histogram(air=lowest, quantiles=tuple(found.tolist())), limit


def _quantiles(
    values: npt.NDArray[np.floating], shares: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """What np.quantile gives in float64, of sorted values that need not be copied to that."""
    places = shares * (len(values) - 1)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    share = places - below
    one, other = values[below].astype(np.float64), values[above].astype(np.float64)
    return np.where(share < 0.5, one + (other - one) * share, other - (other - one) * (1 - share))


def mean_histograms(images: Sequence[Sequence[Histogram]]) -> tuple[Histogram, ...]:
    """Averages the histograms of several images, channel by channel."""
    return tuple(map(mean_histogram, zip(*images, strict=True)))


def mean_histogram(histograms: Sequence[Histogram]) -> Histogram:
    """Averages histograms, quantile by quantile."""
    return Histogram(
        air=float(np.mean([each.air for each in histograms])),
        quantiles=tuple(np.mean([each.quantiles for each in histograms], axis=0).tolist()),
    )


def match_volume(
    image: Volume, histograms: Sequence[Histogram], *, modality: Modality | None, where: str
) -> Volume:
    """Matches the values of a case to histograms; CT is clipped to soft tissue before.

    Args:
        image: The case.
        histograms: The wanted histogram of each channel.
        modality: The case's modality.
        where: The case, for messages.

    Raises:
        DatasetError: See `matched`.
    """
    values = without_impossible(image.array, name=where)
    if modality == "CT":
        values = np.clip(values, *SOFT_TISSUE_HU)
    inside = nonzero_mask(values)
    return dataclasses.replace(image, array=matched(values, inside, histograms, where=where))


def matched(
    image: npt.NDArray[np.generic],
    inside: npt.NDArray[np.bool_],
    histograms: Sequence[Histogram],
    *,
    where: str,
) -> npt.NDArray[np.float32]:
    """Maps the values of each channel so that they are distributed as a histogram says.

    Args:
        image: (c, z, y, x), on any scale.
        inside: (z, y, x), the voxels that count; the others become air.
        histograms: The wanted histogram of each channel.
        where: The case, for messages.

    Returns:
        (c, z, y, x), a new array.

    Raises:
        DatasetError: A channel has a single value, so that there is nothing to match.
    """
    result = np.empty(image.shape, np.float32)
    for index, (channel, histogram) in enumerate(zip(image, histograms, strict=True)):
        wide = channel.astype(np.float32)
        own, limit = _measured(wide, inside)
        if own.quantiles[0] == own.quantiles[-1]:
            raise DatasetError(
                f"{where}: channel {index} has the value {own.quantiles[0]:g} everywhere, expected "
                "an image whose values can be matched.",
                hint="Check the image, or predict it without --match.",
            )
        steps = np.linspace(0.0, 1.0, _QUANTILES)
        # Several quantiles may share a value; their middle is its rank.
        values, first, counts = np.unique(own.quantiles, return_index=True, return_counts=True)
        ranks = steps[first] + (counts - 1) / 2 / (_QUANTILES - 1)
        rank = np.interp(wide, values, ranks)
        result[index] = np.interp(rank, steps, histogram.quantiles)
        result[index][~(inside & (wide > limit))] = histogram.air
    return result
