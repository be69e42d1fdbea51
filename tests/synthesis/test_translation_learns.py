"""What translations learn on phantoms within minutes: thresholds of METHODS, C3 (slow)."""

import json
from pathlib import Path

import numpy as np
import pytest

import autoliver
from autoliver.io.files import read_label
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

CT, MR, JUDGE = "Dataset931_CT", "Dataset932_MR", "Dataset933_Judge"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 slices of CT, as many of T2 of other patients, and a judge that has learnt T2."""
    root = tmp_path_factory.mktemp("learns")
    for seed, (name, contrast, cases) in enumerate(
        ((CT, "CT", 5), (MR, "T2", 5), (JUDGE, "T2", 8))
    ):
        options = PhantomOptions(
            contrast=contrast, shape_zyx=(12, 64, 64), spacing_mm=(5.0, 2.0, 2.0), lesions=(0, 0)
        )
        write_phantom_dataset(root, name=name, cases=cases, seed=seed, options=(options,))
        autoliver.plan(root / name, preset="tiny", workspace=root / "ws")
    autoliver.train(
        root / JUDGE, "2d", folds="all", workspace=root / "ws", epochs=10, iterations=60, lr=0.01
    )
    return root


def judge(root: Path) -> str:
    return str(root / "ws" / JUDGE / "runs/2d")


def liver_dice(reference: Path, predicted: Path) -> float:
    """Mean Dice of the liver."""
    found = []
    for path in sorted((reference / "labelsTr").iterdir()):
        one, other = (read_label(each).array == 1 for each in (path, predicted / path.name))
        found.append(2 * (one & other).sum() / (one.sum() + other.sum()))
    return float(np.mean(found))


def predicted(root: Path, name: str, model: str) -> float:
    """How well a model of MR finds the liver in the images of a dataset, whatever they are."""
    out = root / f"{name} by {Path(model).parent.name}"
    images = root / name / "imagesTr"
    if not out.exists():
        autoliver.predict(images, out, models=(model,), modality="MR", workspace=root / "ws")
    return liver_dice(root / name, out)


def learnt(root: Path, model: str) -> tuple[dict, dict, float]:
    """Losses of the first and the last epoch, and the fidelity of the liver, by the judge."""
    folder = autoliver.synthesize_fit(
        *("CT", "MR", model),
        workspace=root / "ws",
        model=model,
        **{"features": 12, "blocks": 3, "epochs": 20, "iterations": 20, "lr": 8e-4},
        decay_start=20,
    )
    lines = (folder / "progress.jsonl").read_text().splitlines()
    first, last = (json.loads(lines[n])["losses"] for n in (0, -1))
    done = autoliver.synthesize_apply(
        model, root / f"Out {model}", workspace=root / "ws", judge=judge(root), qc_min_dice=0.0
    )
    return first, last, float(np.mean([each.dice["liver"] for each in done.cases]))


def test_essnet_keeps_the_liver_and_finds_it_in_real_mr(place):
    raw = predicted(place, CT, judge(place))
    first, last, fidelity = learnt(place, "essnet")
    assert last["cycle"] <= 0.4 * first["cycle"]
    assert last["segmentation"] < first["segmentation"] - 0.5
    assert fidelity >= raw + 0.08
    assert fidelity >= 0.6
    assert predicted(place, MR, str(place / "ws/synthesis/essnet/segmentor/2d")) >= 0.6


def test_cut_keeps_the_liver_without_labels(place):
    raw = predicted(place, CT, judge(place))
    first, last, fidelity = learnt(place, "cut")
    assert last["contrast"] <= 0.7 * first["contrast"]  # places of air cannot be told apart
    assert last["identity"] <= 0.5 * first["identity"]
    assert fidelity >= raw + 0.08
    assert fidelity >= 0.7
