"""What is wrong with a dataset, finding by finding."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from autoliver.artifacts import Record
from autoliver.errors import DatasetError, MachineError
from autoliver.io.files import NotWholeNumbers, read_header
from autoliver.io.grids import compare_grids
from autoliver.io.header import Header

_HEADER = "Find out which values are right, and write them into the file's header."
_RESAMPLE = "Export both on one grid, or take the case out of the dataset."
Severity = Literal["error", "warning", "note"]
# What the system refused.
REFUSED = "refused"
# Codes of findings that may be gone the next time although the dataset is the same: a file that was
# away or half copied for a moment, and that was put back with its old date.
PASSING = frozenset({REFUSED, "unreadable", "missing_file"})
# How `verify --fix` mends: a header or a grid, voxels that are no numbers, values of labels.
Repair = Literal["grid", "finite", "values"]
# Code of a finding -> how it is mended; None: by nobody but the user.
REPAIRS: dict[str, Repair | None] = {
    "missing_file": None,
    "missing_label": None,
    "extra_file": None,
    "unreadable": None,
    REFUSED: None,
    "channels": None,
    "channel_grid": "grid",
    "label_grid": "grid",
    "not_finite": "finite",
    "constant": None,
    "outliers": None,
    "padding": None,
    "precision": None,
    "label_values": "values",
    "label_fractions": "values",
    "label_empty": None,
    "label_absent": None,
    "label_unused": None,
    "duplicate_image": None,
    "duplicate_channel": None,
    "direction": None,
    "header": None,
    "axes": None,
    "num_training": None,
    "lesion_classes": None,
    "channel_name": None,
    "modality": None,
    "spacing": None,
    "size": None,
    "intensities": None,
}


class Finding(Record, frozen=True, kw_only=True):
    """One defect of a dataset.

    Attributes:
        case: The case's name; None for a defect of the dataset as a whole.
        severity: An error stops planning; a warning should be looked at; a note is for information.
        code: The kind of defect, for programs, a key of `REPAIRS`: missing_file, missing_label,
            extra_file, unreadable, refused (by the system, perhaps not the next time),
            channels, channel_grid, label_grid, not_finite, constant, outliers, padding, precision,
            label_values, label_fractions, label_empty, label_absent, label_unused, duplicate_image,
            duplicate_channel, direction, header, axes, num_training; lesion_classes, for several
            in one lesion; about CT or MR: channel_name, modality; and for a case that is unlike
            the others: spacing, size, intensities.
        problem: What was found and what was expected.
        hint: What the user can do about it; empty for nothing.
    """

    case: str | None
    severity: Severity
    code: str
    problem: str
    hint: str = ""

    @property
    def repair(self) -> Repair | None:
        """How `verify --fix` mends it; None if it does not."""
        return REPAIRS[self.code]


class Findings:
    """Gathers the findings of one case."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.all: list[Finding] = []

    def add(self, severity: Severity, code: str, problem: str, hint: str) -> None:
        """Adds a finding, with the fields of `Finding`."""
        self.all.append(
            Finding(case=self.case, severity=severity, code=code, problem=problem, hint=hint)
        )

    def header(self, path: Path) -> Header | None:
        """Reads the header of a file; None if it cannot be read, which is added."""
        with self.gathering(path):
            header = read_header(path)
            self._note(path, header)
            return header
        return None

    @contextlib.contextmanager
    def gathering(self, path: Path) -> Iterator[None]:
        """Adds the error that a file in the block cannot be read, and goes on after the block."""
        try:
            yield
        except NotWholeNumbers as error:
            self.add("error", "label_fractions", error.problem, error.hint)
        except DatasetError as error:
            gone = not path.exists()
            self.add("error", "missing_file" if gone else "unreadable", error.problem, error.hint)
        except MachineError as error:
            self.add("error", REFUSED, error.problem, error.hint)

    def _note(self, path: Path, header: Header) -> None:
        if header.note:
            if header.doubtful:
                self.add("warning", "header", f"{path}: {header.note}.", _HEADER)
            else:
                self.add("note", "direction", f"{path}: {header.note}.", "")

    def grids(self, first: tuple[str, Header], second: tuple[str, Header], *, code: str) -> None:
        """Adds the differences between the grids of two files, given by path and header."""
        for difference in compare_grids(first[1].geometry, second[1].geometry):
            one, two = difference.values()
            files = f"{Path(first[0]).name} {one}, {Path(second[0]).name} {two}"
            who = "image and label" if code == "label_grid" else "two channels"
            if difference.rounding:
                problem = f"{who} differ in {difference.what} by rounding: {files}."
                self.add("note", code, problem, "")
            else:
                self.add("error", code, f"{who} differ in {difference.what}: {files}.", _RESAMPLE)
