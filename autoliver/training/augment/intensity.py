"""Random changes of the intensities of a batch; labels are not changed.

Each transform is a pair of functions. `sample_*` draws from a CPU generator which samples and
channels change and how, so that this does not depend on the device. `apply_*` changes these
channels in place. The table `INTENSITY` names the pairs. The arithmetic is that of nnU-Net 2.8.1
(batchgeneratorsv2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autoliver.artifacts import Record

IntensityName = Literal[
    "noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma"
]

# Prevents a division by zero in the gamma transform of a channel that is or becomes constant.
_EPSILON = 1e-7
# Half-width of the blur kernel in standard deviations.
_BLUR_TRUNCATE = 3.0


class IntensityStep(Record, frozen=True, kw_only=True):
    """One transform, and how often and how strongly it is applied.

    Attributes:
        name: Key of `INTENSITY`.
        probability: Probability that a sample is changed.
        strength: Range from which the strength is drawn; its meaning depends on the transform.
        channel_probability: Probability that a channel of a changed sample is changed.
        skip_axes: Spatial axes that are not changed (only used by "low_resolution").
    """

    name: IntensityName
    probability: float
    strength: tuple[float, float]
    channel_probability: float = 1.0
    skip_axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """The change of one channel of one sample.

    Attributes:
        sample: Index of the sample in the batch.
        channel: Index of the channel in the sample.
        values: Strength: a single value, or one per spatial axis.
        seed: Seed of the noise field; 0 for transforms without noise.
    """

    sample: int
    channel: int
    values: tuple[float, ...]
    seed: int = 0


Sample = Callable[[IntensityStep, Sequence[int], Generator], tuple[Draw, ...]]
Apply = Callable[[Tensor, Sequence[Draw]], None]


def sample_noise(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> tuple[Draw, ...]:
    """Draws a standard deviation per sample (shared by its channels) and a seed per channel.

    Args:
        step: The transform; its strength is the range of the standard deviation.
        shape: Shape of the batch, (b, c, *spatial).
        generator: Random generator on the CPU.
    """
    draws = []
    for sample, channels in _chosen(step, shape, generator):
        values = _uniform(step.strength, 1, generator)
        for channel in channels:
            seed = int(torch.randint(2**62, (1,), generator=generator))
            draws.append(Draw(sample, channel, values, seed))
    return tuple(draws)


def apply_noise(image: Tensor, draws: Sequence[Draw]) -> None:
    """Adds white Gaussian noise, which is drawn on the image's device with the draw's seed."""
    for draw in draws:
        view = image[draw.sample, draw.channel]
        generator = Generator(device=image.device).manual_seed(draw.seed)
        field = torch.randn(view.shape, generator=generator, device=image.device, dtype=image.dtype)
        view.add_(field, alpha=draw.values[0])


def sample_blur(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> tuple[Draw, ...]:
    """Draws a standard deviation in voxels per channel and axis; arguments: see `sample_noise`."""
    return tuple(
        Draw(sample, channel, _uniform(step.strength, len(shape) - 2, generator))
        for sample, channels in _chosen(step, shape, generator)
        for channel in channels
    )


def apply_blur(image: Tensor, draws: Sequence[Draw]) -> None:
    """Smoothes with a Gaussian along each axis, mirrored about the outermost voxel centres.

    Each axis is multiplied by a banded matrix. On a CPU core this is 3 times as fast as shifted
    sums and 8 times as fast as a convolution (128^3: 19, 54 and 163 ms).
    """
    for draw in draws:
        view = image[draw.sample, draw.channel]
        sizes = zip(draw.values, view.shape, strict=True)
        view.copy_(multiply_axes(view, [blur_matrix(*each).to(view) for each in sizes]))


def multiply_axes(array: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiplies each axis of an array by its matrix (wanted, size)."""
    result = array
    # The last axis comes first because a growing array then has its longest rows only at the end.
    for axis in reversed(range(array.ndim)):
        matrix, shape = matrices[axis], result.shape
        if axis == array.ndim - 1:
            result = result @ matrix.T
        else:
            folded = result.reshape(-1, shape[axis], shape[axis + 1 :].numel())
            result = matrix @ folded
        result = result.reshape(*shape[:axis], len(matrix), *shape[axis + 1 :])
    return result


def blur_matrix(sigma: float, size: int) -> Tensor:
    """The matrix (size, size) that smoothes a line of `size` voxels with a Gaussian."""
    # The odd width nearest to 6 sigma + 0.5, as in nnU-Net; round() rounds a half to even.
    width = 2 * _BLUR_TRUNCATE * sigma + 0.5
    nearest = round(width)
    if nearest % 2 == 0:
        nearest += 1 if width >= nearest else -1
    offset = torch.arange(nearest) - nearest // 2
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)
    weight /= weight.sum()
    period = max(2 * (size - 1), 1)
    place = (torch.arange(size)[:, None] + offset).abs() % period
    place = torch.minimum(place, period - place) if size > 1 else torch.zeros_like(place)
    rows = torch.arange(size)[:, None].expand_as(place)
    matrix = torch.zeros(size, size)
    return matrix.index_put_((rows, place), weight.expand(place.shape), accumulate=True)


def sample_factor(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> tuple[Draw, ...]:
    """Draws a factor or exponent per channel, as often below one as above.

    Args:
        step: The transform; its strength is the range of the factor, which must contain one.
        shape: Shape of the batch, (b, c, *spatial).
        generator: Random generator on the CPU.
    """
    low, high = step.strength
    draws = []
    for sample, channels in _chosen(step, shape, generator):
        for channel in channels:
            side, position = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
            edge = low if side < 0.5 else high
            draws.append(Draw(sample, channel, (1.0 + position * (edge - 1.0),)))
    return tuple(draws)


def apply_brightness(image: Tensor, draws: Sequence[Draw]) -> None:
    """Multiplies intensities by a factor."""
    for draw in draws:
        image[draw.sample, draw.channel].mul_(draw.values[0])


def apply_contrast(image: Tensor, draws: Sequence[Draw]) -> None:
    """Scales the distance to the mean and clips the result to the previous range."""
    for draw in draws:
        view, factor = image[draw.sample, draw.channel], draw.values[0]
        low, high = torch.aminmax(view)
        shift = view.mean() * (1.0 - factor)
        view.mul_(factor).add_(shift).clamp_(low, high)


def sample_low_resolution(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> tuple[Draw, ...]:
    """Draws a scale per channel for all but the skipped axes; arguments as for `sample_noise`."""
    draws = []
    for sample, channels in _chosen(step, shape, generator):
        for channel in channels:
            (scale,) = _uniform(step.strength, 1, generator)
            values = [1.0 if axis in step.skip_axes else scale for axis in range(len(shape) - 2)]
            draws.append(Draw(sample, channel, tuple(values)))
    return tuple(draws)


def apply_low_resolution(image: Tensor, draws: Sequence[Draw]) -> None:
    """Downsamples by nearest neighbour and upsamples linearly."""
    for draw in draws:
        view = image[draw.sample, draw.channel]
        small = [round(n * scale) for n, scale in zip(view.shape, draw.values, strict=True)]
        coarse = F.interpolate(view[None, None], small, mode="nearest-exact")[0, 0]
        matrices = [_linear_matrix(n, m).to(view) for n, m in zip(small, view.shape, strict=True)]
        view.copy_(multiply_axes(coarse, matrices))


def _linear_matrix(size: int, wanted: int) -> Tensor:
    """The matrix (wanted, size) of torch's linear interpolation along a line."""
    unit = torch.eye(size)[None]
    return F.interpolate(unit, wanted, mode="linear", align_corners=False)[0].T


def apply_gamma(image: Tensor, draws: Sequence[Draw], *, inverted: bool = False) -> None:
    """Raises each channel, scaled to 0..1, to a power; restores mean and standard deviation.

    Args:
        image: (b, c, *spatial), changed in place.
        draws: The exponents.
        inverted: Whether to negate the image before and after, which does not invert the contrast.
    """
    sign = -1.0 if inverted else 1.0
    for draw in draws:
        view = image[draw.sample, draw.channel]
        if inverted:
            view.neg_()
        low, high = torch.aminmax(view)
        extent = torch.where(high > low, high - low, 1.0)  # of any unit
        mean, std = _centre(view)
        # exp(log x * exponent), because pow() takes three times as long on a CPU core.
        view.add_(mean - low).clamp_min_(0).div_(extent)
        view.log_().mul_(draw.values[0]).exp_()
        _, new_std = _centre(view)
        # The range but for a power of two, which changes no digit and cannot overflow.
        part = torch.frexp(extent).mantissa
        gain = std * part / (new_std * part).clamp_min(_EPSILON)
        view.mul_(sign * gain).add_(sign * mean)


def _centre(view: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts the mean, in place; returns the mean and the standard deviation.

    `Tensor.std` is not used because it takes five times as long on a CPU core.
    """
    mean = view.mean()
    flat = view.sub_(mean).flatten()
    return mean, (torch.dot(flat, flat) / max(flat.numel() - 1, 1)).sqrt()


INTENSITY: dict[IntensityName, tuple[Sample, Apply]] = {
    "noise": (sample_noise, apply_noise),
    "blur": (sample_blur, apply_blur),
    "brightness": (sample_factor, apply_brightness),
    "contrast": (sample_factor, apply_contrast),
    "low_resolution": (sample_low_resolution, apply_low_resolution),
    "gamma_inverted": (sample_factor, partial(apply_gamma, inverted=True)),
    "gamma": (sample_factor, apply_gamma),
}


def default_steps(*, skip_axes: tuple[int, ...] = ()) -> tuple[IntensityStep, ...]:
    """The steps of nnU-Net 2.8.1, in its order.

    Args:
        skip_axes: Axes whose resolution is not reduced: the slice axis of anisotropic patches.
    """
    return (
        IntensityStep(name="noise", probability=0.1, strength=(0.0, 0.1)),
        IntensityStep(name="blur", probability=0.2, strength=(0.5, 1.0), channel_probability=0.5),
        IntensityStep(name="brightness", probability=0.15, strength=(0.75, 1.25)),
        IntensityStep(name="contrast", probability=0.15, strength=(0.75, 1.25)),
        IntensityStep(
            name="low_resolution",
            probability=0.25,
            strength=(0.5, 1.0),
            channel_probability=0.5,
            skip_axes=skip_axes,
        ),
        IntensityStep(name="gamma_inverted", probability=0.1, strength=(0.7, 1.5)),
        IntensityStep(name="gamma", probability=0.3, strength=(0.7, 1.5)),
    )


def _chosen(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> list[tuple[int, list[int]]]:
    """Draws the samples that a step changes, each with the channels that change."""
    samples = torch.rand(shape[0], generator=generator) < step.probability
    channels = torch.rand(*shape[:2], generator=generator) < step.channel_probability
    return [
        (sample, channels[sample].nonzero().flatten().tolist())
        for sample in samples.nonzero().flatten().tolist()
    ]


def _uniform(limits: tuple[float, float], count: int, generator: Generator) -> tuple[float, ...]:
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return tuple((limits[0] + drawn * (limits[1] - limits[0])).tolist())
