"""train."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    Device,
    MemoryGb,
    Verbose,
    Workers,
    WorkspaceDir,
)
from autoliver.cli.output import emit, number, start, table
from autoliver.cli.training_options import (
    Augment,
    BatchSize,
    Deterministic,
    Epochs,
    Extend,
    Hours,
    Iterations,
    LearningRate,
    Loss,
    Mirror,
    Optimiser,
    Patch,
    Patience,
    Schedule,
    Seed,
    sizes,
)

if TYPE_CHECKING:
    from autoliver.pipeline.training import FoldResult
    from autoliver.training.folds import Fold


class CacheName(StrEnum):
    """Where cases lie while they are trained on."""

    auto = "auto"
    gpu = "gpu"
    ram = "ram"
    disk = "disk"


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
    hours: Hours = None,
    patience: Patience = None,
    extend: Extend = None,
    schedule: Schedule = None,
    optimiser: Optimiser = None,
    lr: LearningRate = None,
    loss: Loss = None,
    augment: Augment = None,
    mirror: Mirror = None,
    batch_size: BatchSize = None,
    patch: Patch = None,
    seed: Seed = None,
    deterministic: Deterministic = None,
    device: Device = "auto",
    cache: Annotated[
        CacheName, typer.Option(help="Where cases lie meanwhile; auto: the first that fits.")
    ] = CacheName.auto,
    tag: Annotated[
        str | None, typer.Option(metavar="T", help="Name to tell runs of one configuration apart.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a configuration; goes on where it stopped. Plans and preprocesses what is missing."""
    from autoliver.parallel import Limits
    from autoliver.pipeline import training
    from autoliver.workspace import Workspace, check_configuration

    start(verbose=verbose)
    given = {
        **{"epochs": epochs, "iterations": iterations, "hours": hours, "patience": patience},
        **{"schedule": schedule, "optimiser": optimiser, "lr": lr, "loss": loss},
        **{"augment": augment, "mirror": mirror, "batch_size": batch_size},
        **{"patch": patch and sizes(patch), "seed": seed, "deterministic": deterministic},
    }
    request = training.TrainRequest(
        configuration=check_configuration(configuration),
        folds=_folds(fold),
        changes={name: _plain(value) for name, value in given.items() if value is not None},
        tag=tag,
        fresh=fresh,
        extend=extend,
        device=device,
        cache=cache.value,
        limits=Limits(workers=workers, memory_gb=memory_gb),
    )
    results = training.train(Workspace(workspace), dataset, request)
    summary = {
        "folds": [
            {
                "fold": r.fold,
                "folder": str(r.folder),
                "dice": r.scores.foreground_mean("dice") if r.scores else None,
            }
            for r in results
        ]
    }
    emit(summary, _show(results), as_json=as_json)


def _plain(value: object) -> object:
    return value.value if isinstance(value, StrEnum) else value


def _folds(text: str) -> "tuple[Fold, ...]":
    if text == "cv":
        return ()
    if text == "all":
        return ("all",)
    if not text.isdigit():
        raise typer.BadParameter(f"'{text}' is none of 0..4, all, cv.", param_hint="--fold")
    return (int(text),)


def _show(results: "list[FoldResult]") -> str:
    rows = []
    for result in results:
        dice = result.scores.foreground_mean("dice") if result.scores else None
        held_out = str(len(result.scores.cases)) if result.scores else "none"
        rows.append((str(result.fold), held_out, number(dice), str(result.folder)))
    return table(("fold", "held-out cases", "mean Dice", "folder"), rows)
