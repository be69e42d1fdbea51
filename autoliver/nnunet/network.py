"""Converts nnU-Net network descriptions (PlainConvUNet, ResidualEncoderUNet) to specs and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoliver.errors import ModelError
from autoliver.networks.spec import NetworkSpec
from autoliver.networks.unet_spec import ResidualUNetSpec, UNetSpec

_PACKAGE = "dynamic_network_architectures.architectures.unet"
# The networks that nnU-Net has, and its names for them and for the blocks of their encoders.
NnunetSpec = UNetSpec | ResidualUNetSpec
_SPECS: dict[str, type[NnunetSpec]] = {
    "PlainConvUNet": UNetSpec,
    "ResidualEncoderUNet": ResidualUNetSpec,
}
_CLASSES = {spec: name for name, spec in _SPECS.items()}
_BLOCKS: dict[type[NnunetSpec], str] = {
    UNetSpec: "n_conv_per_stage",
    ResidualUNetSpec: "n_blocks_per_stage",
}
# Setting -> the value that autoliver's networks have, and nnU-Net's default if it is not given.
# Names are compared without their module.
_BUILT_WITH: dict[str, tuple[Any, Any]] = {
    "conv_bias": (True, False),
    "dropout_op": (None, None),
    "nonlin": ("LeakyReLU", None),
    "nonlin_first": (False, False),
    "block": ("BasicBlockD", "BasicBlockD"),
    "bottleneck_channels": (None, None),
}
_MOST_STAGES = 20  # an image of 2^20 voxels to an axis is one voxel then
_NORM = {"eps": 1e-5, "affine": True}
_NONLIN = {"negative_slope": 0.01}
# Known settings that are checked elsewhere or do not influence what a trained network computes.
_OTHERS = (
    *("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder"),
    *("conv_op", "norm_op", "norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs"),
    *("stem_channels", "deep_supervision"),
)


def spec_from_nnunet(
    configuration: Mapping[str, Any], *, in_channels: int, out_channels: int, where: str
) -> NnunetSpec:
    """Makes the spec of the network that an nnU-Net configuration describes.

    Args:
        configuration: A configuration of plans.json with inheritance resolved. It has either the
            key "architecture" or the separate keys of nnU-Net 2.0 to 2.3 ("UNet_class_name", ...).
        in_channels: Input channels of the network.
        out_channels: Output channels of the network.
        where: The file's name, for messages.

    Raises:
        ModelError: The architecture or one of its settings is not supported.
    """
    dimension = len(configuration["patch_size"])
    if "architecture" in configuration:
        name, arguments = _architecture(configuration["architecture"], where)
    else:
        name, arguments = _architecture_before_2_4(configuration, where)
    kind = _SPECS.get(name.rpartition(".")[2])
    if kind is None:
        raise ModelError(
            f"{where}: the network is a {name}; only {' and '.join(_SPECS)} can be imported.",
            hint="Predict with nnU-Net itself, or train a network of autoliver on the dataset.",
        )
    _check_settings(arguments, kind=kind, dimension=dimension, where=where)
    try:
        return _spec(arguments, kind=kind, channels=(in_channels, out_channels), axes=dimension)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{where}: the network cannot be built from its description ({error!r}).",
            hint="Take plans.json from the folder that nnU-Net trained into, unchanged.",
        ) from None


def known_to_nnunet(spec: NetworkSpec) -> NnunetSpec:
    """Returns the spec itself if nnU-Net has such a network.

    Raises:
        ModelError: nnU-Net has no such network.
    """
    match spec:
        case UNetSpec() | ResidualUNetSpec():
            return spec
        case _:
            raise ModelError(
                f"nnU-Net has no network of kind '{spec.kind}'.",
                hint="Export it as a file of autoliver instead.",
            )


def architecture_of(network: NetworkSpec) -> dict[str, Any]:
    """Returns the value of "architecture" for a configuration in plans.json.

    Raises:
        ModelError: nnU-Net has no such network.
    """
    spec = known_to_nnunet(network)
    axes = spec.dimension
    return {
        "network_class_name": f"{_PACKAGE}.{_CLASSES[type(spec)]}",
        "arch_kwargs": {
            "n_stages": len(spec.features),
            "features_per_stage": list(spec.features),
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [list(kernel) for kernel in spec.kernels],
            "strides": [list(stride) for stride in spec.strides],
            _BLOCKS[type(spec)]: list(spec.blocks_encoder),
            # nnU-Net lists the deepest stage first, autoliver full resolution.
            "n_conv_per_stage_decoder": list(reversed(spec.blocks_decoder)),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": dict(_NORM),
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _architecture(found: Any, where: str) -> tuple[str, dict[str, Any]]:
    try:
        return str(found["network_class_name"]), dict(found["arch_kwargs"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ModelError(
            f"{where}: architecture: expected network_class_name and arch_kwargs.",
            hint="Take plans.json from the folder that nnU-Net trained into, unchanged.",
        ) from None


def _architecture_before_2_4(
    configuration: Mapping[str, Any], where: str
) -> tuple[str, dict[str, Any]]:
    try:
        name = str(configuration["UNet_class_name"])
        blocks = configuration["n_conv_per_stage_encoder"]
        base, most = (
            configuration["UNet_base_num_features"],
            configuration["unet_max_num_features"],
        )
        return name, {
            "n_stages": len(blocks),
            "features_per_stage": [min(base * 2**level, most) for level in range(len(blocks))],
            "kernel_sizes": configuration["conv_kernel_sizes"],
            "strides": configuration["pool_op_kernel_sizes"],
            _BLOCKS[_SPECS.get(name, UNetSpec)]: blocks,
            "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
            "conv_bias": True,
            "nonlin": "LeakyReLU",
            "norm_op": f"InstanceNorm{len(configuration['patch_size'])}d",
        }
    except KeyError as error:
        raise ModelError(
            f"{where}: the network is not described: neither 'architecture' nor {error} is given.",
            hint="Take plans.json from the folder that nnU-Net trained into, unchanged.",
        ) from None


def _check_settings(
    arguments: Mapping[str, Any], *, kind: type[NnunetSpec], dimension: int, where: str
) -> None:
    built_with = {
        **_BUILT_WITH,
        "conv_op": (f"Conv{dimension}d", f"Conv{dimension}d"),
        "norm_op": (f"InstanceNorm{dimension}d", None),
    }
    known = {*built_with, *_OTHERS, _BLOCKS[kind]}
    wrong = [key for key in arguments if key not in known]
    for key, (expected, default) in built_with.items():
        found = arguments.get(key, default)
        name = found.rpartition(".")[2] if isinstance(found, str) else found
        if name != expected:
            wrong.append(key)
    for key, values in (("norm_op_kwargs", _NORM), ("nonlin_kwargs", _NONLIN)):
        given = arguments.get(key) or {}
        # Whether an activation works in place does not change its result.
        if not isinstance(given, Mapping) or any(
            values.get(name) != value for name, value in given.items() if name != "inplace"
        ):
            wrong.append(key)
    if wrong:
        raise ModelError(
            f"{where}: the network is built with {wrong[0]} = {arguments.get(wrong[0])!r}, which "
            "autoliver's networks do not support.",
            hint="Only networks that nnU-Net's planners design can be imported.",
        )


def _spec(
    arguments: Mapping[str, Any], *, kind: type[NnunetSpec], channels: tuple[int, int], axes: int
) -> NnunetSpec:
    stages = int(arguments["n_stages"])
    if not 0 < stages <= _MOST_STAGES:
        raise ValueError(f"n_stages is {stages}, expected 1 to {_MOST_STAGES}")
    features = _per_stage(arguments["features_per_stage"], stages)
    if arguments.get("stem_channels") not in (None, features[0]):
        raise ValueError("stem_channels")
    kernels = _spread(arguments["kernel_sizes"], stages)
    strides = _spread(arguments["strides"], stages)
    return kind(
        in_channels=channels[0],
        out_channels=channels[1],
        features=features,
        strides=tuple(_per_stage(stride, axes) for stride in strides),
        kernels=tuple(_per_stage(kernel, axes) for kernel in kernels),
        blocks_encoder=_per_stage(arguments[_BLOCKS[kind]], stages),
        blocks_decoder=_per_stage(arguments["n_conv_per_stage_decoder"], stages - 1)[::-1],
    )


def _per_stage(value: Any, count: int) -> tuple[int, ...]:
    return tuple(int(number) for number in _spread(value, count))


def _spread(value: Any, count: int) -> Sequence[Any]:
    """Returns a list of `count` values; a single number is repeated."""
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise ValueError(f"{len(values)} values, expected {count}")
    return values
