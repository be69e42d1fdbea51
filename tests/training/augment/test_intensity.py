import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from autoliver.training.augment.intensity import (
    INTENSITY,
    Draw,
    IntensityStep,
    apply_blur,
    apply_brightness,
    apply_contrast,
    apply_gamma,
    apply_low_resolution,
    apply_noise,
    default_steps,
)
from autoliver.training.augment.lines import blur_matrix

STEPS = {step.name: step for step in default_steps()}
SHAPES = [(3, 2, 9, 12, 10), (3, 2, 14, 11)]


def batch(shape: tuple[int, ...]) -> torch.Tensor:
    values = np.random.default_rng(3).normal(2.0, 3.0, shape)
    return torch.from_numpy(values.astype(np.float32))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def always(name: str) -> IntensityStep:
    return STEPS[name].replace(probability=1.0, channel_probability=1.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", list(INTENSITY))
def test_only_drawn_channels_change_and_the_same_state_gives_the_same(shape, name):
    sample, apply = INTENSITY[name]
    low, high = STEPS[name].strength
    # Up to 0.9 instead of 1, so that rounding the low resolution cannot give the full one.
    strength = (low, low + 0.8 * (high - low))
    step = STEPS[name].replace(probability=0.5, channel_probability=0.5, strength=strength)
    results = []
    for _ in range(2):
        image = batch(shape)
        draws = sample(step, shape, seeded(5))
        apply(image, draws)
        results.append(image)
    assert torch.equal(*results)
    assert torch.isfinite(results[0]).all()
    changed = {(draw.sample, draw.channel) for draw in draws}
    assert 0 < len(changed) < 6
    for place in np.ndindex(3, 2):
        assert torch.equal(results[0][place], batch(shape)[place]) == (place not in changed)


@pytest.mark.parametrize("name", list(INTENSITY))
def test_probabilities_and_ranges_are_those_of_the_step(name):
    step, trials = STEPS[name], 4000
    draws = INTENSITY[name][0](step, (trials, 2, 8, 8, 8), seeded())
    samples = {draw.sample for draw in draws}
    expected = step.probability * (1 - (1 - step.channel_probability) ** 2)
    assert len(samples) / trials == pytest.approx(expected, abs=0.02)
    assert len(draws) / trials == pytest.approx(
        2 * step.probability * step.channel_probability, abs=0.03
    )
    values = np.array([draw.values for draw in draws])
    low, high = step.strength
    assert values.min() >= low
    assert values.max() <= high
    assert values.min() < low + 0.05 * (high - low)
    assert values.max() > high - 0.05 * (high - low)


@pytest.mark.parametrize("name", ["brightness", "contrast", "gamma", "gamma_inverted"])
def test_factors_lie_below_one_as_often_as_above(name):
    draws = INTENSITY[name][0](always(name), (4000, 1, 4, 4), seeded())
    values = np.array([draw.values[0] for draw in draws])
    low, high = STEPS[name].strength
    assert (values < 1).mean() == pytest.approx(0.5, abs=0.03)
    assert values[values < 1].mean() == pytest.approx((low + 1) / 2, abs=0.01)
    assert values[values > 1].mean() == pytest.approx((high + 1) / 2, abs=0.02)


def test_noise_is_white_with_one_deviation_per_sample_and_independent_channels():
    shape = (3, 2, 40, 40, 40)
    draws = INTENSITY["noise"][0](always("noise"), shape, seeded(1))
    image = torch.zeros(shape)
    apply_noise(image, draws)
    for sample in range(3):
        (sigma,) = {draw.values[0] for draw in draws if draw.sample == sample}
        assert float(image[sample].std()) == pytest.approx(sigma, rel=0.02)
        assert float(image[sample].mean()) == pytest.approx(0, abs=0.02 * sigma)
        both = torch.corrcoef(image[sample].flatten(1))
        assert abs(float(both[0, 1])) < 0.02
    assert len({draw.values for draw in draws}) == 3


def blur_errors(shape, drawn, **reference):
    """The largest difference from scipy in float64, in roundings of the largest value."""
    image = batch(shape)
    expected, axes = image.numpy().astype(np.float64), len(shape) - 2
    rounding = np.finfo(np.float32).eps / 2 * np.abs(expected).max()
    for axis in range(2, len(shape)):
        expected = gaussian_filter1d(expected, axis=axis, **reference)
    apply_blur(image, [Draw(i, j, (drawn,) * axes) for i in range(3) for j in range(2)])
    return np.abs(image.numpy() - expected).max() / rounding


# Widths of nnU-Net 2.8.1: 3 up to sigma 0.58, 5 up to 0.91, then 7.
BLURS = [(0.5, 1), (0.55, 1), (0.6, 2), (0.9, 2), (0.97, 3)]


def blur_roundings(shape, radius):
    """How many roundings may add up, whatever the order of the sums, which the CPU decides.

    A sum of n products is off by at most n roundings, and its weights by n + 4: of the exponential
    (2, in the weight and in their sum), the sum (n - 1) and the quotient (1). This for each axis;
    on an AMD EPYC with AVX-512 at most a ninth of it is seen (2.6 of 30, 2.2 of 20).
    """
    return (len(shape) - 2) * (2 * (2 * radius + 1) + 4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sigma", "radius"), BLURS)
def test_blur_is_scipys_gaussian_with_mirrored_borders(sigma, radius, shape):
    found = blur_errors(shape, sigma, sigma=sigma, radius=radius, mode="mirror")
    assert found <= blur_roundings(shape, radius)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sigma", "radius"), BLURS)
@pytest.mark.parametrize(
    "wrong", [{"sigma": 1.001}, {"radius": 1}, {"radius": -1}, {"mode": "reflect"}]
)
def test_another_kernel_is_further_off_than_rounding(wrong, sigma, radius, shape):
    other = {
        "sigma": sigma * wrong.get("sigma", 1.0),
        "radius": radius + wrong.get("radius", 0),
        "mode": wrong.get("mode", "mirror"),
    }
    assert blur_errors(shape, sigma, **other) > 2 * blur_roundings(shape, radius)


def test_blur_has_a_sigma_per_axis():
    image = torch.zeros(1, 1, 9, 9, 9)
    image[0, 0, 4, 4, 4] = 1
    apply_blur(image, [Draw(0, 0, (0.5, 0.7, 1.0))])
    cube = image[0, 0].numpy()
    widths = [np.sqrt((cube.sum(others) * np.arange(-4, 5) ** 2).sum()) for others in
              ((1, 2), (0, 2), (0, 1))]  # fmt: skip
    assert widths[0] < widths[1] < widths[2]
    assert cube.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_constant_line_stays_constant_under_blur_however_short(size):
    assert torch.allclose(blur_matrix(1.0, size) @ torch.full((size,), 5.0), torch.tensor(5.0))


def test_brightness_multiplies():
    image = batch(SHAPES[0])
    apply_brightness(image, [Draw(1, 0, (1.2,))])
    assert torch.equal(image[1, 0], batch(SHAPES[0])[1, 0] * 1.2)


def test_contrast_by_hand():
    # Mean 4; distances -4, -2, 0, 6 times 1.5 are -6, -3, 0, 9: -2, 1, 4, 13, clipped to 0..10.
    image = torch.tensor([0.0, 2.0, 4.0, 10.0]).reshape(1, 1, 2, 2)
    apply_contrast(image, [Draw(0, 0, (1.5,))])
    assert image.flatten().tolist() == pytest.approx([0, 1, 4, 10], abs=1e-6)
    # Times 0.5: 2, 3, 4, 7.
    image = torch.tensor([0.0, 2.0, 4.0, 10.0]).reshape(1, 1, 2, 2)
    apply_contrast(image, [Draw(0, 0, (0.5,))])
    assert image.flatten().tolist() == pytest.approx([2, 3, 4, 7], abs=1e-6)


@pytest.mark.parametrize("gamma", [0.7, 1.4])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_equals_its_formula(gamma, inverted):
    image = batch((1, 1, 7, 6, 5))
    x = image.double().numpy() * (-1 if inverted else 1)
    y = ((x - x.min()) / (x.max() - x.min())) ** gamma
    y = (y - y.mean()) / y.std() * x.std() + x.mean()
    apply_gamma(image, [Draw(0, 0, (gamma,))], inverted=inverted)
    assert np.abs(image.numpy() - (-y if inverted else y)).max() < 5e-6


def test_gamma_by_hand():
    # 0, 1/2, 1 squared: 0, 1/4, 1, mean 5/12, to be moved to mean 1 and deviation 1.
    image = torch.tensor([0.0, 1.0, 2.0]).reshape(1, 1, 1, 3)
    apply_gamma(image, [Draw(0, 0, (2.0,))])
    raised = np.array([0, 0.25, 1])
    expected = (raised - 5 / 12) / raised.std(ddof=1) + 1
    assert image.flatten().tolist() == pytest.approx(list(expected), abs=1e-6)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_leaves_a_constant_image_alone(inverted):
    image = torch.full((1, 1, 4, 4), 3.0)
    apply_gamma(image, [Draw(0, 0, (1.3,))], inverted=inverted)
    assert torch.equal(image, torch.full((1, 1, 4, 4), 3.0))


def test_low_resolution_by_hand():
    # 8 voxels at half resolution: voxels 1, 3, 5, 7 are kept (nearest-exact), then interpolated.
    line = torch.tensor([9.0, 0.0, 9.0, 4.0, 9.0, 8.0, 9.0, 16.0])
    image = line.reshape(1, 1, 1, 8).repeat(1, 1, 2, 1)
    apply_low_resolution(image, [Draw(0, 0, (1.0, 0.5))])
    expected = [0, 1, 3, 5, 7, 10, 14, 16]
    assert image[0, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(image[0, 0, 0], image[0, 0, 1])


def test_low_resolution_leaves_skipped_axes_alone():
    step = always("low_resolution").replace(skip_axes=(0,))
    draws = INTENSITY["low_resolution"][0](step, (5, 1, 6, 12, 12), seeded())
    assert all(draw.values[0] == 1 and draw.values[1] == draw.values[2] < 1 for draw in draws)
    image = torch.zeros(5, 1, 6, 12, 12)
    image[:, :, 3] = torch.rand(12, 12, generator=seeded())
    apply_low_resolution(image, draws)
    assert image[:, :, [0, 1, 2, 4, 5]].abs().max() == 0
    assert image[:, :, 3].abs().max() > 0
