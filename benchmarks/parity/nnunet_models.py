"""Models of nnU-Net, imported, predict what nnU-Net predicts; exported ones too.

    python -m benchmarks.parity.nnunet_models ../shared/data WORK [--peer FOLDER] [--only NAME ...]

nnU-Net 2.8.1 (an environment of its own, --peer) trains small networks for a few steps on real
images: anisotropic MR in 2D and 3D with two folds, CT with regions and slices along the last axis,
a residual encoder, a cascade. Each is imported and both sides predict new cases. Prints a row for
every case and label: Dice between the two label maps, the largest difference of a probability from
nnU-Net's own when it sums windows in float32, how far nnU-Net's command, which sums in float16, is
from that, and Dice with nnU-Net when it predicts with our export of the imported model. "ours" is
trained here and only exported. Exit code 1 if a Dice is below 0.999 or a difference above 1e-3.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from autoliver.inference.model import load_model
from autoliver.inference.predict import PredictOptions, make_jobs, predict_jobs
from autoliver.io.files import read_label
from autoliver.models.files import FoldModel, MemberFiles, ModelFiles, save_fold
from autoliver.networks.checkpoint import load_weights
from autoliver.nnunet.model import read_nnunet_model, write_nnunet_model

CPU = torch.device("cpu")


def network(axes: int, kernels: list[int], *, blocks: str = "n_conv_per_stage") -> dict[str, Any]:
    """Three stages; the first is flat where its kernel is."""
    first, second = [1] * axes, [1 if size == 1 else 2 for size in kernels]
    return {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "kernel_sizes": [kernels, [3] * axes, [3] * axes],
        "strides": [first, second, [2] * axes],
        blocks: [1, 2, 2],
        "n_conv_per_stage_decoder": [1, 2],
    }


@dataclass(frozen=True, kw_only=True)
class Task:
    """A dataset made of a real one, and what nnU-Net trains on it."""

    number: int
    source: str
    train: int
    test: int
    shrink: int = 1
    sagittal: bool = False
    labels: dict[str, Any] | None = None
    order: list[int] | None = None
    planner: str = "ExperimentPlanner"
    plans: str = "nnUNetPlans"
    edits: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, list[int | str]] = field(default_factory=dict)
    steps: int = 200

    @property
    def folder(self) -> str:
        """The dataset's name."""
        return f"Dataset{self.number}_{self.source.partition('_')[2]}"


MR_2D = {"spacing": [2.2, 2.2], "patch_size": [64, 80], "batch_size": 6}
MR_3D = {"spacing": [7.0, 2.2, 2.2], "patch_size": [12, 64, 80], "batch_size": 2}
CT_3D = {"spacing": [5.5, 5.0, 5.0], "patch_size": [24, 32, 32], "batch_size": 2}
HIPPO = {"spacing": [1.1, 0.9, 1.0], "patch_size": [24, 32, 24], "batch_size": 2}
LOWRES = {"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_lowres"}
CUBE = [3, 3, 3]

TASKS = {
    "mr": Task(
        number=802,
        source="Dataset102_AbdomenMR",
        train=6,
        test=2,
        shrink=2,
        edits={
            "2d": {**MR_2D, "network": network(2, [3, 3])},
            "3d_fullres": {**MR_3D, "network": network(3, [1, 3, 3])},
        },
        runs={"2d": [0], "3d_fullres": [0, 1]},
    ),
    "regions": Task(
        number=801,
        source="Dataset101_AbdomenCT",
        train=6,
        test=2,
        shrink=4,
        sagittal=True,
        labels={"background": 0, "organs": [1, 2, 3, 4], "kidneys": [2, 3], "spleen": 4},
        order=[1, 2, 4],
        edits={"3d_fullres": {**CT_3D, "network": network(3, CUBE)}},
        runs={"3d_fullres": [0]},
    ),
    "resenc": Task(
        number=803,
        source="Dataset004_Hippocampus",
        train=8,
        test=3,
        planner="nnUNetPlannerResEncM",
        plans="nnUNetResEncUNetMPlans",
        edits={"3d_fullres": {**HIPPO, "network": network(3, CUBE, blocks="n_blocks_per_stage")}},
        runs={"3d_fullres": [0]},
    ),
    "cascade": Task(
        number=804,
        source="Dataset004_Hippocampus",
        train=8,
        test=3,
        edits={
            "3d_lowres": {**LOWRES, "spacing": [2, 1.8, 2], "next_stage": "3d_cascade_fullres"},
            "3d_fullres": {**HIPPO, "network": network(3, CUBE)},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        runs={"3d_lowres": ["all"], "3d_cascade_fullres": ["all"]},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything is, and nnU-Net's Python."""

    data: Path
    work: Path
    peer: Path

    def run(self, *command: object, loaders: int = 1) -> None:
        """A command with nnU-Net's settings; its output goes to a log."""
        settings = {
            "nnUNet_raw": self.work / "raw",
            "nnUNet_preprocessed": self.work / "preprocessed",
            "nnUNet_results": self.work / "results",
            "nnUNet_compile": "f",
            "nnUNet_n_proc_DA": loaders,
            "nnUNet_def_n_proc": 1,
            "OMP_NUM_THREADS": 1,
        }
        log = self.work / "log.txt"
        with log.open("a") as file:
            pairs = [f"{name}={value}" for name, value in settings.items()]
            words = ["env", *pairs, *map(str, command)]
            if subprocess.run(words, stdout=file, stderr=file, check=False).returncode:
                raise SystemExit(f"failed: {' '.join(map(str, command))}; see {log}")

    def step(self, what: str, *, loaders: int = 1, **arguments: Any) -> None:
        """One function of benchmarks/peer/models.py."""
        path = self.work / "arguments.json"
        path.write_text(json.dumps(arguments, default=str))
        self.run(
            self.peer / "bin/python", "-m", "benchmarks.peer.models", what, path, loaders=loaders
        )


def make_dataset(place: Place, task: Task) -> Path:
    """Writes the training cases as a dataset of nnU-Net's; returns the folder of the others."""
    source, folder = place.data / task.source, place.work / "raw" / task.folder
    head = json.loads((source / "dataset.json").read_text())
    labels = task.labels or head["labels"]
    ending = head["file_ending"]
    names = sorted(p.name.removesuffix(f"_0000{ending}") for p in (source / "imagesTr").iterdir())
    for number, name in enumerate(names[: task.train + task.test]):
        images = "imagesTr" if number < task.train else "imagesTs"
        save(
            task, source / f"imagesTr/{name}_0000{ending}", folder / f"{images}/{name}_0000.nii.gz"
        )
        if number < task.train:
            save(task, source / f"labelsTr/{name}{ending}", folder / f"labelsTr/{name}.nii.gz")
    about = {
        "channel_names": head["channel_names"],
        "labels": labels,
        "numTraining": task.train,
        "file_ending": ".nii.gz",
    }
    if task.order:
        about["regions_class_order"] = task.order
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder / "imagesTs"


def save(task: Task, source: Path, target: Path) -> None:
    image = sitk.Shrink(sitk.ReadImage(str(source)), [task.shrink, task.shrink, 1])
    if task.sagittal:
        image = sitk.PermuteAxes(image, [2, 1, 0])
    target.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(target))


def import_model(place: Place, source: Path, name: str) -> tuple[Path, ...]:
    """Our fold folders of nnU-Net's model."""
    folders = []
    for fold in read_nnunet_model(source):
        folders.append(place.work / "imported" / name / f"fold_{fold.info.fold}")
        save_fold(folders[-1], fold.weights, fold.info)
    return tuple(folders)


def export_model(place: Place, folders: Sequence[Path], name: str) -> Path:
    folds = [
        (FoldModel.load(folder / "model.json"), load_weights(folder / "weights.safetensors")[0])
        for folder in folders
    ]
    return write_nnunet_model(folds, place.work / "exported" / name)


def predict(files: MemberFiles, images: Path, name: str, output: Path) -> None:
    """Ours, as the command does it, except that nothing overlaps."""
    model = load_model(ModelFiles(name=name, members=(files,)), device=CPU)
    cases = {path.name.removesuffix("_0000.nii.gz"): [path] for path in sorted(images.iterdir())}
    predict_jobs(model, make_jobs(cases, output), PredictOptions(probabilities=True, overlap=False))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A model here and there, and the name of the one whose label maps it starts from."""

    name: str
    files: MemberFiles
    theirs: Path
    exported: Path
    previous: str | None = None


def compare(place: Place, pair: Pair, images: Path) -> Iterator[dict[str, Any]]:
    """Rows of one model: ours, nnU-Net's command, nnU-Net in float32, and with our export."""
    predicted = place.work / "predicted"
    outputs = {what: predicted / pair.name / what for what in ("command", "float32", "export")}
    before = {what: pair.previous and predicted / pair.previous / what for what in outputs}
    folds = [folder.name.removeprefix("fold_") for folder in pair.files.folds]
    for what, model in (("command", pair.theirs), ("export", pair.exported)):
        words: list[object] = [place.peer / "bin/nnUNetv2_predict_from_modelfolder", "-m", model]
        words += ["-i", images, "-o", outputs[what], "-f", *folds, "-device", "cpu"]
        words += ["-npp", 1, "-nps", 1, "--save_probabilities", "--disable_progress_bar"]
        place.run(*words, *(["-prev_stage_predictions", before[what]] if pair.previous else []))
    place.step(
        "predict_float32",
        model=pair.theirs,
        folds=folds,
        images=images,
        output=outputs["float32"],
        previous=before["float32"],
    )
    outputs["ours"] = predicted / pair.name / "ours"
    predict(pair.files, images, pair.name, outputs["ours"])
    for path in sorted(images.iterdir()):
        yield from compare_case(pair.name, path.name.removesuffix("_0000.nii.gz"), outputs)


def compare_case(name: str, case: str, outputs: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    maps = {what: read_label(path / f"{case}.nii.gz").array[0] for what, path in outputs.items()}
    shares = {
        what: np.load(path / f"{case}.npz")["probabilities"] for what, path in outputs.items()
    }
    for value in np.union1d(np.unique(maps["ours"]), np.unique(maps["command"])):
        if value:
            masks = {what: array == value for what, array in maps.items()}
            yield {
                "model": name,
                "case": case,
                "label": int(value),
                "voxels": int(masks["ours"].sum()),
                "Dice": dice(masks["ours"], masks["command"]),
                "Dice, float32": dice(masks["ours"], masks["float32"]),
                "Dice, exported": dice(masks["command"], masks["export"]),
                "p difference": float(np.abs(shares["ours"] - shares["float32"]).max()),
                "nnU-Net's own": float(np.abs(shares["command"] - shares["float32"]).max()),
            }


def dice(a: Any, b: Any) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def run_task(place: Place, name: str, task: Task) -> Iterator[dict[str, Any]]:
    images = make_dataset(place, task)
    place.step("plan", number=task.number, planner=task.planner, edits=task.edits)
    low: Pair | None = None
    for configuration, folds in task.runs.items():
        for fold in folds:
            place.step(
                "train",
                loaders=0,
                number=task.number,
                plans=task.plans,
                configuration=configuration,
                fold=fold,
                steps=task.steps,
                validate="lowres" in configuration,
            )
        run = f"nnUNetTrainer__{task.plans}__{configuration}"
        theirs = place.work / "results" / task.folder / run
        folders = import_model(place, theirs, f"{name}_{configuration}")
        cascade = low if "cascade" in configuration else None
        pair = Pair(
            name=f"{name} {configuration}",
            files=MemberFiles(folds=folders, previous=cascade.files.folds if cascade else ()),
            theirs=theirs,
            exported=export_model(place, folders, f"{name}_{configuration}"),
            previous=cascade.name if cascade else None,
        )
        yield from compare(place, pair, images)
        if "lowres" in configuration:
            low = pair


def run_ours(place: Place, steps: int) -> Iterator[dict[str, Any]]:
    """A model trained here, exported: nnU-Net with it against us."""
    task = Task(number=805, source="Dataset004_Hippocampus", train=8, test=3)
    images = make_dataset(place, task)
    own = [sys.executable, "-m", "autoliver"]
    workspace = ["-w", place.work / "workspace"]
    place.run(*own, "plan", images.parent, "--preset", "tiny", *workspace)
    length = ["--fold", 0, "--epochs", 2, "--iterations", steps // 2]
    place.run(*own, "train", task.folder, "2d", *length, *workspace)
    folders = (place.work / "workspace" / task.folder / "runs/2d/fold_0",)
    exported = export_model(place, folders, "ours")
    files = MemberFiles(folds=folders)
    yield from compare(
        place, Pair(name="ours 2d", files=files, theirs=exported, exported=exported), images
    )


def show(row: Mapping[str, Any]) -> str:
    cells = [f"{v:.6f}" if k.startswith("Dice") else v for k, v in row.items()]
    return "| " + " | ".join(f"{c:.1e}" if isinstance(c, float) else str(c) for c in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer", type=Path, default=Path("/tmp/peer"))
    parser.add_argument("--only", nargs="+", default=[*TASKS, "ours"], metavar="NAME")
    parser.add_argument("--steps", type=int, help="of every training")
    parser.add_argument("--cases", type=int, help="predicted by every model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(data=options.data, work=options.work.resolve(), peer=options.peer)
    shutil.rmtree(place.work, ignore_errors=True)
    place.work.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for name in options.only:
        if name == "ours":
            found = run_ours(place, options.steps or 40)
        else:
            task = TASKS[name]
            changes = {"steps": options.steps or task.steps, "test": options.cases or task.test}
            found = run_task(place, name, replace(task, **changes))
        for row in found:
            if not rows:
                print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
            rows.append(row)
            print(show(row), flush=True)
    scores = [row[key] for row in rows for key in row if key.startswith("Dice")]
    worst = max(row["p difference"] for row in rows)
    print(f"\nlowest Dice {min(scores):.6f}, largest difference of a probability {worst:.1e}")
    raise SystemExit(min(scores) < 0.999 or worst > 1e-3)


if __name__ == "__main__":
    main()
