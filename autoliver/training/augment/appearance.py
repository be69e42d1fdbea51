"""Random changes that make one modality look like another; shapes and labels stay.

They are for networks that learn from CT and shall work on MR. Each sample of a batch takes at most
one change, drawn with a seed from a CPU generator; the parameters come from that seed, so that a
sample changes alike on every device and in every part of a batch (white noise is drawn on the
device). Afterwards each channel has the mean and standard deviation that it had before, or is
normalised as an image of its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autoliver.training.augment.choice import AppearanceName, AppearanceStep
from autoliver.training.augment.synth import smooth_field, synthesise

VIEWS = 3  # of each patch, with "gin-ipa"
_GIN_LAYERS = 4
_GIN_CHANNELS = 2
# On the CPU, so many side by side take no longer than one; beyond them images go by turns.
_CPU_CHANNELS = 16
_RANDCONV_KERNELS = (1, 3, 5, 7)
_BEZIER_SAMPLES = 512
_BEZIER_TABLE = 1024
# Share of the changed patches that are normalised as an image of their own.
_NORMALISED_AFRESH = 0.5
_FLAT = 1e-4  # an image of less deviation stays as flat as it is
# A spread below this part of the mean is rounding, and must not be blown up.
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to a sample.

    Attributes:
        sample: Index in the batch.
        name: Of the change.
        seed: Of its parameters.
        afresh: Whether the result is normalised as an image of its own.
    """

    sample: int
    name: AppearanceName
    seed: int
    afresh: bool = False


@dataclass(frozen=True, slots=True)
class ChosenSamples:
    """The samples that one kind of change happens to.

    Attributes:
        images: (n, c, *spatial), float32; they stay as they are.
        labels: (n, *spatial).
        generators: Of the parameters of each, on the CPU.
    """

    images: Tensor
    labels: Tensor
    generators: tuple[Generator, ...]


# Gives the images changed, n of them or VIEWS times n.
Apply = Callable[[ChosenSamples], Tensor]


def sample_appearance(
    steps: Sequence[AppearanceStep], batch: int, generator: Generator
) -> tuple[Change, ...]:
    """Draws at most one change per sample; without steps nothing is drawn from the generator."""
    if not steps:
        return ()
    positions = torch.rand(batch, generator=generator, dtype=torch.float64).tolist()
    seeds = torch.randint(2**62, (batch,), generator=generator).tolist()
    afresh = (torch.rand(batch, generator=generator) < _NORMALISED_AFRESH).tolist()
    limits = np.cumsum([step.probability for step in steps])
    changes = []
    for sample, (position, seed, new) in enumerate(zip(positions, seeds, afresh, strict=True)):
        which = int(np.searchsorted(limits, position, side="right"))
        if which < len(steps):
            changes.append(Change(sample, steps[which].name, seed, new))
    return tuple(changes)


def apply_appearance(image: Tensor, label: Tensor, changes: Sequence[Change]) -> None:
    """Changes samples in place.

    Args:
        image: (b, c, *spatial), float32; with "gin-ipa" (VIEWS * b, c, *spatial), the first views
            of all samples before the second ones.
        label: (b, *spatial), classes; 0 is background, negative is outside of the image.
        changes: What to do.
    """
    for name in dict.fromkeys(change.name for change in changes):
        own = [change for change in changes if change.name == name]
        samples = [change.sample for change in own]
        generators = tuple(Generator().manual_seed(change.seed) for change in own)
        # One by one: gathering and scattering at once take five times as long on a CPU.
        images = torch.stack([image[sample] for sample in samples])
        chosen = ChosenSamples(images, label[samples], generators)
        changed = APPEARANCE[name](chosen)
        for view, version in enumerate(torch.split(changed, len(own))):
            restore_moments(version, chosen.images)
            for change, result in zip(own, version, strict=True):
                if change.afresh:
                    normalise_inside(result, label[change.sample] >= 0)
                image[change.sample + view * len(label)] = result


def normalise_inside(changed: Tensor, inside: Tensor) -> None:
    """Gives each channel mean 0 and standard deviation 1 where there is image, and 0 around it.

    In place. So a case of another modality is seen in prediction: normalised by itself, and
    surrounded with zeros.

    Args:
        changed: (c, *spatial).
        inside: (*spatial), where there is image.
    """
    count = inside.sum().clamp_min(1)
    for channel in changed:
        channel.sub_((channel * inside).sum() / count).mul_(inside)
        channel.mul_((channel.square().sum() / count).clamp_min(_FLAT**2).rsqrt())


def restore_moments(changed: Tensor, before: Tensor) -> None:
    """Gives each channel of each image the mean and standard deviation it had before, in place.

    Args:
        changed: (n, c, *spatial), contiguous.
        before: The same before the change.
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


def apply_inversion(chosen: ChosenSamples) -> Tensor:
    """Bright becomes dark: low + high - x, but for the mean, which is put back anyway."""
    return -chosen.images


def apply_bezier(chosen: ChosenSamples) -> Tensor:
    """Grey values go along a random curve, each channel along its own, half of them downwards.

    Zhou et al., Models Genesis, MICCAI 2019.
    """
    images = chosen.images
    changed = torch.empty_like(images)
    for sample, generator in enumerate(chosen.generators):
        for channel, view in enumerate(images[sample]):
            curve = bezier_curve(generator).to(images)
            low, high = torch.aminmax(view)
            position = (view - low).mul_((len(curve) - 1) / (high - low).clamp_min(1e-7))
            index = position.long().clamp_max_(len(curve) - 2)
            base, slope = torch.take(curve, index), torch.take(curve.diff(), index)
            changed[sample, channel] = position.sub_(index).mul_(slope).add_(base)
    return changed


def bezier_curve(generator: Generator) -> Tensor:
    """A curve from (0, 0) to (1, 1), or from (0, 1) to (1, 0), at equal steps of x.

    Its inner points are drawn uniformly. For the curve downwards only the x of its samples are
    sorted, as Models Genesis does: it need not be monotone.
    """
    inner = torch.rand(2, 2, generator=generator, dtype=torch.float64).numpy()
    downwards = float(torch.rand((), generator=generator)) < 0.5
    points = np.concatenate([[[0.0, 0.0]], inner, [[1.0, 1.0]]])
    t = np.linspace(0.0, 1.0, _BEZIER_SAMPLES)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    x, y = (weights @ points).T
    y = y[::-1] if downwards else np.sort(y)
    equal = np.linspace(0.0, 1.0, _BEZIER_TABLE)
    return torch.from_numpy(np.interp(equal, np.sort(x), y).astype(np.float32))


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
    widths = [channels, *[_GIN_CHANNELS] * (_GIN_LAYERS - 1), channels]
    sizes = (2 * torch.randint(2, (_GIN_LAYERS,), generator=generator) + 1).tolist()
    kernels, shifts = [], []
    for size, before, after in zip(sizes, widths[:-1], widths[1:], strict=True):
        kernels.append(torch.randn(after, before, *[size] * axes, generator=generator))
        shifts.append(torch.randn(after, generator=generator))
    share = float(torch.rand((), generator=generator))
    return GinWeights(tuple(kernels), tuple(shifts), share)


def apply_gin(chosen: ChosenSamples) -> Tensor:
    """Images go through random shallow networks, one for each, and are mixed with the result.

    Ouyang et al., Causality-inspired single-source domain generalization, IEEE TMI 2023.
    """
    images = chosen.images
    channels, axes = images.shape[1], images.ndim - 2
    drawn = [draw_gin(channels, axes, generator) for generator in chosen.generators]
    together = len(drawn)
    if images.device.type == "cpu":
        together = max(1, _CPU_CHANNELS // max(channels, _GIN_CHANNELS))
    parts = [
        _through_networks(part, drawn[start : start + together])
        for start, part in zip(
            range(0, len(drawn), together), torch.split(images, together), strict=True
        )
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _through_networks(images: Tensor, drawn: Sequence[GinWeights]) -> Tensor:
    """Images (n, c, *spatial), mixed with what the network of each makes of it."""
    result = images.reshape(1, -1, *images.shape[2:])
    for layer in range(_GIN_LAYERS):
        kernels = [weights.kernels[layer] for weights in drawn]
        shifts = torch.cat([weights.shifts[layer] for weights in drawn])
        result = _convolve(result, kernels, shifts)
        if layer < _GIN_LAYERS - 1:
            result = F.leaky_relu_(result)
    share = torch.tensor([weights.share for weights in drawn])
    share = share.view(-1, *[1] * (images.ndim - 1))
    result = result.contiguous().view(images.shape)
    return torch.lerp(images, result, share.to(images), out=result)


def _convolve(images: Tensor, kernels: Sequence[Tensor], shifts: Tensor) -> Tensor:
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
        return _convolve(twice, [*kernels, *kernels], shifts.repeat(2))[:, : len(shifts)]
    size = max(kernel.shape[-1] for kernel in kernels)
    padded = [F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 2 * axes) for kernel in kernels]
    weight = torch.cat(padded)
    if cpu and axes == 2:
        weight, groups = _block_diagonal(padded), 1
    if cpu:
        layout = torch.channels_last if axes == 2 else torch.channels_last_3d
        images = images.contiguous(memory_format=layout)
    convolve = F.conv2d if axes == 2 else F.conv3d
    weight, shifts = weight.to(images.device), shifts.to(images.device)
    return convolve(images, weight, shifts, padding=size // 2, groups=groups)


def _block_diagonal(kernels: Sequence[Tensor]) -> Tensor:
    """Kernels (out, in, *size), one per sample, as one of all channels of all samples."""
    after, before, *size = kernels[0].shape
    count = len(kernels)
    weight = torch.zeros(count, after, count, before, *size)
    for number, kernel in enumerate(kernels):
        weight[number, :, number] = kernel
    return weight.view(count * after, count * before, *size)


def apply_gin_ipa(chosen: ChosenSamples) -> Tensor:
    """Three views: two versions by `apply_gin`, blended this way and that by a mask, and a third.

    Ouyang et al. (as above): interventional pseudo-correlation augmentation.

    Returns:
        (VIEWS * n, c, *spatial): all first views, all second, all third.
    """
    one, two, three = (apply_gin(chosen) for _ in range(VIEWS))
    for version in (one, two):
        restore_moments(version, chosen.images)
    shape = chosen.images.shape[2:]
    masks = [blend_mask(shape, generator) for generator in chosen.generators]
    mask = torch.stack(masks)[:, None].to(chosen.images)
    return torch.cat([torch.lerp(two, one, mask), torch.lerp(one, two, mask), three])


def blend_mask(shape: Sequence[int], generator: Generator) -> Tensor:
    """A smooth random mask that goes from 0 to 1, on the CPU."""
    field = smooth_field(tuple(shape), generator)
    low, high = torch.aminmax(field)
    return (field - low).div_((high - low).clamp_min(1e-7))


def apply_randconv(chosen: ChosenSamples) -> Tensor:
    """Images are mixed with the result of one random convolution.

    Xu et al., Robust and generalizable visual representation learning via random convolutions, ICLR
    2021; with the weights of Kaiming's normal distribution.
    """
    images = chosen.images
    channels, axes = images.shape[1], images.ndim - 2
    changed = torch.empty_like(images)
    for sample, generator in enumerate(chosen.generators):
        which = int(torch.randint(len(_RANDCONV_KERNELS), (1,), generator=generator))
        size = [_RANDCONV_KERNELS[which]] * axes
        kernel = torch.randn(channels, channels, *size, generator=generator)
        kernel /= math.sqrt(kernel[0].numel())
        share = float(torch.rand((), generator=generator))
        result = _convolve(images[sample][None], [kernel], torch.zeros(channels))[0]
        changed[sample] = torch.lerp(images[sample], result, share)
    return changed


def apply_synthseg(chosen: ChosenSamples) -> Tensor:
    """Images are made anew from the labels; see `augment_synth`."""
    made = map(synthesise, chosen.images, chosen.labels, chosen.generators)
    return torch.stack(list(made))


APPEARANCE: dict[AppearanceName, Apply] = {
    "inversion": apply_inversion,
    "bezier": apply_bezier,
    "gin": apply_gin,
    "gin-ipa": apply_gin_ipa,
    "randconv": apply_randconv,
    "synthseg": apply_synthseg,
}
