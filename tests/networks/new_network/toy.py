"""The module of the network of two convolutions."""

# isort takes the spec for a foreign package, since it is not in networks/ yet.
import torch  # noqa: I001
from torch import nn

from autoliver.networks.blocks import CONV, activation
from autoliver.networks.toy_spec import ToySpec


class Toy(nn.Module):
    """The network of a `ToySpec`."""

    def __init__(self, spec: ToySpec, *, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        conv = CONV[spec.dimension]
        self.body = conv(spec.in_channels, spec.features, 3, padding=1)
        self.activation = activation()
        self.head = conv(spec.features, spec.out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """(b, in_channels, *shape) -> (b, out_channels, *shape), or a list of it."""
        logits: torch.Tensor = self.head(self.activation(self.body(x)))
        return [logits] if self.deep_supervision else logits
