"""`predict --format dicom-seg`: segmentations of DICOM series beside their label maps."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_sources import write_series
from small_models import SaveFold
from three_images import ASKED, images, run

from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError, OptionError
from autoliver.inference.predict import PredictJob
from autoliver.inference.record import Prediction
from autoliver.io.dicom.codes import Concept, SegmentCodes
from autoliver.io.dicom.drawn import read_drawn
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_label, write_label
from autoliver.pipeline.dicom.segmentations import write_segmentations
from autoliver.pipeline.folder import CasesFailed, Predicted, predict_folder
from autoliver.workspace import Workspace

__all__ = ["images", "run"]  # fixtures
SEG = {"format": "dicom-seg"}


def series_in(folder: Path, **tags: object) -> Series:
    rng = np.random.default_rng(7)
    array = rng.integers(0, 400, (9, 12, 16))
    return write_series(folder, array, Modality="MR", spacing_mm=(2.0, 2.0, 2.0), **tags)


def predict(source: Path, output: Path, run: Path, **asked: object) -> Predicted:
    place = Workspace(output.parent / "w")
    request = replace(ASKED, **{**SEG, **asked})  # type: ignore[arg-type]
    return predict_folder(place, source, output, request, models=(str(run),))


def check(seg: Path, series: Series) -> None:
    """The segmentation shows the label map beside it."""
    labels = read_label(seg.with_name(f"{seg.stem}.nii.gz")).array[0]
    found = {drawn.name: drawn.mask for drawn in read_drawn(seg, series.geometry)}
    values = {"liver": 1, "tumour": 2}
    assert found.keys() == {name for name, value in values.items() if (labels == value).any()}
    for name, mask in found.items():
        np.testing.assert_array_equal(mask, labels == values[name])


def test_a_segmentation_lies_beside_each_label_map(tmp_path: Path, run: Path) -> None:
    first = series_in(tmp_path / "in" / "one")
    second = series_in(
        tmp_path / "in" / "two", SeriesInstanceUID="1.2.3", FrameOfReferenceUID="1.2.4"
    )
    done = predict(tmp_path / "in", tmp_path / "out", run)
    assert [path.name for path in done.segmentations] == ["one.dcm", "two.dcm"]
    check(done.segmentations[0], first)
    check(done.segmentations[1], second)
    seg = pydicom.dcmread(done.segmentations[0])
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == first.uid
    assert seg.SegmentSequence[0].SegmentAlgorithmName == done.model
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"
    assert done.facts["segmentations"] == [str(path) for path in done.segmentations]


def test_without_the_option_there_is_none(tmp_path: Path, run: Path) -> None:
    series_in(tmp_path / "in")
    done = predict(tmp_path / "in", tmp_path / "out", run, format="nifti")
    assert done.segmentations == ()
    assert not list((tmp_path / "out").glob("*.dcm"))


def test_predicting_twice_gives_the_same_file(tmp_path: Path, run: Path) -> None:
    series_in(tmp_path / "in")
    first = predict(tmp_path / "in", tmp_path / "a", run, exact=True).segmentations[0]
    second = predict(tmp_path / "in", tmp_path / "b", run, exact=True).segmentations[0]
    assert first.read_bytes() == second.read_bytes()


def test_a_missing_segmentation_is_written_without_predicting_again(
    tmp_path: Path, run: Path
) -> None:
    series = series_in(tmp_path / "in")
    predict(tmp_path / "in", tmp_path / "out", run, format="nifti")
    done = predict(tmp_path / "in", tmp_path / "out", run)
    assert (done.new, done.skipped) == (0, 1)
    check(done.segmentations[0], series)


def test_a_segmentation_that_is_there_is_kept(tmp_path: Path, run: Path) -> None:
    series_in(tmp_path / "in")
    (seg,) = predict(tmp_path / "in", tmp_path / "out", run).segmentations
    os.utime(seg, ns=(2**62, 2**62))
    assert predict(tmp_path / "in", tmp_path / "out", run).segmentations == (seg,)
    assert seg.stat().st_mtime_ns == 2**62
    predict(tmp_path / "in", tmp_path / "out", run, seg_type="labelmap")
    assert pydicom.dcmread(seg).SegmentationType == "LABELMAP"


def test_a_corrected_label_map_gives_a_corrected_segmentation(tmp_path: Path, run: Path) -> None:
    series = series_in(tmp_path / "in")
    done = predict(tmp_path / "in", tmp_path / "out", run)
    before = pydicom.dcmread(done.segmentations[0]).SOPInstanceUID
    label = read_label(done.files[0])
    corrected = np.zeros_like(label.array[0])
    corrected[3:5, 2:7, 4:9] = 1
    write_label(done.files[0], corrected, label.geometry)
    again = predict(tmp_path / "in", tmp_path / "out", run)
    assert again.corrected == (done.files[0].name,)
    check(again.segmentations[0], series)
    seg = pydicom.dcmread(again.segmentations[0])
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert seg.SOPInstanceUID != before


def test_a_corrected_label_map_on_another_grid_is_named(tmp_path: Path, run: Path) -> None:
    series_in(tmp_path / "in")
    done = predict(tmp_path / "in", tmp_path / "out", run)
    label = read_label(done.files[0])
    moved = label.geometry.replace(origin_xyz=(0.0, 0.0, 0.0))
    write_label(done.files[0], 1 - np.minimum(label.array[0], 1), moved)
    with pytest.raises(DatasetError, match=r"its origin is .*, that of the series"):
        predict(tmp_path / "in", tmp_path / "out", run)


def test_a_label_map_without_labels_has_no_segmentation(
    tmp_path: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series_in(tmp_path / "in")
    done = predict(tmp_path / "in", tmp_path / "out", run)
    label = read_label(done.files[0])
    write_label(done.files[0], np.zeros_like(label.array[0]), label.geometry)
    again = predict(tmp_path / "in", tmp_path / "out", run)
    assert again.segmentations == ()
    assert not list((tmp_path / "out").glob("*.dcm"))
    assert "no label was found" in caplog.text


@pytest.mark.parametrize("name", ["liver.dcm", "liver.nii.gz"])
def test_a_single_series_to_a_file(tmp_path: Path, run: Path, name: str) -> None:
    series = series_in(tmp_path / "in")
    done = predict(tmp_path / "in", tmp_path / name, run)
    assert done.files == (tmp_path / "liver.nii.gz",)
    assert done.segmentations == (tmp_path / "liver.dcm",)
    check(done.segmentations[0], series)


def test_files_that_are_not_dicom_are_refused(tmp_path: Path, run: Path, images: Path) -> None:
    with pytest.raises(OptionError, match="not DICOM") as caught:
        predict(images, tmp_path / "out", run)
    assert "leave --format out" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_foreign_dicom_files_are_not_replaced(tmp_path: Path, run: Path) -> None:
    series = series_in(tmp_path / "in")
    (tmp_path / "out").mkdir()
    foreign = tmp_path / "out" / "in.dcm"
    foreign.write_bytes(series.slices[0].file.read_bytes())
    with pytest.raises(OptionError, match="no segmentation of autoliver"):
        predict(tmp_path / "in", tmp_path / "out", run)
    assert foreign.read_bytes() == series.slices[0].file.read_bytes()
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_missing_package_is_named_before_any_work(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series_in(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(OptionError, match="needs the package highdicom") as caught:
        predict(tmp_path / "in", tmp_path / "out", run)
    assert "pip install 'autoliver[dicom]'" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_one_series_that_fails_does_not_stop_the_others(tmp_path: Path, run: Path) -> None:
    series_in(tmp_path / "in" / "one")
    series_in(tmp_path / "in" / "two", SeriesInstanceUID="1.2.3")
    predict(tmp_path / "in", tmp_path / "out", run)
    bad = tmp_path / "out" / "one.nii.gz"
    label = read_label(bad)
    write_label(bad, label.array[0] * 0 + 1, label.geometry.replace(spacing_mm=(3.0, 2.0, 2.0)))
    with pytest.raises(CasesFailed, match="its spacing is"):
        predict(tmp_path / "in", tmp_path / "out", run)
    assert (tmp_path / "out" / "two.dcm").exists()


@pytest.mark.parametrize("poor", ["SliceThickness", "FrameOfReferenceUID", "PatientID"])
def test_a_poor_series_has_its_segmentation_and_so_have_the_others(
    tmp_path: Path, run: Path, poor: str
) -> None:
    series = series_in(tmp_path / "in" / "a")
    series_in(tmp_path / "in" / "b", SeriesInstanceUID="1.2.3")
    for one in series.slices[1:]:
        dataset = pydicom.dcmread(one.file)
        delattr(dataset, poor)
        dataset.save_as(one.file)
    done = predict(tmp_path / "in", tmp_path / "out", run)
    assert [path.name for path in done.segmentations] == ["a.dcm", "b.dcm"]
    check(done.segmentations[0], series)


def test_a_segmentation_that_is_too_large_does_not_stop_the_others(
    tmp_path: Path, run: Path
) -> None:
    series_in(tmp_path / "in")
    predict(tmp_path / "in", tmp_path / "out", run)
    record = Prediction.load(tmp_path / "out" / "predict.json")
    values = {f"label {value}": (value,) for value in range(1, 66_000)}
    many = np.arange(66_000, dtype=np.int32).reshape(1, 220, 300)
    series, jobs = {}, []
    for name, array in (("a", many), ("b", np.minimum(many, 3))):
        series[name] = write_series(tmp_path / name, array % 100)
        label_map = tmp_path / "out" / f"{name}.nii.gz"
        write_label(label_map, array, series[name].geometry)
        jobs.append(PredictJob(name=name, images=(), output=label_map))
    written, failed = write_segmentations(
        jobs,
        series,
        record.replace(labels=Labels(values={"background": (0,), **values})),
        codes={},
        corrected=(),
        seg_type="labelmap",
    )
    assert [path.name for path in written] == ["b.dcm"]
    assert "65999 segments" in failed["a"].problem


def test_a_correction_counts_whatever_its_time(tmp_path: Path, run: Path) -> None:
    series = series_in(tmp_path / "in")
    (seg,) = predict(tmp_path / "in", tmp_path / "out", run).segmentations
    label_map = tmp_path / "out" / "in.nii.gz"
    label = read_label(label_map)
    write_label(label_map, (label.array[0] == 0).astype(np.uint8), label.geometry)
    os.utime(label_map, (1, 1))
    predict(tmp_path / "in", tmp_path / "out", run)
    check(seg, series)


def test_other_codes_give_another_segmentation(tmp_path: Path, run: Path) -> None:
    series = {"in": series_in(tmp_path / "in")}
    (seg,) = predict(tmp_path / "in", tmp_path / "out", run).segmentations
    record = Prediction.load(tmp_path / "out" / "predict.json")
    jobs = [PredictJob(name="in", images=(), output=tmp_path / "out" / "in.nii.gz")]
    own = SegmentCodes(type=Concept("A1", "99LAB", "Our liver"))
    codes = {"liver": own, "tumour": own}
    write_segmentations(jobs, series, record, codes=codes, corrected=(), seg_type="binary")
    kinds = [
        item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning
        for item in pydicom.dcmread(seg).SegmentSequence
    ]
    assert set(kinds) == {"Our liver"}


def test_codes_travel_with_the_model(tmp_path: Path, save: SaveFold) -> None:
    series = series_in(tmp_path / "in")
    own = SegmentCodes(type=Concept("A1", "99LAB", "Our liver"))
    fold = save("fold_0", codes={"liver": own, "tumour": own})
    (seg,) = predict(tmp_path / "in", tmp_path / "out", fold.parent).segmentations
    check(seg, series)
    kinds = [
        item.SegmentedPropertyTypeCodeSequence[0].CodeMeaning
        for item in pydicom.dcmread(seg).SegmentSequence
    ]
    assert set(kinds) == {"Our liver"}
