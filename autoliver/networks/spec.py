"""The networks there are, as values: no torch here, so that plans can hold them."""

from typing import cast

from autoliver.artifacts import to_record
from autoliver.networks.unet_spec import ResidualUNetSpec, UNetSpec

__all__ = ["NetworkSpec", "ResidualUNetSpec", "UNetSpec", "read_spec"]

# In files the members are told apart by "kind". What a member answers: contract.py.
NetworkSpec = UNetSpec | ResidualUNetSpec


def read_spec(fields: object, *, where: str) -> NetworkSpec:
    """The network of plain JSON values.

    Args:
        fields: The values, "kind" among them.
        where: Where they come from, for the message.

    Raises:
        ArtifactError: The kind is unknown, or a field does not fit.
    """
    # msgspec takes a union; typing has no type for "the type of one of these" before PEP 747.
    return to_record(fields, cast("type[NetworkSpec]", NetworkSpec), where=where)
