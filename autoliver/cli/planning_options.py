"""Options of `plan`."""

from typing import Annotated, get_args

import typer

from autoliver.planning import names

Preset = Annotated[
    names.Preset | None,
    typer.Option(
        case_sensitive=False,
        metavar="|".join(get_args(names.Preset)),
        help="Size of the networks. [default: default]",
    ),
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
        help="What CT is clipped to, in HU; -150 250 keeps fat, for models that are to work on MR. "
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
    names.SpacingMode | None,
    typer.Option(
        help="With --like: the source's spacing, the dataset's own, --spacing, or the source's but "
        "where most slices would be interpolated. [default: auto]"
    ),
]
BatchCap = Annotated[
    bool | None,
    typer.Option(
        "--batch-cap/--no-batch-cap",
        help="Keep a batch below 5 % of the dataset's voxels (M, L, XL). [default: batch-cap]",
    ),
]
KeepAxes = Annotated[
    bool | None,
    typer.Option(
        "--keep-axes/--one-order",
        help="Keep the order of axes of each file, as nnU-Net does, where cases differ; otherwise "
        "all are brought to the commonest. [default: one-order]",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Forget the options of the plan before; otherwise those not given are kept."
    ),
]
