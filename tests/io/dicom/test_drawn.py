"""Segmentations and structure sets that refer to a series become its label map."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_sources import ORIENTATIONS, ROOT, header, save, write_series
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes

from autoliver.errors import DatasetError
from autoliver.io.dicom.drawn import labels_of, read_drawn
from autoliver.io.dicom.seg import Algorithm, SegOptions, write_seg
from autoliver.io.dicom.series import Series

LABELS = {"liver": (1,), "tumour": (2,)}
MODEL = Algorithm(name="LiTS", version="0.1.0")


def how(labels: dict[str, tuple[int, ...]], **options: object) -> SegOptions:
    return SegOptions(labels=labels, algorithm=MODEL, **options)


def label_map() -> np.ndarray:
    found = np.zeros((4, 12, 16), np.uint8)
    found[1:, 2:9, 3:12] = 1
    found[2, 4:6, 5:9] = 2
    return found


def series_in(folder: Path, **options: object) -> Series:
    return write_series(folder, label_map().astype(np.int16) * 50, **options)


def by_highdicom(path: Path, array: np.ndarray, series: Series, **options: object) -> None:
    """A segmentation as another program writes it: of an own geometry, empty frames left out."""
    sources = [pydicom.dcmread(one.file) for one in series.slices]
    description = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label="Leber",
        segmented_property_category=codes.SCT.Organ,
        segmented_property_type=codes.SCT.Liver,
        algorithm_type="MANUAL",
    )
    highdicom.seg.Segmentation(
        sources,
        array,
        **{"segmentation_type": "BINARY", "segment_descriptions": [description], **options},
        series_instance_uid=f"{ROOT}.8",
        series_number=9,
        sop_instance_uid=f"{ROOT}.8.1",
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)


STREAMS = {
    "JPEG 2000": (uid.JPEG2000Lossless, b"\xff\x4f\xff\x51" + bytes(60)),
    "JPEG": (uid.JPEGLosslessSV1, b"\xff\xd8\xff\xc3" + bytes(60)),
    "JPEG-LS": (uid.JPEGLSLossless, b"\xff\xd8\xff\xf7" + bytes(60)),
    "RLE": (uid.RLELossless, bytes(20)),
    "nothing": (uid.JPEG2000Lossless, bytes(2)),
    "cut short": (uid.ExplicitVRLittleEndian, None),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_damaged_stream_is_named(tmp_path: Path, stream: str) -> None:
    series = series_in(tmp_path / "ct")
    write_seg(tmp_path / "s.dcm", label_map(), series, how(LABELS, seg_type="labelmap"))
    dataset = pydicom.dcmread(tmp_path / "s.dcm")
    syntax, frame = STREAMS[stream]
    dataset.file_meta.TransferSyntaxUID = syntax
    if frame is None:
        dataset.PixelData = dataset.PixelData[:-4]
    else:
        dataset.PixelData = encapsulate([frame] * dataset.NumberOfFrames)
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    save(dataset, tmp_path / "s.dcm")
    with pytest.raises(DatasetError, match=r"s\.dcm: this DICOM file cannot be read"):
        read_drawn(tmp_path / "s.dcm", series.geometry)


def to_mm(series: Series) -> np.ndarray:
    """The matrix (4, 4) from voxels (x, y, z) to mm, by the headers of the slices alone."""
    first, second = (pydicom.dcmread(one.file) for one in series.slices[:2])
    cosines = np.array(first.ImageOrientationPatient, float)
    rows, columns = map(float, first.PixelSpacing)  # the distance of rows comes first
    start = np.array(first.ImagePositionPatient, float)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = cosines[:3] * columns, cosines[3:] * rows
    matrix[:3, 2], matrix[:3, 3] = np.array(second.ImagePositionPatient, float) - start, start
    return matrix


def volume(array: np.ndarray, series: Series) -> highdicom.Volume:
    """An array (z, y, x) on the grid of a series."""
    affine = to_mm(series)[:, [2, 1, 0, 3]]
    return highdicom.Volume(array, affine, "PATIENT", f"{ROOT}.4")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_segmentation_with_empty_frames_left_out(tmp_path: Path, orientation: str) -> None:
    series = series_in(tmp_path / "ct", cosines=ORIENTATIONS[orientation])
    mask = label_map() > 0
    by_highdicom(tmp_path / "seg.dcm", mask.astype(np.uint8), series)
    (leber,) = read_drawn(tmp_path / "seg.dcm", series.geometry)
    assert leber.name == "Leber"
    np.testing.assert_array_equal(leber.mask, mask)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
@pytest.mark.parametrize("flip", [False, True])
def test_frames_across_the_slices(tmp_path: Path, axes: tuple[int, int, int], flip: bool) -> None:
    series = series_in(tmp_path / "ct", cosines=ORIENTATIONS["oblique"])
    mask = label_map() > 0
    turned = volume(mask.astype(np.uint8), series).permute_spatial_axes(axes)
    if flip:
        turned = turned.flip_spatial([0, 2])
    by_highdicom(tmp_path / "seg.dcm", turned, series)
    (leber,) = read_drawn(tmp_path / "seg.dcm", series.geometry)
    np.testing.assert_array_equal(leber.mask, mask)


def test_a_fractional_segmentation_is_cut_at_one_half(tmp_path: Path) -> None:
    series = series_in(tmp_path / "ct")
    shares = np.zeros((4, 12, 16), np.float32)
    shares[1, 2, 3:8] = [0.1, 0.4, 0.6, 0.9, 1.0]
    by_highdicom(tmp_path / "seg.dcm", shares, series, segmentation_type="FRACTIONAL")
    (leber,) = read_drawn(tmp_path / "seg.dcm", series.geometry)
    np.testing.assert_array_equal(leber.mask, shares > 0.5)


def test_another_grid_is_refused(tmp_path: Path) -> None:
    series = series_in(tmp_path / "ct")
    shifted = volume(np.ones((4, 12, 16), np.uint8), series)
    affine = shifted.affine.copy()
    affine[0, 3] += 0.4
    moved = highdicom.Volume(shifted.array, affine, "PATIENT", f"{ROOT}.4")
    by_highdicom(tmp_path / "seg.dcm", moved, series)
    with pytest.raises(DatasetError, match="drawn on another grid"):
        read_drawn(tmp_path / "seg.dcm", series.geometry)


@pytest.mark.parametrize("seg_type", ["binary", "labelmap"])
def test_the_label_map_of_a_series(tmp_path: Path, seg_type: str) -> None:
    series = series_in(tmp_path / "ct")
    drawn = label_map()
    write_seg(tmp_path / "s.dcm", drawn, series, how(LABELS, seg_type=seg_type))
    found = labels_of(series, [tmp_path / "s.dcm"])
    assert found is not None
    assert found.values == {"liver": 1, "tumour": 2}
    np.testing.assert_array_equal(found.volume.array[0], drawn)
    assert found.volume.geometry == series.geometry
    assert found.notes == ()


def test_where_labels_overlap_the_smaller_one_stays(tmp_path: Path) -> None:
    series = series_in(tmp_path / "ct")
    regions = {"tumour": (2,), "liver": (1, 2)}
    write_seg(tmp_path / "s.dcm", label_map(), series, how(regions))
    found = labels_of(series, [tmp_path / "s.dcm"])
    assert found is not None
    assert found.values == {"tumour": 1, "liver": 2}
    np.testing.assert_array_equal(found.volume.array[0] == 1, label_map() == 2)
    np.testing.assert_array_equal(found.volume.array[0] == 2, label_map() == 1)
    assert found.notes == ("tumour covers 8 voxels of labels that are larger.",)


def test_files_about_other_series_are_passed_over(tmp_path: Path) -> None:
    series = series_in(tmp_path / "ct")
    write_seg(tmp_path / "s.dcm", label_map(), series, how(LABELS))
    other = pydicom.dcmread(tmp_path / "s.dcm")
    for place in (other.ReferencedSeriesSequence[0],):
        place.SeriesInstanceUID = f"{ROOT}.99"
    text = other.to_json().replace(f"{ROOT}.3.", f"{ROOT}.98.")
    again = Dataset.from_json(text)
    again.file_meta = other.file_meta
    again.save_as(tmp_path / "o.dcm", enforce_file_format=True)
    assert labels_of(series, [tmp_path / "o.dcm"]) is None
    assert labels_of(series, [series.slices[0].file, tmp_path / "s.dcm"]) is not None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    series = series_in(tmp_path / "ct")
    (tmp_path / "s.dcm").write_bytes(b"nothing" * 40)
    with pytest.raises(DatasetError, match=r"s\.dcm"):
        labels_of(series, [tmp_path / "s.dcm"])


def structure_set(path: Path, series: Series, regions: dict[str, list[tuple]]) -> None:
    """Writes contours, given as (z, [(x, y), ...]) in voxels; z may lie between slices."""
    affine = to_mm(series)
    dataset = header("RTSTRUCT")
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.SOPInstanceUID = f"{ROOT}.7.1"
    dataset.SeriesInstanceUID = f"{ROOT}.7"
    referenced, study, frame = Dataset(), Dataset(), Dataset()
    referenced.SeriesInstanceUID = series.uid
    study.RTReferencedSeriesSequence = [referenced]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = f"{ROOT}.4", [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), start=1):
        roi, item = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        item.ReferencedROINumber, item.ContourSequence = number, []
        for z, points in contours:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            in_mm = [affine @ (x, y, z, 1) for x, y in points]
            contour.ContourData = [f"{v:.6f}" for point in in_mm for v in point[:3]]
            item.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(item)
    save(dataset, path)


def square(low: float, high: float) -> list[tuple[float, float]]:
    return [(low, low), (high, low), (high, high), (low, high)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_contours_by_hand(tmp_path: Path, orientation: str, reverse: bool) -> None:
    series = series_in(tmp_path / "ct", cosines=ORIENTATIONS[orientation], reverse=reverse)
    # A square with a square hole, which holds an island; and a triangle in another slice.
    ring = [(1, square(0.5, 9.5)), (1, square(2.5, 7.5)), (1, square(4.5, 5.5))]
    triangle = [(3, [(1.5, 1.5), (5.5, 1.5), (1.5, 5.5)])]
    structure_set(tmp_path / "rt.dcm", series, {"Liver": ring, "Tumour": triangle})
    found = labels_of(series, [tmp_path / "rt.dcm"])
    expected = np.zeros((4, 12, 16), np.uint8)
    expected[1, 1:10, 1:10] = 1
    expected[1, 3:8, 3:8] = 0
    expected[1, 5, 5] = 1
    for row, count in ((2, 3), (3, 2), (4, 1)):
        expected[3, row, 2 : 2 + count] = 2
    assert found is not None
    assert found.values == {"Liver": 1, "Tumour": 2}
    diagonal = np.zeros_like(expected, bool)
    diagonal[3, [2, 3, 4, 5], [5, 4, 3, 2]] = True  # on the line: either is right
    np.testing.assert_array_equal(found.volume.array[0][~diagonal], expected[~diagonal])


# Where contours lie along z -> voxels of each slice, of squares with sides of 4 + the index of the
# contour; and what is said.
PLANES = {
    "each slice": ([0, 1, 2, 3], [16, 25, 36, 49], []),
    "half slices": ([0, 0.5, 1, 1.5, 2, 2.5, 3], [16, 36, 64, 100], ["3 planes of contours"]),
    "0.4 slices": ([0.4 * n for n in range(8)], [16, 36, 81, 121], ["4 planes of contours"]),
    "halfway": ([0.5, 1.5, 2.5], [0, 16, 25, 36], []),
    "halfway, rounded": ([0.4999, 1.5, 2.5001], [0, 16, 25, 36], []),
    "uneven": ([0.1, 0.7, 1.2, 2.9], [16, 36, 0, 49], ["1 plane of", "1 slice between"]),
    "every second slice": ([0, 2], [16, 0, 25, 0], ["1 slice between contours without"]),
    "two parts": ([0, 3], [16, 0, 0, 25], []),
    "rounded in the file": ([0.003, 1, 1.996, 3], [16, 25, 36, 49], []),
}


@pytest.mark.parametrize("kind", PLANES)
@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_contours_at_any_distance(tmp_path: Path, orientation: str, kind: str) -> None:
    series = series_in(tmp_path / "ct", cosines=ORIENTATIONS[orientation])
    planes, expected, words = PLANES[kind]
    contours = [(z, square(0.5, 4.5 + side)) for side, z in enumerate(planes)]
    structure_set(tmp_path / "rt.dcm", series, {"Liver": contours})
    (liver,) = read_drawn(tmp_path / "rt.dcm", series.geometry)
    assert liver.mask.sum(axis=(1, 2)).tolist() == expected
    assert len(liver.notes) == len(words)
    for note, word in zip(liver.notes, words, strict=True):
        assert note.startswith(f"Liver: {word}")
    found = labels_of(series, [tmp_path / "rt.dcm"])
    assert found is not None
    assert found.notes == liver.notes


def test_a_hole_between_slices_stays_one(tmp_path: Path) -> None:
    series = series_in(tmp_path / "ct")
    ring = [(1.3, square(0.5, 9.5)), (1.301, square(2.5, 7.5))]
    structure_set(tmp_path / "rt.dcm", series, {"Liver": ring})
    (liver,) = read_drawn(tmp_path / "rt.dcm", series.geometry)
    assert liver.mask.sum(axis=(1, 2)).tolist() == [0, 81 - 25, 0, 0]


def test_a_contour_across_slices_is_refused(tmp_path: Path) -> None:
    series = series_in(tmp_path / "ct")
    structure_set(tmp_path / "rt.dcm", series, {"Liver": [(1, square(2, 9))]})
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    contour = dataset.ROIContourSequence[0].ContourSequence[0]
    data = list(contour.ContourData)
    data[2] += 5.0
    contour.ContourData = data
    save(dataset, tmp_path / "rt.dcm")
    with pytest.raises(DatasetError, match="does not lie in a slice"):
        labels_of(series, [tmp_path / "rt.dcm"])


def test_contours_beyond_the_series_are_left_out(tmp_path: Path) -> None:
    series = series_in(tmp_path / "ct")
    contours = [(-2, square(2, 9)), (2, square(9.5, 40)), (7, square(2, 9))]
    structure_set(tmp_path / "rt.dcm", series, {"Liver": contours})
    found = labels_of(series, [tmp_path / "rt.dcm"])
    expected = np.zeros((4, 12, 16), np.uint8)
    expected[2, 10:, 10:] = 1
    assert found is not None
    np.testing.assert_array_equal(found.volume.array[0], expected)


def test_the_images_of_a_series_decide(tmp_path: Path) -> None:
    """Of a series with two echoes, a segmentation is about the one whose images it names."""
    echoes = [series_in(tmp_path / "one"), series_in(tmp_path / "two")]
    for slice_ in echoes[1].slices:
        dataset = pydicom.dcmread(slice_.file)
        dataset.SOPInstanceUID += ".2"
        save(dataset, slice_.file)
    assert echoes[0].uid == echoes[1].uid
    write_seg(tmp_path / "s.dcm", label_map(), echoes[1], how(LABELS))
    assert labels_of(echoes[0], [tmp_path / "s.dcm"]) is None
    assert labels_of(echoes[1], [tmp_path / "s.dcm"]) is not None
