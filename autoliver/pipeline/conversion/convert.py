"""Makes a dataset of published data in a layout of its own; images stay where they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoliver.artifacts import Record, as_json, replacing, write_bytes
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
from autoliver.pipeline.conversion.dicom import convert_dicom
from autoliver.pipeline.conversion.kind import Found, Kind, passed_over
from autoliver.pipeline.conversion.kinds import DICOM, KINDS, LESION_CLASSES
from autoliver.pipeline.conversion.lesion_classes import convert_lesions
from autoliver.pipeline.conversion.result import Converted, Failed, check_output, refuse
from autoliver.pipeline.dicom.cases import series_words
from autoliver.system import entries
from autoliver.values import check_choice, check_types, check_whole, set_field
from autoliver.workspace import Workspace

_RATERS = 2  # of any data


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """What is asked for besides a kind.

    Attributes:
        rater: Whose label maps are taken, where the data have several raters; None for the first.
        classes: For `LESION_CLASSES`: CSV file with the columns case, lesion, class; None for
            `lesion_classes` of dataset.json.
        label: For `LESION_CLASSES`: the label of the lesions; None for the only one named so.
        labels: For `DICOM`: folder with a label map of each case; None to make images alone.
        series: For `DICOM`: numbers, descriptions or case names of the series; empty for all.
    """

    rater: int | None = None
    classes: Path | None = None
    label: str | None = None
    labels: Path | None = None
    series: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_field(self, "series", series_words(self.series))
        check_types(self)
        if self.rater is not None:
            check_whole("--rater", self.rater, least=1, most=_RATERS)


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
        failed: What is wrong with its files; None if nothing is.
    """

    label: str = ""
    failed: Failed | None = None


def convert(
    workspace: Workspace,
    kind: str,
    source: Path,
    output: Path,
    *,
    request: ConvertRequest | None = None,
    machine: Machine = WHOLE_MACHINE,
) -> Converted:
    """Makes a dataset of data in another form; images are referred to, and no file is changed.

    Label maps are referred to as well, and written anew only where values of labels change.

    Args:
        workspace: The workspace, for the next command.
        kind: A name in `KINDS`; `LESION_CLASSES` for a dataset whose lesions have classes; or
            `DICOM` for series, of which images are made.
        source: The folder of the data.
        output: Folder of the new dataset.
        request: What is asked for besides; None for nothing.
        machine: The processes and memory that may be used.

    Raises:
        DatasetError: The folder does not hold such data, or files of a case do not fit together.
        OptionError: There is no such kind or rater, or the output exists already.
        MachineError: The output cannot be written.
    """
    asked = request or ConvertRequest()
    kind = check_choice("kind", kind, (*KINDS, LESION_CLASSES, DICOM))
    own = {"--labels": asked.labels, "--series": asked.series or None}
    if kind == DICOM:
        others = {"--rater": asked.rater, "--classes": asked.classes, "--label": asked.label}
        _check_unused(others, "other kinds")
        return convert_dicom(workspace, source, output, labels=asked.labels, wanted=asked.series)
    _check_unused(own, DICOM)
    if kind == LESION_CLASSES:
        _check_unused({"--rater": asked.rater}, "published data")
        return convert_lesions(
            *(workspace, source, output),
            classes=asked.classes,
            label=asked.label,
            machine=machine,
        )
    _check_unused({"--classes": asked.classes, "--label": asked.label}, LESION_CLASSES)
    row = _rated(KINDS[kind](), asked.rater)
    source, output = source.absolute(), output.absolute()
    check_output(source, output)
    found = _cases(row, source)
    cases = [case for case in found if case.layers]
    with replacing(output) as beside:
        (beside / "labelsTr").mkdir(parents=True)
        folder = beside / "labelsTr"
        tasks = [_Task(case=case, folder=folder) for case in cases]
        stage = machine.pool("convert", need=_need, light=True)
        made = list(case_bar("convert", len(tasks))(stage.map(_make, tasks)))
        refuse({c.name: new.failed for c, new in zip(cases, made, strict=True) if new.failed})
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


def _check_unused(given: Mapping[str, object], of: str) -> None:
    """Refuses options that are for another kind."""
    for option, value in given.items():
        if value is not None:
            raise OptionError(f"{option} is for {of}.", hint="Leave it out.")


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
    return replace(kind, find=kind.raters[rater])


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
        return _Made(failed=Failed(problem=problem, hint=error.hint))


def _checked(task: _Task) -> _Made:
    """Checks the files of a case, and writes its label map anew if necessary."""
    case = task.case
    first = Path(case.images[0])
    grid = read_header(first).geometry
    for other in map(Path, (*case.images[1:], *(layer.path for layer in case.layers))):
        for difference in compare_grids(grid, read_header(other).geometry):
            if not difference.rounding:
                values = difference.values()
                return _failed(
                    f"{case.name}: {first.name} and {other.name} have different grids: "
                    f"{difference.what} {values[0]} and {values[1]}"
                )
    labels = [read_label(layer.path) for layer in case.layers]
    painted = np.zeros(labels[0].array.shape[1:], np.uint8)
    same = len(labels) == 1
    for layer, label in zip(case.layers, labels, strict=True):
        for value in np.unique(label.array).tolist():
            if value not in layer.values:
                known = ", ".join(map(str, layer.values))
                return _failed(
                    f"{case.name}: {layer.path} holds the value {value}, expected {known}"
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


def _failed(problem: str) -> _Made:
    return _Made(failed=Failed(problem=problem))


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
