"""Adjusts mean and standard deviation of images whose appearance was changed."""

import math

import torch
from torch import Tensor

_FLAT = 1e-4  # images with a smaller standard deviation are not stretched to 1
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
        channel.sub_((channel * inside).sum() / count).mul_(inside)
        channel.mul_((channel.square().sum() / count).clamp_min(_FLAT**2).rsqrt())


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
    rounding = new_norm <= _ROUNDING * math.sqrt(new.shape[2]) * new_mean.abs() + 1e-12
    gain = torch.where(rounding, 0.0, norm / new_norm.masked_fill(rounding, 1.0))
    new.mul_(gain).add_(mean)
