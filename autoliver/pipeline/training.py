"""Training: folds that are not finished go on, and their held-out cases are scored."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.artifacts import to_record
from autoliver.errors import ArtifactError, AutoliverError, OptionError
from autoliver.parallel import NO_LIMITS, Limits
from autoliver.pipeline.cascade import first_stage, prepare_first_stage
from autoliver.pipeline.data import (
    Planned,
    current_folds,
    planned_configuration,
    planned_dataset,
    preprocess,
)
from autoliver.pipeline.extension import is_trained, with_extension
from autoliver.pipeline.prediction import PredictRequest, predict
from autoliver.planning.fit import memory_gb
from autoliver.planning.plan import Configuration, ConfigurationName, Plan
from autoliver.preprocessing.previous import with_previous
from autoliver.preprocessing.store import StoredCase, read_case
from autoliver.training.folds import Fold, Folds
from autoliver.training.options import (
    TrainingOptions,
    changed_configuration,
    check_options,
    flag,
)
from autoliver.training.stop import stop_on_sigterm
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
        cache: Where cases lie while they are trained on: "auto", "gpu", "ram", "disk".
        limits: For planning, preprocessing and the cache.
    """

    configuration: ConfigurationName
    folds: tuple[Fold, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    tag: str | None = None
    fresh: bool = False
    extend: int | None = None
    device: str = "auto"
    cache: "CacheChoice" = "auto"
    limits: Limits = NO_LIMITS


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """A finished fold and the scores of its held-out cases (None for fold `all`)."""

    fold: Fold
    folder: Path
    scores: "Scores | None"


def train(workspace: Workspace, name: str | None, request: TrainRequest) -> list[FoldResult]:
    """Plans and preprocesses what is missing, trains the folds, scores their held-out cases.

    A fold that was stopped goes on where it was; a finished one is left as it is.

    Raises:
        AutoliverError: See the stages; also when the training was stopped by SIGTERM.
    """
    planned = planned_dataset(workspace, name, limits=request.limits)
    configuration = planned_configuration(planned, request.configuration)
    stage = None
    if configuration.previous_stage is not None:
        stage = first_stage(planned, configuration.previous_stage, tag=request.tag)
    cases = [case.name for case in planned.dataset.labelled]
    folds = current_folds(planned.folder, planned.dataset)
    wanted = request.folds or tuple(range(len(folds.splits))) or ("all",)
    for fold in wanted:
        folds.split(fold, cases)
    run = planned.folder.run(request.configuration, tag=request.tag)
    made_from = {
        "plan": planned.plan.digest(),
        "dataset": planned.dataset.digest(),
        "folds": folds.digest(),
    }
    if stage is not None:
        made_from["first stage"] = stage.digest
    options = _begin_run(run, made_from, request, wanted, configuration=configuration)
    configuration = changed_configuration(configuration, options)
    if options.patch or options.batch_size:
        _log_memory(configuration, planned.plan)
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
    from autoliver.networks.device import choose_device

    device = choose_device(request.device)
    results = []
    for fold in wanted:
        job = _FoldJob(
            planned=planned,
            name=request.configuration,
            configuration=configuration,
            store=store[request.configuration],
            run=run,
            previous=previous,
            previous_run=None if stage is None else stage.run.path.name,
            options=options,
            fold=fold,
            device=device,
            cache=request.cache,
            limits=request.limits,
        )
        results.append(job.run_to_end(folds))
    return results


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
    device: "torch.device"
    cache: "CacheChoice"
    limits: Limits

    def run_to_end(self, folds: Folds) -> FoldResult:
        split = folds.split(self.fold, [c.name for c in self.planned.dataset.labelled])
        folder = self.run.fold(self.fold)
        if not is_trained(folder, self.options):
            self._train(split.train, split.validation, folder)
        scores = self._validate(split.validation, folder) if split.validation else None
        return FoldResult(fold=self.fold, folder=folder, scores=scores)

    def _train(self, train: Sequence[str], validation: Sequence[str], folder: Path) -> None:
        from autoliver.inference.model import FoldModel, save_fold
        from autoliver.training.cache import CacheOptions
        from autoliver.training.loop import train_fold
        from autoliver.training.task import FoldTask

        plan = self.planned.plan
        task = FoldTask(
            configuration=self.configuration,
            labels=plan.labels,
            train=[self._case(name) for name in train],
            validation=[self._case(name) for name in validation],
            options=self.options,
            folder=folder,
            device=self.device,
            title=f"{self.planned.dataset.short_name} {self.name} fold {self.fold}",
            cache=CacheOptions(
                kind=self.cache,
                limits=self.limits,
                network_gb=max(plan.vram_gb, memory_gb(self.configuration, plan.preset)),
            ),
        )
        folder.mkdir(parents=True, exist_ok=True)
        with stop_on_sigterm() as stop:
            trained = train_fold(task, stop=stop)
        if not trained.finished:
            raise AutoliverError(
                f"{task.title}: stopped by SIGTERM after {len(trained.logs)} epochs; "
                "the state is saved.",
                hint="Run the same command again to go on.",
            )
        # What an extended fold has found before is not what it finds now.
        shutil.rmtree(folder / "validation", ignore_errors=True)
        save_fold(
            folder,
            trained.weights,
            FoldModel(
                made_from={"plan": plan.digest(), "options": self.options.digest()},
                plan=plan.replace(configurations={self.name: self.configuration}),
                configuration=self.name,
                fold=str(self.fold),
                cases=tuple(train),
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

    def _validate(self, names: Sequence[str], folder: Path) -> "Scores":
        """Predicts and scores the held-out cases from their original files."""
        from autoliver.evaluation.results import Scores
        from autoliver.evaluation.score import score_files

        target = folder / "validation"
        if (target / "scores.json").exists():
            return Scores.load(target / "scores.json")
        cases = {c.name: c for c in self.planned.dataset.labelled if c.name in set(names)}
        written = predict(
            self.run.files(str(self.fold)),
            {name: [Path(p) for p in case.images] for name, case in cases.items()},
            target,
            PredictRequest(device=str(self.device), limits=self.limits),
        )
        pairs = {
            name: (written[name], Path(case.label)) for name, case in cases.items() if case.label
        }
        scores = score_files(pairs, labels=self.planned.plan.labels)
        scores.save(target / "scores.json")
        return scores


def _begin_run(
    run: RunFolder,
    made_from: dict[str, str],
    request: TrainRequest,
    folds: Sequence[Fold],
    *,
    configuration: Configuration,
) -> TrainingOptions:
    """The options of a run: as begun, else new ones; refuses a change of mind.

    With `--fresh` the named folds are removed, but only once nothing can be refused any more.
    """
    if request.extend is not None and (request.fresh or not run.options.exists()):
        raise OptionError(
            f"--extend {request.extend}: goes on with a finished run, "
            + ("--fresh starts over." if request.fresh else f"and {run.name} was not begun."),
            hint="Leave --extend out.",
        )
    named = {run.fold(fold).name for fold in folds}
    others = sorted({path.name for path in run.path.glob("fold_*")} - named)
    start_over = not run.options.exists() or (request.fresh and not others)
    if start_over:
        fields = {"made_from": made_from, **request.changes}
        options = to_record(fields, TrainingOptions, where="The options of train")
        check_options(options)
        changed_configuration(configuration, options)
    else:
        options = TrainingOptions.load(run.options)
        again = "Add --fresh to start over, or --tag NAME to keep both."
        if request.fresh:
            again = (
                f"{', '.join(others)} would stay as begun: start over with all folds (--fold cv "
                "--fresh), or add --tag NAME."
            )
        _refuse_changes(run, options, made_from, request.changes, again=again)
        if request.extend is not None:
            options = with_extension(run, options, request.extend, folds)
            options.save(run.options)
    if request.fresh:
        for name in sorted(named):
            if (run.path / name).exists():
                shutil.rmtree(run.path / name)
    if start_over:
        options.save(run.options)
    return options


def _log_memory(configuration: Configuration, plan: Plan) -> None:
    _log.info(
        "Batches of %d patches of %s voxels take about %.1f GB of GPU memory; the plan is for "
        "%g GB.",
        configuration.batch_size,
        "x".join(str(n) for n in configuration.patch_shape),
        memory_gb(configuration, plan.preset),
        plan.vram_gb,
    )


def _refuse_changes(
    run: RunFolder,
    begun: TrainingOptions,
    made_from: dict[str, str],
    changes: dict[str, Any],
    *,
    again: str,
) -> None:
    now = to_record(changes, TrainingOptions, where="The options of train")
    for name in changes:
        if getattr(begun, name) != getattr(now, name):
            then = flag(name, getattr(begun, name))
            raise OptionError(
                f"{run.name} was begun with {then}, not {flag(name, getattr(now, name))}.",
                hint=again,
            )
    changed = [name for name, have in made_from.items() if begun.made_from.get(name) != have]
    if changed:
        raise ArtifactError(f"{run.name} was begun with another {changed[0]}.", hint=again)
