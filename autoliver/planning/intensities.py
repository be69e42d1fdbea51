"""Intensities of many cases condensed, and their statistics with every case weighing the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.planning.plan import IntensityStats

Float32Array = npt.NDArray[np.float32]

# Whole numbers within so wide a range are counted, which is several times as fast as sorting.
_WIDEST_COUNT = 1 << 20
# Shares are sums of quotients: so far from its place a step of their sum may be found.
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Intensities:
    """The intensities of one channel's foreground in one case, in no order of place.

    Attributes:
        values: Distinct and ascending; evenly spread order statistics where there are too many.
        counts: Voxels of each value.
        mean: Of all voxels.
        variance: Of all voxels.
        low: The least of all voxels.
        high: The greatest of all voxels.
    """

    values: Float32Array
    counts: npt.NDArray[np.int32]
    mean: float
    variance: float
    low: float
    high: float


def collect(voxels: Float32Array, *, most_values: int) -> Intensities | None:
    """Condenses the foreground of one channel.

    Args:
        voxels: (n,), finite.
        most_values: If there are more distinct values, so many voxels stand for all: those in the
            middle of equal parts of the sorted ones, so that a percentile moves by less than
            1 / most_values in rank.

    Returns:
        None where there are no voxels.
    """
    if not voxels.size:
        return None
    values, counts = _count(voxels)
    low, high = float(values[0]), float(values[-1])
    mean = float(np.dot(values.astype(np.float64), counts) / voxels.size)
    variance = float(np.dot((values.astype(np.float64) - mean) ** 2, counts) / voxels.size)
    if values.size > most_values:
        middle = (np.arange(most_values) + 0.5) * (voxels.size / most_values)
        # The value whose voxels, in ascending order, hold that place.
        places = np.searchsorted(np.cumsum(counts), middle.astype(np.int64), side="right")
        kept, numbers = np.unique(places, return_counts=True)
        values, counts = values[kept], numbers
    return Intensities(
        values=values,
        counts=counts.astype(np.int32),
        mean=mean,
        variance=variance,
        low=low,
        high=high,
    )


def pooled_statistics(cases: Sequence[Intensities]) -> IntensityStats:
    """Statistics over cases, each of which weighs the same however many voxels it has.

    A percentile is the value at which the weight of all up to it reaches the share asked for, or
    the middle between it and the next where it is reached exactly.

    Args:
        cases: At least one.
    """
    means = np.array([case.mean for case in cases])
    variance = float(np.mean([case.variance for case in cases]) + means.var())
    values, reached = _distribution(cases)
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


def _count(voxels: Float32Array) -> tuple[Float32Array, npt.NDArray[np.int64]]:
    """Distinct values, ascending, and how often each occurs."""
    low, high = float(voxels.min()), float(voxels.max())
    if max(high - low, abs(low)) < _WIDEST_COUNT:
        whole = voxels.astype(np.int32)
        if np.array_equal(whole, voxels):
            first = int(low)
            counts = np.bincount(whole - first)
            found = np.flatnonzero(counts)
            return (found + first).astype(np.float32), counts[found]
    values, numbers = np.unique(voxels, return_counts=True)
    return values, numbers


def _distribution(
    cases: Sequence[Intensities],
) -> tuple[Float32Array, npt.NDArray[np.float64]]:
    """All values in ascending order, and the share of the weight that lies at or below each."""
    values = np.concatenate([case.values for case in cases])
    shares = np.concatenate([case.counts / (case.counts.sum() * len(cases)) for case in cases])
    order = np.argsort(values, kind="stable")
    return values[order], np.cumsum(shares[order])


def _percentile(values: Float32Array, reached: npt.NDArray[np.float64], share: float) -> float:
    # Rounding may leave the sum of all shares just below 1.
    last = values.size - 1
    first = min(int(np.searchsorted(reached, share - _ROUNDING, side="left")), last)
    second = min(int(np.searchsorted(reached, share + _ROUNDING, side="right")), last)
    return (float(values[first]) + float(values[second])) / 2
