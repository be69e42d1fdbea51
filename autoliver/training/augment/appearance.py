"""The changes of appearance of `--augment`: each makes one modality look like another.

They are meant for networks that are trained on CT and used on MR. A change consists of a function
and its row in `APPEARANCES`; names, shares, help texts and errors of `--augment` follow from this
table. torch is imported inside the functions because `autoliver train --help` reads the table.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from autoliver.training.augment.palette import Recipe

_VIEWS = 3  # views of each patch with "gin-ipa"
_RANDCONV_KERNELS = (1, 3, 5, 7)
_BEZIER_SAMPLES = 512
_BEZIER_TABLE = 1024


@dataclass(frozen=True, slots=True)
class ChosenSamples:
    """The samples to which one kind of change is applied.

    Attributes:
        images: (n, c, *spatial), float32; not changed.
        labels: (n, *spatial), classes.
        generators: One generator per sample for the parameters of its change, on the CPU.
    """

    images: "Tensor"
    labels: "Tensor"
    generators: "tuple[Generator, ...]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Appearance:
    """A row of the table `APPEARANCES`.

    Attributes:
        apply: Returns the changed images (views * n, c, *spatial): all first views, all second, ...
        share: Share of the patches that are changed, if the change is named alone and without a
            share.
        views: Number of views in which each patch is shown to the network.
    """

    apply: "Callable[[ChosenSamples], Tensor]"
    share: float
    views: int = 1


def apply_inversion(chosen: ChosenSamples) -> "Tensor":
    """Inverts the grey values: low + high - x, up to the mean, which is restored later."""
    return -chosen.images


def apply_bezier(chosen: ChosenSamples) -> "Tensor":
    """Maps grey values by random curves, one per channel, half of which are descending.

    Zhou et al., Models Genesis, MICCAI 2019.
    """
    import torch

    images = chosen.images
    changed = torch.empty_like(images)
    for sample, generator in enumerate(chosen.generators):
        for channel, view in enumerate(images[sample]):
            curve = bezier_curve(generator).to(images)
            low, high = torch.aminmax(view)
            # Any extent, however small; a constant channel lies at the curve's start.
            extent = torch.where(high > low, high - low, 1.0)
            position = (view - low).mul_((len(curve) - 1) / extent)
            index = position.long().clamp_max_(len(curve) - 2)
            base, slope = torch.take(curve, index), torch.take(curve.diff(), index)
            changed[sample, channel] = position.sub_(index).mul_(slope).add_(base)
    return changed


def bezier_curve(generator: "Generator") -> "Tensor":
    """A random Bezier curve from (0, 0) to (1, 1) or from (0, 1) to (1, 0), at equal steps of x.

    Its inner control points are drawn uniformly. As in Models Genesis, only the x of the samples of
    a descending curve are sorted, so it need not be monotone.
    """
    import numpy as np
    import torch

    inner = torch.rand(2, 2, generator=generator, dtype=torch.float64).numpy()
    downwards = float(torch.rand((), generator=generator)) < 0.5
    points = np.concatenate([[[0.0, 0.0]], inner, [[1.0, 1.0]]])
    t = np.linspace(0.0, 1.0, _BEZIER_SAMPLES)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    x, y = (weights @ points).T
    y = y[::-1] if downwards else np.sort(y)
    equal = np.linspace(0.0, 1.0, _BEZIER_TABLE)
    return torch.from_numpy(np.interp(equal, np.sort(x), y).astype(np.float32))


def apply_gin(chosen: ChosenSamples) -> "Tensor":
    """Passes each image through a random shallow network and mixes it with the result.

    Ouyang et al., Causality-inspired single-source domain generalization, IEEE TMI 2023.
    """
    from autoliver.training.augment.gin import draw_gin, through_networks

    channels, axes = chosen.images.shape[1], chosen.images.ndim - 2
    drawn = [draw_gin(channels, axes, generator) for generator in chosen.generators]
    return through_networks(chosen.images, drawn)


def apply_gin_ipa(chosen: ChosenSamples) -> "Tensor":
    """Makes three views: two blends of two `apply_gin` versions by a mask, and a third version.

    The second blend has the two versions exchanged. Ouyang et al. (as above): interventional
    pseudo-correlation augmentation.

    Returns:
        (3 * n, c, *spatial): all first views, all second, all third.
    """
    import torch

    from autoliver.training.augment.moments import restore_moments

    one, two, three = (apply_gin(chosen) for _ in range(_VIEWS))
    for version in (one, two):
        restore_moments(version, chosen.images)
    shape = chosen.images.shape[2:]
    masks = [blend_mask(shape, generator) for generator in chosen.generators]
    mask = torch.stack(masks)[:, None].to(chosen.images)
    return torch.cat([torch.lerp(two, one, mask), torch.lerp(one, two, mask), three])


def blend_mask(shape: Sequence[int], generator: "Generator") -> "Tensor":
    """A smooth random mask with values from 0 to 1, on the CPU."""
    import torch

    from autoliver.training.augment.synth import smooth_field

    field = smooth_field(tuple(shape), generator)
    low, high = torch.aminmax(field)
    return (field - low).div_((high - low).clamp_min(1e-7))


def apply_randconv(chosen: ChosenSamples) -> "Tensor":
    """Mixes each image with the result of one random convolution.

    Xu et al., Robust and generalizable visual representation learning via random convolutions, ICLR
    2021. The weights are drawn from Kaiming's normal distribution.
    """
    import torch

    from autoliver.training.augment.gin import convolve

    images = chosen.images
    channels, axes = images.shape[1], images.ndim - 2
    changed = torch.empty_like(images)
    for sample, generator in enumerate(chosen.generators):
        which = int(torch.randint(len(_RANDCONV_KERNELS), (1,), generator=generator))
        size = [_RANDCONV_KERNELS[which]] * axes
        kernel = torch.randn(channels, channels, *size, generator=generator)
        kernel /= math.sqrt(kernel[0].numel())
        share = float(torch.rand((), generator=generator))
        result = convolve(images[sample][None], [kernel], torch.zeros(channels))[0]
        changed[sample] = torch.lerp(images[sample], result, share)
    return changed


def apply_synthseg(chosen: ChosenSamples) -> "Tensor":
    """Synthesises new images from the labels (`augment/synth.py`)."""
    import torch

    from autoliver.training.augment.synth import synthesise

    made = map(synthesise, chosen.images, chosen.labels, chosen.generators)
    return torch.stack(list(made))


def apply_palette(chosen: ChosenSamples, recipe: "Recipe | None" = None) -> "Tensor":
    """Remaps each region of an image on its own (`augment/palette.py`).

    Args:
        chosen: The samples.
        recipe: The parts of the method to use; None for the whole.
    """
    import torch

    from autoliver.training.augment.palette import WHOLE, remap

    each = zip(chosen.images, chosen.labels, chosen.generators, strict=True)
    return torch.stack([remap(*sample, recipe or WHOLE) for sample in each])


APPEARANCES: dict[str, Appearance] = {
    "inversion": Appearance(apply=apply_inversion, share=0.5),
    "bezier": Appearance(apply=apply_bezier, share=1.0),
    "gin": Appearance(apply=apply_gin, share=1.0),
    "gin-ipa": Appearance(apply=apply_gin_ipa, share=1.0, views=_VIEWS),
    "randconv": Appearance(apply=apply_randconv, share=0.8),
    "synthseg": Appearance(apply=apply_synthseg, share=0.5),
    "palette": Appearance(apply=apply_palette, share=0.5),
}
