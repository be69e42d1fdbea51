"""The command `train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    MACHINE,
    AcceptChanges,
    AsJson,
    Device,
    Gpus,
    Jobs,
    MemoryGb,
    Threads,
    Verbose,
    Workers,
    WorkspaceDir,
    misuse,
)
from autoliver.cli.output import emit, number, say, start, table
from autoliver.cli.replay_options import (
    Replay,
    ReplayShare,
    Synthetic,
    SyntheticRatio,
    SyntheticWarmup,
    replayed,
)
from autoliver.cli.training_options import (
    RUN,
    TRANSFER,
    Augment,
    BatchSize,
    ClassWeights,
    ClsWeight,
    Compile,
    Deterministic,
    Ema,
    EncoderFactor,
    EncoderWeights,
    Epochs,
    Extend,
    Foreground,
    Freeze,
    Hours,
    Inflate,
    Iterations,
    KeepSource,
    LayerDecay,
    LearningRate,
    LesionClasses,
    LesionTask,
    Loss,
    Mirror,
    Optimiser,
    OutsideNegative,
    Patch,
    Patience,
    PseudoWeight,
    ResetHeads,
    RoiFrom,
    RoiLabel,
    RoiMargin,
    RoiTruth,
    Sampler,
    Schedule,
    Seed,
    TensorBoard,
    Unfreeze,
    kept_share,
    sizes,
    weights,
)
from autoliver.cli.transfer_tables import LABEL, NAMED, run_of, show_gain, show_source
from autoliver.machine import CacheChoice
from autoliver.planning import names
from autoliver.values import shortened

if TYPE_CHECKING:
    from autoliver.datasets.folds import Fold
    from autoliver.pipeline.run.job import FoldResult
    from autoliver.pipeline.run.request import TrainRequest
    from autoliver.workspace import Workspace

_FOLDS_IN_A_ROW = 5  # folds in one part of the table, so that it fits 80 characters

ConfigurationArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="2d, 3d_lowres, 3d_fullres or 3d_cascade.")
]
FoldOption = Annotated[
    str,
    typer.Option(
        metavar="0..4|all|cv",
        help="A fold, or several such as 0,2; all: one training on all cases; cv: all folds "
        "of the cross-validation. Your own splits: splits_final.json in the dataset's folder.",
        rich_help_panel=RUN,
    ),
]
Cache = Annotated[
    CacheChoice,
    typer.Option(
        help="Where the cases are kept while training; auto takes the first of gpu, ram and disk "
        "with enough room. The result does not depend on it.",
        rich_help_panel=MACHINE,
    ),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Start from the weights of a trained dataset (LiTS, LiTS/RUN), an imported model, an "
        "exported file, a run's folder, or nnU-Net's folder or checkpoint. The dataset is planned "
        "like it; from 2D to 3D, name its run (LiTS/2d). imagenet: ImageNet weights, for a plan "
        "with --encoder. [default: random weights]",
        rich_help_panel=TRANSFER,
    ),
]
Preset = Annotated[
    names.Preset | None,
    typer.Option(
        case_sensitive=False,
        metavar="|".join(get_args(names.Preset)),
        help="Plan a dataset that has no plan yet with this preset (see plan --help). A dataset "
        "with a plan keeps it: plan again with another one. [default: default]",
        rich_help_panel=RUN,
    ),
]
Like = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Plan the dataset like SOURCE, but train from random weights; not with --pretrained. "
        "[default: the dataset's own plan]",
        rich_help_panel=TRANSFER,
    ),
]
OwnPlan = Annotated[
    bool,
    typer.Option(
        "--own-plan",
        help="With --pretrained: keep the dataset's own plan, and adapt the weights to it as far "
        "as they fit. [default: planned like the source]",
        rich_help_panel=TRANSFER,
    ),
]
CompareScratch = Annotated[
    bool,
    typer.Option(
        "--compare-scratch",
        help="With --pretrained: train the same from random weights afterwards, and show both.",
        rich_help_panel=TRANSFER,
    ),
]
Twin = Annotated[
    bool,
    typer.Option("--twin", hidden=True, help="Take only the plan of --pretrained, no weights."),
]
Tag = Annotated[
    str | None,
    typer.Option(
        metavar="T",
        help="Added to the run's name, to keep several runs of one configuration. [default: none]",
        rich_help_panel=RUN,
    ),
]


# Longer than 60 lines, because every option of the command is a parameter with its help.
def train(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder or name.")],
    configuration: ConfigurationArgument,
    fold: FoldOption = "cv",
    preset: Preset = None,
    pretrained: Pretrained = None,
    encoder_weights: EncoderWeights = None,
    like: Like = None,
    own_plan: OwnPlan = False,
    inflate: Inflate = None,
    replay: Replay = None,
    replay_share: ReplayShare = None,
    synthetic: Synthetic = None,
    synthetic_ratio: SyntheticRatio = None,
    synthetic_warmup: SyntheticWarmup = None,
    keep_source: KeepSource = None,
    compare_scratch: CompareScratch = False,
    twin: Twin = False,
    accept_changes: AcceptChanges = False,
    epochs: Epochs = None,
    iterations: Iterations = None,
    hours: Hours = None,
    patience: Patience = None,
    extend: Extend = None,
    schedule: Schedule = None,
    optimiser: Optimiser = None,
    lr: LearningRate = None,
    ema: Ema = None,
    loss: Loss = None,
    task: LesionTask = None,
    lesion_classes: LesionClasses = None,
    cls_weight: ClsWeight = None,
    class_weights: ClassWeights = None,
    pseudo_weight: PseudoWeight = None,
    outside_negative: OutsideNegative = None,
    roi: RoiLabel = None,
    roi_from: RoiFrom = None,
    roi_margin_mm: RoiMargin = None,
    roi_truth: RoiTruth = False,
    augment: Augment = None,
    mirror: Mirror = None,
    foreground: Foreground = None,
    sampler: Sampler = None,
    batch_size: BatchSize = None,
    patch: Patch = None,
    freeze: Freeze = None,
    unfreeze: Unfreeze = None,
    encoder_factor: EncoderFactor = None,
    layer_decay: LayerDecay = None,
    reset_heads: ResetHeads = False,
    seed: Seed = None,
    deterministic: Deterministic = None,
    device: Device = "auto",
    gpus: Gpus = "",
    jobs: Jobs = None,
    cache: Cache = "auto",
    tag: Tag = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Delete what the folds of --fold have, and train them again. [default: resume]",
            rich_help_panel=RUN,
        ),
    ] = False,
    compile_: Compile = "auto",
    tensorboard: TensorBoard = False,
    threads: Threads = None,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a configuration, or resume where its training stopped.

    The dataset is planned and preprocessed first if that has not been done.
    """
    from autoliver.machine import Machine
    from autoliver.parallel import Limits
    from autoliver.pipeline.run.replay import check_synthetic
    from autoliver.pipeline.run.request import TrainRequest
    from autoliver.workspace import Workspace, check_configuration

    start(verbose=verbose)
    given = {
        **{"epochs": epochs, "iterations": iterations, "hours": hours, "patience": patience},
        **{"schedule": schedule, "optimiser": optimiser, "lr": lr, "loss": loss},
        **{"augment": augment, "mirror": mirror, "foreground": foreground},
        **{"batch_size": batch_size, "ema": ema},
        **{"task": task, "lesion_classes": lesion_classes, "cls_weight": cls_weight},
        **{"sampler": sampler, "pseudo_weight": pseudo_weight},
        **{"outside_negative": outside_negative},
        **{"roi": roi, "roi_from": roi_from, "roi_truth": roi_truth or None},
        **{"roi_margin_mm": roi_margin_mm},
        **{"class_weights": class_weights and weights(class_weights)},
        **{"patch": patch and sizes(patch), "seed": seed, "deterministic": deterministic},
        **{"freeze": freeze, "unfreeze": unfreeze, "encoder_factor": encoder_factor},
        **{"heads": "reset" if reset_heads else None, "inflate": inflate},
        **{"layer_decay": layer_decay},
        **replayed(replay, replay_share, synthetic, synthetic_ratio),
        **{"replay_warmup": synthetic_warmup},
        **{"keep_source": keep_source and kept_share(keep_source)},
    }
    request = TrainRequest(
        configuration=check_configuration(configuration),
        folds=_folds(fold),
        changes={name: value for name, value in given.items() if value is not None},
        tag=tag,
        fresh=fresh,
        extend=extend,
        preset=preset,
        pretrained=pretrained,
        encoder_weights=encoder_weights,
        like=like,
        own_plan=own_plan,
        twin=twin,
        accept_changes=accept_changes,
        machine=Machine(
            device=device,
            gpus=_gpus(gpus),
            jobs=jobs,
            cache=cache,
            limits=Limits(workers=workers, memory_gb=memory_gb),
            tensorboard=tensorboard,
            threads=threads,
            compile=compile_,
        ),
    )
    place = Workspace(workspace)
    if synthetic is not None:
        check_synthetic(place, synthetic)
    _train_and_show(place, dataset, request, compare=compare_scratch, as_json=as_json)


def train_queued(
    request: Annotated[Path, typer.Argument(metavar="FILE", help="File with the request.")],
    as_json: AsJson = False,
) -> None:
    """Train one fold of a queue that `train` has started."""
    from autoliver.pipeline.run.train import train_queued as train_asked

    start(verbose=False)
    results = train_asked(request, notify=_notify)
    emit(summary_of(results), show_folds(results), as_json=as_json)


def _notify(text: str) -> None:
    from autoliver.training.distributed import launched

    if launched().leads:
        say(text)


def _train_and_show(
    workspace: "Workspace", dataset: str, request: "TrainRequest", *, compare: bool, as_json: bool
) -> None:
    from autoliver.pipeline.run.outcome import next_command, outcome_of
    from autoliver.pipeline.run.train import FoldsFailed, train
    from autoliver.pipeline.run.twin import train_both
    from autoliver.training.distributed import launched

    try:
        if compare:
            both = train_both(workspace, dataset, request, notify=_notify)
            results = both.transferred
            result = {**summary_of(results), "scratch": summary_of(both.scratch)["folds"]}
            parts = [("Transferred", results), ("From scratch", both.scratch)]
            text = "\n\n".join(f"{what}:\n{show_folds(folds)}" for what, folds in parts)
            text += f"\n\n{show_gain(results, both.scratch)}{show_source(results, both.scratch)}"
        else:
            results = train(workspace, dataset, request, notify=_notify)
            result, text = summary_of(results), show_folds(results) + show_source(results)
    except FoldsFailed as failed:
        if failed.results and not as_json:
            typer.echo(show_folds(failed.results))
        raise
    if launched().leads:  # only one of the processes that torchrun has started prints
        following = next_command(outcome_of(run_of(results)), request, compare=compare)
        emit({**result, "next": following}, f"{text}\n\nNext: {following}", as_json=as_json)


def _folds(text: str) -> "tuple[Fold, ...]":
    from autoliver.datasets.folds import check_folds

    with misuse("--fold"):
        return check_folds(text)


def _gpus(text: str) -> tuple[int, ...]:
    from autoliver.machine import gpu_numbers

    with misuse("--gpus"):
        return gpu_numbers(text)


def summary_of(results: "Sequence[FoldResult]") -> dict[str, object]:
    """The folds as plain values, for --json."""
    from autoliver.cli.data import listed
    from autoliver.pipeline.data import warnings_kept
    from autoliver.workspace import DatasetFolder

    # Of a run's folder in the dataset's: DATASET/runs/RUN/fold_N.
    warnings = warnings_kept(DatasetFolder(results[0].folder.parents[2])) if results else ()
    return {
        "warnings": listed(warnings),
        "folds": [
            {
                "fold": r.fold,
                "folder": str(r.folder),
                "dice": r.scores.foreground_mean("dice") if r.scores else None,
                "labels": _of_labels(r),
                "lesion_accuracy": r.scores.lesion_accuracy if r.scores else None,
                "source": r.source and {"dataset": r.source.dataset, "labels": r.source.mean},
            }
            for r in results
        ],
    }


def _of_labels(result: "FoldResult") -> dict[str, float | None]:
    """Label -> mean Dice of the held-out cases."""
    summary = result.scores.summary if result.scores else {}
    found = {label: each.metrics.get("dice") for label, each in summary.items()}
    return {label: dice.mean if dice else None for label, dice in found.items()}


def show_folds(results: "Sequence[FoldResult]") -> str:
    """The Dice of each label in each finished fold of the run, and what the folds mean."""
    from autoliver.pipeline.run.outcome import mean_of, outcome_of

    run = run_of(results)
    outcome = outcome_of(run)
    folds = list(outcome.scores)
    parts = [f"Folds: {run.path}"]
    parts += _kept(results)
    if any(result.scores is None for result in results):
        parts.append("Fold all is trained on every case: no case is held out to score it with.")
    for first in range(0, len(folds), _FOLDS_IN_A_ROW):
        shown = folds[first : first + _FOLDS_IN_A_ROW]
        last = shown[-1] == folds[-1]
        rows = [
            [
                shortened(label, LABEL),
                *(number(of[fold]) for fold in shown),
                number(outcome.mean_dice[label]),
            ]
            for label, of in outcome.dice.items()
        ]
        means = [outcome.scores[fold].foreground_mean("dice") for fold in folds]
        own = [number(mean) for mean in means[first : first + _FOLDS_IN_A_ROW]]
        rows.append(["mean", *own, number(mean_of(means))])
        right = [outcome.scores[fold].lesion_accuracy for fold in folds]
        if any(share is not None for share in right):
            own = [number(share) for share in right[first : first + _FOLDS_IN_A_ROW]]
            rows.append([NAMED, *own, number(mean_of(right))])
        cases = [len(outcome.scores[fold].cases) for fold in folds]
        own = [str(n) for n in cases[first : first + _FOLDS_IN_A_ROW]]
        rows.append(["held-out cases", *own, str(sum(cases))])
        header = ["Dice", *(f"fold {fold}" for fold in shown), f"mean of {len(folds)}"]
        width = None if last else -1  # the mean over all folds stands in the last part alone
        parts.append(table(header[:width], [row[:width] for row in rows]))
    return "\n\n".join(parts)


def _kept(results: "Sequence[FoldResult]") -> list[str]:
    """Which share of the tuned weights each fold has, if they were mixed with the source's."""
    from autoliver.models.files import FoldFolder, FoldModel

    shares = {r.fold: FoldModel.load(FoldFolder(r.folder).model).keep_source for r in results}
    known = [f"fold {fold} {share:.3g}" for fold, share in shares.items() if share is not None]
    said = f"Share of the tuned weights, the rest is the source's: {', '.join(known)}"
    return [said] if known else []
