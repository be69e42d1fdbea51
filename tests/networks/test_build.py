import math

import pytest
import torch
from torch import nn

from autoliver.errors import ModelError
from autoliver.networks.blocks import ConvBlock, ResidualBlock
from autoliver.networks.build import build_network, build_without_weights
from autoliver.networks.spec import ResidualUNetSpec, UNetSpec

torch.set_num_threads(1)

FIELDS = {
    "in_channels": 2,
    "out_channels": 3,
    "features": (4, 6, 8),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    "blocks_encoder": (2, 1, 2),
    "blocks_decoder": (2, 1),
}
PLAIN, RESIDUAL = UNetSpec(**FIELDS), ResidualUNetSpec(**FIELDS)


@pytest.mark.parametrize("spec", [PLAIN, RESIDUAL])
def test_outputs_have_the_shape_of_their_level_and_full_resolution_comes_first(spec):
    network = build_network(spec, deep_supervision=True)
    image = torch.randn(2, 2, 4, 8, 12)
    shapes = [tuple(logits.shape) for logits in network(image)]
    assert shapes == [(2, 3, 4, 8, 12), (2, 3, 4, 4, 6)]
    full = network(image)[0]
    network.deep_supervision = False
    torch.testing.assert_close(network(image), full, rtol=0, atol=0)


def test_2d():
    spec = UNetSpec(
        in_channels=1,
        out_channels=2,
        features=(4, 8),
        strides=((1, 1), (2, 2)),
        kernels=((3, 3), (3, 3)),
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
    )
    assert spec.dimension == 2
    network = build_network(spec, deep_supervision=False)
    assert network(torch.randn(1, 1, 8, 6)).shape == (1, 2, 8, 6)


@pytest.mark.parametrize("spec", [PLAIN, RESIDUAL])
def test_all_weights_exist_and_those_in_use_learn(spec):
    network = build_network(spec, deep_supervision=True)
    sum(logits.square().mean() for logits in network(torch.randn(1, 2, 4, 8, 8))).backward()
    assert all(p.grad is not None for p in network.parameters())
    off = build_network(spec, deep_supervision=False)
    assert off.state_dict().keys() == network.state_dict().keys()


def test_convolutions_start_normal_for_leaky_relu_with_zero_bias():
    spec = PLAIN.replace(features=(16, 32, 64))
    network = build_network(spec, deep_supervision=False)
    convolution = network.encoder[2][1].conv
    gain = math.sqrt(2 / (1 + 0.01**2))
    assert convolution.weight.std().item() == pytest.approx(gain / math.sqrt(64 * 27), rel=0.02)
    # torch counts the second axis of a transposed convolution's weight as its input.
    up = network.up[1]
    assert up.weight.std().item() == pytest.approx(gain / math.sqrt(32 * 8), rel=0.03)
    assert not convolution.bias.any()
    assert not up.bias.any()
    assert not network.heads[0].bias.any()


def test_a_residual_block_starts_as_its_shortcut():
    network = build_network(RESIDUAL, deep_supervision=False)
    block = next(m for m in network.encoder[0] if isinstance(m, ResidualBlock))
    x = torch.randn(1, 4, 4, 8, 8)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(x, 0.01))


def test_the_shortcut_averages_what_the_stride_skips():
    block = ResidualBlock(1, 1, kernel=(3, 3), stride=(2, 2))
    nn.init.zeros_(block.second.norm.weight)
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]]).repeat(1, 1, 2, 2)
    torch.testing.assert_close(block(x), torch.full((1, 1, 2, 2), 4.0))


def test_a_block_normalises_each_image_and_channel_on_its_own():
    block = ConvBlock(1, 2, kernel=(3, 3), activate=False)
    y = block(torch.randn(3, 1, 16, 16) * 50 + 7)
    torch.testing.assert_close(y.mean((2, 3)), torch.zeros(3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var((2, 3), correction=0), torch.ones(3, 2), atol=1e-3, rtol=0)


def test_a_generator_decides_the_weights():
    first, second, other = (
        build_network(
            RESIDUAL, deep_supervision=False, generator=torch.Generator().manual_seed(seed)
        ).state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


@pytest.mark.parametrize(
    ("network", "encoder", "decoder", "expected"),
    # Counted on the networks that nnU-Net 2.8.1 builds.
    [
        (UNetSpec, (2,) * 6, (2,) * 5, 31_196_399),
        (ResidualUNetSpec, (1, 3, 4, 6, 6, 6), (1,) * 5, 102_350_575),
    ],
)
def test_parameter_count_of_a_usual_plan_is_that_of_nnunet(network, encoder, decoder, expected):
    spec = network(
        in_channels=1,
        out_channels=3,
        features=(32, 64, 128, 256, 320, 320),
        strides=((1, 1, 1), *[(2, 2, 2)] * 5),
        kernels=((3, 3, 3),) * 6,
        blocks_encoder=encoder,
        blocks_decoder=decoder,
    )
    network = build_without_weights(spec, deep_supervision=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"features": (4,)}, "features: found 1 stage, expected at least 2"),
        ({"kernels": ((3, 3, 3),) * 2}, "kernels: found 2 entries, expected 3"),
        ({"blocks_decoder": (1, 1, 1)}, "blocks_decoder: found 3 entries, expected 2"),
        ({"strides": ((1,),) * 3}, "strides: found 1 axis, expected 2 or 3"),
        ({"kernels": ((3, 3, 3), (3, 3), (3, 3, 3))}, r"kernels\[1\]: found 2 axes, expected 3"),
        ({"kernels": ((3, 3, 3), (2, 3, 3), (3, 3, 3))}, r"kernels\[1\]: found \[2, 3, 3\]"),
        ({"strides": ((2, 1, 1), (1, 2, 2), (2, 2, 2))}, r"strides\[0\]: found \[2, 1, 1\]"),
        ({"strides": ((1, 1, 1), (0, 2, 2), (2, 2, 2))}, r"strides\[1\]: found 0"),
        ({"blocks_encoder": (2, 0, 1)}, "blocks_encoder: found 0, expected 1 or more"),
        ({"out_channels": 0}, "out_channels: found 0, expected 1 or more"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes, problem):
    with pytest.raises(ModelError, match=problem):
        build_network(PLAIN.replace(**changes), deep_supervision=False)
