"""What every conversion gives and checks: its result, a new output, errors by case."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autoliver.artifacts import Record, brief
from autoliver.datasets.names import refuse_inside_dataset
from autoliver.errors import DatasetError, OptionError
from autoliver.system import entries
from autoliver.values import first_few, hints_of

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The result of `convert`.

    Attributes:
        folder: The new dataset; of DICOM segmentations, their folder.
        kind: What was converted.
        cases: Number of cases.
        patients: Number of patients.
        unlabelled: Names of the cases that were left out, since they have no label map.
        passed_over: Folders of the source without any case.
        rewritten: Number of label maps that were written anew, since their values changed.
        series: Number of images that were made of DICOM series.
        told: Case -> what was done to its label map besides other values.
        note: A sentence about such data; empty for none.
        labels: Name of each label -> its value or values.
        lesions: Class of lesions -> their number, where lesions got their classes.
        next_command: The command that makes sense next; empty for none.
    """

    folder: Path
    kind: str
    cases: int
    patients: int
    unlabelled: tuple[str, ...]
    passed_over: tuple[Path, ...]
    rewritten: int
    labels: dict[str, int | list[int]]
    next_command: str
    lesions: dict[str, int] = field(default_factory=dict)
    series: int = 0
    told: dict[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "dataset": str(self.folder),
            "kind": self.kind,
            "cases": self.cases,
            "patients": self.patients,
            "unlabelled": list(self.unlabelled),
            "passed_over": list(map(str, self.passed_over)),
            "rewritten": self.rewritten,
            "series": self.series,
            "told": self.told,
            "note": self.note,
            "labels": self.labels,
            **({"lesions": self.lesions} if self.lesions else {}),
            "next": self.next_command,
        }

    __repr__ = brief


class Failed(Record, frozen=True, kw_only=True):
    """What is wrong with a case.

    Attributes:
        problem: The problem, with the case, without a full stop.
        hint: What to do about it.
    """

    problem: str
    hint: str = "Correct these files, or move the cases out of the folder."


def check_output(source: Path, output: Path) -> None:
    """Refuses outputs that exist already or lie in the source.

    Raises:
        OptionError: The output is one of these.
    """
    if output.is_symlink() or output.is_file() or entries(output):
        raise OptionError(f"{output}: it exists already.", hint="Choose a new folder.")
    if output.resolve().is_relative_to(source.resolve()):
        raise OptionError(
            f"{output}: it lies in the source, which is left as it is.",
            hint="Choose a folder elsewhere.",
        )
    refuse_inside_dataset(output)


def refuse(failed: Mapping[str, Failed]) -> None:
    """Raises an error that names the first cases that failed; nothing if none did.

    Args:
        failed: Case -> what is wrong with it.

    Raises:
        DatasetError: Some case failed.
    """
    if failed:
        problems = [each.problem for each in failed.values()]
        hints = [(name, each.hint) for name, each in failed.items()]
        raise DatasetError(
            f"Nothing was written: {first_few(problems, _SHOWN)}.", hint=hints_of(hints, _SHOWN)
        )
