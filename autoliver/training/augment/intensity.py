"""Random changes of the intensities of a batch; labels stay as they are.

Each transform is a pair: `sample_*` draws what happens to which sample and channel, from a CPU
generator, so that it does not depend on the device; `apply_*` does it, in place, only there. The
table `INTENSITY` names the pairs. The arithmetic is that of nnU-Net 2.8.1 (batchgeneratorsv2).
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

# A gamma whose spread vanishes, in parts of the channel's range, must not divide by zero.
_EPSILON = 1e-7
# Half-width of the blur kernel in standard deviations.
_BLUR_TRUNCATE = 3.0


class IntensityStep(Record, frozen=True, kw_only=True):
    """One transform, how often and how strong.

    Attributes:
        name: Key of `INTENSITY`.
        probability: Per sample.
        strength: Range the strength is drawn from; what it means is up to the transform.
        channel_probability: Per channel of a sample that is changed.
        skip_axes: Spatial axes that stay as they are (low_resolution).
    """

    name: IntensityName
    probability: float
    strength: tuple[float, float]
    channel_probability: float = 1.0
    skip_axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """What happens to one channel of one sample.

    Attributes:
        sample: Index in the batch.
        channel: Index in the sample.
        values: Strength, one or one per spatial axis.
        seed: Of the noise field, where there is one.
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
        step: Strength is the range of the standard deviation.
        shape: Of the batch, (b, c, *spatial).
        generator: On the CPU.
    """
    draws = []
    for sample, channels in _chosen(step, shape, generator):
        values = _uniform(step.strength, 1, generator)
        for channel in channels:
            seed = int(torch.randint(2**62, (1,), generator=generator))
            draws.append(Draw(sample, channel, values, seed))
    return tuple(draws)


def apply_noise(image: Tensor, draws: Sequence[Draw]) -> None:
    """Adds white Gaussian noise; the field is made on the image's device from the draw's seed."""
    for draw in draws:
        view = image[draw.sample, draw.channel]
        generator = Generator(device=image.device).manual_seed(draw.seed)
        field = torch.randn(view.shape, generator=generator, device=image.device, dtype=image.dtype)
        view.add_(field, alpha=draw.values[0])


def sample_blur(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> tuple[Draw, ...]:
    """Draws a standard deviation in voxels per channel and axis; arguments as `sample_noise`."""
    return tuple(
        Draw(sample, channel, _uniform(step.strength, len(shape) - 2, generator))
        for sample, channels in _chosen(step, shape, generator)
        for channel in channels
    )


def apply_blur(image: Tensor, draws: Sequence[Draw]) -> None:
    """Smoothes with a Gaussian along each axis, mirrored about the outermost voxel centres.

    Written as a product with a banded matrix per axis: on a CPU core 3 times as fast as shifted
    sums and 8 times as fast as a convolution (128^3: 19, 54 and 163 ms).
    """
    for draw in draws:
        view = image[draw.sample, draw.channel]
        sizes = zip(draw.values, view.shape, strict=True)
        view.copy_(multiply_axes(view, [blur_matrix(*each).to(view) for each in sizes]))


def multiply_axes(array: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The array with each axis multiplied by its matrix, (wanted, size)."""
    result = array
    # The last axis first: where arrays grow, the longest rows come last.
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
    # The odd width next to 6 sigma + 0.5, as nnU-Net; round() of a half goes to the even number.
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
        step: Strength is the range, with one inside.
        shape: Of the batch, (b, c, *spatial).
        generator: On the CPU.
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
    """Multiplies."""
    for draw in draws:
        image[draw.sample, draw.channel].mul_(draw.values[0])


def apply_contrast(image: Tensor, draws: Sequence[Draw]) -> None:
    """Scales the distance to the mean, clipped to the range there was before."""
    for draw in draws:
        view, factor = image[draw.sample, draw.channel], draw.values[0]
        low, high = torch.aminmax(view)
        shift = view.mean() * (1.0 - factor)
        view.mul_(factor).add_(shift).clamp_(low, high)


def sample_low_resolution(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> tuple[Draw, ...]:
    """Draws a scale per channel, for all axes but the skipped; arguments as `sample_noise`."""
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
    """Raises the image, scaled to 0..1, to a power, then restores its mean and deviation.

    Args:
        image: (b, c, *spatial), changed in place.
        draws: The exponents.
        inverted: Work on the negated image and negate it back (no inversion of the contrast).
    """
    sign = -1.0 if inverted else 1.0
    for draw in draws:
        view = image[draw.sample, draw.channel]
        if inverted:
            view.neg_()
        low, high = torch.aminmax(view)
        extent = torch.where(high > low, high - low, 1.0)  # of any unit
        mean, std = _centre(view)
        # exp(log x * exponent): on a CPU core pow() takes three times as long.
        view.add_(mean - low).clamp_min_(0).div_(extent)
        view.log_().mul_(draw.values[0]).exp_()
        _, new_std = _centre(view)
        # The range but for a power of two, which changes no digit and cannot overflow.
        part = torch.frexp(extent).mantissa
        gain = std * part / (new_std * part).clamp_min(_EPSILON)
        view.mul_(sign * gain).add_(sign * mean)


def _centre(view: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts the mean, in place; returns it and the standard deviation.

    Not `Tensor.std`: on a CPU core that takes five times as long.
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
        skip_axes: Axes whose resolution is not lowered: the slice axis of anisotropic patches.
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
    """The samples, and of each the channels, that a step changes."""
    samples = torch.rand(shape[0], generator=generator) < step.probability
    channels = torch.rand(*shape[:2], generator=generator) < step.channel_probability
    return [
        (sample, channels[sample].nonzero().flatten().tolist())
        for sample in samples.nonzero().flatten().tolist()
    ]


def _uniform(limits: tuple[float, float], count: int, generator: Generator) -> tuple[float, ...]:
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return tuple((limits[0] + drawn * (limits[1] - limits[0])).tolist())
