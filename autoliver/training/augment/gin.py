"""Random convolutions and shallow random networks, applied to several images at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

_LAYERS = 4
_CHANNELS = 2
# Up to this number of channels, images processed together take no longer than one on the CPU;
# more images are processed one group after another.
_CPU_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class GinWeights:
    """The weights of a random network for one sample.

    Attributes:
        kernels: Kernel of each layer, (out, in, *kernel), of size 1 or 3 along every axis.
        shifts: Bias of each layer, (out,).
        share: Share of the network's output in the result, 0 to 1; the rest is the image.
    """

    kernels: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]
    share: float


def draw_gin(channels: int, axes: int, generator: Generator) -> GinWeights:
    """Draws a network of four layers for images with these numbers of channels and axes."""
    widths = [channels, *[_CHANNELS] * (_LAYERS - 1), channels]
    sizes = (2 * torch.randint(2, (_LAYERS,), generator=generator) + 1).tolist()
    kernels, shifts = [], []
    for size, before, after in zip(sizes, widths[:-1], widths[1:], strict=True):
        kernels.append(torch.randn(after, before, *[size] * axes, generator=generator))
        shifts.append(torch.randn(after, generator=generator))
    share = float(torch.rand((), generator=generator))
    return GinWeights(tuple(kernels), tuple(shifts), share)


def through_networks(images: Tensor, drawn: Sequence[GinWeights]) -> Tensor:
    """Mixes each image with the output of its own network.

    Args:
        images: (n, c, *spatial), float32; not changed.
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
    """Mixes images (n, c, *spatial) with the outputs of their networks, all images at once."""
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
    """Convolves each sample with its own kernel, all of them by one grouped convolution.

    Smaller kernels are padded with zeros. On the CPU the channels-last layout is used, which is up
    to five times as fast for so few channels. For slices, one kernel for all channels that is
    mostly zeros then takes a third less time than groups of channels. A single volume is convolved
    twice, because torch takes eight times as long for one group as for two.

    Args:
        images: (1, n * c, *spatial), the channels of the samples side by side.
        kernels: Kernel (out, c, *kernel) of each of the n samples.
        shifts: Biases (n * out,).

    Returns:
        (1, n * out, *spatial).
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
    """Joins kernels (out, in, *size), one per sample, into one kernel for all samples' channels."""
    after, before, *size = kernels[0].shape
    count = len(kernels)
    weight = torch.zeros(count, after, count, before, *size)
    for number, kernel in enumerate(kernels):
        weight[number, :, number] = kernel
    return weight.view(count * after, count * before, *size)
