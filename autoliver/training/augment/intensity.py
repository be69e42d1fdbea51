"""Random changes of the intensities of a batch; labels are not changed.

Each transform is a pair of functions. `sample_*` draws from a CPU generator which samples and
channels change and how, so that this does not depend on the device. `apply_*` changes these
channels in place, several at once. The table `INTENSITY` names the pairs. The arithmetic is that of
nnU-Net 2.8.1 (batchgeneratorsv2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from autoliver.artifacts import Record
from autoliver.training.augment.lines import blur_matrices, coarsened, multiply_rows
from autoliver.training.augment.rows import change_rows, to_device

IntensityName = Literal[
    "noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma"
]

# Prevents a division by zero in the gamma transform of a channel that is or becomes constant.
_EPSILON = 1e-7


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
    chosen = _chosen(step, shape, generator)
    count = sum(1 + len(channels) for _, channels in chosen)
    # All numbers at once: 64 bits each, of which those of a float64 are the lowest 53.
    drawn = torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    numbers = iter(drawn.tolist())
    draws = []
    for sample, channels in chosen:
        position = (next(numbers) % 2**53) * 2.0**-53
        values = (_between(step.strength, position),)
        draws += [Draw(sample, channel, values, next(numbers) % 2**62) for channel in channels]
    return tuple(draws)


def apply_noise(image: Tensor, draws: Sequence[Draw]) -> None:
    """Adds white Gaussian noise, which is drawn on the image's device with the draw's seed."""

    def change(picked: Tensor, own: Sequence[Draw]) -> Tensor:
        field = torch.empty_like(picked)
        for draw, row in zip(own, field, strict=True):
            row.normal_(generator=Generator(device=image.device).manual_seed(draw.seed))
        picked.view(len(own), -1).addcmul_(field.view(len(own), -1), _values(own, image))
        return picked

    _change(image, draws, change)


def sample_blur(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> tuple[Draw, ...]:
    """Draws a standard deviation in voxels per channel and axis; arguments: see `sample_noise`."""
    places = _places(_chosen(step, shape, generator))
    drawn = _uniform(len(places), len(shape) - 2, generator)
    return tuple(
        Draw(*place, tuple(_between(step.strength, position) for position in row))
        for place, row in zip(places, drawn, strict=True)
    )


def apply_blur(image: Tensor, draws: Sequence[Draw]) -> None:
    """Smoothes with a Gaussian along each axis, mirrored about the outermost voxel centres.

    Each axis is multiplied by a banded matrix. On a CPU core this is 3 times as fast as shifted
    sums and 8 times as fast as a convolution (128^3: 19, 54 and 163 ms).
    """

    def change(picked: Tensor, own: Sequence[Draw]) -> Tensor:
        sigmas = np.array([draw.values for draw in own]).T
        sizes = zip(sigmas, picked.shape[1:], strict=True)
        return multiply_rows(picked, [blur_matrices(*each, image.device) for each in sizes])

    _change(image, draws, change)


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
    places = _places(_chosen(step, shape, generator))
    draws = []
    for place, (side, position) in zip(places, _uniform(len(places), 2, generator), strict=True):
        edge = low if side < 0.5 else high
        draws.append(Draw(*place, (1.0 + position * (edge - 1.0),)))
    return tuple(draws)


def apply_brightness(image: Tensor, draws: Sequence[Draw]) -> None:
    """Multiplies intensities by a factor."""

    def change(picked: Tensor, own: Sequence[Draw]) -> Tensor:
        picked.view(len(own), -1).mul_(_values(own, image))
        return picked

    _change(image, draws, change)


def apply_contrast(image: Tensor, draws: Sequence[Draw]) -> None:
    """Scales the distance to the mean and clips the result to the previous range."""

    def change(picked: Tensor, own: Sequence[Draw]) -> Tensor:
        flat, factor = picked.view(len(own), -1), _values(own, image)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        shift = flat.mean(1, keepdim=True) * (1.0 - factor)
        flat.mul_(factor).add_(shift)
        torch.minimum(torch.maximum(flat, low, out=flat), high, out=flat)
        return picked

    _change(image, draws, change)


def sample_low_resolution(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> tuple[Draw, ...]:
    """Draws a scale per channel for all but the skipped axes; arguments as for `sample_noise`."""
    places = _places(_chosen(step, shape, generator))
    draws = []
    for place, (position,) in zip(places, _uniform(len(places), 1, generator), strict=True):
        scale = _between(step.strength, position)
        values = [1.0 if axis in step.skip_axes else scale for axis in range(len(shape) - 2)]
        draws.append(Draw(*place, tuple(values)))
    return tuple(draws)


def apply_low_resolution(image: Tensor, draws: Sequence[Draw]) -> None:
    """Downsamples by nearest neighbour and upsamples linearly."""

    def change(picked: Tensor, own: Sequence[Draw]) -> Tensor:
        scales = list(np.array([draw.values for draw in own]).T)
        return coarsened(picked, scales)

    _change(image, draws, change)


def apply_gamma(image: Tensor, draws: Sequence[Draw], *, inverted: bool = False) -> None:
    """Raises each channel, scaled to 0..1, to a power; restores mean and standard deviation.

    Args:
        image: (b, c, *spatial), changed in place.
        draws: The exponents.
        inverted: Whether to negate the image before and after, which does not invert the contrast.
    """

    def change(picked: Tensor, own: Sequence[Draw]) -> Tensor:
        flat = picked.view(len(own), -1)
        if inverted:
            flat.neg_()
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        extent = torch.where(high > low, high - low, 1.0)  # of any unit
        mean, norm = _centre(flat)
        # exp(log x * exponent), because pow() takes three times as long on a CPU core.
        flat.add_(mean - low).clamp_min_(0).div_(extent)
        flat.log_().mul_(_values(own, image)).exp_()
        _, new_norm = _centre(flat)
        # The range but for a power of two, which changes no digit and cannot overflow.
        part = torch.frexp(extent).mantissa
        least = _EPSILON * math.sqrt(max(flat.shape[1] - 1, 1))
        gain = norm * part / (new_norm * part).clamp_min(least)
        flat.mul_(gain).add_(mean)
        if inverted:
            flat.neg_()
        return picked

    _change(image, draws, change)


def _centre(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts the mean of each row, in place; returns the means and the norms of the rest.

    `Tensor.std` is not used because it takes five times as long on a CPU core.
    """
    mean = flat.mean(1, keepdim=True)
    return mean, torch.linalg.vector_norm(flat.sub_(mean), dim=1, keepdim=True)


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
    batch, channels = shape[:2]
    drawn = torch.rand(batch * (1 + channels), generator=generator).numpy()
    changes = drawn[batch:].reshape(batch, channels) < step.channel_probability
    return [
        (int(sample), np.flatnonzero(changes[sample]).tolist())
        for sample in np.flatnonzero(drawn[:batch] < step.probability)
    ]


def _places(chosen: Sequence[tuple[int, list[int]]]) -> list[tuple[int, int]]:
    return [(sample, channel) for sample, channels in chosen for channel in channels]


def _uniform(count: int, each: int, generator: Generator) -> list[list[float]]:
    """Draws numbers from 0 to 1, `each` for every one of `count` places."""
    drawn: list[list[float]] = torch.rand(
        count, each, generator=generator, dtype=torch.float64
    ).tolist()
    return drawn


def _between(limits: tuple[float, float], position: float) -> float:
    return limits[0] + position * (limits[1] - limits[0])


def _change(
    image: Tensor, draws: Sequence[Draw], change: Callable[[Tensor, Sequence[Draw]], Tensor]
) -> None:
    """Changes the channels of some draws, (k, *spatial), in place, several at once."""
    channels = image.shape[1]
    rows = [draw.sample * channels + draw.channel for draw in draws]
    flat = image.view(-1, *image.shape[2:])
    change_rows(flat, rows, lambda picked, part: change(picked, draws[part]))


def _values(draws: Sequence[Draw], like: Tensor) -> Tensor:
    """The first value of each draw, (k, 1), on the device of an image."""
    return to_device(np.array([draw.values[:1] for draw in draws], np.float32), like.device)
