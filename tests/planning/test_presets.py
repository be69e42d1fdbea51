"""What presets say of their networks is true of the networks that are built."""

from typing import get_args

import pytest

from autoliver.memory import GB
from autoliver.networks.build import build_without_weights
from autoliver.planning.names import Architecture, EncoderName
from autoliver.planning.presets import preset_row

ARCHITECTURES: tuple[Architecture, ...] = ("unet", "omnia", "dxnet", "dsnet")
BYTES_OF_A_WEIGHT = 20  # itself, its gradient, two means of the optimiser, and the running mean


@pytest.mark.parametrize("patch", [(512, 512), (128, 128, 128)], ids=["2d", "3d"])
@pytest.mark.parametrize("encoder", get_args(EncoderName))
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_memory_of_weights_is_that_of_the_network(
    arch: Architecture, encoder: EncoderName, patch: tuple[int, ...]
) -> None:
    row = preset_row("default", arch, encoder)
    topology = row.topology((1.0,) * len(patch), patch)
    spec = row.network(topology, in_channels=1, out_channels=3)
    network = build_without_weights(spec, deep_supervision=False)
    held = sum(each.numel() for each in network.parameters()) * BYTES_OF_A_WEIGHT / GB
    assert row.fixed_gb[len(patch)] == pytest.approx(held, rel=0.01)
