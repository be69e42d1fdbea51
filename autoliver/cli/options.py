"""Options that several commands share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.errors import OptionError

if TYPE_CHECKING:
    from autoliver.machine import Machine

DEFAULT_WORKSPACE = Path("autoliver-workspace")


@contextlib.contextmanager
def misuse(option: str) -> Iterator[None]:
    """A text that cannot be read as the option's value is misuse, as a word for a number is."""
    try:
        yield
    except OptionError as error:
        raise typer.BadParameter(
            error.problem.removeprefix(f"{option}: "), param_hint=option
        ) from error


WorkspaceDir = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        metavar="DIR",
        envvar="AUTOLIVER_WORKSPACE",
        help="Folder for everything autoliver makes.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log what is being done.")]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=0, help="Processes; 0: one per core.")
]
Device = Annotated[
    str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:1 or mps.")
]
Gpus = Annotated[
    str,
    typer.Option("--gpus", metavar="0,1", help="Folds on these GPUs, as they become free."),
]
Jobs = Annotated[
    int | None, typer.Option("--jobs", metavar="N", help="Without GPUs: N folds at a time.")
]
MemoryGb = Annotated[
    float | None,
    typer.Option(
        "--memory-gb",
        metavar="GB",
        min=0.1,
        help="Memory to use; fewer processes where it is short. [default: what is free less 2]",
    ),
]


def machine_of(
    *, workers: int = 0, memory_gb: float | None = None, device: str = "auto"
) -> "Machine":
    """What a command may use of the machine, by its options."""
    from autoliver.machine import Machine
    from autoliver.parallel import Limits

    return Machine(device=device, limits=Limits(workers=workers, memory_gb=memory_gb))
