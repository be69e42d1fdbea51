"""Options of `train` that decide what a training ends with; docs/training.md explains each."""

from typing import Annotated

import typer

from autoliver.cli.options import misuse
from autoliver.training import recipes
from autoliver.training.augment.appearance import APPEARANCES
from autoliver.training.augment.choice import MIXTURES
from autoliver.training.objectives.choice import DEFAULT_OBJECTIVE, OBJECTIVES


def sizes(text: str) -> tuple[int, ...]:
    """The numbers of "96,160,160"."""
    from autoliver.training.options import patch_sizes

    with misuse("--patch"):
        return patch_sizes(text)


Epochs = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Number of epochs. [default: 1000; pretrained 300, with few cases 150]"
    ),
]
Iterations = Annotated[
    int | None, typer.Option(metavar="N", help="Steps per epoch. [default: 250]")
]
Hours = Annotated[float | None, typer.Option(metavar="H", help="Time budget per fold.")]
Patience = Annotated[
    int | None,
    typer.Option(metavar="N", help="End early, with the rate, after N epochs without progress."),
]
Extend = Annotated[
    int | None, typer.Option(metavar="N", help="Train finished folds for N epochs more.")
]
Schedule = Annotated[
    recipes.Schedule | None,
    typer.Option(
        help="nnunet (or scratch): SGD for full-length runs; finetune: SGD with a warm-up, gentle "
        "on pretrained weights; short: adaptive; adamw: AdamW with a warm-up. [default: auto]"
    ),
]
Optimiser = Annotated[
    recipes.Optimiser | None, typer.Option(help="Another one than the schedule's.")
]
LearningRate = Annotated[
    float | None, typer.Option(metavar="F", help="Another peak rate than the schedule's.")
]
Freeze = Annotated[
    str | None,
    typer.Option(
        metavar="PARTS",
        help="Parts that keep the pretrained weights: encoder, encoder:K (the first K stages), "
        "encoder.K (one stage), decoder.",
    ),
]
Unfreeze = Annotated[
    str | None,
    typer.Option(metavar="PART@EPOCH,...", help="Frozen parts that learn from an epoch on."),
]
EncoderFactor = Annotated[
    float | None,
    typer.Option(metavar="F", help="The encoder's rate as a share of the rest's. [default: 1]"),
]
ResetHeads = Annotated[
    bool,
    typer.Option("--reset-heads", help="Draw the heads anew, whatever labels the source has."),
]
Loss = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(OBJECTIVES),
        help=f"What is added to Dice. [default: {DEFAULT_OBJECTIVE}]",
    ),
]
Augment = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help=f"{', '.join([*MIXTURES, *APPEARANCES])}, or shares: gin:0.5,bezier:0.2 "
        "(docs/training.md). [default: default]",
    ),
]
Mirror = Annotated[
    bool | None,
    typer.Option("--mirror/--no-mirror", help="Flip patches or not. [default: the schedule's]"),
]
Foreground = Annotated[
    float | None,
    typer.Option(metavar="F", help="Share of patches that must show foreground. [default: 0.33]"),
]
BatchSize = Annotated[
    int | None, typer.Option(metavar="N", help="Patches per step. [default: the plan's]")
]
Patch = Annotated[
    str | None,
    typer.Option(metavar="Z,Y,X", help="Patch in the plan's axes. [default: the plan's]"),
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="[default: 0]")]
Deterministic = Annotated[
    bool | None,
    typer.Option("--deterministic", help="The same bits again on the same machine; slower."),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write each epoch for TensorBoard, too.")
]
