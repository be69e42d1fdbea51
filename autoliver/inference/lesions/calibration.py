"""Probabilities of lesion classes that say how often they are right.

One temperature is learnt on lesions of cases that the networks were not trained on: p becomes
p^(1/T), scaled to add up to 1 (Guo et al. 2017). It changes no lesion's most probable class.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.models.selection import Temperature

Array = npt.NDArray[np.float64]

# With fewer lesions than this a temperature says more of chance than of the network.
LEAST_LESIONS = 20
# Beyond these, probabilities are all nearly 1 or all nearly equal.
_LOWEST, _HIGHEST = 0.05, 20.0
_TINY = 1e-7  # stands for a probability of 0


class ReliabilityBin(Record, frozen=True, kw_only=True):
    """Lesions whose most probable class is about equally probable.

    Attributes:
        low: Lower end of their probabilities, not included except in the first bin.
        high: Upper end, included.
        lesions: Their number.
        confidence: The mean probability of their most probable class; None without lesions.
        accuracy: The share of them of which it is the true class; None without lesions.
    """

    low: float
    high: float
    lesions: int
    confidence: float | None = None
    accuracy: float | None = None


def fit_temperature(
    probabilities: Array, truth: npt.NDArray[np.integer], *, least: int = LEAST_LESIONS
) -> Temperature:
    """Learns the temperature that makes the true classes of lesions most probable.

    Args:
        probabilities: (lesions, classes), rows that add up to 1, of cases held out in training.
        truth: Index of the true class of each lesion.
        least: Number of lesions below which the temperature stays 1.

    Returns:
        The temperature; it stays 1 if it cannot be learnt, and says why.
    """
    from scipy.optimize import minimize_scalar

    lesions = len(truth)
    _check(probabilities, truth)
    if lesions < least:
        return Temperature(lesions=lesions, why=f"it takes {least} lesions, found {lesions}")
    before, error = _nll(probabilities, truth), _error(probabilities, truth)
    if len(np.unique(truth)) < 2:
        why = "all lesions are of one class"
        return Temperature(
            lesions=lesions,
            nll_before=before,
            nll_after=before,
            error_before=error,
            error_after=error,
            why=why,
        )
    # In 1/T the likelihood is convex, so that there is one minimum.
    found = minimize_scalar(
        lambda log: _nll(calibrated(probabilities, float(np.exp(log))), truth),
        bounds=(np.log(_LOWEST), np.log(_HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    value, after = float(np.exp(found.x)), float(found.fun)
    if after >= before:
        value, after = 1.0, before
    at_end = not 1.001 * _LOWEST < value < 0.999 * _HIGHEST
    return Temperature(
        value=value,
        lesions=lesions,
        nll_before=before,
        nll_after=after,
        error_before=error,
        error_after=_error(calibrated(probabilities, value), truth),
        why=f"it may be {_LOWEST:g} to {_HIGHEST:g}" if at_end else "",
    )


def calibrated(probabilities: Array, temperature: float) -> Array:
    """Applies a temperature to probabilities (lesions, classes)."""
    if temperature == 1.0:
        return probabilities
    logs = np.log(np.clip(probabilities, _TINY, None)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    scaled: Array = powers / powers.sum(axis=1, keepdims=True)
    return scaled


def reliability(
    probabilities: Array, truth: npt.NDArray[np.integer], *, bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Groups lesions by the probability of their most probable class.

    Args:
        probabilities: (lesions, classes), rows that add up to 1.
        truth: Index of the true class of each lesion.
        bins: Number of bins of equal width from 0 to 1.
    """
    _check(probabilities, truth)
    edges = np.linspace(0, 1, bins + 1)
    sure = probabilities.max(axis=1, initial=0)
    right = probabilities.argmax(axis=1) == truth
    place = np.clip(np.searchsorted(edges, sure) - 1, 0, bins - 1)
    found = []
    for index, (low, high) in enumerate(pairwise(edges)):
        inside = place == index
        some = bool(inside.any())
        found.append(
            ReliabilityBin(
                low=float(low),
                high=float(high),
                lesions=int(inside.sum()),
                confidence=float(sure[inside].mean()) if some else None,
                accuracy=float(right[inside].mean()) if some else None,
            )
        )
    return tuple(found)


def expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float | None:
    """Returns the mean difference of confidence and accuracy over lesions; None without any."""
    total = sum(each.lesions for each in bins)
    if not total:
        return None
    gaps = (
        each.lesions * abs(each.confidence - each.accuracy)
        for each in bins
        if each.confidence is not None and each.accuracy is not None
    )
    return sum(gaps) / total


def _nll(probabilities: Array, truth: npt.NDArray[np.integer]) -> float:
    own = probabilities[np.arange(len(truth)), truth]
    return float(-np.log(np.clip(own, _TINY, None)).mean())


def _error(probabilities: Array, truth: npt.NDArray[np.integer]) -> float | None:
    return expected_calibration_error(reliability(probabilities, truth))


def _check(probabilities: Array, truth: npt.NDArray[np.integer]) -> None:
    if probabilities.ndim != 2 or len(probabilities) != len(truth):
        raise ValueError(
            f"expected (lesions, classes) for {len(truth)} lesions, got {probabilities.shape}"
        )
    if len(truth) and not 0 <= truth.min() <= truth.max() < probabilities.shape[1]:
        raise ValueError(f"expected classes 0 to {probabilities.shape[1] - 1}")
