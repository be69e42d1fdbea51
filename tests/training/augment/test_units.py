"""Augmentation does the same to an image whatever its unit is."""

import pytest
import torch

from autoliver.training.augment.appearance import ChosenSamples, apply_bezier
from autoliver.training.augment.intensity import Draw, apply_gamma
from autoliver.training.augment.moments import normalise_inside, restore_moments
from autoliver.training.augment.synth import class_texture, split_background

SCALES = (1e-15, 1e-9, 1e-4, 1.0, 1e6, 1e15)


def image() -> torch.Tensor:
    return torch.randn(1, 1, 8, 9, 10, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma(scale: float, inverted: bool) -> None:
    plain, scaled = image(), image() * scale
    for each in (plain, scaled):
        apply_gamma(each, [Draw(0, 0, (0.8,))], inverted=inverted)
    torch.testing.assert_close(scaled / scale, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [*SCALES, 1e-30, 1e25, 1e30])
def test_normalisation_of_the_inside(scale: float) -> None:
    inside = torch.rand(8, 9, 10, generator=torch.Generator().manual_seed(4)) < 0.7
    plain, scaled = image()[0], image()[0] * scale
    for each in (plain, scaled):
        normalise_inside(each, inside)
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-5)
    assert float(scaled[0][inside].std(correction=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 1000.1, 1e25])
def test_a_constant_inside_stays_flat(value: float) -> None:
    flat = torch.full((1, 8, 9, 10), value)
    normalise_inside(flat, torch.ones(8, 9, 10, dtype=torch.bool))
    assert float(flat.abs().max()) < 0.01


@pytest.mark.parametrize("scale", SCALES)
def test_moments_textures_curves_and_parts(scale: float) -> None:
    before = image()
    changed = before.pow(3)
    scaled = changed * scale
    restore_moments(changed, before)
    restore_moments(scaled, before)
    torch.testing.assert_close(scaled, changed, rtol=1e-4, atol=1e-4)

    classes = (before[0, 0] > 0).long()
    textures = [class_texture(before[0, 0] * s, classes, count=2) for s in (1.0, scale)]
    torch.testing.assert_close(*textures, rtol=1e-4, atol=1e-4)

    label = torch.zeros(8, 9, 10, dtype=torch.int64)
    parts = [split_background(before[0, 0] * s, label, parts=4) for s in (1.0, scale)]
    assert float((parts[0] == parts[1]).float().mean()) > 0.99

    curves = [
        apply_bezier(ChosenSamples(before * s, label[None], (torch.Generator().manual_seed(5),)))
        for s in (1.0, scale)
    ]
    torch.testing.assert_close(*curves, rtol=1e-3, atol=1e-3)
