"""The spec of MedFormer, a U-shaped network of convolutions and attention."""

import math
from collections.abc import Sequence

from autoliver.networks.contract import (
    ENCODER,
    NetworkContract,
    PartGroup,
    WeightRole,
    halvings_of,
    product_of,
    voxels_of,
    wrong_field,
)
from autoliver.values import counted

_DECODER = "decoder"
_FUSION = "fusion"

# The first levels, where attention would cost most, consist of convolutions alone.
CONVOLUTION_LEVELS = 2
# Features between the two 1x1 convolutions of an inverted bottleneck, per feature outside.
EXPANSION = 4
_COUNTS = (
    *("in_channels", "out_channels", "features", "blocks_encoder", "blocks_decoder", "heads"),
    *("tokens", "fusion_features", "fusion_heads", "fusion_layers"),
)
_BLOCK_MAPS = 14  # maps of a block: 5 of its attention, 9 of its inverted bottleneck


class MedFormerSpec(NetworkContract, frozen=True, kw_only=True, tag_field="kind", tag="medformer"):
    """MedFormer in 2D or 3D (Gao et al. 2022, arXiv:2203.00131).

    The number of levels is the length of `features`; level 0 has full resolution. The decoder has
    one level less and the same features. The first two levels consist of residual blocks, the
    others of attention between voxels and a few tokens, the level's semantic map.

    Attributes:
        features: Number of features per level.
        strides: Per level, one stride per axis (2 or 3 axes); the first level has ones only. A
            level may keep the resolution of the one above.
        kernels: Per level, one odd kernel size per axis.
        blocks_encoder: Number of blocks per level of the encoder.
        blocks_decoder: Number of blocks per level of the decoder, deepest level last.
        heads: Number of attention heads per level; 1 for levels without attention.
        tokens: Number of tokens of a semantic map.
        fusion_features: Number of features with which the maps of all levels are fused.
        fusion_heads: Number of attention heads of the fusion.
        fusion_layers: Number of transformer layers of the fusion.
    """

    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks_encoder: tuple[int, ...]
    blocks_decoder: tuple[int, ...]
    heads: tuple[int, ...]
    tokens: int
    fusion_features: int
    fusion_heads: int
    fusion_layers: int

    @property
    def summary(self) -> str:
        """The kind and the features of the network, e.g. "medformer 32-64-128"."""
        return f"{self.kind} {'-'.join(map(str, self.features))}"

    @property
    def dimension(self) -> int:
        """The number of image axes, 2 or 3."""
        return len(self.strides[0])

    @property
    def total_stride(self) -> tuple[int, ...]:
        """The factor by which the network downsamples its input, per axis."""
        return product_of(self.strides)

    @property
    def output_levels(self) -> int:
        """Two: the logits, and those of the auxiliary head at the same resolution."""
        return 2

    @property
    def lowest_weight(self) -> float:
        """Both outputs count alike in the loss."""
        return 1.0

    @property
    def parts(self) -> tuple[PartGroup, ...]:
        """The levels of the encoder and the decoder, and the fusion of the maps between them."""
        levels = len(self.features)
        return (
            PartGroup(name=ENCODER, stages=levels, first="with the stem", from_image=True),
            PartGroup(name=_FUSION, stages=1),
            PartGroup(name=_DECODER, stages=levels - 1, first="full resolution"),
        )

    @property
    def first_convolution(self) -> str:
        """The name of the first weight, the convolution of the stem."""
        return "encoder.0.enter.weight"

    def attends(self, level: int) -> bool:
        """Returns whether a level consists of attention rather than of convolutions alone."""
        return level >= CONVOLUTION_LEVELS

    def role(self, name: str) -> WeightRole:
        """Returns the role of a weight.

        Raises:
            ValueError: MedFormer has no weight of this name.
        """
        match name.split("."):
            case ["encoder", level, "enter", "conv", number, "weight"]:
                # Of the separable convolution, the kernels per feature and then their mixture.
                return WeightRole(part=(ENCODER, int(level)), merged=int(number))
            case ["encoder", level, *_]:
                return WeightRole(part=(ENCODER, int(level)))
            case ["fusion", *_]:
                return WeightRole(part=(_FUSION, 0))
            case ["decoder", level, *_]:
                return WeightRole(part=(_DECODER, int(level)))
            case ["heads", *_]:
                return WeightRole(head=True)
        raise ValueError(f"{name} is not a weight of MedFormer")

    def strides_to(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Returns the strides down to the level of a weight; tokens have no resolution."""
        match name.split("."):
            case ["encoder" | "decoder", level, *_]:
                return self.strides[: int(level) + 1]
            case ["heads", number, *_]:
                return self.strides[: int(number) * CONVOLUTION_LEVELS + 1]
        return ()

    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """Returns the number of values in all convolution outputs and attentions for one patch.

        Maps and their fusion are left out: they have a few tokens, whatever the patch.
        """
        voxels = voxels_of(self.strides, patch_shape)
        total = self.features[0] * voxels[0]  # the stem
        for level, blocks in enumerate(self.blocks_encoder):
            total += voxels[level] * blocks * self._block_elements(level)
            if level > 0:  # a depthwise and a pointwise convolution
                merged = self.features[level - 1] * math.prod(self.strides[level])
                total += voxels[level] * (merged + self.features[level])
            if self.attends(level):  # features and weights of the map
                total += voxels[level] * (self.features[level] + self.tokens)
        for level, blocks in enumerate(self.blocks_decoder):
            shortcut, below = self.features[level], self.features[level + 1]
            # The depthwise convolution of the first attention has the features of both inputs.
            entering = shortcut + (below if self.attends(level) else 0)
            total += voxels[level] * (entering + blocks * self._block_elements(level))
        return total + self.output_levels * self.out_channels * voxels[0]

    def _block_elements(self, level: int) -> int:
        """Returns the number of values for each voxel in a block of a level."""
        if not self.attends(level):
            return 2 * self.features[level]
        attentions = 2 * self.heads[level] * self.tokens
        return _BLOCK_MAPS * self.features[level] + attentions

    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """Describes how often each axis is halved, the final size, and what attends to what."""
        counts, bottom = halvings_of(self.strides, patch_shape, axes=axes)
        return (
            f"MedFormer with {len(self.features)} levels of {self.features[0]} to "
            f"{self.features[-1]} features: an axis is halved ({counts}) where U-Nets halve it, "
            f"down to {bottom} voxels; from level {CONVOLUTION_LEVELS} on, "
            f"voxels exchange what they see with {self.tokens} tokens."
        )

    def check(self) -> None:
        """Refuses values that are out of range or do not fit together.

        Raises:
            ModelError: A field is invalid. The error names the field, its value and the expected
                value.
        """
        levels = len(self.features)
        least = CONVOLUTION_LEVELS + 2  # so that encoder and decoder have attention
        if levels < least:
            raise wrong_field("features", counted(levels, "level"), f"at least {least}")
        for name in ("strides", "kernels", "blocks_encoder", "blocks_decoder", "heads"):
            length, expected = len(getattr(self, name)), levels - (name == "blocks_decoder")
            if length != expected:
                entries, of = counted(length, "entry", "entries"), counted(levels, "level")
                raise wrong_field(name, entries, f"{expected} (features has {of})")
        if self.dimension not in (2, 3):
            raise wrong_field("strides", counted(self.dimension, "axis", "axes"), "2 or 3")
        for name in ("strides", "kernels"):
            for level, values in enumerate(getattr(self, name)):
                if len(values) != self.dimension:
                    where, found = f"{name}[{level}]", counted(len(values), "axis", "axes")
                    raise wrong_field(where, found, f"{self.dimension} as in strides[0]")
        self._check_values()

    def _check_values(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            least = min(value) if isinstance(value, tuple) else value
            if least < 1:
                raise wrong_field(name, str(least), "1 or more")
        for level, (stride, kernel) in enumerate(zip(self.strides, self.kernels, strict=True)):
            if any(step not in (1, 2)[: 1 if level == 0 else 2] for step in stride):
                allowed = "1 or 2 per axis" if level else "ones"
                raise wrong_field(f"strides[{level}]", str(list(stride)), allowed)
            if any(size < 1 or size % 2 == 0 for size in kernel):
                raise wrong_field(f"kernels[{level}]", str(list(kernel)), "odd sizes")
        pairs = [*zip(self.features, self.heads, strict=True)]
        for features, heads in [*pairs, (self.fusion_features, self.fusion_heads)]:
            if features % heads:
                raise wrong_field("heads", str(heads), f"a divisor of {features} features")
