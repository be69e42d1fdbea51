"""The files of a DICOM series as highdicom needs them, to write what refers to them."""

import math
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.dicom.planes import BAD_VALUE, open_dataset
from autoliver.io.dicom.series import Series
from autoliver.io.volume import Geometry

if TYPE_CHECKING:
    from highdicom import PlanePositionSequence
    from pydicom import Dataset

# Largest distance of a slice from where it should be, as a share of a voxel.
_NEAR = 0.1
# Attributes that any image should have; where one lacks, "unknown" is written.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
# Modality -> SOP class of its images, of one slice and of several frames.
_CLASSES = {
    modality: tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ends)
    for modality, ends in {"CT": ("2", "2.1"), "MR": ("4", "4.1"), "PT": ("128", "130")}.items()
}


class Sources(NamedTuple):
    """The files of a series.

    Attributes:
        datasets: Their content without pixels: one for each slice, in the order of z, or one
            multi-frame image.
        positions: Where each slice of a multi-frame image lies; None for single files, which say
            it themselves.
        uids: SOPInstanceUID and frame of each slice.
    """

    datasets: "list[Dataset]"
    positions: "list[PlanePositionSequence] | None"
    uids: list[str]


def source_images(series: Series) -> Sources:
    """Reads the files of a series again.

    Raises:
        DatasetError: A file is missing or damaged, slices have the same identifier, or one no
            longer lies where the series has it.
    """
    read: dict[str, Dataset] = {}
    for one in series.slices:
        if str(one.file) not in read:
            try:
                dataset = open_dataset(one.file, stop_before_pixels=True)
            except AutoliverError as error:
                raise _changed(series, error.problem) from error
            if not dataset.get("SOPInstanceUID"):
                raise _changed(series, f"{one.file} is no DICOM image")
            read[str(one.file)] = dataset
    datasets = list(read.values())
    _complete(datasets, series)
    planes = [plane_of(read[str(one.file)], one.frame) for one in series.slices]
    for index, plane in enumerate(planes):
        if not _is_at(plane, series.geometry, index):
            raise _changed(series, f"{series.slices[index].file} lies elsewhere")
    uids = [f"{read[str(s.file)].SOPInstanceUID} {s.frame or ''}" for s in series.slices]
    if len(set(uids)) < len(uids):
        raise DatasetError(
            f"{len(uids) - len(set(uids))} slices of the DICOM series "
            f"{series.description or series.uid} have the SOPInstanceUID of another one, so that "
            "no segmentation can say which slice it is drawn on.",
            hint="Export the series again, or write the label map as NIfTI.",
        )
    if series.slices[0].frame is None:
        _same_orientation(datasets)
        return Sources([read[str(one.file)] for one in series.slices], None, uids)
    return Sources(datasets, _multi_frame(datasets, planes, series), uids)


class Plane(NamedTuple):
    """Where the pixels of a slice lie; all in mm, (x, y, z).

    Attributes:
        position: The centre of the first pixel.
        column_step: From a pixel to the next one in its row.
        row_step: From a row to the next one.
    """

    position: npt.NDArray[np.float64]
    column_step: npt.NDArray[np.float64]
    row_step: npt.NDArray[np.float64]


def plane_of(dataset: "Dataset", frame: int | None) -> Plane:
    """Returns where a slice lies.

    Args:
        dataset: The content of its file.
        frame: Number of its frame from 1; None if the file holds one slice.

    Raises:
        DatasetError: The file does not say it.
    """
    groups: Sequence[Any] = [dataset]
    if frame is not None:
        every = dataset.get("PerFrameFunctionalGroupsSequence") or []
        own = [every[frame - 1]] if frame <= len(every) else []
        groups = [*own, *(dataset.get("SharedFunctionalGroupsSequence") or [])]
    position = _found(groups, "PlanePositionSequence", "ImagePositionPatient")
    cosines = _found(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _found(groups, "PixelMeasuresSequence", "PixelSpacing")
    return Plane(position, cosines[:3] * spacing[1], cosines[3:] * spacing[0])


def _found(groups: Sequence[Any], sequence: str, name: str) -> npt.NDArray[np.float64]:
    for group in groups:
        held = [group] if name in group else group.get(sequence) or []
        if held and held[0].get(name) is not None:
            return np.array(held[0].get(name), dtype=np.float64)
    raise DatasetError(
        f"a DICOM file has no {name}, so that it is not known where its slices lie.",
        hint="Export the series again from where it came from.",
    )


def affine_of(geometry: Geometry) -> npt.NDArray[np.float64]:
    """Returns the 4x4 matrix that takes voxels (x, y, z) to mm (x, y, z; LPS)."""
    affine = np.eye(4)
    spacing_xyz = geometry.spacing_mm[::-1]
    affine[:3, :3] = np.reshape(geometry.direction, (3, 3)) * np.array(spacing_xyz)
    affine[:3, 3] = geometry.origin_xyz
    return affine


def _is_at(plane: Plane, geometry: Geometry, index: int) -> bool:
    """Whether a slice is the one of this z, with its rows along y and its columns along x."""
    affine = affine_of(geometry)
    inverse = np.linalg.inv(affine[:3, :3])
    rows, columns = geometry.shape_zyx[1:]
    start = inverse @ (plane.position - affine[:3, 3])
    end = start + inverse @ (plane.column_step * (columns - 1) + plane.row_step * (rows - 1))
    return bool(
        np.allclose(start, (0, 0, index), atol=_NEAR, rtol=0)
        and np.allclose(end, (columns - 1, rows - 1, index), atol=_NEAR, rtol=0)
    )


def _changed(series: Series, problem: str) -> DatasetError:
    name = series.description or series.uid
    return DatasetError(
        f"the DICOM series {name} is not as it was read: {problem.rstrip('.')}.",
        hint="Put its files back, or predict it again with --overwrite.",
    )


def _complete(datasets: "Sequence[Dataset]", series: Series) -> None:
    """Fills in, in memory, what images should have and highdicom expects."""
    from pydicom.valuerep import DA, TM

    first = datasets[0]
    for name in _MAY_BE_EMPTY:
        if first.get(name) is None:
            setattr(first, name, "")
    if first.PatientSex not in ("M", "F", "O", ""):
        first.PatientSex = ""
    for name, form in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            form(first.get(name))
        except ValueError:
            setattr(first, name, "")
    _share(datasets, series)
    for dataset in datasets:
        frames = "PerFrameFunctionalGroupsSequence" in dataset
        if not dataset.get("SOPClassUID"):
            told = dataset.file_meta.get("MediaStorageSOPClassUID")
            dataset.SOPClassUID = told or _CLASSES[series.modality][frames]
        if not frames and not _is_length(dataset):
            dataset.SliceThickness = series.geometry.spacing_mm[0]


def _share(datasets: "Sequence[Dataset]", series: Series) -> None:
    """Gives all images one study, series and frame of reference: those that the first one has."""
    from pydicom.uid import UID

    known = {"StudyInstanceUID": series.study_uid, "SeriesInstanceUID": series.uid}
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        held = [known.get(name), *(dataset.get(name) for dataset in datasets)]
        uid = next(filter(None, held), None) or _made_uid(name, datasets)
        for dataset in datasets:
            setattr(dataset, name, UID(uid))


def _is_length(dataset: "Dataset") -> bool:
    """Whether a slice has a thickness."""
    try:
        return 0 < float(dataset.get("SliceThickness") or 0) < math.inf
    except BAD_VALUE:
        return False


def _made_uid(what: str, datasets: "Sequence[Dataset]") -> str:
    """An identifier for images that lack it: the same for the same images, and for no others."""
    text = f"{what} {[str(dataset.SOPInstanceUID) for dataset in datasets]}"
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, text).int}"


def _same_orientation(datasets: "Sequence[Dataset]") -> None:
    """Gives all slices the cosines of the first, from which they differ by rounding alone."""
    for dataset in datasets:
        dataset.ImageOrientationPatient = datasets[0].ImageOrientationPatient


def _multi_frame(
    datasets: "list[Dataset]", planes: Sequence[Plane], series: Series
) -> "list[PlanePositionSequence]":
    """Where the slices of a multi-frame image lie; what all frames share becomes shared in it."""
    from highdicom import PlanePositionSequence

    if len(datasets) > 1:
        raise DatasetError(
            f"the series {series.description or series.uid} consists of "
            f"{len(datasets)} multi-frame files; a segmentation can refer to one.",
            hint="Write the label map as NIfTI.",
        )
    (image,) = datasets
    shared = image.SharedFunctionalGroupsSequence[0]
    one = image.PerFrameFunctionalGroupsSequence[(series.slices[0].frame or 1) - 1]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        if name not in shared and name in one:
            setattr(shared, name, one.get(name))
    return [
        PlanePositionSequence(coordinate_system="PATIENT", image_position=tuple(plane.position))
        for plane in planes
    ]
