"""Names of cases that meet, that look like endings, or that no message can hold."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import run
from small_models import SaveFold, plan, save

import autoliver
from autoliver.errors import AutoliverError, DatasetError, MachineError, OptionError
from autoliver.io.files import read_label, write_image, write_label
from autoliver.io.volume import Geometry

__all__ = ["plan", "save"]
GRID = Geometry(shape_zyx=(9, 8, 8), spacing_mm=(2.0, 2.0, 2.0))


def predicted(save: SaveFold, folder: Path, names: Sequence[str], *options: str) -> list[str]:
    """Predicts cases of these names; returns the names of what was written."""
    save("fold_0")
    for name in names:
        image = np.random.default_rng(0).uniform(0, 500, (1, *GRID.shape_zyx)).astype("f4")
        write_image(folder / f"in/{name}_0000.nii.gz", image, GRID)
    model = folder / "Dataset009_Toy/runs/3d_fullres"
    paths = ("-i", folder / "in", "-o", folder / "out", "-m", model, "-w", folder / "ws")
    run("predict", *paths, "--device", "cpu", *options)
    return sorted(path.name for path in (folder / "out").iterdir())


@pytest.mark.parametrize("options", [[], ["--uncertainty"]])
def test_a_case_with_the_name_of_anothers_uncertainty(
    save: SaveFold, tmp_path: Path, options: list[str]
) -> None:
    with pytest.raises(OptionError, match=r"x and x_uncertainty would both write x_uncertainty"):
        predicted(save, tmp_path, ["x", "x_uncertainty"], *options)
    assert not (tmp_path / "out").exists()


def test_names_that_look_like_endings(save: SaveFold, tmp_path: Path) -> None:
    names = ["x", "x.nii", "x.img", "c..d", "y.nii.gz"]
    found = predicted(save, tmp_path, names, "--uncertainty", "--probabilities")
    for name in names:
        assert {f"{name}.nii.gz", f"{name}.npz", f"{name}_uncertainty.nii.gz"} <= set(found)
    assert len(found) == 3 * len(names) + len({"lesions.csv", "lesions.json", "predict.json"})


@pytest.mark.parametrize(
    "name",
    [
        *("x.nii.nii.gz", "x.nii.nii", "x.hdr.nii.gz", "x.img.nii", "x.gz.nii", "x.nia.nii.gz"),
        *("x.nii.gz.nii.gz", "x.nii.mha", "x.nrrd.nrrd", "x.nii.gipl", "x" * 236 + ".nii.gz"),
    ],
)
def test_what_looks_like_two_endings_is_written_where_it_was_asked_for(
    tmp_path: Path, name: str
) -> None:
    label = np.arange(np.prod(GRID.shape_zyx)).reshape(GRID.shape_zyx).astype(np.uint16)
    write_label(tmp_path / name, label, GRID)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert np.array_equal(read_label(tmp_path / name).array[0], label)


@pytest.mark.parametrize("name", ["a\nb", "a\udcffb", "a\x1b[31mb", "a\u2028b"])
def test_a_path_that_no_message_can_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=r"the name holds"):
        run("status", "-w", tmp_path / name)
    with pytest.raises(DatasetError, match=r"the name holds"):
        autoliver.status(workspace=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_workspace_among_images(tmp_path: Path) -> None:
    (tmp_path / "data/imagesTr").mkdir(parents=True)
    (tmp_path / "data/dataset.json").write_text("{}")
    with pytest.raises(DatasetError, match="inside the folder of the dataset"):
        run("status", "-w", tmp_path / "data/imagesTr/ws")


@pytest.mark.parametrize("kind", ["file", "pipe", "loop", "below a file"])
def test_a_workspace_that_is_no_folder(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "x"
    match kind:
        case "file":
            place.write_text("notes")
        case "pipe":
            os.mkfifo(place)
        case "loop":
            place.symlink_to("x")
        case _:
            place.write_text("notes")
            place = place / "y"
    before = place.lstat() if kind != "below a file" else None
    for call in (lambda: run("status", "-w", place), lambda: autoliver.clean(workspace=place)):
        with pytest.raises(MachineError, match=str(place)) as caught:
            call()
        assert caught.value.hint
    assert before is None or place.lstat().st_mode == before.st_mode


def test_an_error_shows_the_ends_of_a_word_that_is_longer_than_any_path() -> None:
    long = AutoliverError(f"{'k' * 10**6}: found {'/' + 'p' * 4000}.")
    assert long.problem == f"{'k' * 100}...{'k' * 49}: found /{'p' * 4000}."
