"""The depth of each part from the output, for every kind of network, in the order of its layers."""

import pytest

from autoliver.planning.names import Architecture, EncoderName
from autoliver.planning.presets import preset_row
from autoliver.training.rates import depths


def numbered(group: str, *numbers: int) -> list[tuple[str, int]]:
    return [(group, number) for number in numbers]


DECODER = numbered("decoder", 0, 1, 2, 3, 4)
ENCODER = numbered("encoder", 4, 3, 2, 1, 0)
# An encoder that is applied to the front is after it; one that sees the image is beside it.
BEHIND, BESIDE = [*DECODER, *ENCODER, ("front", 0)], [*DECODER, ("front", 0), *ENCODER]


@pytest.mark.parametrize(
    ("arch", "encoder", "wanted"),
    [
        ("unet", None, [*numbered("decoder", 0, 1), *numbered("encoder", 2, 1, 0)]),
        (
            "medformer",
            None,
            [*numbered("decoder", 0, 1, 2, 3), ("fusion", 0), *numbered("encoder", 4, 3, 2, 1, 0)],
        ),
        ("unet", "resnet18", BESIDE),
        ("omnia", "efficientnet_b0", BEHIND),
        ("dxnet", "efficientnet_b0", BEHIND),
        (
            "dsnet",
            "efficientnet_b0",
            [*numbered("unstack", 0, 1, 2, 3), *BESIDE, *numbered("stack", 4, 3, 2, 1, 0)],
        ),
    ],
)
def test_parts_are_counted_from_the_output(
    arch: Architecture, encoder: EncoderName | None, wanted: list[tuple[str, int]]
) -> None:
    row = preset_row("tiny", arch, encoder)
    patch = (8, 16, 16) if arch in ("dxnet", "dsnet") else (16, 16)
    topology = row.topology((1.0,) * len(patch), patch)
    spec = row.network(topology, in_channels=1, out_channels=2)
    found = depths(spec)
    assert sorted(found, key=found.__getitem__) == wanted
    assert sorted(found.values()) == list(range(1, len(wanted) + 1))
