"""What every network answers about itself, without torch.

A network is a member of the union in spec.py. It is added with a record derived from
`NetworkContract`, its torch module, its name in the union, a line in build.py, and a preset that
plans it; nothing else in the package knows which networks there are. An example is in
tests/networks/new_network.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from autoliver.artifacts import Record

# Group and stage of a part of a network: ("encoder", 0) is the first stage of the encoder.
Part = tuple[str, int]

# The group of parts whose learning rate `--encoder-factor` scales.
ENCODER = "encoder"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartGroup:
    """Parts of a network that have a name in common and are numbered from 0.

    Attributes:
        name: As in `--freeze NAME`.
        stages: How many parts there are.
        first: What people should know about part 0, e.g. "full resolution"; may be empty.
    """

    name: str
    stages: int
    first: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightRole:
    """What a weight is there for.

    Attributes:
        part: The part it is frozen with; None: it belongs to none and always learns.
        head: Whether it belongs to a segmentation head, whose rows stand for labels.
        idle: Whether it belongs to a head that has no share in the loss and gets no gradient.
        transposed: Whether it belongs to a transposed convolution whose kernel is its stride.
        concatenated: Whether its input features are two groups of equal size side by side.
    """

    part: Part | None = None
    head: bool = False
    idle: bool = False
    transposed: bool = False
    concatenated: bool = False


class NetworkContract(Record, frozen=True, kw_only=True):
    """A network as a value. Weights go by their names in the state dict of its module.

    Members are tagged: class X(NetworkContract, frozen=True, kw_only=True, tag_field="kind",
    tag="x").

    Attributes:
        in_channels: Image channels (and one-hot channels of a previous stage, if any).
        out_channels: Rows of the segmentation heads: classes incl. background, or regions.
    """

    in_channels: int
    out_channels: int

    @property
    def kind(self) -> str:
        """The word that stands for this type of network in files."""
        return str(self.__struct_config__.tag)

    @property
    def summary(self) -> str:
        """The network in a few words, for tables and messages."""
        return self.kind

    @property
    @abstractmethod
    def dimension(self) -> int:
        """The number of axes of its images, 2 or 3."""
        raise NotImplementedError

    @property
    @abstractmethod
    def total_stride(self) -> tuple[int, ...]:
        """What the size of a patch must be a multiple of, per axis."""
        raise NotImplementedError

    @property
    @abstractmethod
    def output_levels(self) -> int:
        """How many outputs it has with deep supervision, full resolution first."""
        raise NotImplementedError

    @property
    @abstractmethod
    def parts(self) -> tuple[PartGroup, ...]:
        """The parts that can be frozen."""
        raise NotImplementedError

    @property
    @abstractmethod
    def first_convolution(self) -> str:
        """The name of the weight that meets the image, (features, in_channels, *kernel)."""
        raise NotImplementedError

    @abstractmethod
    def role(self, name: str) -> WeightRole:
        """What the weight of that name is there for."""
        raise NotImplementedError

    @abstractmethod
    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """Values in all convolution outputs of one forward pass of one patch.

        The measure by which memory is judged without building the network.

        Args:
            patch_shape: One size per axis, divisible by `total_stride`.
        """
        raise NotImplementedError

    @abstractmethod
    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """What the network does with a patch, in one sentence for the plan.

        Args:
            patch_shape: One size per axis.
            axes: The letter of each axis, e.g. "zyx".
        """
        raise NotImplementedError

    @abstractmethod
    def check(self) -> None:
        """Refuses values that no network can be built from.

        Raises:
            ModelError: Naming the field, what it holds and what it should hold.
        """
        raise NotImplementedError

    def unlike(self, source: "NetworkContract") -> str:
        """Why weights of another network do not correspond to its own, in a sentence.

        Args:
            source: The other network, of the same dimension. It may differ in size.

        Returns:
            "" where they correspond: weights of one name then do the same in both.
        """
        if type(source) is type(self):
            return ""
        return (
            f"The source's network is {source.summary}, the target's {self.summary}: "
            "their weights do not correspond."
        )
