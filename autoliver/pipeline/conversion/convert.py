"""Makes a dataset of published data in a layout of its own; images stay where they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from autoliver.artifacts import as_json, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import read_new
from autoliver.datasets.layouts import commonest_ending
from autoliver.errors import DatasetError, OptionError
from autoliver.io.dicom.codes import SegType
from autoliver.io.paths import check_printable
from autoliver.locks import only_writing
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.parallel import case_bar
from autoliver.pipeline.conversion.dicom import convert_dicom
from autoliver.pipeline.conversion.dicom_seg import SegmentRequest, segment_series
from autoliver.pipeline.conversion.kind import Found, Kind, passed_over
from autoliver.pipeline.conversion.kinds import DICOM, DICOM_SEG, KINDS, LESION_CLASSES
from autoliver.pipeline.conversion.lesion_classes import convert_lesions
from autoliver.pipeline.conversion.make import Made, Task, make_case, make_need
from autoliver.pipeline.conversion.result import Converted, check_output, refuse
from autoliver.pipeline.dicom.cases import series_words
from autoliver.system import entries
from autoliver.values import check_choice, check_types, check_whole, first_few, set_field
from autoliver.workspace import Workspace

_RATERS = 2  # of any data
_SHOWN = 3  # names of files and folders that are listed


@dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """What is asked for besides a kind.

    Attributes:
        rater: Whose label maps are taken, where the data have several raters; None for the first.
        part: Which part of data that are several datasets, such as "ct"; None for the only one
            that is there.
        classes: For `LESION_CLASSES`: CSV file with the columns case, lesion, class; None for
            `lesion_classes` of dataset.json.
        label: For `LESION_CLASSES`: the label of the lesions; None for the only one named so.
        labels: For `DICOM` and `DICOM_SEG`: folder with a label map of each case; None to make
            images alone.
        series: For these: numbers, descriptions or case names of the series; empty for all.
        like: For `DICOM_SEG`: the model or dataset that says what labels mean; None for what lies
            beside them.
        seg_type: For `DICOM_SEG`: how a segmentation is stored; None for "binary".
    """

    rater: int | None = None
    part: str | None = None
    classes: Path | None = None
    label: str | None = None
    labels: Path | None = None
    series: tuple[str, ...] = ()
    like: str | None = None
    seg_type: SegType | None = None

    def __post_init__(self) -> None:
        set_field(self, "series", series_words(self.series))
        check_types(self)
        if self.seg_type is not None:
            set_field(
                self, "seg_type", check_choice("--seg-type", self.seg_type, get_args(SegType))
            )
        if self.rater is not None:
            check_whole("--rater", self.rater, least=1, most=_RATERS)


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
        kind: A name in `KINDS`; `LESION_CLASSES` for a dataset whose lesions have classes; `DICOM`
            for series, of which images are made; or `DICOM_SEG` for series whose label maps become
            DICOM segmentations.
        source: The folder of the data.
        output: Folder of the new dataset, or of the segmentations.
        request: What is asked for besides; None for nothing.
        machine: The processes and memory that may be used.

    Raises:
        DatasetError: The folder does not hold such data, or files of a case do not fit together.
        OptionError: There is no such kind or rater, or the output exists already.
        MachineError: The output cannot be written.
    """
    asked = request or ConvertRequest()
    kind = check_choice("kind", kind, (*KINDS, LESION_CLASSES, DICOM, DICOM_SEG))
    if kind != DICOM_SEG:
        _check_unused({"--like": asked.like, "--seg-type": asked.seg_type}, DICOM_SEG)
    if kind in (DICOM, DICOM_SEG):
        return _of_series(workspace, kind, source, output, asked, machine)
    _check_unused({"--labels": asked.labels, "--series": asked.series or None}, DICOM)
    if kind == LESION_CLASSES:
        _check_unused({"--rater": asked.rater, "--part": asked.part}, "published data")
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
    row = _part(row, asked.part, source)
    found = _cases(row, source)
    cases = [case for case in found if case.layers]
    with only_writing(output) as beside:
        (beside / "labelsTr").mkdir(parents=True)
        tasks = [Task(case=case, output=beside, by_voxel=row.by_voxel) for case in cases]
        stage = machine.pool("convert", need=make_need, light=True)
        made = list(case_bar("convert", len(tasks))(stage.map(make_case, tasks)))
        refuse({c.name: new.failed for c, new in zip(cases, made, strict=True) if new.failed})
        description = _description(kind, row, source, cases, made)
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
        series=sum(not Path(image).is_absolute() for new in made for image in new.images),
        told={case.name: new.told for case, new in zip(cases, made, strict=True) if new.told},
        note=row.note,
        labels=dict(description["labels"]),
        next_command=command("plan", str(output), workspace=workspace.root),
    )


def _of_series(
    workspace: Workspace,
    kind: str,
    source: Path,
    output: Path,
    asked: ConvertRequest,
    machine: Machine,
) -> Converted:
    """Makes images or segmentations of DICOM series."""
    others = {"--rater": asked.rater, "--part": asked.part, "--classes": asked.classes}
    _check_unused({**others, "--label": asked.label}, "other kinds")
    if kind == DICOM:
        return convert_dicom(
            *(workspace, source, output),
            labels=asked.labels,
            wanted=asked.series,
            machine=machine,
        )
    request = SegmentRequest(
        labels=asked.labels,
        wanted=asked.series,
        like=asked.like,
        seg_type=asked.seg_type or "binary",
    )
    return segment_series(workspace, source, output, request)


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


def _part(kind: Kind, part: str | None, source: Path) -> Kind:
    """Returns the part of a kind that is asked for, or the only one that the source holds."""
    if not kind.parts:
        if part is not None:
            several = [name for name, row in KINDS.items() if row().parts]
            raise OptionError(
                f"--part is for data that are several datasets: {', '.join(several)}.",
                hint="Leave it out.",
            )
        return kind
    if part is not None:
        return kind.parts[check_choice("--part", part, tuple(kind.parts))]
    held = [name for name, row in kind.parts.items() if _holds(row, source)]
    if len(held) > 1 and not kind.description:
        raise OptionError(
            f"{source}: it holds several parts of {kind.title}, each of which becomes a dataset: "
            f"{', '.join(held)}.",
            hint=f"Choose one: --part {held[0]}",
        )
    return kind.parts[held[0]] if len(held) == 1 else kind


def _holds(kind: Kind, folder: Path) -> bool:
    try:
        return next(iter(kind.find(folder)), None) is not None
    except DatasetError:
        return True


def _cases(kind: Kind, source: Path) -> list[Found]:
    """Finds the cases of a source, sorted by name; some of them have a label map."""
    check_printable(source)
    if not source.is_dir():
        raise DatasetError(f"{source}: there is no such folder.", hint="Check the path.")
    cases = sorted(kind.find(source), key=lambda case: case.name)
    if not cases:
        near = [f for f in (source.parent, *entries(source)) if f.is_dir() and _holds(kind, f)]
        raise DatasetError(
            f"{source}: there is no case of {kind.title}; expected {kind.layout}; found "
            f"{first_few([path.name for path in entries(source)], _SHOWN) or 'nothing'}.",
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


def _description(
    name: str, kind: Kind, source: Path, cases: Sequence[Found], made: Sequence[Made]
) -> dict[str, Any]:
    """The dataset.json."""
    modality = {case.name: case.modality for case in cases if case.modality}
    return {
        **kind.description,
        **(kind.describe(source) if kind.describe else {}),
        "numTraining": len(cases),
        "file_ending": commonest_ending(Path(image) for new in made for image in new.images),
        "converted_by": f"autoliver, as {name}",
        **({"modality": modality} if modality else {}),
        "dataset": {
            case.name: {"images": list(new.images), "label": new.label}
            for case, new in zip(cases, made, strict=True)
        },
        "patients": {case.name: case.patient for case in cases},
    }
