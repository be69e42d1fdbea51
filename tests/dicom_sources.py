"""DICOM series in any orientation, written slice by slice, for tests of what refers to them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from autoliver.io.dicom.series import Series, Slice
from autoliver.io.volume import Geometry

ROOT = "1.2.826.0.1.3680043.8.498.777"
# Name -> the cosines of a row and of a column. The oblique ones are turned about two axes.
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "coronal": (1, 0, 0, 0, 0, -1),
    "negated": (-1, 0, 0, 0, -1, 0),
    "negated column": (1, 0, 0, 0, -1, 0),
    "oblique": (0.8, 0.6, 0, -0.36, 0.48, 0.8),
}


def write_series(
    folder: Path,
    array_zyx: np.ndarray,
    *,
    cosines: Sequence[float] = ORIENTATIONS["axial"],
    spacing_mm: Sequence[float] = (2.5, 0.7, 0.9),
    origin: Sequence[float] = (-31.5, 12.25, -480.0),
    reverse: bool = False,
    **tags: object,
) -> Series:
    """Writes a series of one file for each slice.

    Args:
        folder: Where to.
        array_zyx: The image; z runs along the normal of the slices.
        cosines: Of a row and of a column.
        spacing_mm: (z, y, x).
        origin: The first voxel.
        reverse: z runs against the normal.
        tags: Further attributes; None leaves one out.

    Returns:
        The series, as reading it would.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(cosines[:3], float), np.array(cosines[3:], float)
    normal = np.cross(row, column) * (-1 if reverse else 1)
    files = []
    for index, plane in enumerate(array_zyx):
        dataset = header(tags.get("Modality", "CT"))
        own = tags.get("SeriesInstanceUID") or f"{ROOT}.3"
        dataset.SOPInstanceUID = f"{own}.{index + 1}"
        dataset.InstanceNumber = len(array_zyx) - index if reverse else index + 1
        position = np.array(origin) + normal * spacing_mm[0] * index
        dataset.ImagePositionPatient = [f"{v:.10g}" for v in position]
        dataset.ImageOrientationPatient = [f"{v:.10g}" for v in cosines]
        dataset.PixelSpacing = list(spacing_mm[1:])
        dataset.SliceThickness = spacing_mm[0]
        dataset.Rows, dataset.Columns = plane.shape
        dataset.PixelData = plane.astype("<i2").tobytes()
        for name, value in tags.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        # File names say nothing of the order of slices.
        file = folder / f"IM{(index * 7) % 101:04d}.dcm"
        save(dataset, file)
        files.append(file)
    geometry = Geometry(
        shape_zyx=array_zyx.shape,
        spacing_mm=tuple(spacing_mm),
        origin_xyz=tuple(origin),
        direction=tuple(np.stack([row, column, normal], axis=1).ravel()),
    )
    return series_of([Slice(file) for file in files], geometry, dataset)


def series_of(slices: Sequence[Slice], geometry: Geometry, dataset: Dataset) -> Series:
    return Series(
        uid=dataset.get("SeriesInstanceUID", ""),
        study_uid=dataset.get("StudyInstanceUID", ""),
        modality=dataset.Modality,
        description=dataset.get("SeriesDescription", ""),
        number=dataset.get("SeriesNumber"),
        slices=tuple(slices),
        geometry=geometry,
    )


def header(modality: object = "CT") -> Dataset:
    """A CT or MR image without pixels, with all that the standard asks for."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MRImageStorage if modality == "MR" else CTImageStorage
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Modality = modality
    dataset.PatientName, dataset.PatientID = "Muster^Erika", "P1"
    dataset.PatientBirthDate, dataset.PatientSex = "19700203", "F"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.2"
    dataset.FrameOfReferenceUID = f"{ROOT}.4"
    dataset.StudyDate, dataset.StudyTime = "20240501", "101500"
    dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "A1", "S1", ""
    dataset.SeriesNumber, dataset.SeriesDescription = 4, "Abdomen 2.5"
    dataset.Manufacturer, dataset.PositionReferenceIndicator = "", ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    return dataset


def save(dataset: Dataset, file: Path) -> None:
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(file, enforce_file_format=True)


def write_multi_frame(
    file: Path, array_zyx: np.ndarray, *, frames: Sequence[int], per_frame: bool = False
) -> Series:
    """Writes an enhanced MR image.

    Args:
        file: Where to.
        array_zyx: The image.
        frames: The slice (z) that each frame shows.
        per_frame: Whether each frame says its orientation and spacing, rather than all together.

    Returns:
        The series, as reading it would.
    """
    dataset = header("MR")
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.SOPInstanceUID, dataset.InstanceNumber = f"{ROOT}.3.1", 1
    dataset.ContentDate, dataset.ContentTime = "20240501", "101600"
    dataset.Rows, dataset.Columns = array_zyx.shape[1:]
    dataset.NumberOfFrames = len(frames)
    geometry = Geometry(
        shape_zyx=array_zyx.shape, spacing_mm=(3.0, 1.25, 1.5), origin_xyz=(5.0, -7.0, 100.0)
    )
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(ORIENTATIONS["axial"])
    measures.PixelSpacing, measures.SliceThickness = [1.25, 1.5], 3.0
    shared = Dataset()
    items = []
    for number, z in enumerate(frames, start=1):
        item, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [5.0, -7.0, 100.0 + 3.0 * z]
        content.InStackPositionNumber, content.StackID = z + 1, "1"
        content.DimensionIndexValues = [1, number]
        item.PlanePositionSequence, item.FrameContentSequence = [position], [content]
        items.append(item)
    for group in items if per_frame else [shared]:
        group.PlaneOrientationSequence, group.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = items
    dataset.PixelData = array_zyx[list(frames)].astype("<i2").tobytes()
    save(dataset, file)
    slices = [Slice(file, frames.index(z) + 1) for z in range(len(array_zyx))]
    return series_of(slices, geometry, dataset)
