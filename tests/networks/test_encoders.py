"""EfficientNets and ResNets as encoders: sizes and names as published, strides as planned."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from autoliver.networks.blocks import DropPath
from autoliver.networks.build import initialise
from autoliver.networks.efficientnet import EfficientNet
from autoliver.networks.encoders import (
    ENCODERS,
    LEVELS,
    Spans,
    Strides,
    full_spans,
    published_strides,
)
from autoliver.networks.resnet import ResNet


def encoder(
    name: str,
    *,
    dimension: int = 2,
    strides: Strides = (),
    spans: Spans = (),
    drop_path: float = 0.0,
    in_channels: int = 3,
) -> nn.Module:
    made = EfficientNet if ENCODERS[name].family == "efficientnet" else ResNet
    torch.manual_seed(0)
    network = made(
        name,
        in_channels,
        strides=strides or published_strides(dimension),
        spans=spans or full_spans(dimension),
        drop_path=drop_path,
    )
    initialise(network)  # torch's own weights let EfficientNet's features vanish
    return network


# Published numbers of parameters with the classification head, and those of the head: the last
# layer's weights and biases, and EfficientNet's last convolution with its norm.
@pytest.mark.parametrize(
    ("name", "whole", "head"),
    [
        ("efficientnet_b0", 5_288_548, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        ("efficientnet_b4", 19_341_616, 448 * 1792 + 2 * 1792 + 1792 * 1000 + 1000),
        ("efficientnet_lite0", 4_652_008, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        ("resnet18", 11_689_512, 512 * 1000 + 1000),
        ("resnet34", 21_797_672, 512 * 1000 + 1000),
        ("resnet50", 25_557_032, 2048 * 1000 + 1000),
    ],
)
def test_parameters_are_as_many_as_published(name: str, whole: int, head: int) -> None:
    found = sum(parameter.numel() for parameter in encoder(name).parameters())
    assert found == whole - head


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_levels_have_the_features_of_the_table_at_the_published_strides(
    name: str, dimension: int
) -> None:
    with torch.device("meta"):
        levels = encoder(name, dimension=dimension)(torch.zeros(1, 3, *(64,) * dimension))
    assert [level.shape[1] for level in levels] == list(ENCODERS[name].features)
    assert [level.shape[2:] for level in levels] == [(n,) * dimension for n in (32, 16, 8, 4, 2)]


ANISOTROPIC = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 1))
THIN = ((False, True, True), (False, True, True), *((True, True, True),) * 3)


@pytest.mark.parametrize("name", ENCODERS)
def test_strides_and_spans_follow_the_plan(name: str) -> None:
    with torch.device("meta"):
        network = encoder(name, strides=ANISOTROPIC, spans=THIN)
        levels = network(torch.zeros(1, 3, 8, 64, 64))
    shapes = [tuple(level.shape[2:]) for level in levels]
    assert shapes == [(8, 32, 32), (8, 16, 16), (4, 8, 8), (2, 4, 4), (2, 2, 4)]
    row = ENCODERS[name]
    for weight, tensor in network.state_dict().items():
        if tensor.ndim == 5 and max(tensor.shape[2:]) > 1:
            assert (tensor.shape[2] > 1) == THIN[row.level(weight)][0], weight


@pytest.mark.parametrize("name", ENCODERS)
def test_a_network_whose_depth_is_not_mixed_is_its_2d_network_slice_by_slice(name: str) -> None:
    flat = encoder(name).double().eval()
    flat_strides = tuple((1, *stride) for stride in published_strides(2))
    deep = encoder(name, strides=flat_strides, spans=((False, True, True),) * LEVELS)
    state = flat.state_dict()
    deep.double().eval().load_state_dict(
        {n: state[n].reshape(tensor.shape) for n, tensor in deep.state_dict().items()}
    )
    x = torch.randn(1, 3, 2, 64, 64, dtype=torch.float64)
    if name in ("efficientnet_b0", "efficientnet_b4"):  # their gates see the whole volume
        x[:, :, 1] = x[:, :, 0]
    with torch.inference_mode():
        volume = deep(x)
        slices = [flat(x[:, :, z]) for z in range(2)]
    for level, found in enumerate(volume):
        expected = torch.stack([levels[level] for levels in slices], 2)
        size = expected.std().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "resnet18", "resnet50"])
def test_the_estimate_of_feature_maps_counts_all_convolutions(name: str) -> None:
    network, sizes = encoder(name), []
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and ".se." not in path:
            module.register_forward_hook(lambda _m, _i, out: sizes.append(out.numel()))
    levels = network(torch.zeros(1, 3, 64, 64))
    assert ENCODERS[name].elements([level[0, 0].numel() for level in levels]) == sum(sizes)


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18"])
def test_blocks_are_left_out_in_training_only_and_more_often_with_depth(name: str) -> None:
    with torch.no_grad():
        network = encoder(name, drop_path=0.4).eval()
        plain = encoder(name)
        plain.load_state_dict(network.state_dict())
        x = torch.randn(4, 3, 64, 64)
        expected = plain.eval()(x)[-1]
        torch.testing.assert_close(network(x)[-1], expected)
        network.train()
        for module in network.modules():  # leave only the paths as a difference to `plain`
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        assert not torch.allclose(network(x)[-1], expected)
    rates = [module.rate for path, module in network.named_modules() if path.endswith("drop_path")]
    steps = {round(b - a, 9) for a, b in pairwise(rates)}
    assert rates[0] == 0
    assert steps == {round(0.4 / len(rates), 9)}


def test_leaving_blocks_out_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 1, 1))
    assert {round(value, 4) for value in out.unique().tolist()} == {0.0, round(1 / 0.75, 4)}
    assert bool((out[:, 0] == out[:, 1]).all())  # an example as a whole
    assert abs(out.mean().item() - 1) < 0.05
