"""Probabilities of lesions from the lesions.csv that lies beside predicted label maps."""

import csv
import io
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from autoliver.artifacts import content_of, text_cell
from autoliver.errors import DatasetError
from autoliver.evaluation.lesions import Lesion
from autoliver.evaluation.results import CaseScores
from autoliver.values import first_few

_log = logging.getLogger(__name__)

LESION_FILE = "lesions.csv"

_PREFIX = "probability_"
_FEWEST = 2  # columns of a table that commas divide
_SHOWN = 40  # characters of a cell in a message
# Volumes in a table are rounded; others are those of other lesions.
_ML_RELATIVE, _ML_ABSOLUTE = 0.02, 0.002
_MEND = "Predict the cases again, or remove the file to score the label maps alone."


class Row(NamedTuple):
    """A predicted lesion.

    Attributes:
        probabilities: Class -> probability.
        volume_ml: Its volume; None if it is not known.
    """

    probabilities: dict[str, float]
    volume_ml: float | None = None


Rows = dict[str, dict[int, Row]]


def read_probabilities(path: Path, classes: Sequence[str]) -> Rows:
    """Reads the probability of each class of predicted lesions.

    Args:
        path: A table with the columns case, lesion (its number, from 1 in the order of the lesions'
            first voxels) and probability_<class> for every class, as `predict` writes it. The
            column volume_ml is read too if it is there, other columns are not.
        classes: Names of the classes, in any case.

    Returns:
        Case, as a cell -> number of a lesion -> the lesion; empty if the table has no
        probabilities.

    Raises:
        DatasetError: A column is missing, a number is none or out of range, or a lesion is there
            twice.
    """
    head, rows = _table(path)
    columns = {name.strip().casefold(): name for name in head}
    if len(columns) < _FEWEST and any(_PREFIX in name for name in columns):
        raise DatasetError(
            f"{path}: one column '{next(iter(columns))[:_SHOWN]}'; expected columns with commas "
            "between them, as predict writes them.",
            hint=_MEND,
        )
    if not any(name.startswith(_PREFIX) for name in columns):
        return {}
    wanted = {each: f"{_PREFIX}{each}".casefold() for each in classes}
    if lacking := [name for name in wanted.values() if name not in columns]:
        _log.warning(
            "%s: without a column %s the probabilities are left out.", path, first_few(lacking, 5)
        )
        return {}
    missing = [name for name in ("case", "lesion") if name not in columns]
    if missing:
        raise DatasetError(
            f"{path}: there is no column {first_few(missing, 5)}; it has {first_few(head, 9)}.",
            hint=_MEND,
        )
    found: Rows = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}: row {number}"
        chances = {
            name: _number(row[columns[column]], column, most=1.0, where=where)
            for name, column in wanted.items()
        }
        volume = None
        if "volume_ml" in columns and row[columns["volume_ml"]]:
            volume = _number(row[columns["volume_ml"]], "volume_ml", where=where)
        case, lesion = row[columns["case"]] or "", row[columns["lesion"]] or ""
        if not re.fullmatch("[1-9][0-9]{0,8}", lesion) or int(lesion) in found.get(case, {}):
            raise DatasetError(
                f"{where}: lesion is '{lesion}'; expected a whole number from 1, once in a case.",
                hint=_MEND,
            )
        found.setdefault(case, {})[int(lesion)] = Row(chances, volume)
    return found


def _table(path: Path) -> tuple[list[str], list[dict[str, str | None]]]:
    """The names of the columns of a CSV file, and its rows."""
    text = content_of(path).decode("utf-8-sig", errors="replace")
    table = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return list(table.fieldnames or ()), list(table)
    except csv.Error as error:  # a zero, or a cell that is too long
        raise DatasetError(f"{path}: no table of lesions: {error}.", hint=_MEND) from None


def with_probabilities(
    cases: Iterable[CaseScores], rows: Mapping[str, Mapping[int, Row]]
) -> tuple[list[CaseScores], list[str]]:
    """Adds probabilities to the predicted lesions of cases.

    Returns:
        The cases; and the names of those whose lesions are not those of the table, by number or
        volume, which stay without probabilities.
    """
    added, unlike = [], []
    for case in cases:
        there = rows.get(text_cell(case.name), {})
        lesions = case.lesions or ()
        if not there or case.lesions is None:
            added.append(case)
            continue
        ours = {each.predicted: each for each in lesions if each.predicted is not None}
        if ours.keys() != there.keys() or not all(
            _alike(lesion.predicted_ml, there[number].volume_ml) for number, lesion in ours.items()
        ):
            added.append(case)
            unlike.append(case.name)
        else:
            added.append(case.replace(lesions=tuple(_with(each, there) for each in lesions)))
    return added, unlike


def _with(lesion: Lesion, rows: Mapping[int, Row]) -> Lesion:
    if lesion.predicted is None:
        return lesion
    return lesion.replace(probabilities=rows[lesion.predicted].probabilities)


def _alike(ours: float | None, theirs: float | None) -> bool:
    if ours is None or theirs is None:
        return True
    return math.isclose(ours, theirs, rel_tol=_ML_RELATIVE, abs_tol=_ML_ABSOLUTE)


def _number(text: str | None, column: str, *, most: float = math.inf, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value <= most or math.isinf(value):
        what = "a number from 0 to 1" if most == 1.0 else "a number of at least 0"
        raise DatasetError(f"{where}: {column} is '{text or ''}'; expected {what}.", hint=_MEND)
    return value
