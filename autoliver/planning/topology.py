"""Spacing and patch -> pooling, kernels; network -> size of its feature maps. Pure arithmetic."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autoliver.networks.spec import UNetSpec

# An axis is pooled while at least this many positions remain.
MIN_FEATURE_MAP_EDGE = 4
# Axes whose spacings differ by less than this factor are treated alike.
_SIMILAR_SPACING = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """How a U-Net pools, and the patch that fits it.

    Attributes:
        strides: Per stage, one stride per axis; the first all ones.
        kernels: Per stage, one kernel size per axis.
        patch_shape: The patch, each axis rounded up to a multiple of its total stride.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch_shape: tuple[int, ...]

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Per axis, by how much the patch shrinks on its way to the bottleneck."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


def pool_topology(spacing_mm: Sequence[float], patch_shape: Sequence[float]) -> Topology:
    """Pooling and kernels that bring an anisotropic patch to isotropic features step by step.

    Each stage halves the axes that are still long enough and whose spacing is within a factor of
    two of the finest among those; a coarser axis waits until the others have caught up. Kernels
    are 1 along an axis until its spacing is within that factor of the finest of all, then 3.

    After nnU-Net (Isensee et al. 2021, Nature Methods 18, 203-211).

    Args:
        spacing_mm: One per axis, 2 or 3 axes.
        patch_shape: Wanted patch, one per axis; halves occur where a median size is the mean of
            two.
    """
    spacing, size = list(spacing_mm), list(patch_shape)
    kernel = [1] * len(spacing)
    strides = [tuple(kernel)]
    kernels = []
    while axes := _axes_to_pool(spacing, size):
        finest = min(spacing)
        kernel = [
            3 if k == 3 or s / finest < _SIMILAR_SPACING else 1
            for k, s in zip(kernel, spacing, strict=True)
        ]
        for axis in axes:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
        strides.append(tuple(2 if axis in axes else 1 for axis in range(len(spacing))))
        kernels.append(tuple(kernel))
    kernels.append((3,) * len(spacing))
    multiples = (math.prod(axis) for axis in zip(*strides, strict=True))
    patch = tuple(
        math.ceil(n / multiple) * multiple
        for n, multiple in zip(patch_shape, multiples, strict=True)
    )
    return Topology(strides=tuple(strides), kernels=tuple(kernels), patch_shape=patch)


def _axes_to_pool(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    """The axes the next stage halves; none when the network is deep enough."""
    axes = [axis for axis, n in enumerate(size) if n >= 2 * MIN_FEATURE_MAP_EDGE]
    if not axes:
        return []
    finest = min(spacing[axis] for axis in axes)
    axes = [axis for axis in axes if spacing[axis] / finest < _SIMILAR_SPACING]
    # A last axis on its own is halved only if more than the smallest map is left of it.
    if len(axes) == 1 and size[axes[0]] < 3 * MIN_FEATURE_MAP_EDGE:
        return []
    return axes


def feature_map_elements(network: UNetSpec, patch_shape: Sequence[int]) -> int:
    """Values in all convolution outputs of one forward pass of one patch.

    The measure by which nnU-Net judges memory, without building the network. Only the
    segmentation head at full resolution counts.

    Args:
        network: Plain or with a residual encoder.
        patch_shape: One size per axis, divisible by the network's total stride.
    """
    maps = list(_stage_elements(network, patch_shape))
    if network.kind == "unet":
        encoder = sum(
            features * voxels * blocks
            for features, voxels, blocks in zip(
                network.features, maps, network.blocks_encoder, strict=True
            )
        )
    else:
        encoder = _residual_encoder_elements(network, maps)
    # Each decoder stage: the transposed convolution and its blocks, at its skip's resolution.
    decoder = sum(
        features * voxels * (blocks + 1)
        for features, voxels, blocks in zip(
            network.features[:-1], maps[:-1], network.blocks_decoder, strict=True
        )
    )
    head = network.out_channels * maps[0]
    return encoder + decoder + head


def _stage_elements(network: UNetSpec, patch_shape: Sequence[int]) -> Iterator[int]:
    size = list(patch_shape)
    for stride in network.strides:
        size = [n // s for n, s in zip(size, stride, strict=True)]
        yield math.prod(size)


def _residual_encoder_elements(network: UNetSpec, maps: Sequence[int]) -> int:
    """Stem, two convolutions per block, and a skip where features or resolution change."""
    total = network.features[0] * maps[0]
    before = (network.features[0], maps[0])
    for features, voxels, blocks in zip(
        network.features, maps, network.blocks_encoder, strict=True
    ):
        skip = before != (features, voxels)
        total += features * voxels * (2 * blocks + skip)
        before = (features, voxels)
    return total
