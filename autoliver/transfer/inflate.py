"""Carries the weights of 2D networks to 3D networks, and the other way round.

The rules are those of METHODS A6. In 2D to 3D, a kernel gets a depth; a kernel whose depth is 1
keeps its values, whatever the way. Weights without a kernel (biases, norms with their running
statistics, linear layers) are the same in both.

What becomes equal to the 2D network, slice by slice, is the convolutions. Our networks pad with
zeros, so at the first and last slices a kernel by "mean" lacks part of its sum; this reaches as
many slices into the volume as the kernels of the network, together, reach along the depth. A kernel
by "center" sees one slice, so it has no border. An instance norm takes its statistics of a volume
in 3D, and of a slice in 2D: the two are equal where slices are alike.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from autoliver.transfer.table import Inflation
from autoliver.values import counted

# Above this ratio of the spacing between slices to that within them, the planner does not mix
# slices either, and neighbouring slices differ too much for a mean of them.
_THICK = 2.0


def default_inflation(spacing_mm: Sequence[float]) -> Inflation:
    """Returns "center" for volumes of thick slices, and "mean" for others and for 3D to 2D.

    Args:
        spacing_mm: The target's spacing per axis: 3 values, the depth first; 2 for a 2D target.
    """
    thick = len(spacing_mm) == 3 and spacing_mm[0] > _THICK * min(spacing_mm[1:])
    return "center" if thick else "mean"


def inflate_kernel(
    weight: Tensor, depth: int, way: Inflation, *, transposed: bool = False
) -> Tensor:
    """Gives a 2D kernel a depth.

    "mean" divides the kernel among the planes (Carreira and Zisserman, CVPR 2017). On a volume that
    is constant along the depth, the output is that of the 2D kernel, except at slices whose
    neighbours are padding. "center" puts the kernel into the middle plane and zeros into the
    others: the output is that of the 2D kernel on each slice of any volume. "repeat" puts the
    kernel into every plane, so the output of each layer is `depth` times as large; only a norm that
    computes its statistics anew (as an instance norm does) takes that back.

    Args:
        weight: (a, b, height, width).
        depth: The depth of the new kernel; for transposed convolutions, the stride.
        way: "mean", "center" or "repeat".
        transposed: Whether it is a transposed convolution whose kernel equals its stride. There,
            every output voxel sees one plane, so each plane is the kernel, whatever the way.

    Returns:
        (a, b, depth, height, width).
    """
    planes = weight.unsqueeze(2).repeat_interleave(depth, dim=2)
    if transposed or depth == 1 or way == "repeat":
        return planes
    if way == "mean":
        return planes / depth
    middle = torch.zeros_like(planes)
    middle[:, :, depth // 2] = weight
    return middle


def flatten_kernel(
    weight: Tensor, way: Literal["sum", "center"], *, transposed: bool = False
) -> Tensor:
    """Takes the depth from a 3D kernel.

    "sum" is what the kernel computes on a volume that is constant along the depth; it undoes
    "mean" and "center" of `inflate_kernel`. "center" keeps the middle plane.

    Args:
        weight: (a, b, depth, height, width).
        way: "sum" or "center".
        transposed: Whether it is a transposed convolution whose kernel equals its stride. There,
            every output voxel sees one plane, so the kernel is their mean, whatever the way.

    Returns:
        (a, b, height, width).
    """
    if transposed:
        return weight.mean(2)
    return weight.sum(2) if way == "sum" else weight[:, :, weight.shape[2] // 2]


def to_dimension(
    weight: Tensor, fresh: Tensor, way: Inflation, *, transposed: bool = False
) -> tuple[Tensor, str]:
    """Gives a weight the number of axes of its counterpart in a network of another dimension.

    Args:
        weight: The source's weight.
        fresh: The target's weight of the same name.
        way: How kernels are inflated; 3D to 2D, "center" takes the middle plane and "mean" the sum.
        transposed: Whether it belongs to a transposed convolution whose kernel equals its stride.

    Returns:
        The weight, and what was done, in words; "" if its values are unchanged.
    """
    if weight.ndim == fresh.ndim:
        return weight, ""
    if weight.ndim < fresh.ndim:
        depth = fresh.shape[2]
        made = inflate_kernel(weight, depth, way, transposed=transposed)
        words = "repeat" if transposed else str(way)
    else:
        depth = weight.shape[2]
        back: Literal["sum", "center"] = "center" if way == "center" else "sum"
        made = flatten_kernel(weight, back, transposed=transposed)
        words = "mean" if transposed else back
    sizes = ("x".join(map(str, each.shape[2:])) for each in (weight, made))
    return made, "" if depth == 1 else f"kernel {' -> '.join(sizes)} by {words}"


def merge_depth(
    weight: Tensor, source: Sequence[int], target: Sequence[int], *, axis: int
) -> tuple[Tensor, str]:
    """Adapts a weight that counts the features of merged neighbours to merging along the depth.

    All neighbours along the depth get the same kernels, and the mixture of their features takes the
    mean of them, so that slices that are alike give what one of them gave; and the other way round.

    Args:
        weight: The source's weight, with the axes of the target's.
        source: The stride at which the source merges, per axis.
        target: That of the target.
        axis: The axis of the weight with an entry for each neighbour and feature: 0 for kernels,
            1 for a mixture. Neighbours along the last image axis lie furthest apart.

    Returns:
        The weight, and what was done, in words; "" if it is unchanged.
    """
    plane, shape = math.prod(source[-2:]), [*weight.shape]
    if len(source) < len(target) and target[0] > 1:
        deep = target[0]
        parts = weight.reshape(*shape[:axis], plane, 1, -1, *shape[axis + 1 :])
        made = parts.repeat_interleave(deep, dim=axis + 1).flatten(axis, axis + 2)
        return made / (deep if axis == 1 else 1), f"for {counted(deep, 'merged slice')}"
    if len(source) > len(target) and source[0] > 1:
        parts = weight.reshape(*shape[:axis], plane, source[0], -1, *shape[axis + 1 :])
        whole = parts.sum(axis + 1) if axis == 1 else parts.mean(axis + 1)
        return whole.flatten(axis, axis + 1), f"of {counted(source[0], 'merged slice')}"
    return weight, ""


def share_levels(source: Sequence[Sequence[int]], target: Sequence[Sequence[int]]) -> bool:
    """Whether what two weights are applied to has the same resolution in plane.

    Args:
        source: The strides of the source's levels down to that of the weight; each has 2 or 3 axes,
            the last two in plane.
        target: Those of the target's.
    """
    return [tuple(s[-2:]) for s in source] == [tuple(s[-2:]) for s in target]
