"""What the scripts of this folder share: the split by case, trainings, Dice of cases held back.

Everything lies in one folder and is kept, so a script that was stopped goes on, and the scripts
share what they train. Datasets are tables of paths into the originals; nothing is copied.
"""

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import autoliver

SOURCE, TARGET = "Dataset101_AbdomenCT", "Dataset102_AbdomenMR"
CT, MR = "Dataset201_CT", "Dataset202_MR"
# Every fifth case is held back of the source, every third of the target.
HELD_BACK = {SOURCE: 5, TARGET: 3}
CONFIGURATION = "2d"


@dataclass(frozen=True)
class Study:
    """How large the trainings are, and where everything lies.

    Attributes:
        data: The folder with both datasets.
        work: For everything that is made.
        preset: Of the plans.
        spacing_mm: Of the source's plan (z, y, x); None: its own.
        window_hu: What CT is clipped to; None: the planner decides.
        steps: Of the training on CT.
        tune: Steps on MR.
        seeds: One repetition each.
        device: As for `train`.
        configuration: What is trained.
        whole_source: Whether no case of the source is held back.
        slices: Neighbouring slices that 2D networks see.
    """

    data: Path
    work: Path
    preset: str
    spacing_mm: tuple[float, float, float] | None
    window_hu: tuple[float, float] | None
    steps: int
    tune: int
    seeds: tuple[int, ...]
    device: str
    configuration: str
    whole_source: bool = False
    slices: int = 1

    @property
    def workspace(self) -> Path:
        """Of all trainings."""
        return self.work / "workspace"

    def prepare(self) -> None:
        """Writes the datasets of the source and plans it."""
        chosen = all_cases if self.whole_source else train_cases
        table(self.data / SOURCE, self.work / "data" / CT, chosen(self.data / SOURCE))
        options: dict[str, Any] = {"preset": self.preset, "slices": self.slices}
        if self.spacing_mm is not None:
            options["spacing_mm"] = self.spacing_mm
        if self.window_hu is not None:
            options["window_hu"] = self.window_hu
        if not (self.workspace / CT / "plan.json").exists():
            autoliver.plan(self.work / "data" / CT, workspace=self.workspace, **options)

    def target(self, cases: int, seed: int) -> Path:
        """A dataset of so many target cases, others with another seed."""
        pool = train_cases(self.data / TARGET)
        chosen = np.random.default_rng(seed).permutation(len(pool))[:cases]
        name = f"Dataset{300 + 10 * seed + cases}_MR{cases}s{seed}"
        folder = self.work / "data" / name
        table(self.data / TARGET, folder, [pool[i] for i in sorted(chosen)])
        return folder

    def train_source(self, augment: str, seed: int) -> str:
        """Trains on CT; the run's name."""
        tag = f"{augment.replace(':', '').replace(',', '_')}-s{seed}"
        run = f"{CT}/{self.configuration}+{tag}"
        if not (self.workspace / CT / "runs" / Path(run).name / "fold_all/model.json").exists():
            self.train(CT, tag, steps=self.steps, seed=seed, augment=augment)
        return run

    def train(
        self,
        dataset: str | Path,
        tag: str,
        *,
        steps: int,
        seed: int,
        epoch: int = 250,
        **options: Any,
    ) -> str:
        """Trains fold `all` with about `epoch` steps an epoch; the folder of the run."""
        epochs = max(1, round(steps / epoch)) if steps else 0
        results = autoliver.train(
            dataset,
            self.configuration,
            folds=("all",),
            workspace=self.workspace,
            device=self.device,
            epochs=epochs,
            iterations=steps // epochs if epochs else 1,
            seed=seed,
            tag=tag,
            **options,
        )
        return str(results[0].folder.parent)

    def dice(self, model: str, dataset: str) -> dict[str, float]:
        """Label -> mean Dice of the cases of SOURCE or TARGET that were held back."""
        found = self.means(model, dataset, ("dice",))["dice"]
        return {**found, "mean": float(np.mean(list(found.values())))}

    def means(
        self, model: str, dataset: str, metrics: Sequence[str]
    ) -> dict[str, dict[str, float]]:
        """Metric -> label -> mean over the cases held back; the score of CHAOS is "chaos"."""
        test = test_cases(self.data / dataset)
        name = model.replace(str(self.workspace), "").strip("/").replace("/", "_")
        out = self.work / "predictions" / name / dataset
        (out / "labels").mkdir(parents=True, exist_ok=True)
        images = self.work / "data" / f"test_{dataset}" / "images"
        labels = images.parent / "labels"
        for case in test:
            link(self.data / dataset / "imagesTr" / f"{case}_0000.nii.gz", images)
            link(self.data / dataset / "labelsTr" / f"{case}.nii.gz", labels)
        modality = "CT" if dataset == SOURCE else "MR"
        autoliver.predict(
            images,
            out,
            models=[model],
            workspace=self.workspace,
            device=self.device,
            modality=modality,
        )
        scores = autoliver.evaluate(
            *(out, labels),
            dataset=CT,
            workspace=self.workspace,
            metrics=tuple(m for m in metrics if m != "chaos"),
            chaos="chaos" in metrics,
        )
        by_label = {label: each.metrics for label, each in scores.summary.items()}
        fields = {field for each in by_label.values() for field in each}
        return {
            field.partition("_")[0]: {label: each[field].mean for label, each in by_label.items()}
            for field in fields
        }


def read_study(description: str, words: Sequence[str] | None = None) -> Study:
    """The study that the command line asks for."""
    return read(arguments(description).parse_args(words))


def arguments(description: str) -> argparse.ArgumentParser:
    """What every study can be asked for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="Folder for everything that is made.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"))
    parser.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"))
    parser.add_argument("--steps", type=int, default=1500, help="On CT.")
    parser.add_argument("--tune", type=int, default=300, help="On MR.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--configuration", default=CONFIGURATION)
    return parser


def read(given: argparse.Namespace) -> Study:
    """The study of parsed arguments, with CT planned."""
    study = Study(
        data=given.data.resolve(),
        work=given.work.resolve(),
        preset=given.preset,
        spacing_mm=None if given.spacing is None else tuple(given.spacing),
        window_hu=None if given.window is None else tuple(given.window),
        steps=given.steps,
        tune=given.tune,
        seeds=tuple(given.seeds),
        device=given.device,
        configuration=given.configuration,
    )
    study.prepare()
    return study


class Rows:
    """Results as they come, one JSON line each, and a table of means over seeds at the end."""

    def __init__(self, study: Study, name: str) -> None:
        seeds = "".join(str(seed) for seed in study.seeds)
        self.path = study.work / f"{name}-seeds{seeds}.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.path.unlink(missing_ok=True)

    def add(self, what: str, seed: int, dice: dict[str, dict[str, float]]) -> None:
        """Keeps and prints one: column -> label -> Dice."""
        row = {"what": what, "seed": seed, "dice": dice, "cores": len(os.sched_getaffinity(0))}
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(what, f"seed {seed}", {k: round(v["liver"], 3) for k, v in dice.items()}, flush=True)

    def show(self) -> None:
        """Means over seeds, and the spread of the liver's."""
        columns = list(dict.fromkeys(c for row in self.rows for c in row["dice"]))
        print("\n| | " + " | ".join(f"{c}: liver | {c}: mean of 4" for c in columns) + " | seeds |")
        print("|---|" + "---|" * (2 * len(columns) + 1))
        for what in dict.fromkeys(row["what"] for row in self.rows):
            rows = [row for row in self.rows if row["what"] == what]
            cells = []
            for column in columns:
                liver = [r["dice"][column]["liver"] for r in rows if column in r["dice"]]
                mean = [r["dice"][column]["mean"] for r in rows if column in r["dice"]]
                spread = f" ({min(liver):.2f}-{max(liver):.2f})" if len(liver) > 1 else ""
                cells += [f"{np.mean(liver):.3f}{spread}" if liver else "-"]
                cells += [f"{np.mean(mean):.3f}" if mean else "-"]
            print(f"| {what} | " + " | ".join(cells) + f" | {len(rows)} |")


def all_cases(folder: Path) -> list[str]:
    """Every case that has a label map."""
    return sorted(path.name.split(".")[0] for path in (folder / "labelsTr").iterdir())


def train_cases(folder: Path) -> list[str]:
    """The cases that may be learnt from."""
    names, every = all_cases(folder), HELD_BACK[folder.name]
    return [name for i, name in enumerate(names) if i % every != every - 1]


def test_cases(folder: Path) -> list[str]:
    """The cases held back."""
    return sorted(set(all_cases(folder)) - set(train_cases(folder)))


def table(source: Path, target: Path, cases: Iterable[str]) -> None:
    """A dataset of some cases of another, by path."""
    description = json.loads((source / "dataset.json").read_text())
    ending = description["file_ending"]
    description["dataset"] = {
        case: {
            "images": [str(source / "imagesTr" / f"{case}_0000{ending}")],
            "label": str(source / "labelsTr" / f"{case}{ending}"),
        }
        for case in cases
    }
    description["numTraining"] = len(description["dataset"])
    text = json.dumps(description, indent=1)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "dataset.json"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def link(file: Path, folder: Path) -> None:
    """The file in another folder, by link."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / file.name).exists():
        (folder / file.name).symlink_to(file)
