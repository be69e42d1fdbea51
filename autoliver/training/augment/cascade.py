"""Gives a cascade's network the prediction of its first stage, degraded as on new cases.

The first stage knows the training cases, so its label maps of them are better than those of new
cases. Outlines are therefore changed and components removed at random, as in nnU-Net.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autoliver.training.share import Part

Operation = Literal["dilate", "erode", "open", "close"]
OPERATIONS: tuple[Operation, ...] = ("dilate", "erode", "open", "close")

# Values of nnU-Net 2.8.1.
_OUTLINE_PROBABILITY = 0.4  # per sample
_PIECE_PROBABILITY = 0.2  # per sample
_CHANNEL_PROBABILITY = 0.5
_RADIUS = (1, 8)  # voxels, both ends included
_LARGEST_PIECE = 0.15  # share of the patch; larger components are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlineChange:
    """A morphological operation on one channel of one sample.

    Attributes:
        sample: Index of the sample in the batch.
        channel: Index of the channel in the sample.
        operation: The operation.
        radius: Radius of the ball, in voxels.
    """

    sample: int
    channel: int
    operation: Operation
    radius: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceLoss:
    """The removal of a connected component from one channel of one sample.

    Attributes:
        sample: Index of the sample in the batch.
        channel: Index of the channel in the sample.
        position: Selects one of the components that may be removed, 0 (first) to 1 (last).
    """

    sample: int
    channel: int
    position: float


def show_previous(
    image: Tensor,
    target: Tensor,
    *,
    channels: int,
    generator: Generator | None,
    part: Part | None = None,
) -> tuple[Tensor, Tensor]:
    """Moves the prediction of the first stage from the target to the image, one channel per label.

    Args:
        image: (b, c, *patch), or (views * b, c, *patch).
        target: (b, 2, *patch); the second channel is 0 or the number (from 1) of a label.
        channels: Number of labels.
        generator: Random generator of the augmentations, on the CPU; None: no augmentation.
        part: Which samples of a larger batch these are; None: they are the whole batch.

    Returns:
        The image (b or views * b, c + channels, *patch) and the target (b, 1, *patch).
    """
    numbers = torch.arange(1, channels + 1, device=target.device, dtype=target.dtype)
    shape = (1, -1, *[1] * (target.ndim - 2))
    further = (target[:, 1:2] == numbers.view(shape)).to(image.dtype)
    if generator is not None:
        part = part or Part(start=0, stop=len(target), whole=len(target))
        apply_outlines(further, part.own(sample_outlines(part.whole, channels, generator)))
        apply_pieces(further, part.own(sample_pieces(part.whole, channels, generator)))
    further = further.repeat(len(image) // len(target), *[1] * (target.ndim - 1))
    return torch.cat([image, further], dim=1), target[:, :1]


def sample_outlines(batch: int, channels: int, generator: Generator) -> tuple[OutlineChange, ...]:
    """Draws the changes of outlines; the channels of a sample are in random order."""
    changes = []
    for sample in _chosen(batch, _OUTLINE_PROBABILITY, generator):
        for channel in _channels(channels, generator):
            which = int(torch.randint(len(OPERATIONS), (1,), generator=generator))
            radius = int(torch.randint(_RADIUS[0], _RADIUS[1] + 1, (1,), generator=generator))
            changes.append(
                OutlineChange(
                    sample=sample, channel=channel, operation=OPERATIONS[which], radius=radius
                )
            )
    return tuple(changes)


def sample_pieces(batch: int, channels: int, generator: Generator) -> tuple[PieceLoss, ...]:
    """Draws the components that are removed."""
    return tuple(
        PieceLoss(
            sample=sample,
            channel=channel,
            position=float(torch.rand((), generator=generator)),
        )
        for sample in _chosen(batch, _PIECE_PROBABILITY, generator)
        for channel in _channels(channels, generator)
    )


def apply_outlines(channels: Tensor, changes: Sequence[OutlineChange]) -> None:
    """Changes outlines in place; voxels gained by one channel are removed from the others.

    Args:
        channels: (b, n, *spatial), zeros and ones.
        changes: The changes, in order.
    """
    for change in changes:
        view = channels[change.sample, change.channel]
        before = view > 0
        after = morphology(before, change.operation, change.radius)
        channels[change.sample].masked_fill_(after & ~before, 0)
        view.copy_(after)


def apply_pieces(channels: Tensor, losses: Sequence[PieceLoss]) -> None:
    """Removes components in place; those of 15 % of the patch or more are kept.

    Args:
        channels: (b, n, *spatial), zeros and ones.
        losses: The removals.
    """
    import numpy as np
    from acvl_utils.morphology.morphology_helper import label_with_component_sizes

    for loss in losses:
        view = channels[loss.sample, loss.channel]
        components, voxels = label_with_component_sizes((view > 0).cpu().numpy())
        sizes = np.array(list(voxels.values()))
        small = np.flatnonzero(sizes < _LARGEST_PIECE * components.size)
        if len(small):
            gone = small[int(loss.position * len(small))] + 1
            view.masked_fill_(torch.from_numpy(components == gone).to(view.device), 0)


def morphology(mask: Tensor, operation: Operation, radius: int) -> Tensor:
    """Dilates, erodes, opens or closes a mask with a ball.

    The border of the array has no effect: a dilation finds no mask beyond it, and an erosion does
    not start from it.

    Args:
        mask: Boolean, any number of axes.
        operation: The operation.
        radius: Radius of the ball, in voxels.

    Returns:
        Boolean, of the shape of the mask.
    """
    match operation:
        case "dilate":
            return _dilate(mask, radius)
        case "erode":
            return ~_dilate(~mask, radius)
        case "open":
            return _dilate(~_dilate(~mask, radius), radius)
        case "close":
            return ~_dilate(~_dilate(mask, radius), radius)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """Voxels within `radius` of the mask; the squared distance is computed axis by axis.

    The result is exact on every device and takes 2 radius + 1 passes per axis.
    """
    far = float((radius + 1) ** 2)
    distance = torch.where(mask, 0.0, far)
    for axis in range(mask.ndim):
        size = mask.shape[axis]
        widths = [0, 0] * (mask.ndim - 1 - axis) + [radius, radius]
        padded = F.pad(distance, widths, value=far)
        for offset in range(-radius, radius + 1):
            shifted = padded.narrow(axis, radius + offset, size)
            distance = torch.minimum(distance, shifted + float(offset**2))
    return distance <= radius**2


def _chosen(batch: int, probability: float, generator: Generator) -> list[int]:
    chosen = torch.rand(batch, generator=generator) < probability
    return chosen.nonzero().flatten().tolist()


def _channels(count: int, generator: Generator) -> list[int]:
    order = torch.randperm(count, generator=generator)
    chosen = order[torch.rand(count, generator=generator) < _CHANNEL_PROBABILITY]
    return [int(channel) for channel in chosen]
