"""Prepares the input of a cascade: out-of-fold predictions of its first stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoliver.artifacts import digest
from autoliver.errors import ModelError
from autoliver.io.header import label_name
from autoliver.machine import Machine
from autoliver.models.files import FoldFolder, FoldModel
from autoliver.needs import read_need
from autoliver.parallel import case_bar
from autoliver.pipeline.data import Planned
from autoliver.pipeline.run.encoder_source import without_unread
from autoliver.pipeline.run.request import TrainRequest, train_command
from autoliver.planning.names import ConfigurationName
from autoliver.preprocessing.previous import PreviousTask, is_prepared, prepare_previous
from autoliver.workspace import RunFolder


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """The first stage of a cascade and its out-of-fold predictions.

    Attributes:
        run: The run of the first stage.
        found: Maps each case to the predicted label map on the case's own grid.
        digest: Digest of the folds' weights; it changes if one of the folds is trained again.
    """

    run: RunFolder
    found: dict[str, Path]
    digest: str


def first_stage(planned: Planned, name: ConfigurationName, request: TrainRequest) -> FirstStage:
    """Finds the out-of-fold label maps of the first stage that a cascade is trained with.

    Args:
        planned: The dataset and its plan.
        name: The first stage's configuration.
        request: The request to train the cascade. A first stage with the same source and tag is
            preferred to one without.

    Raises:
        ModelError: There is no such run, it has other labels than the plan, or some case was held
            out by none of its finished folds.
    """
    folder, tag = planned.folder, request.tag
    runs = [planned.run(name, tag=tag), planned.run(name), folder.run(name, tag=tag)]
    runs.append(folder.run(name))
    run = next((run for run in runs if run.finished), runs[-1])
    mend = _train_again(run, planned, name, request)
    folds = [fold for fold in run.finished if FoldFolder(fold).scores.exists()]
    infos = {fold: FoldModel.load(FoldFolder(fold).model) for fold in folds}
    found: dict[str, Path] = {}
    for fold, info in infos.items():
        if info.needs_lesions:
            raise ModelError(
                f"{run.name} only tells the class of given lesions (--task classify): it cannot be "
                "the first stage of a cascade.",
                hint=f"Train another first stage: {mend} --task joint --tag NAME",
            )
        if info.plan.labels != planned.plan.labels:
            raise ModelError(
                f"{run.name}: {fold.name} has other labels than the plan of "
                f"{planned.dataset.name} has now.",
                hint=f"Train it again: {mend} --fresh",
            )
        found |= _label_maps(planned, fold)
    missing = [case.name for case in planned.dataset.labelled if case.name not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(
            f"{run.name}: {missing[0]}{more} of {len(planned.dataset.labelled)} cases were held "
            "out by none of its finished folds. A cascade is trained only with predictions of "
            "held-out cases.",
            hint=f"Train all of its folds: {mend}",
        )
    weights = {fold.name: info.weights_sha256 for fold, info in infos.items()}
    return FirstStage(run=run, found=found, digest=digest(weights))


def prepare_first_stage(
    planned: Planned,
    stage: FirstStage,
    *,
    store: Path,
    folder: Path,
    patch_shape: Sequence[int],
    machine: Machine,
) -> Path:
    """Resamples the label maps to the cascade's grid; existing ones are kept.

    Args:
        planned: The dataset and its plan.
        stage: The first stage.
        store: The preprocessed cases of the cascade.
        folder: Folder to write to; the label maps get a subfolder for each digest of the stage.
        patch_shape: The patch of the cascade, 3 values.
        machine: The processes and memory that may be used.

    Returns:
        The folder of the label maps, inside `folder`.
    """
    folder = folder / stage.digest
    todo = [
        PreviousTask(name=name, found=path, store=store, folder=folder, patch_shape=patch_shape)
        for name, path in stage.found.items()
        if not is_prepared(folder, name)
    ]
    cases = {case.name: case for case in planned.dataset.labelled}
    pool = machine.pool(
        f"predictions of {stage.run.path.name}",
        need=lambda task: read_need(cases[task.name]),
        light=True,
    )
    for _ in case_bar(pool.what, len(todo))(pool.map(prepare_previous, todo)):
        pass
    return folder


def _train_again(
    run: RunFolder, planned: Planned, name: ConfigurationName, request: TrainRequest
) -> str:
    """Returns the command that trains a first stage, with its own source and tag."""
    again = request.replace(configuration=name, tag=run.tag or None)
    if run.source != planned.source:
        again = again.replace(pretrained=None, encoder_weights=None, like=None, own_plan=False)
    return train_command(run, without_unread(again, run), ())


def _label_maps(planned: Planned, fold: Path) -> dict[str, Path]:
    """Maps each case that a fold held out, and predicted, to its label map."""
    files = {}
    for case in planned.dataset.labelled:
        path = FoldFolder(fold).validation / label_name(case.name, case.images[0])
        if path.exists():
            files[case.name] = path
    return files
