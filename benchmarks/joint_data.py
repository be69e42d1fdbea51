"""Writes livers with phantom lesions as datasets: lesions of three classes, and lesions of none.

    python -m benchmarks.joint_data FOLDER [--shared SHARED] [--source real phantom]

Patients of the one are never in the other. Real scans are read from SHARED and never committed.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.synthesis.phantom import PhantomOptions, make_phantom
from autoliver.synthesis.phantom_lesions import LESION_LABELS, LesionOptions, draw_lesions
from autoliver.synthesis.phantom_solids import Bools, Floats

SHARED = Path(__file__).parents[2] / "shared"
LIVER, LESION = 1, 2
_OTHERS = ((1, 2), (0, 2), (0, 1))  # the other axes of each
# Of the real patients, every third is kept for pre-training.
_THIRD = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Patient:
    """A CT scan without lesions: name, image (z, y, x) in HU, liver (z, y, x), grid."""

    name: str
    image: Floats
    liver: Bools
    geometry: Geometry


# Patient -> what reads or makes the scan.
Patients = Mapping[str, Callable[[], Patient]]


def real_patients(shared: Path = SHARED) -> Patients:
    """The CT scans of Dataset101 whose livers are drawn."""
    folder = shared / "data/Dataset101_AbdomenCT"
    names = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir())

    def reader(name: str) -> Callable[[], Patient]:
        def read() -> Patient:
            image = read_image([folder / f"imagesTr/{name}_0000.nii.gz"])
            liver = read_label(folder / f"labelsTr/{name}.nii.gz").array[0] == LIVER
            return Patient(name=name, image=image.array[0], liver=liver, geometry=image.geometry)

        return read

    return {name: reader(name) for name in names}


def phantom_patients(
    count: int, *, seed: int, options: PhantomOptions | None = None, first: int = 0
) -> Patients:
    """Phantom scans without tumours; patient i depends on the seed and on i alone."""
    chosen = options or PhantomOptions(lesions=(0, 0))

    def maker(index: int) -> Callable[[], Patient]:
        def make() -> Patient:
            scan = make_phantom(np.random.default_rng([seed, index]), chosen)
            return Patient(
                name=f"phantom_{index:03d}",
                image=scan.image.array[0],
                liver=scan.label.array[0] == LIVER,
                geometry=scan.image.geometry,
            )

        return make

    return {f"phantom_{index:03d}": maker(index) for index in range(first, first + count)}


def cropped_to_liver(patients: Patients, *, margin_mm: float = 15.0) -> Patients:
    """The same scans, cropped to the box of the drawn liver and a margin."""

    def cropper(load: Callable[[], Patient]) -> Callable[[], Patient]:
        def crop() -> Patient:
            patient = load()
            spacing = patient.geometry.spacing_mm
            reach = [math.ceil(margin_mm / mm) for mm in spacing]
            where = [np.flatnonzero(patient.liver.any(axis=others)) for others in _OTHERS]
            box = tuple(
                slice(max(0, int(at[0]) - further), int(at[-1]) + 1 + further)
                for at, further in zip(where, reach, strict=True)
            )
            liver = patient.liver[box]
            steps = [part.start * mm for part, mm in zip(box, spacing, strict=True)][::-1]
            turn = np.array(patient.geometry.direction).reshape(3, 3)
            origin = np.array(patient.geometry.origin_xyz) + turn @ steps
            geometry = patient.geometry.replace(
                shape_zyx=liver.shape, origin_xyz=tuple(map(float, origin))
            )
            return replace(patient, image=patient.image[box], liver=liver, geometry=geometry)

        return crop

    return {name: cropper(load) for name, load in patients.items()}


def split_patients(patients: Patients) -> tuple[Patients, Patients]:
    """Patients for the benchmark, and every third one for pre-training."""
    names = sorted(patients)
    kept = set(names[_THIRD - 1 :: _THIRD])
    return (
        {name: patients[name] for name in names if name not in kept},
        {name: patients[name] for name in names if name in kept},
    )


def write_lesion_dataset(
    folder: Path,
    patients: Patients,
    *,
    versions: int,
    seed: int,
    classes: bool = True,
    options: LesionOptions | None = None,
) -> Path:
    """Writes each patient several times, with other lesions each time, in nnU-Net's layout.

    Args:
        folder: The dataset's folder, e.g. .../Dataset201_LesionsCT.
        patients: The scans.
        versions: Cases per patient; dataset.json names the patient of each, so that folds keep
            them together.
        seed: Seed of the lesions.
        classes: Whether the label map tells the classes apart (cyst 2, hemangioma 3, metastasis 4)
            or has lesions only (lesion 2).
        options: What lesions are drawn; None: the defaults.

    Returns:
        The folder.
    """
    owner: dict[str, str] = {}
    for number, (name, load) in enumerate(sorted(patients.items())):
        patient = load()
        for version in range(versions):
            case = f"{name}_v{version:02d}"
            rng = np.random.default_rng([seed, number, version])
            spacing = patient.geometry.spacing_mm
            drawn = draw_lesions(rng, patient.image, patient.liver, spacing, options)
            label = drawn.label if classes else np.minimum(drawn.label, LESION)
            image = np.rint(drawn.image).astype(np.int16)[None]
            write_image(folder / f"imagesTr/{case}_0000.nii.gz", image, patient.geometry)
            write_label(folder / f"labelsTr/{case}.nii.gz", label, patient.geometry)
            owner[case] = name
    with_classes = {label: values[0] for label, values in LESION_LABELS.values.items()}
    description = {
        "channel_names": {"0": "CT"},
        "labels": with_classes if classes else {"background": 0, "liver": LIVER, "lesion": LESION},
        "numTraining": len(owner),
        "file_ending": ".nii.gz",
        "modality": "CT",
        "patients": owner,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1))
    return folder


def write_joint_data(
    folder: Path,
    patients: Patients,
    *,
    number: int,
    versions: tuple[int, int] = (4, 8),
    seed: int = 0,
    options: LesionOptions | None = None,
) -> tuple[Path, Path]:
    """Writes the benchmark's dataset and the one for pre-training, of other patients.

    Args:
        folder: Where both folders are made.
        patients: The scans of both; every third patient is kept for pre-training.
        number: The number of the benchmark's dataset; that of the other is one more.
        versions: Cases per patient, of either.
        seed: Seed of the lesions.
        options: What lesions are drawn; None: the defaults.

    Returns:
        The folders of both: classes, then lesions without classes.
    """
    tested, kept = split_patients(patients)
    named = folder / f"Dataset{number:03d}_LesionClasses"
    plain = folder / f"Dataset{number + 1:03d}_Lesions"
    write_lesion_dataset(named, tested, versions=versions[0], seed=2 * seed, options=options)
    write_lesion_dataset(
        plain, kept, versions=versions[1], seed=2 * seed + 1, classes=False, options=options
    )
    return named, plain


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--source", nargs="+", choices=["real", "phantom"], default=["real"])
    parser.add_argument("--patients", type=int, default=15, help="phantoms")
    parser.add_argument("--versions", type=int, nargs=2, default=[4, 8])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    classes, plain = arguments.versions
    for source in arguments.source:
        real = source == "real"
        patients = (
            real_patients(arguments.shared)
            if real
            else phantom_patients(arguments.patients, seed=arguments.seed)
        )
        for path in write_joint_data(
            arguments.folder,
            patients,
            number=201 if real else 203,
            versions=(classes, plain),
            seed=arguments.seed,
        ):
            print(path)


if __name__ == "__main__":
    main()
