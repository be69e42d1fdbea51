"""The union of all network specs; it does not import torch, so that plans can contain specs."""

from typing import cast

from autoliver.artifacts import to_record
from autoliver.networks.ds_net_spec import DSNetSpec
from autoliver.networks.encoder_unet_spec import EncoderUNetSpec
from autoliver.networks.medformer_spec import MedFormerSpec
from autoliver.networks.translator_spec import TranslatorSpec
from autoliver.networks.unet_spec import ResidualUNetSpec, UNetSpec

__all__ = [
    "DSNetSpec",
    "EncoderUNetSpec",
    "MedFormerSpec",
    "NetworkSpec",
    "ResidualUNetSpec",
    "TranslatorSpec",
    "UNetSpec",
    "read_spec",
]

# In files, the key "kind" identifies the member. The interface of all members is in contract.py.
NetworkSpec = (
    UNetSpec | ResidualUNetSpec | MedFormerSpec | EncoderUNetSpec | DSNetSpec | TranslatorSpec
)


def read_spec(fields: object, *, where: str) -> NetworkSpec:
    """Builds a network spec from plain JSON values.

    Args:
        fields: The values, including "kind".
        where: The origin of the values, for the message.

    Raises:
        ArtifactError: The kind is unknown, or a field is missing, unknown or of the wrong type.
    """
    # msgspec takes a union; typing has no type for "the type of one of these" before PEP 747.
    return to_record(fields, cast("type[NetworkSpec]", NetworkSpec), where=where)
