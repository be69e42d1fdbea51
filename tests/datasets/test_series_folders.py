"""A folder with the slices of a DICOM series is an image of a dataset, read in place."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from autoliver.datasets.cases import read_dataset
from autoliver.datasets.changes import describe_changes
from autoliver.datasets.contents import FileIndex, identify
from autoliver.errors import DatasetError
from autoliver.io.files import read_header, read_image, read_label, write_label
from autoliver.io.grids import compare_grids
from autoliver.pipeline.data import plan_dataset
from autoliver.pipeline.pooling.pool import PoolRequest, pool
from autoliver.planning.plan import PlanOptions
from autoliver.workspace import Workspace
from tests.dicom_series import save, slices, voxels

NAMES = ("a", "b")


def make(root: Path, layout: str) -> Path:
    """A dataset of two series, in one of the layouts."""
    folder = root / "Scans"
    images, labels = (
        ("images", "labels") if layout.startswith("plain") else ("imagesTr", "labelsTr")
    )
    suffix = "_0000" if layout == "nnunet" else ""
    for seed, name in enumerate(NAMES):
        inside = "study/series" if layout == "plain, nested" else ""
        save(folder / images / f"{name}{suffix}" / inside, slices(voxels(5, 12, 12, seed=seed)))
        array = np.ones((5, 12, 12), np.uint8)
        array[0] = 0
        image = read_image([folder / images / f"{name}{suffix}"])
        write_label(folder / labels / f"{name}.nii.gz", array, image.geometry)
    description: dict[str, object] = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    pairs = {n: (f"{images}/{n}", f"{labels}/{n}.nii.gz") for n in NAMES}
    if layout == "table":
        description["dataset"] = {n: {"images": [i], "label": m} for n, (i, m) in pairs.items()}
    if layout == "msd":
        description |= {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}}
        del description["channel_names"]
        description["training"] = [{"image": i, "label": m} for i, m in pairs.values()]
    if not layout.startswith("plain"):
        (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize("layout", ["plain", "plain, nested", "nnunet", "table", "msd"])
def test_the_layouts_take_series_in_place_of_image_files(tmp_path: Path, layout: str) -> None:
    found = read_dataset(make(tmp_path, layout))
    assert [case.name for case in found.cases] == list(NAMES)
    assert (found.channel_names, found.file_ending) == (("CT",), ".nii.gz")
    for seed, case in enumerate(found.cases):
        image = read_image(list(map(Path, case.images)))
        assert np.array_equal(image.array[0], voxels(5, 12, 12, seed=seed) - 1024.0)
        assert read_header(case.images[0]).geometry == image.geometry
        label = read_label(str(case.label)).geometry
        assert all(each.rounding for each in compare_grids(image.geometry, label))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_header_names_the_channel_where_nothing_else_does(
    tmp_path: Path, modality: str
) -> None:
    folder = make(tmp_path, "plain")
    for name in NAMES:
        shutil.rmtree(folder / "images" / name)
        save(folder / "images" / name, slices(voxels(), tags={"Modality": modality}))
    assert read_dataset(folder).cases[0].modality == modality


def test_image_files_and_series_lie_side_by_side(tmp_path: Path) -> None:
    folder = make(tmp_path, "plain")
    image = read_image([folder / "images/a"])
    shutil.rmtree(folder / "images/a")
    write_label(folder / "images/a.nii.gz", voxels(5, 12, 12), image.geometry)
    (folder / "images/notes").mkdir()
    (folder / "images/notes/a.txt").write_text("no DICOM")
    assert [Path(c.images[0]).name for c in read_dataset(folder).cases] == ["a.nii.gz", "b"]


def test_a_series_and_a_file_of_one_name_are_told(tmp_path: Path) -> None:
    folder = make(tmp_path, "plain")
    shutil.copy(folder / "labels/a.nii.gz", folder / "images/a.nii.gz")
    with pytest.raises(DatasetError, match=r"a and a\.nii\.gz are one image"):
        read_dataset(folder)


def test_several_series_in_a_folder_are_named_with_what_to_do(tmp_path: Path) -> None:
    folder = make(tmp_path, "plain, nested")
    tags = {"SeriesNumber": 4, "SeriesDescription": "arterial"}
    save(folder / "images/a/study/other", slices(voxels(), tags=tags))
    with pytest.raises(DatasetError, match=r"2 DICOM series \(4 arterial, 3 venous\)") as error:
        read_image([folder / "images/a"])
    assert f"autoliver convert dicom {folder / 'images/a'} OUT --series N" in error.value.hint


def test_a_series_with_a_missing_slice_is_refused_with_the_numbers(tmp_path: Path) -> None:
    save(tmp_path / "a", [s for n, s in enumerate(slices(voxels())) if n != 2])
    with pytest.raises(DatasetError, match="slices are missing: 1 in 1 gap"):
        read_image([tmp_path / "a"])


def test_a_series_is_no_label_map(tmp_path: Path) -> None:
    save(tmp_path / "a", slices(voxels()))
    with pytest.raises(DatasetError, match="found a folder"):
        read_label(tmp_path / "a")


def test_a_moved_dataset_is_the_same_and_one_with_a_changed_slice_is_not(tmp_path: Path) -> None:
    folder = make(tmp_path, "plain, nested")
    before, _ = identify(read_dataset(folder), FileIndex())
    (tmp_path / "x").mkdir()
    folder = folder.rename(tmp_path / "x" / "Scans")
    moved, index = identify(read_dataset(folder), FileIndex())
    assert moved.digest() == before.digest()
    file = next((folder / "images/a").rglob("IM*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    changed, _ = identify(read_dataset(folder), index)
    assert describe_changes(before, changed) == "image of a has changed"
    file.rename(file.with_name("renamed"))
    assert "image of a" in describe_changes(changed, identify(read_dataset(folder), index)[0])


def test_a_dataset_of_series_is_planned_and_pooled_where_it_lies(tmp_path: Path) -> None:
    folder = make(tmp_path, "nnunet")
    other = make(tmp_path / "other", "table").rename(tmp_path / "Others")
    for name in NAMES:  # else they are the same images
        shutil.rmtree(other / "imagesTr" / name)
        save(other / "imagesTr" / name, slices(voxels(5, 12, 12, seed=ord(name))))
    before = sorted(folder.rglob("*"))
    workspace = Workspace(tmp_path / "ws")
    plan_dataset(workspace, str(folder), PlanOptions(preset="tiny"))
    assert sorted(folder.rglob("*")) == before
    assert not list(workspace.root.rglob("*.mha"))
    made = pool(workspace, tmp_path / "Pool", PoolRequest(add=(str(folder), str(other))))
    assert len(workspace.source(str(made.folder)).cases) == 4
    next((folder / "imagesTr/a_0000").iterdir()).unlink()
    with pytest.raises(DatasetError, match="is not there any more"):
        workspace.source(str(made.folder))
