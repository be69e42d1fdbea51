"""Finds the plan that a training follows, and adapts the weights of a source to start from."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autoliver.artifacts import digest
from autoliver.datasets.cases import Dataset
from autoliver.errors import AutoliverError, ModelError, OptionError
from autoliver.networks.contract import ENCODER
from autoliver.pipeline.data import Planned, planned_dataset
from autoliver.pipeline.run.begun import as_begun, begun_run, refuse_circle
from autoliver.pipeline.run.encoder_source import (
    asks_for_imagenet,
    check_planned,
    encoder_source,
    is_unread,
)
from autoliver.pipeline.run.follow import Followed, plan_to_follow, planned_like
from autoliver.pipeline.run.request import Notify, TrainRequest
from autoliver.pipeline.run.source import Source, find_source, safe
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Configuration, Plan
from autoliver.transfer.follow import far_axes
from autoliver.transfer.table import Transfer
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from autoliver.training.options import TrainingOptions
    from autoliver.transfer.adapt import Side


_log = logging.getLogger(__name__)


def find_start(
    workspace: Workspace, name: str | None, request: TrainRequest, *, notify: Notify
) -> tuple[Planned, Source | None]:
    """Finds the plan to train with and the source of the weights; a missing plan is made.

    Args:
        workspace: The workspace in which names are looked up.
        name: Path or name of the dataset; None for the only one.
        request: Its `pretrained`, `like`, `own_plan` and `twin` decide.
        notify: Called with messages about the source and plan that are used.

    Returns:
        The dataset with its plan; and the source, None if training starts from random weights.

    Raises:
        AutoliverError: There is no such source, or it cannot be used for the dataset.
    """
    _check_together(request)
    if request.pretrained is not None:
        return _from_source(workspace, name, request, request.pretrained, notify=notify)
    wanted = request.configuration
    if request.like is None:
        return _planned(workspace, name, request), None
    followed = plan_to_follow(workspace, request.like, machine=request.machine)
    own = _planned(workspace, name, request)
    return _follow(own, followed, wanted, notify), None


def _planned(workspace: Workspace, name: str | None, request: TrainRequest) -> Planned:
    return planned_dataset(
        workspace, name, accept_changes=request.accept_changes, machine=request.machine
    )


def _from_source(
    workspace: Workspace, name: str | None, request: TrainRequest, asked: str, *, notify: Notify
) -> tuple[Planned, Source | None]:
    """Finds the plan and the weights of a training with --pretrained; see `find_start`."""
    wanted = request.configuration
    # The source is looked up before the dataset is hashed, which may take long: its name may be
    # wrong.
    target = workspace.read(name)
    folder = DatasetFolder(workspace.root / target.name)
    imagenet = asks_for_imagenet(asked)
    own = None
    if imagenet:  # which weights fit, the plan says
        check_planned(folder, target)
        own = _planned(workspace, name, request)
    found = _source_or_run(workspace, target, own, request, asked, notify=notify)
    own = own or _planned(workspace, name, request)
    if isinstance(found, RunFolder):
        planned, kept = as_begun(own, found, wanted)
        notify(f"{found.name} continues from {kept.fold}, with which it was begun.")
        return planned, kept
    source = found
    _check_inflation(request, source)
    refuse_circle(folder, request, source)
    if not request.twin:
        _warn_of_part(source)
    if not (imagenet and request.twin):
        taken = "Planned like" if request.twin else "Starts from"
        notify(f"{taken} {source.fold}: {source.where}.")
    theirs = source.plan_for(wanted)
    planned = replace(own, source=source.name)
    if theirs is not None and not request.own_plan:
        followed = Followed(name=source.name, plan=theirs, again=source.again)
        planned = _follow(own, followed, wanted, notify)
        _note_slices(own, planned, wanted, notify)
    return planned, None if request.twin else source


def _note_slices(own: Planned, planned: Planned, wanted: ConfigurationName, notify: Notify) -> None:
    """Notifies the user if the source's network sees another number of slices than planned."""
    ours, theirs = own.plan.configurations.get(wanted), planned.plan.configurations[wanted]
    if ours is not None and ours.slices != theirs.slices:
        sees = "single slices" if theirs.slices == 1 else f"{theirs.slices} neighbouring slices"
        notify(
            f"Note: {wanted} sees {sees} as its source; your plan has {ours.slices}: --own-plan "
            "keeps it."
        )


def _source_or_run(
    workspace: Workspace,
    target: Dataset,
    own: Planned | None,
    request: TrainRequest,
    asked: str,
    *,
    notify: Notify,
) -> Source | RunFolder:
    """Finds the source that `--pretrained` names, or the run that has begun from another one.

    Args:
        workspace: The workspace.
        target: The dataset that is trained.
        own: The dataset with its plan, for ImageNet weights; None to look up `asked`.
        request: The request.
        asked: The value of `--pretrained`.
        notify: Called if a file is not read.

    Raises:
        AutoliverError: There is no such source, and no run that has begun from one.
    """
    folder, given = DatasetFolder(workspace.root / target.name), request.encoder_weights
    try:
        if own is not None:
            source = encoder_source(own, request)
        else:
            source = find_source(
                workspace, asked, wanted=request.configuration, target=safe(target.short_name)
            )
        run = begun_run(folder, request, source)
    except AutoliverError as error:
        run = begun_run(folder, request, None)
        if run is None or not (given is None or is_unread(error)):
            raise
        if given is not None:
            notify(f"{given} is not read: the run keeps the weights it began with.")
        return run
    if run is not None and given is not None:
        raise OptionError(
            f"{run.name} was started with another source, not with {source.where}.",
            hint="Add --fresh to start over, or --tag NAME to keep both. Without "
            "--encoder-weights the run goes on with the weights it began with.",
        )
    return run or source


def _check_inflation(request: TrainRequest, source: Source) -> None:
    """Refuses `--inflate` where there is nothing to inflate, or to take a depth from.

    Raises:
        OptionError: Source and target have the same dimension, or no such way leads to 2D.
    """
    way, there = request.changes.get("inflate"), source.spec.dimension
    here = 2 if request.configuration == "2d" else 3
    if way is None:
        return
    if there == here:
        raise OptionError(
            f"--inflate {way} carries weights between 2D and 3D, but both {source.fold} and "
            f"{request.configuration} are {here}D.",
            hint="Leave it out, or name a source of the other dimension with --pretrained.",
        )
    if here == 2 and way == "repeat":
        raise OptionError(
            f"--inflate repeat leads from 2D to 3D; {source.fold} is 3D, and 2d is 2D.",
            hint="Give mean (the sum over the depth) or center (the middle plane).",
        )


def _warn_of_part(source: Source) -> None:
    """Warns of a source that is one fold of a cross-validation; only of one that is used."""
    if source.info is not None and source.info.fold != "all":
        _log.warning(
            "%s: fold %s is used, which was not trained on the cases it held out.",
            *(source.fold.rpartition("/")[0], source.info.fold),
        )


def _check_together(request: TrainRequest) -> None:
    """Refuses options that contradict each other.

    Raises:
        OptionError: Options contradict each other; the hint says what to leave out.
    """
    if request.encoder_weights is not None and not asks_for_imagenet(request.pretrained or ""):
        raise OptionError(
            f"--encoder-weights {request.encoder_weights} goes with --pretrained imagenet alone.",
            hint="Leave it out, or start from ImageNet weights with --pretrained imagenet.",
        )
    if request.like is None:
        if request.own_plan and request.pretrained is None:
            raise OptionError("--own-plan needs --pretrained.", hint="Leave it out.")
        return
    other = "--pretrained" if request.pretrained else "--own-plan" if request.own_plan else None
    if other is not None:
        raise OptionError(
            f"--like and {other} contradict each other: --pretrained plans like its source, "
            "--like follows a plan from scratch.",
            hint="Leave one of them out.",
        )


def _follow(own: Planned, followed: Followed, wanted: ConfigurationName, notify: Notify) -> Planned:
    path = own.folder.plan_like(followed.name)
    how = "as planned before" if path.exists() else "planned now"
    planned = planned_like(own, followed, wanted)
    notify(f"{own.dataset.name} like {followed.name}, {how}: {path}")
    decided = planned.plan.configurations[wanted]
    notify(f"Spacing {_times(decided.spacing_mm)} mm. {decided.reasons.get('spacing', '')}")
    only = planned.plan.replace(configurations={wanted: decided})
    for finding in far_axes(only, own.plan):
        notify(f"Note: {finding}")
    return planned


@dataclass(frozen=True)
class Start:
    """Adapted weights to start from.

    Attributes:
        weights: The weights by parameter name; None if the run's folder already holds them.
        transfer: How each weight was adapted.
        of_source: The part of them that is the source's, for `--keep-source`; None without it, or
            if the run's folder already holds it.
    """

    weights: "dict[str, Tensor] | None"
    transfer: Transfer
    of_source: "dict[str, Tensor] | None" = None


def fit_weights(
    source: Source,
    planned: Planned,
    configuration: Configuration,
    options: "TrainingOptions",
) -> Start:
    """Adapts the source's weights to a run's network.

    Args:
        source: The source of the weights.
        planned: The target dataset and its plan.
        configuration: The configuration that is trained.
        options: The training options; their seed, `heads`, `inflate` and `keep_source` matter.

    Raises:
        ModelError: The source is damaged, or its weights cannot be used.
    """
    import torch

    from autoliver.networks.build import build_network
    from autoliver.transfer.adapt import transfer_weights
    from autoliver.transfer.blend import source_part
    from autoliver.transfer.inflate import default_inflation

    target = _side(planned.plan, configuration, planned.lesion_classes)
    _check_alike(source, planned, configuration)
    generator = torch.Generator().manual_seed(options.seed)
    drawn = build_network(configuration.network, deep_supervision=True, generator=generator)
    sides = (source.read(), _source_side(source, target, options), drawn.state_dict(), target)
    way = options.inflate or default_inflation(configuration.spacing_mm)
    heads = "reset" if source.channels else options.heads
    weights, table = transfer_weights(*sides, heads=heads, inflate=way)
    keeps = options.keep_source is not None
    transfer = Transfer(
        made_from={"source": source.digest, "options": _part_of(options)},
        source=source.fold,
        found=source.where,
        share=table.share(configuration.network, of=ENCODER if source.channels else None),
        mirror_axes=_mirror_axes(source, target.spec.dimension),
        augment="default" if source.info is None else source.info.augment,
        table=table,
        seen=source.seen,
        ancestors=source.ancestors,
        inflate=None if source.spec.dimension == target.spec.dimension else way,
    )
    part = source_part(*sides, heads=heads, inflate=way) if keeps else None
    return Start(weights=weights, transfer=transfer, of_source=part)


def _check_alike(source: Source, planned: Planned, configuration: Configuration) -> None:
    """Refuses a source whose network does not correspond to the one that is trained.

    Raises:
        ModelError: It does not; the hint says how the target gets one that does.
    """
    why = configuration.network.unlike(source.spec)
    if not why:
        return
    follows = source.info is not None and source.spec.dimension == configuration.dimension
    if follows and planned.plan.like is None:
        hint = "Leave out --own-plan: then the network is planned like the source's."
    elif configuration.network.pretrainable is not None:
        hint = "Start from ImageNet weights with --pretrained imagenet, or leave out --pretrained."
    else:
        summary = configuration.network.summary
        hint = f"Name a source whose network is {summary}, or leave out --pretrained."
    raise ModelError(f"--pretrained {source.fold}: {why}", hint=hint)


def keep_start(
    run: RunFolder, start: Start, configuration: Configuration, *, notify: Notify = _log.info
) -> None:
    """Writes the weights that folds start from; transfer.json comes last and marks them valid."""
    from autoliver.networks.checkpoint import save_weights

    if start.weights is not None:
        run.transfer.unlink(missing_ok=True)  # else it would describe other weights for a while
        save_weights(run.start, start.weights, spec=configuration.network)
        if start.of_source is not None:
            save_weights(run.source_part, start.of_source, spec=configuration.network)
        start.transfer.save(run.transfer)
    notify(f"{start.transfer.table.describe(start.transfer.share)}\nEach weight: {run.transfer}")


def kept_start(run: RunFolder, source: Source, options: "TrainingOptions") -> Start | None:
    """Returns the existing start of a run; None unless it fits this source and these options."""
    needed = [run.transfer, run.start]
    needed += [run.source_part] if options.keep_source is not None else []
    if not all(path.exists() for path in needed):
        return None
    kept = Transfer.load(run.transfer, mend=run.mend)
    fits = {"source": source.digest, "options": _part_of(options)}
    return Start(weights=None, transfer=kept) if kept.made_from == fits else None


def forget_start(run: RunFolder) -> None:
    """Removes the weights that an earlier training of the run started from."""
    run.transfer.unlink(missing_ok=True)
    run.start.unlink(missing_ok=True)
    run.source_part.unlink(missing_ok=True)


def _part_of(options: "TrainingOptions") -> str:
    """Returns a digest of the options that the adapted weights depend on."""
    given = [] if options.inflate is None else [options.inflate]
    task = [] if options.task is None else [options.task, *options.lesion_classes]
    return digest([options.seed, options.heads, *given, *task])


def _mirror_axes(source: Source, dimension: int) -> tuple[int, ...]:
    """Returns the patch axes along which the source was flipped; axes are counted from the end."""
    flipped = () if source.info is None else source.info.mirror_axes
    further = dimension - source.spec.dimension
    return tuple(axis + further for axis in flipped if axis + further >= 0)


def _side(plan: Plan, configuration: Configuration, classes: tuple[str, ...]) -> "Side":
    from autoliver.training.tasks import head_labels
    from autoliver.transfer.adapt import Side

    return Side(
        spec=configuration.network,
        channels=configuration.inputs(plan.channel_names),
        labels=head_labels(plan.labels, configuration),
        classes=classes,
        sees_labels=configuration.previous_stage is not None,
    )


def _source_side(source: Source, target: "Side", options: "TrainingOptions") -> "Side":
    from autoliver.transfer.adapt import Side

    if source.info is not None:
        return _side(source.info.plan, source.info.decisions, source.info.lesion_classes)
    if source.channels:
        return Side(spec=source.spec, channels=source.channels, labels=target.labels)
    if options.heads == "map":
        raise ModelError(
            f"{source.where}: the labels of these weights are not known.",
            hint="Start with random heads with --reset-heads, or give the fold's folder with its "
            "model.json.",
        )
    same = source.spec.in_channels == target.spec.in_channels
    channels = tuple(f"channel {i}" for i in range(source.spec.in_channels))
    return Side(
        spec=source.spec,
        channels=target.channels if same else channels,
        labels=target.labels,
        sees_labels=same and target.sees_labels,
    )


def _times(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
