"""What presets say of their networks is true of the networks that are built."""

import math
from typing import get_args

import pytest

from autoliver.memory import GB
from autoliver.networks.build import build_without_weights
from autoliver.planning.names import Architecture, EncoderName, ZStrides
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


@pytest.mark.parametrize("z_strides", get_args(ZStrides))
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "medformer"])
def test_plans_leave_batch_norms_more_than_one_voxel(
    arch: Architecture, z_strides: ZStrides
) -> None:
    encoder: EncoderName | None = None if arch == "medformer" else "resnet18"
    row = preset_row("default", arch, encoder, z_strides=z_strides)
    for size in (4, 7, 8, 16, 31, 32, 33, 64):
        for patch in ((size, size), (size, size, size), (3, size, size), (size, size, 4)):
            for first in (1.0, 6.0):
                spacing = (first, *(1.0,) * (len(patch) - 1))
                topology = row.topology(spacing, patch)
                spec = row.network(topology, in_channels=1, out_channels=2)
                assert math.prod(topology.patch_shape) > math.prod(spec.total_stride)
