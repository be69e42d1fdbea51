"""The body without labels, and what is measured in it, against scipy and brute force."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from autoliver.synthesis.translation.apply import Fidelity, beside_real, whole_numbers
from autoliver.synthesis.translation.body import (
    DISTANCES_MM,
    RealImages,
    body_mask,
    grey_distance,
    jump,
    jumps_by_distance,
    real_images,
    slices_with_body,
)


def cylinder(*, first: int = 0, end: int = 12, dark: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A body of 30 x 40 pixels in air with noise, and where it is; half of it nearly dark."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    inside = ((y - 20) / 15) ** 2 + ((x - 24) / 20) ** 2 < 1
    body = np.zeros((12, 40, 48), bool)
    body[first:end] = inside
    image = 4 * np.abs(rng.normal(size=body.shape))
    image[body] = 300 + 20 * rng.normal(size=body.sum())
    if dark:
        part = body & (x > 24)
        image[part] = 90 + 5 * rng.normal(size=part.sum())
    return image, body


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("offset", [0.0, -1000.0])
def test_the_body_is_found_with_its_dark_parts(dark: bool, offset: float) -> None:
    image, body = cylinder(dark=dark)
    found = body_mask(image + offset)
    assert np.mean(found != body) < 0.005


def test_holes_and_things_beside_the_body() -> None:
    image, body = cylinder()
    image[:, 18:24, 20:26] = 0  # gas
    image[:, 38:, :] = 400  # a table
    assert np.mean(body_mask(image) != body) < 0.005
    assert not body_mask(np.full((2, 3, 4), 7.0)).any()


def test_slices_with_enough_body_those_in_the_middle() -> None:
    _, body = cylinder(first=2, end=11)
    body[10, 21:] = False  # a half is enough, less is not
    body[2, 18:] = False
    assert slices_with_body(body) == (3, 11)
    assert slices_with_body(body, most=20) == (3, 11)
    assert slices_with_body(body, most=4) == (5, 9)
    assert slices_with_body(np.zeros_like(body)) is None


def test_jumps_are_those_of_a_loop_over_voxels() -> None:
    image, body = cylinder()
    body[3, :22] = False
    for apart in (1, 3):
        steps = [
            abs(image[z + apart, y, x] - image[z, y, x])
            for z, y, x in zip(*np.nonzero(body[:-apart]), strict=True)
            if body[z + apart, y, x]
        ]
        expected = np.mean(steps) / image[body].std()
        assert jump(image, body, apart=apart) == pytest.approx(expected, rel=1e-4)
    assert jump(image[:1], body[:1]) is None


def test_jumps_grow_with_the_distance() -> None:
    """Slices that get brighter by the same step: the jump is in proportion to the distance."""
    y = np.linspace(0, 1, 20)
    image = np.arange(12.0)[:, None, None] + np.broadcast_to(y, (12, 20, 20))
    body = np.ones(image.shape, bool)
    found = jumps_by_distance(image, body, 2.0)
    assert found is not None
    per_mm = 0.5 / image.std()
    expected = [per_mm * max(2.0, mm) for mm in DISTANCES_MM]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    real = real_images([(image, body, 2.0)])
    assert real.jump_at(5.0) == pytest.approx(per_mm * 5.0, rel=1e-5)
    assert real.jump_at(0.5) == pytest.approx(per_mm * 2.0, rel=1e-5)


def test_the_distance_of_grey_values_is_that_of_wasserstein() -> None:
    rng = np.random.default_rng(1)
    scans = [np.clip(rng.normal(m, 0.3, (3, 40, 50)), -1, 1) for m in (-0.2, 0.1, 0.4)]
    body = np.ones((3, 40, 50), bool)
    real = real_images([(scan, body, 5.0) for scan in scans])
    pooled = np.concatenate([scan.ravel() for scan in scans])
    for mean, width in ((0.1, 0.4), (-0.5, 0.2), (0.6, 0.05)):
        values = np.clip(rng.normal(mean, width, 5000), -1, 1)
        expected = wasserstein_distance(values, pooled) / pooled.std()
        assert grey_distance(values, real.grey) == pytest.approx(expected, rel=0.03, abs=0.005)
    assert grey_distance(pooled, real.grey) < 0.005


def test_a_translated_image_is_measured_in_its_body_beside_real_ones() -> None:
    image, body = cylinder(dark=False)
    squeezed = np.where(body, (image - 300) / 200, -1.0)
    numbers = whole_numbers(squeezed)
    real = RealImages(
        jumps=tuple(0.1 * mm for mm in DISTANCES_MM), grey=tuple(np.linspace(-0.5, 0.5, 100))
    )
    judged = Fidelity(case="a", dice={}, slices=tuple([None] * 6 + [0.9] * 6))
    found = beside_real(judged, numbers, real, spacing_mm=5.0)
    assert found.jumps == pytest.approx(jump(numbers, body), rel=0.02)
    assert found.real_jumps == pytest.approx(0.5)
    values = numbers[6:][body[6:]] / 500 - 1
    uniform = np.linspace(-0.5, 0.5, 100_000)
    expected = wasserstein_distance(values, uniform) / uniform.std()
    assert found.grey == pytest.approx(expected, rel=0.03)
