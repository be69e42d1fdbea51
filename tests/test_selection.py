"""Two trained runs, and what `select` makes of them, through the commands a user types."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run

from autoliver.errors import ModelError, OptionError
from autoliver.evaluation import metrics
from autoliver.evaluation.results import Scores
from autoliver.io.files import read_label
from autoliver.models.files import MODEL_FILE, FoldModel
from autoliver.models.selection import Selection
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_Phantom"
LABELS = ["liver", "tumour", "spleen", "right_kidney", "left_kidney"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 32, 32), spacing_mm=(7.0, 6.0, 6.0))
    return write_phantom_dataset(
        tmp_path_factory.mktemp("data"), name=NAME, cases=6, seed=1, options=options, test_cases=1
    )


@pytest.fixture(scope="module")
def trained(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folds 0 and 1 of 3d_fullres, fold 0 of 2d."""
    workspace = tmp_path_factory.mktemp("workspace")
    run("plan", phantoms, "--preset", "tiny", "-w", workspace)
    for name, fold in (("2d", 0), ("3d_fullres", 0), ("3d_fullres", 1)):
        short = ("--epochs", 1, "--iterations", 2)
        run("train", NAME, name, "--fold", fold, *short, "-w", workspace)
    return workspace


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


@pytest.fixture(scope="module")
def selected(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    workspace = tmp_path_factory.mktemp("selected") / "w"
    shutil.copytree(trained, workspace)
    return workspace, run("select", NAME, "-w", workspace)


def dice(predicted: Path, actual: Path) -> list[float]:
    arrays = [read_label(path).array for path in (predicted, actual)]
    return [metrics.dice(*(array == value for array in arrays)) for value in range(1, 6)]


def test_runs_and_pairs_are_compared_on_common_folds(selected, phantoms: Path) -> None:
    workspace, found = selected
    assert [c["name"] for c in found["candidates"]] == ["2d", "3d_fullres", "2d + 3d_fullres"]
    assert "2 held-out cases of fold 0, which all runs have finished" in " ".join(found["why"])
    folders = [workspace / NAME / f"runs/{name}/fold_0/validation" for name in ("2d", "3d_fullres")]
    folders.append(workspace / NAME / "selection/2d,3d_fullres/fold_0")
    for candidate, folder in zip(found["candidates"], folders, strict=True):
        files = sorted(folder.glob("*.nii.gz"))
        assert len(files) == 2
        each = np.array([dice(file, phantoms / "labelsTr" / file.name) for file in files])
        means = np.nanmean(each, axis=0)
        np.testing.assert_allclose(list(candidate["labels"].values()), means, atol=1e-12)
        assert list(candidate["labels"]) == LABELS
        assert candidate["dice"] == pytest.approx(means.mean())


def test_the_selection_is_written_with_what_it_was_made_from(selected) -> None:
    workspace, found = selected
    selection = Selection.load(workspace / NAME / "model.json")
    assert set(selection.made_from) == {"dataset", "folds", "2d", "3d_fullres"}
    assert selection.scores == {c["name"]: c["dice"] for c in found["candidates"]}
    folds = {"2d": ("0",), "3d_fullres": ("0", "1")}
    assert all(folds[member.run] == member.folds for member in selection.members)
    assert "Fewer than 3 held-out cases" in selection.why[-1]
    assert selection.cleaning == ()


def test_a_pair_averages_probabilities(selected, phantoms: Path, tmp_path: Path) -> None:
    workspace, _ = selected
    case = sorted((workspace / NAME / "selection/2d,3d_fullres/fold_0").glob("*.nii.gz"))[0]
    image = phantoms / "imagesTr" / case.name.replace(".nii.gz", "_0000.nii.gz")
    models = [part for name in ("2d", "3d_fullres") for part in ("-m", f"{NAME}/{name}")]
    run("predict", "-i", image, "-o", tmp_path, *models, "--folds", "0", "-w", workspace)
    (written,) = tmp_path.glob("*.nii.gz")
    np.testing.assert_array_equal(read_label(written).array, read_label(case).array)


def test_predict_uses_the_selection(selected, phantoms: Path, tmp_path: Path) -> None:
    workspace, found = selected
    done = run("predict", "-i", phantoms / "imagesTs", "-o", tmp_path, "-w", workspace)
    assert done["model"] == f"{NAME} ({' + '.join(m['run'] for m in found['members'])})"


def test_a_run_alone_is_selected_with_its_rules(own: Path) -> None:
    found = run("select", NAME, "3d_fullres", "-w", own)
    assert found["members"] == [{"run": "3d_fullres", "folds": ["0", "1"]}]
    assert not (own / NAME / "selection").exists()
    assert [rule["rule"]["keep"] for rule in found["rules"]] == ["largest"] * 6 + ["least"] * 5
    for rule in found["rules"]:
        gain = np.mean(list(rule["after"].values())) - np.mean(list(rule["before"].values()))
        assert rule["kept"] == (
            gain > 1e-4
            and all(rule["after"][name] >= rule["before"][name] for name in rule["before"])
        )
    kept = tuple(rule["rule"] for rule in found["rules"] if rule["kept"])
    assert json.loads((own / NAME / "model.json").read_text())["cleaning"] == list(kept)


def test_a_selection_goes_on_where_it_stopped(own: Path) -> None:
    first = run("select", NAME, "-w", own)
    folder = own / NAME / "selection/2d,3d_fullres/fold_0"
    one, other = sorted(folder.glob("*.nii.gz"))
    kept = one.stat().st_mtime_ns
    # As if killed after the first case.
    other.unlink()
    scores = Scores.load(folder / "scores.json")
    scores.replace(cases=(), summary={}, mean={}).save(folder / "scores.json")
    second = run("select", NAME, "-w", own)
    assert second == first
    assert one.stat().st_mtime_ns == kept
    assert other.exists()


def test_a_retrained_fold_is_scored_anew(own: Path) -> None:
    run("select", NAME, "-w", own)
    folder = own / NAME / "selection/2d,3d_fullres/fold_0"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run("select", NAME, "-w", own)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    model = own / NAME / "runs/2d/fold_0" / MODEL_FILE
    FoldModel.load(model).replace(epochs=9).save(model)
    run("select", NAME, "-w", own)
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(after) == set(before)
    assert all(after[path] > before[path] for path in before)


def test_held_out_label_maps_that_are_gone_are_made_again(own: Path) -> None:
    for path in (own / NAME / "runs/3d_fullres/fold_0/validation").iterdir():
        path.unlink()
    found = run("select", NAME, "3d_fullres", "-w", own)
    assert len(found["rules"]) == 11
    assert len(list((own / NAME / "runs/3d_fullres/fold_0/validation").iterdir())) == 3


def test_pairs_are_predicted_one_by_one_where_memory_is_short(own: Path, selected) -> None:
    found = run("select", NAME, "--memory-gb", "0.1", "-w", own)
    assert found["candidates"] == selected[1]["candidates"]


def test_a_run_that_holds_no_case_back_is_left_out(own: Path) -> None:
    (own / NAME / "runs/2d/fold_0").rename(own / NAME / "runs/2d/fold_all")
    found = run("select", NAME, "-w", own)
    assert [c["name"] for c in found["candidates"]] == ["3d_fullres"]
    assert "2d is left out: only its fold all is finished" in found["left_out"][0]
    shutil.rmtree(own / NAME / "runs/3d_fullres")
    with pytest.raises(ModelError, match="no run can be scored") as caught:
        run("select", NAME, "-w", own)
    assert "autoliver train Dataset001_Phantom 3d_fullres --fold 0" in caught.value.hint


def test_runs_without_a_common_fold_are_told(own: Path) -> None:
    shutil.rmtree(own / NAME / "runs/3d_fullres/fold_0")
    with pytest.raises(ModelError, match="2d has 0; 3d_fullres has 1") as caught:
        run("select", NAME, "-w", own)
    assert "--fold" in caught.value.hint
    with pytest.raises(OptionError, match="no finished run '3d'") as wrong:
        run("select", NAME, "3d", "-w", own)
    assert "2d, 3d_fullres" in wrong.value.hint


def test_a_cascade_is_scored_only_where_its_first_stage_saw_no_case_either(own: Path) -> None:
    cascade = own / NAME / "runs/3d_cascade"
    shutil.copytree(own / NAME / "runs/3d_fullres", cascade)
    for model in cascade.glob(f"*/{MODEL_FILE}"):
        info = FoldModel.load(model)
        one = info.decisions.replace(previous_stage="2d")
        more = 1 + len(info.plan.labels.foreground)
        one = one.replace(network=one.network.replace(in_channels=more))
        plan = info.plan.replace(configurations={info.configuration: one})
        info.replace(previous_run="2d", plan=plan).save(model)
    found = run("select", NAME, "3d_cascade", "-w", own)
    assert "3d_cascade, fold 1, is left out" in found["left_out"][0]
    assert "held-out cases of fold 0." in " ".join(found["why"])


def test_a_run_begun_with_other_folds_is_left_out(own: Path) -> None:
    options = own / NAME / "runs/2d/options.json"
    known = json.loads(options.read_text())
    known["made_from"]["folds"] = "0" * 12
    options.write_text(json.dumps(known))
    found = run("select", NAME, "-w", own)
    assert "2d is left out: the folds changed since it was started" in found["left_out"][0]
