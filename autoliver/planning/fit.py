"""Fits patch, batch and network at a given spacing to the GPU memory.

The method is that of nnU-Net (Isensee et al. 2021, Nature Methods 18, 203-211; residual encoders M,
L, XL: Isensee et al. 2024, MICCAI): start with a patch that has the same length in mm along all
axes but is no larger than the median case, shrink it until the network fits, and use the remaining
memory for the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoliver.errors import OptionError
from autoliver.networks.spec import NetworkSpec
from autoliver.planning.names import Architecture, EncoderName, Preset
from autoliver.planning.plan import Configuration
from autoliver.planning.presets import MIN_BATCH, REFERENCE_BATCH, PresetRow, preset_row
from autoliver.planning.topology import Topology

# Dimension -> edge of the square (2D) or cube (3D) whose area or volume the first patch has. From
# then on, the patch only shrinks.
FIRST_EDGE = {2: 2048, 3: 256}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The memory and the dataset's properties that limit patch, batch and network.

    Attributes:
        preset: The preset.
        vram_gb: The target for the GPU memory, in GB.
        batch_share: The largest share of the dataset's voxels in one batch, from 0 to 1.
        in_channels: Number of image channels.
        out_channels: Number of output channels of the network.
        rated_channels: Number of output channels for the memory estimate. As in nnU-Net, it counts
            every label of dataset.json, including "ignore" and, with regions, "background".
    """

    preset: PresetRow
    vram_gb: float
    batch_share: float
    in_channels: int
    out_channels: int
    rated_channels: int

    def network(self, topology: Topology) -> NetworkSpec:
        """Returns the preset's network with a topology."""
        return self.preset.network(
            topology, in_channels=self.in_channels, out_channels=self.out_channels
        )

    def memory(self, topology: Topology) -> int:
        """Returns the number of feature map values of one patch."""
        make = self.preset.fitted_as or self.preset.network
        network = make(topology, in_channels=self.in_channels, out_channels=self.rated_channels)
        return network.feature_map_elements(topology.patch_shape)

    def reference(self, dimension: int) -> float:
        """Returns the feature map values that fill the memory target with the reference batch."""
        row, fixed_gb = self.preset, self.preset.fixed_gb[dimension]
        share = (self.vram_gb - fixed_gb) / (row.vram_gb - fixed_gb)
        return row.reference[dimension] * share


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Patch, batch and network at one spacing.

    Attributes:
        spacing_mm: Spacing per axis, 2 or 3 values.
        median_shape: Median size of the cases at this spacing, in voxels.
        topology: Patch, strides and kernels.
        network: The network with this topology.
        shrunk: Whether the first patch had to be made smaller to fit into memory.
        batch_by_memory: Number of patches that fit into memory.
        batch_by_dataset: Number of patches that hold the allowed share of the dataset's voxels.
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
        """Number of voxels of one patch."""
        return math.prod(self.topology.patch_shape)

    @property
    def batch_size(self) -> int:
        """Number of patches per step."""
        return max(min(self.batch_by_memory, self.batch_by_dataset), MIN_BATCH)


def memory_gb(
    configuration: Configuration,
    preset: Preset,
    architecture: Architecture = "unet",
    encoder: EncoderName | None = None,
) -> float:
    """Estimates the GPU memory of a training in GB, as it is done to fit patches."""
    row, dimension = preset_row(preset, architecture, encoder), configuration.dimension
    elements = configuration.network.feature_map_elements(configuration.patch_shape)
    share = elements * configuration.batch_size / REFERENCE_BATCH[dimension]
    fixed_gb = row.fixed_gb[dimension]
    return fixed_gb + (row.vram_gb - fixed_gb) * share / row.reference[dimension]


def fit_patch(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    budget: Budget,
    *,
    dataset_voxels: float,
) -> Fit:
    """Finds the largest patch that fits into the budget, and the batch that fills the memory.

    Args:
        spacing_mm: Spacing per axis, 2 or 3 values.
        median_shape: Median size of the cases at this spacing, in voxels.
        budget: The limits on memory and batch.
        dataset_voxels: Number of voxels of all cases together at this spacing.

    Raises:
        OptionError: Not even the smallest patch fits.
    """
    spacing = tuple(float(mm) for mm in spacing_mm)
    median = tuple(float(n) for n in median_shape)
    dimension = len(spacing)
    reference, batch = budget.reference(dimension), REFERENCE_BATCH[dimension]
    pooled = budget.preset.topology
    topology = pooled(spacing, _first_patch(spacing, median))
    memory = budget.memory(topology)
    shrunk = False
    while memory / batch * budget.preset.must_fit[dimension] > reference:
        topology = _smaller(topology, spacing, median, budget)
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
    """Returns the first patch: the same length in mm along all axes, at most the median case."""
    dimension = len(spacing)
    per_mm = 1 / np.array(spacing)
    scale = (FIRST_EDGE[dimension] ** dimension / np.prod(per_mm)) ** (1 / dimension)
    first: list[float] = np.minimum(np.rint(per_mm * scale), median_shape).tolist()
    return first


def _smaller(
    topology: Topology, spacing: Sequence[float], median_shape: Sequence[float], budget: Budget
) -> Topology:
    """Returns the next smaller patch, shorter along the axis that covers most of the median.

    Raises:
        OptionError: No axis can be shorter.
    """
    relative = [n / m for n, m in zip(topology.patch_shape, median_shape, strict=True)]
    for _, axis in sorted(((share, axis) for axis, share in enumerate(relative)), reverse=True):
        found = _shorter(topology, axis, spacing, budget)
        if found is not None:
            return found
    raise OptionError(
        f"--vram {budget.vram_gb:g}: not even a patch of {topology.patch_shape} voxels fits "
        f"into {budget.vram_gb:g} GB of memory.",
        hint="Give more memory with --vram (at least 4 GB is sensible), or use fewer channels.",
    )


def _shorter(
    topology: Topology, axis: int, spacing: Sequence[float], budget: Budget
) -> Topology | None:
    """Returns the next patch that is shorter along an axis; None if there is none."""
    patch, pooled = list(topology.patch_shape), budget.preset.topology
    # The step is the total stride of the smaller patch's network. If this network is shallower, its
    # sizes in between are not skipped: 256 -> 224 rather than 192.
    trial = patch.copy()
    trial[axis] -= topology.total_stride[axis]
    patch[axis] -= pooled(spacing, trial).total_stride[axis]
    if patch[axis] < 1:
        return None
    found = pooled(spacing, patch)
    return found if math.prod(found.patch_shape) < math.prod(topology.patch_shape) else None
