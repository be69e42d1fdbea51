"""One network for CT and MR from mixed labels: five rows of the paper's experiment, on phantoms.

    python -m benchmarks.mixed WORK [--seeds 0 1 2] [--steps 600]

Of each modality some cases have liver and tumours drawn, and more have tumours alone. The rows are
a network of each modality, one of both without a liver channel, with the real livers alone, and
with livers that a model of the first cases has given the others. Test cases are never trained on.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import autoliver
from autoliver.datasets.cases import Labels
from autoliver.evaluation.results import MetricOptions
from autoliver.evaluation.score import score_case
from autoliver.io.files import read_label, write_label
from autoliver.synthesis.phantom import Contrast, PhantomOptions, write_phantom_dataset

_SHAPE, _SPACING = (24, 64, 64), (6.0, 5.0, 5.0)
_CONTRASTS: dict[str, Contrast] = {"CT": "CT", "MR": "T2"}
_BOTH, _TUMOURS, _TESTS = 4, 6, 6
_LESIONS = (2, 5)
_LABELS = Labels(
    values={"background": (0,), "liver": (1, 2), "tumour": (2,)}, regions_class_order=(1, 2)
)
_METRICS = ("dice", "hd95_mm", "assd_mm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    results = given.work / "mixed.jsonl"
    done = {tuple(json.loads(line)["key"]) for line in _lines(results)}
    for seed in given.seeds:
        study = Study(given.work / f"seed{seed}", seed, given.steps, given.device)
        for row in ("CT alone", "MR alone", "no liver", "real liver", "pseudo liver"):
            if (row, seed) not in done:
                found = {"key": [row, seed], "steps": given.steps, "scores": study.row(row)}
                with results.open("a") as file:
                    file.write(json.dumps(found) + "\n")
    show([json.loads(line) for line in _lines(results)])


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


class Study:
    """The data and the trainings of one seed."""

    def __init__(self, work: Path, seed: int, steps: int, device: str) -> None:
        self.work, self.seed, self.steps, self.device = work, seed, steps, device
        self.data, self.workspace = work / "data", work / "workspace"
        for number, modality in enumerate(_CONTRASTS):
            self._write(f"Dataset00{2 * number + 1}_{modality}Both", modality, _BOTH, seed=number)
            self._write(f"Dataset00{2 * number + 2}_{modality}Tumours", modality, _TUMOURS,
                        seed=number + 10)  # fmt: skip

    def _write(self, name: str, modality: str, cases: int, *, seed: int) -> None:
        """Writes phantoms with the labels that are drawn in them."""
        if (self.data / name / "dataset.json").exists():
            return
        tests = _TESTS if name.endswith("Both") else 0
        options = PhantomOptions(
            contrast=_CONTRASTS[modality],
            shape_zyx=_SHAPE,
            spacing_mm=_SPACING,
            lesions=_LESIONS,
            bias=0.1,
        )
        folder = write_phantom_dataset(
            self.data, name=name, cases=cases, seed=100 * self.seed + seed, options=options,
            test_cases=tests,
        )  # fmt: skip
        file = folder / "dataset.json"
        description = json.loads(file.read_text())
        all_labels = description["labels"]
        drawn = ("liver", "tumour") if tests else ("tumour",)
        for part in ("labelsTr", "labelsTs"):
            for path in sorted((folder / part).glob("*.nii.gz")):
                label = read_label(path)
                kept = drawn if part == "labelsTr" else ("liver", "tumour")
                array = np.zeros(label.array.shape[1:], np.uint8)
                for value, each in enumerate(kept, 1):
                    array[label.array[0] == all_labels[each]] = value
                write_label(path, array, label.geometry)
        numbered = {each: value for value, each in enumerate(drawn, 1)}
        file.write_text(json.dumps(description | {"labels": {"background": 0, **numbered}}))

    def row(self, name: str) -> dict[str, Any]:
        """Trains a row and scores it: modality -> label -> means over the test cases."""
        kinds = [name.split()[0]] if name.endswith("alone") else list(_CONTRASTS)
        adds = []
        for kind in kinds:
            both, tumours = self.data / self._named(f"{kind}Both"), self._named(f"{kind}Tumours")
            if name == "no liver":
                adds += [f"{both}:liver=drop,tumour=real", f"{self.data / tumours}"]
            elif name == "pseudo liver":
                adds += [str(both), f"{self._pseudo(kind)}:liver=pseudo,tumour=real"]
            else:
                adds += [str(both), str(self.data / tumours)]
        pool = self.work / "pools" / name.replace(" ", "_")
        if not pool.exists():
            autoliver.pool(pool, adds, workspace=self.workspace)
        self._train(pool)
        return {kind: self._scores(pool.name, kind, tumour_alone=name == "no liver")
                for kind in kinds}  # fmt: skip

    def _named(self, short: str) -> str:
        return next(path.name for path in self.data.iterdir() if path.name.endswith(f"_{short}"))

    def _pseudo(self, kind: str) -> Path:
        """The cases with tumours alone, with livers of a network of the others."""
        both, output = self._named(f"{kind}Both"), self.work / "pseudo" / f"{kind}Pseudo"
        if not (output / "dataset.json").exists():
            self._train(self.data / both)
            autoliver.pseudolabel(
                self.data / self._named(f"{kind}Tumours"),
                output,
                model=both,
                labels=["liver"],
                volume=(50, 10_000),
                min_confidence=0.6,
                workspace=self.workspace,
                device=self.device,
            )
        return output

    def _train(self, dataset: Path) -> None:
        name = dataset.name
        if (self.workspace / name / "runs/2d/fold_all/model.json").exists():
            return
        autoliver.plan(dataset, preset="tiny", workspace=self.workspace)
        autoliver.train(
            name,
            "2d",
            folds="all",
            epochs=6,
            iterations=self.steps // 6,
            seed=self.seed,
            foreground=0.5,
            workspace=self.workspace,
            device=self.device,
        )

    def _scores(self, model: str, kind: str, *, tumour_alone: bool) -> dict[str, dict[str, float]]:
        source = self.data / self._named(f"{kind}Both")
        output = self.work / "predictions" / f"{model} {kind}"
        autoliver.predict(
            source / "imagesTs", output, models=[model], modality=kind, workspace=self.workspace,
            device=self.device,
        )  # fmt: skip
        rows: dict[str, list[Mapping[str, float | None]]] = {"liver": [], "tumour": []}
        for truth in sorted((source / "labelsTs").glob("*.nii.gz")):
            predicted, reference = read_label(output / truth.name), read_label(truth)
            if tumour_alone:  # its only label has the value 1
                predicted.array[predicted.array == 1] = 2
            found = score_case(
                predicted, reference, labels=_LABELS, options=MetricOptions(), name=truth.name
            )
            for label in rows:
                score = found.labels[label]
                values: dict[str, float | None] = {n: getattr(score, n) for n in _METRICS}
                lesions = score.lesions
                if lesions is not None:
                    values |= {"recall": lesions.recall, "precision": lesions.precision}
                rows[label].append(values)
        return {label: _means(each) for label, each in rows.items()
                if label == "tumour" or not tumour_alone}  # fmt: skip


def _means(rows: list[Mapping[str, float | None]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    known = {
        n: [v for row in rows if (v := row.get(n)) is not None and np.isfinite(v)] for n in names
    }
    return {name: float(np.mean(values)) for name, values in known.items() if values}


def show(rows: list[dict[str, Any]]) -> None:
    """A table of means over seeds, with the lowest and the highest of the Dice."""
    columns = [("liver", n) for n in _METRICS] + [
        ("tumour", n) for n in (*_METRICS, "recall", "precision")
    ]
    print("| row | test | seeds | " + " | ".join(f"{a} {b}" for a, b in columns) + " |")
    print("|---" * (3 + len(columns)) + "|")
    for name in dict.fromkeys(row["key"][0] for row in rows):
        own = [row for row in rows if row["key"][0] == name]
        for kind in own[0]["scores"]:
            cells = []
            for label, metric in columns:
                values = [
                    row["scores"][kind][label][metric]
                    for row in own
                    if metric in row["scores"][kind].get(label, {})
                ]
                spread = (
                    f" ({min(values):.3f}-{max(values):.3f})" if values and metric == "dice" else ""
                )
                cells.append(f"{np.mean(values):.3f}{spread}" if values else "-")
            print(f"| {name} | {kind} | {len(own)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
