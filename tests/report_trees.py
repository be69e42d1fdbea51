"""A small planned dataset with a run of two folds, whose artefacts are written without training."""

import json
from pathlib import Path

import numpy as np

import autoliver
from autoliver.datasets.cases import Labels
from autoliver.evaluation.score import score_files
from autoliver.io.files import read_label, write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.models.files import FoldFolder, FoldModel
from autoliver.planning.plan import Plan
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import EpochLog, write_progress
from autoliver.workspace import DatasetFolder

NAME = "Dataset007_Toy"
EVIL = "x\"'><script>alert(1)<b>&é"
LABELS = {"background": 0, "liver": 1, "tumour <i>": 2}
GRID = Geometry(shape_zyx=(9, 30, 36), spacing_mm=(5.0, 1.0, 1.5))


def label_of(number: int, shift: int = 0, geometry: Geometry = GRID) -> np.ndarray:
    """A box of liver with a tumour in it, moved along x."""
    label = np.zeros(geometry.shape_zyx, np.uint8)
    x = 6 + number % 3 + shift
    label[1:8, 6:22, x : x + 16] = 1
    label[3:5, 10:14, x + 4 : x + 9] = 2
    return label


def write_dataset(
    folder: Path,
    *,
    cases: int = 6,
    labels: dict[str, object] | None = None,
    more: dict[str, object] | None = None,
) -> Path:
    """A dataset in the layout of nnU-Net; the first case has a name that could do harm."""
    place = folder / NAME
    for number in range(cases):
        rng = np.random.default_rng(number)
        name = EVIL if number == 0 else f"case_{number:03d}"
        label = label_of(number)
        image = (label * 60 + rng.integers(0, 30, label.shape)).astype(np.int16)
        write_image(place / "imagesTr" / f"{name}_0000.nii.gz", image[None], GRID)
        write_label(place / "labelsTr" / f"{name}.nii.gz", label, GRID)
    described = {"channel_names": {"0": "T1"}, "labels": labels or LABELS}
    described |= {"numTraining": cases, "file_ending": ".nii.gz", **(more or {})}
    (place / "dataset.json").write_text(json.dumps(described))
    return place


def planned(folder: Path, **options: object) -> tuple[Path, DatasetFolder]:
    """A dataset and its folder in a workspace, planned."""
    place = write_dataset(folder, **options)  # type: ignore[arg-type]
    work = folder / "work"
    autoliver.plan(place, workspace=work, preset="tiny")
    return place, DatasetFolder(work / NAME)


def epochs(number: int) -> list[EpochLog]:
    return [
        EpochLog(
            epoch=epoch,
            step=10 * epoch,
            learning_rate=0.01,
            train_loss=1.0 / (epoch + 1),
            train_dice=0.5,
            validation_loss=1.1 / (epoch + 1),
            validation_dice=(0.1 * epoch, None),
            seconds=2.0,
            data_wait=0.1,
        )
        for epoch in range(number)
    ]


def write_fold(folder: DatasetFolder, data: Path, fold: int, *, run: str = "2d") -> FoldFolder:
    """A trained fold: its held-out cases are the references, moved by the number of the case."""
    files = FoldFolder(folder.path / "runs" / run / f"fold_{fold}")
    plan = Plan.load(folder.plan)
    FoldModel(
        plan=plan,
        configuration="2d",
        fold=str(fold),
        cases=("case_001",),
        epochs=4,
        mirror_axes=(0, 1),
        weights_sha256="0" * 64,
    ).save(files.model)
    TrainingOptions(epochs=4, iterations=10, augment="none", seed=3).save(
        files.path.parent / "options.json"
    )
    write_progress(files.progress, epochs(4))
    references = sorted((data / "labelsTr").glob("*.nii.gz"))[fold::2]
    pairs = {}
    for number, reference in enumerate(references):
        moved = np.roll(read_label(reference).array[0], number + fold, axis=2)
        if number == 2:
            moved[moved == 2] = 1
        predicted = files.validation / reference.name
        write_label(predicted, moved, GRID)
        pairs[reference.name.removesuffix(".nii.gz")] = (predicted, reference)
    labels = Labels(values={name: (int(v),) for name, v in LABELS.items()})
    score_files(pairs, labels=labels).save(files.scores)
    return files


def trained(folder: Path) -> tuple[Path, DatasetFolder]:
    """A dataset with a run of two folds."""
    data, place = planned(folder)
    for fold in (0, 1):
        write_fold(place, data, fold)
    return data, place
