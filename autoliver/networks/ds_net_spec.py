"""The spec of DS-Net, a 3D network around a 2D one with a classification encoder."""

import itertools
import math
from collections.abc import Sequence

from autoliver.networks.contract import (
    NetworkContract,
    Part,
    PartGroup,
    Pretrainable,
    WeightRole,
    wrong_field,
)
from autoliver.networks.encoder_unet_spec import EncoderUNetSpec
from autoliver.values import counted

# Features per level of the depth, full depth first; and what is left at the deepest level: so many
# images for the 2D network, whose slices take the place of red, green and blue.
STACK_FEATURES = (16, 32, 48, 96)
IMAGES = 4
SLICES = 3

_STACK, _UNSTACK = "stack", "unstack"
# Strides of the depth as published, for 128 slices, and those that there may be.
_PUBLISHED = ((3, 2, 2, 4), 128)
_STRIDES = ((1, 2, 3), (1, 2, 3), (1, 2, 3), (1, 2, 3, 4))
# The largest stride with which the depth is enlarged again.
_MOST_UP = 3
# Depths that strides lead to three slices from; there are none for four.
LEAST_DEPTH = SLICES
MOST_DEPTH = SLICES * math.prod(max(steps) for steps in _STRIDES)


def strides_of_depth(depth: int) -> tuple[int, ...]:
    """Returns four strides that lead from a number of slices to three, as near to the published.

    The published strides are those for 128 slices.

    Raises:
        ModelError: No strides do.
    """
    fitting = [steps for steps in itertools.product(*_STRIDES) if _depths(depth, steps)[-1] == 3]
    if not fitting:
        most = f"3 or 5 to {MOST_DEPTH}"
        raise wrong_field("depth", counted(depth, "slice"), most)
    published, slices = _PUBLISHED
    scale = (depth / slices) ** (1 / len(published))

    def distance(steps: tuple[int, ...]) -> float:
        return sum(abs(math.log(s / (p * scale))) for s, p in zip(steps, published, strict=True))

    return min(fitting, key=lambda steps: (distance(steps), steps))


def _depths(depth: int, steps: Sequence[int]) -> tuple[int, ...]:
    found = [depth]
    for step in steps:
        found.append(-(-found[-1] // step))
    return tuple(found)


class DSNetSpec(NetworkContract, frozen=True, kw_only=True, tag_field="kind", tag="ds-net"):
    """DS-Net ("dimensionally stacked"; Messaoudi et al. 2023), in 3D.

    Strided convolutions reduce a volume along the depth alone to four features of three slices,
    which a 2D network sees as four colour images. Its outputs are enlarged along the depth again.

    Attributes:
        depth: Number of slices. Longer patches are cut into slabs of so many.
        depth_strides: The strides along the depth of the four levels below full depth; they lead to
            three slices.
        plane: The 2D network, of three channels, for the three slices, and three outputs.
    """

    depth: int
    depth_strides: tuple[int, ...]
    plane: EncoderUNetSpec

    @property
    def summary(self) -> str:
        """The kind and the encoder of the 2D network, e.g. "ds-net efficientnet_b0"."""
        return f"{self.kind} {self.plane.encoder}"

    @property
    def dimension(self) -> int:
        """Always 3."""
        return 3

    @property
    def depths(self) -> tuple[int, ...]:
        """The number of slices at each of the five levels of the depth."""
        return _depths(self.depth, self.depth_strides)

    @property
    def total_stride(self) -> tuple[int, ...]:
        """The number of slices, and the factor by which the 2D network downsamples its images."""
        return (self.depth, *self.plane.total_stride)

    @property
    def output_levels(self) -> int:
        """One: there is no deep supervision."""
        return 1

    @property
    def parts(self) -> tuple[PartGroup, ...]:
        """The levels that reduce the depth, those of the 2D network, and those that enlarge it."""
        return (
            PartGroup(name=_STACK, stages=len(self.depths), first="full depth", from_image=True),
            *self.plane.parts,
            PartGroup(name=_UNSTACK, stages=len(self.depth_strides), first="full depth"),
        )

    @property
    def first_convolution(self) -> str:
        """The name of the first convolution, at full depth."""
        return "stack.0.conv.weight"

    @property
    def pretrainable(self) -> Pretrainable:
        """The encoder of the 2D network, whose image has three channels as it is."""
        return Pretrainable(
            encoder=self.plane.encoder,
            prefix="plane.encoder.",
            stem=self.plane.feed == "image",
            alike=self,
        )

    def up(self, level: int) -> tuple[int, int, int]:
        """Returns kernel, stride and padding that enlarge the depth of level + 1 to a level's."""
        small, large = self.depths[level + 1], self.depths[level]
        stride = min(self.depth_strides[level], _MOST_UP)
        kernel, padding = large - (small - 1) * stride, 0
        while kernel < stride:  # else some slices would get nothing
            kernel, padding = kernel + 2, padding + 1
        return kernel, stride, padding

    def role(self, name: str) -> WeightRole:
        """Returns the role of a weight, or of a statistic of a norm.

        Raises:
            ValueError: DS-Net has no weight of this name.
        """
        match name.split("."):
            case ["stack", level, *_]:
                return WeightRole(part=(_STACK, int(level)))
            case ["plane", *rest]:
                role = self.plane.role(".".join(rest))
                last: Part = ("decoder", 0)
                # The outputs of the 2D network are features here.
                return WeightRole(part=last) if role.head else role
            case ["up" | "unstack", level, *_]:
                return WeightRole(part=(_UNSTACK, int(level)))
            case ["heads", *_]:
                return WeightRole(head=True)
        raise ValueError(f"{name} is not a weight of DS-Net")

    def strides_to(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Returns the strides down to a weight's level."""
        match name.split("."):
            case ["plane", *rest]:
                return self.plane.strides_to(".".join(rest))
            case ["stack" | "unstack", level, *_]:
                return ((1, 1, 1), *((s, 1, 1) for s in self.depth_strides[: int(level)]))
            case ["up", level, *_]:
                return ((1, 1, 1), *((s, 1, 1) for s in self.depth_strides[: int(level) + 1]))
        return ((1, 1, 1),)

    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """Returns the number of values in all convolution outputs for one patch."""
        voxels = math.prod(patch_shape[1:])
        slabs = patch_shape[0] // self.depth
        # Down, enlarged, and merged.
        maps = 3 * sum(f * n for f, n in zip(STACK_FEATURES, self.depths, strict=False))
        maps += IMAGES * SLICES + self.out_channels * self.depth
        return slabs * (maps * voxels + IMAGES * self.plane.feature_map_elements(patch_shape[1:]))

    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """Describes how the depth is reduced, and the 2D network."""
        chain = " to ".join(map(str, self.depths))
        return (
            f"DS-Net: along {axes[0]}, {chain} slices, of which {IMAGES} features are the images "
            "of a 2D network, with their slices as colours. "
            f"{self.plane.describe(patch_shape[1:], axes=axes[1:])}"
        )

    def check(self) -> None:
        """Refuses values that are out of range or do not fit together.

        Raises:
            ModelError: A field is invalid. The error names the field, its value and the expected
                value.
        """
        if min(self.in_channels, self.out_channels) < 1:
            found = f"{self.in_channels} and {self.out_channels}"
            raise wrong_field("in_channels and out_channels", found, "1 or more")
        if len(self.depth_strides) != len(STACK_FEATURES) or min(self.depth_strides) < 1:
            raise wrong_field("depth_strides", str(list(self.depth_strides)), "four of 1 or more")
        if self.depths[-1] != SLICES:
            raise wrong_field(
                "depth_strides",
                f"{list(self.depth_strides)}, which lead to {counted(self.depths[-1], 'slice')}",
                f"{SLICES} slices",
            )
        channels = (self.plane.dimension, self.plane.in_channels, self.plane.out_channels)
        if channels != (2, SLICES, SLICES):
            found = f"{channels[0]}D, {channels[1]} and {channels[2]} channels"
            raise wrong_field("plane", found, f"2D, {SLICES} and {SLICES} channels")
        self.plane.check()

    def unlike(self, source: NetworkContract) -> str:
        """Says why the weights of another network do not correspond; "" if they do."""
        if isinstance(source, DSNetSpec):
            return self.plane.unlike(source.plane)
        return super().unlike(source)
