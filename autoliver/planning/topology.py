"""Spacing and patch -> pooling and kernels. Pure arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
