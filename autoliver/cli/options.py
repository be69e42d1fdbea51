"""Options that several commands share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.commands import DEFAULT_WORKSPACE as DEFAULT_WORKSPACE
from autoliver.errors import OptionError

if TYPE_CHECKING:
    from autoliver.machine import Machine

# Groups of options on the help pages.
MACHINE = "Machine"
GENERAL = "General"

WORKSPACE_VARIABLE = "AUTOLIVER_WORKSPACE"


@contextlib.contextmanager
def misuse(option: str) -> Iterator[None]:
    """Reports an `OptionError` about an option's value as wrong usage (exit code 2)."""
    try:
        yield
    except OptionError as error:
        raise typer.BadParameter(
            f"{error.problem.removeprefix(f'{option}: ')} {error.hint}".strip(), param_hint=option
        ) from error


WorkspaceDir = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        metavar="DIR",
        envvar=WORKSPACE_VARIABLE,
        help="Folder for all files that autoliver makes.",
        rich_help_panel=GENERAL,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object instead of text.", rich_help_panel=GENERAL),
]
Series = Annotated[
    list[str] | None,
    typer.Option(
        "--series",
        metavar="N|TEXT",
        help="For DICOM: the number or the description of a series to take. The option may be "
        "repeated. [default: all but localizers]",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Log what is being done to stderr.", rich_help_panel=GENERAL
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        help="Worker processes; 0 means one per CPU core.",
        rich_help_panel=MACHINE,
    ),
]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes",
        help="Leave out cases that were added since the dataset was planned. [default: refuse a "
        "dataset that has changed]",
        rich_help_panel="Run",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="CPU threads of an operation, in each process. [default: the fastest number, found "
        "by timing]",
        rich_help_panel=MACHINE,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="D",
        help="Where networks run: cpu, cuda, cuda:1 (a GPU by its number), mps, or auto: a GPU if "
        "there is one.",
        rich_help_panel=MACHINE,
    ),
]
Gpus = Annotated[
    str,
    typer.Option(
        "--gpus",
        metavar="0,1",
        help="Train folds on these GPUs, one on each at a time (0,0: two on GPU 0). It excludes "
        "--device and --jobs. [default: one fold after another on --device]",
        rich_help_panel=MACHINE,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        metavar="N",
        help="Train N folds at the same time on --device. [default: 1]",
        rich_help_panel=MACHINE,
    ),
]
MemoryGb = Annotated[
    float | None,
    typer.Option(
        "--memory-gb",
        metavar="GB",
        min=0.1,
        help="Main memory in GB for all processes together; fewer of them run where it is short. "
        "[default: the free memory minus 2 GB]",
        rich_help_panel=MACHINE,
    ),
]


DaskOption = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS",
        help="Work on all cases by shards on the workers of this dask cluster, which see the same "
        "folders; then write what is made of all cases.",
        rich_help_panel=MACHINE,
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Work on the I-th of N equal parts of the cases alone, such as 3/8; any number of "
        "parts may be worked on at once. The same command without it, afterwards, writes what is "
        "made of all cases.",
        rich_help_panel=MACHINE,
    ),
]


def machine_of(
    *,
    workers: int = 0,
    memory_gb: float | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> "Machine":
    """The part of the machine that a command may use, made from its options."""
    from autoliver.machine import Machine
    from autoliver.parallel import Limits

    limits = Limits(workers=workers, memory_gb=memory_gb)
    return Machine(device=device, limits=limits, threads=threads)
