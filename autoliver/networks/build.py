"""A spec made into a network with initial weights."""

import torch
from torch import nn

from autoliver.errors import ModelError
from autoliver.networks.blocks import LEAK, ResidualBlock
from autoliver.networks.spec import UNetSpec
from autoliver.networks.unet import UNet


def build_network(
    spec: UNetSpec, *, deep_supervision: bool, generator: torch.Generator | None = None
) -> UNet:
    """The network of a spec, initialised.

    Args:
        spec: The network.
        deep_supervision: Whether its `forward` returns a list, one entry per decoder level; the
            attribute of this name can be changed later.
        generator: Source of the initial weights; torch's global one if None.

    Raises:
        ModelError: The spec contradicts itself (an edited plan).
    """
    check_spec(spec)
    network = UNet(spec, deep_supervision=deep_supervision)
    initialise(network, generator)
    return network


def build_without_weights(spec: UNetSpec, *, deep_supervision: bool) -> UNet:
    """The network of a spec on torch's meta device: names and shapes, no memory.

    Weights go in with `load_state_dict(..., assign=True)`; no random number is drawn.

    Raises:
        ModelError: As `build_network`.
    """
    check_spec(spec)
    with torch.device("meta"):
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


def check_spec(spec: UNetSpec) -> None:
    """Refuses a spec that no network can be built from.

    Raises:
        ModelError: Naming the field, what it holds and what it should hold.
    """
    stages = len(spec.features)
    if stages < 2:
        raise _wrong("features", f"{stages} stages", "at least 2")
    for name in ("strides", "kernels", "blocks_encoder", "blocks_decoder"):
        length, expected = len(getattr(spec, name)), stages - (name == "blocks_decoder")
        if length != expected:
            raise _wrong(name, f"{length} entries", f"{expected} (features has {stages} stages)")
    if spec.dimension not in (2, 3):
        raise _wrong("strides", f"{spec.dimension} axes", "2 or 3")
    for name, tuples in (("strides", spec.strides), ("kernels", spec.kernels)):
        for level, values in enumerate(tuples):
            if len(values) != spec.dimension:
                where, found = f"{name}[{level}]", f"{len(values)} axes"
                raise _wrong(where, found, f"{spec.dimension} as in strides[0]")
    _check_values(spec)


def _check_values(spec: UNetSpec) -> None:
    counts = ("features", "blocks_encoder", "blocks_decoder")
    for name, values in [(name, getattr(spec, name)) for name in counts] + [
        ("in_channels", (spec.in_channels,)),
        ("out_channels", (spec.out_channels,)),
        *((f"strides[{level}]", values) for level, values in enumerate(spec.strides)),
    ]:
        if min(values) < 1:
            raise _wrong(name, str(min(values)), "1 or more")
    if max(spec.strides[0]) != 1:
        # The decoder ends at the first stage, which has to be the image's own resolution.
        raise _wrong("strides[0]", str(list(spec.strides[0])), "ones")
    for level, kernel in enumerate(spec.kernels):
        if any(size < 1 or size % 2 == 0 for size in kernel):
            raise _wrong(f"kernels[{level}]", str(list(kernel)), "odd sizes")


def _wrong(field: str, found: str, expected: str) -> ModelError:
    return ModelError(
        f"network: {field}: found {found}, expected {expected}.",
        hint="Correct the network in plan.json, or make the plan again with: autoliver plan",
    )
