"""Prediction of a folder of cases with a trained model."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoliver.dataset import find_case_images
from autoliver.needs import overlap_fits, overlap_need
from autoliver.parallel import NO_LIMITS, Limits, window_bars
from autoliver.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """How `predict` was asked to work."""

    step: float = 0.5
    mirror: bool = True
    overwrite: bool = False
    device: str = "auto"
    limits: Limits = NO_LIMITS
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
