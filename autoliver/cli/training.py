"""train."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    Device,
    Gpus,
    Jobs,
    MemoryGb,
    OneOf,
    Verbose,
    Workers,
    WorkspaceDir,
)
from autoliver.cli.output import emit, number, start, table

if TYPE_CHECKING:
    from autoliver.pipeline.training import FoldResult
    from autoliver.training.folds import Fold


class ScheduleName(StrEnum):
    """Recipes for optimiser and learning rate."""

    auto = "auto"
    nnunet = "nnunet"
    short = "short"


class AugmentationName(StrEnum):
    """Augmentations of training patches."""

    default = "default"
    none = "none"


class CacheName(StrEnum):
    """Where cases lie while they are trained on."""

    auto = "auto"
    gpu = "gpu"
    ram = "ram"
    disk = "disk"


Epochs = Annotated[int | None, typer.Option(metavar="N", help="Number of epochs. [default: 1000]")]
Iterations = Annotated[
    int | None, typer.Option(metavar="N", help="Steps per epoch. [default: 250]")
]
Schedule = Annotated[
    ScheduleName | None,
    typer.Option(help="nnunet: SGD for full-length runs; short: adaptive. [default: auto]"),
]
Augment = Annotated[AugmentationName | None, typer.Option(help="Augmentations. [default: default]")]
Cache = Annotated[
    CacheName, typer.Option(help="Where cases lie meanwhile; auto: the first that fits.")
]
Tag = Annotated[
    str | None, typer.Option(metavar="T", help="Name to tell runs of one configuration apart.")
]


def train(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder or name.")],
    configuration: Annotated[
        str, typer.Argument(metavar="CONFIG", help="2d, 3d_lowres, 3d_fullres or 3d_cascade.")
    ],
    fold: Annotated[
        str, typer.Option(metavar="0..4|all|cv", help="One fold, all cases, or all five folds.")
    ] = "cv",
    epochs: Epochs = None,
    iterations: Iterations = None,
    hours: Annotated[float | None, typer.Option(metavar="H", help="Time budget per fold.")] = None,
    schedule: Schedule = None,
    augment: Augment = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="[default: 0]")] = None,
    device: Device = "auto",
    gpus: Gpus = "",
    jobs: Jobs = None,
    one_of: OneOf = 0,
    cache: Cache = CacheName.auto,
    tag: Tag = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a configuration; goes on where it stopped. Plans and preprocesses what is missing."""
    from autoliver.parallel import Limits
    from autoliver.pipeline import fold_queue, training
    from autoliver.workspace import Workspace, check_configuration

    start(verbose=verbose)
    if one_of:
        fold_queue.join_queue(one_of)
    given = {
        "epochs": epochs,
        "iterations": iterations,
        "hours": hours,
        "schedule": schedule and schedule.value,
        "augment": augment and augment.value,
        "seed": seed,
    }
    request = training.TrainRequest(
        configuration=check_configuration(configuration),
        folds=_folds(fold),
        changes={name: value for name, value in given.items() if value is not None},
        tag=tag,
        fresh=fresh,
        device=device,
        gpus=_gpus(gpus),
        jobs=jobs,
        cache=cache.value,
        limits=Limits(workers=workers, memory_gb=memory_gb),
    )
    try:
        results = training.train(Workspace(workspace), dataset, request)
    except training.FoldsFailed as failed:
        if failed.results and not as_json:
            typer.echo(_show(failed.results))
        raise
    emit(_summary(results), _show(results), as_json=as_json)


def _folds(text: str) -> "tuple[Fold, ...]":
    if text == "cv":
        return ()
    if text == "all":
        return ("all",)
    if not text.isdigit():
        raise typer.BadParameter(f"'{text}' is none of 0..4, all, cv.", param_hint="--fold")
    return (int(text),)


def _gpus(text: str) -> tuple[int, ...]:
    numbers = text.split(",") if text else []
    if not all(number.strip().isdecimal() for number in numbers):
        raise typer.BadParameter(f"'{text}' is no list of numbers as 0,1.", param_hint="--gpus")
    return tuple(int(number) for number in numbers)


def _summary(results: "list[FoldResult]") -> dict[str, object]:
    return {
        "folds": [
            {
                "fold": r.fold,
                "folder": str(r.folder),
                "dice": r.scores.foreground_mean("dice") if r.scores else None,
            }
            for r in results
        ]
    }


def _show(results: "list[FoldResult]") -> str:
    rows = []
    for result in results:
        dice = result.scores.foreground_mean("dice") if result.scores else None
        held_out = str(len(result.scores.cases)) if result.scores else "none"
        rows.append((str(result.fold), held_out, number(dice), str(result.folder)))
    return table(("fold", "held-out cases", "mean Dice", "folder"), rows)
