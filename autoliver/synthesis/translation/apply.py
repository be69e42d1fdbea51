"""Translates whole scans slice by slice, and judges how well their labels still fit."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from autoliver.artifacts import Record
from autoliver.preprocessing.case import Preprocessed
from autoliver.synthesis.translation.domains import Range
from autoliver.training.augment.synth import synthesise

_MULTIPLE = 4  # of the size of a slice
_SLICES = 8  # translated at a time
# Whole numbers of a written image, from dark to bright.
BRIGHTEST = 1000
# Slices over which the brightness of a scan is smoothed, as a standard deviation.
_STEADY = 2.0


class Fidelity(Record, frozen=True, kw_only=True):
    """How well a model finds the labels of a case in its translated image.

    Attributes:
        case: The case.
        dice: Label -> Dice of the whole scan; None where neither has it.
        slices: Mean Dice over the labels of each slice; None for slices without any.
        jumps: Mean difference of neighbouring slices, in standard deviations of the image.
    """

    case: str
    dice: dict[str, float | None]
    slices: tuple[float | None, ...]
    jumps: float

    @property
    def mean(self) -> float:
        """The mean Dice of the labels; 0 without any."""
        known = [value for value in self.dice.values() if value is not None]
        return sum(known) / len(known) if known else 0.0


@torch.no_grad()
def translate(
    network: nn.Module, case: Preprocessed, source: Range, *, device: torch.device
) -> npt.NDArray[np.float32]:
    """Translates the slices of a case.

    Args:
        network: The generator.
        case: The case, preprocessed as the target is.
        source: The range of its domain.
        device: Where the network is.

    Returns:
        (1, z, y, x) from -1 to 1 on the network's grid, with a brightness that does not jump
        between slices.
    """
    found = []
    for first in range(0, case.image.shape[1], _SLICES):
        part = torch.from_numpy(case.image[0, first : first + _SLICES, None].copy()).to(device)
        part = source.squeezed(part)
        height, width = part.shape[2:]
        more = [-size % _MULTIPLE for size in (width, height)]
        padded = functional.pad(part, (0, more[0], 0, more[1]), mode="replicate")
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
    """Lets the mean and the deviation of slices change smoothly along a scan.

    Each slice is translated by itself, so that its brightness may jump.

    Args:
        image: (1, z, y, x) from -1 to 1.
    """
    from scipy.ndimage import gaussian_filter1d

    mean, deviation = image.mean(axis=(0, 2, 3)), image.std(axis=(0, 2, 3))
    smooth = [gaussian_filter1d(v, _STEADY, mode="nearest") for v in (mean, deviation)]
    factor = smooth[1] / np.maximum(deviation, 1e-3)
    shape = (1, -1, 1, 1)
    changed = (image - mean.reshape(shape)) * factor.reshape(shape) + smooth[0].reshape(shape)
    steady: npt.NDArray[np.float32] = np.clip(changed, -1.0, 1.0).astype(np.float32)
    return steady


def whole_numbers(image: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Turns values from -1 to 1 into whole numbers from 0 to `BRIGHTEST`."""
    scaled = (np.clip(image, -1, 1) + 1) * (BRIGHTEST / 2)
    whole: npt.NDArray[np.int16] = np.rint(scaled).astype(np.int16)
    return whole


def fidelity_of(
    case: str,
    image: npt.NDArray[np.integer],
    label: npt.NDArray[np.integer],
    found: npt.NDArray[np.integer],
    pairs: Mapping[str, tuple[Sequence[int], Sequence[int]]],
) -> Fidelity:
    """Judges one case.

    Args:
        case: Its name.
        image: The translated image (z, y, x).
        label: Its label map (z, y, x).
        found: What a model finds in the translated image (z, y, x).
        pairs: Label -> its values in the label map, and in what the model finds.
    """
    dice: dict[str, float] = {}
    by_slice = []
    for name, (ours, theirs) in pairs.items():
        one, other = np.isin(label, ours), np.isin(found, theirs)
        dice[name] = float(_dice(one, other, (0, 1, 2)))
        by_slice.append(_dice(one, other, (1, 2)))
    stacked = np.stack(by_slice)
    known = np.asarray(np.isfinite(stacked).any(axis=0))
    means = np.full(known.shape, np.nan)
    means[known] = np.nanmean(stacked[:, known], axis=0)
    steps = np.abs(np.diff(image.astype(np.float32), axis=0)).mean() if len(image) > 1 else 0.0
    return Fidelity(
        case=case,
        dice={name: value if np.isfinite(value) else None for name, value in dice.items()},
        slices=tuple(float(v) if np.isfinite(v) else None for v in means),
        jumps=float(steps / max(float(image.std()), 1e-6)),
    )


def _dice(
    one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], axes: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    both = one.sum(axis=axes) + other.sum(axis=axes)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * (one & other).sum(axis=axes) / both, np.float64)
