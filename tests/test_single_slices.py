"""Datasets of single slices, as ultrasound and pictures are, through every command."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from commands import run

from autoliver.datasets.cases import read_dataset
from autoliver.evaluation.metrics import volume_ml
from autoliver.evaluation.results import Scores
from autoliver.io.files import read_image, read_label

NAME = "Dataset001_Discs"
SHAPE = (40, 48)


def write_pictures(folder: Path, numbers: range, *, end: str = "_0000") -> None:
    """Discs with a core, as 8-bit PNG: images, and label maps in a folder beside them."""
    images, labels = folder, folder.with_name(folder.name.replace("images", "labels"))
    for each in (images, labels):
        each.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        rng = np.random.default_rng(number)
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        away = (y - rng.integers(14, 26)) ** 2 + (x - rng.integers(16, 30)) ** 2
        label = (away < 120).astype(np.uint8) + (away < 30)
        image = np.clip(60 * label + 60 + rng.normal(0, 12, SHAPE), 0, 255).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(images / f"c{number}{end}.png"))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(labels / f"c{number}.png"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of five pictures with three whose cores are drawn alone, a model, new pictures."""
    place = tmp_path_factory.mktemp("slices")
    write_pictures(place / NAME / "imagesTr", range(5))
    write_pictures(place / "images_new", range(10, 12), end="")
    description = {
        "channel_names": {"0": "ultrasound"},
        "labels": {"background": 0, "disc": 1, "core": 2},
        "numTraining": 5,
        "file_ending": ".png",
    }
    (place / NAME / "dataset.json").write_text(json.dumps(description))
    work = ("-w", place / "ws")
    run("verify", place / NAME, *work)
    run("plan", place / NAME, "--preset", "tiny", *work)
    run("train", NAME, "2d", "--epochs", 2, "--iterations", 15, *work)
    run("select", NAME, *work)
    return place


def test_pictures_are_predicted_scored_and_become_a_dataset(place: Path) -> None:
    work, new, out = ("-w", place / "ws"), place / "images_new", place / "out"
    assert list(json.loads((place / "ws" / NAME / "plan.json").read_text())["configurations"]) == [
        "2d"
    ]
    run("predict", "-i", new, "-o", out, "-m", NAME, "--uncertainty", *work)
    assert {path.name for path in out.glob("*.png")} == {"c10.png", "c11.png"}
    undecided = read_image([out / "c10_uncertainty.tif"]).array
    assert undecided.shape == (1, 1, *SHAPE)
    assert 0.0 <= undecided.min() < 0.5 < undecided.max() <= 1.0
    assert read_label(out / "c10.png").array.shape == (1, 1, *SHAPE)
    run("evaluate", "-p", out, "-r", place / "labels_new", "-d", NAME, *work)
    scores = Scores.load(out / "scores.json")
    assert scores.summary["disc"].metrics["dice"].mean > 0.2
    assert scores.summary["disc"].metrics["mad_mm"].mean > 0.0
    assert "volume_ml" not in scores.summary["disc"].metrics
    run("export", NAME, place / "discs.autoliver", *work)
    run("import", place / "discs.autoliver", "--name", "Discs", "-w", place / "other")
    run("predict", "-i", new, "-o", place / "again", "-m", "Discs", "-w", place / "other")
    for name in ("c10.png", "c11.png"):
        assert np.array_equal(
            read_label(out / name).array, read_label(place / "again" / name).array
        )
    run("adopt", "-i", new, "-p", out, place / "Dataset002_New", *work)
    assert len(read_dataset(place / "Dataset002_New").labelled) == 2
    run("pool", place / "Both", "--add", NAME, "--add", place / "Dataset002_New", *work)
    run("plan", place / "Both", "--preset", "tiny", *work)
    short = ("--fold", 0, "--epochs", 1, "--iterations", 2, "--pretrained", NAME)
    run("train", "Both", "2d", *short, "--schedule", "omnia", "--loss", "dice-bce", *work)
    assert (place / "ws/Both/runs/2d@Discs/fold_0/weights.safetensors").is_file()
    run("clean", NAME, *work)


def test_pictures_have_no_volume_by_which_a_pseudo_label_could_be_refused(place: Path) -> None:
    work, part = ("-w", place / "ws"), place / "Dataset003_Part"
    write_pictures(part / "imagesTr", range(20, 24))
    description = json.loads((place / NAME / "dataset.json").read_text())
    states = {f"c{number}": {"disc": "none"} for number in range(20, 23)}
    (part / "dataset.json").write_text(json.dumps({**description, "annotated": states}))
    given = ("--label", "disc", "--min-confidence", 0.1, "--max-outside", 1)
    done = run("pseudolabel", part, place / "Labelled", "-m", NAME, *given, *work)
    assert "ml, expected" not in json.dumps(done)
    rows = (place / "Labelled/pseudolabels.csv").read_text().splitlines()
    assert len([row for row in rows if ",disc,," in row and ",True," in row]) == 3
    assert len(read_dataset(place / "Labelled").cases) == 4
    run("plan", place / "Labelled", "--preset", "tiny", *work)


def test_a_picture_has_no_volume_and_a_thin_slice_has_one() -> None:
    mask = np.ones((1, 10, 10), dtype=bool)
    assert np.isnan(volume_ml(mask, (999.0, 1.0, 1.0)))
    assert np.isnan(volume_ml(mask, (499.5, 0.3, 0.5)))
    assert volume_ml(mask, (5.0, 1.0, 1.0)) == pytest.approx(0.5)
