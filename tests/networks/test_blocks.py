"""The blocks against torch's own layers, one after the other and none of them in place."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autoliver.networks.blocks import ConvBlock, ResidualBlock, to_channels_last

torch.set_num_threads(1)

# Shapes (b, c, *shape): both dimensions, odd sizes where there is no stride, one sample, one slice.
SHAPES = [(2, 3, 7, 8), (1, 3, 9, 4), (3, 3, 5, 6, 8), (1, 3, 1, 4, 6)]


def plain(block: nn.Module, x: Tensor) -> Tensor:
    """What a block computes, layer by layer."""
    if isinstance(block, ConvBlock):
        y = block.norm(block.conv(x))
        return y if isinstance(block.activation, nn.Identity) else activated(y)
    if isinstance(block, ResidualBlock):
        y = plain(block.second, plain(block.first, x))
        return activated((y + plain(block.projection, block.pool(x))).to(y.dtype))
    return block(x)


def activated(y: Tensor) -> Tensor:
    return nn.functional.leaky_relu(y, 1e-2)


def blocks(axes: int) -> dict[str, nn.Module]:
    kernel = (3,) * axes
    return {
        "conv": ConvBlock(3, 5, kernel=kernel),
        "strided": ConvBlock(3, 5, kernel=kernel, stride=(*(1,) * (axes - 1), 2)),
        "linear": ConvBlock(3, 5, kernel=kernel, activate=False),
        "residual": ResidualBlock(3, 3, kernel=kernel),
        "pooled": ResidualBlock(3, 3, kernel=kernel, stride=(*(1,) * (axes - 1), 2)),
        "projected": ResidualBlock(3, 5, kernel=kernel, stride=(*(1,) * (axes - 1), 2)),
    }


def results(make, block: nn.Module, x: Tensor, *, mixed: bool) -> list[Tensor]:
    """The output, and the gradients of the input and of all weights."""
    x = x.detach().requires_grad_()
    block.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        y = make(x)
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator).to(y.dtype))
    return [y.detach(), x.grad, *(p.grad.clone() for p in block.parameters())]


@pytest.mark.parametrize("name", blocks(2))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", ["contiguous", "channels last", "mixed precision"])
def test_values_and_gradients_are_those_of_torchs_layers_bit_by_bit(name, shape, form):
    torch.manual_seed(0)
    axes = len(shape) - 2
    block, x = blocks(axes)[name], torch.randn(shape)
    for norm in block.modules():
        if hasattr(norm, "eps"):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    if form == "channels last":
        to_channels_last(block)
        last = torch.channels_last if axes == 2 else torch.channels_last_3d
        x = x.contiguous(memory_format=last)
    mixed = form == "mixed precision"
    ours = results(block, block, x, mixed=mixed)
    torchs = results(lambda x: plain(block, x), block, x, mixed=mixed)
    assert len(ours) == 2 + len(list(block.parameters()))
    for mine, theirs in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


class Copies(TorchDispatchMode):
    """Counts the values that are copied, in whatever form."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("copy_", "clone", "new_empty_strided"):
            self.values += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_the_backward_pass_copies_no_features(name):
    torch.manual_seed(0)
    block, x = blocks(3)[name], torch.randn(2, 3, 8, 8, 8)
    y = block(x)
    gradient = torch.ones_like(y)
    with Copies() as copies:
        y.backward(gradient)
    assert copies.values < y.numel()
