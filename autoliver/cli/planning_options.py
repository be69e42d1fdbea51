"""Options of `plan`."""

from enum import StrEnum
from typing import Annotated

import typer


class PresetName(StrEnum):
    """Presets of the planner."""

    default = "default"
    m = "M"
    l = "L"  # noqa: E741
    xl = "XL"
    tiny = "tiny"


class LikeSpacingName(StrEnum):
    """Which spacing a dataset gets that is planned like another."""

    auto = "auto"
    source = "source"
    target = "target"
    fixed = "fixed"


Preset = Annotated[
    PresetName,
    typer.Option(case_sensitive=False, metavar="default|M|L|XL|tiny", help="Size of the networks."),
]
Vram = Annotated[
    float | None,
    typer.Option(metavar="GB", min=0.01, help="GPU memory to fit; default: the preset's."),
]
Spacing = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="Z Y X", help="Spacing of the full resolution in mm."),
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="What CT is clipped to, in HU; -150 250 keeps fat, for models that shall work on MR. "
        "[default: 0.5 and 99.5 % of the labelled voxels]",
    ),
]
Like = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Plan with the networks and patches of a planned dataset or a model (any that "
        "train --pretrained takes).",
    ),
]
LikeSpacing = Annotated[
    LikeSpacingName | None,
    typer.Option(
        help="With --like: the source's spacing, the dataset's own, --spacing, or the source's but "
        "where most slices would be interpolated. [default: auto]"
    ),
]
BatchCap = Annotated[
    bool,
    typer.Option(
        "--batch-cap/--no-batch-cap",
        help="Keep a batch below 5 % of the dataset's voxels (M, L, XL).",
    ),
]
