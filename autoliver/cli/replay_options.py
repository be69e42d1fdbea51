"""Options of `train` about patches of another dataset."""

from typing import Annotated

import typer

from autoliver.cli.training_options import TRANSFER

Replay = Annotated[
    str | None,
    typer.Option(
        metavar="DATASET",
        help="Draw part of the patches from the cases of another dataset of the workspace, such as "
        "the one that --pretrained comes from, so that what was learnt there is kept. [default: "
        "none]",
        rich_help_panel=TRANSFER,
    ),
]
ReplayShare = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Share of the patches from --replay, above 0 and below 1. [default: 0.5]",
        rich_help_panel=TRANSFER,
    ),
]
Synthetic = Annotated[
    str | None,
    typer.Option(
        metavar="DATASET",
        help="Draw part of the patches from a dataset that synthesize has made. Its cases are in "
        "no validation, and those of held-out patients are left out. [default: none]",
        rich_help_panel=TRANSFER,
    ),
]
SyntheticRatio = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Share of the patches from --synthetic, above 0 and below 1. [default: 0.5]",
        rich_help_panel=TRANSFER,
    ),
]
SyntheticWarmup = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Epochs at the beginning with patches from --synthetic alone. [default: 0]",
        rich_help_panel=TRANSFER,
    ),
]
