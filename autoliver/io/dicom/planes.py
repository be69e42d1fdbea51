"""What the headers of DICOM files say of each slice, without their voxels."""

import contextlib
import hashlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.errors import DatasetError
from autoliver.system import in_words

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# SOP classes whose files are images of slices: CT, MR and PET, also enhanced and legacy-converted.
_IMAGES = {
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130")
}
_DIRECTORY = "1.2.840.10008.1.3.10"
# What tells several images of one place apart: word for people, tag, and the tag of a frame of a
# multi-frame file.
SPLITS = (
    ("acquisition", "AcquisitionNumber", "FrameAcquisitionNumber"),
    ("echo", "EchoNumbers", ""),
    ("echo-time", "EchoTime", "EffectiveEchoTime"),
    ("time", "TemporalPositionIdentifier", "TemporalPositionIndex"),
    ("trigger", "TriggerTime", "NominalCardiacTriggerDelayTime"),
    ("inversion", "InversionTime", ""),
    ("b", "DiffusionBValue", "DiffusionBValue"),
    ("type", "ImageType", "FrameType"),
    ("at", "AcquisitionTime", "FrameAcquisitionDateTime"),
)
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality"),
    *("SeriesDescription", "ProtocolName", "SeriesNumber", "Rows", "Columns", "NumberOfFrames"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
    *("SamplesPerPixel", "PatientID", *_GROUPS, *(tag for _, tag, _ in SPLITS)),
)
# What pydicom raises for values that are none of their type.
BAD_VALUE = (ValueError, TypeError, OverflowError, AttributeError, NotImplementedError, KeyError)
_LEAST_SINE = 0.999


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """A slice as its header describes it.

    Attributes:
        file: Its file.
        frame: Number of the frame in the file, from 1; None if the file holds one slice.
        instance: SOPInstanceUID.
        position: Centre of the first voxel (x, y, z) in mm, as in LPS.
        axes: Directions (x, y, z) of a row and of a column, six numbers.
        spacing: Distance of rows and of columns in mm.
        size: Number of rows and columns.
        thickness: Of the slice in mm; 0 if it is not known.
        localizer: Whether it is marked as a localizer.
        told_apart: Word of `SPLITS` -> value.
        fault: What is wrong with the header so that it has no place; empty if nothing is.
    """

    file: Path
    frame: int | None
    instance: str
    position: tuple[float, ...]
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    size: tuple[int, int]
    thickness: float
    localizer: bool
    told_apart: Mapping[str, str]
    fault: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """A file of a series.

    Attributes:
        file: The file.
        kind: The SOP class in words.
        is_image: Whether it holds slices of an image.
        uid: SeriesInstanceUID; empty if there is none.
        study_uid: StudyInstanceUID; empty if there is none.
        patient: A hash of PatientID; empty if there is none.
        modality: The tag Modality.
        description: SeriesDescription, or else ProtocolName.
        number: SeriesNumber; None if there is none.
        planes: Its slices.
    """

    file: Path
    kind: str
    is_image: bool
    uid: str = ""
    study_uid: str = ""
    patient: str = ""
    modality: str = ""
    description: str = ""
    number: int | None = None
    planes: tuple[Plane, ...] = field(default=())


def open_dataset(path: Path, **how: Any) -> "Dataset":
    """Reads a DICOM file with pydicom; names and dates are not checked.

    Raises:
        DatasetError: It is damaged.
        MachineError: The system refuses to read it.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    damaged = (*BAD_VALUE, EOFError, InvalidDicomError, RecursionError, MemoryError)
    try:
        with in_words(path, verb="read"), quiet():
            return pydicom.dcmread(path, force=True, **how)
    except damaged as error:
        raise damaged_file(path, f"{type(error).__name__}: {error}") from None


def damaged_file(path: Path, found: str) -> DatasetError:
    """Returns the error for a DICOM file that cannot be read."""
    return DatasetError(
        f"{path}: this DICOM file cannot be read: {found.rstrip('.')}.",
        hint="Fetch the series again from where it comes from, or move the file out of the folder.",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps pydicom from writing of values that break the standard; they are checked where used."""
    from pydicom import config

    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def read_instance(path: Path) -> Instance | None:
    """Reads the header of a DICOM file.

    Returns:
        What the file is; None for the directory of a disc (DICOMDIR).

    Raises:
        DatasetError: The header is damaged.
        MachineError: The system refuses to read it.
    """
    from pydicom.uid import UID

    data = open_dataset(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    with quiet():
        told = str(data.file_meta.get("MediaStorageSOPClassUID", ""))
        kind = _text(data, "SOPClassUID") or told
        if kind == _DIRECTORY:
            return None
        modality = _text(data, "Modality")
        is_image = kind in _IMAGES or (not kind and modality in ("CT", "MR", "PT"))
        number = _numbers(data, "SeriesNumber", 1)
        return Instance(
            file=path,
            kind=UID(kind).name if kind else modality or "unknown kind",
            is_image=is_image,
            uid=_text(data, "SeriesInstanceUID"),
            study_uid=_text(data, "StudyInstanceUID"),
            patient=hash_of(_text(data, "PatientID")),
            modality=modality,
            description=_text(data, "SeriesDescription") or _text(data, "ProtocolName"),
            number=int(number[0]) if number else None,
            planes=tuple(_planes(path, data)) if is_image else (),
        )


def hash_of(identifier: str) -> str:
    """Returns what stands for an identifier of a patient or a study; empty if that is empty."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:12] if identifier else ""


def _planes(path: Path, data: "Dataset") -> Iterator[Plane]:
    frames = _items(data, _GROUPS[1])
    if not frames:
        several = _numbers(data, "NumberOfFrames", 1)
        fault = "several frames without a place of each" if several and several[0] > 1 else ""
        yield _plane(path, data, [data], None, fault)
        return
    shared = [data, *_items(data, _GROUPS[0])[:1]]
    declared = _numbers(data, "NumberOfFrames", 1)
    fault = ""
    if not declared or declared[0] != len(frames):
        said = "no number of frames" if not declared else f"{declared[0]:.0f} frames"
        fault = f"{said} and the place of {len(frames)}"
    for number, frame in enumerate(frames, start=1):
        yield _plane(path, data, [*shared, frame], number, fault)


def _plane(
    path: Path, data: "Dataset", places: "list[Dataset]", frame: int | None, fault: str
) -> Plane:
    """Reads a slice from the parts of a header that concern it, the last one first."""
    parts = [part for place in reversed(places) for part in (place, *_inside(place))]

    def found(keyword: str, count: int) -> tuple[float, ...] | None:
        return next((n for p in parts if (n := _numbers(p, keyword, count)) is not None), None)

    position, axes = found("ImagePositionPatient", 3), found("ImageOrientationPatient", 6)
    spacing, thickness = found("PixelSpacing", 2), found("SliceThickness", 1)
    rows, columns = found("Rows", 1), found("Columns", 1)
    size = (int(rows[0]) if rows else 0, int(columns[0]) if columns else 0)
    samples = found("SamplesPerPixel", 1)
    told = {
        word: next((t for p in parts for tag in (inner, outer) if tag and (t := _text(p, tag))), "")
        for word, outer, inner in SPLITS
    }
    if samples and samples[0] != 1:
        fault = fault or f"{samples[0]:.0f} values per pixel (colours), expected 1"
    return Plane(
        file=path,
        frame=frame,
        instance=_text(data, "SOPInstanceUID"),
        position=position or (),
        axes=axes or (),
        spacing=spacing or (),
        size=size,
        thickness=max(thickness[0], 0.0) if thickness and math.isfinite(thickness[0]) else 0.0,
        localizer="LOCALIZER" in told["type"].upper(),
        told_apart=told,
        fault=fault or _fault(position, axes, spacing, size),
    )


def _fault(
    position: tuple[float, ...] | None,
    axes: tuple[float, ...] | None,
    spacing: tuple[float, ...] | None,
    size: tuple[int, int],
) -> str:
    """Says why a slice has no place; empty if it has one."""
    named = (
        ("ImagePositionPatient", position),
        ("ImageOrientationPatient", axes),
        ("PixelSpacing", spacing),
    )
    for keyword, values in named:
        if values is None:
            return f"no {keyword}"
        if not all(map(math.isfinite, values)):
            return f"{keyword} is {_shown(values)}, expected finite numbers"
    if spacing is not None and min(spacing) <= 0:
        return f"PixelSpacing is {_shown(spacing)}, expected lengths above zero"
    if axes is not None and not _are_axes(axes):
        return f"ImageOrientationPatient is {_shown(axes)}, expected two directions at right angles"
    if min(size) < 1:
        return f"{size[0]} rows and {size[1]} columns"
    return ""


def _are_axes(axes: tuple[float, ...]) -> bool:
    row, column = axes[:3], axes[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    cosine = sum(a * b for a, b in zip(row, column, strict=True))
    return all(abs(length - 1) < 1 - _LEAST_SINE for length in lengths) and abs(cosine) < 0.01


def _shown(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"


def _inside(place: "Dataset") -> "list[Dataset]":
    """The first item of each sequence of a functional group."""
    if _GROUPS[1] in place or "Rows" in place:
        return []
    return [
        element.value[0] for element in place if element.VR == "SQ" and len(element.value or ()) > 0
    ]


def _items(data: "Dataset", keyword: str) -> "list[Dataset]":
    try:
        return list(data.get(keyword) or ())
    except BAD_VALUE:
        return []


def _numbers(data: "Dataset", keyword: str, count: int) -> tuple[float, ...] | None:
    """The numbers of a tag; None if it is missing or has another number of values."""
    try:
        value = data.get(keyword)
        if value is None or value == "":
            return None
        values = tuple(map(float, [value] if count == 1 else value))
    except BAD_VALUE:
        return None
    return values if len(values) == count else None


def _text(data: "Dataset", keyword: str) -> str:
    """The text of a tag, several values joined by backslashes; empty if it is missing."""
    try:
        value = data.get(keyword)
    except BAD_VALUE:
        return ""
    if value is None:
        return ""
    several = not isinstance(value, str) and hasattr(value, "__iter__")
    text = "\\".join(map(str, value)) if several else str(value)
    return "".join(letter for letter in text if letter.isprintable()).strip()
