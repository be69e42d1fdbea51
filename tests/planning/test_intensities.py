import numpy as np
import pytest

from autoliver.planning.intensities import collect, pooled_statistics

MOST = 1 << 22


def brute_force(cases, share):
    """The weighted percentile by its definition, with fractions of the cases' voxels as weights."""
    weighted = sorted((float(v), 1 / (len(case) * len(cases))) for case in cases for v in case)
    reached = 0.0
    for index, (value, weight) in enumerate(weighted):
        reached += weight
        if reached > share + 1e-12:
            return value
        if abs(reached - share) <= 1e-12:
            return (value + weighted[index + 1][0]) / 2
    return weighted[-1][0]


def pooled(cases, most_values=MOST):
    return pooled_statistics(
        [collect(c.astype(np.float32), most_values=most_values) for c in cases]
    )


def whole(rng, count):
    return np.rint(rng.normal(-30, 90, count))


def scaled(rng, count):
    return (np.rint(rng.normal(400, 90, count)) * np.float32(0.7331)).astype(np.float32)


def fractions(rng, count):
    return rng.gamma(2, 300, count).astype(np.float32)


@pytest.mark.parametrize("draw", [whole, scaled, fractions])
@pytest.mark.parametrize("counts", [(7,), (1, 2), (400, 1200, 31, 1000)])
def test_statistics_weigh_every_case_the_same(draw, counts):
    rng = np.random.default_rng(len(counts))
    cases = [draw(rng, count) + 50 * n for n, count in enumerate(counts)]
    stats = pooled(cases)
    values = np.concatenate(cases).astype(np.float32).astype(np.float64)
    weights = np.concatenate([np.full(len(c), 1 / len(c)) for c in cases])
    mean = np.average(values, weights=weights)
    assert stats.mean == pytest.approx(mean, rel=1e-6)
    assert stats.std == pytest.approx(np.average((values - mean) ** 2, weights=weights) ** 0.5)
    assert (stats.min, stats.max) == (values.min(), values.max())
    singles = [c.astype(np.float32) for c in cases]
    assert stats.percentile_00_5 == brute_force(singles, 0.005)
    assert stats.median == brute_force(singles, 0.5)
    assert stats.percentile_99_5 == brute_force(singles, 0.995)


def test_the_median_of_two_halves_lies_between_them():
    assert pooled([np.array([1.0, 2.0])]).median == 1.5
    assert pooled([np.array([1.0, 1.0, 1.0]), np.array([4.0])]).median == 2.5
    assert pooled([np.array([3.0])]).median == 3.0


def test_drawing_as_nnunet_does_tends_to_these_numbers():
    rng = np.random.default_rng(5)
    cases = [whole(rng, 900), whole(rng, 40_000) * 1.5, fractions(rng, 200_000)]
    stats = pooled(cases)
    drawn = np.concatenate([rng.choice(c, 1_000_000, replace=True) for c in cases])
    error = 5 * stats.std / len(drawn) ** 0.5
    assert stats.mean == pytest.approx(drawn.mean(), abs=error)
    assert stats.std == pytest.approx(drawn.std(), abs=2 * error)
    low, median, high = np.percentile(drawn, (0.5, 50, 99.5))
    assert stats.median == pytest.approx(median, abs=0.005 * stats.std)
    assert stats.percentile_00_5 == pytest.approx(low, abs=0.02 * stats.std)
    assert stats.percentile_99_5 == pytest.approx(high, abs=0.02 * stats.std)


def test_too_many_values_are_thinned_evenly():
    rng = np.random.default_rng(6)
    voxels = np.concatenate([fractions(rng, 60_000), np.full(7_000, 123.0)])
    kept = collect(voxels.astype(np.float32), most_values=1000)
    assert kept is not None
    assert kept.values.size <= 1000
    assert kept.counts.sum() == 1000
    thin, full = pooled([voxels], most_values=1000), pooled([voxels])
    for name in ("mean", "std", "min", "max"):
        assert getattr(thin, name) == getattr(full, name)
    ordered = np.sort(voxels)
    for value, share in ((thin.percentile_00_5, 0.005), (thin.median, 0.5)):
        rank = np.searchsorted(ordered, value) / len(ordered)
        assert abs(rank - share) <= 1 / 1000


def test_no_voxels_are_no_intensities():
    assert collect(np.zeros(0, dtype=np.float32), most_values=MOST) is None


@pytest.mark.parametrize("value", [-3.0, 0.25, 3e8, -5e6])
def test_one_value_has_no_spread(value):
    stats = pooled([np.full(10, value)])
    assert (stats.mean, stats.std, stats.median) == (value, 0, value)
