"""The spec of a U-Net whose encoder is a network for classification, such as EfficientNet."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from autoliver.networks.contract import (
    ENCODER,
    NetworkContract,
    PartGroup,
    Pretrainable,
    WeightRole,
    halvings_of,
    product_of,
    voxels_of,
    wrong_field,
)
from autoliver.networks.encoders import ENCODERS, LEVELS, EncoderRow, Spans
from autoliver.values import counted

Feed = Literal["image", "front"]
Upsampling = Literal["nearest", "transposed"]
Activation = Literal["relu", "silu"]

_FRONT = "front"
_DECODER = "decoder"
# Features of the branch at full resolution, as in Omnia-Net and DX-Net.
FRONT_FEATURES = 16


class EncoderUNetSpec(
    NetworkContract, frozen=True, kw_only=True, tag_field="kind", tag="encoder-unet"
):
    """A U-Net with a classification encoder, in 2D or 3D: Omnia-Net, DX-Net and our own.

    Level 0 has full resolution and is a single convolution, the front; the encoder makes levels 1
    to 5, and the decoder levels 4 to 0. All norms are batch norms (Messaoudi et al. 2023).

    Attributes:
        TAKES_CLASS_HEAD: Whether the network can have a class head.
        encoder: The name of the encoder.
        features: Number of features of the decoder per level, full resolution first.
        strides: Per level, from 0 to 5, one stride per axis (2 or 3 axes); level 0 has ones only. A
            level may keep the resolution of the one above.
        thin_levels: In 3D, the number of levels, from level 0 downwards, whose kernels have the
            size 1 along the first axis, so that coarse slices are not mixed.
        feed: What the encoder is applied to: the image, so that a stem can be pre-trained, or the
            features of the front.
        up: How the decoder enlarges features: by repeating them, or with transposed convolutions.
        activation: The non-linearity of the front and the decoder; the encoder has its own.
        drop_path: Probability, from 0 to 1, that training leaves out the last block of the
            encoder; it grows linearly from 0 at the first block.
    """

    TAKES_CLASS_HEAD: ClassVar[bool] = True

    encoder: str
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    thin_levels: int = 0
    feed: Feed = "image"
    up: Upsampling = "nearest"
    activation: Activation = "relu"
    drop_path: float = 0.0

    @property
    def row(self) -> EncoderRow:
        """The encoder as published."""
        return ENCODERS[self.encoder]

    @property
    def summary(self) -> str:
        """The encoder and the decoder's features, e.g. "resnet18 + 16-32-64-128-256"."""
        return f"{self.encoder} + {'-'.join(map(str, self.features))}"

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
        """One, since there is no deep supervision; 0 for a classifier of patches."""
        return 1 if self.head_channels else 0

    @property
    def parts(self) -> tuple[PartGroup, ...]:
        """The front, the levels of the encoder, and those of the decoder.

        If the encoder sees the image itself, the front is beside it: only the decoder follows it.
        """
        front = PartGroup(name=_FRONT, stages=1)
        encoder = PartGroup(name=ENCODER, stages=LEVELS, first="the stem", from_image=True)
        decoder = PartGroup(name=_DECODER, stages=LEVELS, first="full resolution")
        return (front, encoder, decoder) if self.feed == "front" else (encoder, front, decoder)

    @property
    def first_convolution(self) -> str:
        """The name of the convolution of the front."""
        return "front.conv.weight"

    def sees_image(self, name: str) -> bool:
        """Whether a weight is applied to the image: the front's, and the stem's if fed with it."""
        stem = f"encoder.{self.row.stem_weight}"
        return name == self.first_convolution or (self.feed == "image" and name == stem)

    @property
    def pretrainable(self) -> Pretrainable:
        """The encoder; what it is like is the same network in 2D, of a colour image."""
        flat = tuple(stride[-2:] for stride in self.strides)
        return Pretrainable(
            encoder=self.encoder,
            prefix="encoder.",
            stem=self.feed == "image",
            alike=self.replace(in_channels=3, strides=flat, thin_levels=0),
        )

    def kernel(self, level: int) -> tuple[int, ...]:
        """Returns the kernel size of front, decoder and head per axis at a level."""
        return tuple(3 if spans else 1 for spans in self._spans(level))

    @property
    def spans(self) -> Spans:
        """For each of levels 1 to 5 and each axis, whether kernels reach neighbours along it."""
        return tuple(self._spans(level) for level in range(1, LEVELS + 1))

    def _spans(self, level: int) -> tuple[bool, ...]:
        return (*((level >= self.thin_levels,) * (self.dimension - 2)), True, True)

    def role(self, name: str) -> WeightRole:
        """Returns the role of a weight, or of a statistic of a norm.

        The front of a classifier of patches is idle unless the encoder is applied to its features.

        Raises:
            ValueError: The network has no weight of this name.
        """
        match name.split("."):
            case ["encoder", *_]:
                return WeightRole(part=(ENCODER, self._level(name)))
            case ["front", *_]:
                unused = not self.head_channels and self.feed == "image"
                return WeightRole(part=(_FRONT, 0), idle=unused)
            case ["up", level, *_]:
                return WeightRole(part=(_DECODER, int(level)), transposed=True)
            case ["decoder", level, *_]:
                return WeightRole(part=(_DECODER, int(level)))
            case ["heads", *_]:
                return WeightRole(head=True)
            case ["classifier", *_]:
                return WeightRole(tells_classes=True)
        raise ValueError(f"{name} is not a weight of a U-Net with an encoder")

    def strides_to(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Returns the strides down to a weight's level; of `up`, to the level that it enlarges."""
        match name.split("."):
            case ["encoder", *_]:
                return self.strides[: self._level(name) + 2]
            case ["up", level, *_]:
                return self.strides[: int(level) + 2]
            case ["decoder", level, *_]:
                return self.strides[: int(level) + 1]
            case ["classifier", *_]:
                return ()
        return self.strides[:1]

    def _level(self, name: str) -> int:
        """The level of the encoder of a weight, counted from 0, which is half resolution."""
        return self.row.level(name.removeprefix("encoder."))

    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """Returns the number of values in all convolution outputs for one patch."""
        voxels = voxels_of(self.strides, patch_shape)
        total = FRONT_FEATURES * voxels[0] + self.row.elements(voxels[1:])
        if not self.head_channels:
            return total
        below = self.row.features[-1]
        for level in reversed(range(LEVELS)):
            # What comes from below is enlarged, by repeating or by a convolution.
            total += voxels[level] * (below + 2 * self.features[level])
            below = self.features[level]
        return total + self.head_channels * voxels[0]

    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """Describes encoder and decoder, how often each axis is halved, and the final size."""
        counts, bottom = halvings_of(self.strides, patch_shape, axes=axes)
        fed = "" if self.feed == "image" else " applied to the features of the front"
        text = (
            f"Encoder {self.encoder}{fed}, a front of {FRONT_FEATURES} features at full "
            f"resolution, and a decoder of {self.features[0]} to {self.features[-1]} features: an "
            f"axis is halved ({counts}) down to {bottom} voxels"
        )
        thin = self.thin_levels
        if thin:
            first = "first level does" if thin == 1 else f"first {thin} levels do"
            text += f"; the {first} not mix neighbours along {axes[0]}, where voxels are coarser"
        return text + "."

    def check(self) -> None:
        """Refuses values that are out of range or do not fit together.

        Raises:
            ModelError: A field is invalid. The error names the field, its value and the expected
                value.
        """
        if self.encoder not in ENCODERS:
            raise wrong_field("encoder", self.encoder, f"one of {', '.join(ENCODERS)}")
        for name, length in (("features", LEVELS), ("strides", LEVELS + 1)):
            found = len(getattr(self, name))
            if found != length:
                raise wrong_field(name, counted(found, "entry", "entries"), str(length))
        if self.dimension not in (2, 3):
            raise wrong_field("strides", counted(self.dimension, "axis", "axes"), "2 or 3")
        for level, stride in enumerate(self.strides):
            if len(stride) != self.dimension:
                found_axes = counted(len(stride), "axis", "axes")
                raise wrong_field(
                    f"strides[{level}]", found_axes, f"{self.dimension} as in strides[0]"
                )
            if any(step not in ((1, 2) if level else (1,)) for step in stride):
                allowed = "1 or 2 per axis" if level else "ones"
                raise wrong_field(f"strides[{level}]", str(list(stride)), allowed)
        self._check_values()

    def _check_values(self) -> None:
        for name in ("in_channels", "out_channels", "features"):
            value = getattr(self, name)
            least = min(value) if isinstance(value, tuple) else value
            if least < 1:
                raise wrong_field(name, str(least), "1 or more")
        most = LEVELS + 1 if self.dimension == 3 else 0
        if not 0 <= self.thin_levels <= most:
            raise wrong_field("thin_levels", str(self.thin_levels), f"0 to {most}")
        if not 0 <= self.drop_path < 1:
            raise wrong_field("drop_path", f"{self.drop_path:g}", "0 or more and below 1")

    def unlike(self, source: NetworkContract) -> str:
        """Says why the weights of another network do not correspond; "" if they do.

        Encoder and what it is applied to must be the same. Decoder, strides and dimension may
        differ.
        """
        if not isinstance(source, EncoderUNetSpec):
            return super().unlike(source)
        if source.encoder != self.encoder:
            return (
                f"The source's encoder is {source.encoder}, the target's {self.encoder}: "
                "their weights do not correspond."
            )
        if source.feed != self.feed:
            return (
                f"The source's encoder is applied to {_FED[source.feed]}, the target's to "
                f"{_FED[self.feed]}: their weights do not correspond."
            )
        return ""


_FED: dict[Feed, str] = {"image": "the image", "front": "the features of the front"}
