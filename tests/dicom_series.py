"""Synthetic DICOM series, written slice by slice with pydicom."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = {"CT": "1.2.840.10008.5.1.4.1.1.2.1", "MR": "1.2.840.10008.5.1.4.1.1.4.1"}
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
Change = Callable[[int, Dataset], object]


def voxels(z: int = 5, y: int = 6, x: int = 7, *, seed: int = 0) -> npt.NDArray[np.int16]:
    """Random stored values (z, y, x) without a symmetry."""
    return np.random.default_rng(seed).integers(0, 2000, (z, y, x)).astype(np.int16)


def positions(
    count: int, axes: tuple[tuple[float, ...], tuple[float, ...]] = AXIAL, step: float = 2.5
) -> npt.NDArray[np.float64]:
    """Places of slices along their normal, the first at (-10, 20, 30)."""
    normal = np.cross(*axes)
    return np.array([-10.0, 20.0, 30.0]) + step * np.arange(count)[:, None] * normal


def slices(
    array: npt.NDArray[np.int16],
    *,
    axes: tuple[tuple[float, ...], tuple[float, ...]] = AXIAL,
    places: npt.NDArray[np.float64] | None = None,
    tags: Mapping[str, Any] | None = None,
    change: Change = lambda _, __: None,
) -> list[Dataset]:
    """Makes one dataset a slice."""
    places = positions(len(array), axes) if places is None else places
    uid, study = generate_uid(), generate_uid()
    made = []
    for index, (plane, place) in enumerate(zip(array, places, strict=True)):
        data = head(CT if (tags or {}).get("Modality", "CT") == "CT" else MR)
        data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "CT", uid, study
        data.PatientName, data.PatientID = "Secret^Person", "S123"
        data.SeriesNumber, data.SeriesDescription, data.InstanceNumber = 3, "venous", index + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.ImagePositionPatient = [round(float(v), 6) for v in place]
        data.ImageOrientationPatient = [round(float(v), 9) for v in (*axes[0], *axes[1])]
        data.PixelSpacing, data.SliceThickness = [0.8, 0.7], 2.5
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        put_voxels(data, plane)
        for tag, value in (tags or {}).items():
            setattr(data, tag, value)
        change(index, data)
        made.append(data)
    return made


def head(kind: str) -> Dataset:
    """A dataset of a SOP class with nothing but its identifiers."""
    data, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID = UID(kind)
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta = meta
    return data


def put_voxels(data: Dataset, array: npt.NDArray[Any]) -> None:
    """Sets the voxels (y, x), or (frames, y, x), with what says how they are stored."""
    data.Rows, data.Columns = array.shape[-2:]
    bits = array.dtype.itemsize * 8
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    if array.ndim == 3:
        data.NumberOfFrames = len(array)
    data.PixelData = array.tobytes()
    data["PixelData"].VR = "OW"


def save(folder: Path, made: list[Dataset], names: list[str] | None = None) -> list[Path]:
    """Writes datasets; by default their names do not follow their places."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"IM{(7 * index + 3) % 101:03d}" for index in range(len(made))]
    for data, name in zip(made, names, strict=True):
        data.save_as(folder / name, enforce_file_format=True)
    return [folder / name for name in names]


def multi_frame(
    array: npt.NDArray[np.int16], slopes: list[float], *, modality: str = "MR"
) -> Dataset:
    """An enhanced file whose frames lie in reverse order and have slopes of their own."""
    data = head(ENHANCED[modality])
    data.Modality, data.SeriesInstanceUID = modality, generate_uid()
    data.StudyInstanceUID, data.SeriesNumber = generate_uid(), 4
    shared = Dataset()
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 2.5
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for place, slope in zip(positions(len(array))[::-1], slopes, strict=True):
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = list(map(float, place))
        values.RescaleSlope, values.RescaleIntercept = slope, 10
        frame.PlanePositionSequence = Sequence([position])
        frame.PixelValueTransformationSequence = Sequence([values])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    put_voxels(data, array)
    return data
