"""A spec made into a network with initial weights."""

import torch
from torch import nn

from autoliver.networks.blocks import LEAK, ResidualBlock
from autoliver.networks.spec import NetworkSpec
from autoliver.networks.unet import UNet
from autoliver.networks.unet_spec import ResidualUNetSpec, UNetSpec


def build_network(
    spec: NetworkSpec, *, deep_supervision: bool, generator: torch.Generator | None = None
) -> nn.Module:
    """The network of a spec, initialised.

    Args:
        spec: The network.
        deep_supervision: Whether its `forward` returns a list, one entry per output level; the
            attribute of this name can be changed later.
        generator: Source of the initial weights; torch's global one if None.

    Raises:
        ModelError: The spec contradicts itself (an edited plan).
    """
    spec.check()
    network = _module(spec, deep_supervision=deep_supervision)
    initialise(network, generator)
    return network


def build_without_weights(spec: NetworkSpec, *, deep_supervision: bool) -> nn.Module:
    """The network of a spec on torch's meta device: names and shapes, no memory.

    Weights go in with `load_state_dict(..., assign=True)`; no random number is drawn.

    Raises:
        ModelError: As `build_network`.
    """
    spec.check()
    with torch.device("meta"):
        return _module(spec, deep_supervision=deep_supervision)


def _module(spec: NetworkSpec, *, deep_supervision: bool) -> nn.Module:
    match spec:
        case UNetSpec() | ResidualUNetSpec():
            return UNet(spec, deep_supervision=deep_supervision)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Sets initial weights in place, as nnU-Net does.

    Convolutions: normal for a LeakyReLU that follows (He et al., Delving Deep into Rectifiers,
    ICCV 2015), biases 0. A residual block starts as its shortcut: the last norm's scale is 0.

    Args:
        network: The network.
        generator: Source of the weights; torch's global one if None.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=LEAK, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ResidualBlock):
            for parameter in module.second.norm.parameters():
                nn.init.zeros_(parameter)
