"""All stages in one process: runs what is missing, keeps what is there, refuses misfits."""

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from autoliver.artifacts import check_chain, write_bytes
from autoliver.dataset import Dataset, describe_plain, find_case_images
from autoliver.errors import ArtifactError, AutoliverError, DatasetError, OptionError
from autoliver.needs import overlap_fits, overlap_need, prepare_need, read_need, score_need
from autoliver.parallel import CasePool, Limits, case_bar, window_bars
from autoliver.planning.fingerprint import make_fingerprint
from autoliver.planning.plan import ConfigurationName, Fingerprint, Plan
from autoliver.planning.planner import PlanOptions, make_plan
from autoliver.planning.verify import Verification, raise_on_errors, verify
from autoliver.preprocessing.prepare import PrepareTask, prepare_case
from autoliver.preprocessing.store import finished_cases, open_store, store_key
from autoliver.training.folds import Fold, Folds, make_folds, read_splits
from autoliver.training.options import TrainingOptions, check_options
from autoliver.training.stop import stop_on_sigterm
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

if TYPE_CHECKING:
    import torch

    from autoliver.evaluation.results import Scores


_log = logging.getLogger(__name__)
_NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A dataset with everything that is decided about it."""

    folder: DatasetFolder
    dataset: Dataset
    plan: Plan


def verify_dataset(
    workspace: Workspace, name: str | None, *, limits: Limits = _NO_LIMITS
) -> tuple[DatasetFolder, Dataset, Verification]:
    """Checks a dataset's integrity; what was checked and did not change is not read again."""
    dataset = workspace.source(name)
    folder = DatasetFolder(workspace.root / dataset.name)
    made_from = {"dataset": dataset.digest()}
    if folder.verify.exists():
        found = Verification.load(folder.verify, mend=f"autoliver verify {dataset.name}")
        if found.made_from == made_from:
            return folder, dataset, found
    pool = CasePool(what="verify", limits=limits, need=read_need, light=True)
    bar = case_bar("verify", len(dataset.cases))
    found = verify(dataset, executor=pool, progress=bar).replace(made_from=made_from)
    dataset.save(folder.dataset)
    found.save(folder.verify)
    return folder, dataset, found


def plan_dataset(
    workspace: Workspace, name: str | None, options: PlanOptions, *, limits: Limits = _NO_LIMITS
) -> Planned:
    """Verify, fingerprint, plan.

    Args:
        workspace: Where the artefacts go.
        name: Path or name of the dataset.
        options: How to plan.
        limits: Processes and memory to read cases with.

    Raises:
        DatasetError: There is no such dataset, or it fails verification.
    """
    folder, dataset, found = verify_dataset(workspace, name, limits=limits)
    raise_on_errors(found)
    _describe(dataset)
    if not dataset.labelled:
        raise DatasetError(
            f"{dataset.name}: none of its {len(dataset.cases)} cases has a label.",
            hint=f"Put label maps into {dataset.folder}.",
        )
    fingerprint = _fingerprint(folder, dataset, limits=limits)
    plan = make_plan(dataset, fingerprint, options).replace(
        made_from={"dataset": dataset.digest(), "fingerprint": fingerprint.digest()}
    )
    plan.save(folder.plan)
    _current_folds(folder, dataset)
    return Planned(folder=folder, dataset=dataset, plan=plan)


def planned_dataset(
    workspace: Workspace, name: str | None, *, limits: Limits = _NO_LIMITS
) -> Planned:
    """The plan there is; a dataset without one is planned with the defaults.

    Raises:
        ArtifactError: The dataset changed since it was planned.
    """
    dataset = workspace.source(name)
    folder = DatasetFolder(workspace.root / dataset.name)
    if not folder.plan.exists():
        return plan_dataset(workspace, name, PlanOptions(), limits=limits)
    mend = f"autoliver plan {dataset.name}"
    plan = Plan.load(folder.plan, mend=mend)
    if plan.preset != "default":
        mend += f" --preset {plan.preset}"
    made_from = {"dataset": dataset.digest()}
    check_chain(plan, made_from, where=f"The plan of {dataset.name}", mend=mend)
    return Planned(folder=folder, dataset=dataset, plan=plan)


def preprocess(
    planned: Planned,
    configurations: Sequence[ConfigurationName] = (),
    *,
    limits: Limits = _NO_LIMITS,
) -> dict[ConfigurationName, Path]:
    """Fills the store for some configurations (default: all of the plan); finished cases stay.

    Returns:
        Configuration -> folder of its store.

    Raises:
        OptionError: The plan has no such configuration.
    """
    stores = {}
    for name in configurations or tuple(planned.plan.configurations):
        configuration = _configuration(planned, name)
        key = store_key(planned.plan, name)
        store = planned.folder.store(key)
        open_store(store, key=key, dataset=planned.dataset.name)
        done = finished_cases(store)
        todo = [
            PrepareTask(case=case, plan=planned.plan, configuration=configuration, folder=store)
            for case in planned.dataset.labelled
            if done.get(case.name) != case.files
        ]
        pool = CasePool(what=f"preprocess {name}", limits=limits, need=prepare_need)
        for _ in case_bar(pool.what, len(todo))(pool.map(prepare_case, todo)):
            pass
        stores[name] = store
    return stores


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
        limits: For planning and preprocessing.
    """

    configuration: ConfigurationName
    folds: tuple[Fold, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    tag: str | None = None
    fresh: bool = False
    device: str = "auto"
    limits: Limits = _NO_LIMITS


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
    configuration = _configuration(planned, request.configuration)
    if configuration.previous_stage is not None:
        raise OptionError(
            f"{request.configuration} needs the predictions of {configuration.previous_stage}, "
            "which this version cannot feed in yet.",
            hint="Train 3d_fullres, 3d_lowres or 2d.",
        )
    cases = [case.name for case in planned.dataset.labelled]
    folds = _current_folds(planned.folder, planned.dataset)
    wanted = request.folds or tuple(range(len(folds.splits))) or ("all",)
    for fold in wanted:
        folds.split(fold, cases)
    run = planned.folder.run(request.configuration, tag=request.tag)
    made_from = {
        "plan": planned.plan.digest(),
        "dataset": planned.dataset.digest(),
        "folds": folds.digest(),
    }
    options = _begin_run(run, made_from, request, wanted)
    store = preprocess(planned, [request.configuration], limits=request.limits)
    from autoliver.networks.device import choose_device

    device = choose_device(request.device)
    results = []
    for fold in wanted:
        job = _FoldJob(
            planned=planned,
            name=request.configuration,
            store=store[request.configuration],
            run=run,
            options=options,
            fold=fold,
            device=device,
            limits=request.limits,
        )
        results.append(job.run_to_end(folds))
    return results


@dataclass(frozen=True, kw_only=True)
class _FoldJob:
    """One fold: train, write the model, score the held-out cases."""

    planned: Planned
    name: ConfigurationName
    store: Path
    run: RunFolder
    options: TrainingOptions
    fold: Fold
    device: "torch.device"
    limits: Limits

    def run_to_end(self, folds: Folds) -> FoldResult:
        from autoliver.inference.model import MODEL_FILE

        split = folds.split(self.fold, [c.name for c in self.planned.dataset.labelled])
        folder = self.run.fold(self.fold)
        if not (folder / MODEL_FILE).exists():
            self._train(split.train, split.validation, folder)
        scores = self._validate(split.validation, folder) if split.validation else None
        return FoldResult(fold=self.fold, folder=folder, scores=scores)

    def _train(self, train: Sequence[str], validation: Sequence[str], folder: Path) -> None:
        from autoliver.inference.model import FoldModel, save_fold
        from autoliver.preprocessing.store import read_case
        from autoliver.training.loop import train_fold
        from autoliver.training.task import FoldTask

        plan = self.planned.plan
        task = FoldTask(
            configuration=plan.configurations[self.name],
            labels=plan.labels,
            train=[read_case(self.store, name) for name in train],
            validation=[read_case(self.store, name) for name in validation],
            options=self.options,
            folder=folder,
            device=self.device,
            title=f"{self.planned.dataset.short_name} {self.name} fold {self.fold}",
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
        save_fold(
            folder,
            trained.weights,
            FoldModel(
                made_from={"plan": plan.digest(), "options": self.options.digest()},
                plan=plan.replace(configurations={self.name: plan.configurations[self.name]}),
                configuration=self.name,
                fold=str(self.fold),
                cases=tuple(train),
                epochs=len(trained.logs),
                mirror_axes=trained.mirror_axes,
                weights_sha256="",
            ),
        )

    def _validate(self, names: Sequence[str], folder: Path) -> "Scores":
        """Predicts and scores the held-out cases from their original files."""
        from autoliver.evaluation.results import Scores
        from autoliver.evaluation.score import score_files

        target = folder / "validation"
        if (target / "scores.json").exists():
            return Scores.load(target / "scores.json")
        cases = {c.name: c for c in self.planned.dataset.labelled if c.name in set(names)}
        written = predict(
            [folder],
            {name: [Path(p) for p in case.images] for name, case in cases.items()},
            target,
            PredictRequest(
                device=str(self.device),
                limits=self.limits,
                name=f"{self.run.name} fold {self.fold}",
            ),
        )
        pairs = {
            name: (written[name], Path(case.label)) for name, case in cases.items() if case.label
        }
        scores = score_files(pairs, labels=self.planned.plan.labels)
        scores.save(target / "scores.json")
        return scores


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """How `predict` was asked to work."""

    step: float = 0.5
    mirror: bool = True
    overwrite: bool = False
    device: str = "auto"
    limits: Limits = _NO_LIMITS
    name: str = "model"


def predict(
    folds: Sequence[Path],
    cases: Mapping[str, Sequence[Path]],
    output: Path,
    request: PredictRequest,
) -> dict[str, Path]:
    """Predicts cases with the folds of one run; finished cases are skipped.

    Returns:
        Case -> label map, finished ones included.
    """
    from autoliver.inference.model import load_model
    from autoliver.inference.predict import PredictOptions, make_jobs, predict_jobs
    from autoliver.networks.device import choose_device

    jobs = make_jobs(cases, output)
    todo = [job for job in jobs if request.overwrite or not job.finished]
    if todo:
        model = load_model(folds, name=request.name, device=choose_device(request.device))
        needs = [overlap_need(j.name, j.images, model.plan, model.configuration) for j in todo]
        overlap = overlap_fits(needs, request.limits)
        options = PredictOptions(step=request.step, mirror=request.mirror, overlap=overlap)
        with window_bars(len(todo)) as on_windows:
            predict_jobs(model, todo, options, on_windows=on_windows)
    return {job.name: job.output for job in jobs}


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What `predict_folder` did.

    Attributes:
        model: What predicted.
        files: Label maps of all cases.
        new: How many were predicted now.
        skipped: How many were there already.
    """

    model: str
    files: tuple[Path, ...]
    new: int
    skipped: int


def predict_folder(
    workspace: Workspace,
    source: Path,
    output: Path,
    request: PredictRequest,
    *,
    model: str | None = None,
    folds: str | None = None,
) -> Predicted:
    """Predicts all cases of a folder (or one file) with a model of the workspace.

    Raises:
        ModelError: No model, several that could be meant, or a damaged one.
        DatasetError: A case lacks a channel or does not fit the model.
    """
    from autoliver.inference.model import MODEL_FILE, FoldModel

    run = workspace.run_to_predict(model)
    members = run.members(folds)
    plan = FoldModel.load(members[0] / MODEL_FILE).plan
    cases = find_case_images(source, channels=len(plan.channel_names), file_ending=None)
    request = dataclasses.replace(request, name=run.name)
    before = set(output.glob("*"))
    files = predict(members, cases, output, request)
    skipped = 0 if request.overwrite else len(before & set(files.values()))
    return Predicted(
        model=f"{run.name} ({', '.join(folder.name for folder in members)})",
        files=tuple(files.values()),
        new=len(files) - skipped,
        skipped=skipped,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What `evaluate` was asked for.

    Attributes:
        dataset: Names the labels; None: label values name themselves.
        metrics: Only these; empty: all.
        chaos: Add the CHAOS score.
        limits: Processes and memory.
    """

    dataset: str | None = None
    metrics: tuple[str, ...] = ()
    chaos: bool = False
    limits: Limits = _NO_LIMITS


def evaluate(
    workspace: Workspace, prediction: Path, reference: Path, request: EvaluateRequest
) -> "Scores":
    """Scores a folder of label maps; writes scores.json and scores.csv beside them."""
    from autoliver.evaluation.results import ALL_METRICS, MetricOptions, write_csv
    from autoliver.evaluation.score import score_folder

    labels = workspace.source(request.dataset).labels if request.dataset else None
    options = MetricOptions(metrics=request.metrics or ALL_METRICS, chaos=request.chaos)
    scores = score_folder(
        prediction,
        reference,
        labels=labels,
        options=options,
        executor=CasePool(what="evaluate", limits=request.limits, need=score_need),
        progress=case_bar("evaluate", 0),
    )
    scores.save(prediction / "scores.json")
    write_csv(scores, prediction / "scores.csv")
    return scores


def _begin_run(
    run: RunFolder, made_from: dict[str, str], request: TrainRequest, folds: Sequence[Fold]
) -> TrainingOptions:
    """The options of a run: as begun, else new ones; refuses a change of mind."""
    if request.fresh:
        for fold in folds:
            shutil.rmtree(run.fold(fold), ignore_errors=True)
        if not any(run.path.glob("fold_*")):
            run.options.unlink(missing_ok=True)
    again = "Add --fresh to start over, or --tag NAME to keep both."
    if request.fresh and (others := sorted(p.name for p in run.path.glob("fold_*"))):
        again = (
            f"{', '.join(others)} are still there: start over with them, too, or add --tag NAME."
        )
    if not run.options.exists():
        options = TrainingOptions(made_from=made_from, **request.changes)
        check_options(options)
        options.save(run.options)
        return options
    begun = TrainingOptions.load(run.options)
    for name, value in request.changes.items():
        if getattr(begun, name) != value:
            raise OptionError(
                f"{run.name} was begun with --{name} {getattr(begun, name)}, not {value}.",
                hint=again,
            )
    changed = [name for name, now in made_from.items() if begun.made_from.get(name) != now]
    if changed:
        raise ArtifactError(f"{run.name} was begun with another {changed[0]}.", hint=again)
    return begun


def _configuration(planned: Planned, name: ConfigurationName) -> Any:
    plan = planned.plan
    if name not in plan.configurations:
        why = plan.reasons.get(name, "")
        raise OptionError(
            f"The plan of {plan.dataset} has no {name}"
            + (f" ({why.rstrip('.')})." if why else "."),
            hint=f"Choose one of: {', '.join(plan.configurations)}.",
        )
    return plan.configurations[name]


def _describe(dataset: Dataset) -> None:
    """Writes the dataset.json that a plain folder pair lacks, beside its images."""
    path = Path(dataset.folder) / "dataset.json"
    if dataset.layout != "plain" or path.exists():
        return
    text = msgspec.json.format(msgspec.json.encode(describe_plain(dataset)), indent=1)
    try:
        write_bytes(path, text)
    except AutoliverError as error:
        # The labels are then found out anew by every command, which is slow but right.
        _log.warning("%s", error.problem)
    else:
        _log.warning("%s: written; check its channel and label names:\n%s", path, text.decode())


def _current_folds(folder: DatasetFolder, dataset: Dataset) -> Folds:
    """The user's splits, else our own; saved for people to read."""
    own = Path(dataset.folder) / "splits_final.json"
    splits = read_splits(own, dataset.labelled) if own.exists() else make_folds(dataset.labelled)
    folds = Folds(made_from={"dataset": dataset.digest()}, splits=splits)
    folds.save(folder.folds)
    return folds


def _fingerprint(folder: DatasetFolder, dataset: Dataset, *, limits: Limits) -> Fingerprint:
    """The fingerprint there is, if the dataset did not change; else a new one."""
    made_from = {"dataset": dataset.digest()}
    if folder.fingerprint.exists():
        found = Fingerprint.load(folder.fingerprint, mend=f"rm {folder.fingerprint}")
        if found.made_from == made_from:
            return found
    pool = CasePool(what="fingerprint", limits=limits, need=read_need, light=True)
    bar = case_bar("fingerprint", len(dataset.labelled))
    made = make_fingerprint(dataset, executor=pool, progress=bar)
    made = made.replace(made_from=made_from)
    made.save(folder.fingerprint)
    return made
