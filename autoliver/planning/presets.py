"""Presets of the planner: the type of network and the memory that it is fitted to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from autoliver.memory import GB
from autoliver.networks.ds_net_spec import SLICES, strides_of_depth
from autoliver.networks.encoder_unet_spec import Activation, Feed, Upsampling
from autoliver.networks.encoders import ENCODERS, LEVELS
from autoliver.networks.spec import (
    DSNetSpec,
    EncoderUNetSpec,
    MedFormerSpec,
    NetworkSpec,
    ResidualUNetSpec,
    UNetSpec,
)
from autoliver.planning.names import ENCODER_OF, Architecture, EncoderName, Preset, ZStrides
from autoliver.planning.topology import (
    Topology,
    even_topology,
    planar_topology,
    pool_topology,
)

# Smallest number of patches per step.
MIN_BATCH = 2
# Dimension -> number of patches per step with which `PresetRow.reference` was measured.
REFERENCE_BATCH = {2: 12, 3: 2}

_MIN_BATCH = {2: MIN_BATCH, 3: MIN_BATCH}
# Dimension -> limit of the number of features, which doubles from stage to stage.
_MAX_FEATURES = {2: 512, 3: 320}
_TINY_MAX_FEATURES = {2: 80, 3: 80}
_MEDFORMER_LEVELS = 5


class MakeNetwork(Protocol):
    """Makes a network from a topology; it may ignore parts of the topology that it cannot use."""

    def __call__(self, topology: Topology, *, in_channels: int, out_channels: int) -> NetworkSpec:
        """Returns the network with this topology and these channels."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PresetRow:
    """A preset.

    Attributes:
        network: Makes the preset's network.
        fitted_as: Makes the network whose memory decides on patch and batch; None for the preset's
            own network.
        vram_gb: The GPU memory that the preset is meant for, in GB.
        reference: Dimension -> number of feature map values of one patch that fill this memory with
            the reference batch.
        must_fit: Dimension -> number of patches per step that must fit into memory; the patch
            shrinks until they do.
        max_batch: Largest number of patches per step; None for as many as memory and dataset allow.
        fixed_gb: Dimension -> the part of the memory that depends neither on patch nor batch:
            weights, their gradients and the optimiser.
        topology: Makes strides, kernels and the patch that fits them from spacing and patch.
    """

    network: MakeNetwork
    fitted_as: MakeNetwork | None = None
    vram_gb: float
    reference: dict[int, int]
    must_fit: dict[int, int]
    max_batch: int | None = None
    fixed_gb: dict[int, float] = field(default_factory=lambda: dict.fromkeys(REFERENCE_BATCH, 0.0))
    topology: Callable[[Sequence[float], Sequence[float]], Topology] = pool_topology


# The preset with the smallest network.
SMALLEST: Preset = "tiny"


def _unet(topology: Topology, *, in_channels: int, out_channels: int) -> UNetSpec:
    """Makes the plain U-Net of nnU-Net."""
    stages, dimension = len(topology.strides), len(topology.patch_shape)
    return UNetSpec(
        in_channels=in_channels,
        out_channels=out_channels,
        features=_doubled(stages, 32, most=_MAX_FEATURES[dimension]),
        strides=topology.strides,
        kernels=topology.kernels,
        blocks_encoder=(2,) * stages,
        blocks_decoder=(2,) * (stages - 1),
    )


def _tiny_unet(topology: Topology, *, in_channels: int, out_channels: int) -> UNetSpec:
    """Makes the plain U-Net with a quarter of the features."""
    network = _unet(topology, in_channels=in_channels, out_channels=out_channels)
    most = _TINY_MAX_FEATURES[network.dimension]
    return network.replace(features=_doubled(len(network.features), 8, most=most))


def _residual_unet(topology: Topology, *, in_channels: int, out_channels: int) -> ResidualUNetSpec:
    """Makes the U-Net of nnU-Net with a residual encoder."""
    stages, dimension = len(topology.strides), len(topology.patch_shape)
    return ResidualUNetSpec(
        in_channels=in_channels,
        out_channels=out_channels,
        features=_doubled(stages, 32, most=_MAX_FEATURES[dimension]),
        strides=topology.strides,
        kernels=topology.kernels,
        blocks_encoder=((1, 3, 4) + (6,) * stages)[:stages],
        blocks_decoder=(1,) * (stages - 1),
    )


def _medformer(topology: Topology, *, in_channels: int, out_channels: int) -> MedFormerSpec:
    """Makes MedFormer with 38.6 million weights in 3D.

    It always has five levels. They halve what the first five stages of a U-Net halve; where that
    has fewer, the last levels keep their resolution.
    """
    dimension, levels = len(topology.patch_shape), _MEDFORMER_LEVELS
    further = levels - len(topology.strides)
    return MedFormerSpec(
        in_channels=in_channels,
        out_channels=out_channels,
        features=(32, 64, 128, 256, 320),
        strides=(topology.strides + ((1,) * dimension,) * further)[:levels],
        kernels=(topology.kernels + ((3,) * dimension,) * further)[:levels],
        blocks_encoder=(1, 2, 2, 4, 6),
        blocks_decoder=(2, 2, 2, 4),
        heads=(1, 1, 4, 8, 10),
        tokens=64,
        fusion_features=320,
        fusion_heads=10,
        fusion_layers=2,
    )


def _tiny_medformer(topology: Topology, *, in_channels: int, out_channels: int) -> MedFormerSpec:
    """Makes MedFormer with 0.307 million weights in 3D."""
    network = _medformer(topology, in_channels=in_channels, out_channels=out_channels)
    return network.replace(
        features=(8, 8, 16, 32, 40),
        blocks_encoder=(1,) * _MEDFORMER_LEVELS,
        blocks_decoder=(1,) * (_MEDFORMER_LEVELS - 1),
        heads=(1, 1, 2, 4, 4),
        tokens=8,
        fusion_features=40,
        fusion_heads=4,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Style:
    """How an architecture with an encoder differs from the others."""

    feed: Feed
    up: Upsampling
    activation: Activation
    drop_path: float


# Ours, Omnia-Net and DX-Net (Messaoudi et al. 2023).
_STYLES: dict[Architecture, _Style] = {
    "unet": _Style(feed="image", up="nearest", activation="relu", drop_path=0.0),
    "omnia": _Style(feed="front", up="nearest", activation="relu", drop_path=0.4),
    "dxnet": _Style(feed="front", up="transposed", activation="silu", drop_path=0.4),
    # DS-Net's 2D network, whose stem takes the three channels that it was trained for.
    "dsnet": _Style(feed="image", up="transposed", activation="silu", drop_path=0.4),
}
_DECODER = (16, 32, 64, 128, 256)
_TINY_DECODER = (4, 8, 16, 32, 64)


def _encoder_unet(
    topology: Topology,
    *,
    in_channels: int,
    out_channels: int,
    encoder: EncoderName,
    style: _Style,
    features: tuple[int, ...] = _DECODER,
) -> EncoderUNetSpec:
    """Makes a U-Net with a classification encoder, which always has five levels below the image.

    They halve what the first five stages of a U-Net halve; where that has fewer, the last levels
    keep their resolution.
    """
    dimension, levels = len(topology.patch_shape), LEVELS + 1
    further = levels - len(topology.strides)
    thin = sum(kernel[0] == 1 for kernel in topology.kernels[:levels]) if dimension == 3 else 0
    return EncoderUNetSpec(
        in_channels=in_channels,
        out_channels=out_channels,
        encoder=encoder,
        features=features,
        strides=(topology.strides + ((1,) * dimension,) * further)[:levels],
        thin_levels=thin,
        feed=style.feed,
        up=style.up,
        activation=style.activation,
        drop_path=style.drop_path,
    )


def _ds_net(
    topology: Topology,
    *,
    in_channels: int,
    out_channels: int,
    encoder: EncoderName,
    style: _Style,
    features: tuple[int, ...] = _DECODER,
) -> DSNetSpec | EncoderUNetSpec:
    """Makes DS-Net in 3D, and its 2D network alone in 2D."""
    make = partial(_encoder_unet, encoder=encoder, style=style, features=features)
    if len(topology.patch_shape) == 2:
        return make(topology, in_channels=in_channels, out_channels=out_channels)
    depth, *plane = topology.patch_shape
    flat = Topology(
        strides=tuple(stride[1:] for stride in topology.strides),
        kernels=tuple(kernel[1:] for kernel in topology.kernels),
        patch_shape=tuple(plane),
    )
    return DSNetSpec(
        in_channels=in_channels,
        out_channels=out_channels,
        depth=depth,
        depth_strides=strides_of_depth(depth),
        plane=make(flat, in_channels=SLICES, out_channels=SLICES),
    )


def _doubled(stages: int, base: int, *, most: int) -> tuple[int, ...]:
    """Returns the number of features per stage, which doubles from stage to stage up to a limit."""
    return tuple(min(most, base * 2**stage) for stage in range(stages))


PRESETS: dict[Preset, PresetRow] = {
    "default": PresetRow(
        network=_unet,
        vram_gb=8,
        reference={2: 85_000_000, 3: 560_000_000},
        must_fit=_MIN_BATCH,
    ),
    "M": PresetRow(
        network=_residual_unet,
        vram_gb=8,
        reference={2: 135_000_000, 3: 680_000_000},
        must_fit=REFERENCE_BATCH,
    ),
    "L": PresetRow(
        network=_residual_unet,
        vram_gb=24,
        reference={2: 380_000_000, 3: 2_100_000_000},
        must_fit=REFERENCE_BATCH,
    ),
    "XL": PresetRow(
        network=_residual_unet,
        vram_gb=40,
        reference={2: 560_000_000, 3: 3_600_000_000},
        must_fit=REFERENCE_BATCH,
    ),
    # Fitted like "default", so that both have the same patches.
    "tiny": PresetRow(
        network=_tiny_unet,
        fitted_as=_unet,
        vram_gb=8,
        reference={2: 85_000_000, 3: 560_000_000},
        must_fit=_MIN_BATCH,
        max_batch=4,
    ),
}

# Bytes that training in float32 takes for each value of a feature map, and GB that it takes for any
# patch: for scratch memory, and for 38.6 million weights (measured, docs/RESULTS.md).
_MEDFORMER_BYTES = 11.8
_TINY_MEDFORMER_FIXED_GB = 0.3
_MEDFORMER_FIXED_GB = 0.85
_MEDFORMER_GB = 8
_MEDFORMER_REFERENCE = {
    dimension: round((_MEDFORMER_GB - _MEDFORMER_FIXED_GB) * GB / (_MEDFORMER_BYTES * batch))
    for dimension, batch in REFERENCE_BATCH.items()
}
MEDFORMER: dict[Preset, PresetRow] = {
    "default": PresetRow(
        network=_medformer,
        vram_gb=_MEDFORMER_GB,
        reference=_MEDFORMER_REFERENCE,
        must_fit=_MIN_BATCH,
        fixed_gb=dict.fromkeys(REFERENCE_BATCH, _MEDFORMER_FIXED_GB),
    ),
    "tiny": PresetRow(
        network=_tiny_medformer,
        fitted_as=_medformer,
        vram_gb=_MEDFORMER_GB,
        reference=_MEDFORMER_REFERENCE,
        must_fit=_MIN_BATCH,
        max_batch=4,
        fixed_gb=dict.fromkeys(REFERENCE_BATCH, _TINY_MEDFORMER_FIXED_GB),
    ),
}


# The same for networks with an encoder (measured, docs/RESULTS.md). What does not depend on the
# patch is 20 bytes for each weight: itself, its gradient, two means of AdamW and the running mean.
_ENCODER_GB = 8
_ENCODER_BYTES = {"efficientnet": 10.5, "resnet": 7.0}
_WEIGHT_GB = 20 / GB
# Architecture -> encoder -> millions of weights of the network in 2D and in 3D, if all axes are
# halved five times: transposed convolutions have the size of the strides, and DS-Net is 2D inside.
_Millions = dict[EncoderName, tuple[float, float]]
_REPEATED: _Millions = {
    "efficientnet_b0": (5.8, 11.0),
    "efficientnet_b4": (19.4, 26.8),
    "efficientnet_lite0": (5.2, 10.4),
    "resnet18": (14.3, 42.7),
    "resnet34": (24.4, 73.0),
    "resnet50": (32.5, 73.3),
}
_ENCODER_MILLIONS: dict[Architecture, _Millions] = {
    "unet": _REPEATED,
    "omnia": _REPEATED,
    "dxnet": {
        "efficientnet_b0": (6.6, 12.5),
        "efficientnet_b4": (20.6, 29.2),
        "efficientnet_lite0": (6.0, 11.9),
        "resnet18": (15.8, 45.7),
        "resnet34": (25.9, 76.1),
        "resnet50": (49.7, 107.8),
    },
    "dsnet": {
        "efficientnet_b0": (6.6, 7.5),
        "efficientnet_b4": (20.6, 21.5),
        "efficientnet_lite0": (6.0, 6.9),
        "resnet18": (15.7, 16.6),
        "resnet34": (25.8, 26.7),
        "resnet50": (49.6, 50.6),
    },
}


def preset_row(
    preset: Preset,
    architecture: Architecture,
    encoder: EncoderName | None = None,
    *,
    z_strides: ZStrides = "auto",
) -> PresetRow:
    """Returns the row of a preset of an architecture.

    There are those of `names.PRESETS_OF`, or with an encoder those of `names.WITH_ENCODER`.

    Args:
        preset: The preset.
        architecture: The architecture.
        encoder: The encoder; None for that of the architecture, if it has one.
        z_strides: Where an encoder halves the depth of volumes.
    """
    encoder = encoder or ENCODER_OF.get(architecture)
    if encoder is None:
        return (MEDFORMER if architecture == "medformer" else PRESETS)[preset]
    stacked = architecture == "dsnet"
    make = _ds_net if stacked else _encoder_unet
    network = partial(make, encoder=encoder, style=_STYLES[architecture])
    pooled = planar_topology if stacked else pool_topology
    per_value = _ENCODER_BYTES[ENCODERS[encoder].family]
    millions = _ENCODER_MILLIONS[architecture][encoder]
    fixed_gb = {2 + i: _WEIGHT_GB * 1e6 * number for i, number in enumerate(millions)}
    row = PresetRow(
        network=network,
        vram_gb=_ENCODER_GB,
        reference={
            dimension: round((_ENCODER_GB - fixed_gb[dimension]) * GB / (per_value * batch))
            for dimension, batch in REFERENCE_BATCH.items()
        },
        must_fit=_MIN_BATCH,
        fixed_gb=fixed_gb,
        topology=even_topology if z_strides == "all" else pooled,
    )
    if preset != "tiny":
        return row
    # Only the decoder can be thin: the encoder's features are those of its weights.
    thin = partial(make, encoder=encoder, style=_STYLES[architecture], features=_TINY_DECODER)
    return replace(row, network=thin, fitted_as=network, max_batch=4)
