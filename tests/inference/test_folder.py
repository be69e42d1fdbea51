"""Folders of cases: one that fails does not stop the others, and what is finished is known."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import SaveFold
from three_images import ASKED, GRID, image

from autoliver.errors import AutoliverError, DatasetError, MachineError, OptionError
from autoliver.inference.record import Prediction
from autoliver.io.files import write_image
from autoliver.pipeline.folder import CasesFailed, Predicted, predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.workspace import Workspace


def predict(
    images: Path | list[Path], output: Path, run: Path, request: PredictRequest = ASKED
) -> Predicted:
    place = Workspace(output.parent / "w")
    return predict_folder(place, images, output, request, models=(str(run),))


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def lead(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


SPOIL: dict[str, Callable[[Path], None]] = {
    "damaged": lambda path: put(path, path.read_bytes()[:200]),
    "empty": lambda path: put(path, b""),
    "no image": lambda path: put(path, b"not an image"),
    "nan": lambda path: write_image(path, image(1) * np.nan, GRID),
    "ct": lambda path: write_image(path, image(1) * 4 - 1000, GRID),
    "channels": lambda path: write_image(path, np.repeat(image(1), 2, axis=0), GRID),
    "dangling": lambda path: lead(path, "/not-mounted/case_1.nii.gz"),
    "folder": make_folder,
    "broken disk": lambda path: lead(path, "/proc/self/mem"),
}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("damaged", "its header is damaged"),
        ("empty", "the file is empty"),
        ("no image", "cannot be read"),
        ("nan", "NaN"),
        ("ct", "CT"),
        ("channels", "2 channels"),
        ("dangling", "link to /not-mounted"),
        ("folder", "found a folder"),
        pytest.param(
            "broken disk",
            "Input/output error",
            marks=pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux"),
        ),
    ],
)
def test_a_case_that_fails_is_named_and_the_others_are_predicted(
    how: str,
    words: str,
    overlap: bool,
    images: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autoliver.pipeline.prediction.overlap_fits", lambda *_: overlap)
    predict(images, tmp_path / "whole", run)
    SPOIL[how](images / "case_1.nii.gz")
    with pytest.raises(CasesFailed, match="1 of 3 cases failed") as caught:
        predict(images, tmp_path / "out", run)
    assert words in caught.value.problem
    assert "The same command again" in caught.value.hint
    done = caught.value.predicted
    assert done is not None
    assert (done.new, done.skipped, [f.case for f in done.failures]) == (2, 0, ["case_1"])
    for number in (0, 2):
        name = f"case_{number}.nii.gz"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out/case_1.nii.gz").exists()

    if how == "folder":
        return
    with pytest.raises(AutoliverError, match=words) as alone:  # a single case is a plain error
        predict(images / "case_1.nii.gz", tmp_path / "alone", run)
    assert not isinstance(alone.value, CasesFailed)

    if how not in ("dangling", "broken disk"):
        write_image(images / "case_1.nii.gz", image(1), GRID)
        assert predict(images, tmp_path / "out", run).new == 1
        name = "case_1.nii.gz"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_image_that_has_changed_is_predicted_again(
    images: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert predict(images, out, run).new == 3
    os.utime(images / "case_0.nii.gz", ns=(1, 1))  # the same content
    write_image(images / "case_1.nii.gz", image(7), GRID)
    before = (out / "case_0.nii.gz").stat().st_mtime_ns
    done = predict(images, out, run)
    assert (done.new, done.skipped) == (1, 2)
    assert "case_1: its image has changed since it was predicted" in caplog.text
    assert (out / "case_0.nii.gz").stat().st_mtime_ns == before
    predict(images / "case_1.nii.gz", tmp_path / "new", run)
    again = (tmp_path / "new/case_1.nii.gz").read_bytes()
    assert (out / "case_1.nii.gz").read_bytes() == again
    assert predict(images, out, run).new == 0


def test_a_record_of_an_earlier_version_says_nothing_of_images(
    images: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, out, run)
    fields: dict[str, Any] = json.loads((out / "predict.json").read_text())
    assert sorted(fields.pop("inputs")) == [f"case_{number}.nii.gz" for number in range(3)]
    (out / "predict.json").write_text(json.dumps(fields))
    write_image(images / "case_1.nii.gz", image(7), GRID)
    assert predict(images, out, run).skipped == 3


def test_two_folders_that_predict_into_one_keep_each_other_s_record(
    images: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images / "case_0.nii.gz", out, run)
    predict([images / "case_1.nii.gz", images / "case_2.nii.gz"], out, run)
    record = Prediction.load(out / "predict.json")
    assert sorted(record.inputs) == sorted(record.label_maps)
    assert len(record.inputs) == 3


def test_one_image_into_one_file(images: Path, run: Path, tmp_path: Path) -> None:
    source, target = images / "case_0.nii.gz", tmp_path / "place/liver.nrrd"
    asked = replace(ASKED, probabilities=True, uncertainty=True)
    assert predict(source, target, run, asked).files == (target,)
    names = {path.name for path in target.parent.iterdir()}
    assert names == {
        *("liver.nrrd", "liver.npz", "liver_uncertainty.nrrd", "liver_predict.json"),
        *("liver_lesions.json", "liver_lesions.csv"),
    }
    assert predict(source, target, run, asked).skipped == 1
    with pytest.raises(OptionError, match="it was predicted before"):
        predict(source, target, run, replace(ASKED, step=0.9))


@pytest.mark.parametrize(
    ("source", "output", "words"),
    [
        ("in", "out.nii.gz", "one file, but -i names 3 cases"),
        ("in/case_0.nii.gz", "out.jpg", "cannot hold label maps"),
        ("in/case_0.nii.gz", "out.mhd", "cannot hold label maps"),
        ("in/case_0.nii.gz", "out.png", "cannot hold label maps"),
        ("in/case_0.nii.gz", "out.tif", "cannot hold label maps"),
        ("in/case_0.nii.gz", "out.NII.GZ", "endings in small letters"),
        ("in/case_0.nii.gz", "in/case_0.nii.gz", "overwrite the image|the image itself"),
        ("in/case_0.nii.gz", "in/case_1.nii.gz", "already there"),
        ("in", "in", "folder of the images"),
        ("in", "link", "folder of the images"),
    ],
)
def test_outputs_that_cannot_be(
    source: str, output: str, words: str, images: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(images)
    before = {path: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(OptionError, match=words) as caught:
        predict(tmp_path / source, tmp_path / output, run)
    assert caught.value.hint
    assert {path: path.read_bytes() for path in images.iterdir()} == before


def test_several_inputs_with_one_name_are_refused(images: Path, run: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "more/case_1.nii.gz", image(9), GRID)
    with pytest.raises(OptionError, match="the case case_1 is in"):
        predict([images, tmp_path / "more"], tmp_path / "out", run)
    (tmp_path / "more/case_1.nii.gz").rename(tmp_path / "more/case_9.nii.gz")
    assert predict([images, tmp_path / "more"], tmp_path / "out", run).new == 4


def test_an_output_that_cannot_be_written_is_said_first(
    images: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("autoliver.inference.model.load_model", load)
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="A file is where a folder is expected"):
        predict(images, tmp_path / "file/out", run)


def test_a_case_that_lacks_a_channel_is_a_failure_of_its_own(tmp_path: Path) -> None:
    from autoliver.datasets.cases import find_case_images

    for name in ("a_0000", "a_0001", "b_0001", "c_0000", "c_0001", "c_0002"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"x")
    failed: dict[str, DatasetError] = {}
    found = find_case_images(tmp_path, channels=2, file_ending=None, on_problem=failed.__setitem__)
    assert list(found) == ["a"]
    assert list(failed) == ["b", "c"]
    assert "channel 0 of 2 is missing" in failed["b"].problem


BOTH = replace(ASKED, probabilities=True, uncertainty=True)


@pytest.fixture
def other(save: SaveFold) -> Path:
    """Another model."""
    return save("fold_0", seed=4, configuration="2d").parent


def content(folder: Path) -> dict[str, bytes]:
    """What is in the files of probabilities, and the bytes of all others but records and tables."""
    files = [path for path in folder.iterdir() if path.suffix not in (".json", ".csv")]
    return {
        path.name: np.load(path)["probabilities"].tobytes()
        if path.suffix == ".npz"
        else path.read_bytes()
        for path in files
    }


def test_another_model_does_not_complete_finished_cases(
    images: Path, run: Path, other: Path, tmp_path: Path
) -> None:
    """To add probabilities is no reason to replace label maps by those of another model."""
    out = tmp_path / "out"
    predict(images, out, run)
    before = content(out)
    with pytest.raises(OptionError, match="would stay as predicted before"):
        predict(images, out, other, BOTH)
    assert content(out) == before
    assert predict(images, out, run, BOTH).new == 3
    assert predict(images, out, run, BOTH).skipped == 3


@pytest.mark.parametrize("why", ["another model", "another image"])
def test_no_probabilities_of_before_stay(
    why: str, images: Path, run: Path, other: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "out", run
    predict(images, out, run, BOTH)
    if why == "another model":
        model = other
        assert predict(images, out, model, replace(ASKED, overwrite=True)).new == 3
    else:
        write_image(images / "case_1.nii.gz", image(7), GRID)
        assert predict(images, out, model).new == 1
    predict(images, out, model, BOTH)
    predict(images, tmp_path / "fresh", model, BOTH)
    assert content(out) == content(tmp_path / "fresh")


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_map_stays_only_if_its_image_may_still_be_the_same(
    spoil: str, images: Path, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, out, run)
    SPOIL[spoil](images / "case_1.nii.gz")
    if spoil == "dangling":  # a disk that is away at the moment
        assert predict(images, out, run).skipped == 3
        return
    with pytest.raises(CasesFailed, match="1 of 3 cases failed"):
        predict(images, out, run)
    assert sorted(content(out)) == ["case_0.nii.gz", "case_2.nii.gz"]


def test_a_folder_and_its_files_know_of_each_other(
    images: Path, run: Path, other: Path, tmp_path: Path
) -> None:
    source, out = images / "case_1.nii.gz", tmp_path / "out"
    target = out / "case_1.nii.gz"
    predict(source, target, run)
    with pytest.raises(OptionError, match=r"case_1\.nii\.gz: it was predicted before"):
        predict(images, out, other)
    assert predict(images, out, run).new == 2
    assert predict(images, out, other, replace(ASKED, overwrite=True)).new == 3
    for request in (ASKED, replace(ASKED, overwrite=True)):  # the others would stay
        with pytest.raises(OptionError, match="would stay"):
            predict(source, target, run, request)
    assert predict(source, target, other).skipped == 1
    write_image(source, image(8), GRID)
    assert predict(source, target, other).new == 1
    assert sorted(path.name for path in out.glob("*.json")) == ["lesions.json", "predict.json"]


def test_a_file_beside_its_image(images: Path, run: Path) -> None:
    target = images / "case_0_liver.nii.gz"
    assert predict(images / "case_0.nii.gz", target, run).new == 1
    assert predict(images / "case_0.nii.gz", target, run).skipped == 1


def two_types(path: Path) -> None:
    write_image(path.with_name("case_1.nrrd"), image(1), GRID)


def no_text(path: Path) -> None:
    path.rename(path.with_name(os.fsdecode(b"case_\xff.nii.gz")))


def two_names(path: Path) -> None:
    write_image(path.with_name("case_1_0000.nii.gz"), image(1), GRID)


@pytest.mark.parametrize("spoil", [two_types, no_text, two_names])
def test_names_that_cannot_be_a_case_stop_no_other(
    spoil: Callable[[Path], None], images: Path, run: Path, tmp_path: Path
) -> None:
    predict(images, tmp_path / "before", run)
    spoil(images / "case_1.nii.gz")
    with pytest.raises(CasesFailed, match="1 of 3 cases failed") as caught:
        predict(images, tmp_path / "out", run)
    assert caught.value.hint
    json.dumps(caught.value.facts).encode()
    expected = content(tmp_path / "before")
    del expected["case_1.nii.gz"]
    assert content(tmp_path / "out") == expected


def test_a_name_that_is_as_long_as_the_disk_takes(images: Path, run: Path, tmp_path: Path) -> None:
    """The names of files that are not asked for would be too long."""
    name = "c" * (255 - len(".nii.gz")) + ".nii.gz"
    (images / "case_1.nii.gz").rename(images / name)
    assert predict(images, tmp_path / "out", run).new == 3
    assert predict(images, tmp_path / "out", run, replace(ASKED, overwrite=True)).new == 3


def test_a_folder_under_the_name_of_a_label_map_is_told(
    images: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "out/case_1.nii.gz").mkdir(parents=True)
    with pytest.raises(OptionError, match=r"case_1\.nii\.gz is already there"):
        predict(images, tmp_path / "out", run)
    assert predict(images, tmp_path / "out", run, replace(ASKED, overwrite=True)).new == 3
    assert (tmp_path / "out/replaced/case_1.nii.gz").is_dir()


def test_a_damaged_held_out_case_is_an_error(images: Path, run: Path, tmp_path: Path) -> None:
    from autoliver.models.files import MemberFiles, ModelFiles
    from autoliver.pipeline.prediction import predict as predict_held_out

    put(images / "case_1.nii.gz", b"not an image")
    files = ModelFiles(name="Toy", members=(MemberFiles(folds=(run / "fold_0",)),))
    cases = {f"case_{n}": [images / f"case_{n}.nii.gz"] for n in range(3)}
    with pytest.raises(DatasetError, match=r"^case_1: ") as caught:
        predict_held_out(files, cases, tmp_path / "out", ASKED)
    assert not isinstance(caught.value, CasesFailed)


def test_all_cases_that_fail_are_named_with_what_to_do(
    images: Path, run: Path, tmp_path: Path
) -> None:
    for number in range(3, 16):
        (images / f"case_{number}.nii.gz").write_bytes(b"")
    write_image(images / "case_1.nii.gz", image(1) * np.nan, GRID)
    with pytest.raises(CasesFailed, match="14 of 16 cases failed") as caught:
        predict(images, tmp_path / "out", run)
    failed = {"case_1", *(f"case_{number}" for number in range(3, 16))}
    lines = caught.value.problem.splitlines()[1:]
    assert {line.partition(": ")[0] for line in lines} == failed
    assert len(lines) == len(failed)
    hints = caught.value.hint.splitlines()
    assert len(hints) == 3  # of empty files, of NaN, and the command
    for hint in hints[:2]:
        names = hint.partition(": ")[0].split(", ")
        assert (set(names) == {"case_1"}) is ("Repair or leave out" in hint)
    found = caught.value.facts["failed"]
    assert isinstance(found, list)
    assert {each["case"] for each in found} == failed


def test_an_ending_in_capitals_is_refused_for_the_capitals_alone(
    images: Path, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"small letters, found \.nii\.GZ") as caught:
        predict(images / "case_1.nii.gz", tmp_path / "s/liver.nii.GZ", run)
    better = Path(caught.value.hint.removeprefix("Choose "))
    assert better == tmp_path / "s/liver.nii.gz"
    assert predict(images / "case_1.nii.gz", better, run).files == (better,)


def test_a_name_with_a_line_break_is_named_and_the_others_are_predicted(
    images: Path, run: Path, tmp_path: Path
) -> None:
    (images / "case_1.nii.gz").rename(images / "case\n1.nii.gz")
    with pytest.raises(CasesFailed, match="1 of 3 cases failed") as caught:
        predict(images, tmp_path / "out", run)
    line = caught.value.problem.splitlines()[1]
    assert line.startswith(r"case\n1: ")
    assert "control characters" in line
    assert caught.value.predicted is not None
    assert caught.value.predicted.new == 2
