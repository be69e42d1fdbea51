"""DICOM series as cases of predict and convert: names, choice, staging, and what is left behind."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_series import head, put_voxels, save, slices, voxels
from small_models import SaveFold
from three_images import ASKED, GRID, image, images, run

from autoliver import api
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.dicom.series import load_series
from autoliver.io.files import read_header, read_image, read_label, write_image, write_label
from autoliver.parallel import Limits
from autoliver.pipeline.clean import clean
from autoliver.pipeline.conversion.convert import ConvertRequest, convert
from autoliver.pipeline.dicom.cases import find_dicom
from autoliver.pipeline.dicom.staging import discard, sidecar, staged
from autoliver.pipeline.folder import CasesFailed, Predicted, predict_folder
from autoliver.pipeline.inputs import find_cases
from autoliver.workspace import Workspace

__all__ = ["images", "run"]  # fixtures

MR = {"Modality": "MR", "RescaleIntercept": 0}


def put(folder: Path, number: int, description: str, **tags: object) -> list[Path]:
    stored = voxels(9, 8, 8, seed=number)
    told = {"SeriesNumber": number, "SeriesDescription": description, **MR, **tags}
    made = slices(stored, tags=told)
    return save(folder, made, [f"{number}-{n}" for n in range(len(made))])


def put_localizer(folder: Path) -> None:
    put(folder, 1, "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])


def predict(source: Path, output: Path, run: Path, **asked: object) -> Predicted:
    place = Workspace(output.parent / "w")
    request = replace(ASKED, **asked)  # type: ignore[arg-type]
    return predict_folder(place, source, output, request, models=(str(run),))


def cases(folder: Path, *wanted: str) -> list[str]:
    found = find_dicom(folder, wanted)
    assert found is not None
    return list(found.series)


def test_a_tree_is_predicted_and_nothing_is_left(tmp_path: Path, run: Path) -> None:
    put(tmp_path / "in" / "Anna" / "venous", 2, "venous")
    put(tmp_path / "in" / "Anna" / "art", 3, "arterial")
    put_localizer(tmp_path / "in" / "Anna" / "scout")
    done = predict(tmp_path / "in", tmp_path / "out", run)
    assert [path.name for path in done.files] == ["art.nii.gz", "venous.nii.gz"]
    source = find_dicom(tmp_path / "in")
    assert source is not None
    for path in done.files:
        found = read_label(path).geometry
        expected = source.series[path.name.removesuffix(".nii.gz")].geometry
        assert found.shape_zyx == expected.shape_zyx
        np.testing.assert_allclose(found.origin_xyz, expected.origin_xyz, atol=1e-5)
    assert not (tmp_path / "w" / "dicom").exists()
    record = (tmp_path / "out" / "predict.json").read_text()
    assert "by its header" in record
    assert "Secret" not in record
    assert "S123" not in record


def test_what_is_finished_is_skipped_until_its_slices_change(tmp_path: Path, run: Path) -> None:
    files = put(tmp_path / "in", 2, "venous")
    assert predict(tmp_path / "in", tmp_path / "out", run).new == 1
    assert predict(tmp_path / "in", tmp_path / "out", run).skipped == 1
    for file in files:
        file.unlink()
    put(tmp_path / "in", 2, "venous", RescaleIntercept=5)
    assert predict(tmp_path / "in", tmp_path / "out", run).new == 1


def test_the_header_says_the_modality_and_the_option_overrules_it(
    tmp_path: Path, run: Path
) -> None:
    """The values look like those of MR; the model was trained on MR."""
    put(tmp_path / "in", 2, "venous", Modality="CT")
    with pytest.raises(DatasetError, match=r"is CT \(by its header; .*trained on MR"):
        predict(tmp_path / "in", tmp_path / "out", run)
    assert predict(tmp_path / "in", tmp_path / "out", run, modality="MR").new == 1


def test_previews_are_drawn_of_series(tmp_path: Path, run: Path) -> None:
    put(tmp_path / "in", 2, "venous")
    done = predict(tmp_path / "in", tmp_path / "out", run, preview=True)
    assert [path.name for path in done.previews] == ["in_preview.png"]
    assert not (tmp_path / "w" / "dicom").exists()


def test_one_file_stands_for_its_series(tmp_path: Path, run: Path) -> None:
    put(tmp_path / "in", 2, "venous")
    put(tmp_path / "in", 3, "arterial")
    done = predict(tmp_path / "in" / "3-4", tmp_path / "liver.nii.gz", run)
    assert done.new == 1
    record = json.loads((tmp_path / "liver_predict.json").read_text())
    assert [each["name"] for each in record["inputs"]["liver.nii.gz"]] == ["in_3.mha"]
    assert read_header(tmp_path / "liver.nii.gz").geometry.shape_zyx == (9, 8, 8)


def test_one_file_of_a_series_that_makes_no_volume(tmp_path: Path, run: Path) -> None:
    put(tmp_path / "in", 2, "venous")
    put(tmp_path / "in", 3, "arterial")[5].unlink()
    with pytest.raises(DatasetError, match="in_3: slices are missing"):
        predict(tmp_path / "in" / "3-4", tmp_path / "liver.nii.gz", run)


def test_a_folder_with_one_series_may_go_to_one_file(tmp_path: Path, run: Path) -> None:
    put(tmp_path / "in", 2, "venous")
    predict(tmp_path / "in", tmp_path / "liver.nii.gz", run)
    assert (tmp_path / "liver.nii.gz").is_file()


def test_image_files_beside_dicom_are_cases_but_pictures_are_not(tmp_path: Path, run: Path) -> None:
    put(tmp_path / "in", 2, "venous")
    write_image(tmp_path / "in" / "other.nii.gz", image(1), GRID)
    (tmp_path / "in" / "thumb.jpg").write_bytes(b"\xff\xd8\xff")
    done = predict(tmp_path / "in", tmp_path / "out", run)
    assert sorted(path.name for path in done.files) == ["in.nii.gz", "other.nii.gz"]


def test_a_series_that_makes_no_volume_does_not_stop_others(tmp_path: Path, run: Path) -> None:
    put(tmp_path / "in" / "a", 2, "venous")
    put(tmp_path / "in" / "b", 3, "arterial")[4].unlink()
    with pytest.raises(CasesFailed, match="b: slices are missing: 1 in 1 gap") as failed:
        predict(tmp_path / "in", tmp_path / "out", run)
    assert failed.value.predicted is not None
    assert [path.name for path in failed.value.predicted.files] == ["a.nii.gz"]


def test_a_file_cut_short_fails_its_case_alone(tmp_path: Path, run: Path) -> None:
    put(tmp_path / "in" / "a", 2, "venous")
    broken = put(tmp_path / "in" / "b", 3, "arterial")[4]
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(CasesFailed, match=str(broken)):
        predict(tmp_path / "in", tmp_path / "out", run)
    assert (tmp_path / "out" / "a.nii.gz").exists()
    assert not (tmp_path / "w" / "dicom").exists()


@pytest.mark.parametrize("word", ["3", "ARTERIAL", "in_3", "RIAL"])
def test_series_are_chosen(tmp_path: Path, run: Path, word: str) -> None:
    put(tmp_path / "in", 2, "venous")
    put(tmp_path / "in", 3, "arterial")
    done = predict(tmp_path / "in", tmp_path / "out", run, series=(word,))
    assert [path.name for path in done.files] == ["in_3.nii.gz"]


@pytest.mark.parametrize(
    ("word", "words"),
    [("arteriel", "Did you mean arterial"), ("7", "3 (arterial)"), ("scout", "localizer")],
)
def test_wrong_series_are_refused(tmp_path: Path, word: str, words: str) -> None:
    put(tmp_path / "in", 2, "venous")
    put(tmp_path / "in", 3, "arterial")
    put_localizer(tmp_path / "in")
    with pytest.raises(OptionError) as error:
        find_dicom(tmp_path / "in", (word,))
    assert words in str(error.value)


def test_series_is_for_dicom(images: Path, tmp_path: Path, run: Path) -> None:
    with pytest.raises(OptionError, match="--series is for DICOM"):
        predict(images, tmp_path / "out", run, series=("2",))


@pytest.mark.parametrize(
    ("places", "names"),
    [
        ({"CT1": [1], "CT2": [2]}, ["CT1", "CT2"]),
        ({"": [1, 2]}, ["in_1", "in_2"]),
        ({"p1/DICOM": [1], "p2/DICOM": [1]}, ["p1_DICOM", "p2_DICOM"]),
        ({"a b/c:d": [1]}, ["c_d"]),
        ({"x/Scan": [1], "y/scan": [1]}, ["x_Scan", "y_scan"]),
        ({"liver.nii.gz": [1]}, ["liver_nii_gz"]),
    ],
)
def test_names_of_cases(tmp_path: Path, places: dict[str, list[int]], names: list[str]) -> None:
    for place, numbers in places.items():
        for number in numbers:
            put(tmp_path / "in" / place, number, "venous")
    assert cases(tmp_path / "in") == names
    assert cases(tmp_path / "in") == names


def test_equal_numbers_in_one_folder_still_have_different_names(tmp_path: Path) -> None:
    for seed in (1, 2):
        made = slices(voxels(seed=seed))
        save(tmp_path / "in", made, [f"{seed}-{n}" for n in range(5)])
    first = cases(tmp_path / "in")
    assert len({name.casefold() for name in first}) == 2
    assert cases(tmp_path / "in") == first


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    capture = head("1.2.840.10008.5.1.4.1.1.7")
    put_voxels(capture, voxels(1)[0])
    save(tmp_path / "in", [capture])
    with pytest.raises(DatasetError, match="1 file of Secondary Capture"):
        find_dicom(tmp_path / "in")


def test_what_was_found_is_listed_in_80_columns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "in", 2, "a description of a series that is far too long for one line")
    put(tmp_path / "in" / ("long" * 15), 3, "arterial")
    put_localizer(tmp_path / "in" / "s")
    find_dicom(tmp_path / "in")
    table = caplog.records[0].getMessage().split("\n")[1:4]
    assert all(len(line) <= 80 for line in table)
    assert "description" in table[0]
    (cut,) = (line for line in table if "arterial" in line)
    assert cut.split()[0].startswith("longlong")
    assert "..." in cut.split()[0]
    assert all(len(line.split()) >= 5 for line in table)
    assert "localizer scout (9 slices)" in caplog.text


def test_staged_images_are_kept_and_used_after_an_interruption(tmp_path: Path) -> None:
    put(tmp_path / "in", 2, "venous")
    found = find_dicom(tmp_path / "in")
    assert found is not None
    place = Workspace(tmp_path / "w")

    def interrupted() -> None:
        with staged(place, found.series, tmp_path / "out", lambda _, __: None, Limits()) as made:
            images.append(made["in"])
            raise KeyboardInterrupt

    images: list[Path] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    first, series = images[0].stat(), load_series(sidecar(images[0]))
    np.testing.assert_array_equal(read_image(images).array[0], voxels(9, 8, 8, seed=2))
    assert [each.file.name for each in series.slices] == [f"2-{n}" for n in range(9)]
    with staged(place, found.series, tmp_path / "out", lambda _, __: None, Limits()) as made:
        assert made["in"].stat().st_ino == first.st_ino
    assert not (tmp_path / "w" / "dicom").exists()


def test_staged_images_stay_while_another_process_uses_them(tmp_path: Path) -> None:
    """The child is the same command; it stays in its block until it is told to end."""
    put(tmp_path / "in" / "a", 2, "venous")
    put(tmp_path / "in" / "b", 3, "arterial")
    found = find_dicom(tmp_path / "in")
    assert found is not None
    place, out = Workspace(tmp_path / "w"), tmp_path / "out"

    def note(_: str, error: AutoliverError) -> None:
        raise error

    (told_parent, child_tells), (child_waits, parent_tells) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            with staged(place, found.series, out, note, Limits()):
                os.write(child_tells, b"x")
                os.read(child_waits, 1)
            code = 0
        finally:
            os._exit(code)
    os.read(told_parent, 1)
    own = {"a": found.series["a"]}  # as one shard of two; a is also the child's
    with staged(place, own, out, note, Limits()) as images:
        discard(images["a"])
        assert images["a"].exists()
    assert images["a"].exists()
    past = time.time() - 7200
    for path in (tmp_path / "w" / "dicom").rglob("*"):
        os.utime(path, (past, past))
    assert clean(place, None, yes=True).leftovers == ()
    assert images["a"].exists()
    os.write(parent_tells, b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert not (tmp_path / "w" / "dicom").exists()
    for end in (told_parent, child_tells, child_waits, parent_tells):
        os.close(end)


def test_series_beyond_the_memory_are_told_before_they_are_read(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a", 2, "venous")
    put(tmp_path / "in" / "b", 3, "arterial")
    found = find_dicom(tmp_path / "in")
    assert found is not None
    grid = found.series["a"].geometry.replace(shape_zyx=(1000, 512, 512))
    series = {**found.series, "a": replace(found.series["a"], geometry=grid)}
    told: dict[str, str] = {}

    def note(name: str, error: AutoliverError) -> None:
        told[name] = error.problem

    limits = Limits(memory_gb=1.0)
    with staged(Workspace(tmp_path / "w"), series, tmp_path / "out", note, limits) as made:
        assert list(made) == ["b"]
    assert told == {"a": "a: to read the series it needs about 2.9 GB, --memory-gb allows 1.0 GB."}


def test_clean_knows_staged_images(tmp_path: Path) -> None:
    put(tmp_path / "in", 2, "venous")
    found = find_dicom(tmp_path / "in")
    assert found is not None
    place = Workspace(tmp_path / "w")
    with (
        pytest.raises(KeyboardInterrupt),
        staged(place, found.series, tmp_path / "out", lambda _, __: None, Limits()) as made,
    ):
        raise KeyboardInterrupt
    assert not clean(place, None).leftovers
    past = time.time() - 7200
    for path in (made["in"].parent, *made["in"].parent.iterdir()):
        os.utime(path, (past, past))
    assert [each.kind for each in clean(place, None, yes=True).leftovers] == ["DICOM"]
    assert not made["in"].exists()


def test_models_of_several_channels_are_refused(tmp_path: Path, save: SaveFold) -> None:
    del save
    put(tmp_path / "in", 2, "venous")
    from autoliver.pipeline.inputs import find_sources

    with pytest.raises(DatasetError, match="in, out") as error:
        find_sources([tmp_path / "in"], ("in", "out"), [])
    assert "autoliver convert dicom" in error.value.hint


def test_convert_makes_images(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a", 2, "venous")
    put(tmp_path / "in" / "b", 3, "arterial")
    done = api.convert("dicom", tmp_path / "in", tmp_path / "out", series=2)
    assert done.cases == 1
    (path,) = (tmp_path / "out" / "imagesTr").iterdir()
    assert path.name == "a_0000.nii.gz"
    np.testing.assert_array_equal(read_image([path]).array[0], voxels(9, 8, 8, seed=2))


def test_convert_with_labels_makes_a_dataset(tmp_path: Path) -> None:
    for name, number in (("a", 2), ("b", 3)):
        put(tmp_path / "in" / name, number, "venous")
    found = find_dicom(tmp_path / "in")
    assert found is not None
    label = np.zeros((9, 8, 8), np.uint8)
    label[2:4, 3:5, 3:5] = 2
    write_label(tmp_path / "labels" / "a.nii.gz", label, found.series["a"].geometry)
    done = api.convert("dicom", tmp_path / "in", tmp_path / "out", labels=tmp_path / "labels")
    assert done.unlabelled == ("b",)
    stated = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert stated["labels"] == {"background": 0, "label_2": 2}
    assert stated["channel_names"] == {"0": "MRI"}
    np.testing.assert_array_equal(
        read_label(tmp_path / "out" / "labelsTr" / "a.nii.gz").array[0], label
    )


def test_label_maps_without_a_label_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a", 2, "venous")
    found = find_dicom(tmp_path / "in")
    assert found is not None
    empty = np.zeros((9, 8, 8), np.uint8)
    write_label(tmp_path / "labels" / "a.nii.gz", empty, found.series["a"].geometry)
    with pytest.raises(DatasetError, match=r"labels: all voxels .* are 0"):
        api.convert("dicom", tmp_path / "in", tmp_path / "out", labels=tmp_path / "labels")


def test_labels_on_another_grid_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a", 2, "venous")
    write_label(tmp_path / "labels" / "a.nii.gz", np.ones((9, 8, 8), np.uint8), GRID)
    request = ConvertRequest(labels=tmp_path / "labels")
    with pytest.raises(DatasetError, match=r"spacing is \(2, 2, 2\), that of the series"):
        convert(
            Workspace(tmp_path / "w"), "dicom", tmp_path / "in", tmp_path / "out", request=request
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: api.plan(folder, workspace=folder.parent / "w"),
        lambda folder: api.verify(folder, workspace=folder.parent / "w"),
        lambda folder: find_cases([folder], 1, []),  # as adopt does
        lambda folder: api.evaluate(folder, folder),
    ],
    ids=["plan", "verify", "adopt", "evaluate"],
)
def test_others_name_the_command_that_converts(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    put(tmp_path / "in" / "a", 2, "venous")
    with pytest.raises(DatasetError) as error:
        use(tmp_path / "in")
    assert f"autoliver convert dicom {tmp_path / 'in'} OUT" in error.value.hint
