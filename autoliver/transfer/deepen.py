"""A 3D network that follows a 2D one in plane, so that the weights of every level fit."""

from dataclasses import replace

from msgspec import UNSET

from autoliver.networks.spec import (
    DSNetSpec,
    EncoderUNetSpec,
    MedFormerSpec,
    NetworkSpec,
    TranslatorSpec,
)
from autoliver.planning.fit import Budget, Fit, fit_patch
from autoliver.planning.plan import Configuration, Plan
from autoliver.planning.presets import PresetRow, preset_row
from autoliver.planning.topology import Topology


def fit_deepened(
    flat: NetworkSpec,
    source: Plan,
    ours: Configuration,
    *,
    spacing_mm: tuple[float, ...],
    median_shape: tuple[float, ...],
) -> Fit:
    """Fits a 3D network that follows a 2D one to the memory that its plan was made for.

    Features, blocks and the kernels in plane are those of the 2D network, level by level from full
    resolution. Patch, strides and the kernels along the depth are the planner's at the given
    spacing; in plane these are the strides of the 2D network, as long as the planner halves both
    axes of a patch that is smaller in 3D.

    Args:
        flat: The 2D network.
        source: The plan that it comes from; its preset and memory are kept.
        ours: The target's own 3D configuration. Its batch is the largest, since it may be limited
            by the size of the dataset.
        spacing_mm: Spacing per axis, the depth first.
        median_shape: Median size of the target's cases at this spacing.

    Raises:
        OptionError: Not even the smallest patch fits.
    """
    row = preset_row(source.preset, source.arch, source.encoder, z_strides=source.z_strides)
    rows = ours.network.out_channels
    budget = Budget(
        preset=replace(row, network=_Deepened(flat, row)),
        vram_gb=source.vram_gb,
        batch_share=1.0,
        in_channels=ours.network.in_channels,
        out_channels=rows,
        rated_channels=rows,
    )
    most = min(ours.batch_size, row.max_batch or ours.batch_size)
    fit = fit_patch(spacing_mm, median_shape, budget, dataset_voxels=0.0)
    return replace(fit, batch_by_dataset=most)


class _Deepened:
    """Makes 3D networks that follow a 2D one in plane.

    Args:
        flat: The 2D network.
        row: The preset, which decides on the strides along the depth.
    """

    def __init__(self, flat: NetworkSpec, row: PresetRow) -> None:
        self.flat = flat
        self.row = row

    def __call__(self, topology: Topology, *, in_channels: int, out_channels: int) -> NetworkSpec:
        """Returns the network with the strides of a 3D topology."""
        flat = self.flat
        planned = self.row.network(topology, in_channels=in_channels, out_channels=out_channels)
        others = (EncoderUNetSpec, DSNetSpec, TranslatorSpec)
        if isinstance(flat, others) or isinstance(planned, others):
            return _otherwise(flat, planned)
        levels = min(len(flat.features), len(planned.features))
        kernels = zip(planned.kernels, flat.kernels, strict=False)
        made: NetworkSpec = flat.replace(
            in_channels=in_channels,
            out_channels=out_channels,
            features=flat.features[:levels],
            strides=planned.strides[:levels],
            kernels=tuple((deep[0], *plane) for deep, plane in kernels),
            blocks_encoder=flat.blocks_encoder[:levels],
            blocks_decoder=flat.blocks_decoder[: levels - 1],
        )
        return made.replace(heads=made.heads[:levels]) if isinstance(made, MedFormerSpec) else made


def _otherwise(flat: NetworkSpec, planned: NetworkSpec) -> NetworkSpec:
    """Returns the planned network with what the 2D one has, if both are of the same kind."""
    if not isinstance(flat, EncoderUNetSpec) or not isinstance(planned, EncoderUNetSpec):
        return planned
    return flat.replace(
        in_channels=planned.in_channels,
        out_channels=planned.out_channels,
        class_head=UNSET,
        strides=planned.strides,
        thin_levels=planned.thin_levels,
    )
