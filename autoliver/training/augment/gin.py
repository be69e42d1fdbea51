"""Random convolutions, and shallow random networks of them, for images side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_LAYERS = 4
_CHANNELS = 2
# On the CPU, so many side by side take no longer than one; beyond them images go one after another.
_CPU_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class GinWeights:
    """A random network for one sample.

    Attributes:
        kernels: Per layer (out, in, *kernel) with kernels of 1 or 3.
        shifts: Per layer (out,).
        share: Of the network's output in the result; the rest is the image.
    """

    kernels: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    share: float


def draw_gin(channels: int, axes: int, generator: Generator) -> GinWeights:
    """Draws a network of four layers for images of so many channels and axes."""
    widths = [channels, *[_CHANNELS] * (_LAYERS - 1), channels]
    sizes = (2 * torch.randint(2, (_LAYERS,), generator=generator) + 1).tolist()
    kernels, shifts = [], []
    for size, before, after in zip(sizes, widths[:-1], widths[1:], strict=True):
        kernels.append(torch.randn(after, before, *[size] * axes, generator=generator))
        shifts.append(torch.randn(after, generator=generator))
    share = float(torch.rand((), generator=generator))
    return GinWeights(tuple(kernels), tuple(shifts), share)


def through_networks(images: Tensor, drawn: Sequence[GinWeights]) -> Tensor:
    """Images, each mixed with what its network makes of it.

    Args:
        images: (n, c, *spatial), float32; they stay as they are.
        drawn: The networks of the n images.

    Returns:
        (n, c, *spatial).
    """
    together = len(drawn)
    if images.device.type == "cpu":
        together = max(1, _CPU_CHANNELS // max(images.shape[1], _CHANNELS))
    parts = [
        _side_by_side(part, drawn[start : start + together])
        for start, part in zip(
            range(0, len(drawn), together), torch.split(images, together), strict=True
        )
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _side_by_side(images: Tensor, drawn: Sequence[GinWeights]) -> Tensor:
    """Images (n, c, *spatial), mixed with what the network of each makes of it."""
    result = images.reshape(1, -1, *images.shape[2:])
    for layer in range(_LAYERS):
        kernels = [weights.kernels[layer] for weights in drawn]
        shifts = torch.cat([weights.shifts[layer] for weights in drawn])
        result = convolve(result, kernels, shifts)
        if layer < _LAYERS - 1:
            result = F.leaky_relu_(result)
    share = torch.tensor([weights.share for weights in drawn])
    share = share.view(-1, *[1] * (images.ndim - 1))
    result = result.contiguous().view(images.shape)
    return torch.lerp(images, result, share.to(images), out=result)


def convolve(images: Tensor, kernels: Sequence[Tensor], shifts: Tensor) -> Tensor:
    """Convolves the channels of each sample, side by side in (1, n * c, *spatial), with its kernel.

    Smaller kernels are surrounded with zeros, so that it is one convolution. On the CPU channels
    come last, which for so few of them is up to five times as fast. Slices then take a third less
    with all kernels in one that is mostly zeros than with groups of channels; and a volume alone
    is convolved twice, since torch takes eight times as long for one group as for two.
    """
    axes, groups = images.ndim - 2, len(kernels)
    cpu = images.device.type == "cpu"
    if cpu and axes == 3 and groups == 1:
        twice = images.repeat(1, 2, 1, 1, 1)
        return convolve(twice, [*kernels, *kernels], shifts.repeat(2))[:, : len(shifts)]
    size = max(kernel.shape[-1] for kernel in kernels)
    padded = [F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 2 * axes) for kernel in kernels]
    weight = torch.cat(padded)
    if cpu and axes == 2:
        weight, groups = _block_diagonal(padded), 1
    if cpu:
        layout = torch.channels_last if axes == 2 else torch.channels_last_3d
        images = images.contiguous(memory_format=layout)
    operation = F.conv2d if axes == 2 else F.conv3d
    weight, shifts = weight.to(images.device), shifts.to(images.device)
    return operation(images, weight, shifts, padding=size // 2, groups=groups)


def _block_diagonal(kernels: Sequence[Tensor]) -> Tensor:
    """Kernels (out, in, *size), one per sample, as one of all channels of all samples."""
    after, before, *size = kernels[0].shape
    count = len(kernels)
    weight = torch.zeros(count, after, count, before, *size)
    for number, kernel in enumerate(kernels):
        weight[number, :, number] = kernel
    return weight.view(count * after, count * before, *size)
