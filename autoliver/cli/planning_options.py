"""Options of `plan`."""

from typing import Annotated, get_args

import typer

from autoliver.planning import names

Preset = Annotated[
    names.Preset | None,
    typer.Option(
        case_sensitive=False,
        metavar="|".join(get_args(names.Preset)),
        help="Network: default is nnU-Net's plain U-Net for 8 GB; M, L and XL have a residual "
        "encoder, for 8, 24 and 40 GB; tiny is default with a quarter of the features. "
        "[default: default]",
        rich_help_panel="Network",
    ),
]
Arch = Annotated[
    names.Architecture | None,
    typer.Option(
        case_sensitive=False,
        help="Type of network: medformer exchanges what voxels see through a few tokens; omnia "
        "(2D), dxnet (3D) and dsnet (3D around 2D) have an encoder made for classification. They "
        "have the presets default and tiny, and their memory is estimated in float32. "
        "[default: unet]",
        rich_help_panel="Network",
    ),
]
Encoder = Annotated[
    names.EncoderName | None,
    typer.Option(
        case_sensitive=False,
        metavar="NAME",
        help="Classification network as the encoder, for which there are ImageNet weights: "
        f"{', '.join(get_args(names.EncoderName))}. [default: none; efficientnet_b4 for omnia, "
        "efficientnet_b0 for dxnet and dsnet]",
        rich_help_panel="Network",
    ),
]
ZStrides = Annotated[
    names.ZStrides | None,
    typer.Option(
        "--z-strides",
        case_sensitive=False,
        help="Where an encoder halves the depth of a volume: auto, as its spacing allows; all, at "
        "each of its five levels as published, which needs 32 slices. [default: auto]",
        rich_help_panel="Network",
    ),
]
Vram = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        min=0.01,
        help="GPU memory that patch and batch size are fitted to. [default: the preset's]",
        rich_help_panel="Network",
    ),
]
Spacing = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        metavar="Z Y X",
        help="Target spacing of the full resolution in mm. [default: decided from the dataset]",
        rich_help_panel="Grid and intensities",
    ),
]
Window = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="Range in HU that CT is clipped to. Use -150 250 for a model that is meant to work "
        "on MR as well: it keeps fat visible. [default: the 0.5 and 99.5 percentiles of the "
        "labelled voxels]",
        rich_help_panel="Grid and intensities",
    ),
]
Modality = Annotated[
    names.ModalityName | None,
    typer.Option(
        case_sensitive=False,
        help="What the images of a folder without dataset.json are; other: each is normalised by "
        "its own mean and deviation. [default: decided by their values]",
    ),
]
Like = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Use the networks, patch sizes and batch sizes of another dataset or model (any that "
        "train --pretrained takes), so that its weights fit. It excludes --preset, --vram, "
        "--window and --batch-cap. [default: plan from this dataset alone]",
        rich_help_panel="Transfer",
    ),
]
LikeSpacing = Annotated[
    names.SpacingMode | None,
    typer.Option(
        help="Spacing with --like. source: the source's; target: this dataset's own; fixed: that "
        "of --spacing; auto: the source's, but this dataset's own along axes where it is more than "
        "twice as coarse. [default: auto]",
        rich_help_panel="Transfer",
    ),
]
BatchCap = Annotated[
    bool | None,
    typer.Option(
        "--batch-cap/--no-batch-cap",
        help="Limit a batch to 5 % of the dataset's voxels; nnU-Net does not with its M, L and XL. "
        "[default: batch-cap]",
        rich_help_panel="Network",
    ),
]
KeepAxes = Annotated[
    bool | None,
    typer.Option(
        "--keep-axes/--one-order",
        help="Keep the order of axes of each file, as nnU-Net does, where cases differ; otherwise "
        "all are brought to the commonest. [default: one-order]",
        rich_help_panel="Grid and intensities",
    ),
]
Slices = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Neighbouring slices that the 2d network sees as channels, an odd number; it labels "
        "the middle one. [default: 1]",
        rich_help_panel="Network",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Ignore the options of the previous plan. [default: options that are not given keep "
        "the values of the previous plan]",
        rich_help_panel="Again",
    ),
]
