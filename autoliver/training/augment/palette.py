"""Remaps the grey values of each region of an image on its own, so that any two may swap order.

After the published recipe of PALETTE (regional remapping for networks that see one contrast alone):
an image is divided by its intensities, groups of intensities by random Voronoi cells, and each
region gets a random mean and a random, possibly inverted contrast of its own texture. The task's
labels are remapped once more. Changes of the whole image, such as those of `gin`, change the walls
between organs that are there; this makes walls where the source has none.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from autoliver.training.augment.lines import blur_matrix, multiply_axes
from autoliver.training.augment.synth import group_bins

_AIR = 0.01  # of the range of grey values: what is darker is air and becomes 0
_GROUPS = (2, 6)  # number of groups of intensities
_ONE_GROUP = 0.1  # probability of a single group
_SPLIT = 0.6  # probability that a group is split into cells
_CELLS = (2, 10)
_CONTRAST = (0.5, 2.0)  # magnitude of the factor of a region's own texture
_NOISE = 0.1  # standard deviation of noise instead of texture is at most this
_LABEL = 0.5  # probability that a label is remapped
_BLURS = (0.0, 0.0, 0.0, 0.3, 0.5, 0.8)  # standard deviations in voxels, one is drawn
_BINS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Which parts of the method are used; without one, what it brings can be measured.

    Attributes:
        cells: Whether groups of intensities are split into Voronoi cells.
        texture: Whether a region keeps its own texture; False: it is filled with noise.
        labels: Whether the labels are remapped as well.
    """

    cells: bool = True
    texture: bool = True
    labels: bool = True


WHOLE = Recipe()


def remap(image: Tensor, label: Tensor, generator: Generator, recipe: Recipe = WHOLE) -> Tensor:
    """Remaps the regions of a patch.

    Args:
        image: (c, *spatial), float; each channel is remapped on its own.
        label: (*spatial), classes; 0 is background, negative is outside the image.
        generator: Random generator on the CPU; noise is drawn on the image's device.
        recipe: The parts of the method to use.

    Returns:
        (c, *spatial), float32; 0 in air and outside.
    """
    made = torch.zeros_like(image, dtype=torch.float32)
    for result, channel in zip(made, image, strict=True):
        x, body = _scaled(channel, label >= 0)
        regions = _regions(x, body, generator, cells=recipe.cells)
        x = _remapped(x, regions, generator, texture=recipe.texture)
        x = _blurred(x, generator)
        if recipe.labels:
            x = _remapped(x, _some_labels(label, generator), generator, texture=recipe.texture)
            x = _blurred(x, generator)
        result.copy_(x.masked_fill_(~body, 0.0))
    return made


def _scaled(channel: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Scales grey values inside the image to 0 to 1; also returns where there is a body."""
    known = torch.nan_to_num(channel).float()
    low = known.masked_fill(~inside, torch.inf).min()
    extent = known.masked_fill(~inside, -torch.inf).max() - low
    scaled = (known - low) / torch.where(extent > 0, extent, 1.0)
    body = inside & (scaled > _AIR)
    return scaled.masked_fill_(~body, 0.0), body


def _regions(x: Tensor, body: Tensor, generator: Generator, *, cells: bool) -> Tensor:
    """Divides a body into regions, numbered from 1; 0 is no region.

    The groups are the exact k-means of the histogram, and the cells those of random points.
    """
    one = float(torch.rand((), generator=generator)) < _ONE_GROUP
    drawn = int(torch.randint(_GROUPS[0], _GROUPS[1] + 1, (), generator=generator))
    groups = 1 if one else drawn
    bins = (x * (_BINS - 1)).round_().long().masked_fill_(~body, _BINS)
    counts = torch.bincount(bins.flatten(), minlength=_BINS + 1)[:_BINS].cpu().numpy()
    table = torch.zeros(_BINS + 1, dtype=torch.int64)
    table[:_BINS] = torch.from_numpy(group_bins(counts, groups)) + 1 if counts.any() else 1
    group = torch.take(table.to(x.device), bins)
    if not cells:
        return group
    most = _CELLS[1]
    regions = group * most
    for number in range(1, groups + 1):
        split = float(torch.rand((), generator=generator)) < _SPLIT
        count = int(torch.randint(_CELLS[0], most + 1, (), generator=generator))
        points = torch.rand(count, x.ndim, generator=generator)
        if split:
            regions = torch.where(group == number, regions + _nearest(points, x), regions)
    return regions.masked_fill_(~body, 0)


def _nearest(points: Tensor, like: Tensor) -> Tensor:
    """The number of the nearest point for each voxel, in units of the patch's edges.

    A patch is about as long in each direction in millimetres, even if its voxels are not.
    """
    distance = torch.zeros((len(points), *like.shape), device=like.device)
    for axis, size in enumerate(like.shape):
        shape = [1] * (like.ndim + 1)
        shape[axis + 1] = size
        line = (torch.arange(size, device=like.device) + 0.5) / size
        place = points[:, axis].to(like.device).view(-1, *[1] * like.ndim)
        distance += (line.view(shape) - place).square()
    return distance.argmin(0)


def _some_labels(label: Tensor, generator: Generator) -> Tensor:
    """The labels that are drawn, numbered as they are; 0 for the others and the background."""
    most = int(label.max().clamp_min(0))
    drawn = torch.rand(most + 1, generator=generator) < _LABEL
    drawn[0] = False
    known = label.long().clamp_min(0)
    return known * torch.take(drawn.to(label.device), known)


def _remapped(x: Tensor, regions: Tensor, generator: Generator, *, texture: bool) -> Tensor:
    """Gives each region from 1 on a mean and a contrast, or noise; region 0 stays."""
    numbers = torch.unique(regions).tolist()
    count = (numbers[-1] if numbers else 0) + 1
    means = torch.rand(count, generator=generator)
    size = _CONTRAST[0] + (_CONTRAST[1] - _CONTRAST[0]) * torch.rand(count, generator=generator)
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    seed = int(torch.randint(2**62, (), generator=generator))
    result = x
    noise = None
    if not texture:
        source = Generator(device=x.device).manual_seed(seed)
        noise = torch.randn(x.shape, generator=source, device=x.device)
    for number in (each for each in numbers if each > 0):
        # Summed over masks because sums by index differ from run to run on a GPU.
        mask = regions == number
        if noise is not None:
            own = noise * (_NOISE * float(size[number]) / _CONTRAST[1])
        else:
            mean = (x * mask).sum() / mask.sum().clamp_min(1)
            own = (x - mean) * float(size[number] * sign[number])
        result = torch.where(mask, own + float(means[number]), result)
    return result


def _blurred(x: Tensor, generator: Generator) -> Tensor:
    which = int(torch.randint(len(_BLURS), (), generator=generator))
    if not _BLURS[which]:
        return x
    return multiply_axes(x, [blur_matrix(_BLURS[which], size).to(x) for size in x.shape])
