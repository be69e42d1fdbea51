"""Translates whole scans, and judges how well their labels still fit."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from autoliver.artifacts import Record
from autoliver.inference.window import Scan, sliding_window
from autoliver.preprocessing.case import Preprocessed
from autoliver.synthesis.translation.body import RealImages, body_mask, grey_distance, jump
from autoliver.synthesis.translation.options import MULTIPLE, Range
from autoliver.training.augment.synth import synthesise

_SLICES = 8  # translated at a time
# Whole numbers of a written image, from dark to bright.
BRIGHTEST = 1000
# Slices over which the brightness of a scan is smoothed, as a standard deviation.
_STEADY = 2.0
# Voxels brighter than this above the darkest show the body, and the least share that must do so.
_BODY, _LEAST_BODY = 0.1, 0.01


class Fidelity(Record, frozen=True, kw_only=True):
    """How well a model finds the labels of a case in its translated image.

    Attributes:
        case: The case.
        dice: Label -> Dice of the whole scan; None where the case does not show it.
        slices: Dice of each slice, over the voxels of all labels that it shows; None for slices
            without any.
        jumps: Mean difference of neighbouring slices where both show the body, in standard
            deviations of the body.
        real_jumps: The same of real images of the target, for slices that far apart.
        grey: How far the brightness of the body lies from that of real images, in slices that show
            a label: the 1-D Wasserstein distance, in standard deviations of the real images.
    """

    case: str
    dice: dict[str, float | None]
    slices: tuple[float | None, ...]
    jumps: float = 0.0
    real_jumps: float = 0.0
    grey: float = 0.0

    @property
    def mean(self) -> float:
        """The mean Dice of the labels; 0 without any."""
        known = [value for value in self.dice.values() if value is not None]
        return sum(known) / len(known) if known else 0.0


@torch.no_grad()
def translate(
    network: nn.Module,
    case: Preprocessed,
    source: Range,
    *,
    patch: tuple[int, ...] | None = None,
) -> npt.NDArray[np.float32]:
    """Translates a case.

    Args:
        network: The generator.
        case: The case, preprocessed as the target is.
        source: The range of its domain.
        patch: The patches (z, y, x) that a generator in 3D was trained with: windows of this size
            overlap by half, and their Gaussian-weighted mean is taken. None: a generator in 2D,
            which translates each slice; its brightness is steadied afterwards.

    Returns:
        (1, z, y, x) from -1 to 1 on the network's grid.
    """
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    if patch is not None:
        image = source.squeezed(torch.from_numpy(case.image).to(device))
        more = [max(0, size - n) for size, n in zip(patch, image.shape[1:], strict=True)]
        ends = [end for size in reversed(more) for end in (0, size)]
        padded = functional.pad(image[None], ends, mode="replicate")[0]
        made = sliding_window(padded, [network], Scan(patch_shape=patch))
        whole: npt.NDArray[np.float32] = made.float().cpu().numpy()
        z, y, x = case.image.shape[1:]
        return whole[:, :z, :y, :x]
    found = []
    for first in range(0, case.image.shape[1], _SLICES):
        part = torch.from_numpy(case.image[0, first : first + _SLICES, None].copy()).to(device)
        part = source.squeezed(part)
        height, width = part.shape[2:]
        ends = [0, -width % MULTIPLE, 0, -height % MULTIPLE]
        padded = functional.pad(part, ends, mode="replicate")
        found.append(network(padded)[:, :, :height, :width].float().cpu().numpy())
    return steadied(np.concatenate(found)[None, :, 0])


def from_labels(case: Preprocessed, *, seed: int) -> npt.NDArray[np.float32]:
    """Makes an image of the label map of a case, with random grey values (SynthSeg).

    Args:
        case: The case, preprocessed with its label map.
        seed: Together with the case's name it decides on the grey values.

    Returns:
        (1, z, y, x) from -1 to 1 on the network's grid.
    """
    if case.label is None:
        raise ValueError(f"{case.properties.name} has no label map")
    values = np.unique(case.label[case.label > 0])
    classes = np.searchsorted(values, case.label[0]) + 1
    classes = np.where(case.label[0] > 0, classes, case.label[0])
    name = int.from_bytes(hashlib.sha256(case.properties.name.encode()).digest()[:4], "big")
    number = int(np.random.SeedSequence([seed, name]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(number)
    image, label = torch.from_numpy(case.image), torch.from_numpy(classes.astype(np.int64))
    made: npt.NDArray[np.float32] = synthesise(image, label, generator).numpy() * 2 - 1
    return made.clip(-1.0, 1.0)


def steadied(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Lets the brightness change smoothly from slice to slice.

    Each slice is translated by itself, so that its brightness may jump. How much it does is seen
    where a slice and its neighbour both show the body, so that the shape of the body is no matter;
    air stays as dark as it is.

    Args:
        image: (1, z, y, x) from -1 to 1.
    """
    from scipy.ndimage import gaussian_filter1d

    bright = image[0].astype(np.float64) + 1.0
    steps = [_step(one, other) for one, other in itertools.pairwise(bright)]
    course = np.cumsum([0.0, *steps])
    factor = np.exp(gaussian_filter1d(course, _STEADY, mode="nearest") - course)
    steady: npt.NDArray[np.float32] = np.clip(
        bright * factor[:, None, None] - 1.0, -1.0, 1.0
    ).astype(np.float32)
    return steady[None]


def _step(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """The logarithm of how much brighter a slice is than the one before, where both show the body.

    It is 0 if too few voxels do.
    """
    both = (one > _BODY) & (other > _BODY)
    if np.count_nonzero(both) < _LEAST_BODY * both.size:
        return 0.0
    return float(np.log(other[both].mean() / one[both].mean()))


def whole_numbers(image: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Turns values from -1 to 1 into whole numbers from 0 to `BRIGHTEST`."""
    scaled = (np.clip(image, -1, 1) + 1) * (BRIGHTEST / 2)
    whole: npt.NDArray[np.int16] = np.rint(scaled).astype(np.int16)
    return whole


def fidelity_of(
    case: str,
    label: npt.NDArray[np.integer],
    found: npt.NDArray[np.integer],
    pairs: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    *,
    ignore: int | None = None,
) -> Fidelity:
    """Judges one case.

    Args:
        case: Its name.
        label: Its label map (z, y, x); the first axis is that of the translated slices.
        found: What a model finds in the translated image (z, y, x).
        pairs: Label -> its values in the label map, and in what the model finds.
        ignore: Value of voxels in the label map that do not count; None: there is none.
    """
    counted = True if ignore is None else label != ignore
    both, common = np.zeros((2, len(label)))
    dice = {}
    for name, (ours, theirs) in pairs.items():
        one, other = np.isin(label, ours) & counted, np.isin(found, theirs) & counted
        sizes, shared = (
            one.sum(axis=(1, 2)) + other.sum(axis=(1, 2)),
            (one & other).sum(axis=(1, 2)),
        )
        here = one.any(axis=(1, 2))  # labels that a slice does not show say nothing about it
        both, common = both + sizes * here, common + shared * here
        dice[name] = 2 * float(shared.sum()) / float(sizes.sum()) if one.any() else None
    slices = [2 * float(c) / float(b) if b else None for c, b in zip(common, both, strict=True)]
    return Fidelity(case=case, dice=dice, slices=tuple(slices))


def beside_real(
    fidelity: Fidelity,
    image: npt.NDArray[np.integer],
    real: RealImages,
    *,
    spacing_mm: float,
) -> Fidelity:
    """Adds how steady and how bright a translated image is, beside real images of the target.

    Args:
        fidelity: The fidelity of the case.
        image: Its translated image (z, y, x), from 0 to `BRIGHTEST`.
        real: What the real images look like.
        spacing_mm: Distance of neighbouring slices.
    """
    shown = np.array([dice is not None for dice in fidelity.slices])
    body = body_mask(image)
    inside = body & (shown if shown.any() else ~shown)[:, None, None]
    values = image[inside] if inside.any() else image.ravel()
    return fidelity.replace(
        jumps=jump(image, body) or 0.0,
        real_jumps=real.jump_at(spacing_mm),
        grey=grey_distance(values * (2.0 / BRIGHTEST) - 1.0, real.grey),
    )
