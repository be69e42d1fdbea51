"""`convert dicom` makes label maps of the segmentations that lie beside series."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_sources import ORIENTATIONS, write_series

from autoliver.datasets.cases import read_dataset
from autoliver.errors import DatasetError
from autoliver.io.dicom.seg import Algorithm, SegOptions, write_seg
from autoliver.io.files import read_image, read_label
from autoliver.pipeline.conversion.convert import convert
from autoliver.pipeline.conversion.result import Converted
from autoliver.workspace import Workspace

MODEL = Algorithm(name="m", version="1")


def label_map(*values: int) -> np.ndarray:
    found = np.zeros((4, 12, 16), np.uint8)
    for number, value in enumerate(values):
        found[1:, 2:9, 3 + 2 * number : 5 + 2 * number] = value
    return found


def put(
    folder: Path,
    name: str,
    drawn: np.ndarray,
    labels: dict[str, tuple[int, ...]],
    **tags: object,
) -> None:
    series = write_series(
        folder / name,
        label_map(1).astype(np.int16) * 50,
        cosines=ORIENTATIONS["oblique"],
        **{
            "SeriesInstanceUID": f"1.2.3.{len(name)}",
            "StudyInstanceUID": f"1.2.4.{len(name)}",
            **tags,
        },
    )
    if labels:
        options = SegOptions(labels=labels, algorithm=MODEL)
        write_seg(folder / "results" / f"{name}.dcm", drawn, series, options)


def converted(tmp_path: Path) -> Converted:
    return convert(Workspace(tmp_path / "w"), "dicom", tmp_path / "in", tmp_path / "out")


def test_segmentations_become_label_maps(tmp_path: Path) -> None:
    put(tmp_path / "in", "a", label_map(1, 2), {"Liver": (1,), "cyst": (2,)})
    put(tmp_path / "in", "bb", label_map(3, 4), {"tumour": (3,), "liver": (4,)})
    put(tmp_path / "in", "ccc", label_map(), {})
    found = converted(tmp_path)
    assert found.labels == {"background": 0, "Liver": 1, "cyst": 2, "tumour": 3}
    assert found.unlabelled == ("ccc",)
    assert found.next_command.startswith("autoliver plan")
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert description["labels"] == found.labels
    for name, expected in (("a", label_map(1, 2)), ("bb", label_map(3, 1))):
        label = read_label(tmp_path / "out" / "labelsTr" / f"{name}.nii.gz")
        np.testing.assert_array_equal(label.array[0], expected)
        image = read_image([tmp_path / "out" / "imagesTr" / f"{name}_0000.nii.gz"])
        assert label.geometry.shape_zyx == image.geometry.shape_zyx


def test_without_segmentations_there_are_images_alone(tmp_path: Path) -> None:
    put(tmp_path / "in", "a", label_map(), {})
    found = converted(tmp_path)
    assert found.unlabelled == ()
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_damaged_segmentation_is_named(tmp_path: Path) -> None:
    put(tmp_path / "in", "a", label_map(1), {"liver": (1,)})
    seg = tmp_path / "in" / "results" / "a.dcm"
    seg.write_bytes(seg.read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"a\.dcm"):
        converted(tmp_path)


# PatientID and study of each series (None: the header says none) -> which are of one patient.
PATIENTS = {
    "one patient, two studies": ([("P1", "1"), ("P1", "2"), ("P2", "3")], "aab"),
    "one study without PatientID": ([(None, "1"), (None, "1"), (None, "2")], "aab"),
    "PatientID in some series of a study": ([(None, "1"), ("P1", "1"), ("P1", "2")], "aab"),
    "nothing": ([(None, None), (None, None), (None, "2")], "abc"),
    "one PatientID for all": ([("ANON", "1"), ("ANON", "1"), ("ANON", "2")], "aab"),
    "one PatientID for all that have one": ([("ANON", "1"), ("ANON", "2"), (None, "3")], "abc"),
    "a single study": ([("P1", "1"), ("P1", "1"), ("P1", "1")], "aaa"),
}


@pytest.mark.parametrize("kind", PATIENTS)
def test_series_of_one_patient_stay_together(tmp_path: Path, kind: str) -> None:
    told, expected = PATIENTS[kind]
    names = ["a", "bb", "ccc"]
    for name, (patient, study) in zip(names, told, strict=True):
        tags = {"PatientID": patient, "StudyInstanceUID": study and f"1.2.4.{study}"}
        put(tmp_path / "in", name, label_map(1), {"liver": (1,)}, **tags)
    done = converted(tmp_path)
    text = (tmp_path / "out" / "dataset.json").read_text()
    patient_of = {case.name: case.patient for case in read_dataset(tmp_path / "out").cases}
    found = [patient_of[name] for name in names]
    assert [found.index(each) for each in found] == [expected.index(each) for each in expected]
    assert done.patients == len(set(expected))
    assert not any(patient and patient in text for patient, _ in told)


# Name of a segment -> that of its label; None: its voxels are background.
SEGMENTS = {
    "Background": None,
    "background": None,
    "ignore": "ignore (segment)",
    "Ignore": "Ignore (segment)",
    "": "unnamed",
    "  ": "unnamed",
    "a/b": "a/b",
    "liver, left": "liver, left",
    "7": "7",
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_any_name_of_a_segment(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "in", "a", label_map(1, 2), {"x": (1,), "liver": (2,)})
    rename(tmp_path / "in" / "results" / "a.dcm", name)
    expected = SEGMENTS[name]
    found = converted(tmp_path)
    liver = 1 if expected is None else 2
    assert found.labels == {"background": 0, **({expected: 1} if expected else {}), "liver": liver}
    label = read_label(tmp_path / "out" / "labelsTr" / "a.nii.gz").array[0]
    np.testing.assert_array_equal(label, label_map(0, 1) if expected is None else label_map(1, 2))
    assert ("a.dcm: its segment" in caplog.text) == (expected != name)
    assert read_dataset(tmp_path / "out").labels.ignore is None


def rename(seg: Path, name: str) -> None:
    """Gives the first segment of a file another name."""
    dataset = pydicom.dcmread(seg)
    segment = dataset.SegmentSequence[0]
    segment.SegmentLabel = segment.SegmentDescription = name
    dataset.save_as(seg)


def test_a_file_in_which_nothing_is_drawn_is_named(tmp_path: Path) -> None:
    put(tmp_path / "in", "a", label_map(1), {"x": (1,)})
    rename(tmp_path / "in" / "results" / "a.dcm", "Background")
    with pytest.raises(DatasetError, match=r"a\.dcm: no region but the background"):
        converted(tmp_path)
    assert not (tmp_path / "out").exists()
