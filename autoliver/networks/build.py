"""Builds the torch network of a spec and sets its initial weights."""

import torch
from torch import nn

from autoliver.networks.blocks import LEAK, ResidualBlock
from autoliver.networks.ds_net import DSNet
from autoliver.networks.ds_net_spec import DSNetSpec
from autoliver.networks.encoder_unet import EncoderUNet
from autoliver.networks.encoder_unet_spec import EncoderUNetSpec
from autoliver.networks.medformer import MedFormer
from autoliver.networks.medformer_spec import MedFormerSpec
from autoliver.networks.spec import NetworkSpec
from autoliver.networks.translator import Translator
from autoliver.networks.translator_spec import TranslatorSpec
from autoliver.networks.unet import UNet
from autoliver.networks.unet_spec import ResidualUNetSpec, UNetSpec

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_LINEAR_STD = 0.02  # as in vision transformers


def build_network(
    spec: NetworkSpec, *, deep_supervision: bool, generator: torch.Generator | None = None
) -> nn.Module:
    """Builds the network of a spec and initialises its weights.

    Args:
        spec: The network's spec.
        deep_supervision: Whether `forward` returns a list with one entry per output level. The
            network's attribute of this name can be changed later.
        generator: The random generator for the initial weights; None for torch's global one.

    Raises:
        ModelError: The spec contradicts itself, e.g. because the plan was edited.
    """
    check_spec(spec)
    network = _module(spec, deep_supervision=deep_supervision)
    initialise(network, generator)
    return network


def build_without_weights(spec: NetworkSpec, *, deep_supervision: bool) -> nn.Module:
    """Builds the network of a spec on torch's meta device, where weights take no memory.

    Weights can be loaded with `load_state_dict(..., assign=True)`. No random numbers are drawn.

    Raises:
        ModelError: The spec contradicts itself, e.g. because the plan was edited.
    """
    check_spec(spec)
    with torch.device("meta"):
        return _module(spec, deep_supervision=deep_supervision)


def check_spec(spec: NetworkSpec) -> None:
    """Refuses a spec from which no network can be built, before any memory is taken.

    Raises:
        ModelError: A field is invalid; the error names it.
    """
    spec.check_size()
    spec.check()
    spec.check_class_head()


def _module(spec: NetworkSpec, *, deep_supervision: bool) -> nn.Module:
    match spec:
        case UNetSpec() | ResidualUNetSpec():
            return UNet(spec, deep_supervision=deep_supervision)
        case MedFormerSpec():
            return MedFormer(spec, deep_supervision=deep_supervision)
        case EncoderUNetSpec():
            return EncoderUNet(spec, deep_supervision=deep_supervision)
        case DSNetSpec():
            return DSNet(spec, deep_supervision=deep_supervision)
        case TranslatorSpec():
            return Translator(spec, deep_supervision=deep_supervision)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Sets initial weights in place, as nnU-Net does.

    Weights of convolutions are drawn from a normal distribution that is scaled for the LeakyReLU
    after them (He et al., Delving Deep into Rectifiers, ICCV 2015); biases are 0. The scale of the
    last norm of a residual block is 0, so that the block starts as its shortcut. Weights of linear
    layers, which only transformers have, are drawn from a narrow normal distribution.

    Args:
        network: The network.
        generator: The random generator for the weights; None for torch's global one.
    """
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            nn.init.kaiming_normal_(module.weight, a=LEAK, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_LINEAR_STD, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ResidualBlock):
            for parameter in module.second.norm.parameters():
                nn.init.zeros_(parameter)
