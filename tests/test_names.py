"""Datasets, models and sources as people type them; a hint names what the next try takes."""

import shlex
import shutil
from pathlib import Path

import pytest
from small_models import SaveFold, plan, save
from test_workspace import LITS, MR, finish, make_dataset, make_planned

from autoliver.datasets.cases import Dataset
from autoliver.errors import AutoliverError, DatasetError, ModelError
from autoliver.machine import WHOLE_MACHINE
from autoliver.models.selection import Chosen, Selection
from autoliver.pipeline.run.follow import plan_to_follow
from autoliver.pipeline.run.source import find_plan, find_source
from autoliver.planning.names import ConfigurationName
from autoliver.workspace import ModelFolder, Workspace, check_configuration

__all__ = ["plan", "save"]

TASK = "Task03_Liver"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def hinted(error: AutoliverError) -> str:
    """What a hint says was meant."""
    question, _, rest = error.hint.partition("Did you mean ")
    assert (question, rest[-1:]) == ("", "?"), error.hint
    (word,) = shlex.split(rest[:-1])
    return word


@pytest.mark.parametrize("typed", ["101", "Dataset101", "dataset101", "LiverMR", "0101"])
def test_a_planned_dataset_by_its_number(workspace: Workspace, typed: str) -> None:
    make_planned(workspace, LITS)
    folder = make_planned(workspace, MR)
    finish(folder.run("2d"), "0")
    assert workspace.source(typed).name == MR
    assert workspace.read(typed).name == MR
    assert [each.name for each in workspace.trained(typed)] == [MR]
    for name in (typed, f"{typed}/2d"):
        assert workspace.model_to_predict(name).members[0].folds[0].parent == folder.run("2d").path


@pytest.mark.parametrize("typed", ["Liver", "Task03", "task3"])
def test_a_folder_of_the_decathlon_by_its_names(workspace: Workspace, typed: str) -> None:
    make_planned(workspace, LITS)
    make_planned(workspace, TASK)
    assert workspace.source(typed).name == TASK


def test_a_number_of_two_datasets_is_one_clear_error(workspace: Workspace) -> None:
    for name in (LITS, TASK):
        finish(make_planned(workspace, name).run("2d"), "0")
    with pytest.raises(DatasetError, match=f"'3' may mean {LITS} or {TASK}") as caught:
        workspace.source("3")
    assert caught.value.hint == "Give the full name."
    with pytest.raises(ModelError, match="'3' may mean 2 trained models") as also:
        workspace.model_to_predict("3")
    assert f"{LITS}/2d, {TASK}/2d" in also.value.hint
    with pytest.raises(ModelError, match=f"--pretrained 3 may mean {LITS} or {TASK}"):
        find_source(workspace, "3", wanted="2d", target="MR")


def test_a_number_means_a_folder_beside_as_well(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    make_dataset(raw / MR)
    (raw / "Dataset101_results").mkdir()  # not a dataset
    monkeypatch.chdir(raw)
    assert workspace.source("101").name == MR
    monkeypatch.chdir(tmp_path)
    assert workspace.source("raw/101").name == MR
    assert workspace.source(str(raw / "LiverMR")).name == MR
    make_dataset(raw / "Dataset101_Other")
    with pytest.raises(DatasetError, match=r"may mean .*Dataset101_LiverMR or .*_Other"):
        workspace.source("raw/101")


@pytest.mark.parametrize(
    "typed", ["LiverRM", "Dataset101_LivrMR", "data/Dataset101_LiverMRI", "data/LiverM", "1O1"]
)
def test_a_dataset_nearly_right(
    typed: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_planned(workspace, MR)
    gone = make_planned(workspace, "Dataset109_LivrRM")
    kept = Dataset.load(gone.dataset)
    kept.replace(folder=str(tmp_path / "gone")).save(gone.dataset)
    (tmp_path / "data/Dataset109_LivrRM").rename(tmp_path / "elsewhere")
    (tmp_path / "data/Dataset101_LiverMRX").mkdir()  # not a dataset
    with pytest.raises(DatasetError, match="no folder and no planned dataset") as caught:
        workspace.source(typed)
    assert workspace.source(hinted(caught.value)).name == MR


@pytest.mark.parametrize(
    "typed", ["LiverRM", "Dataset101_LivrMR", "LiverMR/2dd", "workspace/Dataset101_LiverRM"]
)
def test_a_model_nearly_right(
    typed: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_planned(workspace, MR)
    make_planned(workspace, "Dataset109_LivrRM")  # nothing was trained on it
    finish(folder.run("2d"), "0")
    with pytest.raises(ModelError, match="no trained model") as caught:
        workspace.model_to_predict(typed)
    files = workspace.model_to_predict(hinted(caught.value))
    assert files.members[0].folds[0].parent.name == "2d"


@pytest.fixture
def trained(workspace: Workspace, save: SaveFold) -> Workspace:
    """LiTS with a 3D run, and LiverMR with a 2D run."""
    for name, configuration in ((LITS, "3d_fullres"), (MR, "2d")):
        run = make_planned(workspace, name).run(configuration)  # type: ignore[arg-type]
        run.path.mkdir(parents=True)
        save(f"{name}_fold", configuration=configuration).rename(run.path / "fold_all")
    return workspace


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        ("3", f"{LITS}/3d_fullres"),
        ("003/3d_fullres", f"{LITS}/3d_fullres"),
        ("LiTSS", f"{LITS}/3d_fullres"),
        ("LiTS/3d_fulres", f"{LITS}/3d_fullres"),
        ("workspace/Dataset003_LiTs2", f"{LITS}/3d_fullres"),
    ],
)
def test_a_source_by_number_or_nearly_right(
    typed: str, run: str, trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = typed
    if typed[0] not in "03":
        with pytest.raises(ModelError, match="--pretrained") as caught:
            find_source(trained, typed, wanted="3d_fullres", target="X")
        name = hinted(caught.value)
    found = find_source(trained, name, wanted="3d_fullres", target="X")
    assert found.info is not None
    assert found.again.endswith(run) or str(trained.root.name) in found.again


@pytest.mark.parametrize("typed", ["LiTSS", "Dataset003_LiT", "OwnModle", "data/Dataset003_LiTss"])
def test_a_plan_to_follow_nearly_right(
    typed: str, trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    imported = ModelFolder(trained.root / "models/OwnModel")
    shutil.copytree(trained.root / LITS / "runs", imported.path / "runs")
    chosen = (Chosen(run="3d_fullres", folds=("all",)),)
    Selection(dataset=LITS, members=chosen).save(imported.selection)
    with pytest.raises(DatasetError, match=f"--like {typed}: there is no such") as caught:
        plan_to_follow(trained, typed, machine=WHOLE_MACHINE)
    name = hinted(caught.value)
    assert find_plan(trained, name) is not None or trained.source(name).name == LITS


def test_a_source_of_another_dimension_is_named_last_and_taken_if_named(trained: Workspace) -> None:
    with pytest.raises(ModelError) as caught:
        find_source(trained, "LiverRM", wanted="3d_fullres", target="X")
    assert caught.value.hint == f"Choose from: {LITS}/3d_fullres."
    with pytest.raises(ModelError, match="has no trained 3d_fullres, only") as caught:
        find_source(trained, "LiverMR", wanted="3d_fullres", target="X")
    assert caught.value.hint.startswith(f"Train it: autoliver train {MR} 3d_fullres --fold all")
    assert caught.value.hint.endswith(f"Inflate a 2D network: --pretrained {MR}/2d")
    found = find_source(trained, "LiverMR/2d", wanted="3d_fullres", target="X")
    assert found.spec.dimension == 2
    plan = found.plan_for("3d_fullres")
    assert plan is not None
    assert [*plan.configurations] == ["2d"]
    assert found.plan_for("3d_lowres") is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [("3d_cascade_fullres", True), ("3d_cascade_lowres", True), ("3D_Cascade", False)],
)
def test_the_cascade_by_its_other_names(
    typed: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert check_configuration(typed) == "3d_cascade"
    assert (f"{typed} is called 3d_cascade here." in caplog.text) == said


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_what_to_begin_with_is_not_guessed(
    workspace: Workspace, configuration: ConfigurationName, save: SaveFold
) -> None:
    run = make_planned(workspace, LITS).run(configuration).path
    run.mkdir(parents=True)
    save("own", configuration=configuration).rename(run / "fold_0")
    imported = ModelFolder(workspace.root / "models/LiTS")
    (imported.path / "runs/2d").mkdir(parents=True)
    save("imported", configuration="2d").rename(imported.path / "runs/2d/fold_all")
    Selection(dataset=LITS, members=(Chosen(run="2d", folds=("all",)),)).save(imported.selection)
    if configuration == "2d":
        with pytest.raises(ModelError, match=f"--pretrained LiTS may mean {LITS} or .*models/LiTS"):
            find_source(workspace, "LiTS", wanted="2d", target="MR")
    else:  # the dataset has no such run
        assert find_source(workspace, "LiTS", wanted="2d", target="MR").fold.startswith("LiTS/2d")
    found = find_source(workspace, LITS, wanted=configuration, target="MR")
    assert f"{configuration}/fold_0" in found.fold
