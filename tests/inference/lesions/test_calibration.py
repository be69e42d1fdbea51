"""Temperatures and reliability of lesion classes."""

from pathlib import Path

import numpy as np
import pytest

from autoliver.evaluation.picture import draw_reliability
from autoliver.inference.lesions.calibration import (
    calibrated,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def drawn(count: int, *, sharpened: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that were right before they were sharpened, and classes drawn from them."""
    rng = np.random.default_rng(seed)
    honest = rng.dirichlet((1.0, 1.0, 1.0), count)
    truth = np.array([rng.choice(3, p=row) for row in honest])
    return calibrated(honest, 1 / sharpened), truth


@pytest.mark.parametrize("sharpened", [0.5, 1.0, 2.0, 4.0])
def test_the_temperature_that_was_applied_is_found(sharpened: float) -> None:
    found = fit_temperature(*drawn(20_000, sharpened=sharpened))
    assert found.value == pytest.approx(sharpened, rel=0.05)
    assert found.nll_after <= found.nll_before
    assert found.why == ""


def test_the_minimum_is_that_of_a_fine_grid() -> None:
    probabilities, truth = drawn(200, sharpened=3.0)
    found = fit_temperature(probabilities, truth)

    def loss(temperature: float) -> float:
        own = calibrated(probabilities, temperature)[np.arange(200), truth]
        return -np.log(own).mean()

    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    best = min(grid, key=loss)
    assert found.value == pytest.approx(best, rel=2e-3)
    assert found.nll_after == pytest.approx(loss(best), abs=1e-6)
    assert fit_temperature(probabilities, truth) == found


def test_calibration_lowers_the_error_and_keeps_the_most_probable_class() -> None:
    probabilities, truth = drawn(5000, sharpened=3.0)
    found = calibrated(probabilities, fit_temperature(probabilities, truth).value)
    assert found.sum(axis=1) == pytest.approx(1.0)
    assert np.array_equal(found.argmax(axis=1), probabilities.argmax(axis=1))
    before, after = (
        expected_calibration_error(reliability(each, truth)) for each in (probabilities, found)
    )
    assert before > 0.1
    assert after < 0.03


def test_certain_probabilities_stay_finite() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0]] * 10)
    assert calibrated(probabilities, 2.0) == pytest.approx(probabilities, abs=1e-3)
    found = fit_temperature(probabilities, np.array([0, 1, 0, 0] * 5))
    assert np.isfinite([found.value, found.nll_before, found.nll_after]).all()


def test_what_is_always_right_ends_at_the_lowest_temperature_and_says_so() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8]] * 20)
    found = fit_temperature(probabilities, np.array([0, 1] * 20))
    assert found.value == pytest.approx(0.05, rel=0.01)
    assert found.why == "it may be 0.05 to 20"


@pytest.mark.parametrize(
    ("count", "truth", "why"),
    [
        (19, [0, 1], "it takes 20 lesions, found 19"),
        (0, [0, 1], "it takes 20 lesions, found 0"),
        (40, [1], "all lesions are of one class"),
    ],
)
def test_too_little_leaves_probabilities_as_they_are(count, truth, why) -> None:
    probabilities = np.full((count, 2), 0.5)
    found = fit_temperature(probabilities, np.resize(truth, count).astype(int))
    assert (found.value, found.lesions, found.why) == (1.0, count, why)
    assert calibrated(probabilities, found.value) is probabilities


def test_reliability_and_its_error_by_hand() -> None:
    probabilities = np.array([[0.6, 0.4], [0.55, 0.45], [0.1, 0.9], [0.0, 1.0]])
    bins = reliability(probabilities, np.array([0, 1, 1, 1]), bins=5)
    assert [each.lesions for each in bins] == [0, 0, 2, 0, 2]
    assert (bins[2].confidence, bins[2].accuracy) == (pytest.approx(0.575), 0.5)
    assert (bins[4].confidence, bins[4].accuracy) == (pytest.approx(0.95), 1.0)
    assert bins[0].accuracy is None
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.075 + 2 * 0.05) / 4)
    assert expected_calibration_error(reliability(np.zeros((0, 2)), np.zeros(0, int))) is None


def test_the_plot_is_a_small_picture(tmp_path: Path) -> None:
    probabilities, truth = drawn(100, sharpened=2.0)
    path = tmp_path / "reliability.png"
    bins = reliability(probabilities, truth)
    draw_reliability(path, {"before": bins, "after": bins})
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size < 60_000
    assert [file.name for file in tmp_path.iterdir()] == ["reliability.png"]


@pytest.mark.parametrize(("shape", "truth"), [((3, 2), [0, 1]), ((2, 2), [0, 2]), ((2,), [0, 1])])
def test_arrays_that_do_not_fit_are_refused(shape, truth) -> None:
    with pytest.raises(ValueError, match="expected"):
        reliability(np.full(shape, 0.5), np.array(truth))
