"""Shows that two checkouts of autoliver give the same plans, losses, weights and label maps.

    git worktree add ../before COMMIT
    python -m benchmarks.parity.revisions ../before [--shared DIR]

Each checkout works through its own commands on a few real cases: plans with three presets,
preprocessing, five short trainings (2D and 3D, plain and transferred, several losses and
augmentations), prediction, export and import, nnU-Net there and back, evaluation. Every difference
is printed; exit code 1 where there is one. It takes about three minutes a side on two cores. Where
one side has no `predict --exact`, label maps may differ in a few voxels, since how the network runs
is then chosen by timing.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

_SHARED = Path(__file__).parents[3] / "shared"
# Dataset -> how many of its cases are used.
_CASES = {
    "Dataset004_Hippocampus": 8,
    "Dataset102_AbdomenMR": 4,
    "Dataset103_LiverTumourCT": 4,
    "Dataset104_BrainMR4": 1,
}
_HIPPOCAMPUS, _MR, _CT, _BRAIN = _CASES
# What differs by time, or by how a plan was asked for rather than by what it decides.
_NOT_COMPARED = {"made_from", "autoliver", "asked", "seconds", "data_wait"}
# Dataset, run, fold and options of each training.
_TRAININGS: tuple[tuple[str, str, str, tuple[object, ...]], ...] = (
    (_HIPPOCAMPUS, "3d_fullres", "0", ()),
    (_MR, "2d", "0", ()),
    (_MR, "2d+x", "0", ("--augment", "cross-modality", "--loss", "dice-topk", "--tag", "x")),
    (
        *(_BRAIN, "2d+g", "all"),
        ("--schedule", "nnunet", "--augment", "gin-ipa", "--batch-size", 2, "--tag", "g"),
    ),
    (
        *(_CT, "2d@AbdomenMR", "all"),
        ("--pretrained", "AbdomenMR/2d/fold_0", "--freeze", "encoder:2", "--encoder-factor", 0.5),
    ),
)


class Side:
    """One checkout and the folder that it works in."""

    def __init__(self, checkout: Path, folder: Path, shared: Path) -> None:
        self.checkout, self.folder, self.shared = checkout, folder, shared / "data"
        self.workspace = folder / "workspace"
        self.options: tuple[str, ...] = ()  # of predict

    def run(self, *words: object) -> str:
        """A command's output."""
        place = {"PYTHONPATH": str(self.checkout), "PYTHONSAFEPATH": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "autoliver", *map(str, words), "-w", str(self.workspace)],
            env={**os.environ, **place},  # noqa: TID251
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{self.checkout}: {' '.join(map(str, words))}:\n{done.stderr}")
        return done.stdout

    def results(self) -> Iterator[tuple[str, Any]]:
        """Everything that is compared, under names."""
        for name, number in _CASES.items():
            _few(self.shared / name, self.folder / name, number)
            for preset in ("default", "L", "tiny"):
                self.run("plan", self.folder / name, "--preset", preset)
                plan = json.loads((self.workspace / name / "plan.json").read_text())
                yield f"plan of {name}, {preset}", _reduced(plan)
        for name, run, fold, options in _TRAININGS:
            short = ("--epochs", 2, "--iterations", 3)
            kind = run.partition("+")[0].partition("@")[0]
            self.run("train", name, kind, "--fold", fold, *short, *options)
            yield f"{name} {run}", _trained(self.workspace / name / "runs" / run / f"fold_{fold}")
        for name in _CASES:
            yield f"store of {name}", _stored(self.workspace / name / "store")
        yield from self._models()

    def _models(self) -> Iterator[tuple[str, Any]]:
        model, images = f"{_CT}/2d@AbdomenMR", self.shared / "unlabelled"
        file, results = self.folder / "model.autoliver", self.folder / "nnunet"
        self.run("export", model, file)
        self.run("import", file, "--name", "Again")
        for one in (model, "Again"):
            output = self.folder / f"by {one.replace('/', ' ')}"
            self.run("predict", "-i", images, "-o", output, "-m", one, *self.options)
            yield f"label maps by {one}", _label_maps(output)
        self.run("export", f"{_HIPPOCAMPUS}/3d_fullres", results, "--format", "nnunet")
        yield "plans for nnU-Net", json.loads(next(results.rglob("plans.json")).read_text())
        path = next(results.rglob("checkpoint_final.pth"))
        weights = torch.load(path, "cpu", weights_only=False)["network_weights"]
        yield "weights for nnU-Net", _digest({name: w.numpy() for name, w in weights.items()})
        self.run("import", next(results.iterdir()), "--name", "Back")
        back = next((self.workspace / "models/Back").rglob("weights.safetensors"))
        yield "weights of nnU-Net", _digest(load_file(back))


def _few(source: Path, target: Path, number: int) -> None:
    """Copies the first cases of a dataset."""
    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True)
    labels = sorted((source / "labelsTr").glob("*.nii.gz"))[:number]
    for label in labels:
        shutil.copy2(label, target / "labelsTr")
        for image in (source / "imagesTr").glob(label.name.removesuffix(".nii.gz") + "*"):
            shutil.copy2(image, target / "imagesTr")
    head = json.loads((source / "dataset.json").read_text())
    if "training" in head:
        kept = {label.name for label in labels}
        head["training"] = [e for e in head["training"] if Path(e["label"]).name in kept]
    (target / "dataset.json").write_text(json.dumps({**head, "numTraining": len(labels)}))


def _reduced(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _NOT_COMPARED}


def _digest(arrays: dict[str, npt.NDArray[Any]]) -> str:
    content = hashlib.sha256()
    for name in sorted(arrays):
        content.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return content.hexdigest()[:16]


def _label_maps(folder: Path) -> dict[str, str]:
    found = {path.name: nibabel.load(path).dataobj for path in folder.glob("*.nii.gz")}
    return {name: _digest({"": np.asarray(each).astype(np.int32)}) for name, each in found.items()}


def _stored(store: Path) -> dict[str, str]:
    # Earlier revisions name the image <case>.b2nd and the label map <case>_label.b2nd.
    arrays = {
        path.name.replace(".image.", ".").replace(".label.", "_label."): blosc2.open(str(path))[:]
        for path in store.glob("*/*.b2nd")
    }
    return {name: _digest({"": array}) for name, array in arrays.items()}


def _trained(fold: Path) -> dict[str, Any]:
    logs = (fold / "progress.jsonl").read_text().splitlines()
    return {
        "epochs": [_reduced(json.loads(line)) for line in logs],
        "weights": _digest(load_file(fold / "weights.safetensors")),
        "held out": _label_maps(fold / "validation"),
        "scores": _scores(fold / "validation/scores.json"),
    }


def _scores(path: Path) -> Any:
    if not path.exists():
        return None
    return {case["name"]: case["labels"] for case in json.loads(path.read_text())["cases"]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--shared", type=Path, default=_SHARED, help="real data")
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before.resolve(), "now": Path(__file__).parents[2]}
    with tempfile.TemporaryDirectory(prefix="revisions-") as folder:
        sides = {
            name: Side(checkout, Path(folder) / name, arguments.shared)
            for name, checkout in checkouts.items()
        }
        if all("--exact" in side.run("predict", "--help") for side in sides.values()):
            for side in sides.values():
                side.options = ("--exact",)
        found = {name: dict(side.results()) for name, side in sides.items()}
    different = [what for what, value in found["before"].items() if found["now"][what] != value]
    for what, value in found["before"].items():
        print(f"{'DIFFERS' if what in different else 'equal':8} {what}")
        if what in different:
            print(f"  before: {value}\n  now:    {found['now'][what]}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
