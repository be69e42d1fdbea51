"""`convert dicom-seg`: label maps that exist become segmentations of their series."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_sources import ORIENTATIONS, write_series
from three_images import ASKED, images, run

import autoliver
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.dicom.drawn import read_drawn
from autoliver.io.dicom.series import Series
from autoliver.io.files import read_label, write_label
from autoliver.pipeline.conversion.convert import ConvertRequest, convert
from autoliver.pipeline.conversion.result import Converted
from autoliver.pipeline.folder import predict_folder
from autoliver.workspace import Workspace

__all__ = ["images", "run"]  # fixtures
LABELS = {"background": 0, "liver": [1, 2], "bile lake": 2}
CODE = ["A1", "99LAB", "Bile lake"]


def label_map() -> np.ndarray:
    found = np.zeros((4, 12, 16), np.uint8)
    found[1:, 2:9, 3:9] = 1
    found[2, 4:6, 5:7] = 2
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two series, and a dataset with the label map of the first."""
    folder = tmp_path / "Dataset001_Drawn"
    for number, name in enumerate(("a", "b")):
        series = put(tmp_path, name, number)
        if name == "a":
            write_label(folder / "labelsTr/a.nii.gz", label_map(), series.geometry)
    described = {
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "regions_class_order": [1, 2],
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "codes": {"bile lake": {"type": CODE}},
    }
    (folder / "imagesTr").mkdir()
    (folder / "dataset.json").write_text(json.dumps(described))
    return tmp_path


def put(place: Path, name: str, number: int) -> Series:
    return write_series(
        place / "in" / name,
        label_map().astype(np.int16) * 50,
        Modality="MR",
        cosines=ORIENTATIONS["oblique"],
        SeriesInstanceUID=f"1.2.3.{number}",
        StudyInstanceUID=f"1.2.4.{number}",
    )


def segmented(place: Path, **asked: Any) -> Converted:
    asked.setdefault("labels", place / "Dataset001_Drawn/labelsTr")
    request = ConvertRequest(**asked)
    return convert(
        Workspace(place / "w"), "dicom-seg", place / "in", place / "out", request=request
    )


def check(place: Path) -> pydicom.Dataset:
    """The segmentation shows the label map; returns it."""
    path = place / "out/a.dcm"
    series = put(place, "a", 0)
    found = {drawn.name: drawn.mask for drawn in read_drawn(path, series.geometry)}
    np.testing.assert_array_equal(found["liver"], label_map() > 0)
    np.testing.assert_array_equal(found["bile lake"], label_map() == 2)
    seg = pydicom.dcmread(path)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series.uid
    return seg


def test_label_maps_of_a_dataset_have_its_names_and_codes(place: Path) -> None:
    done = segmented(place)
    assert (done.cases, done.unlabelled, done.labels) == (
        *(1, ("b",)),
        {"liver": [1, 2], "bile lake": 2},
    )
    seg = check(place)
    types = [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in seg.SegmentSequence]
    assert sorted(types) == ["10200004", "A1"]
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"MANUAL"}


def test_label_maps_from_elsewhere_have_the_names_of_a_dataset(place: Path) -> None:
    mask = place / "Dataset001_Drawn/labelsTr/a.nii.gz"
    (place / "drawn").mkdir()
    (place / "drawn/a.nii.gz").write_bytes(mask.read_bytes())
    folder = place / "Dataset001_Drawn"
    write_label(folder / "imagesTr/a_0000.nii.gz", label_map(), read_label(mask).geometry)
    done = autoliver.convert(
        *("dicom-seg", place / "in", place / "out"),
        labels=place / "drawn",
        like=folder,
        seg_type="binary",
        workspace=place / "w",
    )
    assert done.facts["cases"] == 1
    check(place)


def test_predictions_are_told_from_corrections(tmp_path: Path, run: Path) -> None:
    for number, name in enumerate(("a", "b")):
        rng = np.random.default_rng(number)
        write_series(
            tmp_path / "in" / name,
            rng.integers(0, 400, (9, 12, 16)),
            Modality="MR",
            spacing_mm=(2.0, 2.0, 2.0),
            SeriesInstanceUID=f"1.2.3.{number}",
        )
    made = tmp_path / "predicted"
    place = Workspace(tmp_path / "w")
    done = predict_folder(place, tmp_path / "in", made, ASKED, models=(str(run),))
    label = read_label(made / "a.nii.gz")
    label.array[0, 3:5, 2:7, 4:9] = 3 - label.array[0, 3:5, 2:7, 4:9]
    write_label(made / "a.nii.gz", np.minimum(label.array[0], 2), label.geometry)
    segmented(tmp_path, labels=made, like=str(run))
    kinds = {}
    for name in ("a", "b"):
        (first, *_) = pydicom.dcmread(tmp_path / "out" / f"{name}.dcm").SegmentSequence
        kinds[name] = first.SegmentAlgorithmType
        assert first.SegmentAlgorithmName == done.model
    assert kinds == {"a": "SEMIAUTOMATIC", "b": "AUTOMATIC"}


def test_a_label_map_without_a_label_gives_no_file(place: Path) -> None:
    labels = place / "Dataset001_Drawn/labelsTr"
    write_label(labels / "b.nii.gz", 0 * label_map(), read_label(labels / "a.nii.gz").geometry)
    done = segmented(place)
    assert (done.cases, done.note) == (1, "No file, since without a label: b.")
    assert [path.name for path in (place / "out").iterdir()] == ["a.dcm"]


def moved(place: Path) -> None:
    mask = place / "Dataset001_Drawn/labelsTr/a.nii.gz"
    grid = read_label(mask).geometry.replace(origin_xyz=(0.0, 0.0, 0.0))
    write_label(mask, label_map(), grid)


def other_values(place: Path) -> None:
    mask = place / "Dataset001_Drawn/labelsTr/a.nii.gz"
    write_label(mask, 7 * label_map(), read_label(mask).geometry)


def nameless(place: Path) -> None:
    (place / "Dataset001_Drawn/dataset.json").unlink()
    (place / "Dataset001_Drawn/imagesTr").rmdir()


@pytest.mark.parametrize(
    ("change", "asked", "expected"),
    [
        (moved, {}, r"a: .*its origin is \(0, 0, 0\), that of the series"),
        (other_values, {}, "holds 7, 14; the labels are liver"),
        (nameless, {}, "there is no predict.json"),
        (None, {"labels": None}, "it is not said where the label maps are"),
        (None, {"labels": Path("nowhere")}, "--labels nowhere: there is no such folder"),
        (None, {"like": "Nope"}, "--like Nope: there is no such dataset or model"),
        (None, {"series": ("9",)}, "--series 9"),
        (None, {"rater": 1}, "--rater is for other kinds"),
    ],
    ids=["grid", "values", "names", "no labels", "folder", "like", "series", "rater"],
)
def test_what_does_not_fit_is_one_error_and_nothing_is_written(
    place: Path,
    change: Callable[[Path], None] | None,
    asked: dict[str, Any],
    expected: str,
) -> None:
    if change is not None:
        change(place)
    with pytest.raises(AutoliverError, match=expected) as error:
        segmented(place, **asked)
    assert error.value.hint
    assert not (place / "out").exists()


def test_other_kinds_have_no_use_for_its_options(place: Path) -> None:
    for asked in ({"like": "x"}, {"seg_type": "labelmap"}):
        with pytest.raises(OptionError, match="is for dicom-seg"):
            convert(
                *(Workspace(place / "w"), "dicom", place / "in", place / "out"),
                request=ConvertRequest(**asked),  # type: ignore[arg-type]
            )
    with pytest.raises(DatasetError, match="no DICOM file"):
        convert(
            *(Workspace(place / "w"), "dicom-seg", place / "Dataset001_Drawn", place / "out"),
            request=ConvertRequest(labels=place / "Dataset001_Drawn/labelsTr"),
        )
