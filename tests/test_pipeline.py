"""From a folder of scans to scored predictions, through the commands a user types."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import run
from safetensors.numpy import load_file

import autoliver
from autoliver.errors import ArtifactError, AutoliverError, DatasetError, ModelError, OptionError
from autoliver.io.files import read_image, read_label, write_image
from autoliver.io.grids import compare_grids
from autoliver.models.files import FoldModel
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.progress import read_progress

NAME = "Dataset001_Phantom"
SHORT = ("--epochs", "2", "--iterations", "3")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small CT phantoms to train on and two to test on, oblique and anisotropic."""
    options = PhantomOptions(contrast="CT", shape_zyx=(20, 40, 40), spacing_mm=(6.0, 5.0, 5.0))
    return write_phantom_dataset(
        tmp_path_factory.mktemp("data"), name=NAME, cases=6, seed=1, options=options, test_cases=2
    )


@pytest.fixture(scope="session")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two trained folds of 3d_fullres."""
    workspace = tmp_path_factory.mktemp("workspace")
    run("plan", phantoms, "--preset", "tiny", "-w", workspace)
    for fold in (0, 1):
        run("train", NAME, "3d_fullres", "--fold", fold, *SHORT, "-w", workspace)
    return workspace


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy of that workspace to change."""
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


def test_every_artefact_is_where_it_should_be(trained: Path) -> None:
    folder = trained / NAME
    for name in ("dataset", "verify", "fingerprint", "folds", "plan"):
        artefact = json.loads((folder / f"{name}.json").read_text())
        assert list(artefact)[:4] == ["kind", "schema", "autoliver", "made_from"]
    fold = folder / "runs/3d_fullres/fold_0"
    assert (fold / "progress.png").stat().st_size > 10_000
    assert (fold / "validation/scores.json").exists()
    assert len(read_progress(fold / "progress.jsonl")) == 2
    model = FoldModel.load(fold / "model.json")
    assert model.epochs == 2
    assert len(model.cases) == 4
    assert not list(trained.rglob("*.partial.*"))


def test_the_same_train_command_again_does_nothing(trained: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (trained / NAME / "runs").rglob("*") if p.is_file()}
    result = run("train", "Phantom", "3d_fullres", "--fold", 0, *SHORT, "-w", trained)
    after = {p: p.stat().st_mtime_ns for p in (trained / NAME / "runs").rglob("*") if p.is_file()}
    assert before == after
    assert result["folds"][0]["dice"] is not None  # type: ignore[index]


def test_predictions_lie_on_the_input_grid_and_are_scored(
    trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    done = run("predict", "-i", phantoms / "imagesTs", "-o", tmp_path / "out", "-w", trained)
    assert (done["predicted"], done["skipped"]) == (2, 0)
    for file in (phantoms / "imagesTs").iterdir():
        image = read_image([file])
        label = read_label(tmp_path / "out" / file.name.replace("_0000", ""))
        assert all(
            difference.rounding for difference in compare_grids(label.geometry, image.geometry)
        )
        assert set(np.unique(label.array)) <= set(range(6))
    scores = run(
        "evaluate", "-p", tmp_path / "out", "-r", phantoms / "labelsTs", "-d", NAME, "-w", trained
    )
    assert set(scores["summary"]) == {  # type: ignore[call-overload]
        "liver",
        "tumour",
        "spleen",
        "right_kidney",
        "left_kidney",
    }
    assert (tmp_path / "out/scores.csv").read_text().count("\n") == 1 + 2 * 5


def test_a_region_is_looked_for_with_the_run_beside_or_with_any_model(
    phantoms: Path, own: Path, tmp_path: Path
) -> None:
    words = ("predict", "-i", phantoms / "imagesTs", "-m", f"{NAME}/3d_fullres", "-w", own)
    with pytest.raises(ModelError, match="no trained 3d_lowres run beside") as caught:
        run(*words, "-o", tmp_path / "none", "--roi", "auto")
    # Of so small scans the plan has no low resolution.
    assert "The plan has no 3d_lowres" in caught.value.hint
    assert "--roi MODEL" in caught.value.hint
    with pytest.raises(ModelError, match="no trained model 'Nothing'"):
        run(*words, "-o", tmp_path / "none", "--roi", "Nothing")
    runs = own / NAME / "runs"
    shutil.copytree(runs / "3d_fullres", runs / "3d_lowres+short")
    for name, roi in (("auto", "auto"), ("named", f"{NAME}/3d_lowres+short")):
        assert run(*words, "-o", tmp_path / name, "--roi", roi)["predicted"] == 2
    first, second = (sorted((tmp_path / name).glob("*.nii.gz")) for name in ("auto", "named"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    low = (*words[:4], f"{NAME}/3d_lowres+short", *words[5:])
    with pytest.raises(ModelError, match="is of low resolution itself"):
        run(*low, "-o", tmp_path / "none", "--roi", "auto")


def test_finished_predictions_are_skipped_unless_overwritten(
    trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    images = phantoms / "imagesTs"
    arguments = ("predict", "-i", images, "-o", tmp_path, "-w", trained, "--folds", "1")
    run(*arguments)
    assert run(*arguments)["skipped"] == 2
    first = sorted(tmp_path.glob("*.nii.gz"))[0]
    first.unlink()
    assert run(*arguments)["predicted"] == 1
    assert run(*arguments, "--overwrite")["predicted"] == 2


def test_a_killed_training_ends_with_the_same_model(phantoms: Path, tmp_path: Path) -> None:
    def command(workspace: Path) -> list[str]:
        options = ["--fold", "all", "--epochs", "6", "--iterations", "3", "-w", str(workspace)]
        return [sys.executable, "-m", "autoliver", "train", NAME, "2d", *options]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for workspace in (whole, broken):
        run("plan", phantoms, "--preset", "tiny", "-w", workspace)
    subprocess.run(command(whole), check=True, capture_output=True)
    progress = broken / NAME / "runs/2d/fold_all/progress.jsonl"
    process = subprocess.Popen(command(broken), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _wait_for_epochs(progress, 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (progress.parent / "model.json").exists()
    subprocess.run(command(broken), check=True, capture_output=True)
    one, other = (
        load_file(w / NAME / "runs/2d/fold_all/weights.safetensors") for w in (whole, broken)
    )
    assert one.keys() == other.keys()
    for name, weights in one.items():
        assert np.array_equal(weights, other[name]), name
    losses = [
        [log.train_loss for log in read_progress(w / NAME / "runs/2d/fold_all/progress.jsonl")]
        for w in (whole, broken)
    ]
    assert losses[0] == losses[1]


def test_sigterm_saves_and_stops(phantoms: Path, tmp_path: Path) -> None:
    run("plan", phantoms, "--preset", "tiny", "-w", tmp_path)
    arguments = ["--fold", "all", "--epochs", "500", "--iterations", "2", "-w", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "autoliver", "train", NAME, "2d", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    fold = tmp_path / NAME / "runs/2d/fold_all"
    _wait_for_epochs(fold / "progress.jsonl", 1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "stopped by SIGTERM" in errors
    assert "Run the same command again" in errors
    assert (fold / "resume.pt").exists()


def _wait_for_epochs(progress: Path, epochs: int) -> None:
    deadline = time.monotonic() + 120
    while len(read_progress(progress)) < epochs:
        assert time.monotonic() < deadline, "the training did not get going"
        time.sleep(0.05)


def test_a_run_begun_with_other_options_is_refused(own: Path) -> None:
    with pytest.raises(OptionError, match="started with --epochs 2, not --epochs 9") as caught:
        run("train", NAME, "3d_fullres", "--fold", 0, "--epochs", 9, "-w", own)
    assert "--fresh" in caught.value.hint


@pytest.mark.parametrize("wrong", [("--epochs", "0"), ("--epochs", "9")])
def test_fresh_removes_nothing_before_all_is_sure(own: Path, wrong: tuple[str, str]) -> None:
    # 0 epochs cannot be; 9 differ from those of fold 1, which is not started over.
    with pytest.raises(OptionError, match="--epochs"):
        run("train", NAME, "3d_fullres", "--fold", 0, "--fresh", *wrong, "-w", own)
    assert (own / NAME / "runs/3d_fullres/fold_0/model.json").exists()


def test_fresh_starts_over(own: Path) -> None:
    fold = own / NAME / "runs/3d_fullres/fold_0"
    before = (fold / "model.json").stat().st_mtime_ns
    run("train", NAME, "3d_fullres", "--fold", 0, "--fresh", *SHORT, "--cache", "disk", "-w", own)
    assert (fold / "model.json").stat().st_mtime_ns > before
    assert len(read_progress(fold / "progress.jsonl")) == 2


def test_a_run_begun_with_another_plan_is_refused(own: Path) -> None:
    run("plan", NAME, "--preset", "tiny", "--spacing", 7, 6, 6, "-w", own)
    with pytest.raises(ArtifactError, match="started with another plan"):
        run("train", NAME, "3d_fullres", "--fold", 0, "-w", own)


def test_a_dataset_that_changed_must_be_planned_again(own: Path, phantoms: Path) -> None:
    label, other = sorted((phantoms / "labelsTr").iterdir())[:2]
    state, content = label.stat(), label.read_bytes()
    label.write_bytes(other.read_bytes())
    try:
        with pytest.raises(ArtifactError, match="made from another dataset") as caught:
            run("train", NAME, "3d_fullres", "--fold", 0, "-w", own)
        assert f"label of {label.name.partition('.')[0]} has changed" in caught.value.problem
        assert "autoliver plan Dataset001_Phantom --preset tiny" in caught.value.hint
    finally:
        label.write_bytes(content)
        os.utime(label, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_store_made_otherwise_is_refused(own: Path) -> None:
    info = next((own / NAME / "store").glob("*/store.json"))
    info.write_text(info.read_text().replace('"preprocessing": "', '"preprocessing": "0'))
    with pytest.raises(ArtifactError, match="made from another preprocessing") as caught:
        run("preprocess", NAME, "3d_fullres", "-w", own)
    assert "autoliver preprocess" in caught.value.hint


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_damaged_weights_are_told(own: Path, phantoms: Path, tmp_path: Path, keep: int) -> None:
    weights = own / NAME / "runs/3d_fullres/fold_0/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"weights\.safetensors"):
        run("predict", "-i", phantoms / "imagesTs", "-o", tmp_path / "out", "-w", own)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_what_does_not_fit_the_model_is_refused(
    trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    volume = read_image([next((phantoms / "imagesTs").iterdir())])
    write_image(tmp_path / "in/mr.nii.gz", abs(volume.array), volume.geometry)
    with pytest.raises(DatasetError, match="no negative values"):
        run("predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "-w", trained)
    forced = ("predict", "-i", tmp_path / "in", "-o", tmp_path / "out", "--modality", "MR")
    assert run(*forced, "-w", trained)["predicted"] == 1
    model = autoliver.load_model(workspace=trained, device="cpu", modality="MR")
    label = model(abs(volume.array), spacing_mm=volume.geometry.spacing_mm)
    assert np.array_equal(label, read_label(tmp_path / "out/mr.nii.gz").array[0])
    with pytest.raises(DatasetError, match="no such folder"):
        run("predict", "-i", tmp_path / "nothing", "-o", tmp_path / "out", "-w", trained)
    shutil.copy(next((phantoms / "imagesTs").iterdir()), tmp_path / "case.nii.gz")
    with pytest.raises(AutoliverError, match="would overwrite the image"):
        run("predict", "-i", tmp_path / "case.nii.gz", "-o", tmp_path, "-w", trained)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "Dataset009_Nothing"), "no planned dataset 'Dataset009_Nothing'"),
        (("train", "Phantm", "3d_fullres"), "no planned dataset 'Phantm'"),
        (("train", NAME, "3d_fulres"), "no configuration '3d_fulres'"),
        (("train", NAME, "3d_lowres"), "has no 3d_lowres"),
        (("train", NAME, "2d", "--fold", "7"), "no fold 7"),
        (("train", NAME, "2d", "--epochs", "0"), "--epochs is 0"),
        (("train", NAME, "2d", "--device", "warp"), "--device warp"),
        (("train", NAME, "2d", "--device", "cpu", "--cache", "gpu"), "--cache gpu"),
        (("predict", "-i", ".", "-o", "out", "-m", "Nothing"), "no trained model 'Nothing'"),
    ],
)
def test_wrong_names_are_told(own: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(AutoliverError, match=words):
        run(*arguments, "-w", own)
    assert not (own / NAME / "runs/2d").exists() or "warp" in words


def test_one_case_trains_without_folds(phantoms: Path, tmp_path: Path) -> None:
    source = tmp_path / "Dataset002_One"
    for kind in ("images", "labels"):
        (source / kind).mkdir(parents=True)
        first = sorted((phantoms / f"{kind}Tr").iterdir())[0]
        shutil.copy(first, source / kind / "only.nii.gz")
    run("plan", source, "--preset", "tiny", "-w", tmp_path / "w")
    described = json.loads((source / "dataset.json").read_text())
    assert described["labels"]["background"] == 0
    result = run("train", "One", "2d", *SHORT, "-w", tmp_path / "w")
    assert [fold["fold"] for fold in result["folds"]] == ["all"]  # type: ignore[attr-defined]


def test_the_library_does_what_the_commands_do(own: Path, phantoms: Path, tmp_path: Path) -> None:
    planned = autoliver.plan(phantoms, workspace=own, preset="tiny")
    assert planned.preset == "tiny"
    assert planned.digest() == Plan.load(own / NAME / "plan.json").digest()
    (fold,) = autoliver.train(NAME, "3d_fullres", folds=[1], workspace=own, epochs=2, iterations=3)
    assert fold.folder == own / NAME / "runs/3d_fullres/fold_1"
    done = autoliver.predict(phantoms / "imagesTs", tmp_path / "out", workspace=own, mirror=False)
    assert done.new == 2
    model = autoliver.load_model("Phantom", workspace=own, mirror=False)
    for path in done.files:
        image = read_image([phantoms / "imagesTs" / path.name.replace(".nii", "_0000.nii")])
        labels = model(image.array[0], image.geometry.spacing_mm)
        np.testing.assert_array_equal(labels, read_label(path).array[0])
    scores = autoliver.evaluate(
        tmp_path / "out", phantoms / "labelsTs", dataset=NAME, workspace=own, metrics=("dice",)
    )
    assert len(scores.cases) == 2
    exact = autoliver.load_model("Phantom", workspace=own, mirror=False, exact=True)
    labels = exact(image.array[0], image.geometry.spacing_mm)
    np.testing.assert_array_equal(labels, read_label(path).array[0])
    with pytest.raises(OptionError, match=r"spacing_mm is \(1, 1\); it must be 3 numbers"):
        exact(image.array[0], (1, 1))
    with pytest.raises(OptionError, match=r"array has the shape \(40, 40\)"):
        exact(image.array[0, 0], image.geometry.spacing_mm)
    assert autoliver.verify(phantoms, workspace=own).findings == ()
    with pytest.raises(OptionError, match="no finished run '3d_fulres'") as caught:
        autoliver.select(NAME, runs="3d_fulres", workspace=own)
    assert "Did you mean 3d_fullres?" in caught.value.hint
    with pytest.raises(DatasetError, match="There is no fold 9"):
        autoliver.train(NAME, "3d_fullres", folds=9, workspace=own)
    with pytest.raises(ModelError, match="no trained model 'Pancreas'"):
        autoliver.load_model("Pancreas", workspace=own)


def test_importing_the_package_is_light() -> None:
    heavy = "('torch', 'numpy', 'SimpleITK')"
    code = f"import sys, autoliver; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_cascade_from_its_first_stage_to_a_prediction(tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(24, 64, 64), spacing_mm=(6.0, 4.0, 4.0))
    folder = write_phantom_dataset(
        tmp_path / "data", name=NAME, cases=4, seed=1, options=options, test_cases=1
    )
    names = [path.name.removesuffix("_0000.nii.gz") for path in sorted(folder.glob("imagesTr/*"))]
    splits = [{"train": names[:2], "val": names[2:]}, {"train": names[2:], "val": names[:2]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    workspace = tmp_path / "w"
    run("plan", folder, "--preset", "tiny", "--vram", 0.03, "-w", workspace)
    cascade = ("train", NAME, "3d_cascade", *SHORT, "-w", workspace)
    low = ("train", NAME, "3d_lowres", *SHORT, "-w", workspace)
    with pytest.raises(ModelError, match="3 more of 4 cases were held out by none") as caught:
        run(*cascade)
    assert f"autoliver train {NAME} 3d_lowres" in caught.value.hint
    run(*low, "--fold", 0)
    with pytest.raises(ModelError, match="1 more of 4 cases"):
        run(*cascade)
    run(*low)
    run(*cascade)
    fold = workspace / NAME / "runs/3d_cascade/fold_1"
    info = FoldModel.load(fold / "model.json")
    assert info.previous_run == "3d_lowres"
    assert info.plan.configurations["3d_cascade"].network.in_channels == 1 + 5
    assert (fold / "validation/scores.json").exists()
    done = run(
        *("predict", "-i", folder / "imagesTs", "-o", tmp_path / "out"),
        *("-m", "Phantom/3d_cascade", "-w", workspace),
    )
    assert done["predicted"] == 1
    labels = read_label(tmp_path / "out" / f"{Path(done['files'][0]).name}")  # type: ignore[index]
    assert labels.array.shape == (1, 24, 64, 64)
    # Trained anew, the first stage is another one.
    run(*low, "--fresh", "--seed", 3)
    with pytest.raises(ArtifactError, match="started with another first stage"):
        run(*cascade)
