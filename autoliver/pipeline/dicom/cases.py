"""Which cases the DICOM series in a folder are: their names, and which of them are asked for."""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoliver.commands import command
from autoliver.datasets.cases import Modality
from autoliver.datasets.layouts import by_stem, group_channels, image_files
from autoliver.errors import DatasetError, OptionError
from autoliver.io.dicom.group import Found, NoSeries, find_series, folder_of
from autoliver.io.dicom.planes import hash_of
from autoliver.io.dicom.series import Series
from autoliver.io.dicom.walk import dicom_files, is_dicom
from autoliver.io.header import PICTURES, split_ending
from autoliver.values import check_texts, counted, first_few, meant, natural, shortened

_log = logging.getLogger(__name__)

# What to do about a series that makes no volume.
REFUSED = (
    "Fetch the whole series again from where it comes from, choose others with --series, or "
    "resample it elsewhere to slices at equal distances and save it as .nii.gz."
)
_LONGEST = 80
_MODALITIES: dict[str, Modality] = {"CT": "CT", "MR": "MR"}
_COLUMNS, _WIDTH = (24, 6, 8, 15), 78
_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class DicomCases:
    """The DICOM series of a folder that are asked for.

    Attributes:
        series: Case -> its series.
        refused: Case -> what makes no volume, and is not a localizer.
        left_out: What else was found and is no case, in words; empty if nothing.
    """

    series: dict[str, Series]
    refused: dict[str, NoSeries]
    left_out: str


def series_words(value: object) -> tuple[str, ...]:
    """Checks what --series says: a number or a text, or several of them; returns them as texts.

    Raises:
        OptionError: It is something else.
    """
    several = value if isinstance(value, list | tuple) else (value,)
    texts = [each if natural(each) is None else str(each) for each in several]
    return check_texts("--series", texts, "the number or description of a series, or several")


def modality_of(series: Series) -> Modality | None:
    """Returns the modality that the header of a series states; None if it is not CT or MR."""
    return _MODALITIES.get(series.modality)


def patients_of(cases: Mapping[str, Series]) -> dict[str, str]:
    """Says which series are of one patient, so that no fold is tested on patients it has seen.

    Series with the same PatientID are; one without it belongs to the patient of its study. One
    PatientID for all studies is what anonymised archives have, and tells no patients apart; then
    each study counts as a patient.

    Args:
        cases: Case -> its series.

    Returns:
        Case -> a hash that stands for its patient; the name of the case if the header says
        neither patient nor study.
    """
    known = {each.patient for each in cases.values()} - {""}
    studies = {each.study_uid for each in cases.values()}
    if len(studies) > 1 and len(known) == 1:
        _log.warning(
            "All series have the same PatientID, so that each study is taken for a patient. "
            'If they are not, write the "patients" into dataset.json.'
        )
        known = set()
    of_study = {s.study_uid: s.patient for s in cases.values() if s.patient in known}
    of_study.pop("", None)
    return {
        name: (each.patient if each.patient in known else "")
        or of_study.get(each.study_uid)
        or hash_of(each.study_uid)
        or name
        for name, each in cases.items()
    }


def find_dicom(source: Path, wanted: Sequence[str] = ()) -> DicomCases | None:
    """Finds the DICOM series in a folder and in those below it.

    Args:
        source: A folder, or one DICOM file, which stands for its series in its folder.
        wanted: Numbers, descriptions or names of cases of the series to take; empty for all.

    Returns:
        The series; None if there is no DICOM file.

    Raises:
        DatasetError: There is no series.
        OptionError: There is no such series as is wanted.
        MachineError: The system refuses to read a file.
    """
    if source.is_file() and is_dicom(source):
        return _of_file(source)
    files = list(dicom_files(source)) if source.is_dir() else []
    if not files:
        return None
    found = find_series(files)
    cases = _named(found, source)
    if not cases.series and not cases.refused:
        raise DatasetError(
            f"{source}: no DICOM series that is an image of slices; found {cases.left_out}.",
            hint="Give a folder with a series of CT or MR.",
        )
    if len(cases.series) + len(cases.refused) > 1 or cases.left_out or wanted:
        _log.warning("%s", _table(source, cases))
    return _told(_chosen(source, cases, wanted, found))


def _of_file(file: Path) -> DicomCases:
    """The series of a file, with the name that it has among those of the file's folder."""
    same = [path for path in sorted(file.parent.iterdir()) if is_dicom(path)]
    cases = _named(find_series(same), file.parent)
    series = {
        name: each
        for name, each in cases.series.items()
        if any(one.file == file for one in each.slices)
    }
    refused = {name: each for name, each in cases.refused.items() if file in each.files}
    if not series and not refused:
        raise DatasetError(
            f"{file}: this DICOM file is no slice of a series that makes a volume.",
            hint=f"Give the folder of a series, such as {file.parent}",
        )
    return _told(DicomCases(series=series, refused=refused, left_out=""))


def _told(cases: DicomCases) -> DicomCases:
    """The same cases, after the notes on them were logged."""
    for name, series in cases.series.items():
        for note in series.notes:
            _log.warning("%s: %s", name, note)
    return cases


def images_beside(source: Path) -> dict[str, tuple[Path, ...]]:
    """Finds the image files of cases that lie in a folder together with DICOM files.

    Pictures are left out, since they are views of the series.

    Args:
        source: The folder; a file has none beside it.
    """
    files = [
        path
        for path in image_files(source)
        if split_ending(path.name)[1].lower() not in PICTURES and not is_dicom(path)
    ]
    return group_channels(by_stem(files, prefer=None), channels=1)


def several_channels(source: Path, channels: Sequence[str]) -> DatasetError:
    """Returns the error for a series that is to be predicted with a model of several channels."""
    convert = command("convert", "dicom", str(source), "OUT")
    return DatasetError(
        f"{source}: a DICOM series is one channel, but the model takes {len(channels)}: "
        f"{', '.join(channels)}.",
        hint=f"Make image files of the series with {convert} (OUT is a new folder), name those of "
        "one case CASE_0000, CASE_0001 and so on in the order of the channels, and predict them.",
    )


def _named(found: Found, source: Path) -> DicomCases:
    refused = [each for each in found.refused if not each.localizer]
    folders = [folder_of(each.file for each in s.slices) for s in found.series]
    folders += [each.folder for each in refused]
    names = _names(source, folders, [*found.series, *refused])
    count = len(found.series)
    return DicomCases(
        series=dict(sorted(zip(names[:count], found.series, strict=True))),
        refused=dict(sorted(zip(names[count:], refused, strict=True))),
        left_out=_left_out(found),
    )


def _names(
    source: Path, folders: Sequence[Path], items: Sequence[Series | NoSeries]
) -> tuple[str, ...]:
    """Names of cases: the folder's, then number and part where it holds several volumes.

    Where names are equal, the folders above go in front, and at last a hash goes behind.
    """
    held = Counter(folders)
    tails = [_tail(item, alone=held[f] == 1) for f, item in zip(folders, items, strict=True)]
    depths = [1] * len(folders)
    most = [max(1, len(folder.parts) - len(source.parts)) for folder in folders]
    while True:
        names = [_name(*each) for each in zip(folders, tails, depths, strict=True)]
        again = [i for i in _twice(names) if depths[i] < most[i]]
        if not again:
            break
        for i in again:
            depths[i] += 1
    for i in _twice(names):
        names[i] = f"{names[i]}_{_hash(items[i])}"
    return tuple(names)


def _twice(names: Sequence[str]) -> list[int]:
    """Indices of names that are there more than once, on any disk."""
    counts = Counter(name.casefold() for name in names)
    return [i for i, name in enumerate(names) if counts[name.casefold()] > 1]


def _tail(item: Series | NoSeries, *, alone: bool) -> str:
    part = item.part if isinstance(item, Series) else ""
    number = "" if alone else str(item.number) if item.number is not None else item.description
    return "_".join(filter(None, [number, part]))


def _name(folder: Path, tail: str, depth: int) -> str:
    parts = [*folder.resolve().parts[-depth:], *([tail] if tail else [])]
    text = re.sub(r"[^\w.-]+", "_", "_".join(parts)).strip("._-")[-_LONGEST:] or "dicom"
    return text.replace(".", "_") if split_ending(text)[1] else text


def _hash(item: Series | NoSeries) -> str:
    if isinstance(item, Series):
        text = item.uid + item.part + str(item.slices[0].file)
    else:
        text = str(item.folder) + item.description + item.problem
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]


def _left_out(found: Found) -> str:
    localizers = [
        f"localizer {each.description or each.number or each.folder.name} "
        f"({counted(each.images, 'slice')})"
        for each in found.refused
        if each.localizer
    ]
    others = [
        counted(number, f"file of {kind}", f"files of {kind}")
        for kind, number in sorted(found.others.items())
    ]
    return ", ".join([*localizers, *others])


def _chosen(source: Path, cases: DicomCases, wanted: Sequence[str], found: Found) -> DicomCases:
    """The series that are asked for, by number, description or name of the case."""
    if not wanted:
        return cases
    every: dict[str, Series | NoSeries] = {**cases.series, **cases.refused}
    taken: set[str] = set()
    for word in wanted:
        names = [name for name, item in every.items() if _is_meant(word, name, item)]
        if not names:
            _refuse_localizer(word, found)
            names = [name for name, item in every.items() if _is_part(word, item)]
        if not names:
            known = [_told_as(name, item) for name, item in every.items()]
            words = [item.description for item in every.values() if item.description]
            number = word.strip().isdigit()
            raise OptionError(
                f"--series {word}: {source} has no such series; found {first_few(known, _SHOWN)}.",
                hint=("" if number else meant(word, [*words, *every]))
                or "Give the number of a series, its description, or a part of it.",
            )
        taken.update(names)
    return DicomCases(
        series={name: each for name, each in cases.series.items() if name in taken},
        refused={name: each for name, each in cases.refused.items() if name in taken},
        left_out=cases.left_out,
    )


def _is_meant(word: str, name: str, item: Series | NoSeries) -> bool:
    plain = word.strip().casefold()
    forms = {name.casefold(), item.description.casefold()}
    return plain in forms or (item.number is not None and plain == str(item.number))


def _is_part(word: str, item: Series | NoSeries) -> bool:
    """Whether a word, but not a number, is a part of a series' description."""
    plain = word.strip().casefold()
    return not plain.isdigit() and plain != "" and plain in item.description.casefold()


def _told_as(name: str, item: Series | NoSeries) -> str:
    if item.number is None:
        return item.description or name
    return f"{item.number} ({item.description})" if item.description else str(item.number)


def _refuse_localizer(word: str, found: Found) -> None:
    for each in found.refused:
        if each.localizer and _is_meant(word, each.folder.name, each):
            raise OptionError(
                f"--series {word}: this is a localizer of {counted(each.images, 'slice')}.",
                hint="Choose a series that is a volume.",
            )


def _table(source: Path, cases: DicomCases) -> str:
    """What was found, for a terminal of 80 columns."""
    from autoliver.evaluation.tables import aligned

    rows = [("case", "series", "slices", "mm (z, y, x)", "description")]
    rows += [
        (
            name,
            "" if each.number is None else str(each.number),
            f"{each.modality} {len(each.slices)}",
            "x".join(f"{mm:.3g}" for mm in each.geometry.spacing_mm),
            each.description,
        )
        for name, each in cases.series.items()
    ]
    rows += [
        (
            name,
            "" if each.number is None else str(each.number),
            f"{each.modality} {each.images}",
            "refused",
            each.description,
        )
        for name, each in cases.refused.items()
    ]
    columns = [
        [shortened(cell, most, middle=True) for cell in column]
        for column, most in zip(zip(*rows, strict=True), _COLUMNS, strict=False)
    ]
    room = _WIDTH - sum(max(map(len, column)) + 2 for column in columns)
    columns.append([shortened(row[-1], room) for row in rows])
    lines = aligned(list(zip(*columns, strict=True)))
    said = [f"{source}: {counted(len(rows) - 1, 'DICOM series', 'DICOM series')}.", lines]
    return "\n".join([*said, *([f"No cases: {cases.left_out}."] if cases.left_out else [])])
