"""Prediction of a folder of cases with a trained model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.dataset import find_case_images
from autoliver.needs import overlap_fits, overlap_need
from autoliver.parallel import NO_LIMITS, Limits, Need, window_bars
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.inference.model import Model, ModelFiles


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """How `predict` was asked to work.

    Attributes:
        step: Distance of neighbouring windows as a share of the patch.
        mirror: Average over flips, where the model was trained to see them.
        overwrite: Predict finished cases again.
        probabilities: Write them, too.
        uncertainty: Write a map of it, too.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        limits: Memory.
    """

    step: float = 0.5
    mirror: bool = True
    overwrite: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    device: str = "auto"
    limits: Limits = NO_LIMITS


def predict(
    files: "ModelFiles",
    cases: Mapping[str, Sequence[Path]],
    output: Path,
    request: PredictRequest,
) -> dict[str, Path]:
    """Predicts cases with a model; finished cases are skipped.

    Returns:
        Case -> label map, finished ones included.
    """
    from autoliver.inference.model import load_model
    from autoliver.inference.predict import PredictOptions, make_jobs, predict_jobs
    from autoliver.networks.device import choose_device

    jobs = make_jobs(cases, output)
    todo = [job for job in jobs if request.overwrite or not job.finished]
    if todo:
        model = load_model(files, device=choose_device(request.device))
        needs = [_need(job.name, job.images, model) for job in todo]
        options = PredictOptions(
            step=request.step,
            mirror=request.mirror,
            overlap=overlap_fits(needs, request.limits),
            probabilities=request.probabilities,
            uncertainty=request.uncertainty,
        )
        with window_bars(len(todo)) as on_windows:
            predict_jobs(model, todo, options, on_windows=on_windows)
    return {job.name: job.output for job in jobs}


def _need(name: str, images: Sequence[Path], model: "Model") -> Need:
    """Of a case in all members of a model at once."""
    each = [overlap_need(name, images, m.plan, m.configuration) for m in model.members]
    return Need(name=name, gb=sum(need.gb for need in each))


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
    models: Sequence[str] = (),
    folds: str | None = None,
) -> Predicted:
    """Predicts all cases of a folder (or one file) with a model of the workspace.

    Args:
        workspace: Where models are looked up.
        source: Folder of cases, or one file.
        output: Folder for the label maps.
        request: How.
        models: Names of models, averaged; none: the workspace's only one.
        folds: "0,2" or "all": instead of all finished or selected folds.

    Raises:
        ModelError: No model, several that could be meant, or a damaged one.
        DatasetError: A case lacks a channel or does not fit the model.
    """
    from autoliver.inference.model import MODEL_FILE, FoldModel, together

    chosen = together([workspace.model_to_predict(m, folds=folds) for m in models or (None,)])
    plan = FoldModel.load(chosen.members[0].folds[0] / MODEL_FILE).plan
    cases = find_case_images(source, channels=len(plan.channel_names), file_ending=None)
    before = set(output.glob("*"))
    files = predict(chosen, cases, output, request)
    skipped = 0 if request.overwrite else len(before & set(files.values()))
    return Predicted(
        model=chosen.name,
        files=tuple(files.values()),
        new=len(files) - skipped,
        skipped=skipped,
    )
