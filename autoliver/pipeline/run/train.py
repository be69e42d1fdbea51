"""Training: folds that are not finished go on, and their held-out cases are scored."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from autoliver.datasets.folds import Fold, Folds, Split
from autoliver.errors import AutoliverError, OptionError
from autoliver.networks.device import check_device_name
from autoliver.parallel import cores
from autoliver.pipeline.data import (
    Planned,
    current_folds,
    planned_configuration,
    preprocess,
)
from autoliver.pipeline.run.begin import begin_run, log_memory
from autoliver.pipeline.run.cascade import FirstStage, first_stage, prepare_first_stage
from autoliver.pipeline.run.fold_queue import Failure, QueuedFold, queue_devices, run_queue
from autoliver.pipeline.run.job import FoldJob, FoldResult
from autoliver.pipeline.run.request import Tell, TrainRequest
from autoliver.pipeline.run.source import Source
from autoliver.pipeline.run.start import (
    Start,
    find_start,
    fit_weights,
    keep_start,
    kept_start,
    note_seen,
)
from autoliver.planning.plan import Configuration, Plan
from autoliver.preprocessing.normalize import hides_fat
from autoliver.training.augment.choice import parse_augment
from autoliver.training.board import check_tensorboard
from autoliver.training.freezing import freezing
from autoliver.training.options import (
    TrainingOptions,
    changed_configuration,
    check_options,
    given_options,
    why_schedule,
)
from autoliver.training.stop import Stopped
from autoliver.values import check_flag, check_text, check_whole, flag_of
from autoliver.workspace import Workspace, check_tag

if TYPE_CHECKING:
    import torch

    from autoliver.training.distributed import Group

_log = logging.getLogger(__name__)


class FoldsFailed(AutoliverError):
    """Some of several folds were not finished; `results` are those that were."""

    def __init__(self, problem: str, *, hint: str = "", results: Sequence[FoldResult] = ()) -> None:
        super().__init__(problem, hint=hint)
        self.results = list(results)


def train(workspace: Workspace, name: str | None, request: TrainRequest) -> list[FoldResult]:
    """Plans and preprocesses what is missing, trains the folds, scores their held-out cases.

    A fold that was stopped goes on where it was; a finished one is left as it is. One of several
    that fails does not keep the others from being trained. Processes that torchrun has started
    train each fold together; the first does all the rest.

    Raises:
        FoldsFailed: Naming the folds that failed, with their reasons.
        AutoliverError: See the stages; also when the training was stopped by SIGTERM.
    """
    from autoliver.training.distributed import join_group

    with join_group() as group:
        if group.size > 1 and (request.gpus or request.jobs):
            raise OptionError(
                "--gpus and --jobs give folds to processes of their own; torchrun has started "
                f"{group.size} that train each fold together.",
                hint="Use one or the other.",
            )
        _check_machine(request)
        _check_options(request)
        jobs = group.lead_does(lambda: _fold_jobs(workspace, name, request, group))
        failures = _train_folds(jobs, workspace, request, group)
        failed = {failure.fold for failure in failures}
        done = [job for job in jobs if job.fold not in failed]
        results = group.lead_does(lambda: [job.result() for job in done])
        if failures:
            raise _folds_failed(jobs[0].run.name, results, failures)
        return results


def _check_machine(request: TrainRequest) -> None:
    """Before anything is made: a GPU that is not there is not worth an hour of preprocessing."""
    from autoliver.training.patches.cache import check_cache, check_device

    check_device_name(request.device)
    check_cache(request.cache)
    if request.tensorboard:
        check_tensorboard()
    queue_devices(request.gpus, request.jobs, device=request.device)
    if request.cache == "gpu":
        from autoliver.networks.device import choose_device

        check_device(request.cache, choose_device(request.device))


def _check_options(request: TrainRequest) -> None:
    """Nor is a word that `train` does not know; what was begun with others is compared later."""
    fields = {**request.changes, "pretrained": None if request.twin else request.pretrained}
    check_options(given_options(fields))
    for name in ("fresh", "own_plan", "twin", "tensorboard"):
        check_flag(flag_of(name), getattr(request, name))
    if request.extend is not None:
        check_whole("--extend", request.extend, least=1)
    check_tag(request.tag)
    for option, source in (("--pretrained", request.pretrained), ("--like", request.like)):
        if source is not None:
            check_text(option, source, "the name of a dataset or model")


def _fold_jobs(
    workspace: Workspace, name: str | None, request: TrainRequest, group: "Group"
) -> list[FoldJob]:
    """The folds to train, planned and preprocessed; refuses what cannot be trained."""
    planned, source = find_start(workspace, name, request)
    configuration = planned_configuration(planned, request.configuration)
    stage = None
    if configuration.previous_stage is not None:
        stage = first_stage(planned, configuration.previous_stage, tag=request.tag)
    folds = current_folds(planned.folder, planned.dataset)
    splits = _splits(planned, folds, request)
    run = planned.run(request.configuration, tag=request.tag)
    made_from = _made_from(planned, folds, stage, source)
    fits = partial(_fitting, source, planned, configuration)
    most = max(len(split.train) for split in splits.values())
    asked = replace(request, changes=_changes(request, source))
    options, start = begin_run(run, made_from, asked, list(splits), check=fits, cases=most)
    configuration = changed_configuration(configuration, options)
    group.part(configuration.batch_size)  # refuses more processes than samples
    if source is not None:
        note_seen(source, planned, splits, tell=request.tell)
        start = start or kept_start(run, source, options)
        start = start or fit_weights(source, planned, configuration, options)
        keep_start(run, start, configuration, tell=request.tell)
    _tell(request.tell, planned.plan, configuration, options, most)
    stores = preprocess(planned, [request.configuration], limits=request.limits)
    store, previous = stores[request.configuration], None
    if stage is not None:
        previous = prepare_first_stage(
            planned,
            stage,
            store=store,
            folder=run.path / "previous",
            patch_shape=configuration.patch_shape,
            limits=request.limits,
        )
    return [
        FoldJob(
            planned=planned,
            name=request.configuration,
            configuration=configuration,
            store=store,
            run=run,
            previous=previous,
            previous_run=None if stage is None else stage.run.path.name,
            pretrained=source is not None,
            options=options,
            fold=fold,
            split=split,
            cache=request.cache,
            tensorboard=request.tensorboard,
            limits=request.limits,
        )
        for fold, split in splits.items()
    ]


def _splits(planned: Planned, folds: Folds, request: TrainRequest) -> dict[Fold, Split]:
    """The cases of each fold that is wanted."""
    wanted = request.folds or tuple(range(len(folds.splits))) or ("all",)
    cases = [case.name for case in planned.dataset.labelled]
    return {fold: folds.split(fold, cases) for fold in wanted}


def _made_from(
    planned: Planned, folds: Folds, stage: FirstStage | None, source: Source | None
) -> dict[str, str]:
    """What a run is made from, besides its options."""
    return {
        "plan": planned.plan.digest(),
        "dataset": planned.dataset.digest(),
        "folds": folds.digest(),
        **({"first stage": stage.digest} if stage is not None else {}),
        **({"source": source.digest} if source is not None else {}),
    }


def _tell(
    tell: Tell, plan: Plan, configuration: Configuration, options: TrainingOptions, cases: int
) -> None:
    """What a person should know of the options before it begins."""
    if options.patch or options.batch_size:
        log_memory(configuration, plan)
    tell(why_schedule(options, cases))
    if parse_augment(options.augment) and hides_fat(plan):
        tell(
            "Note: the plan's CT window makes fat as dark as air, which MR does not. Plan with "
            "--window -150 250 for a model that shall work there, too."
        )


def _fitting(
    source: Source | None,
    planned: Planned,
    configuration: Configuration,
    options: TrainingOptions,
) -> Start | None:
    """What the options begin with; refuses those that cannot be."""
    changed = changed_configuration(configuration, options)
    freezing(options, changed.network)
    return None if source is None else fit_weights(source, planned, changed, options)


def _changes(request: TrainRequest, source: Source | None) -> dict[str, Any]:
    """The options that were given; what it begins with is one of them, given or not."""
    return {**request.changes, "pretrained": None if source is None else source.fold}


def _folds_failed(
    run: str, results: Sequence[FoldResult], failures: Sequence[Failure]
) -> FoldsFailed:
    """Names the folds that failed; those with the same reason together."""
    alike: dict[str, list[str]] = {}
    for failure in failures:
        alike.setdefault(failure.problem, []).append(str(failure.fold))
    reasons = [
        f"Fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}: {problem}"
        for problem, folds in alike.items()
    ]
    hints = dict.fromkeys(failure.hint for failure in failures if failure.hint)
    return FoldsFailed(
        f"{run}: {len(failures)} of {len(failures) + len(results)} folds failed. "
        + " ".join(reasons),
        hint=" ".join([*hints, "The same command again goes on with what is not finished."]),
        results=results,
    )


def _train_folds(
    jobs: Sequence[FoldJob], workspace: Workspace, request: TrainRequest, group: "Group"
) -> list[Failure]:
    """Trains and scores what is not finished: in a queue of processes, or one by one in this."""
    todo = group.lead_does(lambda: [job for job in jobs if not job.finished])
    devices = queue_devices(request.gpus, request.jobs, device=request.device)[: len(todo)]
    if len(todo) > 1 and devices:
        planned, options, run = todo[0].planned, todo[0].options, todo[0].run
        command = _command(workspace, planned, request, at_once=len(devices))
        queued = [
            QueuedFold(fold=j.fold, folder=j.folder, command=(*command, "--fold", str(j.fold)))
            for j in todo
        ]
        epochs = options.epochs + sum(options.extensions)
        return run_queue(queued, devices, title=run.name, epochs=epochs)
    if len(request.gpus) > 1 and todo:
        _log.warning("One fold trains on one GPU: %s is used alone.", devices[0])
    device = _device(devices[0] if devices else request.device, group)
    failures = []
    for job in todo:
        try:
            job.run_to_end(device, group)
        except Stopped:
            raise
        except AutoliverError as error:
            if len(jobs) == 1 or group.size > 1:
                raise
            # Not the error itself: its traceback would keep the fold's tensors.
            failures.append(Failure(fold=job.fold, problem=error.problem, hint=error.hint))
            _log.warning("Fold %s failed: %s", job.fold, error.problem)
    return failures


def _device(name: str, group: "Group") -> "torch.device":
    from autoliver.networks.device import choose_device, own_device

    device = choose_device(name) if group.size == 1 else own_device(name, group.local_rank)
    group.check_equal("the device", device.type)
    return device


def _command(
    workspace: Workspace, planned: Planned, request: TrainRequest, *, at_once: int
) -> tuple[str, ...]:
    """The command that goes on with one fold, but for its number and device.

    What decides the result is in options.json; the machine is shared out.
    """
    from autoliver.training.patches.loader import loader_workers

    limits = request.limits
    workers = limits.workers or min(loader_workers(limits), max(1, cores() // at_once))
    memory_gb = max(0.1, limits.budget_gb / at_once)
    return (
        *("train", planned.dataset.folder, request.configuration),
        *_start_words(request),
        *((f"--tag={request.tag}",) if request.tag else ()),
        *("--cache", request.cache, "--workers", str(workers)),
        *("--memory-gb", f"{memory_gb:.2f}"),
        *(("--tensorboard",) if request.tensorboard else ()),
        *("--workspace", str(workspace.root.resolve())),
    )


def _start_words(request: TrainRequest) -> tuple[str, ...]:
    return (
        *(("--pretrained", request.pretrained) if request.pretrained else ()),
        *(("--like", request.like) if request.like else ()),
        *(("--own-plan",) if request.own_plan else ()),
        *(("--twin",) if request.twin else ()),
    )
