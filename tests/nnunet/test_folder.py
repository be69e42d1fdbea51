import stat
import zipfile
from pathlib import Path

import pytest

from autoliver.errors import ModelError
from autoliver.nnunet.folder import open_runs


def names(path, **settings):
    with open_runs(path, **settings) as runs:
        return {run.path.name: list(run.folds) for run in runs}


def zipped(folder: Path, target: Path, *, inside: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, inside + str(path.relative_to(folder)))
    return target


def test_a_folder_one_above_it_and_a_zip(write, tmp_path):
    folder = write(folds=(0, 1, "all"))
    write("2d", "plain_2d", folds=(3,))
    (folder.parent / "ensembles").mkdir()
    (folder / "crossval_results_folds_0_1").mkdir()
    one = {"nnUNetTrainer__nnUNetPlans__3d_fullres": ["0", "1", "all"]}
    both = {"nnUNetTrainer__nnUNetPlans__2d": ["3"], **one}
    assert names(folder) == one
    assert names(folder, folds=["1"]) == {folder.name: ["1"]}
    assert names(folder.parent) == both
    assert names(tmp_path / "results") == both
    export = zipped(tmp_path / "results", tmp_path / "export.zip")
    assert names(export) == both
    with open_runs(export) as runs:
        scratch = runs[0].path
        assert (runs[0].path / "plans.json").is_file()
    assert not scratch.exists()


def test_the_best_checkpoint_counts_once_training_has_ended(write):
    folder = write(file="checkpoint_best.pth")
    assert names(folder) == {folder.name: ["0"]}
    (folder / "fold_0/checkpoint_latest.pth").touch()
    with pytest.raises(ModelError, match=r"checkpoint_best\.pth and checkpoint_latest\.pth"):
        names(folder)


def test_half_written_folders(write):
    folder = write(folds=(0,))
    (folder / "fold_1").mkdir()
    with pytest.raises(ModelError, match=r"fold_1: half-written: .* no checkpoint") as error:
        names(folder)
    assert "finished folds: 0" in error.value.hint
    assert names(folder, folds=["0"]) == {folder.name: ["0"]}
    with pytest.raises(ModelError, match="no fold 4"):
        names(folder, folds=["4"])
    (folder / "fold_1/checkpoint_latest.pth").touch()
    with pytest.raises(ModelError, match=r"expected checkpoint_final.pth, found checkpoint_latest"):
        names(folder)
    for name in ("dataset.json", "plans.json"):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=f"half-written: {name} is missing"):
            names(folder)


def test_what_is_no_model(tmp_path, write):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    for name, problem in (
        ("nowhere", "no such file"),
        ("empty", "not a model of nnU-Net: it has no folder"),
        ("text.zip", "neither a folder nor a zip"),
    ):
        with pytest.raises(ModelError, match=problem):
            names(tmp_path / name)
    with pytest.raises(ModelError, match="neither a folder nor a zip"):
        names(write() / "fold_0/checkpoint_final.pth")
    (tmp_path / "empty/plans.pkl").touch()
    with pytest.raises(ModelError, match="nnU-Net v1"):
        names(tmp_path / "empty")


def test_models_of_several_datasets(write, tmp_path):
    folder = write()
    other = tmp_path / "results/Dataset008_Other" / folder.name / "fold_0"
    other.mkdir(parents=True)
    with pytest.raises(ModelError, match="Dataset007_Toy, Dataset008_Other"):
        names(tmp_path / "results")


@pytest.mark.parametrize(
    "name", ["../plans.json", "a/../../plans.json", "/tmp/plans.json", "C:\\plans.json", "a\\..\\b"]
)
def test_paths_outside_the_zip_are_refused(write, tmp_path, name):
    export = zipped(write(), tmp_path / "export.zip", inside="Dataset007_Toy/a/")
    with zipfile.ZipFile(export, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), "{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match="a path outside the zip"):
        names(export)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_a_zip_are_refused(write, tmp_path):
    export = zipped(write(), tmp_path / "export.zip")
    info = zipfile.ZipInfo("fold_0/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(export, "a") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(ModelError, match="a link"):
        names(export)


def test_a_damaged_zip(write, tmp_path):
    export = zipped(write(), tmp_path / "export.zip")
    content = bytearray(export.read_bytes())
    with zipfile.ZipFile(export) as archive:
        place = archive.getinfo("plans.json").header_offset + 100
    content[place] ^= 255
    export.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be unpacked"):
        names(export)


def test_a_zip_that_would_fill_the_disk(write, tmp_path):
    export = zipped(write(), tmp_path / "export.zip")
    with zipfile.ZipFile(export, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other/plans.json", bytes(65 * 2**20))
    assert export.stat().st_size < 2**20
    with pytest.raises(ModelError, match=r"other/plans\.json would be 68 MB"):
        names(export)
