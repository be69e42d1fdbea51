"""Translates weight names to and from nnU-Net's, for PlainConvUNet and ResidualEncoderUNet.

nnU-Net's state dict holds most tensors several times: a convolution and its norm also appear in a
list "all_modules", and the whole encoder appears again inside the decoder. nnU-Net numbers the
decoder from the deepest stage upwards; autoliver's is numbered from full resolution downwards.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from autoliver.errors import ModelError
from autoliver.networks.spec import NetworkSpec
from autoliver.networks.unet_spec import ResidualUNetSpec, UNetSpec, UNetStages
from autoliver.nnunet.network import known_to_nnunet

# What DistributedDataParallel and torch.compile put before the name of every weight.
_WRAPPERS = ("module.", "_orig_mod.")

# (nnU-Net's name, autoliver's name)
_Pair = tuple[str, str]


def to_nnunet(state_dict: Mapping[str, Tensor], spec: NetworkSpec) -> dict[str, Tensor]:
    """Renames weights to nnU-Net's names, in its order; duplicate names share one tensor.

    Args:
        state_dict: Weights of a network built from `spec`.
        spec: The network.

    Raises:
        ModelError: A weight is missing, or nnU-Net has no such network.
    """
    names = nnunet_names(spec)
    _refuse_missing([ours for ours in names.values() if ours not in state_dict])
    return {theirs: state_dict[ours] for theirs, ours in names.items()}


def from_nnunet(state_dict: Mapping[str, Tensor], spec: NetworkSpec) -> dict[str, Tensor]:
    """Renames weights to autoliver's names.

    Prefixes of wrappers such as DistributedDataParallel are removed.

    Args:
        state_dict: The `network_weights` of an nnU-Net checkpoint; its duplicates may be missing.
        spec: The network that the weights belong to.

    Raises:
        ModelError: A weight is missing or unknown to the network, or nnU-Net has no such network.
    """
    theirs = {unwrapped(name): tensor for name, tensor in state_dict.items()}
    names = nnunet_names(spec)
    ours: dict[str, Tensor] = {}
    for name, our_name in names.items():
        if our_name not in ours and name in theirs:
            ours[our_name] = theirs[name]
    _refuse_missing([name for name, our_name in names.items() if our_name not in ours])
    if unknown := [name for name in theirs if name not in names]:
        raise ModelError(
            f"nnU-Net weights: {len(unknown)} are unknown to the network, "
            f"the first is {unknown[0]}.",
            hint="The plan and the checkpoint do not belong together; take both from one folder.",
        )
    return ours


def nnunet_names(network: NetworkSpec) -> dict[str, str]:
    """Maps every name in nnU-Net's state dict to the name of the same tensor in autoliver's.

    Raises:
        ModelError: nnU-Net has no such network.
    """
    match spec := known_to_nnunet(network):
        case UNetSpec():
            encoder = list(_plain_encoder(spec))
        case ResidualUNetSpec():
            encoder = list(_residual_encoder(spec))
    return {
        **{f"encoder.{theirs}": ours for theirs, ours in encoder},
        **{f"decoder.encoder.{theirs}": ours for theirs, ours in encoder},
        **{f"decoder.{theirs}": ours for theirs, ours in _decoder(spec)},
    }


def _plain_encoder(spec: UNetSpec) -> Iterator[_Pair]:
    for level, count in enumerate(spec.blocks_encoder):
        for i in range(count):
            yield from _conv_block(f"stages.{level}.0.convs.{i}", f"encoder.{level}.{i}")


def _residual_encoder(spec: ResidualUNetSpec) -> Iterator[_Pair]:
    yield from _conv_block("stem.convs.0", "stem")
    for level, count in enumerate(spec.blocks_encoder):
        before = spec.features[max(level - 1, 0)]
        for i in range(count):
            theirs, ours = f"stages.{level}.blocks.{i}", f"encoder.{level}.{i}"
            yield from _conv_block(f"{theirs}.conv1", f"{ours}.first")
            yield from _conv_block(f"{theirs}.conv2", f"{ours}.second")
            if i == 0 and before != spec.features[level]:
                # In nnU-Net's list the projection comes after the pooling, if there is any.
                place = int(max(spec.strides[level]) > 1)
                yield from _conv_block(f"{theirs}.skip.{place}", f"{ours}.projection", bias=False)


def _decoder(spec: UNetStages) -> Iterator[_Pair]:
    levels = list(reversed(range(len(spec.blocks_decoder))))
    for place, level in enumerate(levels):
        for i in range(spec.blocks_decoder[level]):
            yield from _conv_block(f"stages.{place}.convs.{i}", f"decoder.{level}.{i}")
    for group, ours in (("transpconvs", "up"), ("seg_layers", "heads")):
        for place, level in enumerate(levels):
            for kind in ("weight", "bias"):
                yield f"{group}.{place}.{kind}", f"{ours}.{level}.{kind}"


def _conv_block(theirs: str, ours: str, *, bias: bool = True) -> Iterator[_Pair]:
    conv = ["conv.weight", "conv.bias"] if bias else ["conv.weight"]
    names = [*conv, "norm.weight", "norm.bias"]
    for name in names:
        yield f"{theirs}.{name}", f"{ours}.{name}"
    for name in names:
        part, kind = name.split(".")
        yield f"{theirs}.all_modules.{int(part == 'norm')}.{kind}", f"{ours}.{name}"


def unwrapped(name: str) -> str:
    """Removes what wrappers such as DistributedDataParallel put before a weight's name."""
    while name.startswith(_WRAPPERS):
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
    return name


def _refuse_missing(names: list[str]) -> None:
    if names:
        raise ModelError(
            f"nnU-Net weights: {len(names)} are missing, the first is {names[0]}.",
            hint="The plan and the checkpoint do not belong together; take both from one folder.",
        )
