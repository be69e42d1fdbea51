"""The command `pool`."""

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
from autoliver.values import counted

if TYPE_CHECKING:
    from autoliver.pipeline.pooling.pool import Pooled

_WIDTH = 80


def pool(
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the new dataset; it must be new.")
    ],
    add: Annotated[
        list[str],
        typer.Option(
            metavar="DATASET[:LABEL=STATE,..]",
            help="A dataset, by path or name, and the state of its labels: real, pseudo, absent "
            "(no case has it), none (not annotated) or drop (made background). LABEL+OTHER=STATE "
            "counts both as LABEL. Labels that are not named are refused; without any, all are "
            "real. Repeat the option.",
        ),
    ],
    inside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=OUTER",
            help="A label lies inside another one, which then includes it: tumour=liver. May be "
            "repeated. [default: lesions in the liver if annotations are partial]",
        ),
    ] = None,
    drop_duplicates: Annotated[
        bool,
        typer.Option(
            "--drop-duplicates",
            help="Leave out cases whose image a dataset that was added earlier holds as well. "
            "[default: refuse them]",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a pool that is there.")
    ] = False,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make one dataset of several, by reference: no image is copied.

    Cases keep their modality, patients and annotations. Label maps are written anew only where the
    values of labels differ.
    """
    from autoliver.pipeline.pooling.pool import PoolRequest, read_inside
    from autoliver.pipeline.pooling.pool import pool as make_pool
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = PoolRequest(
        add=tuple(add),
        inside=read_inside(inside),
        drop_duplicates=drop_duplicates,
        overwrite=overwrite,
        machine=machine_of(workers=workers, memory_gb=memory_gb),
    )
    done = make_pool(Workspace(workspace), output, request)
    emit(done.facts, _show(done), as_json=as_json)


def _show(done: "Pooled") -> str:
    names = list(done.labels.foreground)
    rows = [
        (
            member.name,
            str(done.cases.get(member.name, 0)),
            ", ".join(done.modalities[member.name]),
            *(member.states[name] for name in names),
        )
        for member in done.members
    ]
    values = [
        f"{name} {'+'.join(map(str, values))}" for name, values in done.labels.foreground.items()
    ]
    said = [f"Values of the labels: {', '.join(values)}."]
    if done.unlabelled:
        said.append(f"Left out, since without a label map: {counted(done.unlabelled, 'case')}.")
    if done.dropped:
        said.append(f"Left out, since in an earlier member: {', '.join(done.dropped)}.")
    return "\n".join(
        [
            table(("dataset", "cases", "modality", *names), rows),
            *(textwrap.fill(text, _WIDTH, break_on_hyphens=False) for text in said),
            f"Written: {done.folder}",
            f"Next: {done.next_command}",
        ]
    )
