"""Means with intervals from resampled patients."""

import math
import statistics

import numpy as np
import pytest

from autoliver.evaluation.bootstrap import RESAMPLES, Statistic, interval, resampled, statistic


def test_patients_are_drawn_whole_and_as_many_as_there_are() -> None:
    patients = ["b", "a", "b", "c"]
    weights = resampled(patients)
    assert weights is not None
    assert weights.shape == (RESAMPLES, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(weights, axis=0)) == 10  # ways to draw three of three


def test_the_same_patients_give_the_same_draws_in_any_order() -> None:
    one, other = resampled(["a", "b", "c"]), resampled(["c", "a", "b"])
    assert one is not None
    assert other is not None
    assert (one[:, [2, 0, 1]] == other).all()


@pytest.mark.parametrize("patients", [[], ["a"], ["a", "a"], ["a", ""], ["", ""]])
def test_without_two_known_patients_there_are_no_draws(patients: list[str]) -> None:
    assert resampled(patients) is None


def test_the_interval_of_a_mean_is_near_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = statistic([(v,) for v in values], resampled([str(i) for i in range(400)]))
    assert found is not None
    assert found.interval is not None
    half = 1.96 * found.sd / math.sqrt(400)
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), abs=0.02)


def test_a_mean_over_lesions_is_resampled_by_patient() -> None:
    # Two patients: each draw has one of them twice or both.
    weights = resampled(["a", "a", "b"])
    found = statistic([[1.0, 2.0], [], [6.0]], weights)
    means = (1.5, 3.0, 6.0)
    assert found == Statistic(
        mean=3.0, sd=statistics.stdev([1, 2, 6]), n=3, interval=(min(means), max(means))
    )


def test_what_is_undefined_has_no_interval() -> None:
    weights = resampled(["a", "b"])
    assert statistic([[], []], weights) is None
    assert statistic([[2.0], []], None) == Statistic(mean=2.0, sd=None, n=1)
    assert interval(np.array([np.nan, np.nan])) is None
    assert interval(np.array([1.0, np.nan, 1.0])) == (1.0, 1.0)
