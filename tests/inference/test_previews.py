"""Pictures of label maps beside them: drawn when asked for, and never taken for anything else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from three_images import ASKED, GRID

from autoliver.datasets.layouts import label_files
from autoliver.inference.record import Prediction
from autoliver.io.files import read_label, write_label
from autoliver.pipeline.folder import Predicted, predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.workspace import Workspace

PREVIEW = replace(ASKED, preview=True)


def predict(images: Path, output: Path, run: Path, request: PredictRequest = PREVIEW) -> Predicted:
    place = Workspace(output.parent / "w")
    return predict_folder(place, images, output, request, models=(str(run),))


def times(folder: Path, pattern: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def test_finished_cases_are_drawn_without_predicting_them_again(
    images: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert predict(images, out, run, ASKED).previews == ()
    maps = times(out, "*.nii.gz")
    found = predict(images, out, run)
    assert (found.new, found.skipped) == (0, 3)
    assert [path.name for path in found.previews] == [f"case_{i}_preview.png" for i in range(3)]
    assert times(out, "*.nii.gz") == maps
    drawn = times(out, "*.png")
    assert len(drawn) == 3
    record = Prediction.load(out / "predict.json")
    for name, files in record.written.items():
        wanted = [name, name.replace(".nii.gz", "_preview.png")]
        assert [file.name for file in files] == wanted
        assert files[1].size == (out / wanted[1]).stat().st_size
    assert predict(images, out, run).previews == found.previews
    assert times(out, "*.png") == drawn


def test_a_picture_is_that_of_the_label_map_as_it_is(
    images: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, out, run)
    drawn = times(out, "*.png")
    corrected = out / "case_1.nii.gz"
    write_label(corrected, 1 - np.minimum(read_label(corrected).array[0], 1), GRID)
    assert predict(images, out, run).new == 0
    now = times(out, "*.png")
    assert [name for name in drawn if now[name] != drawn[name]] == ["case_1_preview.png"]
    # Predicted again without one, no picture of before stays.
    predict(images, out, run, replace(ASKED, overwrite=True))
    assert times(out, "*.png") == {}


def test_one_image_into_one_file_has_its_picture_beside(
    images: Path, run: Path, tmp_path: Path
) -> None:
    target = tmp_path / "place/liver.nrrd"
    found = predict(images / "case_0.nii.gz", target, run)
    assert found.previews == (target.with_name("liver_preview.png"),)
    assert found.previews[0].is_file()
    assert label_files(target.parent) == [target]


def test_a_corrected_map_on_another_grid_is_named_and_the_others_are_drawn(
    images: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    predict(images, out, run, ASKED)
    moved = GRID.replace(origin_xyz=(500.0, 0.0, 0.0))
    write_label(out / "case_1.nii.gz", read_label(out / "case_1.nii.gz").array[0], moved)
    names = [path.name for path in predict(images, out, run).previews]
    assert names == ["case_0_preview.png", "case_2_preview.png"]
    assert "case_1: no preview:" in caplog.text
    assert "has another grid" in caplog.text


@pytest.mark.parametrize(
    ("there", "left_out"),
    [
        (["a.nii.gz", "a_preview.png", "predict.json"], ["a_preview.png"]),
        (["a.png", "a_preview.png", "a_predict.json"], ["a_preview.png"]),
        (["a.png", "a_preview.png"], []),  # a dataset, with a case of that name
        (
            ["a.png", "volumes.png", "reliability.png", "scores.json"],
            ["reliability.png", "volumes.png"],
        ),
        (["a.png", "a_volumes.png", "a_scores.json"], ["a_volumes.png"]),
        (["a.png", "volumes.png"], []),
        (["a.png", "b_volumes.png", "a_scores.json"], []),
    ],
)
def test_pictures_are_no_label_maps_where_we_drew_them(
    tmp_path: Path, there: list[str], left_out: list[str]
) -> None:
    for name in there:
        (tmp_path / name).touch()
    found = [path.name for path in label_files(tmp_path)]
    wanted = sorted(name for name in there if not name.endswith(".json") and name not in left_out)
    assert found == wanted
