"""Makes a dataset of published data in a layout of its own; images stay where they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoliver.artifacts import Record, as_json, brief, replacing, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import read_new
from autoliver.datasets.layouts import commonest_ending
from autoliver.errors import DatasetError, OptionError
from autoliver.io.files import read_header, read_label, write_label
from autoliver.io.grids import compare_grids
from autoliver.io.paths import check_printable
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.needs import score_need
from autoliver.parallel import Need, case_bar
from autoliver.pipeline.conversion.kind import Found, Kind, passed_over
from autoliver.pipeline.conversion.kinds import KINDS
from autoliver.system import entries
from autoliver.values import check_choice, first_few, hints_of, refused
from autoliver.workspace import Workspace

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The result of `convert`.

    Attributes:
        folder: The new dataset.
        kind: What was converted.
        cases: Number of cases.
        patients: Number of patients.
        unlabelled: Names of the cases that were left out, since they have no label map.
        passed_over: Folders of the source without any case.
        rewritten: Number of label maps that were written anew, since their values changed.
        labels: Name of each label -> its value or values.
        next_command: The command that makes sense next.
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
            "labels": self.labels,
            "next": self.next_command,
        }

    __repr__ = brief


class _Task(Record, frozen=True, kw_only=True):
    """A case with a label map.

    Attributes:
        case: The case.
        folder: Folder for the label map if it has to be written anew.
    """

    case: Found
    folder: Path


class _Made(Record, frozen=True, kw_only=True):
    """A case that was checked.

    Attributes:
        label: Path of its label map: relative if it was written, else that in the source.
        problem: What is wrong with its files; empty if nothing is.
        hint: What to do about it.
    """

    label: str = ""
    problem: str = ""
    hint: str = "Correct these files, or move the cases out of the folder."


def convert(
    workspace: Workspace,
    kind: str,
    source: Path,
    output: Path,
    *,
    rater: int | None = None,
    machine: Machine = WHOLE_MACHINE,
) -> Converted:
    """Makes a dataset of published data; images are referred to, and nothing of it is changed.

    Label maps are referred to as well, and written anew only where values of labels change.

    Args:
        workspace: The workspace, for the next command.
        kind: A name in `KINDS`.
        source: The folder of the data.
        output: Folder of the new dataset.
        rater: Whose label maps are taken, where the data have several raters; None for the first.
        machine: The processes and memory that may be used.

    Raises:
        DatasetError: The folder does not hold such data, or files of a case do not fit together.
        OptionError: There is no such kind or rater, or the output exists already.
        MachineError: The output cannot be written.
    """
    kind = check_choice("kind", kind, tuple(KINDS))
    row = _rated(KINDS[kind](), rater)
    source, output = source.absolute(), output.absolute()
    _check_output(source, output)
    found = _cases(row, source)
    cases = [case for case in found if case.layers]
    with replacing(output) as beside:
        (beside / "labelsTr").mkdir(parents=True)
        folder = beside / "labelsTr"
        tasks = [_Task(case=case, folder=folder) for case in cases]
        stage = machine.pool("convert", need=_need, light=True)
        made = list(case_bar("convert", len(tasks))(stage.map(_make, tasks)))
        _refuse({case.name: new for case, new in zip(cases, made, strict=True) if new.problem})
        description = _description(kind, row, cases, [each.label for each in made])
        write_bytes(beside / "dataset.json", as_json(description))
        read_new(beside, output)
    return Converted(
        folder=output,
        kind=row.title,
        cases=len(cases),
        patients=len({case.patient for case in cases}),
        unlabelled=tuple(case.name for case in found if not case.layers),
        passed_over=tuple(passed_over(source, found)),
        rewritten=sum(not Path(new.label).is_absolute() for new in made),
        labels=dict(row.description["labels"]),
        next_command=command("plan", str(output), workspace=workspace.root),
    )


def _rated(kind: Kind, rater: int | None) -> Kind:
    """Returns a kind with the label maps of a rater."""
    if rater is None:
        return kind
    if not kind.raters:
        several = [name for name, row in KINDS.items() if row().raters]
        raise OptionError(
            f"--rater is for data with several raters: {', '.join(several)}.",
            hint="Leave it out.",
        )
    if rater not in kind.raters:
        raise refused("--rater", rater, f"one of {', '.join(map(str, kind.raters))}")
    return replace(kind, find=kind.raters[rater])


def _check_output(source: Path, output: Path) -> None:
    """Refuses outputs that exist already or lie in the source."""
    if output.is_symlink() or output.is_file() or entries(output):
        raise OptionError(f"{output}: it exists already.", hint="Choose a new folder.")
    if output.resolve().is_relative_to(source.resolve()):
        raise OptionError(
            f"{output}: it lies in the folder that is to be converted, which is left as it is.",
            hint="Choose a folder elsewhere.",
        )


def _cases(kind: Kind, source: Path) -> list[Found]:
    """Finds the cases of a source, sorted by name; some of them have a label map."""
    check_printable(source)
    if not source.is_dir():
        raise DatasetError(f"{source}: there is no such folder.", hint="Check the path.")
    cases = sorted(kind.find(source), key=lambda case: case.name)
    if not cases:
        near = [f for f in (source.parent, *entries(source)) if f.is_dir() and _holds(kind, f)]
        raise DatasetError(
            f"{source}: there is no case of {kind.title}; expected {kind.layout}.",
            hint=f"Did you mean {near[0]}?" if near else "Give the folder that holds the cases.",
        )
    plain = Counter(case.name.casefold() for case in cases)
    twice = [case for case in cases if plain[case.name.casefold()] > 1]
    if twice:
        name = twice[0].name
        places = [case.images[0] for case in twice if case.name.casefold() == name.casefold()]
        raise DatasetError(
            f"{name}: it is there twice: {' and '.join(places)}.",
            hint="Move one of them out of the folder.",
        )
    if not any(case.layers for case in cases):
        raise DatasetError(
            f"{source}: none of the {len(cases)} cases has a label map.",
            hint="Give the folder of the training cases. Images alone need not be converted: give "
            "their folder to predict.",
        )
    return cases


def _holds(kind: Kind, folder: Path) -> bool:
    try:
        return next(iter(kind.find(folder)), None) is not None
    except DatasetError:
        return True


def _need(task: _Task) -> Need:
    return score_need(Path(task.case.layers[0].path))


def _make(task: _Task) -> _Made:
    """Makes the label map of a case; what is wrong with its files is returned, not raised."""
    try:
        return _checked(task)
    except DatasetError as error:  # a file that cannot be read, or is no label map
        problem = f"{task.case.name}: {error.problem.removesuffix('.')}"
        return _Made(problem=problem, hint=error.hint)


def _checked(task: _Task) -> _Made:
    """Checks the files of a case, and writes its label map anew if necessary."""
    case = task.case
    first = Path(case.images[0])
    grid = read_header(first).geometry
    for other in map(Path, (*case.images[1:], *(layer.path for layer in case.layers))):
        for difference in compare_grids(grid, read_header(other).geometry):
            if not difference.rounding:
                values = difference.values()
                return _Made(
                    problem=f"{case.name}: {first.name} and {other.name} have different grids: "
                    f"{difference.what} {values[0]} and {values[1]}"
                )
    labels = [read_label(layer.path) for layer in case.layers]
    painted = np.zeros(labels[0].array.shape[1:], np.uint8)
    same = len(labels) == 1
    for layer, label in zip(case.layers, labels, strict=True):
        for value in np.unique(label.array).tolist():
            if value not in layer.values:
                known = ", ".join(map(str, layer.values))
                return _Made(
                    problem=f"{case.name}: {layer.path} holds the value {value}, expected {known}"
                )
            new = layer.values[value]
            same &= new == value
            if new:
                painted[label.array[0] == value] = new
    if same:
        return _Made(label=case.layers[0].path)
    path = f"labelsTr/{case.name}.nii.gz"
    write_label(task.folder / Path(path).name, painted, labels[0].geometry)
    return _Made(label=path)


def _refuse(failed: Mapping[str, _Made]) -> None:
    if failed:
        problems = [made.problem for made in failed.values()]
        hints = [(name, made.hint) for name, made in failed.items()]
        raise DatasetError(
            f"Nothing was written: {first_few(problems, _SHOWN)}.", hint=hints_of(hints, _SHOWN)
        )


def _description(
    name: str, kind: Kind, cases: Sequence[Found], labels: Sequence[str]
) -> dict[str, Any]:
    """The dataset.json."""
    return {
        **kind.description,
        "numTraining": len(cases),
        "file_ending": commonest_ending(Path(image) for case in cases for image in case.images),
        "converted_by": f"autoliver, as {name}",
        "dataset": {
            case.name: {"images": list(case.images), "label": label}
            for case, label in zip(cases, labels, strict=True)
        },
        "patients": {case.name: case.patient for case in cases},
    }
