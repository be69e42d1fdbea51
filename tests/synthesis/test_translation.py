"""Translation between modalities: networks, losses' parts, and whole scans."""

import numpy as np
import pytest
import torch
from torch import nn

from autoliver.io.volume import Geometry
from autoliver.networks.build import build_network
from autoliver.networks.spec import TranslatorSpec
from autoliver.networks.translator import PatchDiscriminator
from autoliver.preprocessing.case import CaseProperties, Preprocessed, backward_image
from autoliver.synthesis.translation.apply import (
    fidelity_of,
    steadied,
    translate,
    whole_numbers,
)
from autoliver.synthesis.translation.networks import generator_spec, segmentor_spec
from autoliver.synthesis.translation.options import Range, TranslationOptions
from autoliver.synthesis.translation.state import Pool


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_networks_have_the_published_number_of_weights():
    """11.37 M of ResNet-9 and 2.76 M of the 70 x 70 PatchGAN (METHODS, paper 3)."""
    spec = generator_spec(TranslationOptions())
    assert count(build_network(spec, deep_supervision=False)) == 11_365_633
    judge = PatchDiscriminator(1, features=64, strides=((2, 2),) * 3)
    assert count(judge) == 2_762_689


def test_a_discriminator_judges_patches_of_70_pixels():
    judge = PatchDiscriminator(1, features=4, strides=((2, 2),) * 3)
    image = torch.zeros(1, 1, 256, 256, requires_grad=True)
    judged = judge(image)
    assert judged.shape == (1, 1, 30, 30)
    for module in judge.modules():  # an instance norm sees the whole image
        if isinstance(module, nn.InstanceNorm2d):
            module.forward = lambda x: x
    judge(image)[0, 0, 15, 15].backward()
    seen = torch.nonzero(image.grad[0, 0])
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


@pytest.mark.parametrize("strides", [((2, 2), (2, 2)), ((1, 2, 2), (1, 2, 2)), ((2, 2, 2),)])
def test_a_translator_keeps_the_size_and_the_limits(strides):
    spec = TranslatorSpec(
        in_channels=1, out_channels=2, features=4, blocks=1, strides=strides, outputs=(-1.0, 3.0)
    )
    network = build_network(spec, deep_supervision=True)
    nn.init.normal_(network.head.weight, std=10.0)
    image = torch.randn(2, 1, *(8 for _ in strides[0]))
    (made,) = network(image)
    assert made.shape == (2, 2, *image.shape[2:])
    assert -1 <= made.min() < -0.9
    assert 2.9 < made.max() <= 3
    (free,) = build_network(spec.replace(outputs=None), deep_supervision=True)(image)
    assert free.shape == made.shape
    assert {name.split(".")[0] for name in network.state_dict()} == {
        *("encoder", "blocks", "decoder", "head")
    }
    for name in network.state_dict():
        spec.role(name)
        assert spec.strides_to(name)


def test_logits_of_the_segmentor_have_no_limits():
    """With a tanh no class of two could exceed a probability of 0.88 (METHODS, paper 3)."""
    spec = segmentor_spec(TranslationOptions(features=4, blocks=1), 3)
    assert spec.outputs is None
    assert spec.out_channels == 3


def test_a_range_leads_there_and_back():
    values = Range(low=-0.5, high=3.5)
    image = torch.tensor([-0.5, 1.5, 3.5, 9.0, -7.0])
    squeezed = values.squeezed(image)
    assert squeezed.tolist() == [-1, 0, 1, 1, -1]
    assert values.normalised(squeezed).tolist() == [-0.5, 1.5, 3.5, 3.5, -0.5]


def test_a_pool_shows_half_of_the_images_again():
    pool, rng = Pool(10), np.random.default_rng(0)
    shown = [pool.exchange(torch.full((4, 1, 1, 1), float(n)), rng) for n in range(200)]
    assert len(pool.images) == 10
    assert [batch.unique().item() for batch in shown[:2]] == [0, 1]  # it is filled first
    again = np.mean([(batch != n).float().mean() for n, batch in enumerate(shown) if n > 10])
    assert again == pytest.approx(0.5, abs=0.05)
    assert Pool(0).exchange(torch.ones(2, 1, 1, 1), rng).shape == (2, 1, 1, 1)


def test_the_learning_rate_is_constant_and_then_falls_to_zero():
    options = TranslationOptions(epochs=4, iterations=10, lr=1.0)
    rates = [options.rate(step) for step in range(41)]
    assert rates[:21] == [1.0] * 21
    np.testing.assert_allclose(np.diff(rates[20:]), -1 / 20)
    assert rates[-1] == 0


def properties(shape, network_shape, network_mm: float, box) -> CaseProperties:
    return CaseProperties(
        name="a",
        modality="CT",
        geometry=Geometry(shape_zyx=shape, spacing_mm=(3.0, 1.0, 1.0)),
        transpose_forward=(0, 1, 2),
        box=box,
        shape_zyx=network_shape,
        spacing_mm=(3.0, network_mm, network_mm),
    )


def test_an_image_comes_back_to_the_grid_it_was_taken_from():
    """A linear ramp is the same ramp on any grid."""
    case = properties((4, 30, 44), (4, 12, 20), 2.0, ((0, 4), (2, 26), (0, 40)))
    y, x = np.mgrid[:12, :20] * 2.0 + 0.5  # centres of the coarse voxels, in fine ones
    image = np.broadcast_to(y + 10 * x, (1, 4, 12, 20)).astype(np.float32)
    back = backward_image(image, case, fill=-5.0)
    assert back.shape == (1, 4, 30, 44)
    fine_y, fine_x = np.mgrid[:24, :40].astype(float)
    inner = (slice(None), slice(None), slice(3, 25), slice(1, 39))
    expected = np.broadcast_to(fine_y + 10 * fine_x, (1, 4, 24, 40))
    np.testing.assert_allclose(back[inner], expected[:, :, 1:23, 1:39], atol=1e-3)
    assert (back[:, :, 26:] == -5).all()
    assert (back[..., 40:] == -5).all()


def test_slices_of_any_size_are_translated():
    case = properties((9, 10, 7), (9, 10, 7), 1.0, ((0, 9), (0, 10), (0, 7)))
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 1, 10, 7)).astype(np.float32)
    image = np.repeat(base, 9, axis=1)
    done = Preprocessed(image=image, label=None, properties=case)
    made = translate(nn.Identity(), done, Range(low=-5.0, high=5.0))
    np.testing.assert_allclose(made, image / 5, atol=1e-5)


def test_the_brightness_of_slices_does_not_jump():
    rng = np.random.default_rng(0)
    image = -0.2 + 0.05 * rng.normal(size=(1, 30, 16, 16)).astype(np.float32)
    image += 0.3 * (np.arange(30) % 2).reshape(1, 30, 1, 1)
    means = (each.mean(axis=(0, 2, 3)) for each in (image, steadied(image)))
    before, after = (np.abs(np.diff(mean)).mean() for mean in means)
    assert after < before / 5
    assert whole_numbers(np.array([-2.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0, 0, 500, 1000, 1000]


def test_the_shape_of_the_body_is_not_taken_for_brightness():
    image = np.full((1, 12, 32, 32), -1.0, np.float32)
    for z in range(2, 12):  # it begins with air, and the body grows
        image[0, z, 16 - z : 16 + z, 16 - z : 16 + z] = 0.5
    np.testing.assert_allclose(steadied(image), image, atol=1e-6)


def test_fidelity_is_the_dice_of_labels_slice_by_slice():
    label, found = np.zeros((3, 4, 4), int), np.zeros((3, 4, 4), int)
    label[0, :2] = 1  # 8 voxels, of which 4 are found
    found[0, :1] = 7
    label[1, 0] = found[1, 0] = 2
    found[1, 0] = 8
    judged = fidelity_of("a", label, found, {"liver": ((1,), (7,)), "spleen": ((2,), (8,))})
    assert judged.dice == {"liver": pytest.approx(2 / 3), "spleen": 1.0}
    assert judged.slices == (pytest.approx(2 / 3), 1.0, None)
    assert judged.mean == pytest.approx(5 / 6)


def test_labels_that_are_not_there_and_ignored_voxels_do_not_count():
    label, found = np.zeros((3, 4, 4), int), np.zeros((3, 4, 4), int)
    label[0] = found[0] = 1
    found[0, 0, 0], found[1, 0, 0] = 2, 1  # a tumour in a case without any, liver in an empty slice
    label[2, :2], label[2, 2:], found[2] = 1, 9, 1
    pairs = {"liver": ((1,), (1,)), "tumour": ((2,), (2,))}
    judged = fidelity_of("a", label, found, pairs, ignore=9)
    assert judged.dice == {"liver": pytest.approx(2 * 23 / (24 + 24)), "tumour": None}
    assert judged.slices == (pytest.approx(2 * 15 / 31), None, 1.0)
    assert judged.mean == judged.dice["liver"]


def test_a_case_without_labels_has_no_fidelity():
    judged = fidelity_of("a", np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), {"liver": ((1,), (1,))})
    assert judged.dice == {"liver": None}
    assert judged.mean == 0
