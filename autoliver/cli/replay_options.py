"""Options of `train` about patches of another dataset."""

from typing import Annotated

import typer

from autoliver.cli.options import misuse
from autoliver.cli.training_options import TRANSFER
from autoliver.errors import OptionError

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


def replayed(
    replay: str | None, share: float | None, synthetic: str | None, ratio: float | None
) -> dict[str, object]:
    """Whose cases are drawn beside those of the dataset, and how often: training options.

    Args:
        replay: The value of --replay; None if it is not given.
        share: That of --replay-share.
        synthetic: That of --synthetic.
        ratio: That of --synthetic-ratio.
    """
    if synthetic is None and ratio is None:
        return {"replay": replay, "replay_share": share}
    if replay is not None or share is not None:
        with misuse("--synthetic"):
            raise OptionError(
                "--replay and --synthetic cannot be given together.",
                hint="Make one dataset of both with: autoliver pool OUT --add A --add B",
            )
    if ratio is not None and not 0 < ratio < 1:
        raise typer.BadParameter(
            f"{ratio:g}; expected a number above 0 and below 1.", param_hint="--synthetic-ratio"
        )
    if synthetic is None:
        with misuse("--synthetic-ratio"):
            raise OptionError(
                f"{ratio:g} of the patches, but no synthetic cases are named.",
                hint="Name their dataset with --synthetic.",
            )
    return {"replay": synthetic, "replay_share": ratio}
