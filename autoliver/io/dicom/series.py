"""A DICOM series that makes one volume: its source files in the order of the slices, and its grid.

It is kept as a small JSON file beside the image that was made of the series.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from autoliver.artifacts import Artifact, Record
from autoliver.io.volume import Geometry


@dataclass(frozen=True, slots=True)
class Slice:
    """Where one slice of a volume is stored.

    Attributes:
        file: The DICOM file.
        frame: Number of the frame in the file, from 1 as in DICOM; None if the file holds one
            slice.
    """

    file: Path
    frame: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A DICOM series, or the part of one that makes a volume.

    Attributes:
        uid: SeriesInstanceUID; empty if the files have none.
        study_uid: StudyInstanceUID; empty if the files have none.
        modality: The tag Modality, such as "CT" or "MR".
        description: SeriesDescription; empty if there is none.
        number: SeriesNumber; None if there is none.
        slices: Where each slice is stored, in the order of the volume's z.
        geometry: The grid of the volume.
        notes: What was noticed, a sentence each.
        part: Which part of a series that holds several volumes, such as "echo2"; empty if it is the
            whole series.
        patient: A hash of PatientID; empty if the files have none.
    """

    uid: str
    study_uid: str
    modality: str
    description: str
    number: int | None
    slices: tuple[Slice, ...]
    geometry: Geometry
    notes: tuple[str, ...] = ()
    part: str = ""
    patient: str = ""


class _File(Record, frozen=True, kw_only=True):
    """A slice as in the JSON file."""

    file: str
    frame: int | None = None


class SeriesFile(Artifact, frozen=True, kw_only=True):
    """The JSON form of a series, beside the image that was made of it.

    Attributes:
        KIND: The type of artefact.
        uid: As in `Series`, like all other fields.
        study_uid: As in `Series`.
        modality: As in `Series`.
        description: As in `Series`.
        number: As in `Series`.
        slices: As in `Series`; paths are absolute.
        geometry: As in `Series`.
        notes: As in `Series`.
        part: As in `Series`.
        patient: As in `Series`.
    """

    KIND: ClassVar[str] = "dicom series"

    uid: str
    study_uid: str
    modality: str
    description: str
    number: int | None
    slices: tuple[_File, ...]
    geometry: Geometry
    notes: tuple[str, ...] = ()
    part: str = ""
    patient: str = ""


def save_series(path: Path, series: Series, made_from: dict[str, str]) -> None:
    """Writes the JSON file of a series.

    Args:
        path: The file.
        series: The series.
        made_from: Name -> digest of what the image beside it was made from.
    """
    SeriesFile(
        made_from=made_from,
        uid=series.uid,
        study_uid=series.study_uid,
        modality=series.modality,
        description=series.description,
        number=series.number,
        slices=tuple(_File(file=str(s.file.absolute()), frame=s.frame) for s in series.slices),
        geometry=series.geometry,
        notes=series.notes,
        part=series.part,
        patient=series.patient,
    ).save(path)


def load_series(path: Path) -> Series:
    """Reads the JSON file of a series.

    Raises:
        ArtifactError: It is missing, damaged or of another kind.
    """
    stored = SeriesFile.load(path)
    return Series(
        uid=stored.uid,
        study_uid=stored.study_uid,
        modality=stored.modality,
        description=stored.description,
        number=stored.number,
        slices=tuple(Slice(Path(each.file), each.frame) for each in stored.slices),
        geometry=stored.geometry,
        notes=stored.notes,
        part=stored.part,
        patient=stored.patient,
    )
