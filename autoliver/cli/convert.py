"""The command `convert`."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    MemoryGb,
    Verbose,
    Workers,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, start
from autoliver.pipeline.conversion.kinds import KINDS
from autoliver.values import counted, first_few

if TYPE_CHECKING:
    from autoliver.pipeline.conversion.convert import Converted

_WIDTH = 80
_SHOWN = 3


def convert(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help=f"What the data are: {', '.join(KINDS)}.")
    ],
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of the data as they were published.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the new dataset; it must be new.")
    ],
    rater: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Whose label maps are taken of liverhccseg: 1 or 2. [default: 1]"
        ),
    ] = None,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a dataset of published data, such as CAMUS, BraTS and LLD-MMRI.

    No image is copied, and nothing in SOURCE is changed. Label maps are written anew only where the
    values of labels change, or several masks become one label map.
    """
    from autoliver.pipeline.conversion.convert import convert as make_dataset
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    machine = machine_of(workers=workers, memory_gb=memory_gb)
    done = make_dataset(Workspace(workspace), kind, source, output, rater=rater, machine=machine)
    emit(done.facts, _show(done), as_json=as_json)


def _show(done: "Converted") -> str:
    labels = [f"{name} {_values(value)}" for name, value in done.labels.items() if value != 0]
    said = [
        f"{done.kind}: {counted(done.cases, 'case')} of {counted(done.patients, 'patient')}.",
        f"Values of the labels: {', '.join(labels)}.",
    ]
    if done.rewritten:
        said.append(f"Written anew with other values: {counted(done.rewritten, 'label map')}.")
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
    return "\n".join(
        [
            *(textwrap.fill(text, _WIDTH, break_on_hyphens=False) for text in said),
            f"Written: {done.folder}",
            f"Next: {done.next_command}",
        ]
    )


def _values(value: int | list[int]) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
