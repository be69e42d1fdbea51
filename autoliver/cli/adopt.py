"""The command `adopt`."""

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
from autoliver.cli.output import emit, start, table
from autoliver.planning.names import ModalityName
from autoliver.values import counted

if TYPE_CHECKING:
    from autoliver.pipeline.adoption.adopt import Adopted

_WIDTH = 80
_WORDS = {True: "corrected", False: "not corrected", None: "not known"}


# Longer than 60 lines, because every option of the command is a parameter with its help.
def adopt(
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the new dataset; it must be new.")
    ],
    images: Annotated[
        list[Path],
        typer.Option(
            "--input",
            "-i",
            metavar="IMAGES",
            help="Folder of the images, as for predict. The option may be repeated.",
        ),
    ],
    corrected: Annotated[
        Path,
        typer.Option(
            "--prediction",
            "-p",
            metavar="CORRECTED",
            help="Folder of the corrected label maps, with the names that predict gave them. "
            "Images without one are left out.",
        ),
    ],
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|DATASET",
            help="Where the names of labels and channels are taken from. [default: the model in "
            "the predict.json beside the label maps]",
            rich_help_panel="Dataset",
        ),
    ] = None,
    modality: Annotated[
        ModalityName | None,
        typer.Option(
            help="What the images are. [default: decided by their values]",
            rich_help_panel="Dataset",
        ),
    ] = None,
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Link the images instead of copying them. [default: copy]",
            rich_help_panel="Dataset",
        ),
    ] = False,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a dataset of corrected predictions.

    Every case is checked before anything is written: each label map must lie on its image and hold
    no other labels than the model's. adopted.json in the new folder says where each file is from.
    """
    from autoliver.pipeline.adoption.adopt import AdoptRequest
    from autoliver.pipeline.adoption.adopt import adopt as adopt_cases
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = AdoptRequest(
        like=like,
        modality=modality,
        link=link,
        machine=machine_of(workers=workers, memory_gb=memory_gb),
    )
    done = adopt_cases(Workspace(workspace), images, corrected, output, request)
    emit(done.facts, _show(done), as_json=as_json)


def _show(done: "Adopted") -> str:
    found = done.adoption
    rows = [
        (
            case.name,
            _WORDS[case.corrected] + (", empty" if case.name in done.empty else ""),
            case.label.rewritten or "copied",
        )
        for case in found.cases
    ]
    said = [f"{counted(len(rows), 'case')}, {found.modality}: {found.why}."]
    if done.renamed:
        channels = ", ".join(done.channel_names)
        said.append(f"Channels: {channels}, since those of the model are not for {found.modality}.")
    if done.left_out:
        said.append(f"Left out, since without a label map: {', '.join(done.left_out)}.")
    if done.empty:
        said.append(
            f"Warning: only background in {', '.join(done.empty)}. Fine if these images show none "
            "of the labels."
        )
    return "\n".join(
        [
            table(("case", "label map", "file"), rows, wrap=_WIDTH),
            *(textwrap.fill(text, _WIDTH, break_on_hyphens=False) for text in said),
            f"Written: {done.folder}",
            f"Next: {done.next_command}",
        ]
    )
