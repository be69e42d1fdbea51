"""What a training begins with: the plan it follows, and weights made to fit from a source."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from autoliver.errors import ModelError, OptionError
from autoliver.pipeline.data import Planned, planned_dataset
from autoliver.pipeline.like import plan_to_follow, planned_like
from autoliver.pipeline.source import Source, find_source, safe
from autoliver.planning.plan import Configuration, ConfigurationName, Plan
from autoliver.transfer.plan import far_axes
from autoliver.transfer.table import Transfer
from autoliver.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.pipeline.training import TrainRequest
    from autoliver.training.options import TrainingOptions
    from autoliver.transfer.adapt import Side

Tell = Callable[[str], None]

_log = logging.getLogger(__name__)


def find_start(
    workspace: Workspace, name: str | None, request: "TrainRequest"
) -> tuple[Planned, Source | None]:
    """The dataset with the plan to train with, made where it is missing, and the source if any.

    Args:
        workspace: Where names are looked up.
        name: Of the dataset.
        request: Its `pretrained`, `like` and `own_plan`; `tell` hears what was taken.

    Raises:
        AutoliverError: There is no such source, or it cannot serve the dataset.
    """
    own = planned_dataset(workspace, name, limits=request.limits)
    _check_together(request)
    wanted = request.configuration
    if request.like is not None:
        short, plan = plan_to_follow(workspace, request.like, limits=request.limits)
        return _follow(own, short, plan, wanted, request.tell), None
    if request.pretrained is None:
        return own, None
    target = safe(own.dataset.short_name)
    source = find_source(workspace, request.pretrained, wanted=wanted, target=target)
    taken = "Planned like" if request.twin else "Begins with"
    request.tell(f"{taken} {source.fold}: {source.where}.")
    theirs = source.plan_for(wanted)
    if theirs is None or request.own_plan:
        planned = replace(own, source=source.name)
    else:
        planned = _follow(own, source.name, theirs, wanted, request.tell)
    return planned, None if request.twin else source


def _check_together(request: "TrainRequest") -> None:
    """Refuses a start that contradicts itself.

    Raises:
        OptionError: Saying what to leave out.
    """
    if request.like is None:
        if request.own_plan and request.pretrained is None:
            raise OptionError("--own-plan goes with --pretrained.", hint="Leave it out.")
        return
    other = "--pretrained" if request.pretrained else "--own-plan" if request.own_plan else None
    if other is not None:
        raise OptionError(
            f"--like and {other} contradict each other: --pretrained plans like its source, "
            "--like follows a plan from scratch.",
            hint="Leave one of them out.",
        )


def _follow(own: Planned, short: str, plan: Plan, wanted: ConfigurationName, tell: Tell) -> Planned:
    there = own.folder.plan_like(short).exists()
    planned = planned_like(own, short, plan, wanted)
    how = "as planned before" if there else "planned now"
    tell(f"{own.dataset.name} like {short}, {how}: {planned.folder.plan_like(short)}")
    decided = planned.plan.configurations[wanted]
    tell(f"Spacing {_times(decided.spacing_mm)} mm. {decided.reasons.get('spacing', '')}")
    only = planned.plan.replace(configurations={wanted: decided})
    for finding in far_axes(only, own.plan):
        tell(f"Note: {finding}")
    return planned


def begin_weights(
    run: RunFolder,
    source: Source,
    planned: Planned,
    configuration: Configuration,
    options: "TrainingOptions",
    *,
    tell: Tell = _log.info,
) -> None:
    """Makes the source's weights fit and keeps them in the run, once for all of its folds.

    The weights lie in `run.start`, what was done in `run.transfer`, which is written last.

    Raises:
        ModelError: The source is damaged, or its weights cannot be used.
    """
    import torch

    from autoliver.networks.build import build_network
    from autoliver.networks.checkpoint import save_weights
    from autoliver.transfer.adapt import transfer_weights

    made_from = {"source": source.digest, "options": options.digest()}
    if run.transfer.exists() and run.start.exists():
        kept = Transfer.load(run.transfer)
        if kept.made_from == made_from:
            tell(_told(kept, run))
            return
    target = _side(planned.plan, configuration)
    generator = torch.Generator().manual_seed(options.seed)
    drawn = build_network(configuration.network, deep_supervision=True, generator=generator)
    weights, table = transfer_weights(
        source.read(),
        _source_side(source, target, options),
        drawn.state_dict(),
        target,
        heads=options.heads,
    )
    save_weights(run.start, weights, spec=configuration.network)
    transfer = Transfer(
        made_from=made_from,
        source=source.fold,
        found=source.where,
        share=table.share,
        mirror_axes=() if source.info is None else source.info.mirror_axes,
        table=table,
    )
    transfer.save(run.transfer)
    tell(_told(transfer, run))


def _told(transfer: Transfer, run: RunFolder) -> str:
    return f"{transfer.table.describe()}\nEach weight: {run.transfer}"


def _side(plan: Plan, configuration: Configuration) -> "Side":
    from autoliver.transfer.adapt import Side

    found: tuple[str, ...] = ()
    if configuration.previous_stage is not None:  # its label map, a channel per value
        by_value = {v: name for name, values in plan.labels.foreground.items() for v in values}
        found = tuple(f"found {by_value[v]}" for v in plan.labels.foreground_values)
    return Side(
        spec=configuration.network, channels=(*plan.channel_names, *found), labels=plan.labels
    )


def _source_side(source: Source, target: "Side", options: "TrainingOptions") -> "Side":
    from autoliver.transfer.adapt import Side

    if source.info is not None:
        return _side(source.info.plan, source.info.decisions)
    if options.heads == "map":
        raise ModelError(
            f"{source.where}: nothing says what its labels are.",
            hint="Draw the heads anew with --reset-heads, or give the fold's folder with its "
            "model.json.",
        )
    channels = tuple(f"channel {i}" for i in range(source.spec.in_channels))
    if len(channels) == len(target.channels):
        channels = target.channels
    return Side(spec=source.spec, channels=channels, labels=target.labels)


def _times(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)
