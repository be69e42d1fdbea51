import numpy as np
import pytest

from autoliver.planning import intensities
from autoliver.planning.intensities import collect, pooled_statistics

MOST = 1 << 22
NAMES = ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5")


def generator():
    return np.random.RandomState(1234)


def pooled(cases, *, draws, most_values=MOST):
    found = [collect(c, draws=draws, rng=generator(), most_values=most_values) for c in cases]
    return pooled_statistics(found)


def of_values(values):
    low, median, high = np.percentile(values, (0.5, 50, 99.5))
    return (values.mean(), median, values.std(), values.min(), values.max(), low, high)


def brute_force(cases, *, draws):
    """Draws every value, keeps them all and asks numpy."""
    drawn = np.concatenate([generator().choice(c, draws, replace=True) for c in cases])
    return of_values(drawn.astype(np.float64))


def whole(rng, count):
    return np.rint(rng.normal(-30, 90, count)).astype(np.float32)


def scaled(rng, count):
    return (np.rint(rng.normal(400, 90, count)) * np.float32(0.7331)).astype(np.float32)


def fractions(rng, count):
    return rng.gamma(2, 300, count).astype(np.float32)


@pytest.mark.parametrize("make", [whole, scaled, fractions])
@pytest.mark.parametrize("counts", [(1,), (7,), (1, 2), (400, 1200, 31, 1024, 1025)])
@pytest.mark.parametrize("draws", [1, 50, 20_011])
def test_statistics_are_those_of_all_values_drawn(make, counts, draws):
    rng = np.random.default_rng(len(counts))
    cases = [make(rng, count) + np.float32(50 * n) for n, count in enumerate(counts)]
    stats = pooled(cases, draws=draws)
    for name, expected in zip(NAMES, brute_force(cases, draws=draws), strict=True):
        assert getattr(stats, name) == pytest.approx(expected, rel=1e-9, abs=1e-6), name


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 70_000])
def test_voxels_are_drawn_in_chunks_as_all_at_once(monkeypatch, size):
    monkeypatch.setattr(intensities, "_CHUNK", 64)
    ours, theirs = generator(), generator()
    values = np.arange(size, dtype=np.float32)
    found = collect(values, draws=1001, rng=ours, most_values=MOST)
    expected = np.unique(theirs.choice(values, 1001), return_counts=True)
    np.testing.assert_array_equal(found.values, expected[0])
    np.testing.assert_array_equal(found.counts, expected[1])
    # The next channel goes on where this one stopped.
    assert ours.randint(1 << 30) == theirs.randint(1 << 30)


def test_too_many_values_are_thinned_evenly():
    rng = np.random.default_rng(6)
    voxels = np.concatenate([fractions(rng, 60_000), np.full(7_000, np.float32(123.0))])
    draws = 50_021
    kept = collect(voxels, draws=draws, rng=generator(), most_values=1000)
    assert kept.values.size <= 1000
    assert kept.counts.sum() == draws
    thin = pooled([voxels], draws=draws, most_values=1000)
    full = pooled([voxels], draws=draws)
    for name in ("mean", "std", "min", "max"):
        assert getattr(thin, name) == getattr(full, name)
    ordered = np.sort(generator().choice(voxels, draws))
    for value, share in ((thin.percentile_00_5, 0.005), (thin.median, 0.5)):
        rank = np.searchsorted(ordered, value) / draws
        assert abs(rank - share) <= 1 / 1000


def test_no_voxels_are_no_intensities():
    nothing = np.zeros(0, dtype=np.float32)
    assert collect(nothing, draws=10, rng=generator(), most_values=MOST) is None


@pytest.mark.parametrize("value", [-3.0, 0.25, 3e8, -5e6])
def test_one_value_has_no_spread(value):
    stats = pooled([np.full(10, value, dtype=np.float32)], draws=100)
    assert (stats.mean, stats.std, stats.median) == (value, 0, value)
