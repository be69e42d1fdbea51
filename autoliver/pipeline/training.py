"""Training: folds that are not finished go on, and their held-out cases are scored."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.errors import ArtifactError, AutoliverError, OptionError
from autoliver.parallel import NO_LIMITS, Limits
from autoliver.pipeline.data import (
    Planned,
    current_folds,
    planned_configuration,
    planned_dataset,
    preprocess,
)
from autoliver.pipeline.prediction import PredictRequest, predict
from autoliver.planning.plan import ConfigurationName
from autoliver.training.folds import Fold, Split
from autoliver.training.options import TrainingOptions, check_options
from autoliver.training.stop import stop_on_sigterm
from autoliver.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    import torch

    from autoliver.evaluation.results import Scores
    from autoliver.training.cache import CacheChoice
    from autoliver.training.distributed import Group


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
        cache: Where cases lie while they are trained on: "auto", "gpu", "ram", "disk".
        limits: For planning, preprocessing and the cache.
    """

    configuration: ConfigurationName
    folds: tuple[Fold, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    tag: str | None = None
    fresh: bool = False
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

    A fold that was stopped goes on where it was; a finished one is left as it is. Processes that
    torchrun has started train each fold together; the first does all the rest.

    Raises:
        AutoliverError: See the stages; also when the training was stopped by SIGTERM.
    """
    from autoliver.training.distributed import join_group

    with join_group() as group:
        jobs = group.lead_does(lambda: _fold_jobs(workspace, name, request, group))
        from autoliver.networks.device import choose_device, own_device

        if group.size == 1:
            device = choose_device(request.device)
        else:
            device = own_device(request.device, group.local_rank)
        group.check_equal("the device", device.type)
        return [job.run_to_end(device, group) for job in jobs]


def _fold_jobs(
    workspace: Workspace, name: str | None, request: TrainRequest, group: "Group"
) -> list["_FoldJob"]:
    """The folds to train, planned and preprocessed; refuses what cannot be trained."""
    planned = planned_dataset(workspace, name, limits=request.limits)
    configuration = planned_configuration(planned, request.configuration)
    if configuration.previous_stage is not None:
        raise OptionError(
            f"{request.configuration} needs the predictions of {configuration.previous_stage}, "
            "which this version cannot feed in yet.",
            hint="Train 3d_fullres, 3d_lowres or 2d.",
        )
    group.part(configuration.batch_size)
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
    options = _begin_run(run, made_from, request, wanted)
    store = preprocess(planned, [request.configuration], limits=request.limits)
    return [
        _FoldJob(
            planned=planned,
            name=request.configuration,
            store=store[request.configuration],
            run=run,
            options=options,
            fold=fold,
            split=split,
            cache=request.cache,
            limits=request.limits,
        )
        for fold, split in splits.items()
    ]


@dataclass(frozen=True, kw_only=True)
class _FoldJob:
    """One fold: train, write the model, score the held-out cases."""

    planned: Planned
    name: ConfigurationName
    store: Path
    run: RunFolder
    options: TrainingOptions
    fold: Fold
    split: Split
    cache: "CacheChoice"
    limits: Limits

    def run_to_end(self, device: "torch.device", group: "Group") -> FoldResult:
        from autoliver.inference.model import MODEL_FILE

        folder = self.run.fold(self.fold)
        if not group.lead_does((folder / MODEL_FILE).exists):
            self._train(folder, device, group)
        scores = None
        if self.split.validation:
            scores = group.lead_does(lambda: self._validate(folder, device))
        return FoldResult(fold=self.fold, folder=folder, scores=scores)

    def _train(self, folder: Path, device: "torch.device", group: "Group") -> None:
        from autoliver.inference.model import FoldModel, save_fold
        from autoliver.preprocessing.store import read_case
        from autoliver.training.cache import CacheOptions
        from autoliver.training.loop import train_fold
        from autoliver.training.task import FoldTask

        plan, limits = self.planned.plan, group.own_limits(self.limits)
        task = FoldTask(
            configuration=plan.configurations[self.name],
            labels=plan.labels,
            train=[read_case(self.store, name) for name in self.split.train],
            validation=[read_case(self.store, name) for name in self.split.validation],
            options=self.options,
            folder=folder,
            device=device,
            title=f"{self.planned.dataset.short_name} {self.name} fold {self.fold}",
            cache=CacheOptions(kind=self.cache, limits=limits, network_gb=plan.vram_gb),
            group=group,
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
        if not group.leads:
            return
        save_fold(
            folder,
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
            ),
        )

    def _validate(self, folder: Path, device: "torch.device") -> "Scores":
        """Predicts and scores the held-out cases from their original files."""
        from autoliver.evaluation.results import Scores
        from autoliver.evaluation.score import score_files

        target = folder / "validation"
        if (target / "scores.json").exists():
            return Scores.load(target / "scores.json")
        cases = {
            c.name: c for c in self.planned.dataset.labelled if c.name in self.split.validation
        }
        written = predict(
            self.run.files(str(self.fold)),
            {name: [Path(p) for p in case.images] for name, case in cases.items()},
            target,
            PredictRequest(device=str(device), limits=self.limits),
        )
        pairs = {
            name: (written[name], Path(case.label)) for name, case in cases.items() if case.label
        }
        scores = score_files(pairs, labels=self.planned.plan.labels)
        scores.save(target / "scores.json")
        return scores


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
