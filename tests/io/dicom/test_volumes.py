"""Series that make volumes: against SimpleITK's own reader, and against what was written."""

import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_series import AXIAL, head, multi_frame, put_voxels, save, slices, voxels
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from autoliver.io.dicom.group import Found, find_series
from autoliver.io.dicom.read import read_series
from autoliver.io.dicom.series import Series, load_series, save_series
from autoliver.io.dicom.walk import dicom_files
from autoliver.io.volume import Volume

S = 0.6
ORIENTATIONS = {
    "axial": AXIAL,
    "sagittal": ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),
    "coronal": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    "oblique": ((0.8, S, 0.0), (-S * 0.8, 0.64, S)),
    "negated columns": ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)),
    "negated rows": ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
}
REAL = Path(__file__).parents[4] / "shared" / "data"


def found(folder: Path) -> Found:
    return find_series(dicom_files(folder))


def only(folder: Path) -> tuple[Series, Volume]:
    seen = found(folder)
    assert not seen.refused
    (series,) = seen.series
    return series, read_series(series)


def as_itk_reads(folder: Path) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def assert_as_itk(volume: Volume, image: SimpleITK.Image) -> None:
    geometry = volume.geometry
    np.testing.assert_array_equal(volume.array[0], SimpleITK.GetArrayFromImage(image))
    np.testing.assert_allclose(geometry.spacing_mm[::-1], image.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(geometry.origin_xyz, image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(geometry.direction, image.GetDirection(), atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axes", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_every_orientation_is_that_of_itk(tmp_path, axes, reverse):
    made = slices(voxels(), axes=axes)
    save(tmp_path, made[::-1] if reverse else made)
    series, volume = only(tmp_path)
    assert_as_itk(volume, as_itk_reads(tmp_path))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array[0], voxels() - 1024)
    affine = np.array(series.geometry.direction).reshape(3, 3) * series.geometry.spacing_mm[::-1]
    for index, each in enumerate(series.slices):
        place = pydicom.dcmread(each.file).ImagePositionPatient
        at = series.geometry.origin_xyz + affine @ (0, 0, index)
        np.testing.assert_allclose(at, list(map(float, place)), atol=1e-4)


@pytest.mark.parametrize("name", ["dicom_ct20slice", "dicom_ct3slice"])
def test_real_series_are_as_itk_reads_them(name):
    folder = REAL / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    assert_as_itk(only(folder)[1], as_itk_reads(folder))


@pytest.mark.parametrize("syntax", [RLELossless, DeflatedExplicitVRLittleEndian, JPEGLSLossless])
def test_compressed_voxels(tmp_path, syntax):
    if syntax == JPEGLSLossless:
        pytest.importorskip("jpeg_ls", reason="pyjpegls writes JPEG-LS")
    made = slices(voxels(3, 32, 32).astype(np.uint16))
    for data in made:
        if syntax.is_encapsulated:
            data.compress(syntax, generate_instance_uid=False)
        else:
            data.file_meta.TransferSyntaxUID = syntax
    save(tmp_path, made)
    np.testing.assert_array_equal(
        only(tmp_path)[1].array[0], voxels(3, 32, 32).astype(np.int32) - 1024
    )


TEST_FILES = {
    "MR_small.dcm": None,
    "MR_small_RLE.dcm": "MR_small.dcm",
    "MR_small_bigendian.dcm": "MR_small.dcm",
    "MR_small_implicit.dcm": "MR_small.dcm",
    "MR_small_padded.dcm": "MR_small.dcm",
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "MR_small_jpeg_ls_lossless.dcm": "MR_small.dcm",
    "CT_small.dcm": None,
    "693_J2KI.dcm": None,
    "J2K_pixelrep_mismatch.dcm": None,
    "examples_overlay.dcm": None,
}


@pytest.mark.parametrize("name", TEST_FILES)
def test_files_of_pydicom(name):
    """Every compression gives the voxels of the plain file, and those that ITK reads."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not (folder / name).exists():
        pytest.skip(f"this pydicom comes without {name}")

    def read(file: str) -> np.ndarray:
        (series,) = find_series([folder / file]).series
        return read_series(series).array[0]

    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / name)))
    np.testing.assert_array_equal(read(name), expected)
    if TEST_FILES[name]:
        np.testing.assert_array_equal(read(name), read(TEST_FILES[name]))


def test_frames_have_places_and_slopes_of_their_own(tmp_path):
    array = voxels(4)
    slopes = [0.5, 1.0, 2.0, 4.0]
    save(tmp_path, [multi_frame(array, slopes)])
    series, volume = only(tmp_path)
    expected = array * np.array(slopes)[:, None, None] + 10
    np.testing.assert_array_equal(volume.array[0], expected[::-1].astype(np.float32))
    assert volume.array.dtype == np.float32
    assert [each.frame for each in series.slices] == [4, 3, 2, 1]
    assert series.geometry.origin_xyz == (-10.0, 20.0, 30.0)
    assert series.geometry.spacing_mm == (2.5, 0.8, 0.7)


@pytest.mark.parametrize("syntax", [RLELossless])
def test_compressed_frames_have_slopes_of_their_own(tmp_path, syntax):
    array = voxels(3, 32, 32)
    data = multi_frame(array, [1.0, 2.0, 3.0], modality="CT")
    data.compress(syntax, generate_instance_uid=False)
    save(tmp_path, [data])
    expected = array * np.array([1, 2, 3])[:, None, None] + 10
    np.testing.assert_array_equal(only(tmp_path)[1].array[0], expected[::-1])


def test_slices_of_mr_have_slopes_of_their_own(tmp_path):
    def scale(index, data):
        data.RescaleSlope, data.RescaleIntercept = 1.5 + index, 0
        data.add_new((0x2005, 0x100E), "FL", 0.01)  # Philips' own, which is not applied

    save(tmp_path, slices(voxels(), tags={"Modality": "MR"}, change=scale))
    expected = voxels() * (1.5 + np.arange(5))[:, None, None]
    np.testing.assert_allclose(only(tmp_path)[1].array[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("modality", "inverted"), [("CT", False), ("MR", True)])
def test_monochrome1(tmp_path, modality, inverted):
    tags = {"Modality": modality, "PhotometricInterpretation": "MONOCHROME1"}
    stored = voxels().astype(np.uint16)
    save(tmp_path, slices(stored, tags={**tags, "BitsStored": 12, "HighBit": 11}))
    volume = only(tmp_path)[1]
    kept = 4095 - stored.astype(int) if inverted else stored.astype(int)
    np.testing.assert_array_equal(volume.array[0], kept - 1024)
    assert any("MONOCHROME1" in note for note in volume.notes) == inverted


def test_bits_beside_the_stored_ones_are_no_values(tmp_path):
    stored = voxels().astype(np.uint16)
    tags = {"BitsStored": 12, "HighBit": 11}
    save(tmp_path, slices(stored | 0x8000, tags=tags))
    np.testing.assert_array_equal(only(tmp_path)[1].array[0], stored.astype(int) - 1024)


def test_negative_values_of_twelve_bits(tmp_path):
    stored = voxels() - 1000
    tags = {"BitsStored": 12, "HighBit": 11}
    save(tmp_path, slices(stored & 0x0FFF, tags=tags))
    np.testing.assert_array_equal(only(tmp_path)[1].array[0], stored - 1024)


@pytest.mark.parametrize(("padding", "expected"), [(-2000, -3024), (9000, -1024)])
def test_padding_stays_below_and_never_shines(tmp_path, padding, expected):
    stored = voxels()
    stored[1, 1, 1] = 0  # the lowest value
    stored[:, 0, :] = padding
    save(tmp_path, slices(stored, tags={"PixelPaddingValue": padding}))
    volume = only(tmp_path)[1]
    assert (volume.array[0, :, 0] == expected).all()
    np.testing.assert_array_equal(volume.array[0, :, 1:], stored[:, 1:] - 1024)
    assert any("Padding" in note for note in volume.notes) == (padding > 0)


def test_copies_are_read_once(tmp_path):
    made = slices(voxels())
    save(tmp_path / "a", made)
    save(tmp_path / "b", made[:2])
    series, volume = only(tmp_path)
    np.testing.assert_array_equal(volume.array[0], voxels() - 1024)
    assert any("2 slices" in note for note in series.notes)


KEYS = {
    "acquisition": lambda n: {"AcquisitionNumber": n},
    "echo": lambda n: {"EchoNumbers": n},
    "echo-time": lambda n: {"EchoTime": 1.2 * n},
    "time": lambda n: {"TemporalPositionIdentifier": n},
    "trigger": lambda n: {"TriggerTime": 100.5 * n},
    "type": lambda n: {"ImageType": ["ORIGINAL", "PRIMARY", "MP"[n - 1]]},
}


@pytest.mark.parametrize("key", KEYS)
def test_volumes_of_one_series_are_told_apart(tmp_path, key):
    both = [slices(voxels(seed=n), tags=KEYS[key](n)) for n in (1, 2)]
    for data in both[1]:
        data.SeriesInstanceUID = both[0][0].SeriesInstanceUID
    save(tmp_path, [*both[0], *both[1]])
    seen = found(tmp_path)
    assert not seen.refused
    assert len(seen.series) == 2
    assert all(series.part.startswith(key) for series in seen.series)
    arrays = {read_series(series).array.tobytes() for series in seen.series}
    assert arrays == {(voxels(seed=n) - 1024).tobytes() for n in (1, 2)}


# Slices of two phases -> how many of the first are missing in the second.
PHASES = {
    "equal": (range(6), range(6), 0),
    "the last one": (range(6), range(5), 1),
    "the first two": (range(6), range(2, 6), 2),
    "both ends": (range(6), range(1, 5), 2),
    "more of the second": (range(1, 4), range(6), 3),
    "other places": (range(4), range(2, 6), 2),
    "thicker slices": (range(7), range(0, 7, 2), 0),
}


@pytest.mark.parametrize("kind", PHASES)
def test_volumes_of_a_series_that_reach_less_far(tmp_path, kind):
    *phases, missing = PHASES[kind]
    made = []
    for number, kept in enumerate(phases, start=1):
        both = slices(voxels(7, seed=number), tags={"AcquisitionNumber": number})
        made += [both[index] for index in kept]
    for data in made:
        data.SeriesInstanceUID = made[0].SeriesInstanceUID
    save(tmp_path, made)
    seen = found(tmp_path)
    assert [len(series.slices) for series in seen.series] == [len(kept) for kept in phases]
    notes = [[note for note in series.notes if "missing" in note] for series in seen.series]
    short = min((0, 1), key=lambda n: (len(phases[n]), -n))
    assert len(notes[short]) == (missing > 0)
    assert not notes[1 - short]
    if missing:
        full = f"acquisition{2 - short}"
        assert notes[short][0].startswith(f"{missing} slice")
        assert f"of {full} (of {len(phases[1 - short])})" in notes[short][0]


def test_without_series_uid_slices_are_grouped_by_geometry(tmp_path):
    made = slices(voxels())
    other = slices(voxels(4, 8, 8), axes=ORIENTATIONS["sagittal"])
    for data in (*made, *other):
        del data.SeriesInstanceUID
    save(tmp_path, [*made, *other])
    seen = found(tmp_path)
    assert sorted(len(series.slices) for series in seen.series) == [4, 5]
    assert all("SeriesInstanceUID" in series.notes[0] for series in seen.series)


@pytest.mark.parametrize("marked", [False, True])
def test_localizers_in_a_series_are_left_out(tmp_path, marked):
    made = slices(voxels())
    scout = slices(voxels(1, 9, 9), axes=ORIENTATIONS["coronal"])[0]
    scout.SeriesInstanceUID = made[0].SeriesInstanceUID
    if marked:
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(tmp_path, [scout, *made])
    series, volume = only(tmp_path)
    np.testing.assert_array_equal(volume.array[0], voxels() - 1024)
    assert any("Left out" in note for note in series.notes)


def test_one_slice_alone_has_its_thickness(tmp_path):
    save(tmp_path, slices(voxels(1)))
    series, _ = only(tmp_path)
    assert series.geometry.spacing_mm[0] == 2.5
    assert "alone" in series.notes[0]


def test_other_files_and_links_are_passed_over(tmp_path):
    save(tmp_path / "deep" / "er", slices(voxels()), [f"{n}.jpg" for n in range(5)])
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    capture = head("1.2.840.10008.5.1.4.1.1.7")
    put_voxels(capture, voxels(1)[0])
    save(tmp_path, [capture], ["capture.dcm"])
    seen = found(tmp_path)
    assert len(seen.series) == 1
    assert seen.others == {"Secondary Capture Image Storage": 1}


def test_500_files_are_grouped_quickly(tmp_path):
    array = np.zeros((500, 64, 64), np.int16)
    save(tmp_path, slices(array), [f"{n:04d}" for n in range(500)])
    start = time.perf_counter()
    assert len(found(tmp_path).series[0].slices) == 500
    assert time.perf_counter() - start < 5


def test_a_series_is_kept_as_json(tmp_path):
    save(tmp_path / "s", [multi_frame(voxels(3), [1, 1, 1])])
    series, _ = only(tmp_path / "s")
    save_series(tmp_path / "x.json", series, {"source files": "a"})
    assert load_series(tmp_path / "x.json") == series
    assert "Secret" not in (tmp_path / "x.json").read_text()


def test_a_file_without_preamble_is_known(tmp_path):
    (data,) = slices(voxels(1))
    del data.file_meta
    data.save_as(tmp_path / "bare", implicit_vr=True, little_endian=True)
    assert len(found(tmp_path).series) == 1
