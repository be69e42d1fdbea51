"""Intensities of voxels drawn from many cases, condensed, and the statistics of all draws.

nnU-Net 2.8.1 draws 10^8 foreground voxels with replacement, equally many of every case, and keeps
them all. The same voxels are drawn here, but only how often each was drawn is kept: the statistics
are those of its 10^8 values, to what its sums in float32 round, in a fraction of time and memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.planning.plan import IntensityStats

Float32Array = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

# Drawn at a time, 8 bytes each.
_CHUNK = 1 << 20
# Whole numbers within so wide a range are counted, which is several times as fast as sorting.
_WIDEST_COUNT = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Intensities:
    """The intensities drawn of one channel's foreground in one case, in no order of place.

    Attributes:
        values: Distinct and ascending; evenly spread order statistics where there are too many.
        counts: How often each was drawn.
        mean: Of all draws.
        variance: Of all draws.
        low: The least drawn.
        high: The greatest drawn.
    """

    values: Float32Array
    counts: Counts
    mean: float
    variance: float
    low: float
    high: float


def collect(
    voxels: Float32Array, *, draws: int, rng: np.random.RandomState, most_values: int
) -> Intensities | None:
    """Draws voxels of one channel's foreground with replacement and condenses them.

    Args:
        voxels: (n,), finite, in the order of the image: (z, y, x), x fastest.
        draws: How many.
        rng: Draws what its `choice` would.
        most_values: If there are more distinct values, so many draws stand for all: those in the
            middle of equal parts of the sorted ones, so that a percentile moves by less than
            1 / most_values in rank.

    Returns:
        None where there are no voxels.
    """
    if not voxels.size:
        return None
    values, counts = _count(voxels, _times_drawn(voxels.size, draws, rng))
    low, high = float(values[0]), float(values[-1])
    mean = float(np.dot(values.astype(np.float64), counts) / draws)
    variance = float(np.dot((values.astype(np.float64) - mean) ** 2, counts) / draws)
    if values.size > most_values:
        values, counts = _thinned(values, counts, most_values)
    return Intensities(
        values=values, counts=counts, mean=mean, variance=variance, low=low, high=high
    )


def pooled_statistics(cases: Sequence[Intensities]) -> IntensityStats:
    """Statistics of all draws, as numpy's mean, std and percentile of them would be.

    Args:
        cases: At least one; equally many draws of each.
    """
    means = np.array([case.mean for case in cases])
    variance = float(np.mean([case.variance for case in cases]) + means.var())
    values = np.concatenate([case.values for case in cases])
    counts = np.concatenate([case.counts for case in cases])
    order = np.argsort(values, kind="stable")
    values, reached = values[order], np.cumsum(counts[order])
    low, median, high = (_percentile(values, reached, share) for share in (0.005, 0.5, 0.995))
    return IntensityStats(
        mean=float(means.mean()),
        median=median,
        std=variance**0.5,
        min=min(case.low for case in cases),
        max=max(case.high for case in cases),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def _times_drawn(size: int, draws: int, rng: np.random.RandomState) -> Counts:
    """How often each of `size` voxels is drawn, by the indices that choice would draw."""
    times = np.zeros(size, dtype=np.int64)
    # It takes whole numbers of just enough bits and passes over those that are too large, one by
    # one; while all of a chunk are wanted, counting them with the rest is twice as fast.
    power = 1 << (size - 1).bit_length()
    while draws >= _CHUNK:
        found = np.bincount(rng.randint(0, power, _CHUNK), minlength=power)[:size]
        times += found
        draws -= int(found.sum())
    times += np.bincount(rng.randint(0, size, draws), minlength=size)
    return times


def _count(voxels: Float32Array, times: Counts) -> tuple[Float32Array, Counts]:
    """Distinct values drawn, ascending, and how often each was drawn."""
    drawn = times > 0
    voxels, times = voxels[drawn], times[drawn]
    low, high = float(voxels.min()), float(voxels.max())
    if max(high - low, abs(low)) < _WIDEST_COUNT:
        whole = voxels.astype(np.int32)
        if np.array_equal(whole, voxels):
            first = int(low)
            # Summed as float64: exact, there being fewer than 2^53.
            counts = np.bincount(whole - first, weights=times)
            found = np.flatnonzero(counts)
            return (found + first).astype(np.float32), counts[found].astype(np.int64)
    order = np.argsort(voxels)
    voxels, times = voxels[order], times[order]
    starts = np.flatnonzero(np.concatenate(([True], voxels[1:] != voxels[:-1])))
    return voxels[starts], np.add.reduceat(times, starts)


def _thinned(values: Float32Array, counts: Counts, most_values: int) -> tuple[Float32Array, Counts]:
    """Order statistics in the middle of equal parts of the draws, counted as their part."""
    reached = np.cumsum(counts)
    edges = np.arange(most_values + 1) * int(reached[-1]) // most_values
    middle = (edges[:-1] + edges[1:]) // 2
    # The value whose draws, in ascending order, hold that place.
    places = np.searchsorted(reached, middle, side="right")
    kept, numbers = np.unique(places, return_inverse=True)
    parts = np.bincount(numbers, weights=np.diff(edges))
    return values[kept], parts.astype(np.int64)


def _percentile(values: Float32Array, reached: Counts, share: float) -> float:
    """Between the two draws next to that share of the way from the first to the last."""
    place = share * (int(reached[-1]) - 1)
    before = int(place)
    lower, upper = np.searchsorted(reached, (before, before + 1), side="right")
    first, second = float(values[lower]), float(values[min(upper, values.size - 1)])
    return first + (second - first) * (place - before)
