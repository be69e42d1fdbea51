"""Dice in three protocols, and where false liver lies, by code of its own (numpy and scipy)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoliver.io.files import read_label

Labels = npt.NDArray[np.integer[Any]]
ORGANS = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
LIVER = 1
NEAR_MM = 10.0
PROTOCOLS = ("as predicted", "largest", "cropped", "cropped, largest")


def score_case(predicted: Path, reference: Path) -> dict[str, Any]:
    """Scores one label map.

    Returns:
        Protocol -> organ -> Dice, under "dice"; place -> share of the false liver's voxels, under
        "false_liver"; and the false liver's volume as a share of the reference's.
    """
    volume = read_label(reference)
    truth, found = volume.array[0], read_label(predicted).array[0]
    kept = np.where(_largest(found), found, 0)
    slices = np.flatnonzero((truth > 0).any(axis=(1, 2)))
    crop = slice(slices[0], slices[-1] + 1)
    pairs = ((found, truth), (kept, truth), (found[crop], truth[crop]), (kept[crop], truth[crop]))
    return {
        "dice": {name: _dice(*pair) for name, pair in zip(PROTOCOLS, pairs, strict=True)},
        **_false_liver(found, truth, volume.geometry.spacing_mm),
    }


def _dice(found: Labels, truth: Labels) -> dict[str, float]:
    dice = {}
    for value, name in ORGANS.items():
        a, b = found == value, truth == value
        if b.any():  # an organ that a patient lacks is not scored
            dice[name] = 2 * float((a & b).sum()) / float(a.sum() + b.sum())
    return dice


def _largest(found: Labels) -> npt.NDArray[np.bool_]:
    """The largest component (26-connected) of each organ."""
    keep = np.zeros(found.shape, bool)
    for value in ORGANS:
        parts, count = ndimage.label(found == value, structure=np.ones((3, 3, 3)))
        if count:
            keep |= parts == np.bincount(parts.ravel())[1:].argmax() + 1
    return keep


def _false_liver(found: Labels, truth: Labels, spacing_mm: Sequence[float]) -> dict[str, Any]:
    liver = truth == LIVER
    false = (found == LIVER) & ~liver
    total = max(int(false.sum()), 1)
    organs = np.any(truth > 0, axis=(1, 2), keepdims=True)
    by_slice = np.broadcast_to(organs, truth.shape)
    with_liver = np.broadcast_to(liver.any(axis=(1, 2), keepdims=True), truth.shape)
    near = ndimage.distance_transform_edt(~liver, sampling=spacing_mm) <= NEAR_MM
    places = {
        "slices without organs": ~by_slice,
        "slices without liver": by_slice & ~with_liver,
        "other organs": with_liver & (truth > LIVER),
        "within 10 mm of the liver": with_liver & (truth == 0) & near,
        "elsewhere": with_liver & (truth == 0) & ~near,
    }
    shares = {name: float((false & where).sum()) / total for name, where in places.items()}
    return {"false_liver": shares, "false_share": float(false.sum()) / float(liver.sum())}


def mean_dice(cases: Sequence[dict[str, Any]], protocol: str) -> dict[str, float]:
    """Organ -> mean Dice over cases, and the mean of the organs."""
    means = {
        organ: float(
            np.mean([c["dice"][protocol][organ] for c in cases if organ in c["dice"][protocol]])
        )
        for organ in ORGANS.values()
    }
    return {**means, "mean": float(np.mean(list(means.values())))}
