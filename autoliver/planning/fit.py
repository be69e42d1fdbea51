"""Spacing and memory -> the patch, the batch and the network that fill it.

After nnU-Net (Isensee et al. 2021, Nature Methods 18, 203-211; residual encoders M, L, XL: Isensee
et al. 2024, MICCAI): start from a patch with the proportions of the median case, shrink it until
the network fits, give what memory is left to the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoliver.errors import OptionError
from autoliver.networks.spec import NetworkSpec
from autoliver.planning.names import Preset
from autoliver.planning.plan import Configuration
from autoliver.planning.presets import MIN_BATCH, PRESETS, REFERENCE_BATCH, PresetRow
from autoliver.planning.topology import Topology, pool_topology

# The first patch has the volume (3D) or area (2D) of this cube or square; it only shrinks.
FIRST_EDGE = {2: 2048, 3: 256}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a network of one plan may take.

    Attributes:
        preset: The preset.
        vram_gb: The memory target.
        batch_share: Share of the dataset's voxels that one batch may show.
        in_channels: Image channels.
        out_channels: Rows of the segmentation heads.
        rated_channels: Output channels for the memory estimate: nnU-Net counts every label of
            dataset.json there, "ignore" and, with regions, "background" included.
    """

    preset: PresetRow
    vram_gb: float
    batch_share: float
    in_channels: int
    out_channels: int
    rated_channels: int

    def network(self, topology: Topology) -> NetworkSpec:
        """The preset's network with this topology."""
        return self.preset.network(
            topology, in_channels=self.in_channels, out_channels=self.out_channels
        )

    def memory(self, topology: Topology) -> int:
        """Feature map values of one patch."""
        make = self.preset.fitted_as or self.preset.network
        network = make(topology, in_channels=self.in_channels, out_channels=self.rated_channels)
        return network.feature_map_elements(topology.patch_shape)

    def reference(self, dimension: int) -> float:
        """Feature map values that fill the memory target with the reference batch."""
        return self.preset.reference[dimension] * (self.vram_gb / self.preset.vram_gb)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Patch, batch and network at one spacing.

    Attributes:
        spacing_mm: 2 or 3 axes.
        median_shape: Of the cases at this spacing.
        topology: Patch, strides and kernels.
        network: With this topology.
        shrunk: Whether memory made the patch smaller than the proportions alone would.
        batch_by_memory: Patches that fit into memory.
        batch_by_dataset: Patches that show the allowed share of the dataset.
    """

    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    topology: Topology
    network: NetworkSpec
    shrunk: bool
    batch_by_memory: int
    batch_by_dataset: int

    @property
    def patch_voxels(self) -> int:
        """Voxels of one patch."""
        return math.prod(self.topology.patch_shape)

    @property
    def batch_size(self) -> int:
        """Patches per step."""
        return max(min(self.batch_by_memory, self.batch_by_dataset), MIN_BATCH)


def memory_gb(configuration: Configuration, preset: Preset) -> float:
    """About how much GPU memory a training takes, by the measure that patches are fitted with."""
    row, dimension = PRESETS[preset], configuration.dimension
    elements = configuration.network.feature_map_elements(configuration.patch_shape)
    share = elements * configuration.batch_size / REFERENCE_BATCH[dimension]
    return row.vram_gb * share / row.reference[dimension]


def fit_patch(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    budget: Budget,
    *,
    dataset_voxels: float,
) -> Fit:
    """The largest patch that fits into the budget, and the batch that fills it.

    Args:
        spacing_mm: 2 or 3 axes.
        median_shape: Of the cases at this spacing.
        budget: What the network may take.
        dataset_voxels: Of all cases together at this spacing.

    Raises:
        OptionError: Not even the smallest patch fits.
    """
    spacing = tuple(float(mm) for mm in spacing_mm)
    median = tuple(float(n) for n in median_shape)
    dimension = len(spacing)
    reference, batch = budget.reference(dimension), REFERENCE_BATCH[dimension]
    topology = pool_topology(spacing, _first_patch(spacing, median))
    memory = budget.memory(topology)
    shrunk = False
    while memory / batch * budget.preset.must_fit[dimension] > reference:
        topology = _smaller(topology, spacing, median, vram_gb=budget.vram_gb)
        memory = budget.memory(topology)
        shrunk = True
    patch_voxels = math.prod(topology.patch_shape)
    return Fit(
        spacing_mm=spacing,
        median_shape=median,
        topology=topology,
        network=budget.network(topology),
        shrunk=shrunk,
        batch_by_memory=round(reference / memory * batch),
        batch_by_dataset=round(dataset_voxels * budget.batch_share / patch_voxels),
    )


def _first_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> list[float]:
    """The proportions of the spacing, no larger than the median case."""
    dimension = len(spacing)
    per_mm = 1 / np.array(spacing)
    scale = (FIRST_EDGE[dimension] ** dimension / np.prod(per_mm)) ** (1 / dimension)
    first: list[float] = np.minimum(np.rint(per_mm * scale), median_shape).tolist()
    return first


def _smaller(
    topology: Topology, spacing: Sequence[float], median_shape: Sequence[float], *, vram_gb: float
) -> Topology:
    """The next smaller patch: shorter along the axis that covers most of the median case."""
    patch = list(topology.patch_shape)
    relative = [n / m for n, m in zip(patch, median_shape, strict=True)]
    axis = max(range(len(patch)), key=lambda axis: (relative[axis], axis))
    # The step is the total stride after the step, so that a shallower network's sizes in between
    # are not skipped: 256 -> 224 rather than 192.
    trial = patch.copy()
    trial[axis] -= topology.total_stride[axis]
    patch[axis] -= pool_topology(spacing, trial).total_stride[axis]
    if patch[axis] < 1:
        raise OptionError(
            f"--vram {vram_gb:g}: not even a patch of {topology.patch_shape} voxels fits into "
            f"{vram_gb:g} GB of memory.",
            hint="Ask for more memory with --vram (4 GB is a sensible least), or for fewer "
            "channels.",
        )
    return pool_topology(spacing, patch)
