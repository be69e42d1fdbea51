"""Statistics of intensities that are drawn from many cases and stored as counts.

nnU-Net 2.8.1 draws 10^8 foreground voxels with replacement, equally many from every case, and keeps
all of them. The same voxels are drawn here, but only the count of each value is kept. The
statistics equal those of nnU-Net up to the rounding of its float32 sums, at a fraction of the time
and memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.planning.plan import IntensityStats

Float32Array = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

# Number of voxels that are drawn at a time; each takes 8 bytes.
_CHUNK = 1 << 20
# Whole numbers within a range of this width are counted, several times faster than by sorting.
_WIDEST_COUNT = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Intensities:
    """The intensities drawn from the foreground of one channel of one case.

    Attributes:
        values: The distinct values in ascending order; evenly spread order statistics if there are
            too many values.
        counts: How often each value was drawn.
        mean: Mean of all draws.
        variance: Variance of all draws.
        low: The smallest value drawn.
        high: The largest value drawn.
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
    """Draws voxels from the foreground of one channel with replacement, and counts their values.

    Args:
        voxels: Finite intensities (n,) in the order of the image: (z, y, x), x fastest.
        draws: Number of draws.
        rng: The random generator; the draws are those of its method `choice`.
        most_values: Largest number of values to keep. If more distinct values are drawn, the sorted
            draws are divided into this many equal parts, and the draw in the middle of each part
            represents it. The rank of a percentile then changes by less than 1 / most_values.

    Returns:
        The intensities; None if there are no voxels.
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
    """Computes statistics of all draws, equal to numpy's mean, std and percentile of them.

    Args:
        cases: The draws of at least one case, equally many from each.
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
    """Returns how often each of `size` voxels is drawn, with the indices that `choice` draws."""
    times = np.zeros(size, dtype=np.int64)
    # `choice` draws numbers with just enough bits and rejects those that are too large. As long as
    # a whole chunk of them is needed, counting all and dropping those is twice as fast.
    power = 1 << (size - 1).bit_length()
    while draws >= _CHUNK:
        found = np.bincount(rng.randint(0, power, _CHUNK), minlength=power)[:size]
        times += found
        draws -= int(found.sum())
    times += np.bincount(rng.randint(0, size, draws), minlength=size)
    return times


def _count(voxels: Float32Array, times: Counts) -> tuple[Float32Array, Counts]:
    """Returns the distinct values drawn, in ascending order, and how often each was drawn."""
    drawn = times > 0
    voxels, times = voxels[drawn], times[drawn]
    low, high = float(voxels.min()), float(voxels.max())
    if max(high - low, abs(low)) < _WIDEST_COUNT:
        whole = voxels.astype(np.int32)
        if np.array_equal(whole, voxels):
            first = int(low)
            # Summed as float64, which is exact for fewer than 2^53 draws.
            counts = np.bincount(whole - first, weights=times)
            found = np.flatnonzero(counts)
            return (found + first).astype(np.float32), counts[found].astype(np.int64)
    order = np.argsort(voxels)
    voxels, times = voxels[order], times[order]
    starts = np.flatnonzero(np.concatenate(([True], voxels[1:] != voxels[:-1])))
    return voxels[starts], np.add.reduceat(times, starts)


def _thinned(values: Float32Array, counts: Counts, most_values: int) -> tuple[Float32Array, Counts]:
    """Reduces the draws to the middle ones of equal parts, each counted as its whole part."""
    reached = np.cumsum(counts)
    edges = np.arange(most_values + 1) * int(reached[-1]) // most_values
    middle = (edges[:-1] + edges[1:]) // 2
    # The index of the value at each of these places among the sorted draws.
    places = np.searchsorted(reached, middle, side="right")
    kept, numbers = np.unique(places, return_inverse=True)
    parts = np.bincount(numbers, weights=np.diff(edges))
    return values[kept], parts.astype(np.int64)


def _percentile(values: Float32Array, reached: Counts, share: float) -> float:
    """Interpolates the percentile `share` (0 to 1) between its two neighbouring sorted draws."""
    place = share * (int(reached[-1]) - 1)
    before = int(place)
    lower, upper = np.searchsorted(reached, (before, before + 1), side="right")
    first, second = float(values[lower]), float(values[min(upper, values.size - 1)])
    return first + (second - first) * (place - before)
