"""Makes class-valued label maps of lesions whose classes are told one by one.

Lesions are the connected components of one label, numbered in the order of the file's array. The
classes take the place of this label: the first one has its value, and further ones the next values
that are free.
"""

import difflib
import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record, as_json, brief, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import Case, Dataset, Labels, describe_labels, read_dataset, read_new
from autoliver.datasets.label_values import refuse_other_values
from autoliver.datasets.lesions import connected_lesions, is_lesion, lesion_classes
from autoliver.datasets.regions import paintable
from autoliver.errors import DatasetError, OptionError
from autoliver.io.files import read_label, write_label
from autoliver.io.volume import Geometry, Volume
from autoliver.locks import only_writing
from autoliver.machine import Machine
from autoliver.needs import score_need
from autoliver.parallel import Need, case_bar
from autoliver.pipeline.conversion.class_table import (
    Lesion,
    Row,
    by_case,
    rows_of_dataset,
    rows_of_file,
    write_template,
)
from autoliver.pipeline.conversion.kinds import LESION_CLASSES
from autoliver.pipeline.conversion.result import Converted, Failed, check_output, refuse
from autoliver.pipeline.data import SPLITS_FILE
from autoliver.values import check_choice, counted, first_few, meant
from autoliver.workspace import Workspace

_log = logging.getLogger(__name__)

_SHOWN = 3
_MORE = 1.8  # times the memory of scoring; measured 1.7
_LONG = 5  # letters from which on a class that is spelled nearly like another one is doubtful
_ALIKE = 0.85


@dataclass(frozen=True, kw_only=True)
class LesionTable:
    """A table of all lesions, to be filled in with their classes.

    Attributes:
        file: The CSV file.
        cases: Number of cases with lesions.
        lesions: Number of lesions.
        next_command: The command for the table when it is filled in.
    """

    file: Path
    cases: int
    lesions: int
    next_command: str

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "file": str(self.file),
            "cases": self.cases,
            "lesions": self.lesions,
            "next": self.next_command,
        }

    __repr__ = brief


class _Task(Record, frozen=True, kw_only=True):
    """A case whose lesions get their classes.

    Attributes:
        case: The case's name.
        label: Its label map.
        values: Values of the lesions in it.
        classes: Number of the lesion -> value of its class; None for every lesion.
        where: Number of the lesion -> where its class is said, in words.
        ignore: Value of voxels to be ignored, before and after; None if there is none.
        labels: The labels of the dataset.
        folder: Folder for the new label map.
    """

    case: str
    label: str
    values: tuple[int, ...]
    classes: dict[int | None, int]
    where: dict[int | None, str]
    ignore: tuple[int, int] | None
    labels: Labels
    folder: Path


class _Made(Record, frozen=True, kw_only=True):
    """A case that was looked at.

    Attributes:
        label: Path of its label map: relative if it was written, else that in the source.
        lesions: Value of a class -> number of its lesions.
        failed: What is wrong with it; None if nothing is.
    """

    label: str = ""
    lesions: dict[int, int] = msgspec.field(default_factory=dict)
    failed: Failed | None = None


def convert_lesions(
    workspace: Workspace,
    source: Path,
    output: Path,
    *,
    classes: Path | None,
    label: str | None,
    machine: Machine,
) -> Converted:
    """Makes a dataset with class-valued label maps; images are referred to.

    Args:
        workspace: The workspace, for the next command.
        source: Folder of a dataset with one label for all lesions.
        output: Folder of the new dataset.
        classes: CSV file with the columns case, lesion, class; None for `lesion_classes` of
            dataset.json.
        label: The label of the lesions; None for the only one whose name is that of lesions.
        machine: The processes and memory that may be used.

    Raises:
        DatasetError: The dataset has no such label, or classes and lesions do not fit together.
        OptionError: There is no such label, or the output exists already.
        MachineError: The output cannot be written.
    """
    source, output = source.absolute(), output.absolute()
    check_output(source, output)
    dataset = read_dataset(source)
    lesion = _lesion_label(dataset, label)
    labelled = {case.name: case for case in dataset.labelled}
    rows = _rows(dataset, classes)
    names = _class_names(dataset, lesion, rows)
    table = by_case(rows, labelled)
    labels = _new_labels(dataset.labels, lesion, names)
    with only_writing(output) as beside:
        (beside / "labelsTr").mkdir(parents=True)
        tasks = [
            _task(case, table.get(name, {}), dataset.labels, labels, lesion, beside / "labelsTr")
            for name, case in labelled.items()
        ]
        stage = machine.pool("convert", need=_need, light=True)
        made = list(case_bar("convert", len(tasks))(stage.map(_classify, tasks)))
        refuse({t.case: m.failed for t, m in zip(tasks, made, strict=True) if m.failed})
        description = _description(dataset, lesion, names, labels, [each.label for each in made])
        write_bytes(beside / "dataset.json", as_json(description))
        if (source / SPLITS_FILE).exists():
            shutil.copyfile(source / SPLITS_FILE, beside / SPLITS_FILE)
        read_new(beside, output)
    counts = sum((Counter(each.lesions) for each in made), Counter[int]())
    return Converted(
        folder=output,
        kind=f"{dataset.name}, {lesion} by class",
        cases=len(labelled),
        patients=len({case.patient for case in labelled.values()}),
        unlabelled=tuple(case.name for case in dataset.cases if case.label is None),
        passed_over=(),
        rewritten=sum(not Path(each.label).is_absolute() for each in made),
        labels=description["labels"],
        lesions={name: counts[labels.values[name][0]] for name in names},
        next_command=command("plan", str(output), workspace=workspace.root),
    )


def tabulate_lesions(
    workspace: Workspace, source: Path, file: Path, *, label: str | None, machine: Machine
) -> LesionTable:
    """Writes a table of all lesions of a dataset, with their places, to be filled in.

    Args:
        workspace: The workspace, for the next command.
        source: Folder of a dataset with one label for all lesions.
        file: The CSV file, which must be new.
        label: The label of the lesions; None for the only one whose name is that of lesions.
        machine: The processes and memory that may be used.

    Raises:
        DatasetError: The dataset has no such label, or no lesion.
        OptionError: There is no such label, or the file exists already.
        MachineError: The file cannot be written.
    """
    if file.exists():
        raise OptionError(f"{file}: it exists already.", hint="Choose a new file.")
    dataset = read_dataset(source)
    lesion = _lesion_label(dataset, label)
    known = {(row.case, row.lesion): row.name for row in rows_of_dataset(dataset)}
    labels = dataset.labels
    tasks = [_task(case, {}, labels, labels, lesion, source) for case in dataset.labelled]
    stage = machine.pool("convert", need=_need, light=True)
    found = [
        each
        for case in case_bar("convert", len(tasks))(stage.map(_measure, tasks))
        for each in case
    ]
    if not found:
        raise DatasetError(
            f"{source}: none of {counted(len(tasks), 'label map')} holds a voxel of '{lesion}'.",
            hint="Name the label of the lesions with --label.",
        )
    lesions = [
        each.replace(name=known.get((each.case, each.number), known.get((each.case, None), "")))
        for each in found
    ]
    write_template(file, lesions)
    options = ["--classes", str(file), *(["--label", label] if label is not None else [])]
    return LesionTable(
        file=file,
        cases=len({each.case for each in lesions}),
        lesions=len(lesions),
        next_command=command(
            "convert", LESION_CLASSES, str(source), "OUT", options=options, workspace=workspace.root
        ),
    )


def _lesion_label(dataset: Dataset, label: str | None) -> str:
    """The label of the lesions."""
    foreground = dataset.labels.foreground
    if label is not None:
        label = check_choice("--label", label, tuple(foreground))
        _check_others(dataset, label)
        return label
    found = [name for name in foreground if is_lesion(name)]
    if len(found) == 1:
        _check_others(dataset, found[0])
        return found[0]
    if lesion_classes(foreground, dataset.lesion_class_names):
        raise DatasetError(
            f"{dataset.folder}: its label maps have classes of lesions already: "
            f"{', '.join(found)}.",
            hint="Plan it as it is, or name the label whose lesions are to be told apart with "
            "--label.",
        )
    raise DatasetError(
        f"{dataset.folder}: {'several labels' if found else 'no label'} named like lesions among "
        f"{', '.join(foreground)}.",
        hint="Name the label of the lesions with --label.",
    )


def _check_others(dataset: Dataset, lesion: str) -> None:
    """Refuses labels that hold a part of the lesions only."""
    foreground = dataset.labels.foreground
    own = set(foreground[lesion])
    for name, values in foreground.items():
        if name != lesion and own & set(values) and not own < set(values):
            raise DatasetError(
                f"{dataset.folder}: the label {name} holds a part of the lesions ({lesion}) only, "
                "which their classes cannot replace.",
                hint="Take it out of the labels in a copy of dataset.json.",
            )


def _rows(dataset: Dataset, classes: Path | None) -> list[Row]:
    told = rows_of_dataset(dataset)
    if classes is not None:
        if told:
            _log.warning("lesion_classes of %s is not used beside %s.", dataset.folder, classes)
        return rows_of_file(classes)
    if not told:
        table = command("convert", LESION_CLASSES, dataset.folder, options=["--template", "t.csv"])
        raise DatasetError(
            f"{dataset.folder}: dataset.json has no lesion_classes, and no table is given.",
            hint=f"Give one with --classes. To make one that is to be filled in: {table}",
        )
    return told


def _class_names(dataset: Dataset, lesion: str, rows: Sequence[Row]) -> list[str]:
    """The classes as in `lesion_class_names`, else sorted; checks how they are spelled."""
    others = ["background", "ignore", *(n for n in dataset.labels.foreground if n != lesion)]
    allowed = dataset.lesion_class_names
    first = {row.name: row for row in reversed(rows) if row.name}
    for name, row in first.items():
        if allowed is not None and name not in allowed:
            raise DatasetError(
                f"{row.where}: {row.what}: there is no class {name!r}; lesion_class_names has "
                f"{', '.join(allowed)}.",
                hint=meant(name, allowed) or "Correct it, or add the class to lesion_class_names.",
            )
        if "," in name or not name.isprintable():
            raise DatasetError(
                f"{row.where}: {row.what}: the class {name!r} holds "
                f"{'a comma' if name.isprintable() else 'line breaks or other control characters'}"
                ", which the name of a label cannot.",
                hint="Choose another name for the class.",
            )
        if _plain(name) in map(_plain, others) or not _plain(name):
            raise DatasetError(
                f"{row.where}: {row.what}: the class {name!r} is no name of its own: the dataset "
                f"has the labels {', '.join(dataset.labels.values)}.",
                hint="Choose another name for the class.",
            )
    if allowed is not None:
        return list(allowed)
    names = sorted(first)
    for number, name in enumerate(names):
        if alike := [other for other in names[:number] if _doubtful(name, other)]:
            listed = as_json(names).decode().split()
            raise DatasetError(
                f"{first[name].where}: {first[name].what} is {name!r}, but {first[alike[0]].what} "
                f"is {alike[0]!r} ({first[alike[0]].where}): one class in two spellings?",
                hint=f'Correct one of them. If both are meant: "lesion_class_names": '
                f"{' '.join(listed)} in dataset.json says so.",
            )
    return names


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def _doubtful(one: str, other: str) -> bool:
    """Whether classes differ in capitals, blanks or a plural alone, or in few letters of many."""
    first, second = _plain(one).removesuffix("s"), _plain(other).removesuffix("s")
    near = difflib.SequenceMatcher(None, first, second).ratio() >= _ALIKE
    return first == second or (near and min(len(first), len(second)) >= _LONG)


def _new_labels(labels: Labels, lesion: str, names: Sequence[str]) -> Labels:
    """The labels with classes in place of the lesions."""
    own = labels.values[lesion]
    used = {v for name, group in labels.values.items() if name != lesion for v in group} - {*own}
    free = (value for value in range(1, len(used) + len(names) + 1) if value not in used)
    classes = dict(zip(names, free, strict=False))
    values: dict[str, tuple[int, ...]] = {}
    for name, group in labels.values.items():
        if name == lesion:
            values |= {each: (value,) for each, value in classes.items()}
        elif set(own) <= set(group):
            values[name] = (*(v for v in group if v not in own), *classes.values())
        else:
            values[name] = group
    ignore = (
        None if labels.ignore is None else 1 + max(v for group in values.values() for v in group)
    )
    if all(len(group) == 1 for group in values.values()):
        return Labels(values=values, ignore=ignore)
    order = paintable({name: group for name, group in values.items() if group != (0,)})
    if order is None:
        raise DatasetError(
            f"labels: with {', '.join(names)} in place of {lesion}, no order of the regions gives "
            "each of them back.",
            hint="Make the regions of dataset.json plain labels in a copy of it.",
        )
    regions = {"background": (0,), **{name: values[name] for name in order[0]}}
    return Labels(values=regions, regions_class_order=tuple(order[1]), ignore=ignore)


def _task(
    case: Case,
    rows: Mapping[int | None, Row],
    before: Labels,
    after: Labels,
    lesion: str,
    folder: Path,
) -> _Task:
    ignore = None
    if before.ignore is not None and after.ignore is not None:
        ignore = before.ignore, after.ignore
    return _Task(
        case=case.name,
        label=str(case.label),
        values=before.values[lesion],
        classes={number: after.values[row.name][0] for number, row in rows.items()},
        where={number: f"{row.name} ({row.where})" for number, row in rows.items()},
        ignore=ignore,
        labels=before,
        folder=folder,
    )


def _need(task: _Task) -> Need:
    need = score_need(Path(task.label))
    return replace(need, gb=_MORE * need.gb)


def _classify(task: _Task) -> _Made:
    """Makes the label map of a case; what is wrong with it is returned, not raised."""
    try:
        label = _read(task)
    except DatasetError as error:  # a file that cannot be read, or is no label map
        problem = f"{task.case}: {error.problem.removesuffix('.')}"
        return _Made(failed=Failed(problem=problem, hint=error.hint))
    array = label.array[0]
    numbers, count = connected_lesions(np.isin(array, task.values))
    if failed := _unfit(task, count):
        return _Made(failed=failed)
    every = task.classes.get(None, 0)
    classes = [task.classes.get(number, every) for number in range(1, count + 1)]
    table = np.array([0, *classes], dtype=np.uint16)
    new = np.where(numbers > 0, table[numbers], array)
    if task.ignore is not None:
        new[array == task.ignore[0]] = task.ignore[1]
    if np.array_equal(new, array):
        return _Made(label=task.label, lesions=dict(Counter(classes)))
    path = f"labelsTr/{task.case}.nii.gz"
    write_label(task.folder / Path(path).name, new, label.geometry)
    return _Made(label=path, lesions=dict(Counter(classes)))


def _read(task: _Task) -> Volume:
    """The label map of a case; one with other values than those of labels is refused."""
    label = read_label(task.label)
    refuse_other_values(label.array, task.labels.allowed, task.label)
    return label


def _unfit(task: _Task, count: int) -> Failed | None:
    """What is wrong with the classes of a case that has so many lesions."""
    has = f"its label map has {counted(count, 'lesion')}"
    unnamed = [n for n in range(1, count + 1) if not {n, None} & set(task.classes)]
    lacking = [n for n in task.classes if count == 0 or (n is not None and n > count)]
    if lacking:
        which = "every lesion" if lacking[0] is None else f"lesion {lacking[0]}"
        return Failed(
            problem=f"{task.case}: {which} is {task.where[lacking[0]]}, but {has}"
            + (f", numbered from 1 to {count}" if count > 1 else ""),
            hint="Correct the number, or take the line out. --template lists the lesions there "
            "are.",
        )
    if unnamed:
        which = "lesion" if len(unnamed) == 1 else "lesions"
        return Failed(
            problem=f"{task.case}: {which} {first_few(unnamed, _SHOWN)} without a class; {has}",
            hint="Add a line for each, or one with * for every lesion of the case.",
        )
    return None


def _measure(task: _Task) -> list[Lesion]:
    """The lesions of a case."""
    label = _read(task)
    numbers, count = connected_lesions(np.isin(label.array[0], task.values))
    voxel_ml = float(np.prod(label.geometry.spacing_mm)) / 1000
    places = np.argwhere(numbers)
    owner = numbers[numbers > 0]
    found = []
    for number in range(1, count + 1):
        own = places[owner == number]
        found.append(
            Lesion(
                case=task.case,
                number=number,
                volume_ml=len(own) * voxel_ml,
                centroid_lps_mm=_place(own.mean(0), label.geometry),
            )
        )
    return found


def _place(zyx: npt.NDArray[np.float64], geometry: Geometry) -> tuple[float, float, float]:
    """Where a voxel is in the patient (x, y, z), in mm."""
    step = np.multiply(zyx, geometry.spacing_mm)[::-1]
    x, y, z = np.reshape(geometry.direction, (3, 3)) @ step + geometry.origin_xyz
    return float(x), float(y), float(z)


def _description(
    dataset: Dataset, lesion: str, names: Sequence[str], labels: Labels, paths: Iterable[str]
) -> dict[str, Any]:
    """The dataset.json."""
    cases = dataset.labelled
    result: dict[str, Any] = {
        "channel_names": {str(n): name for n, name in enumerate(dataset.channel_names)},
        **describe_labels(labels, dataset.codes),
        "lesion_class_names": list(names),
        "numTraining": len(cases),
        "file_ending": dataset.file_ending,
        "converted_by": f"autoliver, as {LESION_CLASSES}",
        "dataset": {
            case.name: {"images": list(case.images), "label": path}
            for case, path in zip(cases, paths, strict=True)
        },
        "modality": {case.name: case.modality for case in cases},
        "patients": {case.name: case.patient for case in cases},
    }
    further: dict[str, dict[str, Any]] = {
        "annotated": {case.name: _annotated(case, lesion, names) for case in cases},
        "origin": {case.name: case.origin for case in cases if case.origin != "real"},
        "sources": {case.name: case.source for case in cases if case.source},
    }
    for key, by_name in further.items():
        if table := {name: value for name, value in by_name.items() if value}:
            result[key] = table
    return result


def _annotated(case: Case, lesion: str, names: Sequence[str]) -> dict[str, str]:
    """The states of a case's annotations, where those of the lesions are those of each class."""
    states: dict[str, str] = {}
    for name, state in case.annotated.items():
        states |= dict.fromkeys(names, state) if name == lesion else {name: state}
    return states
