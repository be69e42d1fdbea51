"""Training: folds that are not finished go on, and their held-out cases are scored."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.errors import ArtifactError, AutoliverError, OptionError
from autoliver.parallel import NO_LIMITS, Limits, cores
from autoliver.pipeline.cascade import first_stage, prepare_first_stage
from autoliver.pipeline.data import (
    Planned,
    current_folds,
    planned_configuration,
    planned_dataset,
    preprocess,
)
from autoliver.pipeline.fold_queue import Failure, QueuedFold, queue_devices, run_queue
from autoliver.pipeline.prediction import PredictRequest, predict
from autoliver.planning.plan import ConfigurationName
from autoliver.preprocessing.previous import with_previous
from autoliver.preprocessing.store import StoredCase, read_case
from autoliver.training.folds import Fold, Split
from autoliver.training.options import TrainingOptions, check_options
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
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        gpus: GPUs that take folds as they become free; several folds only.
        jobs: Without them: how many folds are trained at a time, in as many processes.
        cache: Where cases lie while they are trained on: "auto", "gpu", "ram", "disk".
        limits: For planning, preprocessing, the cache and prediction.
    """

    configuration: ConfigurationName
    folds: tuple[Fold, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    tag: str | None = None
    fresh: bool = False
    device: str = "auto"
    gpus: tuple[int, ...] = ()
    jobs: int | None = None
    cache: "CacheChoice" = "auto"
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
    # Before anything is made: a GPU that is not there is not worth an hour of preprocessing.
    queue_devices(request.gpus, request.jobs, device=request.device)
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
    options = _begin_run(run, made_from, request, wanted)
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
            store=store[request.configuration],
            run=run,
            previous=previous,
            previous_run=None if stage is None else stage.run.path.name,
            options=options,
            fold=fold,
            split=split,
            cache=request.cache,
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
        return run_queue(queued, devices, title=run.name, epochs=options.epochs)
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
        *("--workspace", str(workspace.root.resolve())),
    )


@dataclass(frozen=True, kw_only=True)
class _FoldJob:
    """One fold: train, write the model, score the held-out cases."""

    planned: Planned
    name: ConfigurationName
    store: Path
    run: RunFolder
    previous: Path | None
    previous_run: str | None
    options: TrainingOptions
    fold: Fold
    split: Split
    cache: "CacheChoice"
    limits: Limits

    @property
    def folder(self) -> Path:
        return self.run.fold(self.fold)

    @property
    def trained(self) -> bool:
        from autoliver.inference.model import MODEL_FILE

        return (self.folder / MODEL_FILE).exists()

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
            configuration=plan.configurations[self.name],
            labels=plan.labels,
            train=[self._case(name) for name in self.split.train],
            validation=[self._case(name) for name in self.split.validation],
            options=self.options,
            folder=self.folder,
            device=device,
            title=f"{self.planned.dataset.short_name} {self.name} fold {self.fold}",
            cache=CacheOptions(kind=self.cache, limits=self.limits, network_gb=plan.vram_gb),
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
        save_fold(
            self.folder,
            trained.weights,
            FoldModel(
                made_from={"plan": plan.digest(), "options": self.options.digest()},
                plan=plan.replace(configurations={self.name: plan.configurations[self.name]}),
                configuration=self.name,
                fold=str(self.fold),
                cases=self.split.train,
                epochs=len(trained.logs),
                mirror_axes=trained.mirror_axes,
                weights_sha256="",
                previous_run=self.previous_run,
            ),
        )

    def _case(self, name: str) -> StoredCase:
        case = read_case(self.store, name)
        return case if self.previous is None else with_previous(case, self.previous)

    def _validate(self, device: "torch.device") -> None:
        """Predicts and scores the held-out cases from their original files."""
        from autoliver.evaluation.score import score_files

        names = set(self.split.validation)
        cases = {c.name: c for c in self.planned.dataset.labelled if c.name in names}
        written = predict(
            self.run.files(str(self.fold)),
            {name: [Path(p) for p in case.images] for name, case in cases.items()},
            self._scores_path.parent,
            PredictRequest(device=str(device), limits=self.limits),
        )
        pairs = {
            name: (written[name], Path(case.label)) for name, case in cases.items() if case.label
        }
        scores = score_files(pairs, labels=self.planned.plan.labels)
        scores.save(self._scores_path)


def _begin_run(
    run: RunFolder, made_from: dict[str, str], request: TrainRequest, folds: Sequence[Fold]
) -> TrainingOptions:
    """The options of a run: as begun, else new ones; refuses a change of mind.

    With `--fresh` the named folds are removed, but only once nothing can be refused any more.
    """
    named = {run.fold(fold).name for fold in folds}
    others = sorted({path.name for path in run.path.glob("fold_*")} - named)
    start_over = not run.options.exists() or (request.fresh and not others)
    if start_over:
        options = TrainingOptions(made_from=made_from, **request.changes)
        check_options(options)
    else:
        options = TrainingOptions.load(run.options)
        again = "Add --fresh to start over, or --tag NAME to keep both."
        if request.fresh:
            again = (
                f"{', '.join(others)} would stay as begun: start over with all folds (--fold cv "
                "--fresh), or add --tag NAME."
            )
        _refuse_changes(run, options, made_from, request.changes, again=again)
    if request.fresh:
        for name in sorted(named):
            if (run.path / name).exists():
                shutil.rmtree(run.path / name)
    if start_over:
        options.save(run.options)
    return options


def _refuse_changes(
    run: RunFolder,
    begun: TrainingOptions,
    made_from: dict[str, str],
    changes: dict[str, Any],
    *,
    again: str,
) -> None:
    for name, value in changes.items():
        if getattr(begun, name) != value:
            raise OptionError(
                f"{run.name} was begun with --{name} {getattr(begun, name)}, not {value}.",
                hint=again,
            )
    changed = [name for name, now in made_from.items() if begun.made_from.get(name) != now]
    if changed:
        raise ArtifactError(f"{run.name} was begun with another {changed[0]}.", hint=again)
