"""A DICOM-SEG shows the same voxels to every reader, wherever its series lies in the patient."""

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_sources import ORIENTATIONS, header, save, write_multi_frame, write_series

from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.dicom.codes import Concept, SegmentCodes, SegType
from autoliver.io.dicom.drawn import read_drawn
from autoliver.io.dicom.group import find_series
from autoliver.io.dicom.seg import Algorithm, SegOptions, uncoded, write_seg
from autoliver.io.dicom.series import Series, Slice
from autoliver.io.dicom.source import affine_of, plane_of
from autoliver.io.volume import Geometry

REAL = Path(__file__).parents[4] / "shared/data/dicom_ct20slice"
LABELS = {"liver": (1,), "tumour": (2,), "right kidney": (3,), "spleen": (4,)}
UNION = {"liver": (1, 2), "tumour": (2,)}
MODEL = Algorithm(name="LiTS", version="0.1.0, 3f2a91")


def label_map(slices: int = 5) -> np.ndarray:
    """Nothing in it is symmetric; the first slice is empty, and so is label 4."""
    found = np.zeros((slices, 12, 16), np.uint8)
    found[slices > 1 :, 2:7, 3:11] = 1
    found[-1, 3:5, 4:9] = 2
    found[-1, 9, :3] = 3
    return found


def image(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.int16) * 50


def how(**options: object) -> SegOptions:
    return SegOptions(**{"labels": LABELS, "algorithm": MODEL, **options})


def write(path: Path, drawn: np.ndarray, series: Series, **options: object) -> pydicom.Dataset:
    assert write_seg(path, drawn, series, how(**options))
    return pydicom.dcmread(path)


def with_pydicom(path: Path, geometry: Geometry) -> dict[int, np.ndarray]:
    """Segment -> mask, each frame put where it says it lies."""
    dataset = pydicom.dcmread(path)
    inverse = np.linalg.inv(affine_of(geometry))
    masks: dict[int, np.ndarray] = {}
    groups = dataset.PerFrameFunctionalGroupsSequence
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for group, pixels in zip(groups, dataset.pixel_array, strict=True):
        own = group if "SegmentIdentificationSequence" in group else shared
        number = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        position = group.PlanePositionSequence[0].ImagePositionPatient
        voxel = inverse @ [*map(float, position), 1.0]
        np.testing.assert_allclose(voxel[:2], 0, atol=1e-3)
        mask = masks.setdefault(number, np.zeros(geometry.shape_zyx, bool))
        mask[round(voxel[2])] = pixels
    return masks


def with_highdicom(path: Path, geometry: Geometry) -> dict[int, np.ndarray]:
    """Segment -> mask, by highdicom's own geometry."""
    volume = highdicom.seg.segread(path).get_volume()
    masks = {}
    to_voxels = np.linalg.inv(affine_of(geometry)) @ volume.affine
    for index in range(volume.array.shape[-1]):
        inside = np.argwhere(volume.array[..., index])
        x, y, z = np.rint(to_voxels[:3, :3] @ inside.T + to_voxels[:3, 3:]).astype(int)
        mask = np.zeros(geometry.shape_zyx, bool)
        mask[z, y, x] = True
        masks[index + 1] = mask
    return masks


def with_itk(path: Path, geometry: Geometry, segments: int) -> dict[int, np.ndarray]:
    """Segment -> mask, by the origin and direction that SimpleITK finds.

    It stacks the frames of all segments and does not read their spacing.
    """
    read = sitk.ReadImage(str(path))
    frames = sitk.GetArrayFromImage(read) > 0
    reference = sitk.GetImageFromArray(np.zeros(geometry.shape_zyx, np.uint8))
    reference.SetSpacing(geometry.spacing_mm[::-1])
    reference.SetOrigin(geometry.origin_xyz)
    reference.SetDirection(geometry.direction)
    last = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence[-1]
    end = np.array(last.PlanePositionSequence[0].ImagePositionPatient, float)
    direction = np.reshape(read.GetDirection(), (3, 3))
    # The axis of the slices leads from the first to the last.
    towards = direction[:, 2] @ (end - read.GetOrigin())
    direction[:, 2] *= -1 if towards < 0 else 1
    masks = {}
    for index, stack in enumerate(np.split(frames, segments)):
        one = sitk.GetImageFromArray(stack.astype(np.uint8))
        one.SetOrigin(read.GetOrigin())
        one.SetSpacing(geometry.spacing_mm[::-1])
        one.SetDirection(direction.ravel())
        same = sitk.Resample(one, reference, sitk.Transform(), sitk.sitkNearestNeighbor)
        masks[index + 1] = sitk.GetArrayFromImage(same) > 0
    return masks


def check_readers(path: Path, labels: np.ndarray, series: Series) -> None:
    """Every reader finds labels 1, 2, 3 in segments 1, 2, 3."""
    expected = {value: labels == value for value in (1, 2, 3)}
    for masks in (
        with_pydicom(path, series.geometry),
        with_highdicom(path, series.geometry),
        with_itk(path, series.geometry, 3),
        {i: drawn.mask for i, drawn in enumerate(read_drawn(path, series.geometry), start=1)},
    ):
        assert masks.keys() == expected.keys()
        for value, mask in expected.items():
            np.testing.assert_array_equal(masks[value], mask)


@pytest.mark.parametrize("reverse", [False, True], ids=["", "reversed"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_readers_find_the_same_voxels(tmp_path: Path, orientation: str, reverse: bool) -> None:
    labels = label_map()
    series = write_series(
        tmp_path / "ct", image(labels), cosines=ORIENTATIONS[orientation], reverse=reverse
    )
    write(tmp_path / "seg.dcm", labels, series)
    check_readers(tmp_path / "seg.dcm", labels, series)


def test_a_single_slice(tmp_path: Path) -> None:
    labels = label_map(1)
    series = write_series(tmp_path / "ct", image(labels))
    write(tmp_path / "seg.dcm", labels, series)
    for value, mask in with_pydicom(tmp_path / "seg.dcm", series.geometry).items():
        np.testing.assert_array_equal(mask, labels == value)


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_multi_frame_image_with_frames_in_any_order(tmp_path: Path, per_frame: bool) -> None:
    labels, order = label_map(), [4, 2, 0, 1, 3]
    series = write_multi_frame(
        tmp_path / "mr.dcm", image(labels), frames=order, per_frame=per_frame
    )
    seg = write(tmp_path / "seg.dcm", labels, series)
    check_readers(tmp_path / "seg.dcm", labels, series)
    for group in seg.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        z = (group.PlanePositionSequence[0].ImagePositionPatient[2] - 100) / 3
        assert order[int(source.ReferencedFrameNumber) - 1] == round(z)


def test_some_frames_of_a_multi_frame_image(tmp_path: Path) -> None:
    labels = label_map()
    whole = write_multi_frame(tmp_path / "mr.dcm", image(labels), frames=[0, 1, 2, 3, 4])
    geometry = whole.geometry.replace(shape_zyx=(3, 12, 16), origin_xyz=(5.0, -7.0, 106.0))
    part = Series(
        uid=whole.uid,
        study_uid=whole.study_uid,
        modality="MR",
        description="",
        number=1,
        slices=whole.slices[2:],
        geometry=geometry,
    )
    write(tmp_path / "seg.dcm", labels[2:], part)
    check_readers(tmp_path / "seg.dcm", labels[2:], part)


def real_series() -> Series:
    if not REAL.is_dir():
        pytest.skip(f"needs {REAL}")
    read = [(pydicom.dcmread(f, stop_before_pixels=True), f) for f in REAL.glob("*.dcm")]
    read.sort(key=lambda pair: pair[0].ImagePositionPatient[2])
    first = read[0][0]
    step = read[1][0].ImagePositionPatient[2] - first.ImagePositionPatient[2]
    geometry = Geometry(
        shape_zyx=(len(read), first.Rows, first.Columns),
        spacing_mm=(float(step), *map(float, first.PixelSpacing)),
        origin_xyz=tuple(map(float, first.ImagePositionPatient)),
    )
    return Series(
        uid=first.SeriesInstanceUID,
        study_uid=first.StudyInstanceUID,
        modality="CT",
        description=first.SeriesDescription,
        number=None,
        slices=tuple(Slice(file) for _, file in read),
        geometry=geometry,
    )


def test_a_real_series(tmp_path: Path) -> None:
    series = real_series()
    labels = np.zeros(series.geometry.shape_zyx, np.uint8)
    z, y, x = np.indices(labels.shape)
    labels[((z - 9) / 6) ** 2 + ((y - 250) / 60) ** 2 + ((x - 170) / 80) ** 2 < 1] = 1
    labels[((z - 10) / 2) ** 2 + ((y - 240) / 15) ** 2 + ((x - 150) / 20) ** 2 < 1] = 2
    labels[2:4, 300:340, 370:390] = 3
    write(tmp_path / "seg.dcm", labels, series)
    check_readers(tmp_path / "seg.dcm", labels, series)
    no_errors(tmp_path / "seg.dcm")


def no_errors(path: Path) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy (Debian: dicom3tools)")
    found = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    lines = (found.stdout + found.stderr).splitlines()
    assert [line for line in lines if line.startswith("Error")] == []


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_dciodvfy_finds_no_error(tmp_path: Path, orientation: str) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels), cosines=ORIENTATIONS[orientation])
    write(tmp_path / "seg.dcm", labels, series)
    no_errors(tmp_path / "seg.dcm")


@pytest.mark.parametrize("labels", [UNION, LABELS])
def test_dciodvfy_finds_no_error_in_multi_frame(tmp_path: Path, labels: dict) -> None:
    drawn = np.minimum(label_map(), 2)
    series = write_multi_frame(tmp_path / "mr.dcm", image(drawn), frames=[0, 1, 2, 3, 4])
    write(tmp_path / "seg.dcm", drawn, series, labels=labels)
    no_errors(tmp_path / "seg.dcm")


def test_what_is_said_of_segments(tmp_path: Path) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    seg = write(tmp_path / "seg.dcm", labels, series)
    liver, tumour, kidney = seg.SegmentSequence
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["liver", "tumour", "right kidney"]
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [1, 2, 3]
    kinds = [s.SegmentedPropertyCategoryCodeSequence[0].CodeValue for s in seg.SegmentSequence]
    assert kinds == ["123037004", "49755003", "123037004"]
    (kind,) = kidney.SegmentedPropertyTypeCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "24028007"
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert "AnatomicRegionSequence" not in tumour  # there are three organs
    assert liver.SegmentAlgorithmType == "AUTOMATIC"
    assert liver.SegmentAlgorithmName == "LiTS"
    (algorithm,) = liver.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmVersion == "0.1.0, 3f2a91"
    colours = [tuple(s.RecommendedDisplayCIELabValue) for s in seg.SegmentSequence]
    assert len(set(colours)) == 3
    assert len({s.TrackingUID for s in seg.SegmentSequence}) == 3
    assert seg.StudyInstanceUID == series.study_uid
    assert seg.FrameOfReferenceUID.endswith(".4")
    assert (seg.PatientID, seg.AccessionNumber) == ("P1", "A1")
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.uid
    assert len(referenced.ReferencedInstanceSequence) == 5


def test_a_tumour_lies_in_the_only_organ(tmp_path: Path) -> None:
    drawn = np.minimum(label_map(), 2)
    series = write_series(tmp_path / "ct", image(drawn))
    tumour = write(tmp_path / "seg.dcm", drawn, series, labels=UNION).SegmentSequence[1]
    assert tumour.AnatomicRegionSequence[0].CodeValue == "10200004"


def test_empty_frames_stay_and_absent_segments_do_not(tmp_path: Path) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    seg = write(tmp_path / "seg.dcm", labels, series)
    assert seg.NumberOfFrames == 3 * 5
    assert "spleen" not in [s.SegmentLabel for s in seg.SegmentSequence]


def test_nothing_is_written_without_a_label(tmp_path: Path) -> None:
    labels = np.zeros((5, 12, 16), np.uint8)
    series = write_series(tmp_path / "ct", image(labels))
    assert not write_seg(tmp_path / "seg.dcm", labels, series, how())
    assert not (tmp_path / "seg.dcm").exists()


def test_labels_that_share_values_overlap(tmp_path: Path) -> None:
    drawn = np.minimum(label_map(), 2)
    series = write_series(tmp_path / "ct", image(drawn))
    seg = write(tmp_path / "seg.dcm", drawn, series, labels=UNION)
    assert seg.SegmentsOverlap == "YES"
    masks = with_highdicom(tmp_path / "seg.dcm", series.geometry)
    np.testing.assert_array_equal(masks[1], drawn > 0)
    np.testing.assert_array_equal(masks[2], drawn == 2)


@pytest.mark.parametrize(
    ("labels", "liver"), [(UNION, {1}), (LABELS, {1}), ({**UNION, "liver": (2, 1)}, {1})]
)
def test_a_labelmap_has_each_voxel_in_one_segment(
    tmp_path: Path, labels: dict, liver: set[int]
) -> None:
    drawn = np.minimum(label_map(), 2)
    series = write_series(tmp_path / "ct", image(drawn))
    seg = write(tmp_path / "seg.dcm", drawn, series, labels=labels, seg_type="labelmap")
    assert seg.SegmentationType == "LABELMAP"
    assert seg.NumberOfFrames == 5
    for masks in (
        with_highdicom(tmp_path / "seg.dcm", series.geometry),
        {i: d.mask for i, d in enumerate(read_drawn(tmp_path / "seg.dcm", series.geometry), 1)},
    ):
        np.testing.assert_array_equal(masks[1], np.isin(drawn, list(liver)))
        np.testing.assert_array_equal(masks[2], drawn == 2)


@pytest.mark.parametrize("seg_type", ["binary", "labelmap"])
def test_the_same_label_map_gives_the_same_file(tmp_path: Path, seg_type: SegType) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    first = write(tmp_path / "a.dcm", labels, series, seg_type=seg_type)
    write(tmp_path / "b.dcm", labels, series, seg_type=seg_type)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    other = labels.copy()
    other[0, 0, 0] = 1
    changed = [
        write(tmp_path / "c.dcm", other, series, seg_type=seg_type),
        write(tmp_path / "d.dcm", labels, series, seg_type=seg_type, labels={**LABELS, "x": (4,)}),
        write(
            tmp_path / "e.dcm",
            labels,
            series,
            seg_type=seg_type,
            algorithm=Algorithm(name="LiTS", version="0.2"),
        ),
    ]
    assert changed[0].SOPInstanceUID != first.SOPInstanceUID
    assert changed[1].SOPInstanceUID == first.SOPInstanceUID  # the label has no voxel
    assert changed[2].SOPInstanceUID != first.SOPInstanceUID
    uids = [d.SegmentSequence[-1].TrackingUID for d in changed]
    assert set(uids) == {first.SegmentSequence[-1].TrackingUID}


def test_who_has_drawn_it(tmp_path: Path) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    drawn = Algorithm(name="autoliver", version="0.1.0", kind="MANUAL")
    seg = write(tmp_path / "seg.dcm", labels, series, algorithm=drawn)
    assert seg.SegmentSequence[0].SegmentAlgorithmType == "MANUAL"
    assert "SegmentAlgorithmName" not in seg.SegmentSequence[0]
    no_errors(tmp_path / "seg.dcm")


def test_given_codes_are_written(tmp_path: Path) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    own = SegmentCodes(
        type=Concept("A1", "99LAB", "Fold"), region=Concept("10200004", "SCT", "Liver")
    )
    seg = write(tmp_path / "seg.dcm", labels, series, codes={"liver": own})
    (kind,) = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == (
        *("A1", "99LAB", "Fold"),
    )
    no_errors(tmp_path / "seg.dcm")


NAMES = {
    "x" * 70: "x" * 61 + "...",
    "Lebergefäße": "Lebergefäße",
    "肝脏": "肝脏",
    "a\\b": "a/b",
}


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_label(tmp_path: Path, name: str) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels), PatientName="Müller^Jürg",
                          SpecificCharacterSet="ISO_IR 100")  # fmt: skip
    seg = write(tmp_path / "seg.dcm", labels, series, labels={**LABELS, "liver": (9,), name: (1,)})
    assert NAMES[name] in [s.SegmentLabel for s in seg.SegmentSequence]
    assert seg.PatientName == "Müller^Jürg"
    assert name in [drawn.name for drawn in read_drawn(tmp_path / "seg.dcm", series.geometry)]
    no_errors(tmp_path / "seg.dcm")


def test_long_names_stay_apart(tmp_path: Path) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    long = {f"{'x' * 80}{number}": (number,) for number in (1, 2, 3)}
    seg = write(tmp_path / "seg.dcm", labels, series, labels=long)
    shown = [s.SegmentLabel for s in seg.SegmentSequence]
    assert len(set(shown)) == 3
    assert max(len(label.encode()) for label in shown) <= 64


def test_a_long_name_of_the_model_and_of_the_series(tmp_path: Path) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels), SeriesDescription="y" * 64)
    write(
        tmp_path / "seg.dcm",
        labels,
        series,
        algorithm=Algorithm(name="Lebermodell für die Klinik " * 5, version="v" * 80),
    )
    no_errors(tmp_path / "seg.dcm")


# What images of old or anonymised archives lack or say wrongly.
POOR = {
    "no study": {"StudyInstanceUID": None, "SeriesInstanceUID": None},
    "no frame of reference": {"FrameOfReferenceUID": None, "PositionReferenceIndicator": None},
    "no patient": {
        **dict.fromkeys(["PatientID", "PatientName", "PatientBirthDate", "PatientSex"]),
        **dict.fromkeys(["AccessionNumber", "StudyID", "StudyDate", "StudyTime"]),
    },
    "odd patient": {"PatientSex": "W", "SeriesNumber": None},
    "empty": {"PatientSex": "", "StudyDate": "", "StudyTime": "", "StudyID": ""},
}


@pytest.mark.parametrize("poor", POOR)
def test_images_that_lack_what_they_should_have(tmp_path: Path, poor: str) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels), **POOR[poor])
    write(tmp_path / "a.dcm", labels, series)
    check_readers(tmp_path / "a.dcm", labels, series)
    write(tmp_path / "b.dcm", labels, series)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    no_errors(tmp_path / "a.dcm")


def each(**tags: object) -> Callable[[int, pydicom.Dataset], None]:
    """A change of all slices: a value, what makes one of the index, or None to leave it out."""

    def change(index: int, dataset: pydicom.Dataset) -> None:
        for name, value in tags.items():
            if value is None and name in dataset:
                delattr(dataset, name)
            elif value is not None:
                setattr(dataset, name, value(index) if callable(value) else value)

    return change


# What slices lack, or say each in its own way.
UNEVEN = {
    "no class": each(SOPClassUID=None),
    "no thickness": each(SliceThickness=None),
    "an empty thickness": each(SliceThickness=""),
    "a thickness of zero": each(SliceThickness=0),
    "several thicknesses": each(SliceThickness=lambda n: 2.5 + n),
    "several studies": each(StudyInstanceUID=lambda n: f"1.2.{n}"),
    "several frames of reference": each(FrameOfReferenceUID=lambda n: f"1.2.{n}"),
    "a frame of reference in some": each(FrameOfReferenceUID=lambda n: "1.2.3" if n else ""),
    "no study in the first": each(StudyInstanceUID=lambda n: "1.2.3" if n else ""),
    "several patients": each(PatientID=lambda n: f"P{n}"),
    "no series": each(SeriesInstanceUID=None, StudyInstanceUID=None, FrameOfReferenceUID=None),
}


def changed(series: Series, change: Callable[[int, pydicom.Dataset], None]) -> Series:
    """A series after its files were changed, as it is read again."""
    for index, one in enumerate(series.slices):
        dataset = pydicom.dcmread(one.file)
        change(index, dataset)
        dataset.save_as(one.file, enforce_file_format=True)
    (again,) = find_series(one.file for one in series.slices).series
    return again


@pytest.mark.parametrize("kind", UNEVEN)
def test_slices_that_do_not_agree(tmp_path: Path, kind: str) -> None:
    labels = label_map()
    series = changed(write_series(tmp_path / "ct", image(labels)), UNEVEN[kind])
    seg = write(tmp_path / "a.dcm", labels, series)
    check_readers(tmp_path / "a.dcm", labels, series)
    assert len(seg.ReferencedSeriesSequence) == 1
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(labels)
    no_errors(tmp_path / "a.dcm")


def test_headers_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    for one in series.slices:
        dataset = pydicom.dcmread(one.file)
        del dataset.SOPClassUID
        del dataset.file_meta.MediaStorageSOPClassUID
        dataset.Modality = "OT"
        dataset.save_as(one.file)
    with pytest.raises(DatasetError, match=r"seg\.dcm: no segmentation can refer to the DICOM"):
        write_seg(tmp_path / "seg.dcm", labels, dataclasses.replace(series, modality="OT"), how())


def test_slices_with_one_identifier_are_refused(tmp_path: Path) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    series = changed(series, each(SOPInstanceUID=lambda n: f"1.2.{n // 2}"))
    with pytest.raises(DatasetError, match=r"2 slices of the DICOM series .* have the SOPInst"):
        write_seg(tmp_path / "seg.dcm", labels, series, how())


@pytest.mark.parametrize(
    "missing", [[], ["SeriesInstanceUID"], ["StudyInstanceUID", "SeriesInstanceUID"]]
)
def test_tracking_tells_patients_apart(tmp_path: Path, missing: list[str]) -> None:
    """Two patients whose files have the same names and lie on the same grid."""
    labels = label_map()
    found = set()
    for patient, root in (("one", "1.2.1"), ("two", "1.2.2")):
        series = write_series(tmp_path / patient, image(labels), SeriesInstanceUID=root)
        series = changed(series, each(PatientID=patient, **dict.fromkeys(missing)))
        seg = write(tmp_path / f"{patient}.dcm", labels, series)
        again = write(tmp_path / f"{patient}-again.dcm", labels, series)
        tracked = [segment.TrackingUID for segment in seg.SegmentSequence]
        assert tracked == [segment.TrackingUID for segment in again.SegmentSequence]
        found |= set(tracked)
    assert len(found) == 2 * 3


@pytest.mark.parametrize("count", [255, 300])
def test_many_labels(tmp_path: Path, count: int) -> None:
    labels = np.arange(2 * 16 * 16).reshape(2, 16, 16) % (count + 1)
    series = write_series(tmp_path / "ct", labels)
    named = {f"label {value}": (value,) for value in range(1, count + 1)}
    seg = write(tmp_path / "seg.dcm", labels, series, labels=named, seg_type="labelmap")
    assert seg.BitsAllocated == (8 if count < 256 else 16)
    found = read_drawn(tmp_path / "seg.dcm", series.geometry)
    for drawn in found[:: count // 5]:
        np.testing.assert_array_equal(drawn.mask, labels == named[drawn.name][0])


def test_more_labels_than_a_file_holds(tmp_path: Path) -> None:
    labels = np.arange(66_000, dtype=np.int32).reshape(1, 220, 300)
    series = write_series(tmp_path / "ct", labels % 100)
    named = {f"label {value}": (value,) for value in range(1, 66_000)}
    with pytest.raises(AutoliverError, match="65999 segments; a DICOM file holds 65535"):
        write_seg(tmp_path / "seg.dcm", labels, series, how(labels=named))


def test_more_voxels_than_a_file_holds(tmp_path: Path) -> None:
    labels = np.arange(8 * 240 * 300, dtype=np.int32).reshape(8, 240, 300) % 65_000
    series = write_series(tmp_path / "ct", labels % 100)
    named = {f"label {value}": (value,) for value in range(1, 65_000)}
    with pytest.raises(AutoliverError, match="a DICOM file holds 4 GB") as error:
        write_seg(tmp_path / "seg.dcm", labels, series, how(labels=named))
    assert "--seg-type labelmap" in error.value.hint


@pytest.mark.parametrize("shape", [(4, 12, 16), (6, 12, 16), (5, 16, 12), (5, 12, 15)])
def test_another_grid_is_refused(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    series = write_series(tmp_path / "ct", image(label_map()))
    with pytest.raises(DatasetError, match="its series 5 x 12 x 16"):
        write_seg(tmp_path / "s.dcm", np.ones(shape, np.uint8), series, how())


def test_an_unknown_value_is_refused(tmp_path: Path) -> None:
    labels = label_map()
    labels[0, 0, 0] = 7
    series = write_series(tmp_path / "ct", image(labels))
    with pytest.raises(DatasetError, match=r"holds 7; the labels are liver \(1\), tumour \(2\)"):
        write_seg(tmp_path / "seg.dcm", labels, series, how())


def moved(series: Series) -> None:
    file = series.slices[2].file
    dataset = pydicom.dcmread(file)
    dataset.ImagePositionPatient = [0, 0, 0]
    save(dataset, file)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (moved, "lies elsewhere"),
        (
            lambda series: series.slices[0].file.unlink(),
            "no such file|No such file|not there|does not exist",
        ),
        (
            lambda series: series.slices[0].file.write_bytes(b"x" * 200),
            "is no DICOM image|cannot be read",
        ),
    ],
)
def test_a_series_that_has_changed(tmp_path: Path, change: object, problem: str) -> None:
    labels = label_map()
    series = write_series(tmp_path / "ct", image(labels))
    change(series)
    with pytest.raises(DatasetError, match=problem):
        write_seg(tmp_path / "seg.dcm", labels, series, how())


def test_labels_without_codes_are_named() -> None:
    assert uncoded(LABELS) == ""
    assert uncoded({"liver": (1,), "fold": (2,)}).startswith("fold: no code is known for it")
    assert uncoded({"fold": (2,)}, {"fold": SegmentCodes(type=Concept("1", "99LAB", "F"))}) == ""


def test_planes_say_where_they_lie() -> None:
    dataset = header()
    with pytest.raises(DatasetError, match="no ImagePositionPatient"):
        plane_of(dataset, None)
