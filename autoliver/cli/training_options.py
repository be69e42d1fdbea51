"""Options of `train` that affect the trained model; docs/training.md explains each of them."""

from typing import Annotated, get_args

import typer

from autoliver.cli.options import MACHINE, misuse
from autoliver.machine import CompileChoice
from autoliver.training import recipes
from autoliver.training.augment.appearance import APPEARANCES
from autoliver.training.augment.choice import MIXTURES
from autoliver.training.objectives.choice import DEFAULT_OBJECTIVE, OBJECTIVES
from autoliver.training.recipes import Task
from autoliver.transfer import table

# Groups of options on the help page.
RUN = "Run"
TRANSFER = "Transfer"
LENGTH = "Length"
LEARNING = "Learning"
PATCHES = "Patches"


def sizes(text: str) -> tuple[int, ...]:
    """The sizes in a text such as "96,160,160", the value of `--patch`."""
    from autoliver.training.options import patch_sizes

    with misuse("--patch"):
        return patch_sizes(text)


def weights(text: str) -> tuple[float, ...] | str:
    """The weights in a text, the value of `--class-weights`; "balanced" stays as it is."""
    from autoliver.training.objectives.choice import weights_of_classes

    with misuse("--class-weights"):
        return weights_of_classes(text)


def kept_share(text: str) -> float | str:
    """The share in a text, the value of `--keep-source`; "auto" stays as it is."""
    from autoliver.errors import OptionError

    if text == "auto":
        return text
    with misuse("--keep-source"):
        try:
            return float(text)
        except ValueError:
            raise OptionError(
                f"{text!r} is neither a number from 0 to 1 nor auto.",
                hint="0.7 keeps 30 % of the source's weights.",
            ) from None


Epochs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Number of epochs. [default: 1000; with --pretrained 300, or 150 for fewer than 30 "
        "training cases; with the schedule omnia 100]",
        rich_help_panel=LENGTH,
    ),
]
Iterations = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Optimiser steps per epoch. [default: 250]", rich_help_panel=LENGTH
    ),
]
Hours = Annotated[
    float | None,
    typer.Option(
        metavar="H",
        help="Time limit per fold: the learning rate reaches its end within it. Not with "
        "--deterministic. [default: none]",
        rich_help_panel=LENGTH,
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="After N epochs without progress, lower the learning rate to zero and stop early. "
        "[default: never]",
        rich_help_panel=LENGTH,
    ),
]
Extend = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Train finished folds for N more epochs; not with --fresh or --compare-scratch. "
        "[default: finished folds stay as they are]",
        rich_help_panel=LENGTH,
    ),
]
Schedule = Annotated[
    recipes.Schedule | None,
    typer.Option(
        help="Optimiser and learning rate. nnunet (or scratch): SGD as in nnU-Net; finetune: SGD "
        "with a warm-up; short: AdamW for short trainings; adamw: AdamW with a warm-up and a low "
        "rate; omnia: Nadam with a rate that falls by 5 % each epoch; auto: short below 20,000 "
        "steps, else nnunet, or finetune with --pretrained. [default: auto]",
        rich_help_panel=LEARNING,
    ),
]
Optimiser = Annotated[
    recipes.Optimiser | None,
    typer.Option(
        help="Use another optimiser in the schedule. [default: the schedule's]",
        rich_help_panel=LEARNING,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        metavar="F", help="Peak learning rate. [default: the schedule's]", rich_help_panel=LEARNING
    ),
]
Ema = Annotated[
    float | None,
    typer.Option(
        metavar="D",
        help="Keep a running mean of the weights with this decay, such as 0.999, as the result; 0: "
        "none. [default: the schedule's: 0.99 for short, else none]",
        rich_help_panel=LEARNING,
    ),
]
Freeze = Annotated[
    str | None,
    typer.Option(
        metavar="PARTS",
        help="With --pretrained: parts that are not trained, separated by commas: encoder, "
        "encoder:K (its first K stages), encoder.K (stage K alone, counted from 0), and the same "
        "for decoder. [default: none]",
        rich_help_panel=TRANSFER,
    ),
]
Unfreeze = Annotated[
    str | None,
    typer.Option(
        metavar="PART@EPOCH,...",
        help="Parts of --freeze that are trained from this epoch on, counted from 0. [default: "
        "none]",
        rich_help_panel=TRANSFER,
    ),
]
EncoderFactor = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="With --pretrained: learning rate of the encoder as a share of the rest's. [default: "
        "1]",
        rich_help_panel=TRANSFER,
    ),
]
LayerDecay = Annotated[
    float | None,
    typer.Option(
        metavar="D",
        help="With --pretrained: learning rate of each part of the network as a share of that of "
        "the next one towards the output, such as 0.8. [default: 1]",
        rich_help_panel=TRANSFER,
    ),
]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|PACKAGE",
        help="With --pretrained imagenet: file of weights (.safetensors, .pth) of timm, "
        "torchvision or efficientnet-pytorch, or an installed package that contains one. "
        "[default: fetched by timm, if it is installed]",
        rich_help_panel=TRANSFER,
    ),
]
KeepSource = Annotated[
    str | None,
    typer.Option(
        metavar="A|auto",
        help="With --pretrained: the final weights are A parts of the tuned ones and 1 - A of the "
        "source's; auto chooses A of 0.5 to 1 by the held-out cases. [default: the tuned ones]",
        rich_help_panel=TRANSFER,
    ),
]
ResetHeads = Annotated[
    bool,
    typer.Option(
        "--reset-heads",
        help="With --pretrained: initialise the segmentation heads at random. [default: take them "
        "over for labels of the same name]",
        rich_help_panel=TRANSFER,
    ),
]
Inflate = Annotated[
    table.Inflation | None,
    typer.Option(
        help="With --pretrained and a 2D source of a 3D network: what fills the depth of its "
        "kernels. mean: the kernel, divided among the planes; center: the kernel in the middle "
        "plane, so that each slice counts alone; repeat: the kernel in every plane. From 3D to "
        "2D: the sum (mean) or the middle plane (center). [default: mean; center if slices are "
        "more than twice as thick as their pixels]",
        rich_help_panel=TRANSFER,
    ),
]
Loss = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(OBJECTIVES),
        help="Loss: Dice plus this kind of cross-entropy, or the focal Tversky loss alone. "
        f"[default: {DEFAULT_OBJECTIVE}]",
        rich_help_panel=LEARNING,
    ),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        metavar="balanced|W,W,...",
        help="Weight of each class in the cross-entropy, background first; balanced: the rarer its "
        "voxels in the training cases, the higher, up to 100 times the lowest. [default: all "
        "alike]",
        rich_help_panel=LEARNING,
    ),
]
LesionTask = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(get_args(Task)),
        help="For lesions with classes. joint: each class is a label, and each connected lesion "
        "gets one class. segment: all classes are one label. ynet: as segment, and a head on the "
        "deepest features tells the class. classify: the class of a patch alone; prediction then "
        "needs --lesions. [default: all labels as they are]",
        rich_help_panel=LEARNING,
    ),
]
LesionClasses = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,...",
        help="With --task: the labels that are classes of lesions. [default: those whose names "
        "are of lesions]",
        rich_help_panel=LEARNING,
    ),
]
ClsWeight = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="With --task ynet: weight of the class in the loss. [default: 0.5]",
        rich_help_panel=LEARNING,
    ),
]
PseudoWeight = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Weight of pseudo-labels in the loss, from 0 to 1; drawn labels have 1. [default: "
        "0.5]",
        rich_help_panel=LEARNING,
    ),
]
OutsideNegative = Annotated[
    float | None,
    typer.Option(
        metavar="MM",
        help="Learn that a tumour is absent further than this from the liver, in cases in which "
        "nobody has annotated tumours. [default: nothing is learnt of it there]",
        rich_help_panel=LEARNING,
    ),
]
RoiLabel = Annotated[
    str | None,
    typer.Option(
        "--roi",
        metavar="LABEL",
        help="Train on the region around this label, such as liver, that --roi-from finds; the "
        "model then predicts nothing outside of it. [default: whole scans]",
        rich_help_panel=PATCHES,
    ),
]
RoiFrom = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="With --roi: the trained model that finds the label, in training and whenever this "
        "model predicts. [default: none]",
        rich_help_panel=PATCHES,
    ),
]
RoiMargin = Annotated[
    float | None,
    typer.Option(
        "--roi-margin-mm",
        metavar="MM",
        help="With --roi: how far the region reaches beyond the label. [default: 10]",
        rich_help_panel=PATCHES,
    ),
]
RoiTruth = Annotated[
    bool,
    typer.Option(
        "--roi-truth",
        help="With --roi: take the region from the reference labels, also for the scores of "
        "held-out cases, which are then too good. [default: --roi-from]",
        rich_help_panel=PATCHES,
    ),
]
Augment = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help=f"Augmentations: {', '.join([*MIXTURES, *APPEARANCES])}, or a mixture with shares of "
        "the patches, such as gin:0.5,bezier:0.2 (docs/training.md). [default: default]",
        rich_help_panel=PATCHES,
    ),
]
Mirror = Annotated[
    bool | None,
    typer.Option(
        "--mirror/--no-mirror",
        help="Flip training patches at random; --mirror is not possible with --augment none. "
        "[default: mirror, but no-mirror with the schedule short, and with changes of contrast by "
        "--augment]",
        rich_help_panel=PATCHES,
    ),
]
Foreground = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Share of the patches that must contain foreground. [default: 0.33]",
        rich_help_panel=PATCHES,
    ),
]
Sampler = Annotated[
    recipes.SamplerKind | None,
    typer.Option(
        help="How cases are drawn: proportional: all alike; sqrt: their sources by the square root "
        "of their number of cases; balanced: their sources alike; modality-balanced: each "
        "modality in every batch. [default: proportional]",
        rich_help_panel=PATCHES,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Patches per step. [default: the plan's]", rich_help_panel=PATCHES
    ),
]
Patch = Annotated[
    str | None,
    typer.Option(
        metavar="Z,Y,X",
        help="Patch size, in the order of axes of plan.json; Y,X for 2d. [default: the plan's]",
        rich_help_panel=PATCHES,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Seed of initial weights, patches and augmentations. [default: 0]",
        rich_help_panel=LEARNING,
    ),
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic",
        help="Give identical results on the same machine; slower on a GPU. Not with --hours.",
        rich_help_panel=LEARNING,
    ),
]
Compile = Annotated[
    CompileChoice,
    typer.Option(
        "--compile",
        help="Compile the network and its loss; auto does so on CUDA.",
        rich_help_panel=MACHINE,
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        help="Also write the progress of each epoch for TensorBoard.",
        rich_help_panel=RUN,
    ),
]
