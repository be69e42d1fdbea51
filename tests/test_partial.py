"""A dataset in which half of the cases lack a label, from the plan to the scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run, told

from autoliver.datasets.cases import read_dataset
from autoliver.errors import ModelError, OptionError
from autoliver.evaluation.results import Scores
from autoliver.io.files import read_label, write_label
from autoliver.models.files import FoldFolder, FoldModel
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.progress import read_progress

NAME = "Dataset007_Half"
SHORT = ("--epochs", "1", "--iterations", "2", "--device", "cpu", "--workers", "1")
STRIPPED = ("Half_000", "Half_002")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantoms, two of them without their tumours, and a workspace with a trained fold."""
    place = tmp_path_factory.mktemp("half")
    options = PhantomOptions(
        contrast="CT", shape_zyx=(12, 32, 32), spacing_mm=(10.0, 8.0, 8.0), lesions=(2, 3)
    )
    write_phantom_dataset(place, name=NAME, cases=5, seed=1, options=options)
    folder = place / NAME
    for case in read_dataset(folder).cases:
        if case.name in STRIPPED:
            label = read_label(Path(str(case.label)))
            stripped = np.where(label.array[0] == 2, 1, label.array[0])
            write_label(Path(str(case.label)), stripped, label.geometry)
    raw = json.loads((folder / "dataset.json").read_text())
    raw["labels"]["liver"], raw["regions_class_order"] = [1, 2], [1, 2, 3, 4, 5]
    raw["annotated"] = {name: {"tumour": "none"} for name in STRIPPED}
    raw["origin"] = {"Half_004": "synthetic"}
    (folder / "dataset.json").write_text(json.dumps(raw))
    run("plan", folder, "--preset", "tiny", "-w", place / "workspace")
    run("train", NAME, "2d", "--fold", "0", *SHORT, "-w", place / "workspace")
    return place


def test_the_labels_of_half_the_cases_are_learnt_and_scored(place: Path, tmp_path: Path) -> None:
    workspace = place / "workspace"
    folds = json.loads((workspace / NAME / "folds.json").read_text())["splits"]
    assert [fold["validation"] for fold in folds] == [[f"Half_00{n}"] for n in range(4)]
    assert all("Half_004" in fold["train"] for fold in folds)
    [fold] = (workspace / NAME / "runs" / "2d").glob("fold*0")
    scores = Scores.load(FoldFolder(fold).scores)
    assert "tumour" not in scores.cases[0].labels
    assert "liver" in scores.cases[0].labels
    assert scores.summary["tumour"].cases == 0
    out = tmp_path / "out"
    images = place / NAME / "imagesTr"
    run("predict", "-i", images, "-o", out, "-m", NAME, "--device", "cpu", "-w", workspace)
    run("evaluate", "-p", out, "-r", place / NAME / "labelsTr", "-d", NAME, "-w", workspace)
    scores = Scores.load(out / "scores.json")
    assert {c.name for c in scores.cases if "tumour" not in c.labels} == set(STRIPPED)
    assert scores.summary["tumour"].cases == 3


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_unknown_tumours_are_learnt_as_absent_far_from_the_liver(
    configuration: str, place: Path, tmp_path: Path
) -> None:
    workspace = shutil.copytree(place / "workspace", tmp_path / "workspace")
    words = ("train", NAME, configuration, "--fold", "1", *SHORT, "-w", workspace)
    losses = {}
    for tag, more in (("plain", ()), ("far", ("--outside-negative", 10))):
        said = " ".join(told(*words, "--tag", tag, *more).split())
        expected = "In 2 cases of Half tumour is learnt as absent further than 10 mm from liver."
        assert (expected in said) == bool(more)
        folder = workspace / NAME / f"runs/{configuration}+{tag}/fold_1"
        model = FoldModel.load(folder / "model.json")
        assert model.outside_negative == (10.0 if more else None)
        losses[tag] = read_progress(folder / "progress.jsonl")[0].train_loss
    assert losses["plain"] != losses["far"]
    with pytest.raises(OptionError, match="was started with --outside-negative 10"):
        run(*words, "--tag", "far", "--outside-negative", 12)
    run(*words, "--tag", "far")  # keeps it, and is finished


def test_outside_of_what_nobody_knows(place: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    words = ("2d", "--fold", "0", *SHORT, "--preset", "tiny", "-w", workspace)
    raw = json.loads((place / NAME / "dataset.json").read_text())
    single = {"labels": raw["labels"] | {"liver": 1}}
    no_liver = {name: {"tumour": "none", "liver": "none"} for name in STRIPPED}
    wrong: dict[str, tuple[dict[str, object], float, str]] = {
        "Whole": ({"annotated": {}}, 10, "every label of .*Whole is annotated in every case"),
        "Single": (single, 10, r"tumour is not annotated in Half_000, and lies in no label"),
        "Neither": ({"annotated": no_liver}, 10, "lies in no label that is"),
        "Negative": (
            {},
            -1,
            "--outside-negative is -1.0; it must be a finite number",
        ),
    }
    for name, (changes, distance, problem) in wrong.items():
        folder = tmp_path / name
        folder.mkdir()
        for part in ("imagesTr", "labelsTr"):
            (folder / part).symlink_to(place / NAME / part)
        (folder / "dataset.json").write_text(json.dumps(raw | changes))
        with pytest.raises(OptionError, match=problem):
            run("train", folder, *words, "--outside-negative", distance)
        assert not list(workspace.glob(f"{name}/runs/*/fold_*"))


@pytest.mark.parametrize("unknown", ["tumour", "all", "none"])
def test_replayed_cases_may_be_those_with_unknown_labels(
    unknown: str, place: Path, tmp_path: Path
) -> None:
    """The training's own cases know everything; what is replayed knows less."""
    raw = json.loads((place / NAME / "dataset.json").read_text())
    states = {"tumour": ["tumour"], "all": ["tumour", "liver"], "none": []}[unknown]
    annotated = {name: dict.fromkeys(states, "none") for name in STRIPPED if states}
    for name, known in (("Dataset008_Own", {}), ("Dataset009_Old", annotated)):
        (tmp_path / name).mkdir()
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / name / part).symlink_to(place / NAME / part)
        (tmp_path / name / "dataset.json").write_text(json.dumps(raw | {"annotated": known}))
    workspace = tmp_path / "workspace"
    run("plan", tmp_path / "Dataset009_Old", "--preset", "tiny", "-w", workspace)
    words = ("train", tmp_path / "Dataset008_Own", "2d", "--fold", "0", *SHORT, "--preset", "tiny")
    words += ("--replay", "Old", "--outside-negative", 10, "-w", workspace)
    if unknown == "tumour":
        said = " ".join(told(*words).split())
        assert "In 2 cases of Old tumour is learnt as absent further than 10 mm from liver." in said
        assert "of Own tumour is learnt as absent" not in said
        return
    problem = {
        "all": r"liver is not annotated in Old/Half_000, and lies in no label",
        "none": r"every label of Dataset008_Own and Dataset009_Old is annotated",
    }[unknown]
    with pytest.raises(OptionError, match=problem):
        run(*words)


def test_single_values_become_regions_too(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    raw = json.loads((place / NAME / "dataset.json").read_text())
    raw["labels"]["liver"] = 1
    del raw["regions_class_order"]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).symlink_to(place / NAME / part)
    (folder / "dataset.json").write_text(json.dumps(raw))
    workspace = tmp_path / "workspace"
    run("plan", folder, "--preset", "tiny", "-w", workspace)
    plan = Plan.load(workspace / NAME / "plan.json")
    assert plan.labels.regions_class_order == (1, 2, 3, 4, 5)
    assert plan.reasons["labels"].startswith("Independent of each other (sigmoid)")
    assert plan.configurations["2d"].network.out_channels == 5
    run("train", NAME, "2d", "--fold", "1", *SHORT, "-w", workspace)
    out = tmp_path / "out"
    run("predict", "-i", folder / "imagesTr", "-o", out, "--device", "cpu", "-w", workspace)
    values = {int(v) for path in out.glob("*.nii.gz") for v in np.unique(read_label(path).array)}
    assert values <= {0, 1, 2, 3, 4, 5}
    with pytest.raises(ModelError, match="independent of each other"):
        run("export", NAME, tmp_path / "model", "--format", "nnunet", "-w", workspace)


def test_a_softmax_replays_only_cases_with_all_labels(place: Path, tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 32, 32), spacing_mm=(10.0, 8.0, 8.0))
    write_phantom_dataset(tmp_path, name="Dataset008_Whole", cases=3, seed=2, options=options)
    workspace = shutil.copytree(place / "workspace", tmp_path / "workspace")
    words = ("2d", "--fold", "0", *SHORT, "--replay", NAME, "--preset", "tiny", "-w", workspace)
    said = " ".join(told("train", tmp_path / "Dataset008_Whole", *words).split())
    assert "Not replayed: 2 cases in which not all of these labels are annotated" in said
    plan = Plan.load(workspace / "Dataset008_Whole" / "plan.json")
    assert not plan.labels.has_regions
