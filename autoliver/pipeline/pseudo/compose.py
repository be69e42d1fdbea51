"""A model's probabilities become a label, and join the labels that people have drawn."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoliver.artifacts import Record
from autoliver.datasets.cases import Labels
from autoliver.evaluation.metrics import volume_ml
from autoliver.inference.clean import components

Floats = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

_HALF = 0.5
# Pieces below this are specks of noise, not parts of an organ.
_SPECK_ML = 0.5


class Quality(Record, frozen=True, kw_only=True):
    """How plausible a label is that a model gave to a case.

    Attributes:
        volume_ml: Its volume; None in an image from a 2D file, which has none.
        confidence: The mean probability inside it; 0 if it is empty.
        entropy: The mean entropy inside it and in the uncertain band, from 0 to 1.
        band_ml: The volume of voxels that are uncertain; None as above.
        pieces: Number of pieces of at least 0.5 ml, before all but the largest are removed.
        outside: Share of the drawn labels that lie in it, such as a tumour, that lies outside;
            None if nothing is drawn.
    """

    volume_ml: float | None
    confidence: float
    entropy: float
    band_ml: float | None
    pieces: int
    outside: float | None = None


def probability_of(
    probabilities: Floats, labels: Labels, names: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Returns the probability (z, y, x) that a voxel has one of some labels of a model.

    Args:
        probabilities: (k, z, y, x) of all rows of the model's head.
        labels: The model's labels.
        names: The labels that count, of which classes exclude one another and regions may overlap.
    """
    rows = [labels.rows.index(name) for name in names]
    picked = probabilities[rows]
    joined = picked.max(axis=0) if labels.has_regions else picked.sum(axis=0)
    found: npt.NDArray[np.float32] = joined.astype(np.float32)
    return found


def label_of(
    probability: Floats,
    *,
    band: tuple[float, float] | None,
    largest: bool,
    inner: Mask,
    spacing_mm: tuple[float, float, float],
) -> tuple[Mask, Mask, Quality]:
    """Makes a label of its probability.

    A label that other labels lie in, such as a liver with a drawn tumour, includes them and a rim
    of a voxel around them, and its holes are filled: models that have seen healthy organs alone
    leave tumours out.

    Args:
        probability: (z, y, x).
        band: Probabilities between these count as uncertain; None: nothing does.
        largest: Whether only the largest piece is kept.
        inner: (z, y, x), what is known to lie in it.
        spacing_mm: Spacing (z, y, x).

    Returns:
        The label and the uncertain voxels outside of `inner`, both (z, y, x), and its quality.
    """
    found = probability > _HALF
    pieces = _pieces(found, spacing_mm)
    if largest and found.any():
        found = _largest(found)
    outside = float(np.mean(~found[inner])) if inner.any() else None
    if inner.any():
        found = found | ndimage.binary_dilation(inner)
        found = ndimage.binary_fill_holes(found)
    uncertain = np.zeros_like(found)
    if band is not None:
        uncertain = (probability > band[0]) & (probability < band[1]) & ~inner
        if largest:  # far from what is kept, everything is background
            uncertain &= _near(found, uncertain)
    inside = found & ~inner
    counted = inside | uncertain
    quality = Quality(
        volume_ml=_volume_ml(found, spacing_mm),
        confidence=float(probability[inside].mean()) if inside.any() else 0.0,
        entropy=float(_entropy(probability[counted]).mean()) if counted.any() else 0.0,
        band_ml=_volume_ml(uncertain, spacing_mm),
        pieces=pieces,
        outside=outside,
    )
    return found, uncertain, quality


def composed(
    drawn: npt.NDArray[np.integer] | None,
    given: Mapping[str, tuple[Mask, Mask]],
    labels: Labels,
    *,
    real: Sequence[str],
    shape_zyx: tuple[int, int, int],
) -> npt.NDArray[np.uint16]:
    """Paints labels that a model gave, and over them those that people have drawn.

    Args:
        drawn: (z, y, x) label map of a person, with the values of `labels`; None for none.
        given: Label -> where it is, and where that is uncertain; painted in this order.
        labels: The labels of the result.
        real: The labels whose drawing counts.
        shape_zyx: The size of the image.

    Returns:
        The label map (z, y, x). Uncertain voxels have the ignore label.
    """
    result = np.zeros(shape_zyx, np.uint16)
    unknown = np.zeros(shape_zyx, bool)
    for name, (inside, uncertain) in given.items():
        result[inside] = labels.values[name][0]
        unknown |= uncertain
    if drawn is not None:
        for name in real:
            there = drawn == labels.values[name][0]
            result[there] = labels.values[name][0]
            unknown &= ~there
    if labels.ignore is not None:
        if drawn is not None:
            unknown |= drawn == labels.ignore
        result[unknown] = labels.ignore
    return result


def _largest(mask: Mask) -> Mask:
    found = components(mask)
    result = np.zeros_like(mask)
    result[found.box] = found.numbers == found.voxels.argmax()
    return result


def _volume_ml(mask: Mask, spacing_mm: tuple[float, float, float]) -> float | None:
    volume = volume_ml(mask, spacing_mm) if mask.any() else 0.0
    return None if math.isnan(volume) else volume


def _pieces(mask: Mask, spacing_mm: tuple[float, float, float]) -> int:
    if not mask.any():
        return 0
    least = _SPECK_ML * 1000 / float(np.prod(spacing_mm))
    return int(np.count_nonzero(components(mask).voxels >= least))


def _near(found: Mask, uncertain: Mask) -> Mask:
    """The uncertain voxels that hang together with what was found."""
    grown = ndimage.binary_propagation(found, mask=found | uncertain)
    near: Mask = grown & uncertain
    return near


def _entropy(values: Floats) -> Floats:
    inside = np.clip(values, 1e-7, 1 - 1e-7)
    return -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside))
