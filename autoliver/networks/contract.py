"""The interface of all network specs, without torch.

Each network is a member of the union in spec.py. Adding a network takes a record derived from
`NetworkContract`, a torch module, an entry in the union, a line in build.py, and a preset that
plans it. Nothing else in the package depends on which networks exist. An example is in
tests/networks/new_network.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from msgspec import UNSET, UnsetType

from autoliver.artifacts import Record
from autoliver.errors import ModelError

# Larger numbers are damage: of channels and features, of levels, of blocks on all levels.
MOST_CHANNELS, MOST_LEVELS, MOST_BLOCKS = 65_536, 64, 2_000

# A part of a network: (group, stage), e.g. ("encoder", 0) for the first stage of the encoder.
Part = tuple[str, int]

# The group of parts whose learning rate `--encoder-factor` scales.
ENCODER = "encoder"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartGroup:
    """A named group of parts of a network, which are numbered from 0.

    Attributes:
        name: The name of the group, as in `--freeze NAME`.
        stages: The number of parts.
        first: A remark about part 0 for the user, e.g. "full resolution"; empty for none.
        from_image: Whether part 0 is the one next to the image; False: next to the output.
    """

    name: str
    stages: int
    first: str = ""
    from_image: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightRole:
    """The role of a weight in a network.

    Attributes:
        part: The part that the weight is frozen with; None if it belongs to no part and is always
            trained.
        head: Whether it belongs to a segmentation head, whose output channels stand for labels.
        idle: Whether it belongs to a part that does not contribute to the loss, so that it gets no
            gradient.
        transposed: Whether it belongs to a transposed convolution whose kernel size equals its
            stride.
        concatenated: Whether its input features are the concatenation of two groups of equal size.
        tells_classes: Whether it belongs to the head that tells the class of lesions.
        merged: The axis of the weight that counts the features of all neighbours that a strided
            level merges into one voxel, where neighbours along the last image axis lie furthest
            apart; None if it has no such axis.
    """

    part: Part | None = None
    head: bool = False
    idle: bool = False
    transposed: bool = False
    concatenated: bool = False
    tells_classes: bool = False
    merged: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrainable:
    """An encoder in a network for which there are weights from image classification.

    Attributes:
        encoder: The name of the encoder.
        prefix: What the names of its weights begin with in the network.
        stem: Whether its first convolution is applied to the image, or to three channels like one;
            otherwise it sees other features than that of a network for classification.
        alike: A network of the same kind that classification weights fit as they are, 2D with three
            channels where this network has an image.
    """

    encoder: str
    prefix: str
    stem: bool
    alike: "NetworkContract"


class ClassHead(Record, frozen=True, kw_only=True):
    """A head on the deepest features of a network that tells the class of the lesion in a patch.

    Attributes:
        rows: The output channels that are classes of lesions, in the order of the classes.
        alone: Whether nothing is segmented: the network is a classifier of patches.
    """

    rows: tuple[int, ...]
    alone: bool = False


class NetworkContract(Record, frozen=True, kw_only=True):
    """A network as a value. Weights are identified by their names in its module's state dict.

    Each network is a tagged struct: class X(NetworkContract, frozen=True, kw_only=True,
    tag_field="kind", tag="x").

    Attributes:
        TAKES_CLASS_HEAD: Whether the network can have a class head.
        in_channels: Number of image channels, plus the one-hot channels of a previous stage if
            there is one.
        out_channels: Number of output channels: classes including the background, or regions.
        class_head: The head that tells the class of lesions, if there is one; the segmentation
            heads then have a single channel for lesions of all classes.
    """

    TAKES_CLASS_HEAD: ClassVar[bool] = False

    in_channels: int
    out_channels: int
    # Networks without one keep their form in files.
    class_head: ClassHead | UnsetType = UNSET

    @property
    def classifier(self) -> ClassHead | None:
        """The head that tells the class of lesions; None without one."""
        return self.class_head if isinstance(self.class_head, ClassHead) else None

    @property
    def classifies(self) -> bool:
        """Whether it only tells the class of patches, and segments nothing."""
        return self.classifier is not None and self.classifier.alone

    @property
    def head_channels(self) -> int:
        """The number of channels of each segmentation head; 0 if nothing is segmented."""
        if self.classifier is None:
            return self.out_channels
        return 0 if self.classifier.alone else self.out_channels - len(self.classifier.rows) + 1

    @property
    def kind(self) -> str:
        """The name of this type of network in files."""
        return str(self.__struct_config__.tag)

    @property
    def summary(self) -> str:
        """A description of the network in a few words, for tables and messages."""
        return self.kind

    @property
    @abstractmethod
    def dimension(self) -> int:
        """The number of image axes, 2 or 3."""
        raise NotImplementedError

    @property
    @abstractmethod
    def total_stride(self) -> tuple[int, ...]:
        """The number that the patch size must be a multiple of, per axis."""
        raise NotImplementedError

    @property
    @abstractmethod
    def output_levels(self) -> int:
        """The number of outputs with deep supervision, of which full resolution is the first."""
        raise NotImplementedError

    @property
    def lowest_weight(self) -> float:
        """The weight of the last output in the loss, before normalisation; the first has 1."""
        return 0.0

    @property
    @abstractmethod
    def parts(self) -> tuple[PartGroup, ...]:
        """The parts that can be frozen, from the image to the output."""
        raise NotImplementedError

    @property
    @abstractmethod
    def first_convolution(self) -> str:
        """The name of the first weight, which is applied to the image.

        Its shape is (features, in_channels, *kernel).
        """
        raise NotImplementedError

    def sees_image(self, name: str) -> bool:
        """Whether a weight is applied to the image; in most networks, only the first one is."""
        return name == self.first_convolution

    @property
    def pretrainable(self) -> Pretrainable | None:
        """The encoder for which there are weights from image classification; None without one."""
        return None

    @abstractmethod
    def role(self, name: str) -> WeightRole:
        """Returns the role of a weight."""
        raise NotImplementedError

    @abstractmethod
    def strides_to(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Returns the stride of each level from the image to what a weight is applied to.

        Weights of a 2D and a 3D network correspond only where these agree in plane. Empty for
        weights that are applied at no resolution.
        """
        raise NotImplementedError

    @abstractmethod
    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """Returns the number of values in all convolution outputs for one patch.

        This estimates the memory of the network without building it.

        Args:
            patch_shape: Patch size per axis, divisible by `total_stride`.
        """
        raise NotImplementedError

    @abstractmethod
    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """Describes how the network processes a patch, in one sentence for the plan.

        Args:
            patch_shape: Patch size per axis.
            axes: The letter of each axis, e.g. "zyx".
        """
        raise NotImplementedError

    @abstractmethod
    def check(self) -> None:
        """Refuses specs from which no network can be built.

        Raises:
            ModelError: A field is invalid. The error names the field, its value and the expected
                value.
        """
        raise NotImplementedError

    def check_size(self) -> None:
        """Refuses numbers that no network has, before anything is built or counted with them.

        Raises:
            ModelError: As for `check`.
        """
        blocks = 0
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, NetworkContract):
                value.check_size()
            for number in _numbers(value, name):
                if not abs(number) <= MOST_CHANNELS:
                    raise wrong_field(name, f"{number:g}", f"at most {MOST_CHANNELS}")
                blocks += int(number) if name.startswith("blocks") else 0
        if blocks > MOST_BLOCKS:
            raise wrong_field("blocks", str(blocks), f"at most {MOST_BLOCKS} in all")

    def check_class_head(self) -> None:
        """Refuses a class head that the network cannot have.

        Raises:
            ModelError: As for `check`.
        """
        head = self.classifier
        if head is None:
            return
        if not self.TAKES_CLASS_HEAD:
            raise wrong_field("class_head", "a head", f"none: a {self.kind} can have none")
        fitting = {row for row in head.rows if 0 < row < self.out_channels}
        if len(fitting) != len(head.rows) or len(fitting) < 2:
            expected = f"at least two different rows from 1 to {self.out_channels - 1}"
            raise wrong_field("class_head.rows", str(list(head.rows)), expected)

    def unlike(self, source: "NetworkContract") -> str:
        """Says why the weights of another network do not correspond to those of this network.

        Args:
            source: The other network. It may differ in size and dimension.

        Returns:
            One sentence; "" if they correspond, so that weights of the same name have the same
            role in both networks.
        """
        if type(source) is type(self):
            return ""
        return (
            f"The source's network is {source.summary}, the target's {self.summary}: "
            "their weights do not correspond."
        )


def wrong_field(field: str, found: str, expected: str) -> ModelError:
    """Makes the error of `NetworkContract.check` for an invalid field.

    Args:
        field: The field, e.g. "strides[2]".
        found: Its value.
        expected: What is expected instead.
    """
    return ModelError(
        f"network: {field}: found {found}, expected {expected}.",
        hint="Correct the network in plan.json, or make the plan again with: autoliver plan",
    )


def _numbers(value: object, name: str) -> Iterator[float]:
    """All numbers in a field of a spec.

    Raises:
        ModelError: A list is longer than the levels of any network.
    """
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, tuple):
        if len(value) > MOST_LEVELS:
            raise wrong_field(name, f"{len(value)} entries", f"at most {MOST_LEVELS}")
        for each in value:
            yield from _numbers(each, name)


def product_of(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Returns the factor by which levels downsample together, per axis."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def voxels_of(strides: Sequence[Sequence[int]], patch_shape: Sequence[int]) -> list[int]:
    """Returns the number of voxels of a feature map at each level."""
    size, voxels = list(patch_shape), []
    for stride in strides:
        size = [n // s for n, s in zip(size, stride, strict=True)]
        voxels.append(math.prod(size))
    return voxels


def halvings_of(
    strides: Sequence[Sequence[int]], patch_shape: Sequence[int], *, axes: str
) -> tuple[str, str]:
    """Says how often each axis is halved, such as "y 4x, x 5x", and what is left of a patch.

    Args:
        strides: The stride of each level, per axis.
        patch_shape: Patch size per axis.
        axes: The letter of each axis.
    """
    halvings = [sum(s > 1 for s in axis) for axis in zip(*strides, strict=True)]
    bottom = [n // t for n, t in zip(patch_shape, product_of(strides), strict=True)]
    counts = ", ".join(f"{name} {k}x" for name, k in zip(axes, halvings, strict=True))
    return counts, " x ".join(map(str, bottom))
