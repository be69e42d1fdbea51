"""The table that says the class of each lesion: read from CSV or dataset.json, and to be filled in.

Spreadsheets save CSV with commas, semicolons or tabs, and in UTF-8 or UTF-16 with a mark; all of
these are read.
"""

import codecs
import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from autoliver.artifacts import Record, csv_text, write_bytes
from autoliver.datasets.cases import Dataset
from autoliver.errors import DatasetError
from autoliver.io.paths import missing_file
from autoliver.system import read_whole
from autoliver.values import counted, first_few, meant, natural, shortened

COLUMNS = ("case", "lesion", "class")
EVERY_LESION = "*"
_MEASURED = ("volume_ml", "centroid_x_lps_mm", "centroid_y_lps_mm", "centroid_z_lps_mm")
_SEPARATORS = (",", ";", "\t")
_SHOWN = 3
_LONGEST = 80  # characters of names of columns
# The apostrophe that `text_cell` puts before what a spreadsheet would run as a formula.
_ESCAPED = re.compile(r"^'(?=[=+\-@])")


class Row(NamedTuple):
    """What is said of one lesion.

    Attributes:
        case: The case.
        lesion: Number of the lesion, from 1; None for every lesion of the case.
        name: Its class; "" if none is given.
        where: Where it is said, for messages.
    """

    case: str
    lesion: int | None
    name: str
    where: str

    @property
    def what(self) -> str:
        """The lesion in words."""
        return f"{self.case}, {'every lesion' if self.lesion is None else f'lesion {self.lesion}'}"


class Lesion(Record, frozen=True, kw_only=True):
    """A lesion in a table that is to be filled in.

    Attributes:
        case: The case.
        number: Its number among the connected lesions of the case, from 1.
        volume_ml: Its volume.
        centroid_lps_mm: Its centre (x, y, z) as DICOM and ITK have it (LPS).
        name: Its class; "" if it is not known.
    """

    case: str
    number: int
    volume_ml: float
    centroid_lps_mm: tuple[float, float, float]
    name: str = ""


def rows_of_dataset(dataset: Dataset) -> list[Row]:
    """Returns what `lesion_classes` of dataset.json says.

    Raises:
        DatasetError: A lesion has no number.
    """
    where = f"{Path(dataset.folder) / 'dataset.json'}: lesion_classes: "
    return [
        Row(case.name, _number(lesion, f"{where}{case.name}"), name.strip(), f"{where}{case.name}")
        for case in dataset.cases
        for lesion, name in case.lesion_classes.items()
    ]


def rows_of_file(path: Path) -> list[Row]:
    """Reads a CSV file with the columns case, lesion and class; further columns are ignored.

    Raises:
        DatasetError: The file is missing or no such table, or a lesion has no number.
    """
    text = _text(path)
    separator, places = _columns(path, text.partition("\n")[0])
    rows = []
    for line, cells in _lines(path, text, separator):
        where = f"{path}, line {line}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) <= max(places):
            raise DatasetError(
                f"{where}: {counted(len(cells), 'cell')}, expected at least {max(places) + 1}.",
                hint="Complete the line, or remove it.",
            )
        case, lesion, name = (_ESCAPED.sub("", cells[place].strip()) for place in places)
        if not case:
            raise DatasetError(
                f"{where}: the case is missing.", hint="Name the case in every line."
            )
        rows.append(Row(case, _number(lesion, f"{where}: {case}"), name, where))
    return rows


def _lines(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the cells of each row below the first, with the number of the line it begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    next(reader)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DatasetError(
                f"{path}, line {line}: no row of cells ({error}).",
                hint="Close the quotation marks that are opened there.",
            ) from None
        yield line, cells


def _text(path: Path) -> str:
    try:
        content = read_whole(path)
    except FileNotFoundError:
        raise missing_file(path) from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}, line {line}: the text is not UTF-8.",
            hint="Save it again as CSV in UTF-8.",
        ) from None


def _columns(path: Path, head: str) -> tuple[str, list[int]]:
    """The separator of a table, and where its columns are."""
    for separator in _SEPARATORS:
        try:
            cells = next(csv.reader([head], delimiter=separator), [])
        except csv.Error:  # a cell that is too long, or a zero
            cells = []
        names = [cell.strip().casefold() for cell in cells]
        if set(COLUMNS) <= set(names):
            break
    else:
        names = [name for name in re.split(r'[,;\t\s"]+', head.casefold()) if name]
        lacking = [name for name in COLUMNS if name not in names]
        raise DatasetError(
            f"{path}: its first line has no column {' and no column '.join(lacking or COLUMNS)}; "
            f"found {shortened(first_few(names, _SHOWN), _LONGEST) or 'nothing'}.",
            hint=f"Begin the file with the line {','.join(COLUMNS)}, or make one to fill in with "
            "--template.",
        )
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise DatasetError(
            f"{path}: the column {twice[0]} is there {names.count(twice[0])} times.",
            hint="Keep one of them.",
        )
    return separator, [names.index(name) for name in COLUMNS]


def _number(lesion: str, where: str) -> int | None:
    text = lesion.strip()
    if text in ("", EVERY_LESION):
        return None
    number = natural(text.removesuffix(".0"))  # as some programs write whole numbers
    if number:
        return number
    raise DatasetError(
        f"{where}: lesion {lesion!r} is no number of a lesion; expected 1, 2, ... or "
        f"{EVERY_LESION} for every lesion of the case.",
        hint="Number the lesions as --template does.",
    )


def by_case(rows: Iterable[Row], cases: Collection[str]) -> dict[str, dict[int | None, Row]]:
    """Sorts rows by case and lesion.

    Args:
        rows: The rows.
        cases: Names of the cases with a label map.

    Returns:
        Case -> number of the lesion -> row; a row for every lesion has the number None, and is the
        only one of its case.

    Raises:
        DatasetError: A case is unknown, a lesion has two rows, or a class is missing.
    """
    table: dict[str, dict[int | None, Row]] = {}
    for row in rows:
        if row.case not in cases:
            raise _unknown_case(row, cases)
        if not row.name:
            raise DatasetError(
                f"{row.where}: {row.what}: the class is missing.", hint="Write the class there."
            )
        own = table.setdefault(row.case, {})
        other = own.get(row.lesion)
        if other is None and own and None in (row.lesion, *own):
            other = next(iter(own.values()))
        if other is not None:
            raise DatasetError(
                f"{row.where}: {row.what} is {row.name}, but {other.what} is {other.name} already "
                f"({other.where}); a lesion has one class.",
                hint="Keep one of the two. Lesions that touch are one lesion.",
            )
        own[row.lesion] = row
    return table


def _unknown_case(row: Row, cases: Collection[str]) -> DatasetError:
    # Spreadsheets drop the zeros before a number.
    plain = [name for name in cases if name.lstrip("0") == row.case.lstrip("0")]
    return DatasetError(
        f"{row.where}: there is no case {row.case} with a label map.",
        hint=f"Did you mean {plain[0]}?"
        if plain
        else meant(row.case, cases) or "Correct the name, or remove the line.",
    )


def write_template(path: Path, lesions: Iterable[Lesion]) -> None:
    """Writes the table of all lesions, whose classes are to be filled in."""
    rows: list[tuple[object, ...]] = [(*COLUMNS, *_MEASURED)]
    for lesion in lesions:
        numbers = (f"{lesion.volume_ml:.3f}", *(f"{mm:.1f}" for mm in lesion.centroid_lps_mm))
        rows.append((lesion.case, lesion.number, lesion.name, *numbers))
    write_bytes(path, csv_text(rows).encode())
