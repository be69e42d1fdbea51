"""Brings together the folds of a run that several machines have trained; nothing is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoliver.artifacts import brief
from autoliver.commands import command
from autoliver.datasets.cases import Dataset
from autoliver.datasets.folds import Fold, Folds
from autoliver.errors import ArtifactError, ModelError, OptionError
from autoliver.locks import is_held, only_one
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.models.files import FoldFolder, FoldModel
from autoliver.pipeline.data import as_planned, current_folds, to_train
from autoliver.pipeline.evaluation import score_held_out
from autoliver.pipeline.prediction import PredictRequest
from autoliver.pipeline.run.begin import being_trained, is_trained
from autoliver.pipeline.run.job import FoldResult
from autoliver.pipeline.run.outcome import with_source_scores
from autoliver.pipeline.run.request import TrainRequest
from autoliver.pipeline.selection import Selected, SelectRequest, select
from autoliver.pipeline.status import repeated, run_status, train_again
from autoliver.system import entries
from autoliver.training.options import TrainingOptions
from autoliver.values import another, meant
from autoliver.workspace import DatasetFolder, RunFolder, Workspace, check_configuration


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run with all its folds.

    Attributes:
        folds: The folds with the scores of their held-out cases.
        selected: What predicts from now on, chosen among all finished runs of the dataset.
    """

    folds: tuple[FoldResult, ...]
    selected: Selected

    __repr__ = brief


def finish(
    workspace: Workspace,
    name: str | None,
    run_name: str,
    *,
    accept_changes: bool = False,
    machine: Machine = WHOLE_MACHINE,
) -> Finished:
    """Does what is left when all folds of a run are trained, by whatever machines.

    Held-out cases that are not scored yet are predicted and scored, unseen cases of the source as
    well, and the best of the dataset's runs is selected.

    Args:
        workspace: The workspace.
        name: Path or name of the dataset; None for the only one.
        run_name: Name of the run, such as "3d_fullres" or "3d_fullres@LiTS+long".
        accept_changes: Whether to leave out cases that were added since the dataset was planned.
        machine: The device, processes and memory that may be used.

    Raises:
        OptionError: There is no such run.
        ModelError: Some folds are not trained; the hint has the commands that train them.
        ArtifactError: The dataset or its folds have changed since the run was started.
        AutoliverError: A case cannot be predicted, or as for `select`.
    """
    folder, dataset = to_train(workspace, name)
    if accept_changes:
        dataset = as_planned(folder, dataset)
    run = _run(folder, run_name)
    splits = current_folds(folder, dataset)
    options = TrainingOptions.load(run.options, mend=run.mend)
    _refuse_changes(run, options, dataset, splits)
    folds: tuple[Fold, ...] = tuple(range(len(splits.splits)))
    accepted = ["--accept-changes"] if accept_changes else []
    _refuse_missing(run, options, folds or ("all",), accepted)
    results = [_result(run, fold, options, dataset, splits, machine) for fold in folds]
    request = TrainRequest(configuration=check_configuration(run.configuration), machine=machine)
    results = with_source_scores(workspace, results, request)
    asked = SelectRequest(accept_changes=accept_changes, machine=machine)
    return Finished(folds=tuple(results), selected=select(workspace, name, asked))


def _run(folder: DatasetFolder, name: str) -> RunFolder:
    every = map(RunFolder, entries(folder.path / "runs"))
    runs = {run.path.name: run for run in every if run.options.exists()}
    if name not in runs:
        known = f"Runs: {', '.join(runs)}." if runs else "None was started."
        raise OptionError(
            f"{folder.name} has no run '{name}'.", hint=meant(name, list(runs)) or known
        )
    return runs[name]


def _refuse_changes(
    run: RunFolder, options: TrainingOptions, dataset: Dataset, splits: Folds
) -> None:
    now = {"dataset": dataset.digest(), "folds": splits.digest()}
    changed = [each for each, digest in now.items() if options.made_from.get(each) != digest]
    if changed:
        raise ArtifactError(
            f"{run.name} was started with {another(changed[0])}.",
            hint="Restore it, or train a run anew; --accept-changes leaves cases out that were "
            "added.",
        )


def _refuse_missing(
    run: RunFolder, options: TrainingOptions, folds: Sequence[Fold], accepted: Sequence[str]
) -> None:
    """Refuses a run whose folds are not all trained; those at work are told apart.

    Args:
        run: The run.
        options: What it is trained with.
        folds: Its folds.
        accepted: Words that each command of the hint needs as well.
    """
    missing, at_work = [], []
    for fold in folds:
        files, held = FoldFolder(run.fold(fold)), is_held(run.lock(fold))
        trained = is_trained(files, options)
        if not trained and not held:
            missing.append(str(fold))
        elif held and not (trained and files.scores.exists()):
            at_work.append(str(fold))
    if not missing and not at_work:
        return
    said = [f"not trained yet: {', '.join(missing)}"] if missing else []
    said += [f"being trained: {', '.join(at_work)}"] if at_work else []
    begun = {each.fold: each.command for each in run_status(run, [])}  # what helps, if they failed
    # A run that has made no step keeps no options, so that each fold has to name them.
    left = ["pretrained", *(["lr"] if any("--lr" in each for each in begun.values()) else [])]
    words = [] if run.has_stepped else repeated(options, without=left)
    commands = [
        begun.get(fold) or train_again(run, options.pretrained, fold, more=words)
        for fold in missing
    ]
    commands = [" ".join([each, *accepted]) for each in commands]
    names = (run.path.parents[1].name, run.path.name)
    again = command("finish", *names, options=accepted, workspace=run.path.parents[2])
    raise ModelError(
        f"{run.name}: of {len(folds)} folds, {'; '.join(said)}.",
        hint="\n".join(
            [
                *(["Train them:"] if commands else []),
                *(f"  {each}" for each in commands),
                "When they are trained:",
                f"  {again}",
            ]
        ),
    )


def _result(
    run: RunFolder,
    fold: Fold,
    options: TrainingOptions,
    dataset: Dataset,
    splits: Folds,
    machine: Machine,
) -> FoldResult:
    """Scores the held-out cases of a fold, unless they are scored."""
    files = FoldFolder(run.fold(fold))
    names = set(splits.split(fold, [case.name for case in dataset.labelled]).validation)
    request = PredictRequest(
        modality=None, exact=options.deterministic, roi_from=options.roi_from, machine=machine
    )
    with only_one(run.lock(fold), being_trained(fold)):
        scores = score_held_out(
            run,
            fold,
            [case for case in dataset.labelled if case.name in names],
            labels=FoldModel.load(files.model).plan.labels,
            request=request,
        )
    return FoldResult(fold=fold, folder=files.path, scores=scores)
