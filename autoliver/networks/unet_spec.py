"""Specs of the two U-Nets, with a plain and with a residual encoder."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

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


class UNetStages(NetworkContract, frozen=True, kw_only=True, tag_field="kind"):
    """The common part of the specs of both U-Nets, in 2D or 3D.

    The number of stages is the length of `features`. All tuples have one entry per stage, except
    `blocks_decoder`, since the decoder has one stage less. The first stage has stride 1.

    Attributes:
        RESIDUAL: Whether the encoder consists of residual blocks.
        ENCODER_IN_WORDS: The type of the encoder, for messages.
        TAKES_CLASS_HEAD: Whether the network can have a class head.
        features: Number of features per stage, full resolution first.
        strides: Per stage, one stride per axis (2 or 3 axes); the first stage has ones only.
        kernels: Per stage, one odd kernel size per axis.
        blocks_encoder: Number of convolutions (or residual blocks) per encoder stage.
        blocks_decoder: Number of convolutions per decoder stage, deepest stage last; its length is
            the number of stages - 1.
    """

    RESIDUAL: ClassVar[bool]
    ENCODER_IN_WORDS: ClassVar[str]
    TAKES_CLASS_HEAD: ClassVar[bool] = True

    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks_encoder: tuple[int, ...]
    blocks_decoder: tuple[int, ...]

    @property
    def summary(self) -> str:
        """The kind and the features of the network, e.g. "unet 32-64-128"."""
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
        """The number of segmentations with deep supervision, one per decoder stage."""
        return len(self.features) - 1 if self.head_channels else 0

    @property
    def parts(self) -> tuple[PartGroup, ...]:
        """The stages of the encoder, where the first includes the stem, and of the decoder."""
        stages = len(self.features)
        return (
            PartGroup(name=ENCODER, stages=stages, first="with the stem", from_image=True),
            PartGroup(name=_DECODER, stages=stages - 1, first="full resolution"),
        )

    def role(self, name: str) -> WeightRole:
        """Returns the role of a weight.

        If there are several heads, the one of the lowest resolution does not contribute to the
        loss.

        Raises:
            ValueError: U-Nets have no weight of this name.
        """
        match name.split("."):
            case ["stem", *_]:
                return WeightRole(part=(ENCODER, 0))
            case ["encoder", level, *_]:
                return WeightRole(part=(ENCODER, int(level)))
            case ["up", level, *_]:
                return WeightRole(part=(_DECODER, int(level)), transposed=True)
            case ["decoder", level, block, *rest]:
                first = block == "0" and rest == ["conv", "weight"]
                return WeightRole(part=(_DECODER, int(level)), concatenated=first)
            case ["heads", level, *_]:
                return WeightRole(head=True, idle=0 < int(level) == self.output_levels - 1)
            case ["classifier", *_]:
                return WeightRole(tells_classes=True)
        raise ValueError(f"{name} is not a weight of a U-Net")

    def strides_to(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Returns the strides down to a weight's level; of `up`, to the level that it enlarges."""
        match name.split("."):
            case ["up", level, *_]:
                return self.strides[: int(level) + 2]
            case ["encoder" | "decoder" | "heads", level, *_]:
                return self.strides[: int(level) + 1]
            case ["classifier", *_]:
                return ()
        return self.strides[:1]

    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """Returns the number of values in all convolution outputs for one patch.

        As in nnU-Net, only the head at full resolution is counted.
        """
        maps = voxels_of(self.strides, patch_shape)
        if not self.head_channels:
            return self._encoder_elements(maps)
        # A decoder stage has a transposed convolution and its blocks, at the skip's resolution.
        decoder = sum(
            features * voxels * (blocks + 1)
            for features, voxels, blocks in zip(
                self.features[:-1], maps[:-1], self.blocks_decoder, strict=True
            )
        )
        head = self.head_channels * maps[0]
        return self._encoder_elements(maps) + decoder + head

    @abstractmethod
    def _encoder_elements(self, maps: Sequence[int]) -> int:
        """Returns the number of values in the convolution outputs of the encoder.

        Args:
            maps: Number of voxels of a feature map, per stage.
        """
        raise NotImplementedError

    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """Describes how often each axis is halved, the final size, and where kernel sizes are 1."""
        counts, bottom = halvings_of(self.strides, patch_shape, axes=axes)
        clauses = [
            f"{len(self.strides)} stages of {self.features[0]} to {self.features[-1]} "
            f"features: an axis is halved ({counts}) while at least 8 voxels are left and its "
            f"spacing is within twice the finest, down to {bottom} voxels"
        ]
        for name, sizes in zip(axes, zip(*self.kernels, strict=True), strict=True):
            thin = sum(size == 1 for size in sizes)
            if thin:
                where = "first stage does" if thin == 1 else f"first {thin} stages do"
                clauses.append(
                    f"the {where} not mix neighbours along {name}, where voxels are coarser"
                )
        return "; ".join(clauses) + "."

    def check(self) -> None:
        """Refuses values that are out of range or do not fit together.

        Raises:
            ModelError: A field is invalid. The error names the field, its value and the expected
                value.
        """
        stages = len(self.features)
        if stages < 2:
            raise wrong_field("features", counted(stages, "stage"), "at least 2")
        for name in ("strides", "kernels", "blocks_encoder", "blocks_decoder"):
            length, expected = len(getattr(self, name)), stages - (name == "blocks_decoder")
            if length != expected:
                entries, of = counted(length, "entry", "entries"), counted(stages, "stage")
                raise wrong_field(name, entries, f"{expected} (features has {of})")
        if self.dimension not in (2, 3):
            raise wrong_field("strides", counted(self.dimension, "axis", "axes"), "2 or 3")
        for name, tuples in (("strides", self.strides), ("kernels", self.kernels)):
            for level, values in enumerate(tuples):
                if len(values) != self.dimension:
                    where, found = f"{name}[{level}]", counted(len(values), "axis", "axes")
                    raise wrong_field(where, found, f"{self.dimension} as in strides[0]")
        self._check_values()

    def _check_values(self) -> None:
        counts = ("features", "blocks_encoder", "blocks_decoder")
        for name, values in [(name, getattr(self, name)) for name in counts] + [
            ("in_channels", (self.in_channels,)),
            ("out_channels", (self.out_channels,)),
            *((f"strides[{level}]", values) for level, values in enumerate(self.strides)),
        ]:
            if min(values) < 1:
                raise wrong_field(name, str(min(values)), "1 or more")
        if max(self.strides[0]) != 1:
            # The decoder ends at the first stage, which must have the resolution of the image.
            raise wrong_field("strides[0]", str(list(self.strides[0])), "ones")
        for level, kernel in enumerate(self.kernels):
            if any(size < 1 or size % 2 == 0 for size in kernel):
                raise wrong_field(f"kernels[{level}]", str(list(kernel)), "odd sizes")

    def unlike(self, source: NetworkContract) -> str:
        """Says why the weights of another network do not correspond; "" if they do.

        The encoders must be of the same type. Depth, features and kernels may differ.
        """
        if isinstance(source, UNetStages) and type(source) is not type(self):
            return (
                f"The source's encoder is {source.ENCODER_IN_WORDS}, the target's "
                f"{self.ENCODER_IN_WORDS}: their weights do not correspond."
            )
        return super().unlike(source)


class UNetSpec(UNetStages, frozen=True, kw_only=True, tag="unet"):
    """A U-Net of plain convolutions."""

    RESIDUAL: ClassVar[bool] = False
    ENCODER_IN_WORDS: ClassVar[str] = "plain (default)"
    # Digests of version 0.1 leave out this tag, since it was the default value of a field.
    TAG_IS_DEFAULT: ClassVar[bool] = True

    @property
    def first_convolution(self) -> str:
        """The name of the first weight, the first convolution of the first stage."""
        return "encoder.0.0.conv.weight"

    def _encoder_elements(self, maps: Sequence[int]) -> int:
        stages = zip(self.features, maps, self.blocks_encoder, strict=True)
        return sum(features * voxels * blocks for features, voxels, blocks in stages)


class ResidualUNetSpec(UNetStages, frozen=True, kw_only=True, tag="resenc"):
    """A U-Net with a stem and residual blocks in the encoder."""

    RESIDUAL: ClassVar[bool] = True
    ENCODER_IN_WORDS: ClassVar[str] = "residual (M, L, XL)"

    @property
    def first_convolution(self) -> str:
        """The name of the first weight, the convolution of the stem."""
        return "stem.conv.weight"

    def _encoder_elements(self, maps: Sequence[int]) -> int:
        # The stem, two convolutions per block, a projection where features or resolution change.
        total = self.features[0] * maps[0]
        before = (self.features[0], maps[0])
        for features, voxels, blocks in zip(self.features, maps, self.blocks_encoder, strict=True):
            skip = before != (features, voxels)
            total += features * voxels * (2 * blocks + skip)
            before = (features, voxels)
        return total
