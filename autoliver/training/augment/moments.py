"""Adjusts mean and standard deviation of images whose appearance was changed."""

import math

import torch
from torch import Tensor

_FLAT = 1e-4  # of its largest value: an image of less deviation stays as flat as it is
# A spread below this fraction of the mean is rounding error and must not be amplified.
_ROUNDING = 1e-5


def normalise_inside(changed: Tensor, inside: Tensor) -> None:
    """Normalises each channel inside the image to mean 0 and standard deviation 1, in place.

    Voxels outside become 0. The result looks like a case of another modality in prediction, which
    is normalised by itself and surrounded by zeros.

    Args:
        changed: (c, *spatial).
        inside: Boolean (*spatial), True inside the image.
    """
    count = inside.sum().clamp_min(1)
    for channel in changed:
        least = _FLAT * _to_one(channel, inside)
        channel.sub_((channel * inside).sum() / count).mul_(inside)
        channel.mul_((channel.square().sum() / count).clamp_min(least.square()).rsqrt())


def restore_moments(changed: Tensor, before: Tensor) -> None:
    """Gives each channel of each image the mean and standard deviation it had before, in place.

    Args:
        changed: (n, c, *spatial), contiguous.
        before: The images before the change, (n, c, *spatial).
    """
    old, new = before.flatten(2), changed.view(*changed.shape[:2], -1)
    mean, new_mean = (flat.mean(2, keepdim=True) for flat in (old, new))
    norm, new_norm = (
        torch.linalg.vector_norm(flat, dim=2, keepdim=True)
        for flat in (old - mean, new.sub_(new_mean))
    )
    rounding = new_norm <= _ROUNDING * math.sqrt(new.shape[2]) * new_mean.abs()
    gain = torch.where(rounding, 0.0, norm / new_norm.masked_fill(rounding, 1.0))
    new.mul_(gain).add_(mean)


def _to_one(channel: Tensor, inside: Tensor) -> Tensor:
    """Scales a channel, in place, by the power of two that brings its largest value to 0.5 to 1.

    No digit changes, and squares can neither overflow nor vanish.

    Returns:
        The largest magnitude inside afterwards; 0.5 for an image of zeros.
    """
    largest, exponent = torch.frexp((channel * inside).abs().max())
    # Within what float32 has as normal numbers.
    channel.mul_(torch.ldexp(torch.ones_like(largest), -exponent.clamp(-126, 126)))
    return largest.clamp_min(0.5)
