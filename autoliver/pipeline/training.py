"""Training: folds that are not finished go on, and their held-out cases are scored."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.errors import AutoliverError
from autoliver.parallel import NO_LIMITS, Limits, cores
from autoliver.pipeline.begin import begin_run, is_trained, log_memory
from autoliver.pipeline.cascade import first_stage, prepare_first_stage
from autoliver.pipeline.data import (
    Planned,
    current_folds,
    planned_configuration,
    planned_dataset,
    preprocess,
)
from autoliver.pipeline.evaluation import score_held_out
from autoliver.pipeline.fold_queue import Failure, QueuedFold, queue_devices, run_queue
from autoliver.pipeline.prediction import PredictRequest
from autoliver.planning.fit import memory_gb
from autoliver.planning.plan import Configuration, ConfigurationName
from autoliver.preprocessing.previous import with_previous
from autoliver.preprocessing.store import StoredCase, read_case
from autoliver.training.board import check_tensorboard
from autoliver.training.folds import Fold, Split
from autoliver.training.options import TrainingOptions, changed_configuration
from autoliver.training.stop import Stopped, stop_on_sigterm
from autoliver.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    import torch

    from autoliver.evaluation.results import Scores
    from autoliver.training.cache import CacheChoice

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What `train` was asked for.

    Attributes:
        configuration: Which configuration.
        folds: Which folds; empty: all of the cross-validation.
        changes: Training options that were given (the others are as begun, or default).
        tag: Distinguishes runs of one configuration.
        fresh: Start over where something was begun.
        extend: Epochs to add to finished folds.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        gpus: GPUs that take folds as they become free; several folds only.
        jobs: Without them: how many folds are trained at a time, in as many processes.
        cache: Where cases lie while they are trained on: "auto", "gpu", "ram", "disk".
        tensorboard: Whether each epoch is written for TensorBoard, too.
        limits: For planning, preprocessing, the cache and prediction.
    """

    configuration: ConfigurationName
    folds: tuple[Fold, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    tag: str | None = None
    fresh: bool = False
    extend: int | None = None
    device: str = "auto"
    gpus: tuple[int, ...] = ()
    jobs: int | None = None
    cache: "CacheChoice" = "auto"
    tensorboard: bool = False
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """A finished fold and the scores of its held-out cases (None for fold `all`)."""

    fold: Fold
    folder: Path
    scores: "Scores | None"


class FoldsFailed(AutoliverError):
    """Some of several folds were not finished; `results` are those that were."""

    def __init__(self, problem: str, *, hint: str = "", results: Sequence[FoldResult] = ()) -> None:
        super().__init__(problem, hint=hint)
        self.results = list(results)


def train(workspace: Workspace, name: str | None, request: TrainRequest) -> list[FoldResult]:
    """Plans and preprocesses what is missing, trains the folds, scores their held-out cases.

    A fold that was stopped goes on where it was; a finished one is left as it is. One of several
    that fails does not keep the others from being trained.

    Raises:
        FoldsFailed: Naming the folds that failed, with their reasons.
        AutoliverError: See the stages; also when the training was stopped by SIGTERM.
    """
    _check_machine(request)
    planned = planned_dataset(workspace, name, limits=request.limits)
    configuration = planned_configuration(planned, request.configuration)
    stage = None
    if configuration.previous_stage is not None:
        stage = first_stage(planned, configuration.previous_stage, tag=request.tag)
    cases = [case.name for case in planned.dataset.labelled]
    folds = current_folds(planned.folder, planned.dataset)
    wanted = request.folds or tuple(range(len(folds.splits))) or ("all",)
    splits = {fold: folds.split(fold, cases) for fold in wanted}
    run = planned.folder.run(request.configuration, tag=request.tag)
    made_from = {
        "plan": planned.plan.digest(),
        "dataset": planned.dataset.digest(),
        "folds": folds.digest(),
    }
    if stage is not None:
        made_from["first stage"] = stage.digest
    options = begin_run(run, made_from, request, wanted, configuration=configuration)
    configuration = changed_configuration(configuration, options)
    if options.patch or options.batch_size:
        log_memory(configuration, planned.plan)
    store = preprocess(planned, [request.configuration], limits=request.limits)
    previous = None
    if stage is not None:
        previous = prepare_first_stage(
            planned,
            stage,
            store=store[request.configuration],
            folder=run.path / "previous",
            patch_shape=configuration.patch_shape,
            limits=request.limits,
        )
    jobs = [
        _FoldJob(
            planned=planned,
            name=request.configuration,
            configuration=configuration,
            store=store[request.configuration],
            run=run,
            previous=previous,
            previous_run=None if stage is None else stage.run.path.name,
            options=options,
            fold=fold,
            split=split,
            cache=request.cache,
            tensorboard=request.tensorboard,
            limits=request.limits,
        )
        for fold, split in splits.items()
    ]
    failures = _train_folds(jobs, workspace, request)
    failed = {failure.fold for failure in failures}
    results = [job.result() for job in jobs if job.fold not in failed]
    if failures:
        raise _folds_failed(run.name, results, failures)
    return results


def _check_machine(request: TrainRequest) -> None:
    """Before anything is made: a GPU that is not there is not worth an hour of preprocessing."""
    queue_devices(request.gpus, request.jobs, device=request.device)
    if request.cache == "gpu":
        from autoliver.networks.device import choose_device
        from autoliver.training.cache import check_device

        check_device(request.cache, choose_device(request.device))
    if request.tensorboard:
        check_tensorboard()


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
    jobs: Sequence["_FoldJob"], workspace: Workspace, request: TrainRequest
) -> list[Failure]:
    """Trains and scores what is not finished: in a queue of processes, or one by one in this."""
    todo = [job for job in jobs if not job.finished]
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
    from autoliver.networks.device import choose_device

    if len(request.gpus) > 1 and todo:
        _log.warning("One fold trains on one GPU: %s is used alone.", devices[0])
    device = choose_device(devices[0] if devices else request.device)
    failures = []
    for job in todo:
        try:
            job.run_to_end(device)
        except Stopped:
            raise
        except AutoliverError as error:
            if len(jobs) == 1:
                raise
            # Not the error itself: its traceback would keep the fold's tensors.
            failures.append(Failure(fold=job.fold, problem=error.problem, hint=error.hint))
            _log.warning("Fold %s failed: %s", job.fold, error.problem)
    return failures


def _command(
    workspace: Workspace, planned: Planned, request: TrainRequest, *, at_once: int
) -> tuple[str, ...]:
    """The command that goes on with one fold, but for its number and device.

    What decides the result is in options.json; the machine is shared out.
    """
    from autoliver.training.loader import loader_workers

    limits = request.limits
    workers = limits.workers or min(loader_workers(limits), max(1, cores() // at_once))
    memory_gb = max(0.1, limits.budget_gb / at_once)
    return (
        *("train", planned.dataset.folder, request.configuration),
        *((f"--tag={request.tag}",) if request.tag else ()),
        *("--cache", request.cache, "--workers", str(workers)),
        *("--memory-gb", f"{memory_gb:.2f}"),
        *(("--tensorboard",) if request.tensorboard else ()),
        *("--workspace", str(workspace.root.resolve())),
    )


@dataclass(frozen=True, kw_only=True)
class _FoldJob:
    """One fold: train, write the model, score the held-out cases."""

    planned: Planned
    name: ConfigurationName
    configuration: Configuration
    store: Path
    run: RunFolder
    previous: Path | None
    previous_run: str | None
    options: TrainingOptions
    fold: Fold
    split: Split
    cache: "CacheChoice"
    tensorboard: bool
    limits: Limits

    @property
    def folder(self) -> Path:
        return self.run.fold(self.fold)

    @property
    def trained(self) -> bool:
        return is_trained(self.folder, self.options)

    @property
    def finished(self) -> bool:
        return self.trained and (not self.split.validation or self._scores_path.exists())

    @property
    def _scores_path(self) -> Path:
        return self.folder / "validation" / "scores.json"

    def result(self) -> FoldResult:
        from autoliver.evaluation.results import Scores

        scores = Scores.load(self._scores_path) if self.split.validation else None
        return FoldResult(fold=self.fold, folder=self.folder, scores=scores)

    def run_to_end(self, device: "torch.device") -> None:
        if not self.trained:
            self._train(device)
        if self.split.validation:
            self._validate(device)

    def _train(self, device: "torch.device") -> None:
        from autoliver.inference.model import FoldModel, save_fold
        from autoliver.training.cache import CacheOptions
        from autoliver.training.loop import train_fold
        from autoliver.training.task import FoldTask

        plan = self.planned.plan
        task = FoldTask(
            configuration=self.configuration,
            labels=plan.labels,
            train=[self._case(name) for name in self.split.train],
            validation=[self._case(name) for name in self.split.validation],
            options=self.options,
            tensorboard=self.tensorboard,
            folder=self.folder,
            device=device,
            title=f"{self.planned.dataset.short_name} {self.name} fold {self.fold}",
            cache=CacheOptions(
                kind=self.cache,
                limits=self.limits,
                network_gb=max(plan.vram_gb, memory_gb(self.configuration, plan.preset)),
            ),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with stop_on_sigterm() as stop:
            trained = train_fold(task, stop=stop)
        if not trained.finished:
            raise Stopped(
                f"{task.title}: stopped by SIGTERM after {len(trained.logs)} epochs; "
                "the state is saved.",
                hint="Run the same command again to go on.",
            )
        # What an extended fold has found before is not what it finds now.
        shutil.rmtree(self.folder / "validation", ignore_errors=True)
        save_fold(
            self.folder,
            trained.weights,
            FoldModel(
                made_from={"plan": plan.digest(), "options": self.options.digest()},
                plan=plan.replace(configurations={self.name: self.configuration}),
                configuration=self.name,
                fold=str(self.fold),
                cases=self.split.train,
                epochs=len(trained.logs),
                mirror_axes=trained.mirror_axes,
                weights_sha256="",
                previous_run=self.previous_run,
                extended=len(self.options.extensions),
            ),
        )

    def _case(self, name: str) -> StoredCase:
        case = read_case(self.store, name)
        return case if self.previous is None else with_previous(case, self.previous)

    def _validate(self, device: "torch.device") -> None:
        """Predicts and scores the held-out cases from their original files."""
        names = set(self.split.validation)
        score_held_out(
            self.run,
            self.fold,
            [case for case in self.planned.dataset.labelled if case.name in names],
            labels=self.planned.plan.labels,
            request=PredictRequest(device=str(device), limits=self.limits),
        )
