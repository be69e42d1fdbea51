"""Synthesises images from label maps: random grey values and noise per class, and a smooth field.

It follows Billot et al., SynthSeg, Medical Image Analysis 2023. There, every voxel of the body has
a label. Here most voxels are background, so the background of a patch is first split by intensity.
Most classes also keep some of their own texture, possibly inverted, because a network learns little
from a liver without vessels.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor

from autoliver.training.augment.lines import blur_matrix, multiply_axes

# Values of SynthSeg, whose grey values range from 0 to 255, scaled to 0 to 1.
_MEAN = (25 / 255, 225 / 255)
_DEVIATION = (5 / 255, 25 / 255)
_BIAS_DEVIATION = 0.7
# Air is dark and nearly without noise in CT and MR alike.
_AIR_MEAN = (0.0, 25 / 255)
_AIR_DEVIATION = (0.0, 5 / 255)
_PURE_NOISE = 1 / 3  # share of the classes that keep none of their texture
_PARTS = (4, 8)  # number of background classes besides air
_SMOOTHING = 1.0  # standard deviation of the smoothing before the split, in voxels
_BLUR = (0.3, 1.3)  # standard deviation per axis, in voxels; simulates another resolution
_BINS = 128
_FLAT = 1e-6  # of an image's largest value: a class of less deviation has no texture
_FIELD_CELLS = 4  # control points of smooth fields are a quarter of the patch apart


def synthesise(image: Tensor, label: Tensor, generator: Generator) -> Tensor:
    """Synthesises an image with the shapes of a patch and grey values of no particular modality.

    Args:
        image: (c, *spatial), float; the background is split by its first channel.
        label: (*spatial), classes; 0 is background, negative is outside the image.
        generator: Random generator on the CPU; the noise is drawn on the image's device.

    Returns:
        (c, *spatial), float32.
    """
    parts = int(torch.randint(_PARTS[0], _PARTS[1] + 1, (1,), generator=generator))
    noise_seed = int(torch.randint(2**62, (1,), generator=generator))
    deviation = float(torch.rand((), generator=generator)) * _BIAS_DEVIATION
    blurs = _between(_BLUR, torch.rand(label.ndim, generator=generator)).tolist()
    field = smooth_field(label.shape, generator).mul_(deviation).exp_().to(image)
    matrices = [blur_matrix(*each).to(image) for each in zip(blurs, label.shape, strict=True)]
    classes = split_background(image[0], label, parts=parts)
    count = max(int(classes.max()) + 1, parts + 1)
    noise = Generator(device=image.device).manual_seed(noise_seed)
    made = torch.empty_like(image, dtype=torch.float32)
    for channel, before in zip(made, image, strict=True):
        mean, spread = (table.to(image.device) for table in _grey_values(count, generator))
        share = _texture_shares(count, generator).to(image.device)
        torch.randn(channel.shape, generator=noise, out=channel)
        channel.mul_(torch.take((1 - share**2).sqrt(), classes))
        channel.addcmul_(class_texture(before, classes, count=count), torch.take(share, classes))
        channel.mul_(torch.take(spread, classes)).add_(torch.take(mean, classes)).mul_(field)
        channel.copy_(multiply_axes(channel, matrices))
    return made


def class_texture(channel: Tensor, classes: Tensor, *, count: int) -> Tensor:
    """The texture of a patch: each class normalised to mean 0 and standard deviation 1.

    Args:
        channel: (*spatial), float.
        classes: (*spatial), 0 to count - 1.
        count: Number of classes.

    Returns:
        (*spatial), float32, clipped to -4 to 4: vessels are kept, but extreme voxels are not.
    """
    known = torch.nan_to_num(channel, 0.0, 0.0, 0.0).float()
    # Of a class without texture only rounding is left, whatever the unit of the image is.
    least = (known.abs().max() * _FLAT).square().clamp_min(torch.finfo(torch.float32).tiny)
    mean, scale = torch.zeros(2, count, device=channel.device)
    for number in range(count):
        # Summed over masks because sums by index differ from run to run on a GPU.
        mask = classes == number
        voxels = mask.sum().clamp_min(1)
        mean[number] = (known * mask).sum() / voxels
        variance = ((known - mean[number]).square() * mask).sum() / voxels
        scale[number] = variance.clamp_min(least).rsqrt()
    return (known - torch.take(mean, classes)).mul_(torch.take(scale, classes)).clamp_(-4, 4)


def _texture_shares(count: int, generator: Generator) -> Tensor:
    """The share of its own texture that each class keeps, -1 (inverted) to 1; the rest is noise.

    It is 0 for air and for a third of the classes, which are pure noise as in SynthSeg.
    """
    shares = 2 * torch.rand(count, generator=generator) - 1
    shares[torch.rand(count, generator=generator) < _PURE_NOISE] = 0.0
    shares[0] = 0.0
    return shares


def _grey_values(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draws mean and standard deviation of each class; the first class is air."""
    position = torch.rand(count, 2, generator=generator)
    mean = _between(_MEAN, position[:, 0])
    deviation = _between(_DEVIATION, position[:, 1])
    mean[0] = _between(_AIR_MEAN, position[0, 0])
    deviation[0] = _between(_AIR_DEVIATION, position[0, 1])
    return mean, deviation


def split_background(channel: Tensor, label: Tensor, *, parts: int) -> Tensor:
    """Divides a whole patch into classes: air, parts of the background, labels.

    The smoothed intensities of the background are grouped by k-means; the lowest group is air.

    Args:
        channel: (*spatial), float.
        label: (*spatial); 0 is background, negative is outside the image.
        parts: Number of parts besides air; a background with fewer distinct intensities has fewer.

    Returns:
        (*spatial), int64: 0 is air or outside, 1 to `parts` are the background from dark to bright,
        and parts + v is the label v.
    """
    matrices = [blur_matrix(_SMOOTHING, size).to(channel) for size in channel.shape]
    background, outside = label == 0, label < 0
    # Voxels outside are 0, which may be bright. They get the lowest intensity, so that smoothing
    # does not brighten the air beside them.
    known = torch.nan_to_num(channel)
    known = known.masked_fill(outside, known.masked_fill(outside, torch.inf).min())
    smooth = multiply_axes(known.nan_to_num_(), matrices)
    low = smooth.masked_fill(~background, torch.inf).min()
    extent = smooth.masked_fill(~background, -torch.inf).max() - low
    scale = (_BINS - 1) / torch.where(extent > 0, extent, 1.0)
    bins = smooth.sub_(low).mul_(scale).round_().clamp_(0, _BINS - 1)
    # Voxels that are not background get a bin of their own, even if there is no background at all
    # and `low` is infinite.
    bins = bins.masked_fill_(~background, _BINS).long()
    counts = torch.bincount(bins.flatten(), minlength=_BINS + 1)[:_BINS].cpu().numpy()
    table = torch.zeros(_BINS + 1, dtype=torch.int64)
    table[:_BINS] = torch.from_numpy(group_bins(counts, parts + 1))
    further = (label.long() + parts).masked_fill_(outside, 0)
    return torch.where(background, torch.take(table.to(label.device), bins), further)


def group_bins(counts: npt.NDArray[np.int64], groups: int) -> npt.NDArray[np.int64]:
    """Computes the exact k-means of a histogram: the grouping with the least squared distances.

    In one dimension every group is a run of bins, so the best grouping follows from the best
    groupings with fewer groups (dynamic programming; Wang and Song, R Journal 2011).

    Args:
        counts: (bins,), number of values in each bin.
        groups: Number of groups; there are fewer if fewer bins hold any values.

    Returns:
        (bins,), the group of each bin, numbered from 0 upwards; empty bins belong to the group of
        the bin before.
    """
    used = np.flatnonzero(counts)
    groups = min(groups, len(used))
    weight = counts[used].astype(np.float64)
    sums = [np.concatenate([[0.0], np.cumsum(weight * used**power)]) for power in range(3)]
    n, s, q = (each[:, None] - each[None, :] for each in sums)  # sums over first <= bin < end
    cost = np.where(n > 0, q - s**2 / np.where(n > 0, n, 1.0), np.inf)  # (end, first)
    best = cost[:, 0]
    firsts = []
    for _ in range(groups - 1):
        total = best + cost
        firsts.append(total.argmin(1))
        best = total.min(1)
    group = np.zeros(len(counts), np.int64)
    end = len(used)
    for first in reversed(firsts):
        end = int(first[end])
        group[used[end] :] += 1
    return group


def smooth_field(shape: torch.Size | tuple[int, ...], generator: Generator) -> Tensor:
    """A smooth random field: a quadratic B-spline with normally distributed control points.

    Args:
        shape: Shape of the field.
        generator: Random generator on the CPU.

    Returns:
        (*shape), float32, on the CPU.
    """
    points = torch.randn([_FIELD_CELLS + 2] * len(shape), generator=generator)
    return multiply_axes(points, [_spline_matrix(size) for size in shape])


def _spline_matrix(size: int) -> Tensor:
    """The matrix (size, control points) that evaluates a quadratic B-spline on a line of voxels."""
    position = (torch.arange(size) + 0.5) * (_FIELD_CELLS / size)
    cell = position.floor()
    u = position - cell
    weights = torch.stack([0.5 * (1 - u) ** 2, 0.5 + u - u**2, 0.5 * u**2], dim=1)
    matrix = torch.zeros(size, _FIELD_CELLS + 2)
    return matrix.scatter_(1, cell.long()[:, None] + torch.arange(3), weights)


def _between(limits: tuple[float, float], position: Tensor) -> Tensor:
    return limits[0] + position * (limits[1] - limits[0])
