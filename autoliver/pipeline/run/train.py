"""Trains unfinished folds of a run and scores their held-out cases."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from autoliver.datasets.folds import Fold, Folds, Split
from autoliver.errors import AutoliverError, OptionError
from autoliver.machine import Machine
from autoliver.pipeline.data import (
    Planned,
    current_folds,
    plan_command,
    plan_folder,
    planned_configuration,
    preprocess,
    remind,
    to_train,
)
from autoliver.pipeline.region import is_place
from autoliver.pipeline.run.batch import check_batch
from autoliver.pipeline.run.begin import (
    Beginning,
    begins,
    check_length,
    current_length,
    decide_beginning,
    in_use,
    log_memory,
)
from autoliver.pipeline.run.cascade import FirstStage, first_stage, prepare_first_stage
from autoliver.pipeline.run.encoder_source import asks_for_imagenet, check_planned
from autoliver.pipeline.run.fold_queue import join_queue, queue_devices, run_queue
from autoliver.pipeline.run.job import FoldResult, RunJob
from autoliver.pipeline.run.keep import check_held_out
from autoliver.pipeline.run.outcome import with_source_scores
from autoliver.pipeline.run.outside import check_outside, outside_notes
from autoliver.pipeline.run.region import (
    RunRegion,
    find_regions,
    note_seen_by,
    refuse_region,
    region_for,
)
from autoliver.pipeline.run.replay import (
    Replay,
    prepare_replay,
    replay_for,
    replayed_name,
)
from autoliver.pipeline.run.request import Notify, QueuedRequest, TrainRequest
from autoliver.pipeline.run.seen import note_seen_by_source, note_seen_by_translation
from autoliver.pipeline.run.source import Source
from autoliver.pipeline.run.start import (
    find_start,
    fit_weights,
    keep_start,
    kept_start,
)
from autoliver.pipeline.run.task import describe_task, for_task
from autoliver.planning.names import Preset
from autoliver.planning.plan import Configuration, Plan, PlanOptions
from autoliver.preprocessing.normalize import hides_fat
from autoliver.system import in_words
from autoliver.training.augment.choice import parse_augment, spelled_out
from autoliver.training.board import check_tensorboard
from autoliver.training.freezing import freezing
from autoliver.training.objectives.choice import check_classes
from autoliver.training.options import (
    TrainingOptions,
    changed_configuration,
    check_options,
    given_options,
    typed_options,
    why_schedule,
)
from autoliver.training.stop import Stopped
from autoliver.training.tasks import head_labels
from autoliver.values import check_choice, check_flag, check_text, check_whole, counted, flag_of
from autoliver.workspace import Workspace, check_tag

if TYPE_CHECKING:
    import torch

    from autoliver.training.distributed import Group

_log = logging.getLogger(__name__)


class FoldsFailed(AutoliverError):
    """Raised if some of several folds failed.

    Attributes:
        results: The results of the folds that were finished.
    """

    def __init__(self, problem: str, *, hint: str = "", results: Sequence[FoldResult] = ()) -> None:
        super().__init__(problem, hint=hint)
        self.results = list(results)


def train(
    workspace: Workspace,
    name: str | None,
    request: TrainRequest,
    *,
    notify: Notify = _log.info,
    queued: bool = False,
) -> list[FoldResult]:
    """Trains folds and scores their held-out cases; plans and preprocesses the dataset if needed.

    An interrupted fold is resumed; a finished one is left as it is. If one of several folds fails,
    the others are still trained. Processes started by torchrun train each fold together; the first
    one does everything else.

    Args:
        workspace: The workspace.
        name: Path or name of the dataset; None for the only one.
        request: What to train.
        notify: Called with messages for the user before the training starts.
        queued: Whether this process trains a fold for another process, which has already shown the
            messages for the user.

    Returns:
        The results of the requested folds.

    Raises:
        FoldsFailed: Some folds failed; the message names them with their reasons.
        AutoliverError: A stage failed, or the training was stopped by a signal.
    """
    from autoliver.training.distributed import join_group

    machine = request.machine
    with join_group() as group, contextlib.ExitStack() as held:
        if group.size > 1 and (machine.gpus or machine.jobs):
            raise OptionError(
                "--gpus and --jobs train each fold in a process of its own, but torchrun has "
                f"started {group.size} processes that train each fold together.",
                hint="Use one or the other.",
            )
        _check_machine(machine)
        _check_options(request)
        new = group.lead_does(lambda: _plan_first(workspace, name, request))
        job = group.lead_does(lambda: _run_job(workspace, name, request, group, notify, held))
        if group.leads and not (queued or request.twin):
            remind(replace(job.planned, warned=new or job.planned.warned))
        failures = _train_folds(job, request, workspace.root, group)
        failed = {failure.fold for failure in failures}
        done = [fold for fold in job.splits if fold not in failed]
        results = group.lead_does(
            lambda: with_source_scores(
                workspace, [job.result(fold) for fold in done], request, notify=notify
            )
        )
        if failures:
            raise _folds_failed(job.run.name, results, failures)
        return results


def train_queued(path: Path, *, notify: Notify = _log.info) -> list[FoldResult]:
    """Trains the fold that a queue requests in a file.

    Args:
        path: The file of the request.
        notify: As for `train`.

    Raises:
        AutoliverError: As for `train`; or the file is missing or damaged.
    """
    queued = QueuedRequest.load(path)
    join_queue(queued.at_once)
    place = Workspace(Path(queued.workspace))
    return train(place, queued.dataset, queued.request, notify=notify, queued=True)


def _check_machine(machine: Machine) -> None:
    """Refuses missing devices and packages early, before an hour of preprocessing is spent."""
    if machine.tensorboard:
        check_tensorboard()
    queue_devices(machine, most=1)
    if machine.cache == "gpu":
        from autoliver.networks.device import choose_device
        from autoliver.training.patches.cache import check_device

        check_device(machine.cache, choose_device(machine.device))


def _check_options(request: TrainRequest) -> None:
    """Refuses invalid options early; they are compared with those of an existing run later."""
    fields = {**request.changes, "pretrained": None if request.twin else request.pretrained}
    check_options(given_options(fields))
    for name in ("fresh", "own_plan", "twin", "accept_changes"):
        check_flag(flag_of(name), getattr(request, name))
    if request.extend is not None:
        check_whole("--extend", request.extend, least=1)
    check_tag(request.tag)
    if request.preset is not None:
        check_choice("--preset", request.preset, get_args(Preset))
    for option, source in (("--pretrained", request.pretrained), ("--like", request.like)):
        if source is not None:
            check_text(option, source, "the name of a dataset or model")
    if request.encoder_weights is not None:
        check_text("--encoder-weights", request.encoder_weights, "a file or a package")


def _plan_first(workspace: Workspace, name: str | None, request: TrainRequest) -> bool:
    """Plans a dataset that has no plan with the requested preset.

    Returns:
        Whether it was planned now.

    Raises:
        OptionError: It has a plan with another preset, or follows the plan of a source.
        ModelError: Its encoder is to have ImageNet weights, but it has no plan with one.
    """
    if request.preset is None:
        return False
    other = "--like" if request.like else "--pretrained" if request.pretrained else None
    imagenet = asks_for_imagenet(request.pretrained or "")
    if other is not None and not (request.own_plan or imagenet):
        raise OptionError(
            f"--preset {request.preset} and {other} contradict each other: the network is that of "
            "the source.",
            hint="Leave --preset out.",
        )
    folder, dataset = to_train(workspace, name)
    if imagenet:
        check_planned(folder, dataset)
    if not folder.plan.exists():
        options = PlanOptions(preset=request.preset)
        plan_folder(folder, dataset, options, machine=request.machine)
        return True
    preset = Plan.load(folder.plan, mend=plan_command(folder, dataset)).preset
    if preset != request.preset:
        again = plan_command(folder, dataset, ["--preset", request.preset])
        raise OptionError(
            f"--preset {request.preset}: {dataset.name} is already planned with the preset "
            f"{preset}, and its runs belong to that plan.",
            hint=f"Leave --preset out, or plan again with: {again}",
        )
    return False


def _check_options_of_data(
    options: TrainingOptions,
    splits: Mapping[Fold, Split],
    planned: Planned,
    replay: Replay | None,
) -> None:
    """Refuses options that the folds cannot be trained with."""
    if options.keep_source == "auto":
        for fold, split in splits.items():
            check_held_out(fold, len(split.validation))
    if options.outside_negative is not None:
        check_outside(options.outside_negative, planned, replay)


def _begin_from(
    source: Source | None,
    begun: Beginning,
    planned: Planned,
    configuration: Configuration,
    splits: Mapping[Fold, Split],
    notify: Notify,
) -> None:
    """Writes how a run begins, and the weights it starts from if it has a source."""
    if source is None:
        begun.write()
        return
    start = None if begun.new else kept_start(begun.run, source, begun.options)
    start = start or fit_weights(source, planned, configuration, begun.options)
    begun.write()
    note_seen_by_source(source, start.transfer, planned, splits, notify)
    keep_start(begun.run, start, configuration, notify=notify)


def _run_job(
    workspace: Workspace,
    name: str | None,
    request: TrainRequest,
    group: "Group",
    notify: Notify,
    held: contextlib.ExitStack,
) -> RunJob:
    """Prepares a run for training: plans, writes the options and preprocesses.

    What shows other processes that the run is in use stays in `held`.

    Raises:
        AutoliverError: The run cannot be trained as requested.
    """
    planned, source = find_start(workspace, name, request, notify=notify)
    configuration = planned_configuration(planned, request.configuration)
    stage = _stage_of(planned, configuration, request)
    folds = current_folds(planned.folder, planned.dataset)
    splits = _splits(planned, folds, request)
    run = planned.run(request.configuration, tag=request.tag)
    length = current_length(run) if request.extend is not None else None
    held.enter_context(in_use(run, splits))
    cases = max(len(split.train) for split in splits.values())
    asked = request.replace(changes=_changes(workspace, request, source))
    replay = replay_for(workspace, planned, asked, run, list(splits))
    region = region_for(workspace, planned, configuration, asked, run, list(splits))
    made_from = _made_from(planned, folds, stage, source, replay, region)
    with begins(run):
        check_length(run, length, asked)
        begun = decide_beginning(run, made_from, asked, list(splits), cases=cases)
        options = begun.options
        _check_options_of_data(options, splits, planned, replay)
        whole, planned = planned, for_task(planned, request.configuration, options)
        configuration = planned.plan.configurations[request.configuration]
        configuration = changed_configuration(configuration, options)
        check_classes(options, head_labels(planned.plan.labels, configuration))
        freezing(options, configuration.network)
        group.part(configuration.batch_size)  # raises if there are more processes than samples
        check_batch(begun, configuration, request, list(splits), group)
        _begin_from(source, begun, planned, configuration, splits, notify)
    if options.patch or options.batch_size:
        log_memory(configuration, planned.plan)
    if begun.new and not request.twin:
        _notify(notify, planned, options, cases, replay, region)
    stores = preprocess(whole, [request.configuration], machine=request.machine)
    job = RunJob(
        planned=planned,
        name=request.configuration,
        configuration=configuration,
        store=stores[request.configuration],
        run=run,
        previous=None,
        previous_run=None,
        pretrained=source is not None,
        options=options,
        splits=splits,
        machine=request.machine,
        replay=replay,
    )
    if replay is not None:
        note_seen_by_translation(replay, planned, splits, notify)
        names = {case.name for fold in splits for case in job.replayed(fold)}
        prepare_replay(workspace, replay, names, machine=request.machine)
    if region is not None:
        return _on_region(job, region, notify)
    return job if stage is None else _cascade(job, stage)


def _stage_of(
    planned: Planned, configuration: Configuration, request: TrainRequest
) -> FirstStage | None:
    """The first stage of a cascade; None for other configurations."""
    if configuration.previous_stage is None:
        return None
    stage = first_stage(planned, configuration.previous_stage, request)
    refuse_region(stage)
    return stage


def _on_region(job: RunJob, region: RunRegion, notify: Notify) -> RunJob:
    """Finds the region of each case, and returns the job that draws its patches there."""
    train = {name for split in job.splits.values() for name in split.train}
    names = train | {name for split in job.splits.values() for name in split.validation}
    boxes = find_regions(
        region, job.planned, sorted(names), sorted(train), machine=job.machine, notify=notify
    )
    return replace(job, region=region, boxes=boxes)


def _cascade(job: RunJob, stage: FirstStage) -> RunJob:
    """Prepares what the first stage of a cascade found, and returns the job that uses it."""
    previous = prepare_first_stage(
        job.planned,
        stage,
        store=job.store,
        folder=job.run.path / "previous",
        patch_shape=job.configuration.patch_shape,
        machine=job.machine,
    )
    return replace(job, previous=previous, previous_run=stage.run.path.name)


def _splits(planned: Planned, folds: Folds, request: TrainRequest) -> dict[Fold, Split]:
    """Returns the cases of each requested fold."""
    wanted = request.folds or tuple(range(len(folds.splits))) or ("all",)
    cases = [case.name for case in planned.dataset.labelled]
    return {fold: folds.split(fold, cases) for fold in wanted}


def _made_from(
    planned: Planned,
    folds: Folds,
    stage: FirstStage | None,
    source: Source | None,
    replay: Replay | None,
    region: RunRegion | None,
) -> dict[str, str]:
    """Returns digests of the inputs of a run, besides its options."""
    return {
        "plan": planned.plan.digest(),
        "dataset": planned.dataset.digest(),
        "folds": folds.digest(),
        **({"first stage": stage.digest} if stage is not None else {}),
        **({"source": source.digest} if source is not None else {}),
        **(replay.made_from if replay is not None else {}),
        **(region.made_from if region is not None else {}),
    }


def _notify(
    notify: Notify,
    planned: Planned,
    options: TrainingOptions,
    cases: int,
    replay: Replay | None,
    region: RunRegion | None,
) -> None:
    """Tells the user what decides the training, and of a window unsuited to MR."""
    notify(why_schedule(options, cases))
    if options.task is not None:
        notify(describe_task(planned, options.task))
    if options.outside_negative is not None:
        for note in outside_notes(options.outside_negative, planned, replay):
            notify(note)
    if parse_augment(options.augment) and hides_fat(planned.plan):
        notify(
            "Note: the plan's CT window makes fat as dark as air, which MR does not. Plan with "
            "--window -150 250 for a model that is meant to work on MR as well."
        )
    if replay is not None:
        notify(replay.describe(planned.plan, options.replay_share))
    if region is not None:
        notify(region.describe())
        note_seen_by(region, planned, notify)


def _changes(workspace: Workspace, request: TrainRequest, source: Source | None) -> dict[str, Any]:
    """Returns the options that were given, and always the source of the weights."""
    changes = typed_options(request.changes)
    changes["pretrained"] = None if source is None else source.fold
    if changes.get("augment") is not None:
        changes["augment"] = spelled_out(changes["augment"])
    if changes.get("replay") is not None:
        changes["replay"] = replayed_name(workspace, changes["replay"])
    if changes.get("roi_from") is not None and is_place(changes["roi_from"]):
        changes["roi_from"] = str(Path(changes["roi_from"]).resolve())
    return changes


def _folds_failed(
    run: str, results: Sequence[FoldResult], failures: Sequence[FoldResult]
) -> FoldsFailed:
    """Makes the error that names the failed folds, grouped by reason."""
    alike: dict[str, list[str]] = {}
    for failure in failures:
        alike.setdefault(failure.problem, []).append(str(failure.fold))
    reasons = [
        f"Fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}: {problem}"
        for problem, folds in alike.items()
    ]
    hints = dict.fromkeys(failure.hint for failure in failures if failure.hint)
    return FoldsFailed(
        f"{run}: {len(failures)} of {counted(len(failures) + len(results), 'fold')} failed. "
        + " ".join(reasons),
        hint="\n".join([*hints, "The same command again continues with the unfinished folds."]),
        results=results,
    )


def _train_folds(
    job: RunJob, request: TrainRequest, workspace: Path, group: "Group"
) -> list[FoldResult]:
    """Trains and scores unfinished folds, in a queue of processes or one by one in this process.

    Returns:
        The results of the folds that failed.
    """
    todo: list[Fold] = group.lead_does(lambda: [f for f in job.splits if not job.finished(f)])
    devices = queue_devices(request.machine, most=len(todo))
    if len(todo) > 1 and devices:
        return run_queue(job, todo, devices, request=request, workspace=workspace)
    if len(request.machine.gpus) > 1 and todo:
        _log.warning("A single fold trains on one GPU: only %s is used.", devices[0])
    device = _device(devices[0] if devices else request.machine.device, group)
    failures = []
    for fold in todo:
        try:
            with in_words():
                job.run_to_end(fold, device, group)
        except Stopped:
            raise
        except AutoliverError as error:
            if len(job.splits) == 1 or group.size > 1:
                raise
            failures.append(job.failure(fold, error))
            _log.warning("Fold %s failed: %s", fold, error.problem)
    return failures


def _device(name: str, group: "Group") -> "torch.device":
    from autoliver.networks.device import choose_device, own_device

    device = choose_device(name) if group.size == 1 else own_device(name, group.local_rank)
    group.check_equal("the device", device.type)
    return device
