"""What `predict` takes for finished, and what it never replaces unasked."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_models import SaveFold
from three_images import ASKED, GRID, image

from autoliver.datasets.cases import Labels
from autoliver.errors import ArtifactError, AutoliverError, DatasetError, OptionError
from autoliver.inference.record import read_record, refuse_other_labels
from autoliver.io.files import read_label, write_image, write_label
from autoliver.pipeline.evaluation import EvaluateRequest, evaluate
from autoliver.pipeline.folder import CasesFailed, Predicted, predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.workspace import DatasetFolder, ModelFolder, Workspace

OVER = replace(ASKED, overwrite=True)
BOTH = replace(ASKED, probabilities=True, uncertainty=True)


@pytest.fixture
def predict(run: Path, tmp_path: Path) -> Callable[..., Predicted]:
    def predicted(source: Path, output: Path, request: PredictRequest = ASKED) -> Predicted:
        work = Workspace(tmp_path / "w")
        return predict_folder(work, source, output, request, models=(str(run),))

    return predicted


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def text(path: Path) -> None:
    path.write_bytes(b"not an image")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def foreign(path: Path) -> None:
    write_label(path, np.ones((5, 5, 5), np.uint8), GRID.replace(shape_zyx=(5, 5, 5)))


def corrected(path: Path) -> None:
    label = read_label(path)
    array = label.array[0].copy()
    array[4, 4, 4] = (array[4, 4, 4] + 1) % 2
    write_label(path, array, label.geometry)


def packed_anew(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))


def copied(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("name", ["case_1.nii.gz", "case_1.npz", "case_1_uncertainty.nii.gz"])
@pytest.mark.parametrize("spoil", [text, empty, foreign, None])
def test_a_file_that_no_record_names_is_somebody_else_s(
    name: str,
    spoil: Callable[[Path], None] | None,
    images: Path,
    predict: Callable[..., Predicted],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    if spoil is None:  # predicted, but the record is gone
        predict(images / "case_1.nii.gz", out, BOTH)
        for path in out.iterdir():
            if path.name != name:
                path.unlink()
    else:
        out.mkdir()
        spoil(out / "spoilt.nii.gz")
        (out / "spoilt.nii.gz").rename(out / name)
    before = state(out)
    with pytest.raises(OptionError, match=rf"{name} is already there, and no predict\.json") as e:
        predict(images, out)
    assert "--overwrite" in e.value.hint
    assert state(out) == before
    done = predict(images, out, replace(BOTH, overwrite=True))
    assert (done.new, done.skipped) == (3, 0)
    predict(images, tmp_path / "fresh", BOTH)
    for path in (tmp_path / "fresh").glob("*.nii.gz"):
        assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("spoil", [text, empty, cut])
def test_a_damaged_label_map_is_predicted_again(
    spoil: Callable[[Path], None],
    images: Path,
    predict: Callable[..., Predicted],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    predict(images, out)
    whole = state(out)
    spoil(out / "case_1.nii.gz")
    done = predict(images, out)
    assert (done.new, done.skipped) == (1, 2)
    assert "case_1.nii.gz: cannot be read" in caplog.text
    assert "it is predicted again" in caplog.text
    assert {name: content for name, (content, _) in state(out).items()} == {
        name: content for name, (content, _) in whole.items()
    }
    assert predict(images, out).new == 0


@pytest.mark.parametrize("name", ["case_1.npz", "case_1_uncertainty.nii.gz"])
@pytest.mark.parametrize("spoil", [text, empty, cut])
def test_what_lies_beside_a_label_map_is_made_again_if_it_is_damaged(
    name: str,
    spoil: Callable[[Path], None],
    images: Path,
    predict: Callable[..., Predicted],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    predict(images, out, BOTH)
    spoil(out / name)
    assert predict(images, out, BOTH).new == 1
    assert predict(images, out, BOTH).new == 0


@pytest.mark.parametrize("change", [packed_anew, copied])
def test_the_same_labels_in_another_file_are_no_correction(
    change: Callable[[Path], None],
    images: Path,
    predict: Callable[..., Predicted],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    predict(images, out)
    change(out / "case_1.nii.gz")
    assert predict(images, out).skipped == 3
    assert predict(images, out, BOTH).new == 3


def test_a_correction_is_never_replaced_unasked(
    images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    out, label_map = tmp_path / "out", tmp_path / "out/case_1.nii.gz"
    predict(images, out)
    corrected(label_map)
    before = label_map.read_bytes()
    assert predict(images, out).skipped == 3
    with pytest.raises(CasesFailed, match="case_1: more files are asked for, but") as caught:
        predict(images, out, BOTH)
    assert "--overwrite" in caught.value.hint
    done = caught.value.predicted
    assert done is not None
    assert (done.new, done.skipped, len(done.files)) == (2, 0, 2)
    write_image(images / "case_1.nii.gz", image(8), GRID)
    with pytest.raises(CasesFailed, match=r"case_1: its image has changed.*has been corrected"):
        predict(images, out)
    with pytest.raises(DatasetError, match="has been corrected"):
        predict(images / "case_1.nii.gz", out)
    assert label_map.read_bytes() == before
    done = predict(images, out, OVER)
    assert done.new == 3
    assert label_map.read_bytes() != before
    assert (out / "replaced/case_1.nii.gz").read_bytes() == before
    assert predict(images, out).skipped == 3


def test_a_correction_is_named_wherever_it_is_in_the_way(
    images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, out)
    corrected(out / "case_1.nii.gz")
    assert predict(images, out).corrected == ("case_1.nii.gz",)
    with pytest.raises(OptionError, match=r"Corrected since then: case_1\.nii\.gz\.") as caught:
        predict(images, out, replace(ASKED, step=0.8))
    assert f"keeps the corrected ones in {out / 'replaced'}" in caught.value.hint


@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        (corrected, True),
        (foreign, True),
        (packed_anew, False),
        (copied, False),
        (text, False),
        (cut, False),
        (None, False),
    ],
)
@pytest.mark.parametrize("single", [True, False])
def test_overwrite_keeps_what_it_did_not_predict(
    spoil: Callable[[Path], None] | None,
    kept: bool,
    single: bool,
    images: Path,
    predict: Callable[..., Predicted],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    label_map = tmp_path / "out/case_1.nii.gz"
    places = (images / "case_1.nii.gz", label_map) if single else (images, label_map.parent)
    predict(*places)
    first = label_map.read_bytes()
    if spoil:
        spoil(label_map)
    before = label_map.read_bytes()
    for number in range(2):  # what was kept once is not replaced the second time
        if number and spoil:
            label_map.write_bytes(before)
        predict(*places, replace(OVER, step=0.8))
    assert label_map.read_bytes() != before or not spoil or before == first
    found = sorted(p.name for p in (tmp_path / "out/replaced").glob("*"))
    assert found == (["case_1.nii.gz", "case_1_2.nii.gz"] if kept else [])
    assert {(tmp_path / "out/replaced" / name).read_bytes() for name in found} <= {before}
    assert ("kept in" in caplog.text) == kept


@pytest.mark.parametrize("single", [True, False])
def test_scores_do_not_outlive_their_label_maps(
    single: bool, images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    out, truth = tmp_path / "out", tmp_path / "truth"
    places = (images / "case_1.nii.gz", out / "a.nii.gz") if single else (images, out)
    predict(*places)
    predict(images, truth)
    if single:
        (truth / "case_1.nii.gz").rename(truth / "a.nii.gz")
        files = ["a_scores.csv", "a_scores.json"]
        pair = out / "a.nii.gz", truth / "a.nii.gz"
    else:
        files, pair = ["scores.csv", "scores.json"], (out, truth)
    evaluate(Workspace(tmp_path / "w"), *pair, EvaluateRequest())
    assert predict(*places).new == 0
    assert all((out / name).exists() for name in files)
    predict(*places, OVER)
    assert not any((out / name).exists() for name in files)
    assert sorted(path.name for path in (out / "replaced").iterdir()) == files


def test_a_damaged_record_names_a_way_that_loses_nothing(
    images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, out)
    corrected(out / "case_1.nii.gz")
    before = (out / "case_1.nii.gz").read_bytes()
    cut(out / "predict.json")
    with pytest.raises(ArtifactError, match="not valid JSON") as caught:
        predict(images, out)
    assert f"Remove it (rm {out / 'predict.json'}), and give" in caught.value.hint
    (out / "predict.json").unlink()
    assert predict(images, out, OVER).new == 3
    assert (out / "replaced/case_1.nii.gz").read_bytes() == before


def test_a_label_map_of_another_image_is_told(
    images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(images, out)
    foreign(out / "case_1.nii.gz")
    before = state(out)
    with pytest.raises(CasesFailed, match=r"has 5 x 5 x 5 voxels .* its image 9 x 8 x 8"):
        predict(images, out)
    assert state(out) == before
    assert predict(images, out, OVER).new == 3


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(
    "name", ["imagesTr", "labelsTr", "imagesTs", "labelsTs", "images", "labels", "labelstr"]
)
@pytest.mark.parametrize("file", ["", "case_1.nii.gz", "new.nii.gz"])
@pytest.mark.parametrize("request_", [ASKED, OVER], ids=["", "overwrite"])
def test_the_folders_of_a_dataset_are_no_place_for_predictions(
    described: bool,
    name: str,
    file: str,
    request_: PredictRequest,
    images: Path,
    predict: Callable[..., Predicted],
    tmp_path: Path,
) -> None:
    dataset = tmp_path / "Dataset001_Toy"
    for each in (name, "images" if name in ("images", "labels") else "imagesTr"):
        (dataset / each).mkdir(parents=True, exist_ok=True)
        foreign(dataset / each / "case_1.nii.gz")
    if described:
        (dataset / "dataset.json").write_text("{}")
    before = state(dataset)
    source = images / "case_1.nii.gz" if file else images
    if name == "labelsTs" and file == "new.nii.gz":
        assert predict(source, dataset / name / file, request_).new == 1
        return
    with pytest.raises(OptionError, match=f"{name} belongs to the dataset") as caught:
        predict(source, dataset / name / file, request_)
    assert str(dataset / "predictions") in caught.value.hint
    assert state(dataset) == before


@pytest.mark.parametrize(
    "place", ["labels", "Dataset001_Toy/predictions", "Dataset001_Toy/labelsTs"]
)
def test_other_folders_are(
    place: str, images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    (tmp_path / "Dataset001_Toy/imagesTr").mkdir(parents=True)
    assert predict(images, tmp_path / place).new == 3
    assert predict(images, tmp_path / place, OVER).new == 3


def test_a_file_of_another_case_is_told(
    images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    target = tmp_path / "liver.nii.gz"
    predict(images / "case_0.nii.gz", target)
    before = target.read_bytes()
    with pytest.raises(OptionError, match=r"label map of case_0\.nii\.gz, not of case_1\.nii\.gz"):
        predict(images / "case_1.nii.gz", target)
    assert target.read_bytes() == before
    assert predict(images / "case_1.nii.gz", target, OVER).new == 1
    assert target.read_bytes() != before


@pytest.mark.parametrize("request_", [ASKED, OVER], ids=["", "overwrite"])
def test_two_files_that_would_share_a_record_are_refused(
    request_: PredictRequest, images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    predict(images / "case_0.nii.gz", tmp_path / "out/liver.nii.gz", BOTH)
    before = state(tmp_path / "out")
    with pytest.raises(OptionError, match=r"liver_predict\.json .* record of liver\.nii\.gz"):
        predict(images / "case_1.nii.gz", tmp_path / "out/liver.nrrd", request_)
    assert state(tmp_path / "out") == before


def test_what_would_stay_is_told_with_a_way_out_that_is_not_given_already(
    images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    predict(images, tmp_path / "out")
    (images / "case_2.nii.gz").rename(tmp_path / "moved.nii.gz")
    with pytest.raises(OptionError, match=r"case_2\.nii\.gz would stay") as caught:
        predict(images, tmp_path / "out", replace(OVER, step=0.8))
    assert "move what would stay away" in caught.value.hint
    (tmp_path / "out/case_2.nii.gz").unlink()
    assert predict(images, tmp_path / "out", replace(OVER, step=0.8)).new == 2


def test_records_of_equal_predictions_are_equal(
    images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    predict(images, tmp_path / "one", BOTH)
    predict(images, tmp_path / "two", BOTH)
    one, two = (json.loads((tmp_path / f / "predict.json").read_text()) for f in ("one", "two"))
    assert one["written"]["case_1.nii.gz"][0]["hash"]
    assert one == two


@pytest.mark.parametrize("name", ["a.MHA", "a.Nii.Gz", "a.nii.GZ", "a.NRRD", "a.NII"])
def test_the_case_of_an_ending_does_not_matter_to_a_writer(name: str, tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    write_label(tmp_path / name, array, GRID.replace(shape_zyx=(3, 4, 5)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert np.array_equal(read_label(tmp_path / name).array[0], array)


def test_a_writer_that_writes_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        """Writes nothing, and the rest is ITK's."""

        def __getattr__(self, name: str) -> object:
            import SimpleITK

            return (lambda *_: None) if name == "WriteImage" else getattr(SimpleITK, name)

    monkeypatch.setattr("autoliver.io.itk._sitk", Silent)
    with pytest.raises(AutoliverError, match="nothing was written"):
        write_label(tmp_path / "a.mha", np.zeros(GRID.shape_zyx, np.uint8), GRID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["{ds}", "{ds}/new", "{ds}/runs/2d/x.nii.gz", "models/LiTS/out"])
def test_the_workspace_s_folders_are_no_place_for_predictions(
    place: str, images: Path, run: Path, tmp_path: Path
) -> None:
    work = Workspace(tmp_path / "w")
    folder = DatasetFolder(work.root / "Dataset001_Toy")
    folder.path.mkdir(parents=True)
    folder.dataset.write_text("{}")
    imported = ModelFolder(work.root / "models/LiTS")
    imported.path.mkdir(parents=True)
    imported.selection.write_text("{}")
    before = state(work.root)
    output = work.root / place.format(ds=folder.name)
    source = images / "case_0.nii.gz" if output.suffix else images
    with pytest.raises(OptionError, match="is where the workspace keeps"):
        predict_folder(work, source, output, ASKED, models=[str(run)])
    assert state(work.root) == before
    assert predict_folder(work, images, work.root / "out", ASKED, models=[str(run)]).new == 3


@pytest.mark.parametrize("inner", ["imagesTr", "images"])
def test_the_folder_of_a_dataset_is_no_place_for_predictions(
    inner: str, images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    (tmp_path / "d" / inner).mkdir(parents=True)
    with pytest.raises(OptionError, match="this is the folder of a dataset"):
        predict(images, tmp_path / "d")


def test_labels_are_not_read_by_other_values(
    images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    predict(images, tmp_path / "out")
    predict(images / "case_1.nii.gz", tmp_path / "one/a.nii.gz")
    own = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})
    record = read_record(tmp_path / "out/predict.json")
    assert record is not None and record.labels is not None  # noqa: PT018
    names = list(record.labels.foreground)
    same = record.labels
    turned = same.replace(values={"background": (0,), names[0].upper(): (7,), "kidney": (8,)})
    wider = same.replace(values={"background": (0,), names[0]: (*same.values[names[0]], 9)})
    for place in (tmp_path / "out", tmp_path / "out/case_1.nii.gz", tmp_path / "one/a.nii.gz"):
        for fine in (same, wider, Labels(values={"background": (0,), "spleen": (1,)})):
            refuse_other_labels(place, fine, whose="-d X")
        with pytest.raises(
            OptionError, match=f"-d X: there {names[0].upper()} is 7, but .*predicted"
        ):
            refuse_other_labels(place, turned, whose="-d X")
    refuse_other_labels(tmp_path, own, whose="-d X")  # nothing is known


@pytest.mark.parametrize("name", ["predict.json", "out.csv", "liver.dcm", "liver.gz", "x.TXT"])
def test_a_folder_is_not_named_like_a_file(
    name: str, images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="looks like a file's ending"):
        predict(images, tmp_path / "s" / name)
    assert not (tmp_path / "s").exists()
    (tmp_path / "s" / name).mkdir(parents=True)  # whoever has such a folder may use it
    assert predict(images, tmp_path / "s" / name).new == 3


@pytest.mark.parametrize("name", ["out_v1.2", "out.d", "2026.11.26"])
def test_dots_in_the_name_of_a_folder(
    name: str, images: Path, predict: Callable[..., Predicted], tmp_path: Path
) -> None:
    assert predict(images, tmp_path / name).new == 3


def test_folders_inside_the_images_are_named(
    images: Path,
    predict: Callable[..., Predicted],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("a", "b"):
        write_image(images / name / "x.nii.gz", image(5), GRID)
    (images / "notes").mkdir()
    (images / "notes/read.me").write_text("")
    predict(images, images / "out")
    assert "not predicted: a (1 file), b (1 file)." in caplog.text
    caplog.clear()
    predict(images, images / "second")  # "out" holds predictions
    assert "not predicted: a (1 file), b (1 file)." in caplog.text


def test_no_images_are_no_success(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="-i names no images"):
        predict_folder(Workspace(tmp_path), [], tmp_path / "out", ASKED, models=[str(run)])


def test_a_model_is_not_averaged_with_itself(images: Path, run: Path, tmp_path: Path) -> None:
    models = [str(run), f"{run}/."]
    with pytest.raises(OptionError, match="would be averaged with itself"):
        predict_folder(Workspace(tmp_path), images, tmp_path / "out", ASKED, models=models)


def test_two_models_at_once_do_not_mix(
    images: Path, run: Path, save: SaveFold, tmp_path: Path
) -> None:
    """While one process predicts, other work in its folder is refused, and the same is free."""
    second, out, work = tmp_path / "second", tmp_path / "out", Workspace(tmp_path / "w")
    second.mkdir()
    save("other", seed=1).rename(second / "fold_0")
    # It takes a minute, of which this test waits for none.
    slow = tmp_path / "slow/case_9.nii.gz"
    write_image(slow, image(9), GRID.replace(spacing_mm=(60.0, 60.0, 60.0)))
    options = f"predict -i {images} -i {slow} -o {out} -m {run} --no-mirror --exact --device cpu"
    first = subprocess.Popen([sys.executable, "-m", "autoliver", *options.split()])
    try:
        while not (out / "case_2.nii.gz").exists():
            assert first.poll() is None
            time.sleep(0.05)
        before = state(out)
        write_image(images / "case_3.nii.gz", image(3), GRID)
        for model, request, name in (
            (second, ASKED, ""),
            (second, OVER, ""),
            (run, replace(ASKED, step=0.8), ""),
            (second, OVER, "case_2.nii.gz"),
        ):
            source = images / name
            with pytest.raises(AutoliverError, match="and is made by process") as caught:
                predict_folder(work, source, out / name, request, models=[str(model)])
            assert caught.value.hint == "Wait until it has ended, or stop it."
        assert {name: state(out)[name] for name in before} == before
        assert predict_folder(work, images, out, ASKED, models=[str(run)]).new == 1
        case, other = images / "case_0.nii.gz", tmp_path / "other/case_0.nii.gz"
        assert predict_folder(work, case, other, ASKED, models=[str(second)]).new == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    record = read_record(out / "predict.json")
    assert record is not None
    assert sorted(record.voxels) == [f"case_{number}.nii.gz" for number in range(4)]
    assert predict_folder(work, images, out, OVER, models=[str(second)]).new == 4
