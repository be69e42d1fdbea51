"""The pooling of deterministic trainings against PyTorch's own."""

import itertools

import pytest
import torch
from torch import nn

from autoliver.networks.blocks import AVERAGE_POOL, AveragePool3d, mean_of_strides
from autoliver.networks.build import build_network
from autoliver.networks.spec import ResidualUNetSpec
from autoliver.training.determinism import same_bits

SHAPES = [(8, 8, 8), (7, 9, 5), (6, 5, 8), (1, 4, 4)]
STRIDES = [(2, 2, 2), (1, 2, 2), (2, 1, 3)]
PAIRS = [
    (shape, stride)
    for shape, stride in itertools.product(SHAPES, STRIDES)
    if all(size >= step for size, step in zip(shape, stride, strict=True))
]


@pytest.mark.parametrize(("shape", "stride"), PAIRS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_means_and_gradients_are_those_of_average_pooling(
    shape: tuple[int, ...], stride: tuple[int, int, int], layout: torch.memory_format
) -> None:
    values = torch.randn(2, 3, *shape, dtype=torch.float32).contiguous(memory_format=layout)
    one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    expected, found = nn.AvgPool3d(stride, stride)(one), mean_of_strides(other, stride)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-7)


class Elsewhere(AveragePool3d):
    """Stands on a device other than the CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(OnGpu(x))


class OnGpu(torch.Tensor):
    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)


def test_a_deterministic_training_on_a_gpu_calls_no_average_pooling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    plain = nn.AvgPool3d.forward
    monkeypatch.setattr(nn.AvgPool3d, "forward", lambda *args: (calls.append(1), plain(*args))[1])
    pool, x = Elsewhere((2, 2, 2), (2, 2, 2)), torch.randn(1, 2, 6, 5, 4)
    usual = pool(x)
    assert len(calls) == 1
    with same_bits(True):
        torch.testing.assert_close(torch.Tensor(pool(x)), torch.Tensor(usual))
        assert len(calls) == 1
        AVERAGE_POOL[3]((2, 2, 2), (2, 2, 2))(x)  # on the CPU it is deterministic as it is
    assert len(calls) == 2


def test_networks_pool_so_and_their_weights_have_the_same_names() -> None:
    spec = ResidualUNetSpec(
        in_channels=1,
        out_channels=2,
        features=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernels=((3, 3, 3),) * 2,
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
    )
    network = build_network(spec, deep_supervision=False)
    pools = [module for module in network.modules() if isinstance(module, nn.AvgPool3d)]
    assert pools
    assert all(isinstance(pool, AveragePool3d) for pool in pools)
    assert not any("pool" in name for name in network.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "stride"), PAIRS)
def test_a_real_gpu_has_a_deterministic_gradient(
    shape: tuple[int, ...], stride: tuple[int, int, int]
) -> None:
    x = torch.randn(2, 3, *shape, device="cuda").requires_grad_()
    with same_bits(True):
        pooled = AVERAGE_POOL[3](stride, stride)(x)
        pooled.square().sum().backward()
    torch.testing.assert_close(pooled, nn.AvgPool3d(stride, stride)(x))
