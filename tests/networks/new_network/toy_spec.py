"""A network of two convolutions as a value: an example of how a network is added."""

import math
from collections.abc import Sequence

from autoliver.errors import ModelError
from autoliver.networks.contract import NetworkContract, PartGroup, WeightRole


class ToySpec(NetworkContract, frozen=True, kw_only=True, tag_field="kind", tag="toy"):
    """Sees 3 voxels along each axis.

    Attributes:
        axes: 2 or 3.
        features: Between the two convolutions.
    """

    axes: int
    features: int = 8

    @property
    def dimension(self) -> int:
        """The axes."""
        return self.axes

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Patches may have any size."""
        return (1,) * self.axes

    @property
    def output_levels(self) -> int:
        """Full resolution alone."""
        return 1

    @property
    def parts(self) -> tuple[PartGroup, ...]:
        """The first convolution."""
        return (PartGroup(name="body", stages=1),)

    @property
    def first_convolution(self) -> str:
        """Its weight."""
        return "body.weight"

    def role(self, name: str) -> WeightRole:
        """The second convolution is the head."""
        return WeightRole(head=True) if name.startswith("head.") else WeightRole(part=("body", 0))

    def strides_to(self, name: str) -> tuple[tuple[int, ...], ...]:
        """Every weight is applied at full resolution."""
        return (self.total_stride,) if name.startswith(("body.", "head.")) else ()

    def feature_map_elements(self, patch_shape: Sequence[int]) -> int:
        """Of both convolutions."""
        return math.prod(patch_shape) * (self.features + self.out_channels)

    def describe(self, patch_shape: Sequence[int], *, axes: str) -> str:
        """What it sees of the patch."""
        size = " x ".join(map(str, patch_shape))
        return f"Two convolutions of {self.features} features see 3 voxels along {axes} of {size}."

    def check(self) -> None:
        """Features are counted from 1."""
        if self.features < 1:
            raise ModelError(f"network: features: found {self.features}, expected 1 or more.")
