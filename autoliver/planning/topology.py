"""Derives pooling and kernel sizes of a network from the spacing and the patch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoliver.networks.ds_net_spec import LEAST_DEPTH, MOST_DEPTH
from autoliver.networks.encoders import LEVELS

# An axis is pooled as long as at least this many positions remain.
MIN_FEATURE_MAP_EDGE = 4
# Axes whose spacings differ by less than this factor are treated alike.
_SIMILAR_SPACING = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """The strides and kernels of a U-Net, and a patch size that fits them.

    Attributes:
        strides: Per stage, one stride per axis; the first stage has ones only.
        kernels: Per stage, one kernel size per axis.
        patch_shape: Patch size per axis, rounded up to a multiple of the axis's total stride.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch_shape: tuple[int, ...]

    @property
    def total_stride(self) -> tuple[int, ...]:
        """The factor by which the network downsamples the patch, per axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


def pool_topology(spacing_mm: Sequence[float], patch_shape: Sequence[float]) -> Topology:
    """Finds pooling and kernels that turn an anisotropic patch step by step into isotropic maps.

    Each stage halves the axes that are still long enough and whose spacing is within a factor of
    two of the finest among those. A coarser axis is not halved until the others have become as
    coarse. The kernel size along an axis is 1 until its spacing is within a factor of two of the
    finest of all axes, and 3 from then on.

    The rules are those of nnU-Net (Isensee et al. 2021, Nature Methods 18, 203-211).

    Args:
        spacing_mm: Spacing per axis, 2 or 3 axes.
        patch_shape: Desired patch size per axis; it may be fractional, since a median size can be
            the mean of two sizes.
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


def even_topology(spacing_mm: Sequence[float], patch_shape: Sequence[float]) -> Topology:
    """Halves all axes of a volume five times, as published 3D encoders do, whatever the spacing.

    Images, of 2 axes, are pooled by `pool_topology`.

    Args:
        spacing_mm: Spacing per axis, 2 or 3 axes.
        patch_shape: Desired patch size per axis, which is rounded up to a multiple of 32, and so
            that more than one voxel is left.
    """
    dimension = len(spacing_mm)
    if dimension == 2:
        return pool_topology(spacing_mm, patch_shape)
    total = 2**LEVELS
    return Topology(
        strides=((1,) * dimension, *((2,) * dimension,) * LEVELS),
        kernels=((3,) * dimension,) * (LEVELS + 1),
        patch_shape=_more_than_one([math.ceil(n / total) for n in patch_shape], total),
    )


def _more_than_one(voxels: list[int], total: int) -> tuple[int, ...]:
    """Returns the patch with so many voxels at the deepest level, and with more than one."""
    if math.prod(voxels) == 1:
        voxels[-1] = 2
    return tuple(n * total for n in voxels)


def planar_topology(spacing_mm: Sequence[float], patch_shape: Sequence[float]) -> Topology:
    """Pools a volume within its slices alone, as images are pooled.

    Args:
        spacing_mm: Spacing per axis, 2 or 3 axes.
        patch_shape: Desired patch size per axis; the number of slices is brought to one that DS-Net
            can take.
    """
    if len(spacing_mm) == 2:
        return pool_topology(spacing_mm, patch_shape)
    plane = pool_topology(spacing_mm[1:], patch_shape[1:])
    depth = min(max(round(patch_shape[0]), LEAST_DEPTH), MOST_DEPTH)
    return Topology(
        strides=tuple((1, *stride) for stride in plane.strides),
        kernels=tuple((3, *kernel) for kernel in plane.kernels),
        patch_shape=(LEAST_DEPTH if depth == LEAST_DEPTH + 1 else depth, *plane.patch_shape),
    )


def _axes_to_pool(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    """Returns the axes that the next stage halves; empty if the network is deep enough."""
    axes = [axis for axis, n in enumerate(size) if n >= 2 * MIN_FEATURE_MAP_EDGE]
    if not axes:
        return []
    finest = min(spacing[axis] for axis in axes)
    axes = [axis for axis in axes if spacing[axis] / finest < _SIMILAR_SPACING]
    # A single remaining axis is halved only if its result stays larger than the smallest map.
    if len(axes) == 1 and size[axes[0]] < 3 * MIN_FEATURE_MAP_EDGE:
        return []
    return axes
