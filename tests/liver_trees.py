"""Published data of livers in layouts of their own, as miniature trees."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry

GRID = Geometry(shape_zyx=(6, 12, 14), spacing_mm=(3.0, 1.0, 1.0))
PHASES = ("C+A", "C-pre", "InPhase", "T2WI")
LLD_NAMES = {
    "Hepatic_hemangioma": 0,
    "Intrahepatic_cholangiocarcinoma": 1,
    "Hepatic_abscess": 2,
    "Hepatic_metastasis": 3,
    "Hepatic_cyst": 4,
    "FOCAL_NODULAR_HYPERPLASIA": 5,
    "Hepatocellular_carcinoma": 6,
    "Benign": [0, 2, 4, 5],
    "Malignant": [1, 3, 6],
}


def image(path: Path, geometry: Geometry = GRID) -> None:
    seed = sum(str(path.name).encode())
    array = np.random.default_rng(seed).normal(100, 20, (1, *geometry.shape_zyx))
    write_image(path, array.astype(np.float32), geometry)


def box(path: Path, at: int, value: int = 1, size: int = 2, geometry: Geometry = GRID) -> None:
    """A label map with a box of a value from (1, at, at) on."""
    array = np.zeros(geometry.shape_zyx, np.uint8)
    array[1:3, at : at + size, at : at + size] = value
    write_label(path, array, geometry)


def write_lld(
    source: Path,
    categories: Mapping[str, object] | None = None,
    *,
    names: Mapping[str, Any] | None = LLD_NAMES,
    file: str = "LLD_MMRI_Annotation_full.json",
) -> Path:
    """Patients with four phases each; by default two, whose lesions are a cyst and an HCC."""
    categories = {"MR1001": 4, "MR1002": 6} if categories is None else categories
    for patient in categories:
        for phase in PHASES:
            image(source / f"images/{patient}_1_{phase}_0000.nii.gz")
            box(source / f"labels/{patient}_1_{phase}.nii.gz", at=3)
    phases = {
        patient: [
            {"phase": p, "annotation": {"num_targets": 1, "lesion": {"0": {"category": category}}}}
            for p in PHASES
        ]
        for patient, category in categories.items()
    }
    content = {"Annotation_info": phases} | ({} if names is None else {"Category_info": names})
    (source / file).write_text(json.dumps(content))
    return source


def write_mct(source: Path, cases: Mapping[str, str] | None = None) -> Path:
    """Cases with four phases; by default one of each class."""
    cases = cases or {f"{n:03d}": k for n, k in enumerate(("HCC", "ICC", "BCLM", "CRLM", "HH"))}
    for case, kind in cases.items():
        for phase in ("NC", "AP", "PVP", "DP"):
            image(source / f"volume/{kind}/{case}/{phase}.nii.gz")
        box(source / f"mask/{kind}/{case}/mask_pvp.nii.gz", at=4)
    return source


def write_atlas(source: Path, numbers: range = range(3)) -> Path:
    for number in numbers:
        image(source / f"train/imagesTr/im{number}.nii.gz")
        box(source / f"train/labelsTr/lb{number}.nii.gz", at=2, value=1 + number % 2, size=4)
    (source / "train/patient_info_train.json").write_text("{}")
    image(source / "test/imagesTs/im90.nii.gz")
    return source


def write_hccseg(source: Path) -> Path:
    """Two patients; the first has two tumours of the first rater and one of the second."""
    for patient in ("TCGA-BC-4073", "TCGA-DD-A113"):
        folder = source / patient / "1999-12-30"
        for phase in ("pre", "art", "pv", "del"):
            image(folder / f"{phase}.nii.gz")
        for rater in (1, 2):
            box(folder / f"rater{rater}_liver.nii.gz", at=1, size=8)
    folder = source / "TCGA-BC-4073/1999-12-30"
    box(folder / "rater1_tumor1.nii.gz", at=2)
    box(folder / "rater1_tumor2.nii.gz", at=6, value=255)
    box(folder / "rater2_tumor1.nii.gz", at=3)
    return source


def write_cirrmri(source: Path) -> Path:
    """Patients 1 to 6, whose T1 and T2 lie in different parts of the published division."""
    parts = ("train", "valid", "test")
    for number in range(1, 7):
        for sequence in (1, 2):
            place = source / f"Cirrhosis_T{sequence}_3D"
            part = parts[(number + sequence) % 3]
            image(place / f"{part}_images/{number}.nii.gz")
            box(place / f"{part}_masks/{number}.nii.gz", at=2, size=6)
    (source / "Cirrhosis_T2_2D").mkdir()
    return source
