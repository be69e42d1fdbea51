"""Series that make no volume, and files that are damaged: each is named, with its numbers."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_series import multi_frame, positions, save, slices, voxels
from pydicom.dataset import Dataset
from pydicom.uid import UID, RLELossless

from autoliver.errors import DatasetError
from autoliver.io.dicom.group import find_series
from autoliver.io.dicom.read import read_series
from autoliver.io.dicom.walk import dicom_files


def refused(folder: Path) -> str:
    found = find_series(dicom_files(folder))
    assert not found.series
    (no,) = found.refused
    return no.problem


def tilted() -> list[Dataset]:
    places = positions(5)
    places[:, 1] += np.arange(5) * 2.5 * np.tan(np.radians(15))
    return slices(voxels(), places=places)


def irregular() -> list[Dataset]:
    places = positions(5)
    places[2:, 2] += 1.2
    return slices(voxels(), places=places)


def shifted() -> list[Dataset]:
    places = positions(5)
    places[2, 0] += 5
    return slices(voxels(), places=places)


def change(**tags: object) -> Callable[[], list[Dataset]]:
    """Slices of which the third has other tags."""

    def put(index: int, data: Dataset) -> None:
        for tag, value in tags.items():
            if index == 2 and value is None:
                del data[tag]
            elif index == 2:
                setattr(data, tag, value)

    return lambda: slices(voxels(), change=put)


def turned() -> list[Dataset]:
    def put(index: int, data: Dataset) -> None:
        if index > 2:
            data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    return slices(voxels(), change=put)


def two_at_one_place() -> list[Dataset]:
    made = slices(voxels())
    made[2].ImagePositionPatient = made[1].ImagePositionPatient
    return made


def frames_without_place() -> list[Dataset]:
    data = multi_frame(voxels(3), [1, 1, 1])
    del data.PerFrameFunctionalGroupsSequence
    return [data]


def many_frames() -> list[Dataset]:
    data = multi_frame(voxels(3), [1, 1, 1])
    data.NumberOfFrames = 10**9
    return [data]


NO_VOLUME = {
    "gap": (lambda: [s for i, s in enumerate(slices(voxels(9))) if i != 4], ["5 mm", "2.5 mm"]),
    "gap near the end": (lambda: [*slices(voxels(9))[:7], slices(voxels(9))[8]], ["missing"]),
    "tilt": (tilted, ["tilted by 15.0 degrees"]),
    "irregular": (irregular, ["2.5 to 3.7 mm"]),
    "shifted": (shifted, ["IM017", "5 mm"]),
    "size": (change(Rows=3), ["size", "(6, 7)", "(3, 7)"]),
    "spacing": (change(PixelSpacing=[0.9, 0.9]), ["(0.8, 0.7)", "(0.9, 0.9)"]),
    "orientation": (turned, ["ImageOrientationPatient"]),
    "one place": (two_at_one_place, ["IM010", "IM017", "one place"]),
    "no position": (change(ImagePositionPatient=None), ["IM017", "no ImagePositionPatient"]),
    "no orientation": (change(ImageOrientationPatient=None), ["no ImageOrientationPatient"]),
    "no spacing": (change(PixelSpacing=None), ["no PixelSpacing"]),
    "zero spacing": (change(PixelSpacing=[0, 0.7]), ["PixelSpacing is (0, 0.7)"]),
    "nan spacing": (change(PixelSpacing=["NaN", "0.7"]), ["PixelSpacing is (nan, 0.7)"]),
    "infinite place": (change(ImagePositionPatient=["inf", "0", "0"]), ["(inf, 0, 0)"]),
    "no directions": (change(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), ["right angles"]),
    "no rows": (change(Rows=0), ["0 rows"]),
    "colours": (change(SamplesPerPixel=3), ["3 values per pixel"]),
    "frames": (frames_without_place, ["frames"]),
    "many frames": (many_frames, ["1000000000 frames"]),
}


@pytest.mark.parametrize("kind", NO_VOLUME)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_series_that_make_no_volume(tmp_path, kind):
    make, words = NO_VOLUME[kind]
    made = make()
    for data in made:
        data.SeriesInstanceUID = made[0].SeriesInstanceUID
    from pydicom import config

    with config.disable_value_validation():
        save(tmp_path, made)
    problem = refused(tmp_path)
    assert all(word in problem for word in words), problem


def strip(data: Dataset) -> None:
    del data.PixelData


def set_tags(**tags: object) -> Callable[[Dataset], None]:
    def put(data: Dataset) -> None:
        for tag, value in tags.items():
            setattr(data, tag, value)

    return put


def compress_half(data: Dataset) -> None:
    data.compress(RLELossless, generate_instance_uid=False)
    data.PixelData = data.PixelData[: len(data.PixelData) // 2]


def unknown_syntax(data: Dataset) -> None:
    data.compress(RLELossless, generate_instance_uid=False)
    data.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")


UNREADABLE = {
    "no voxels": (strip, "no voxels"),
    "large": (set_tags(Rows=60000, Columns=60000), "bytes of voxels"),
    "bits": (set_tags(BitsStored=40), "bits"),
    "slope": (set_tags(RescaleSlope=0), "RescaleSlope is 0"),
    "table": (set_tags(ModalityLUTSequence=[Dataset()]), "ModalityLUTSequence"),
    "half": (compress_half, "damaged"),
    "syntax": (unknown_syntax, "High-Throughput JPEG 2000"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_slices_that_cannot_be_read(tmp_path, kind):
    spoil, words = UNREADABLE[kind]
    made = slices(voxels(3))
    for data in made:
        spoil(data)
    save(tmp_path, made)
    (series,) = find_series(dicom_files(tmp_path)).series
    with pytest.raises(DatasetError) as error:
        read_series(series)
    assert str(tmp_path / "IM") in error.value.problem
    assert words in error.value.problem
    assert error.value.hint


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9, 0.99])
def test_files_cut_short(tmp_path, share):
    files = save(tmp_path, slices(voxels(3, 32, 32)))
    content = files[1].read_bytes()
    files[1].write_bytes(content[: max(140, int(len(content) * share))])
    found = find_series(dicom_files(tmp_path))
    if found.series and not found.refused and not found.others:
        with pytest.raises(DatasetError) as error:
            read_series(found.series[0])
        assert files[1].name in error.value.problem
    elif not found.others:
        assert found.refused


def test_pipes_are_passed_over(tmp_path):
    save(tmp_path, slices(voxels()))
    os.mkfifo(tmp_path / "pipe")
    assert len(find_series(dicom_files(tmp_path)).series) == 1


@pytest.mark.parametrize("name", ["3-plane LOC", "Localizer", "SURVEY", "t2_haste"])
def test_what_is_called_a_localizer_is_none_that_is_missed(tmp_path: Path, name: str) -> None:
    made = turned()
    for data in made:
        data.SeriesDescription = name
    save(tmp_path, made)
    (no,) = find_series(dicom_files(tmp_path)).refused
    assert no.localizer == (name != "t2_haste")
