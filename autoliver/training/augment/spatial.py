"""Rotates, scales and mirrors the images and labels of a batch.

Parameters are drawn from a CPU generator. Samples that are neither rotated nor scaled are cropped
without interpolation. Geometry, interpolation and borders are those of nnU-Net 2.8.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autoliver.artifacts import Record
from autoliver.preprocessing.crop import OUTSIDE
from autoliver.training.augment.affine import resample_affine

# Label scores are multiplied by this and compared in half precision, so that near ties become ties.
# The nearest neighbour decides ties, and must not depend on the last bit of a float32.
_SCORE = 1000.0
# Number of label indicators resampled at once; limits the memory with many labels.
_PLANES = 8


class SpatialSpec(Record, frozen=True, kw_only=True):
    """How samples are rotated and scaled.

    Attributes:
        dimension: Number of axes that are transformed, 2 or 3. With 2, arrays may have a third axis
            in front, whose slices are then all transformed in the same way.
        rotation_rad: Range of the angle about each axis, in radians.
        rotation_probability: Probability that a sample is rotated.
        scaling: Range of the factor, which is the same for all axes; above one, objects become
            smaller.
        scaling_probability: Probability that a sample is scaled.
    """

    dimension: int
    rotation_rad: tuple[float, float]
    rotation_probability: float = 0.2
    scaling: tuple[float, float] = (0.7, 1.4)
    scaling_probability: float = 0.2


@dataclass(frozen=True, slots=True)
class Placement:
    """Rotation and scaling of one sample.

    Attributes:
        angles_rad: One angle in 2D; in 3D one about each array axis, applied from first to last.
            In radians.
        scale: Size of the patch in the source relative to its own size.
    """

    angles_rad: tuple[float, ...]
    scale: float

    def matrix(self) -> Tensor:
        """The matrix (axes, axes), float64, from patch to source, about the centres of both."""
        if len(self.angles_rad) == 1:
            return _rotation(2, 0, 1, self.angles_rad[0]) * self.scale
        first, second, third = self.angles_rad
        about_0 = _rotation(3, 1, 2, first)
        about_1 = _rotation(3, 2, 0, second)
        about_2 = _rotation(3, 0, 1, third)
        return about_2 @ about_1 @ about_0 * self.scale


def sample_spatial(
    batch: int, spec: SpatialSpec, generator: Generator
) -> tuple[Placement | None, ...]:
    """Draws a placement per sample; None for a sample that is neither rotated nor scaled."""
    placements: list[Placement | None] = []
    count = 1 if spec.dimension == 2 else 3
    for _ in range(batch):
        chance = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        drawn = torch.rand(count + 1, generator=generator, dtype=torch.float64).tolist()
        rotates, scales = (
            chance[0] < spec.rotation_probability,
            chance[1] < spec.scaling_probability,
        )
        if not rotates and not scales:
            placements.append(None)
            continue
        angles = [_between(spec.rotation_rad, u) if rotates else 0.0 for u in drawn[1:]]
        scale = _between(spec.scaling, drawn[0]) if scales else 1.0
        placements.append(Placement(tuple(angles), scale))
    return tuple(placements)


def apply_spatial(
    image: Tensor,
    label: Tensor,
    *,
    patch_shape: Sequence[int],
    placements: Sequence[Placement | None],
) -> tuple[Tensor, Tensor]:
    """Cuts the patch out of the centre of each sample, rotated and scaled by its placement.

    Images are interpolated linearly, with zeros outside. For labels, the one with the highest
    linearly interpolated indicator wins, and the nearest one among equal indicators; outside the
    source the label is `OUTSIDE`.

    Args:
        image: (b, c, *spatial).
        label: (b, k, *spatial), any signed integer type.
        patch_shape: Shape of the patch, on each axis at most the spatial shape.
        placements: Rotation and scaling of each sample; None: neither.

    Returns:
        New tensors: image (b, c, *patch), float32, and label (b, k, *patch), of the label's type.

    Raises:
        ValueError: The patch is larger than the source.
    """
    source = image.shape[2:]
    if any(patch > size for patch, size in zip(patch_shape, source, strict=True)):
        raise ValueError(f"patch {tuple(patch_shape)} does not fit into {tuple(source)}")
    starts = [size // 2 - patch // 2 for size, patch in zip(source, patch_shape, strict=True)]
    centre = tuple(slice(s, s + patch) for s, patch in zip(starts, patch_shape, strict=True))
    new_image = image.new_empty((*image.shape[:2], *patch_shape), dtype=torch.float32)
    new_label = label.new_empty((*label.shape[:2], *patch_shape))
    for sample, placement in enumerate(placements):
        if placement is None:
            new_image[sample] = image[sample][(slice(None), *centre)]
            new_label[sample] = label[sample][(slice(None), *centre)]
            continue
        matrix = placement.matrix()
        slices = (slice(None), *centre[: -len(matrix)])
        blocks = len(matrix) == 3 and image.device.type == "cpu"
        resample = resample_affine if blocks else resample_grid
        resample(
            image[sample][slices],
            label[sample][slices],
            matrix=matrix,
            into=(new_image[sample], new_label[sample]),
        )
    return new_image, new_label


def resample_grid(
    image: Tensor, label: Tensor, *, matrix: Tensor, into: tuple[Tensor, Tensor]
) -> None:
    """Does the same as `resample_affine` by torch's sampling, on any device and also by slices.

    Args:
        image: (c, *spatial), any float type.
        label: (k, *spatial), any signed integer type.
        matrix: (axes, axes), float64, from patch to source, for the last 2 or 3 axes.
        into: Filled in place: image (c, *patch), float32, and label (k, *patch), of the label's
            type.
    """
    patch, source = into[0].shape[1:], image.shape[1:]
    grid = _grid(matrix, patch, source).to(image.device)
    into[0].copy_(_interpolate(image.float(), grid))
    outside = _reaches_outside(matrix, patch, source)
    for old, new in zip(label, into[1], strict=True):
        new.copy_(_resample_label(old, grid, outside))


def sample_mirror(
    batch: int, axes: Sequence[int], generator: Generator
) -> tuple[tuple[int, ...], ...]:
    """Draws the axes to flip for each sample; each axis is flipped with probability one half."""
    drawn = torch.rand(batch, len(axes), generator=generator) < 0.5
    return tuple(
        tuple(axis for axis, flip in zip(axes, row, strict=True) if flip) for row in drawn.tolist()
    )


def apply_mirror(batch: Tensor, flips: Sequence[Sequence[int]]) -> None:
    """Flips each sample of (b, c, *spatial), in place, along its spatial axes in `flips`."""
    for sample, axes in enumerate(flips):
        if axes:
            batch[sample] = batch[sample].flip([axis + 1 for axis in axes])


def _rotation(size: int, row: int, column: int, angle_rad: float) -> Tensor:
    matrix = torch.eye(size, dtype=torch.float64)
    matrix[row, row] = matrix[column, column] = math.cos(angle_rad)
    matrix[row, column] = -math.sin(angle_rad)
    matrix[column, row] = math.sin(angle_rad)
    return matrix


def _between(limits: tuple[float, float], position: float) -> float:
    return limits[0] + position * (limits[1] - limits[0])


def _grid(matrix: Tensor, patch_shape: Sequence[int], source: Sequence[int]) -> Tensor:
    """The position of each patch voxel in the source, in grid_sample's units and order of axes.

    It is computed as a sum over axes, so that only the last term has the size of the patch.
    """
    count = len(matrix)
    sizes = torch.tensor(source[-count:], dtype=torch.float64)
    scaled = (matrix * (2.0 / sizes[:, None])).flip(0)
    grid = torch.zeros([1] * count + [count])
    for axis, patch in enumerate(patch_shape[-count:]):
        position = torch.arange(patch, dtype=torch.float64) - (patch - 1) / 2
        shape = [patch if other == axis else 1 for other in range(count)]
        grid = grid + torch.outer(position, scaled[:, axis]).float().reshape(*shape, count)
    return grid


def _reaches_outside(matrix: Tensor, patch_shape: Sequence[int], source: Sequence[int]) -> bool:
    """Whether a corner of the patch may lie beyond the outermost voxel centres of the source."""
    count = len(matrix)
    reach = matrix.abs() @ (torch.tensor(patch_shape[-count:], dtype=torch.float64) - 1) / 2
    limit = (torch.tensor(source[-count:], dtype=torch.float64) - 1) / 2
    # The grid is in float32: to be safe, positions just below the limit count as outside.
    return bool((reach > limit - 1e-3).any())


def _interpolate(volume: Tensor, grid: Tensor) -> Tensor:
    """Interpolates (c, *spatial) linearly; a grid of two axes is applied to each slice."""
    count = grid.shape[-1]
    planes = volume.reshape(1, -1, *volume.shape[-count:])
    sampled = F.grid_sample(
        planes, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled.reshape(*volume.shape[:-count], *grid.shape[:-1])


def _resample_label(label: Tensor, grid: Tensor, outside: bool) -> Tensor:
    values = [v - 1 for v in torch.bincount(label.flatten() + 1).nonzero().flatten().tolist()]
    if outside and values[0] != OUTSIDE:
        values.insert(0, OUTSIDE)
    shape = (*label.shape[: label.ndim - grid.shape[-1]], *grid.shape[:-1])
    if len(values) == 1:
        return label.new_full(shape, values[0])
    scores = _label_scores(label, values, grid)
    winner = label.new_full(shape, values[0])
    best = scores[0].clone()
    tied = torch.zeros(shape, dtype=torch.bool, device=label.device)
    for value, score in zip(values[1:], scores[1:], strict=True):
        better = score > best
        tied = tied.logical_and_(~better).logical_or_(score == best)
        winner.masked_fill_(better, value)
        torch.maximum(best, score, out=best)
    if bool(tied.any()):
        nearest = _nearest(label, grid, tied.nonzero())
        order = torch.tensor(values, device=label.device)
        among = (order[:, None] == nearest) & (scores[:, tied] == best[tied])
        winner[tied] = torch.where(among.any(0), nearest, winner[tied])
    return winner


def _label_scores(label: Tensor, values: Sequence[int], grid: Tensor) -> Tensor:
    """Interpolated indicators (values, *patch) of the labels, in thousandths.

    Indicators sum to one everywhere, also outside: that of the first label is what is left by the
    others.
    """
    shape = (*label.shape[: label.ndim - grid.shape[-1]], *grid.shape[:-1])
    scores = torch.empty((len(values), *shape), dtype=torch.float16, device=label.device)
    rest = torch.full(shape, _SCORE, device=label.device)
    for start in range(1, len(values), _PLANES):
        part = values[start : start + _PLANES]
        planes = torch.empty((len(part), *label.shape), device=label.device)
        for plane, value in zip(planes, part, strict=True):
            plane.copy_(label == value)
        sampled = _interpolate(planes, grid).mul_(_SCORE)
        scores[start : start + _PLANES] = sampled
        rest -= sampled.sum(0)
    scores[0] = rest
    return scores


def _nearest(label: Tensor, grid: Tensor, places: Tensor) -> Tensor:
    """The nearest label in the source for patch voxels (n, axes); OUTSIDE beyond its border."""
    count = grid.shape[-1]
    slices, moved = places[:, :-count], places[:, -count:]
    size = torch.tensor(label.shape[-count:], device=label.device)
    point = ((grid[moved.unbind(1)].flip(1) + 1) * size - 1) / 2
    index = point.round().long()
    inside = ((index >= 0) & (index < size)).all(1)
    index = torch.cat([slices, torch.minimum(index.clamp_min(0), size - 1)], dim=1)
    return torch.where(inside, label[index.unbind(1)], OUTSIDE)
