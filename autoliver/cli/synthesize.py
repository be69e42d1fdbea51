"""The commands `synthesize fit` and `synthesize apply`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    DaskOption,
    Device,
    MemoryGb,
    ShardOption,
    Verbose,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, start, table
from autoliver.cli.shards import emit_shard, shard_of
from autoliver.cli.training_options import sizes
from autoliver.commands import command
from autoliver.planning.names import ModalityName
from autoliver.synthesis.translation.options import TranslationModel
from autoliver.values import counted, first_few

if TYPE_CHECKING:
    from autoliver.pipeline.translation.apply import Synthesized

NETWORKS, LOSSES = "Networks", "Losses"
_SHOWN = 3
_ROOM = 30  # characters for the names of labels


# Longer than 60 lines, because every option of the command is a parameter with its help.
def fit(
    source: Annotated[
        str, typer.Option("--from", metavar="DATASET", help="The dataset with labels, such as CT.")
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="DATASET|IMAGES",
            help="The dataset whose images are imitated, such as MR, or a folder of images. Labels "
            "need not be there; they only tell which slices show organs.",
        ),
    ],
    name: Annotated[
        str, typer.Option("--name", "-o", metavar="NAME", help="Name of the translation.")
    ],
    model: Annotated[
        TranslationModel,
        typer.Option(
            help="essnet: the labels must be found in the translated images; cyclegan: nothing "
            "keeps the anatomy; cut: each place must resemble its source, without a way back; "
            "labels: random grey values for each label, nothing is learnt.",
        ),
    ] = "essnet",
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CASE",
            help="A case of the target that it must not see, since a model is tested on it; "
            "nor are other cases of its patient. Repeat it. [default: none]",
        ),
    ] = None,
    modality: Annotated[
        ModalityName | None,
        typer.Option(
            case_sensitive=False,
            help="What a folder of images shows. [default: decided by their values]",
        ),
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None,
        typer.Option(
            metavar="Z Y X",
            help="Spacing in mm to which both are brought, where the target has no labels and so "
            "no plan. [default: the median of its images]",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Number of epochs.")] = 200,
    iterations: Annotated[int, typer.Option(min=1, metavar="N", help="Steps per epoch.")] = 250,
    decay_start: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Epoch from which the learning rate falls to 0. [default: half of the epochs]",
        ),
    ] = None,
    lr: Annotated[float, typer.Option(metavar="F", help="Learning rate of Adam.")] = 2e-4,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Patches of each dataset in a step.")
    ] = 4,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="[Z] Y X",
            help="Size of the patches, multiples of 4; with Z it translates in 3D. [default: 2D, "
            "up to 256, as the images allow]",
        ),
    ] = None,
    features: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Features of the networks.", rich_help_panel=NETWORKS
        ),
    ] = 64,
    blocks: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Residual blocks of the generators.", rich_help_panel=NETWORKS
        ),
    ] = 9,
    pool: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Translated images that discriminators are shown again. [default: 50; cut: 0]",
            rich_help_panel=LOSSES,
        ),
    ] = None,
    cycle: Annotated[
        float,
        typer.Option(
            "--lambda-cyc",
            min=0.0,
            metavar="F",
            help="Weight of the way there and back.",
            rich_help_panel=LOSSES,
        ),
    ] = 10.0,
    contrast: Annotated[
        float,
        typer.Option(
            "--lambda-nce",
            min=0.0,
            metavar="F",
            help="Weight of resembling the source place by place, for cut.",
            rich_help_panel=LOSSES,
        ),
    ] = 1.0,
    segmentation: Annotated[
        float | None,
        typer.Option(
            "--lambda-seg",
            min=0.0,
            metavar="F",
            help="Weight of the labels. [default: 1 for essnet; cut: 0, and above 0 it has a "
            "segmentation network, too]",
            rich_help_panel=LOSSES,
        ),
    ] = None,
    identity: Annotated[
        float | None,
        typer.Option(
            "--lambda-id",
            min=0.0,
            metavar="F",
            help="Weight of leaving images of the own kind alone. [default: 0; cut: 1]",
            rich_help_panel=LOSSES,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of all random numbers.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    device: Device = "auto",
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Learn to make images of one dataset look like those of another.

    The same command goes on where it was stopped.
    """
    from autoliver.pipeline.translation.fit import FitRequest
    from autoliver.pipeline.translation.fit import fit as learn
    from autoliver.synthesis.translation.options import TranslationOptions
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    options = TranslationOptions(
        model=model,
        features=features,
        blocks=blocks,
        patch=None if patch is None else sizes(patch),
        batch_size=batch_size,
        epochs=epochs,
        iterations=iterations,
        decay_start=decay_start,
        lr=lr,
        cycle=cycle,
        contrast=contrast,
        segmentation=segmentation,
        identity=identity,
        pool=pool,
        seed=seed,
    )
    request = FitRequest(
        source=source,
        target=target,
        name=name,
        options=options,
        held_out=tuple(held_out or ()),
        modality=modality,
        spacing_mm=spacing,
        fresh=fresh,
        machine=machine_of(memory_gb=memory_gb, device=device),
    )
    folder = learn(Workspace(workspace), request)
    segmentor = str(folder.segmentor.parent) if folder.segmentor.exists() else None
    judge = () if segmentor is not None else ("--judge", "MODEL")
    following = command("synthesize", "apply", name, "OUT", options=judge, workspace=workspace)
    lines = [f"Learnt: {folder.path}"]
    if segmentor is not None:
        lines.append(f"Its segmentation network: {segmentor}")
    lines.append(f"Next: {following}")
    result = {"folder": str(folder.path), "segmentor": segmentor, "next": following}
    emit(result, "\n".join(lines), as_json=as_json)


def apply(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the translation.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the new dataset; it must be new.")
    ],
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model that finds the labels in real images of the target. [default: the "
            "segmentation network of essnet]",
        ),
    ] = None,
    min_dice: Annotated[
        float,
        typer.Option(
            "--qc-min-dice",
            min=0.0,
            max=1.0,
            metavar="F",
            help="Cases in which the judge finds the labels worse are left out, and slices are "
            "ignored in training.",
        ),
    ] = 0.5,
    shard: ShardOption = None,
    dask: DaskOption = None,
    device: Device = "auto",
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make a dataset of translated images with their labels.

    fidelity.csv and fidelity.png in it say how well the labels fit.
    """
    from autoliver.pipeline.translation.apply import ApplyRequest
    from autoliver.pipeline.translation.apply import apply as make
    from autoliver.pipeline.translation.apply_shard import apply_shard
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = ApplyRequest(
        judge=judge,
        min_dice=min_dice,
        shard=shard_of(shard, dask=dask, workspace=workspace),
        machine=machine_of(memory_gb=memory_gb, device=device),
    )
    if request.shard is not None:
        part = apply_shard(Workspace(workspace), name, output, request, request.shard)
        emit_shard(part, as_json=as_json)
        return
    done = make(Workspace(workspace), name, output, request)
    emit(_result(done), _show(done), as_json=as_json)


def _result(done: "Synthesized") -> dict[str, object]:
    return {
        "folder": str(done.folder),
        "cases": {each.case: each.mean for each in done.cases},
        "jumps": {each.case: each.jumps for each in done.cases},
        "real_jumps": {each.case: each.real_jumps for each in done.cases},
        "grey": {each.case: each.grey for each in done.cases},
        "left_out": list(done.left_out),
        "ignored_slices": done.ignored,
        "warning": done.warning,
        "table": str(done.table),
        "picture": str(done.sheet),
        "next": done.next_command,
    }


def _show(done: "Synthesized") -> str:
    names = list(done.cases[0].dice)
    if sum(len(name) + 2 for name in names) > _ROOM:
        names = []  # fidelity.csv has them
    rows = [
        (
            each.case,
            f"{each.mean:.3f}",
            *("-" if each.dice[n] is None else f"{each.dice[n]:.3f}" for n in names),
            f"{each.jumps:.2f}",
            f"{each.grey:.2f}",
            "left out" if each.case in done.left_out else "kept",
        )
        for each in done.cases
    ]
    kept = counted(len(done.cases) - len(done.left_out), "case")
    out = f"; left out: {first_few(done.left_out, _SHOWN)}" if done.left_out else ""
    jumps, real, grey = (
        sum(getattr(each, name) for each in done.cases) / len(done.cases)
        for name in ("jumps", "real_jumps", "grey")
    )
    return "\n".join(
        [
            table(("Dice of the judge", "mean", *names, "jumps", "grey", ""), rows),
            f"{kept} kept{out}. {counted(done.ignored, 'slice')} of them ignored.",
            f"Jumps between slices: {jumps:.2f} standard deviations; real scans: {real:.2f}.",
            f"Distance of grey values from real scans: {grey:.2f} standard deviations.",
            *([f"Warning: {done.warning}"] if done.warning else []),
            f"Table: {done.table}",
            f"Picture: {done.sheet}",
            f"Next: {done.next_command}",
        ]
    )
