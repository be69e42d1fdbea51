"""The command `convert`."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    MemoryGb,
    Series,
    Verbose,
    Workers,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, start
from autoliver.io.dicom.codes import SegType
from autoliver.pipeline.conversion.kinds import DICOM, DICOM_SEG, KINDS, LESION_CLASSES
from autoliver.values import counted, first_few, spelled

if TYPE_CHECKING:
    from autoliver.pipeline.conversion.lesion_classes import LesionTable
    from autoliver.pipeline.conversion.result import Converted

_KINDS = (*KINDS, LESION_CLASSES, DICOM, DICOM_SEG)
_PUBLISHED, _LESIONS = "Published data", "Lesion classes"
_SERIES = "DICOM"
_WIDTH = 80
_SHOWN = 3


# Longer than 60 lines, because every option of the command is a parameter with its help.
def convert(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help=f"What the data are: {', '.join(_KINDS)}.")
    ],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of the data as they were published; of a dataset for lesion-classes; of "
            "series for dicom and dicom-seg.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT",
            help="Folder of the new dataset, or for dicom-seg of the segmentations; must be new.",
        ),
    ] = None,
    rater: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Whose label maps are taken of liverhccseg: 1 or 2. [default: 1]",
            rich_help_panel=_PUBLISHED,
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which part becomes the dataset, of chaos: ct, t1-dual or t2-spir; of amos: ct or "
            "mr. [default: the only one that is there; both of amos]",
            rich_help_panel=_PUBLISHED,
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="The classes of the lesions: case, lesion (its number, or * for all), class. "
            "[default: lesion_classes of dataset.json]",
            rich_help_panel=_LESIONS,
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Write a table of all lesions to be filled in, and no dataset.",
            rich_help_panel=_LESIONS,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The label of the lesions. [default: the one with the name of lesions]",
            rich_help_panel=_LESIONS,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with a label map of each case, named like the case: dicom makes a dataset "
            "to plan, and dicom-seg a DICOM segmentation of each. [default for dicom: only images]",
            rich_help_panel=_SERIES,
        ),
    ] = None,
    series: Series = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For dicom-seg: the dataset or model with the same labels, which names them. "
            "[default: predict.json beside the label maps, or the dataset that they belong to]",
            rich_help_panel=_SERIES,
        ),
    ] = None,
    seg_type: Annotated[
        SegType | None,
        typer.Option(
            help="For dicom-seg: binary has a mask for each label; labelmap (DICOM 2024c) is "
            "smaller, and few viewers read it. [default: binary]",
            rich_help_panel=_SERIES,
        ),
    ] = None,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a dataset of published data, DICOM or lesion classes.

    Nothing in SOURCE is changed. Images are referred to and not copied, except DICOM series, of
    which each becomes one file. Label maps are written anew only where something in them changes.
    """
    from autoliver.pipeline.conversion.convert import ConvertRequest
    from autoliver.pipeline.conversion.convert import convert as make_dataset
    from autoliver.pipeline.conversion.lesion_classes import tabulate_lesions
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    place = Workspace(workspace)
    machine = machine_of(workers=workers, memory_gb=memory_gb)
    if template is not None:
        if (
            spelled(kind, [LESION_CLASSES]) != LESION_CLASSES
            or output is not None
            or classes is not None
        ):
            raise typer.BadParameter(
                f"it is for {LESION_CLASSES}, without OUT and --classes.", param_hint="--template"
            )
        table = tabulate_lesions(place, source, template, label=label, machine=machine)
        emit(table.facts, _show_table(table), as_json=as_json)
        return
    if output is None:
        raise typer.BadParameter("Name the folder of the new dataset.", param_hint="OUT")
    request = ConvertRequest(
        rater=rater,
        part=part,
        classes=classes,
        label=label,
        labels=labels,
        series=tuple(series or ()),
        like=like,
        seg_type=seg_type,
    )
    done = make_dataset(place, kind, source, output, request=request, machine=machine)
    emit(done.facts, _show(done), as_json=as_json)


def _show_table(table: "LesionTable") -> str:
    return "\n".join(
        [
            f"{counted(table.lesions, 'lesion')} of {counted(table.cases, 'case')}.",
            f"Written: {table.file}",
            "Fill in the column class (* in place of a number: every lesion of the case).",
            f"Next: {table.next_command}",
        ]
    )


def _show(done: "Converted") -> str:
    labels = [f"{name} {_values(value)}" for name, value in done.labels.items() if value != 0]
    of = "" if done.kind.startswith("DICOM") else f" of {counted(done.patients, 'patient')}"
    said = [f"{done.kind}: {counted(done.cases, 'case')}{of}."]
    if labels:
        said.append(f"Values of the labels: {', '.join(labels)}.")
    if done.lesions:
        counts = [f"{counted(number, 'lesion')} {name}" for name, number in done.lesions.items()]
        said.append(f"Classes: {', '.join(counts)}.")
    if done.series:
        said.append(f"Made of DICOM series: {counted(done.series, 'image')}.")
    if done.rewritten:
        said.append(f"Written anew: {counted(done.rewritten, 'label map')}.")
    for told in sorted(set(done.told.values())):
        cases = [case for case, what in done.told.items() if what == told]
        said.append(f"Look at {counted(len(cases), 'case')}: {first_few(cases, _SHOWN)}: {told}.")
    if done.unlabelled:
        said.append(
            f"Left out, since without a label map: {counted(len(done.unlabelled), 'case')}: "
            f"{first_few(done.unlabelled, _SHOWN)}."
        )
    if done.passed_over:
        folders = [folder.name for folder in done.passed_over]
        said.append(
            f"Passed over, since without a case: {counted(len(folders), 'folder')}: "
            f"{first_few(folders, _SHOWN)}."
        )
    if done.note:
        said.append(done.note)
    return "\n".join(
        [
            *(textwrap.fill(text, _WIDTH, break_on_hyphens=False) for text in said),
            f"Written: {done.folder}",
            *([f"Next: {done.next_command}"] if done.next_command else []),
        ]
    )


def _values(value: int | list[int]) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
