"""Small trained folds, and the plan they come from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autoliver.datasets.cases import Labels
from autoliver.models.files import FoldModel, save_fold
from autoliver.networks.build import build_network
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration, IntensityStats, Plan

SaveFold = Callable[..., Path]

STATS = IntensityStats(
    mean=50.0,
    median=50.0,
    std=25.0,
    min=-90.0,
    max=200.0,
    percentile_00_5=-20.0,
    percentile_99_5=150.0,
)


@pytest.fixture
def plan() -> Plan:
    """One channel of MR, three classes, 2D and 3D."""
    return Plan(
        dataset="Dataset009_Toy",
        preset="tiny",
        vram_gb=1.0,
        channel_names=("T1",),
        modality="MR",
        labels=Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)}),
        file_ending=".nii.gz",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        intensities=(STATS,),
        configurations={"2d": configuration_of(2), "3d_fullres": configuration_of(3)},
    )


def configuration_of(axes: int) -> Configuration:
    return Configuration(
        spacing_mm=(2.0,) * axes,
        median_shape=(16.0,) * axes,
        patch_shape=(8,) * axes,
        batch_size=2,
        batch_dice=False,
        normalization=("zscore",),
        mask_norm=(False,),
        network=UNetSpec(
            in_channels=1,
            out_channels=3,
            features=(4, 8),
            strides=((1,) * axes, (2,) * axes),
            kernels=((3,) * axes,) * 2,
            blocks_encoder=(1, 1),
            blocks_decoder=(1,),
        ),
    )


@pytest.fixture
def save(plan: Plan, tmp_path: Path) -> SaveFold:
    """Writes an untrained fold: `save("fold_0", seed=0)` returns its folder."""

    def make(
        name: str,
        *,
        seed: int = 0,
        configuration: str = "3d_fullres",
        mirror_axes: tuple[int, ...] = (),
        augment: str = "default",
        **changes: object,
    ):
        own = plan.replace(**changes)
        spec = own.configurations[configuration].network
        generator = torch.Generator().manual_seed(seed)
        network = build_network(spec, deep_supervision=True, generator=generator)
        folder = tmp_path / "Dataset009_Toy/runs" / configuration / name
        info = FoldModel(
            plan=own,
            configuration=configuration,
            fold=name.removeprefix("fold_"),
            cases=("case_1",),
            epochs=1,
            mirror_axes=mirror_axes,
            weights_sha256="",
            augment=augment,
        )
        save_fold(folder, network.state_dict(), info)
        return folder

    return make
