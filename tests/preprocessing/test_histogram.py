"""Values that are matched to a histogram, against scikit-image and by their order."""

import numpy as np
import pytest
from skimage.exposure import match_histograms

from autoliver.errors import DatasetError
from autoliver.preprocessing.histogram import (
    histogram_of,
    histogram_of_parts,
    matched,
    mean_histogram,
)

SHAPE = (10, 40, 40)
EVERYWHERE = np.ones(SHAPE, bool)


def scan(seed: int, *, air: float, scale: float, power: float = 1.0) -> np.ndarray:
    """A body of smoothly distributed values in air."""
    rng = np.random.default_rng(seed)
    body = np.zeros(SHAPE, bool)
    body[1:9, 8:32, 6:34] = True
    values = np.where(body, 0.2 + 0.8 * rng.beta(2, 3, SHAPE) ** power, 0.02 * rng.random(SHAPE))
    return (air + scale * values).astype(np.float32)


def body_of(channel: np.ndarray) -> np.ndarray:
    return channel > channel.min() + 0.1 * (channel.max() - channel.min())


@pytest.mark.parametrize("scale", [1.0, 1700.0, 1e-3])
def test_the_body_gets_the_wanted_distribution(scale: float) -> None:
    source = scan(0, air=-1.5, scale=3.0)
    other = scan(1, air=0.0, scale=scale, power=2.5)
    wanted = histogram_of(source, EVERYWHERE)
    found = matched(other[None], EVERYWHERE, [wanted], where="a")[0]
    body = body_of(other)
    expected = match_histograms(other[body], source[body_of(source)])
    np.testing.assert_allclose(found[body], expected, atol=0.06)
    assert set(found[~body].tolist()) == {np.float32(wanted.air)}
    assert wanted.air == pytest.approx(np.median(source[~body_of(source)]), abs=1e-6)
    # The order of the values is kept.
    order = np.argsort(other[body], kind="stable")
    assert (np.diff(found[body][order]) >= -1e-6).all()


def test_an_image_that_is_one_of_the_sources_stays_as_it_is() -> None:
    source = scan(0, air=-1.5, scale=3.0)
    own = histogram_of(source, EVERYWHERE)
    found = matched(source[None], EVERYWHERE, [own], where="a")[0]
    body = body_of(source)
    np.testing.assert_allclose(found[body], source[body], atol=0.02)


def test_what_is_outside_becomes_air_and_does_not_count() -> None:
    source, other = scan(0, air=-1.5, scale=3.0), scan(1, air=0.0, scale=900.0)
    inside = EVERYWHERE.copy()
    inside[:, :, -6:] = False
    other[~inside] = 1e6
    wanted = histogram_of(source, EVERYWHERE)
    found = matched(other[None], inside, [wanted], where="a")[0]
    assert (found[~inside] == np.float32(wanted.air)).all()
    assert np.median(found[inside & (found > wanted.air)]) == pytest.approx(
        wanted.quantiles[64], abs=0.05
    )


def test_histograms_are_averaged_quantile_by_quantile() -> None:
    one, two = (histogram_of(scan(n, air=n, scale=1.0), EVERYWHERE) for n in (0, 4))
    mean = mean_histogram([one, two])
    np.testing.assert_allclose(mean.quantiles, (np.add(one.quantiles, two.quantiles)) / 2)
    assert mean.air == pytest.approx((one.air + two.air) / 2)


@pytest.mark.parametrize("value", [0.0, 7.0, -1000.0])
def test_an_image_of_one_value_is_refused(value: float) -> None:
    wanted = histogram_of(scan(0, air=0.0, scale=1.0), EVERYWHERE)
    flat = np.full((1, *SHAPE), value, np.float32)
    with pytest.raises(DatasetError, match="case_3: channel 0 has the value"):
        matched(flat, EVERYWHERE, [wanted], where="case_3")


@pytest.mark.parametrize("number", [1, 2, 5, 1000, 3407])
@pytest.mark.parametrize("air", [-1000.0, 0.0])
def test_what_comes_in_parts_has_the_quantiles_of_the_whole(number: int, air: float) -> None:
    rng = np.random.default_rng(number)
    values = rng.normal(50, 20, (number, 2, 3)).astype(np.float32)
    values[: number // 3] = air
    inside = rng.random(values.shape) > 0.2
    inside[0, 0, 0] = True
    kept = values[inside]
    parts = ((values[z : z + 7], inside[z : z + 7]) for z in range(0, number, 7))
    found = histogram_of_parts(parts, len(kept))
    low, high = np.percentile(kept, [0.5, 99.0])
    limit = float(low + 0.05 * (high - low))
    body = kept[kept > limit] if (kept > limit).any() else kept
    wanted = np.quantile(body.astype(np.float64), np.linspace(0, 1, 129))
    assert found.quantiles == tuple(wanted.tolist())
    assert found == histogram_of(values, inside)
    assert found.air == float(np.median(kept[kept <= limit]))
