"""Rotates, scales and mirrors the images and labels of a batch.

Samples that are neither rotated nor scaled are cropped without interpolation. Geometry,
interpolation and borders are those of nnU-Net 2.8.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autoliver.preprocessing.crop import OUTSIDE
from autoliver.training.augment.affine import resample_affine
from autoliver.training.augment.placement import Placement, SpatialSpec, make_placements
from autoliver.training.augment.rows import change_rows, rows_at_once, to_device

# Label scores are multiplied by this and compared in half precision, so that near ties become ties.
# The nearest neighbour decides ties, and must not depend on the last bit of a float32.
_SCORE = 1000.0


def sample_spatial(
    batch: int, spec: SpatialSpec, generator: Generator
) -> tuple[Placement | None, ...]:
    """Draws a placement per sample; None for a sample that is neither rotated nor scaled."""
    drawn = torch.rand(batch, spec.draws, generator=generator, dtype=torch.float64)
    return make_placements(drawn.numpy(), spec)


def apply_spatial(
    image: Tensor,
    label: Tensor,
    *,
    patch_shape: Sequence[int],
    placements: Sequence[Placement | None],
) -> tuple[Tensor, Tensor]:
    """Cuts the patch out of the centre of each sample, rotated and scaled by its placement.

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
    new_image = image[:, :, *centre].to(torch.float32, copy=True).contiguous()
    new_label = label[:, :, *centre].clone(memory_format=torch.contiguous_format)
    turned = [sample for sample, placement in enumerate(placements) if placement is not None]
    if turned:
        place_turned(
            *(_taken(batch, turned) for batch in (image, label)),
            samples=turned,
            placements=[placement for placement in placements if placement is not None],
            into=(new_image, new_label),
        )
    return new_image, new_label


def place_turned(
    image: Tensor,
    label: Tensor,
    *,
    samples: Sequence[int],
    placements: Sequence[Placement],
    into: tuple[Tensor, Tensor],
) -> None:
    """Fills the patches of samples that are rotated or scaled.

    Images are interpolated linearly, with zeros outside. For labels, the one with the highest
    linearly interpolated indicator wins, and the nearest one among equal indicators; outside the
    source the label is `OUTSIDE`.

    Args:
        image: The sources of these n samples, (n, c, *source).
        label: (n, k, *source), any signed integer type.
        samples: The indices of these samples in the batch.
        placements: Their rotation and scaling.
        into: The patches of the whole batch, filled in place: image (b, c, *patch), float32, and
            label (b, k, *patch), of the label's type.
    """
    matrices = np.array([placement.matrix() for placement in placements])
    patch, axes = into[0].shape[2:], matrices.shape[1]
    # Slices that are transformed alike are cut out of the centre.
    first = [(n - p) // 2 for n, p in zip(image.shape[2:-axes], patch[:-axes], strict=True)]
    slices = [slice(f, f + p) for f, p in zip(first, patch, strict=False)]
    image, label = image[:, :, *slices], label[:, :, *slices]
    if axes == 3 and _on_cpu(image):
        for index, sample in enumerate(samples):
            matrix = torch.from_numpy(matrices[index])
            target = (into[0][sample], into[1][sample])
            resample_affine(image[index], label[index], matrix=matrix, into=target)
        return
    together = rows_at_once(into[1][0].numel(), image.device)
    for start in range(0, len(samples), together):
        part = slice(start, start + together)
        places = to_device(np.array(samples[part]), image.device)
        grid = _grid(matrices[part], patch, image.shape[2:], image.device)
        into[0].index_copy_(0, places, _interpolate(image[part].float(), grid))
        into[1].index_copy_(0, places, _resample_labels(label[part], grid))


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
    for axes in sorted({tuple(each) for each in flips if each}):
        rows = [sample for sample, each in enumerate(flips) if tuple(each) == axes]
        change_rows(batch, rows, partial(_flip, dims=[axis + 2 for axis in axes]))


def _flip(picked: Tensor, _: slice, *, dims: list[int]) -> Tensor:
    return picked.flip(dims)


def _on_cpu(batch: Tensor) -> bool:
    return batch.device.type == "cpu"


def _taken(batch: Tensor, rows: Sequence[int]) -> Tensor:
    """Some samples of a batch; without a copy if they are all of it."""
    if len(rows) == len(batch):
        return batch
    return batch.index_select(0, to_device(np.array(rows), batch.device))


def _grid(
    matrices: npt.NDArray[np.float64],
    patch: Sequence[int],
    source: Sequence[int],
    device: torch.device,
) -> Tensor:
    """The positions (n, *patch, axes) of patch voxels in the source, in units of grid_sample.

    They are sums over axes. The terms are computed here and added on the device, so that only these
    are sent to it.
    """
    count = matrices.shape[1]
    sizes = np.array(source[-count:], np.float64)
    scaled = (matrices * (2.0 / sizes[:, None]))[:, ::-1]
    lines = [np.arange(size) - (size - 1) / 2 for size in patch[-count:]]
    terms = [line[:, None] * scaled[:, None, :, axis] for axis, line in enumerate(lines)]
    sent = to_device(np.concatenate(terms, axis=1).astype(np.float32), device)
    grid: Tensor | None = None
    for axis, term in enumerate(torch.split(sent, [len(line) for line in lines], dim=1)):
        shape = [1] * count
        shape[axis] = term.shape[1]
        further = term.view(len(term), *shape, count)
        grid = further if grid is None else grid + further
    if grid is None:
        raise ValueError("no axes")
    return grid


def _interpolate(volumes: Tensor, grid: Tensor) -> Tensor:
    """Interpolates (n, c, *spatial) linearly; a grid of two axes is applied to each slice."""
    count = grid.shape[-1]
    planes = volumes.flatten(1, -count - 1)
    sampled = F.grid_sample(
        planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled.view(*volumes.shape[:-count], *grid.shape[1:-1])


def _resample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """The label (n, k, *patch) of each position of a grid in (n, k, *spatial).

    No step depends on which labels there are, so that the CPU need not wait for a GPU.
    """
    count = grid.shape[-1]
    lattice = _Lattice.of(labels.flatten(1, -count - 1), count)
    points = lattice.points(grid.flatten(1, -2))
    winners = _where_needed(lattice, points) if _on_cpu(labels) else lattice.winners(points)
    return winners.view(*labels.shape[:-count], *grid.shape[1:-1])


def _where_needed(lattice: "_Lattice", points: Tensor) -> Tensor:
    """The labels as by `_Lattice.winners`, weighed only where the corners differ; for a CPU."""
    values, wanted = lattice.values, lattice.first(points)[:, None]
    low = high = values
    # A plane is treated as one line. The end of a row has no cell that is used.
    for step in lattice.strides.flatten().tolist():
        low = torch.minimum(low[..., :-step], low[..., step:])
        high = torch.maximum(high[..., :-step], high[..., step:])
    mixed = torch.iinfo(values.dtype).max
    alike = torch.where(low == high, low, mixed)
    winners = alike.gather(2, wanted.expand(-1, values.shape[1], -1))
    flat = winners.view(-1)
    apart = (flat == mixed).nonzero().flatten()
    plane = apart.div(points.shape[2], rounding_mode="floor")
    place = apart - plane * points.shape[2]
    sample = plane.div(values.shape[1], rounding_mode="floor")
    own = points[sample, :, place].T.contiguous()[None]
    one = replace(lattice, values=values.view(1, 1, -1), starts=plane * values.shape[2])
    flat[apart] = one.winners(own).flatten()
    return winners


@dataclass(frozen=True, slots=True)
class _Lattice:
    """The labels of several samples at the corners of cells.

    Attributes:
        values: Flat planes (n, p, voxels) with a border of `OUTSIDE`.
        size: Size of the planes without the border, (axes, 1), float32.
        strides: Steps of the flat planes, (axes, 1), int64.
        corners: Where the corners of a cell are from the first one, (4 or 8, 1), int64.
        bits: The place of each axis in the number of a corner, (axes, 1), int64.
        starts: Where the planes of the positions begin; 0 where they have planes of their own.
    """

    values: Tensor
    size: Tensor
    strides: Tensor
    corners: Tensor
    bits: Tensor
    starts: Tensor | int = 0

    @classmethod
    def of(cls, planes: Tensor, axes: int) -> "_Lattice":
        """Makes it of planes (n, p, *spatial)."""
        sizes = np.array(planes.shape[2:])
        strides = np.append(np.cumprod(sizes[:0:-1] + 2)[::-1], 1)
        corners = np.array(list(product((0, 1), repeat=axes))) @ strides
        numbers = np.concatenate([strides, 2 ** np.arange(axes)[::-1], corners])
        sent = torch.split(to_device(numbers[:, None], planes.device), [axes, axes, len(corners)])
        return cls(
            values=F.pad(planes, [1, 1] * axes, value=OUTSIDE).flatten(2),
            size=to_device(sizes.astype(np.float32)[:, None], planes.device),
            strides=sent[0],
            bits=sent[1],
            corners=sent[2],
        )

    def points(self, grid: Tensor) -> Tensor:
        """The positions (n, axes, m) of a grid (n, m, axes); those outside end in the border."""
        # As grid_sample counts: the last coordinate belongs to the first axis.
        points = torch.stack(grid.unbind(2)[::-1], 1)
        points.add_(1.0).mul_(self.size * 0.5).sub_(0.5).clamp_min_(-1.0)
        return torch.minimum(points, self.size, out=points)

    def first(self, points: Tensor) -> Tensor:
        """The place (n, m) of the first corner of the cell of each position."""
        return self._floor(points).long().add_(1).mul_(self.strides).sum(1)

    def winners(self, points: Tensor) -> Tensor:
        """The labels (n, p, m) with the largest shares; of equals the nearest or smallest."""
        floor = self._floor(points)
        nearest = points.round().sub_(floor).long().mul_(self.bits).sum(1)[:, None, None]
        share = points - floor
        shares = torch.stack([1 - share, share], 2)
        weights = shares[:, 0]
        for axis in range(1, points.shape[1]):
            weights = (weights[:, :, None] * shares[:, axis, None]).flatten(1, 2)
        place = (self.first(points) + self.starts)[:, None]
        place = place.expand(-1, self.values.shape[1], -1)
        # Corner by corner, because indices take most of the memory.
        found = [self.values.gather(2, place + corner) for corner in self.corners.unbind()]
        around = torch.stack(found, 2)
        return _winners(around, weights[:, None], nearest)

    def _floor(self, points: Tensor) -> Tensor:
        floor = points.floor()
        return torch.minimum(floor, self.size - 1, out=floor)


def _winners(around: Tensor, weights: Tensor, nearest: Tensor) -> Tensor:
    """Decides between corners.

    Args:
        around: The labels at the corners, (n, p, corners, m).
        weights: The weights of the corners in linear interpolation, (n, 1, corners, m).
        nearest: The number of the nearest corner, (n, 1, 1, m).

    Returns:
        The labels (n, p, m).
    """
    weights = weights * _SCORE
    scores = torch.stack(
        [((around == own) * weights).sum(2).half() for own in torch.split(around, 1, dim=2)], dim=2
    )
    best = scores == scores.amax(2, keepdim=True)
    closest = around.gather(2, nearest.expand(*around.shape[:2], -1, -1))
    smallest = torch.where(best, around, torch.iinfo(around.dtype).max).amin(2)
    wins = best.logical_and_(around == closest).any(2)
    return torch.where(wins, closest[:, :, 0], smallest)
