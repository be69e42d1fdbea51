"""The two U-Nets as values: plain, and with a residual encoder."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from autoliver.errors import ModelError
from autoliver.networks.contract import ENCODER, NetworkContract, PartGroup, WeightRole

_DECODER = "decoder"


class UNetStages(NetworkContract, frozen=True, kw_only=True, tag_field="kind"):
    """What both U-Nets have in common, in 2D or 3D.

    The number of stages is the length of `features`. Every per-stage tuple has that length; the
    decoder has one stage less. The first stage has stride 1.

    Attributes:
        features: Features per stage, full resolution first.
        strides: Per stage, one stride per axis (2 or 3 axes); the first all ones.
        kernels: Per stage, one odd kernel size per axis.
        blocks_encoder: Convolutions (or residual blocks) per encoder stage.
        blocks_decoder: Convolutions per decoder stage, deepest last (length: stages - 1).
    """

    RESIDUAL: ClassVar[bool]
    ENCODER_IN_WORDS: ClassVar[str]

    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks_encoder: tuple[int, ...]
    blocks_decoder: tuple[int, ...]

    @property
    def summary(self) -> str:
        """Kind and features, as "unet 32-64-128"."""
        return f"{self.kind} {'-'.join(map(str, self.features))}"

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.strides[0])

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Per axis, by how much the input shrinks on its way to the bottleneck."""
        total = [1] * self.dimension
        for stride in self.strides:
            total = [t * s for t, s in zip(total, stride, strict=True)]
        return tuple(total)

    @property
    def output_levels(self) -> int:
        """One per stage of the decoder."""
        return len(self.features) - 1

    @property
    def parts(self) -> tuple[PartGroup, ...]:
        """The stages of the encoder, the first with the stem, and those of the decoder."""
        stages = len(self.features)
        return (
            PartGroup(name=ENCODER, stages=stages, first="with the stem"),
            PartGroup(name=_DECODER, stages=stages - 1, first="full resolution"),
        )

    def role(self, name: str) -> WeightRole:
        """What a weight is there for, by its name.

        The lowest of several heads has no share in the loss.

        Raises:
            ValueError: No U-Net has such a weight.
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
        raise ValueError(f"{name} is no weight of a U-Net")

    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """As nnU-Net counts: of the heads only the one at full resolution."""
        size, maps = list(patch_shape), []
        for stride in self.strides:
            size = [n // s for n, s in zip(size, stride, strict=True)]
            maps.append(math.prod(size))
        # Each decoder stage: the transposed convolution and its blocks, at its skip's resolution.
        decoder = sum(
            features * voxels * (blocks + 1)
            for features, voxels, blocks in zip(
                self.features[:-1], maps[:-1], self.blocks_decoder, strict=True
            )
        )
        head = self.out_channels * maps[0]
        return self._encoder_elements(maps) + decoder + head

    @abstractmethod
    def _encoder_elements(self, maps: Sequence[int]) -> int:
        """Values in the convolution outputs of the encoder.

        Args:
            maps: Voxels of a feature map, per stage.
        """
        raise NotImplementedError

    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """How often each axis is halved, down to what, and where kernels are thin."""
        halvings = [sum(s > 1 for s in axis) for axis in zip(*self.strides, strict=True)]
        bottom = [n // t for n, t in zip(patch_shape, self.total_stride, strict=True)]
        counts = ", ".join(f"{name} {k}x" for name, k in zip(axes, halvings, strict=True))
        clauses = [
            f"{len(self.strides)} stages of {self.features[0]} to {self.features[-1]} "
            f"features: an axis is halved ({counts}) while at least 8 voxels are left and its "
            f"spacing is within twice the finest, down to {' x '.join(map(str, bottom))} voxels"
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
        """Refuses per-stage values that do not belong together.

        Raises:
            ModelError: As every network.
        """
        stages = len(self.features)
        if stages < 2:
            raise _wrong("features", f"{stages} stages", "at least 2")
        for name in ("strides", "kernels", "blocks_encoder", "blocks_decoder"):
            length, expected = len(getattr(self, name)), stages - (name == "blocks_decoder")
            if length != expected:
                raise _wrong(
                    name, f"{length} entries", f"{expected} (features has {stages} stages)"
                )
        if self.dimension not in (2, 3):
            raise _wrong("strides", f"{self.dimension} axes", "2 or 3")
        for name, tuples in (("strides", self.strides), ("kernels", self.kernels)):
            for level, values in enumerate(tuples):
                if len(values) != self.dimension:
                    where, found = f"{name}[{level}]", f"{len(values)} axes"
                    raise _wrong(where, found, f"{self.dimension} as in strides[0]")
        self._check_values()

    def _check_values(self) -> None:
        counts = ("features", "blocks_encoder", "blocks_decoder")
        for name, values in [(name, getattr(self, name)) for name in counts] + [
            ("in_channels", (self.in_channels,)),
            ("out_channels", (self.out_channels,)),
            *((f"strides[{level}]", values) for level, values in enumerate(self.strides)),
        ]:
            if min(values) < 1:
                raise _wrong(name, str(min(values)), "1 or more")
        if max(self.strides[0]) != 1:
            # The decoder ends at the first stage, which has to be the image's own resolution.
            raise _wrong("strides[0]", str(list(self.strides[0])), "ones")
        for level, kernel in enumerate(self.kernels):
            if any(size < 1 or size % 2 == 0 for size in kernel):
                raise _wrong(f"kernels[{level}]", str(list(kernel)), "odd sizes")

    def unlike(self, source: NetworkContract) -> str:
        """The encoders must be of one type; depth, features and kernels may differ."""
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
    # Digests of version 0.1 leave this tag out, since it was the default of a field.
    TAG_IS_DEFAULT: ClassVar[bool] = True

    @property
    def first_convolution(self) -> str:
        """The first of the first stage."""
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
        """The stem's."""
        return "stem.conv.weight"

    def _encoder_elements(self, maps: Sequence[int]) -> int:
        # The stem, two convolutions per block, a skip where features or resolution change.
        total = self.features[0] * maps[0]
        before = (self.features[0], maps[0])
        for features, voxels, blocks in zip(self.features, maps, self.blocks_encoder, strict=True):
            skip = before != (features, voxels)
            total += features * voxels * (2 * blocks + skip)
            before = (features, voxels)
        return total


def _wrong(field: str, found: str, expected: str) -> ModelError:
    return ModelError(
        f"network: {field}: found {found}, expected {expected}.",
        hint="Correct the network in plan.json, or make the plan again with: autoliver plan",
    )
