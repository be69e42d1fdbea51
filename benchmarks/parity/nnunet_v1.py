"""Models of nnU-Net v1, imported, compute what nnU-Net v1 computes.

    python -m benchmarks.parity.nnunet_v1 WORK --peer FOLDER [--only NAME ...] [--steps N]

nnU-Net 1.7.1 (an environment of its own, --peer) plans phantom scans, trains small networks for a
few steps, exports them with its own command, and predicts new scans. Its zip is imported here and
predicts the same scans. Prints the largest difference of the logits of each network, for the same
input, and for each scan, without and with flips, the share of voxels with equal labels, the mean
Dice of labels of 100 voxels or more, and the median distance of v1's two largest probabilities in
voxels that differ (where nothing was cropped). Exit code 1 if logits differ by more than 1e-4, or
fewer than 99.99 % of the voxels are equal.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from autoliver.inference.model import load_model
from autoliver.inference.predict import PredictOptions, make_jobs, predict_jobs
from autoliver.io.files import read_label
from autoliver.models.files import ModelFiles
from autoliver.pipeline.models import ImportRequest, import_model
from autoliver.synthesis.phantom import Contrast, PhantomOptions, write_phantom_dataset
from autoliver.workspace import ModelFolder, Workspace

CPU = torch.device("cpu")
# Voxels of a label whose Dice says something.
_MANY = 100
_CASCADE = ("3d_lowres", "3d_fullres", "3d_cascade_fullres")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Phantom scans, and what nnU-Net v1 trains on them."""

    number: int
    contrast: Contrast
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    configurations: tuple[str, ...]
    folds: tuple[int, ...] = (0,)
    patch: tuple[int, int, int] | None = None
    sagittal: bool = False

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"Task{self.number:03d}_{self.contrast}"


TASKS = {
    "ct": Task(
        number=29,
        contrast="CT",
        shape=(32, 48, 48),
        spacing=(4.0, 3.0, 3.0),
        configurations=_CASCADE,
        patch=(24, 32, 32),
    ),
    "mr": Task(
        number=30,
        contrast="T1",
        shape=(14, 64, 64),
        spacing=(8.0, 2.0, 2.0),
        configurations=("2d", "3d_fullres"),
        folds=(0, 1),
    ),
    "sagittal": Task(
        number=31,
        contrast="T2",
        shape=(14, 64, 64),
        spacing=(8.0, 2.0, 2.0),
        configurations=("3d_fullres",),
        sagittal=True,
    ),
}


def make_dataset(work: Path, task: Task) -> tuple[list[Path], Path]:
    """Writes scans in the layout of v1; returns the training images, and the folder of the others.

    The new scans have other spacings, so that they are resampled.
    """
    folder = work / "raw/nnUNet_raw_data" / task.name
    z, y, x = task.spacing
    options = PhantomOptions(contrast=task.contrast, shape_zyx=task.shape, spacing_mm=task.spacing)
    other = PhantomOptions(
        contrast=task.contrast, shape_zyx=task.shape, spacing_mm=(z * 1.2, y * 0.8, x * 0.8)
    )
    source = write_phantom_dataset(
        work, name=f"Dataset{task.number:03d}_{task.contrast}", cases=5, seed=task.number,
        options=options,
    )  # fmt: skip
    new = write_phantom_dataset(
        work / "new", name=source.name, cases=1, test_cases=2, seed=1000, options=[options, other]
    )
    head = json.loads((source / "dataset.json").read_text())
    names = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").iterdir())
    about = {
        "name": task.contrast,
        "tensorImageSize": "3D",
        "modality": {"0": "CT" if task.contrast == "CT" else "MRI"},
        "labels": {str(value): name for name, value in head["labels"].items()},
        "numTraining": len(names),
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
        "test": [],
    }
    for part, origin in (("imagesTr", source), ("labelsTr", source), ("imagesTs", new)):
        for path in sorted((origin / part).iterdir()):
            image = sitk.ReadImage(str(path))
            if task.sagittal:
                image = sitk.PermuteAxes(image, [2, 1, 0])
            (folder / part).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, str(folder / part / path.name))
    (folder / "dataset.json").write_text(json.dumps(about))
    return sorted((folder / "imagesTr").iterdir()), folder / "imagesTs"


def run_peer(work: Path, peer: Path, *command: object) -> None:
    """Runs a command in the environment of v1."""
    settings = {
        "nnUNet_raw_data_base": work / "raw",
        "nnUNet_preprocessed": work / "preprocessed",
        "RESULTS_FOLDER": work / "results",
        "OMP_NUM_THREADS": 1,
        "PATH": f"{peer / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": Path(__file__).parents[2],
        "CUDA_VISIBLE_DEVICES": "",
        # v1 reads its own files as PyTorch did by default until 2.6.
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": 1,
    }
    words = ["env", *(f"{name}={value}" for name, value in settings.items()), *map(str, command)]
    log = work / "log.txt"
    with log.open("a") as file:
        if subprocess.run(words, stdout=file, stderr=file, check=False).returncode:
            raise SystemExit(f"failed: {' '.join(map(str, command))}; see {log}")


def run_task(work: Path, peer: Path, task: Task, steps: int) -> Iterator[dict[str, Any]]:
    training, new = make_dataset(work, task)
    run_peer(work, peer, "nnUNet_plan_and_preprocess", "-t", task.number, "-tl", 1, "-tf", 1)
    cascade = "3d_cascade_fullres" in task.configurations
    edits = {"features": 8, "cascade": cascade, **({"patch": task.patch} if task.patch else {})}
    about = {
        "task": task.name,
        "train_images": training,
        "test_images": new,
        "output": work / "predicted" / task.name,
        "zip": work / f"{task.name}.zip",
        "steps": steps,
        "runs": [
            {"configuration": name, "folds": task.folds, "edits": edits, "rules": [[1, 2], 1]}
            for name in task.configurations
        ],
    }
    arguments = work / "arguments.json"
    arguments.write_text(json.dumps(about, default=str))
    run_peer(work, peer, peer / "bin/python", "-m", "benchmarks.peer.v1", arguments)
    workspace = Workspace(work / "workspace")
    model = import_model(workspace, work / f"{task.name}.zip", ImportRequest(name=task.contrast))
    folder = ModelFolder(model.path)
    for name in task.configurations:
        ours = name.removesuffix("_fullres") if "cascade" in name else name
        files = workspace.model_to_predict(f"{folder.name}/{ours}")
        # The rules are those of every run; naming a run leaves them out.
        files = replace(files, cleaning=workspace.model_to_predict(folder.name).cleaning)
        yield from compare_logits(work, task, name, files)
        for flips in (False, True):
            yield from compare_maps(work, task, name, files, new, flips=flips)


def compare_logits(
    work: Path, task: Task, name: str, files: ModelFiles
) -> Iterator[dict[str, Any]]:
    (place,) = (work / f"results/nnUNet/{name}/{task.name}").iterdir()
    networks = load_model(files, device=CPU).parts[0].networks
    for fold, network in zip(task.folds, networks, strict=True):
        with np.load(place / f"fold_{fold}/logits.npz") as file:
            image, expected = torch.from_numpy(file["image"]), file["logits"]
        with torch.no_grad():
            found = network(image).numpy()
        yield {
            "model": f"{task.name} {name}",
            "what": f"logits, fold {fold}",
            "equal": "",
            "Dice": "",
            "margin": "",
            "difference": float(np.abs(found - expected).max()),
        }


def compare_maps(
    work: Path, task: Task, name: str, files: ModelFiles, images: Path, *, flips: bool
) -> Iterator[dict[str, Any]]:
    theirs = work / "predicted" / task.name / name / ("flips" if flips else "")
    output = work / "ours" / task.name / name / ("flips" if flips else "plain")
    cases = {path.name.removesuffix("_0000.nii.gz"): [path] for path in sorted(images.iterdir())}
    model = load_model(files, device=CPU)
    options = PredictOptions(mirror=flips, overlap=False)
    predict_jobs(model, make_jobs(cases, output), options)
    for case in cases:
        expected = read_label(theirs / f"{case}.nii.gz").array[0]
        found = read_label(output / f"{case}.nii.gz").array[0]
        values = [v for v in np.unique(expected) if v and (expected == v).sum() >= _MANY]
        shares = np.load(theirs / f"{case}.npz")["softmax"].astype(np.float32)
        differ = expected != found
        margin: float | str = ""
        if shares.shape[1:] == expected.shape and differ.any():
            ordered = np.sort(shares, axis=0)
            margin = float(np.median((ordered[-1] - ordered[-2])[differ]))
        yield {
            "model": f"{task.name} {name}",
            "what": f"{case}{', flips' if flips else ''}",
            "equal": float((~differ).mean()),
            "Dice": float(np.mean([dice(expected == v, found == v) for v in values])),
            "margin": margin,
            "difference": "",
        }


def dice(a: Any, b: Any) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def show(row: dict[str, Any]) -> str:
    cells = [
        f"{v:.1e}" if k == "difference" and v != "" else f"{v:.5f}" if isinstance(v, float) else v
        for k, v in row.items()
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(TASKS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=60, help="of every training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        for row in run_task(work, options.peer.resolve(), TASKS[name], options.steps):
            if not rows:
                print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
            rows.append(row)
            print(show(row), flush=True)
    worst = max(row["difference"] for row in rows if row["difference"] != "")
    lowest = min(row["equal"] for row in rows if row["equal"] != "")
    print(f"\nlargest difference of logits {worst:.1e}, fewest equal voxels {lowest:.5f}")
    raise SystemExit(worst > 1e-4 or lowest < 0.9999)


if __name__ == "__main__":
    main()
