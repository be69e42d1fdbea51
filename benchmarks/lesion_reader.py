"""How well a good reader tells the phantom lesions apart: hand-made features, known outlines.

    python -m benchmarks.lesion_reader [--shared SHARED] [--versions 6] [--source real]

Logistic regression on features of each lesion, patients left out by turns. Prints accuracy by
class and by size, and that of the mean grey value alone. With the defaults, 335 lesions in 14 real
livers: 0.875, and 0.648 by the mean alone; 0.72 below 10 mm, 0.91 from 10 to 20 mm, 0.99 above.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from autoliver.synthesis.phantom_lesions import (
    LESION_VALUES,
    LesionOptions,
    LesionPhantom,
    draw_lesions,
)
from benchmarks.joint_data import SHARED, Patients, phantom_patients, real_patients

Array = npt.NDArray[Any]
_SIZES_MM = ((0, 10), (10, 20), (20, 100))
# More lesions of a scan than the benchmark has, for closer numbers.
_MANY = LesionOptions(count=(3, 5))
_FOLDS = 7
_DECAY = 2e-3


def features(
    scan: LesionPhantom, lesion: Array, spacing: tuple[float, float, float]
) -> list[float]:
    """What a reader sees of a lesion (a mask): HU against the liver around it, first the mean."""
    around = ndimage.distance_transform_edt(~lesion, sampling=spacing)
    inner = ndimage.distance_transform_edt(lesion, sampling=spacing)
    liver = scan.image[(scan.label == 1) & (around > 3) & (around < 20)]
    level, noise = np.median(liver), liver.std()
    half = inner.max() / 2
    core, rim = scan.image[lesion & (inner >= half)], scan.image[lesion & (inner < half)]
    shell = scan.image[(around > 0) & (around <= 2.5) & (scan.label == 1)]
    whole = scan.image[lesion]
    smooth = ndimage.gaussian_filter(scan.image, [1.5 / mm for mm in spacing])[lesion]
    edge = scan.image[lesion & (inner <= 2)].mean() if (inner[lesion] <= 2).any() else rim.mean()
    return [
        whole.mean() - level,
        core.mean() - level,
        (rim.mean() if rim.size else whole.mean()) - level,
        (rim.mean() if rim.size else whole.mean()) - core.mean(),
        edge - level,
        (shell.mean() if shell.size else level) - level,
        (core.mean() - level) / (level - 10),
        (whole.mean() - level) / (level - 10),
        np.percentile(whole, 90) - level,
        np.percentile(whole, 10) - level,
        smooth.max() - level,
        smooth.min() - level,
        smooth.std(),
        whole.std() - noise,
        level,
        np.log(lesion.sum() * np.prod(spacing)),
    ]


def collect(patients: Patients, *, versions: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """Features (n, f), classes (n,), patients (n,) and diameters in mm (n,) of drawn lesions."""
    rows: list[list[float]] = []
    facts: list[tuple[int, int, float]] = []
    for number, load in enumerate(patients.values()):
        patient = load()
        spacing = patient.geometry.spacing_mm
        for version in range(versions):
            rng = np.random.default_rng([seed, number, version])
            scan = draw_lesions(rng, patient.image, patient.liver, spacing, _MANY)
            parts, _ = ndimage.label(scan.label > 1, np.ones((3, 3, 3)))
            for index, box in enumerate(ndimage.find_objects(parts), start=1):
                wide = tuple(
                    slice(max(0, s.start - round(20 / mm)), s.stop + round(20 / mm))
                    for s, mm in zip(box, spacing, strict=True)
                )
                cut = LesionPhantom(
                    image=scan.image[wide], label=scan.label[wide], touched=scan.touched[wide]
                )
                lesion = parts[wide] == index
                volume = lesion.sum() * np.prod(spacing)
                rows.append(features(cut, lesion, spacing))
                value = int(cut.label[lesion][0]) - min(LESION_VALUES.values())
                facts.append((value, number, float((6 * volume / np.pi) ** (1 / 3))))
    classes, owners, sizes = (np.array(column) for column in zip(*facts, strict=True))
    return np.array(rows), classes, owners, sizes


def read(rows: Array, classes: Array, owners: Array) -> Array:
    """Each lesion's class as told by a regression that has seen other patients only."""
    guessed = np.zeros_like(classes)
    for fold in range(_FOLDS):
        held = owners % _FOLDS == fold
        if not held.any():
            continue
        middle, spread = rows[~held].mean(axis=0), rows[~held].std(axis=0) + 1e-6
        scaled = torch.tensor((rows - middle) / spread)
        # Squares let a class lie between two others.
        inputs = torch.cat([scaled, scaled**2], dim=1)
        model = _regression(inputs[~held], torch.tensor(classes[~held]))
        guessed[held] = model(inputs[held]).argmax(dim=1).numpy()
    return guessed


def _regression(inputs: torch.Tensor, target: torch.Tensor) -> torch.nn.Linear:
    torch.manual_seed(0)
    model = torch.nn.Linear(inputs.shape[1], len(LESION_VALUES), dtype=torch.float64)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=200)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), target)
        loss = loss + _DECAY * model.weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--source", choices=["real", "phantom"], default="real")
    parser.add_argument("--versions", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    patients = (
        real_patients(arguments.shared)
        if arguments.source == "real"
        else phantom_patients(14, seed=arguments.seed)
    )
    rows, classes, owners, sizes = collect(
        patients, versions=arguments.versions, seed=arguments.seed
    )
    right = read(rows, classes, owners) == classes
    mean = read(rows[:, :1], classes, owners) == classes
    print("| lesions | number | all features | mean grey value alone |\n|---|---|---|---|")
    groups = {"all": np.ones(len(classes), bool)}
    groups |= {name: classes == n for n, name in enumerate(LESION_VALUES)}
    groups |= {f"{a}-{b} mm": (sizes >= a) & (sizes < b) for a, b in _SIZES_MM}
    for name, group in groups.items():
        if group.any():
            print(
                f"| {name} | {group.sum()} | {right[group].mean():.3f} | {mean[group].mean():.3f} |"
            )


if __name__ == "__main__":
    main()
