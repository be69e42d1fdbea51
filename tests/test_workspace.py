import json
import shutil
from pathlib import Path

import pytest
from small_models import STATS, configuration_of

from autoliver.datasets.cases import Labels, read_dataset
from autoliver.errors import AutoliverError, DatasetError, ModelError, OptionError
from autoliver.models.files import FoldModel, ModelFiles
from autoliver.models.selection import Chosen, CleaningRule, Selection
from autoliver.pipeline.models import new_model
from autoliver.pipeline.run.source import find_plan
from autoliver.planning.plan import Configuration, Plan
from autoliver.workspace import (
    DatasetFolder,
    ModelFolder,
    RunFolder,
    Workspace,
    check_configuration,
)


def _network(axes: int, in_channels: int) -> Configuration:
    found = configuration_of(axes)
    return found.replace(network=found.network.replace(in_channels=in_channels, out_channels=2))


PLAN = Plan(
    dataset="D",
    preset="tiny",
    vram_gb=1.0,
    channel_names=("CT",),
    modality="CT",
    labels=Labels(values={"background": (0,), "liver": (1,)}),
    file_ending=".nii.gz",
    transpose_forward=(0, 1, 2),
    transpose_backward=(0, 1, 2),
    intensities=(STATS,),
    configurations={"2d": _network(2, 1), "3d_fullres": _network(3, 1)},
)
# The second stage of a cascade also gets the labels of the first one.
CASCADE = PLAN.replace(
    configurations={"3d_fullres": _network(3, 2).replace(previous_stage="3d_lowres")}
)
LITS, MSD, MR = "Dataset003_LiTS", "Dataset029_LiTS", "Dataset101_LiverMR"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def make_dataset(folder: Path) -> Path:
    """A dataset as nnU-Net lays it out; its files are empty, since none is opened."""
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def make_planned(workspace: Workspace, name: str) -> DatasetFolder:
    source = make_dataset(workspace.root.parent / "data" / name)
    folder = DatasetFolder(workspace.root / name)
    read_dataset(source).save(folder.dataset)
    return folder


def finish(run: RunFolder, *folds: str, previous_run: str | None = None) -> RunFolder:
    for fold in folds:
        FoldModel(
            plan=PLAN if previous_run is None else CASCADE,
            configuration="2d" if previous_run is None else "3d_fullres",
            fold=fold,
            cases=(),
            epochs=1,
            mirror_axes=(),
            weights_sha256="",
            previous_run=previous_run,
        ).save(run.path / f"fold_{fold}/model.json")
    return run


def runs_of(files: ModelFiles) -> list[str]:
    return [member.folds[0].parent.name for member in files.members]


@pytest.mark.parametrize("name", [LITS, "LiTS", "lits", "dataset003_lits"])
def test_a_planned_dataset_is_known_by_its_names(workspace: Workspace, name: str) -> None:
    made = make_planned(workspace, LITS)
    make_planned(workspace, MR)
    assert workspace.folder(name) == made
    assert workspace.source(name).name == LITS
    assert [d.name for d in workspace.datasets] == [LITS, MR]


def test_a_short_name_of_two_datasets_is_refused_and_a_full_one_is_not(
    workspace: Workspace,
) -> None:
    for name in (LITS, MSD):
        make_planned(workspace, name)
    with pytest.raises(DatasetError, match=f"'LiTS' may mean {LITS} or {MSD}"):
        workspace.source("LiTS")
    assert workspace.source(MSD).name == MSD


def test_a_full_name_wins_over_another_dataset_s_short_name(workspace: Workspace) -> None:
    make_planned(workspace, "LiTS")
    make_planned(workspace, LITS)
    assert workspace.folder("LiTS").name == "LiTS"


@pytest.mark.parametrize("typed", ["Dataset03_LiTS", "LiTs2", "litts"])
def test_a_name_nearly_right_is_met_with_the_right_one(workspace: Workspace, typed: str) -> None:
    make_planned(workspace, LITS)
    with pytest.raises(DatasetError, match=f"no planned dataset '{typed}'") as caught:
        workspace.source(typed)
    assert caught.value.hint == f"Did you mean {LITS}?"


def test_an_unknown_name_lists_what_there_is(workspace: Workspace) -> None:
    with pytest.raises(DatasetError, match="no planned dataset") as caught:
        workspace.source("Pancreas")
    assert "autoliver plan PATH" in caught.value.hint
    make_planned(workspace, LITS)
    with pytest.raises(DatasetError) as caught:
        workspace.source("Pancreas")
    assert caught.value.hint == f"Known datasets: {LITS}."


def test_a_path_is_read_whether_planned_or_not(workspace: Workspace, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "elsewhere/Dataset050_New")
    assert workspace.source(str(folder)).name == "Dataset050_New"
    assert workspace.source(f"{folder}/").folder == str(folder)


def test_two_datasets_of_one_name_do_not_share_a_place(
    workspace: Workspace, tmp_path: Path
) -> None:
    make_planned(workspace, LITS)
    other = make_dataset(tmp_path / "elsewhere" / LITS)
    with pytest.raises(DatasetError, match=f"the name {LITS} already belongs to") as caught:
        workspace.source(str(other))
    assert "-w" in caught.value.hint


def test_a_dataset_that_was_moved_is_found_by_its_new_path(
    workspace: Workspace, tmp_path: Path
) -> None:
    make_planned(workspace, LITS)
    moved = tmp_path / "elsewhere" / LITS
    moved.parent.mkdir()
    shutil.move(tmp_path / "data" / LITS, moved)
    with pytest.raises(DatasetError, match="does not exist any more") as caught:
        workspace.source("LiTS")
    assert "autoliver plan PATH" in caught.value.hint
    assert workspace.source(str(moved)).folder == str(moved)


def test_the_workspace_must_not_be_the_folder_of_the_datasets(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / LITS)
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(DatasetError, match="among the dataset's own") as caught:
        Workspace(tmp_path).source(str(folder))
    assert "-w" in caught.value.hint
    assert (folder / "dataset.json").read_bytes() == before


@pytest.mark.parametrize("inside", ["workspace", "imagesTr/w"])
def test_the_workspace_must_not_be_inside_the_dataset(tmp_path: Path, inside: str) -> None:
    folder = make_dataset(tmp_path / LITS)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for place in (folder, link):
        with pytest.raises(DatasetError, match="inside the folder of the dataset") as caught:
            Workspace(place / inside).source(str(folder))
        assert "-w" in caught.value.hint
    assert not (folder / inside).exists()


def test_without_a_name_the_current_folder_and_then_the_only_dataset_is_meant(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="holds 0"):
        workspace.source(None)
    make_planned(workspace, LITS)
    assert workspace.source(None).name == LITS
    make_planned(workspace, MR)
    with pytest.raises(DatasetError, match="holds 2") as caught:
        workspace.source(None)
    assert f"{LITS}, {MR}" in caught.value.hint
    monkeypatch.chdir(make_dataset(tmp_path / "Dataset050_New"))
    assert workspace.source(None).name == "Dataset050_New"


def test_the_only_trained_run_predicts(workspace: Workspace) -> None:
    with pytest.raises(ModelError, match="no trained model in") as caught:
        workspace.model_to_predict(None)
    assert "autoliver train" in caught.value.hint
    folder = make_planned(workspace, LITS)
    make_planned(workspace, MR)
    folder.run("2d").fold(0).mkdir(parents=True)  # begun, not finished
    run = finish(folder.run("3d_fullres"), "0")
    assert workspace.model_to_predict(None) == run.files(None)
    assert run.name == f"{LITS}/3d_fullres"


def test_several_trained_runs_are_listed_and_told_apart(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    lits, mr = make_planned(workspace, LITS), make_planned(workspace, MR)
    runs = [
        finish(lits.run("2d"), "0"),
        finish(lits.run("3d_fullres"), "0"),
        finish(mr.run("3d_fullres"), "all"),
        finish(mr.run("3d_fullres", tag="long"), "0"),
    ]
    with pytest.raises(ModelError, match="4 trained models could be meant") as caught:
        workspace.model_to_predict(None)
    assert all(run.name in caught.value.hint for run in runs)
    with pytest.raises(ModelError, match="2 trained models") as caught:
        workspace.model_to_predict("LiTS")
    assert MR not in caught.value.hint
    for run in runs:
        assert workspace.model_to_predict(run.name) == run.files(None)
        assert workspace.model_to_predict(str(run.path)).members == run.files(None).members
    assert workspace.model_to_predict("livermr/3d_fullres+long") == runs[3].files(None)
    monkeypatch.chdir(runs[1].path)
    assert workspace.model_to_predict(".").name == f"{LITS}/3d_fullres (fold_0)"


def test_what_was_selected_stands_for_its_dataset(workspace: Workspace) -> None:
    folder = make_planned(workspace, LITS)
    finish(folder.run("2d"), "0", "1")
    finish(folder.run("3d_fullres"), "0", "1", "2")
    rule = CleaningRule(labels=("liver",), keep="largest")
    selection = Selection(
        dataset=LITS,
        members=(Chosen(run="2d", folds=("0", "1")), Chosen(run="3d_fullres", folds=("1", "2"))),
        cleaning=(rule,),
    )
    selection.save(folder.trained.selection)
    for name in (None, "LiTS", str(folder.path)):
        files = workspace.model_to_predict(name)
        assert runs_of(files) == ["2d", "3d_fullres"]
        assert [len(member.folds) for member in files.members] == [2, 2]
        assert files.cleaning == (rule,)
    files = workspace.model_to_predict("LiTS", folds="1")
    assert [[fold.name for fold in member.folds] for member in files.members] == [["fold_1"]] * 2
    assert runs_of(workspace.model_to_predict("LiTS/2d")) == ["2d"]
    with pytest.raises(ModelError, match="fold 2 is not trained"):
        workspace.model_to_predict("LiTS", folds="2")


def test_imported_models_predict_by_name(workspace: Workspace) -> None:
    imported = ModelFolder(workspace.root / "models/Friend")
    finish(RunFolder(imported.path / "runs/3d_fullres"), "all")
    Selection(dataset=LITS, members=(Chosen(run="3d_fullres", folds=("all",)),)).save(
        imported.selection
    )
    assert runs_of(workspace.model_to_predict(None)) == ["3d_fullres"]
    finish(make_planned(workspace, MR).run("2d"), "0")
    assert runs_of(workspace.model_to_predict("friend")) == ["3d_fullres"]
    with pytest.raises(ModelError, match="2 trained models") as caught:
        workspace.model_to_predict(None)
    assert caught.value.hint == f"Name one of them: {MR}/2d, Friend"


def test_a_cascade_brings_the_same_folds_of_its_first_stage(tmp_path: Path) -> None:
    low = finish(RunFolder(tmp_path / "D/runs/3d_lowres"), "0", "1", "all")
    run = finish(RunFolder(tmp_path / "D/runs/3d_cascade"), "0", "1", previous_run="3d_lowres")
    assert run.member("1").previous == (low.path / "fold_1",)
    assert run.member(None).previous == low.members(None)
    finish(run, "2", previous_run="3d_lowres")
    assert run.member("2").previous == low.members(None)
    (low.path / "fold_0/model.json").unlink()
    (low.path / "fold_1/model.json").unlink()
    (low.path / "fold_all/model.json").unlink()
    assert run.member("2").previous == ()


def test_a_model_that_is_not_there_lists_or_suggests(workspace: Workspace) -> None:
    finish(make_planned(workspace, LITS).run("3d_fullres"), "0")
    for typed, hint in [
        ("Pancreas", f"Known models: {LITS}/3d_fullres."),
        ("LiTS/3d_fulres", f"Did you mean {LITS}/3d_fullres?"),
        ("LiTS/2d", f"Known models: {LITS}/3d_fullres."),
    ]:
        with pytest.raises(ModelError, match=f"no trained model '{typed}'") as caught:
            workspace.model_to_predict(typed)
        assert caught.value.hint == hint


def test_the_folds_that_predict(tmp_path: Path) -> None:
    run = finish(RunFolder(tmp_path / "D/runs/2d"), "0", "2", "all")

    def names(folds: str | None) -> list[str]:
        return [path.name for path in run.members(folds)]

    assert names(None) == ["fold_0", "fold_2"]
    assert names("all") == ["fold_all"]
    assert names("2, 0") == ["fold_2", "fold_0"]
    with pytest.raises(ModelError, match="D/2d: fold 1 is not trained") as caught:
        run.members("0,1")
    assert caught.value.hint == "Finished folds: 0, 2, all."
    only = finish(RunFolder(tmp_path / "D/runs/3d_fullres"), "all")
    assert [path.name for path in only.members(None)] == ["fold_all"]


@pytest.mark.parametrize("tag", ["../other", "a/b", "a b", "a+b"])
def test_a_tag_must_be_fit_for_a_folder(tag: str) -> None:
    with pytest.raises(OptionError, match="--tag"):
        DatasetFolder(Path("w/D")).run("2d", tag=tag)
    assert DatasetFolder(Path("w/D")).run("2d", tag="v1.2_x").path.name == "2d+v1.2_x"


def test_configurations_are_known_by_name() -> None:
    assert check_configuration("3d_lowres") == "3d_lowres"
    with pytest.raises(OptionError, match="no configuration '3d_fulres'") as caught:
        check_configuration("3d_fulres")
    assert caught.value.hint == "Did you mean 3d_fullres?"
    with pytest.raises(OptionError) as caught:
        check_configuration("volume")
    assert caught.value.hint.startswith("Known configurations: 2d, ")


def test_a_dataset_and_an_imported_model_of_one_name_are_told_apart(workspace: Workspace) -> None:
    run = finish(make_planned(workspace, LITS).run("2d"), "0")
    imported = ModelFolder(workspace.root / "models" / LITS)
    finish(RunFolder(imported.path / "runs/2d"), "all")
    for folder in (imported, DatasetFolder(run.path.parent.parent).trained):
        Selection(dataset=LITS, members=(Chosen(run="2d", folds=()),)).save(folder.selection)
    with pytest.raises(ModelError, match="2 trained models") as caught:
        workspace.model_to_predict("LiTS")
    for folder in (imported.path, run.path.parent.parent):
        assert str(folder) in caught.value.hint
        assert workspace.model_to_predict(str(folder)).members[0].folds[0].parents[2] == folder


def test_a_name_of_a_model_and_of_a_dataset_is_refused(workspace: Workspace) -> None:
    finish(make_planned(workspace, LITS).run("3d_fullres"), "0")
    imported = ModelFolder(workspace.root / "models/LiTS")
    finish(RunFolder(imported.path / "runs/2d"), "all")
    Selection(dataset=LITS, members=(Chosen(run="2d", folds=("all",)),)).save(imported.selection)
    with pytest.raises(ModelError, match="'LiTS' may mean 2 trained models") as caught:
        workspace.model_to_predict("LiTS")
    assert runs_of(workspace.model_to_predict(LITS)) == ["3d_fullres"]
    named = caught.value.hint.split(": ")[1].split(", ")
    assert [runs_of(workspace.model_to_predict(n)) for n in named] == [["3d_fullres"], ["2d"]]
    with pytest.raises(ModelError, match=f"'LiTS' may mean {LITS} or .*models/LiTS"):
        find_plan(workspace, "LiTS")


def test_a_model_that_is_being_imported_is_not_there_yet(workspace: Workspace) -> None:
    half = ModelFolder(workspace.root / "models/.1234.partial.LiTS")
    finish(RunFolder(half.path / "runs/2d"), "all")
    Selection(dataset=LITS, members=(Chosen(run="2d", folds=("all",)),)).save(half.selection)
    assert workspace.models == ()


@pytest.mark.parametrize("name", ["models", "Models", "MODELS"])
def test_a_dataset_cannot_have_the_place_of_imported_models(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    source = make_dataset(tmp_path / "data" / name)
    with pytest.raises(DatasetError, match=f"cannot be named {name}") as caught:
        workspace.source(str(source))
    assert caught.value.hint == f"Rename the folder {source}."
    assert not workspace.root.exists()


def test_a_name_that_the_workspace_cannot_hold_is_refused(
    workspace: Workspace, tmp_path: Path
) -> None:
    name = "x" * 300  # no file system of today takes more than 255 bytes
    dataset = read_dataset(make_dataset(tmp_path / "data" / "D")).replace(name=name)
    with pytest.raises(DatasetError, match="cannot hold a folder named 'xxx") as caught:
        workspace.folder_for(dataset)
    assert "Rename" in caught.value.hint
    with pytest.raises(DatasetError, match="has no name"):
        workspace.folder_for(dataset.replace(name=""))


def test_a_workspace_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("a file")
    source = make_dataset(tmp_path / "data" / LITS)
    with pytest.raises(AutoliverError, match="found a file, expected a folder") as caught:
        Workspace(tmp_path / "workspace").source(str(source))
    assert "--workspace" in caught.value.hint


def test_no_imported_model_is_taken_for_a_dataset(workspace: Workspace) -> None:
    with pytest.raises(OptionError, match="cannot be the name"):
        new_model(workspace, "../Friend", overwrite=False)
    # The file by which a dataset is known, as a name of a model.
    imported = new_model(workspace, "dataset.json", overwrite=False)
    finish(RunFolder(imported.path / "runs/2d"), "all")
    Selection(dataset=LITS, members=(Chosen(run="2d", folds=("all",)),)).save(imported.selection)
    assert workspace.datasets == ()
    assert workspace.models == (imported,)
    assert runs_of(workspace.model_to_predict("dataset.json")) == ["2d"]


def test_reading_alone_writes_nothing(workspace: Workspace, tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "data" / LITS)
    assert workspace.read(str(source)).name == LITS
    assert not workspace.root.exists()
    workspace.source(str(source))
    assert [path.name for path in (workspace.root / LITS).iterdir()] == ["files.json"]


@pytest.mark.parametrize("same", [True, False])
def test_a_copy_is_taken_for_the_dataset_if_it_holds_the_same(
    workspace: Workspace, tmp_path: Path, *, same: bool
) -> None:
    source = make_dataset(tmp_path / "data" / LITS)
    workspace.source(str(source)).save(workspace.root / LITS / "dataset.json")
    copy = Path(shutil.copytree(source, tmp_path / "elsewhere" / LITS))
    if not same:
        (copy / "labelsTr/a.nii.gz").write_bytes(b"drawn anew")
        with pytest.raises(DatasetError, match=r"already belongs .* label of a has changed\."):
            workspace.source(str(copy))
    else:
        assert workspace.source(str(copy)).folder == str(copy)
    # The name means the place it was last given by.
    assert workspace.source("LiTS").folder == str(copy if same else source)
