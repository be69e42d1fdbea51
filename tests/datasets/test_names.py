from pathlib import Path

import pytest

from autoliver.datasets.names import (
    dataset_around,
    known_as,
    near_path,
    nearest,
    refuse_inside_dataset,
)
from autoliver.errors import OptionError

FOLDERS = ["Dataset003_LiTS", "Dataset102_AbdomenMR", "Task03_Liver", "Own data"]


@pytest.mark.parametrize(
    ("typed", "folders"),
    [
        ("Dataset003_LiTS", "Dataset003_LiTS"),
        ("dataset003_lits", "Dataset003_LiTS"),
        ("LITS", "Dataset003_LiTS"),
        ("3", "Dataset003_LiTS Task03_Liver"),
        ("003", "Dataset003_LiTS Task03_Liver"),
        ("03", "Dataset003_LiTS Task03_Liver"),
        ("Dataset003", "Dataset003_LiTS"),
        ("dataset3", "Dataset003_LiTS"),
        ("102", "Dataset102_AbdomenMR"),
        ("Dataset102", "Dataset102_AbdomenMR"),
        ("Liver", "Task03_Liver"),
        ("Task03", "Task03_Liver"),
        ("task3", "Task03_Liver"),
        ("Task003", "Task03_Liver"),
        ("own data", "Own data"),
        # no names of theirs
        ("10", ""),
        ("2", ""),
        ("Dataset", ""),
        ("Abdomen", ""),
        ("Dataset03_LiTS", ""),
        ("data", ""),
        ("", ""),
    ],
)
def test_names_of_folders(typed: str, folders: str) -> None:
    assert " ".join(each for each in FOLDERS if known_as(typed, each)) == folders


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Dataset03_LiTS", "Dataset003_LiTS"),
        ("litts", "Dataset003_LiTS"),
        ("Abdomen_MR", "Dataset102_AbdomenMR"),
        ("Lver", "Task03_Liver"),
        ("LiTS/3d_fulres", "Dataset003_LiTS/3d_fullres"),
        ("3/3d_fulres", "Dataset003_LiTS/3d_fullres"),
        ("Pancreas", ""),
        ("12", ""),
        ("Dataset103", ""),
    ],
)
def test_the_nearest_name(typed: str, name: str) -> None:
    assert nearest(typed, [*FOLDERS, "Dataset003_LiTS/3d_fullres"]) == name


def test_the_nearest_path_is_one_of_its_kind(tmp_path: Path) -> None:
    for name in ("Dataset003_LiTS", "Dataset003_LiTT", "Dataset004_Spleen"):
        (tmp_path / name).mkdir()
    (tmp_path / "Dataset003_LiTU").touch()
    typed = str(tmp_path / "Dataset003_LiTUS")
    assert near_path(typed, lambda path: path.is_file()) == str(tmp_path / "Dataset003_LiTU")
    assert near_path(typed, lambda p: p.name[-1] == "S") == str(tmp_path / "Dataset003_LiTS")
    assert near_path(typed, Path.is_symlink) == ""
    assert near_path(str(tmp_path / "4"), Path.is_dir) == str(tmp_path / "Dataset004_Spleen")
    assert near_path(str(tmp_path / "Pancreas"), Path.is_dir) == ""
    assert near_path(str(tmp_path / "gone/Dataset003_LiTS"), Path.is_dir) == ""


@pytest.mark.parametrize("place", ["imagesTr", "imagesTr/x", "labelsTs/a/b", "LabelsTr/x"])
def test_places_among_the_images_of_a_dataset(tmp_path: Path, place: str) -> None:
    (tmp_path / "data/imagesTr").mkdir(parents=True)
    (tmp_path / "data/dataset.json").write_text("{}")
    assert dataset_around(tmp_path / "data" / place) == tmp_path / "data"
    with pytest.raises(OptionError, match="among the images or labels of the dataset"):
        refuse_inside_dataset(tmp_path / "data" / place)


@pytest.mark.parametrize("place", ["data", "data/predictions", "images/x", "x/labels", "imagesTr"])
def test_places_that_are_no_part_of_a_dataset(tmp_path: Path, place: str) -> None:
    (tmp_path / "data/imagesTr").mkdir(parents=True)
    (tmp_path / "data/dataset.json").write_text("{}")
    refuse_inside_dataset(tmp_path / place)
