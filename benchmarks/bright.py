"""A model whose weights need no training: it sees a liver that is brighter than all else.

Its network does a U-Net's work on every window and then lets the smoothed intensity decide, so that
what is measured is which windows are visited, not what a network has learnt.
"""

import torch
from torch import Tensor, nn

from autoliver.datasets.cases import Labels
from autoliver.inference.model import Member, Model
from autoliver.networks.build import build_network
from autoliver.networks.spec import UNetSpec
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Configuration, IntensityStats, Plan

BRIGHT_HU = 1500.0
_THRESHOLD_HU = 1000.0
_LARGEST_HU = 2000.0
_SMOOTHED = 3  # voxels


class Bright(nn.Module):
    """Foreground where the smoothed intensity is high; a U-Net adds nothing but its time."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.network = build_network(spec, deep_supervision=False, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        """(b, 2, z, y, x) logits of normalised (b, 1, z, y, x) intensities."""
        smooth = nn.functional.avg_pool3d(
            image, _SMOOTHED, 1, _SMOOTHED // 2, count_include_pad=False
        )
        score = 10 * (smooth - _THRESHOLD_HU / _LARGEST_HU)
        result: Tensor = torch.cat([-score, score], dim=1) + 0 * self.network(image)
        return result


def bright_model(*, fine_mm: float, coarse_mm: float, patch: int, near: bool) -> Model:
    """The model, with a coarse one that finds the region to look in if `near`."""
    labels = Labels(values={"background": (0,), "liver": (1,)})
    spec = UNetSpec(
        in_channels=1,
        out_channels=2,
        features=(8, 16, 32, 32),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3),) * 4,
        blocks_encoder=(2, 2, 2, 2),
        blocks_decoder=(2, 2, 2),
    )
    # Mean 0 and deviation so that normalised intensities lie in 0 to 1.
    stats = IntensityStats(
        mean=0.0,
        median=0.0,
        std=_LARGEST_HU,
        min=-1000.0,
        max=_LARGEST_HU,
        percentile_00_5=0.0,
        percentile_99_5=_LARGEST_HU,
    )

    def configuration(spacing_mm: float) -> Configuration:
        return Configuration(
            spacing_mm=(spacing_mm,) * 3,
            median_shape=(0.0,) * 3,
            patch_shape=(patch,) * 3,
            batch_size=2,
            batch_dice=False,
            normalization=("ct",),
            mask_norm=(False,),
            network=spec,
        )

    configurations: dict[ConfigurationName, Configuration] = {
        "3d_fullres": configuration(fine_mm),
        "3d_lowres": configuration(coarse_mm),
    }
    plan = Plan(
        dataset="Dataset702_BrightLiver",
        preset="tiny",
        vram_gb=1.0,
        channel_names=("CT",),
        modality="CT",
        labels=labels,
        file_ending=".nii.gz",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        intensities=(stats,),
        configurations=configurations,
    )

    def member(name: ConfigurationName) -> Member:
        return Member(
            name=name,
            plan=plan,
            configuration=configurations[name],
            mirror_axes=(),
            networks=(Bright(spec).eval(),),
            device=torch.device("cpu"),
        )

    finder = member("3d_lowres") if near else None
    return Model(name="bright liver", members=(member("3d_fullres"),), finder=finder)
