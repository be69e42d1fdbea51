"""Means with 95 % intervals: patients are drawn anew, since cases of one are not independent."""

import functools
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record

RESAMPLES = 2000
Interval = tuple[float, float]
Weights = npt.NDArray[np.float64]
Values = npt.NDArray[np.float64]

_SEED = 0
_PERCENTILES = (2.5, 97.5)


class Statistic(Record, frozen=True, kw_only=True):
    """The mean of a metric over cases or lesions.

    Attributes:
        mean: Mean over the cases or lesions that define the metric.
        sd: Sample standard deviation over these; None if there is only one.
        n: Number of these.
        interval: 95 % interval of the mean by resampling patients; None for fewer than two patients
            or if patients are not known.
    """

    mean: float
    sd: float | None
    n: int
    interval: Interval | None = None


def resampled(patients: Sequence[str]) -> Weights | None:
    """Draws as many patients as there are, with replacement, `RESAMPLES` times.

    The same patients give the same draws, in whichever order they are.

    Args:
        patients: The patient of each case; empty if it is not known.

    Returns:
        (resamples, cases): how often each case was drawn; None for fewer than two patients, or if
        one is not known.
    """
    return None if "" in patients else _drawn(tuple(patients))


@functools.lru_cache(maxsize=4)
def _drawn(patients: tuple[str, ...]) -> Weights | None:
    names, index = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    if len(names) < 2:
        return None
    count = len(names)
    drawn = np.random.default_rng(_SEED).integers(count, size=(RESAMPLES, count))
    drawn += count * np.arange(RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)
    weights: Weights = times[:, index].astype(np.float64)
    return weights


def interval(values: Values) -> Interval | None:
    """Returns the 95 % percentile interval of resampled values; those that are NaN are left out."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, _PERCENTILES)
    return float(low), float(high)


def ratio(numerator: Values, denominator: Values) -> Values:
    """Divides elementwise; NaN where the denominator is zero."""
    undefined = np.full(np.shape(numerator), np.nan)
    quotient: Values = np.divide(numerator, denominator, out=undefined, where=denominator != 0)
    return quotient


def statistic(values: Sequence[Iterable[float]], weights: Weights | None) -> Statistic | None:
    """Summarises the values of cases, of which each has none, one or several.

    Args:
        values: The values of each case.
        weights: (resamples, cases), as from `resampled`; None: without an interval.

    Returns:
        The mean over all values; None if there is no value.
    """
    each = [tuple(case) for case in values]
    pooled = [value for case in each for value in case]
    if not pooled:
        return None
    found = None
    if weights is not None:
        sums, counts = (np.array([f(case) for case in each], np.float64) for f in (sum, len))
        found = interval(ratio(weights @ sums, weights @ counts))
    sd = statistics.stdev(pooled) if len(pooled) > 1 else None
    return Statistic(mean=statistics.fmean(pooled), sd=sd, n=len(pooled), interval=found)
