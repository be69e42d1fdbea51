"""Augmentation one sample, one channel and one label at a time: slow, and easy to follow.

The draws and the arithmetic are those of `autoliver.training.augment`, which does the same for many
samples at once.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from autoliver.preprocessing.crop import OUTSIDE
from autoliver.training.augment.batch import AugmentSpec
from autoliver.training.augment.intensity import IntensityStep
from autoliver.training.augment.placement import Placement, SpatialSpec


def augment(
    image: Tensor, label: Tensor, patch: Sequence[int], spec: AugmentSpec, generator: Generator
) -> tuple[Tensor, Tensor]:
    """As `augment_batch`, without changes of appearance."""
    placements = [placement(spec.spatial, generator) for _ in image]
    images, labels = [], []
    for values, classes, place in zip(image, label, placements, strict=True):
        found = resample(values, classes, patch, place)
        images.append(found[0])
        labels.append(found[1])
    image, label = torch.stack(images), torch.stack(labels)
    for step in spec.intensity:
        for sample, channel, values, seed in draws(step, image.shape, generator):
            view = image[sample, channel]
            view.copy_(changed(step.name, view, values, seed))
    flips = torch.rand(len(image), len(spec.mirror_axes), generator=generator) < 0.5
    for sample, row in enumerate(flips):
        axes = [axis + 1 for axis, flip in zip(spec.mirror_axes, row, strict=True) if flip]
        image[sample], label[sample] = image[sample].flip(axes), label[sample].flip(axes)
    for channel in spec.masked_channels:
        image[:, channel][label[:, 0] < 0] = 0
    return image, label.clamp_min(0)


def between(limits: Sequence[float], position: Tensor | float) -> float:
    return limits[0] + float(position) * (limits[1] - limits[0])


def one(generator: Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def placement(spec: SpatialSpec, generator: Generator) -> Placement | None:
    rotates = one(generator) < spec.rotation_probability
    scales = one(generator) < spec.scaling_probability
    scale = between(spec.scaling, one(generator))
    angles = [between(spec.rotation_rad, one(generator)) for _ in range(2 * spec.dimension - 3)]
    if not rotates and not scales:
        return None
    return Placement(tuple(a * rotates for a in angles), scale if scales else 1.0)


def draws(
    step: IntensityStep, shape: Sequence[int], generator: Generator
) -> list[tuple[int, int, list[float], int]]:
    samples = torch.rand(shape[0], generator=generator) < step.probability
    channels = torch.rand(*shape[:2], generator=generator) < step.channel_probability
    found = []
    for sample in samples.nonzero().flatten().tolist():
        if step.name == "noise":
            shared = between(step.strength, one(generator))
        for channel in channels[sample].nonzero().flatten().tolist():
            seed = 0
            match step.name:
                case "noise":
                    values, seed = [shared], int(torch.randint(2**62, (), generator=generator))
                case "blur":
                    values = [between(step.strength, one(generator)) for _ in shape[2:]]
                case "low_resolution":
                    scale = between(step.strength, one(generator))
                    axes = range(len(shape) - 2)
                    values = [1.0 if axis in step.skip_axes else scale for axis in axes]
                case _:
                    edge = step.strength[0 if one(generator) < 0.5 else 1]
                    values = [1.0 + one(generator) * (edge - 1.0)]
            found.append((sample, channel, values, seed))
    return found


def changed(name: str, view: Tensor, values: Sequence[float], seed: int) -> Tensor:
    """One channel, (*spatial), after one transform."""
    match name:
        case "noise":
            own = Generator(device=view.device).manual_seed(seed)
            return view + values[0] * torch.randn(view.shape, generator=own)
        case "blur":
            return blurred(view, values)
        case "brightness":
            return view * values[0]
        case "contrast":
            mean = view.mean()
            return ((view - mean) * values[0] + mean).clamp(view.min(), view.max())
        case "low_resolution":
            small = [round(n * scale) for n, scale in zip(view.shape, values, strict=True)]
            coarse = F.interpolate(view[None, None], small, mode="nearest-exact")
            mode = {2: "bilinear", 3: "trilinear"}[view.ndim]
            return F.interpolate(coarse, view.shape, mode=mode, align_corners=False)[0, 0]
        case "gamma":
            return raised(view, values[0])
        case "gamma_inverted":
            return -raised(-view, values[0])
    raise ValueError(name)


def blurred(view: Tensor, sigmas: Sequence[float]) -> Tensor:
    from scipy.ndimage import gaussian_filter1d

    array = view.double().numpy()
    for axis, sigma in enumerate(sigmas):
        widths = [1, 3, 5, 7, 9]
        radius = min(widths, key=lambda w, sigma=sigma: abs(w - 6 * sigma - 0.5)) // 2
        array = gaussian_filter1d(array, sigma, axis=axis, radius=radius, mode="mirror")
    return torch.from_numpy(array).float()


def raised(view: Tensor, power: float) -> Tensor:
    x = view.double()
    if x.max() == x.min():
        return view
    y = ((x - x.min()) / (x.max() - x.min())) ** power
    return ((y - y.mean()) / y.std() * x.std() + x.mean()).float()


def resample(
    image: Tensor, label: Tensor, patch: Sequence[int], place: Placement | None
) -> tuple[Tensor, Tensor]:
    """One sample, image (c, *spatial) and label (k, *spatial), cut out of the centre."""
    source = image.shape[1:]
    starts = [size // 2 - n // 2 for size, n in zip(source, patch, strict=True)]
    centre = tuple(slice(s, s + n) for s, n in zip(starts, patch, strict=True))
    if place is None:
        return image[:, *centre].clone(), label[:, *centre].clone()
    matrix = torch.from_numpy(place.matrix())
    axes = len(matrix)
    slices = centre[: len(patch) - axes]
    into = (image.new_empty(len(image), *patch), label.new_empty(len(label), *patch))
    resample_grid(image[:, *slices], label[:, *slices], matrix=matrix, into=into)
    return into


def resample_grid(
    image: Tensor, label: Tensor, *, matrix: Tensor, into: tuple[Tensor, Tensor]
) -> None:
    """As `resample_affine`, by torch's sampling of the image and of each label's indicator."""
    axes = len(matrix)
    patch, source = into[0].shape[-axes:], image.shape[-axes:]
    lines = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in patch]
    place = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1) @ matrix.T
    grid = (place * 2 / torch.tensor(source)).flip(-1)

    def sampled(volume: Tensor) -> Tensor:
        planes = volume.double().reshape(1, -1, *source)
        found = F.grid_sample(planes, grid[None], padding_mode="zeros", align_corners=False)
        return found.reshape(*volume.shape[:-axes], *patch)

    into[0].copy_(sampled(image))
    voxel = (place + (torch.tensor(source) - 1) / 2).round().long()
    inside = ((voxel >= 0) & (voxel < torch.tensor(source))).all(-1)
    voxel = torch.minimum(voxel.clamp_min(0), torch.tensor(source) - 1)
    values = sorted({OUTSIDE, *label.unique().tolist()})
    for old, new in zip(label, into[1], strict=True):
        shares = torch.stack([sampled(old == value) for value in values])
        shares[0] = 1 - shares[1:].sum(0)  # what lies outside counts as OUTSIDE
        scores = (1000 * shares).half()
        best = scores == scores.amax(0)
        nearest = torch.where(inside, old[(..., *voxel.unbind(-1))], OUTSIDE)
        order = torch.tensor(values).view(-1, *[1] * nearest.ndim)
        first = np.array(values)[best.int().argmax(0).numpy()]
        wins = (best & (order == nearest)).any(0)
        new.copy_(torch.where(wins, nearest, torch.from_numpy(first)))
