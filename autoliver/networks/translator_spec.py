"""The spec of the network that translates images of one modality into another."""

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

_BLOCKS = "blocks"
_DECODER = "decoder"
_SECOND_COMPARED = 4  # the fifth block, or the last of fewer


class TranslatorSpec(
    NetworkContract, frozen=True, kw_only=True, tag_field="kind", tag="translator"
):
    """The residual network of CycleGAN in 2D or 3D: down, residual blocks, and up again.

    With tanh outputs it is a generator of images, with linear ones a segmentation network, as in
    EssNet (Huo et al., SynSeg-Net, TMI 2019). Instance norms have no weights. The architecture is
    that of Johnson et al. (ECCV 2016) as Zhu et al. (ICCV 2017) use it.

    Attributes:
        features: Number of features at full resolution; each level down has twice as many.
        blocks: Number of residual blocks at the lowest resolution.
        strides: The stride of each level below full resolution, per axis (2 or 3 axes).
        outputs: Lowest and highest value of an output, which a tanh keeps to; None: no limits.
    """

    features: int
    blocks: int
    strides: tuple[tuple[int, ...], ...]
    outputs: tuple[float, float] | None = None

    @property
    def summary(self) -> str:
        """The kind, features and blocks of the network, e.g. "translator 64, 9 blocks"."""
        return f"{self.kind} {self.features}, {counted(self.blocks, 'block')}"

    @property
    def dimension(self) -> int:
        """The number of image axes, 2 or 3."""
        return len(self.strides[0])

    @property
    def every_stride(self) -> tuple[tuple[int, ...], ...]:
        """The stride of each level; that of full resolution is 1."""
        return ((1,) * self.dimension, *self.strides)

    @property
    def total_stride(self) -> tuple[int, ...]:
        """The factor by which the network downsamples its input, per axis."""
        return product_of(self.strides)

    @property
    def compared_blocks(self) -> tuple[int, ...]:
        """The residual blocks whose features contrastive translation compares: first and fifth."""
        return tuple(sorted({0, min(_SECOND_COMPARED, self.blocks - 1)}))

    @property
    def compared_features(self) -> tuple[int, ...]:
        """The number of channels of each of `Translator.features`."""
        levels = [self.features * 2**level for level in range(1, len(self.strides) + 1)]
        return (self.in_channels, *levels, *(levels[-1] for _ in self.compared_blocks))

    @property
    def output_levels(self) -> int:
        """One: the output at full resolution."""
        return 1

    @property
    def parts(self) -> tuple[PartGroup, ...]:
        """The way down, the blocks, and the way up."""
        levels = len(self.strides)
        return (
            PartGroup(name=ENCODER, stages=levels + 1, first="full resolution", from_image=True),
            PartGroup(name=_BLOCKS, stages=self.blocks),
            PartGroup(name=_DECODER, stages=levels, first="full resolution"),
        )

    @property
    def first_convolution(self) -> str:
        """The name of the first weight, which is applied to the image."""
        return "encoder.0.conv.weight"

    def role(self, name: str) -> WeightRole:
        """Returns the role of a weight.

        Raises:
            ValueError: The network has no weight of this name.
        """
        match name.split("."):
            case ["encoder", level, *_]:
                return WeightRole(part=(ENCODER, int(level)))
            case ["blocks", number, *_]:
                return WeightRole(part=(_BLOCKS, int(number)))
            case ["decoder", level, *_]:
                return WeightRole(part=(_DECODER, int(level)))
            case ["head", *_]:
                return WeightRole(head=True)
        raise ValueError(f"{name} is not a weight of a translator")

    def strides_to(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Returns the strides down to a weight's level; on the way up, to the one it enlarges."""
        match name.split("."):
            case ["encoder", level, *_]:
                return self.every_stride[: int(level) + 1]
            case ["blocks", *_]:
                return self.every_stride
            case ["decoder", level, *_]:
                return self.every_stride[: int(level) + 2]
        return self.every_stride[:1]

    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """Returns the number of values in all convolution outputs for one patch."""
        maps = voxels_of(self.every_stride, patch_shape)
        ways = [self.features * 2**level * voxels for level, voxels in enumerate(maps)]
        blocks = 2 * self.blocks * ways[-1]
        total: int = sum(ways) + blocks + sum(ways[:-1]) + self.out_channels * maps[0]
        return total

    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """Describes how often each axis is halved and how many blocks there are."""
        counts, bottom = halvings_of(self.strides, patch_shape, axes=axes)
        return (
            f"{self.features} features at full resolution; axes are halved ({counts}), with "
            f"{counted(self.blocks, 'residual block')} at {bottom} voxels."
        )

    def check(self) -> None:
        """Refuses values that are out of range or do not fit together.

        Raises:
            ModelError: A field is invalid.
        """
        if not self.strides or self.dimension not in (2, 3):
            raise wrong_field("strides", str(self.strides), "levels of 2 or 3 axes")
        for level, stride in enumerate(self.strides):
            if len(stride) != self.dimension or any(step not in (1, 2) for step in stride):
                expected = f"{self.dimension} numbers that are 1 or 2"
                raise wrong_field(f"strides[{level}]", str(list(stride)), expected)
        for name in ("in_channels", "out_channels", "features", "blocks"):
            if getattr(self, name) < 1:
                raise wrong_field(name, str(getattr(self, name)), "1 or more")
        if self.outputs is not None and not self.outputs[0] < self.outputs[1]:
            raise wrong_field("outputs", str(list(self.outputs)), "a lower and a higher number")
