"""lesions.json and lesions.csv: the lesions of all cases of a folder.

lesions.json is kept up to date case by case, before the label map of a case is written. So it has
the lesions of every finished case, however a prediction ends, and whoever continues it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from autoliver.artifacts import Artifact, csv_text, grown, save_growing, write_bytes
from autoliver.errors import ArtifactError
from autoliver.inference.lesions.measure import CaseLesions, Lesion
from autoliver.locks import one_at_a_time

_STEM = "lesions"


class LesionTable(Artifact, frozen=True, kw_only=True):
    """The lesions of cases that one model predicted in one way.

    Attributes:
        classes: The labels that are lesions.
        voted: Whether every connected lesion was given one class of these.
        temperature: Temperature that was applied to the probabilities of these classes; 1 for none.
        cases: Case -> its lesions; cases without any are there as well.
    """

    KIND: ClassVar[str] = "lesions"

    classes: tuple[str, ...]
    voted: bool
    temperature: float = 1.0
    cases: dict[str, CaseLesions] = msgspec.field(default_factory=dict)

    def to_csv(self) -> bytes:
        """Returns the content of a CSV file with one row per lesion; unknown values are empty."""
        several = self.classes if len(self.classes) > 1 else ()
        head = [
            *("case", "lesion", "class", "probability"),
            *(f"probability_{name}" for name in several),
            *("volume_ml", "centroid_x_lps_mm", "centroid_y_lps_mm", "centroid_z_lps_mm"),
            *("longest_mm", "perpendicular_mm", "slice", "slice_axis"),
        ]
        rows = [
            [case, *_cells(lesion, several)]
            for case in sorted(self.cases)
            for lesion in self.cases[case].lesions
        ]
        return csv_text([head, *rows]).encode()


def _cells(lesion: Lesion, several: Collection[str]) -> Iterator[object]:
    yield from (lesion.lesion, lesion.label, lesion.probability)
    yield from (lesion.probabilities.get(name) for name in several)
    yield from (lesion.volume_ml, *lesion.centroid_lps_mm)
    yield from (lesion.longest_mm, lesion.perpendicular_mm, lesion.slice, lesion.slice_axis)


@dataclass(frozen=True)
class LesionFiles:
    """The files of a table, beside label maps.

    Attributes:
        json: The table.
        csv: The same for people.
    """

    json: Path
    csv: Path

    @classmethod
    def beside(cls, record: Path, record_file: str) -> "LesionFiles":
        """Returns the files that belong to a record: lesions.json to predict.json.

        Args:
            record: The record's file.
            record_file: The name that records have in folders; other records have something before
                it, which the tables get as well.
        """
        head = record.name.removesuffix(record_file)
        return cls(*(record.with_name(f"{head}{_STEM}.{kind}") for kind in ("json", "csv")))

    def foreign(self) -> list[Path]:
        """Returns those files that are there and are no table of lesions."""
        try:
            if self._read() is not None:
                return []
        except ArtifactError:
            pass
        return [file for file in (self.json, self.csv) if file.exists()]

    def written(self) -> Path | None:
        """Returns the file for people; None if there is no table."""
        return self.csv if self.csv.exists() and not self.foreign() else None

    def remove(self) -> None:
        """Removes the table, whose cases are about to be predicted into another one."""
        if not self.foreign():
            for file in (self.csv, self.json):
                file.unlink(missing_ok=True)

    def missing(self, table: LesionTable, cases: Collection[str]) -> list[str]:
        """Returns the cases whose lesions are not there, or of another model than the table's."""
        there = None if self.foreign() else self._read()
        if there is None or there.replace(cases={}) != table:
            return list(cases)
        return [case for case in cases if case not in there.cases]

    def begin(self, table: LesionTable, again: Collection[str]) -> None:
        """Begins or continues a table.

        Args:
            table: The table without cases. What is there of another model, or of another way to
                predict, as its `made_from` says, is left out.
            again: Cases that are about to be predicted, and lose the lesions they have.

        Raises:
            MachineError: The files cannot be written.
        """
        with one_at_a_time(self.json.parent):
            there = self._read()
            if there is not None and there.replace(cases={}) == table:
                kept = {case: found for case, found in there.cases.items() if case not in again}
                table = table.replace(cases=kept)
            self._save(table)

    def join(self, table: LesionTable) -> None:
        """Adds the lesions of all cases of another table; one of another model is replaced by it.

        Raises:
            MachineError: The files cannot be written.
        """
        with one_at_a_time(self.json.parent):
            there = self._read()
            same = there is not None and there.replace(cases={}) == table.replace(cases={})
            cases = {**(there.cases if there is not None and same else {}), **table.cases}
            self._save(table.replace(cases=dict(sorted(cases.items()))))

    def add(self, case: str, found: CaseLesions) -> None:
        """Adds the lesions of a case to the table that was begun.

        Raises:
            MachineError: The files cannot be written.
        """
        with one_at_a_time(self.json.parent):
            there = grown(LesionTable, self.json) or LesionTable.load(self.json)
            cases = {**there.cases, case: found}
            self._save(there.replace(cases=dict(sorted(cases.items()))))

    def _read(self) -> LesionTable | None:
        return LesionTable.load(self.json) if self.json.exists() else None

    def _save(self, table: LesionTable) -> None:
        # A table for people alone would be taken for theirs, were the process killed between.
        save_growing(table, self.json)
        write_bytes(self.csv, table.to_csv())
