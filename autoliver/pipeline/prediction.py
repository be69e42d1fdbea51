"""Prediction of a folder of cases with a trained model."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.datasets.cases import find_case_images
from autoliver.datasets.folds import folds_text
from autoliver.errors import ModelError
from autoliver.inference.options import ModalityChoice, PredictOptions
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.needs import overlap_fits, overlap_need, refuse_over_budget, single_need
from autoliver.parallel import Need, window_bars
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Plan
from autoliver.values import check_text, check_texts, check_types
from autoliver.workspace import DatasetFolder, ModelFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.inference.model import Model
    from autoliver.inference.predict import Export, PredictJob
    from autoliver.inference.record import Prediction
    from autoliver.models.files import MemberFiles, ModelFiles

_LOW: ConfigurationName = "3d_lowres"


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """How `predict` was asked to work.

    Attributes:
        step: Distance of neighbouring windows as a share of the patch.
        mirror: Average over flips, where the model was trained to see them.
        overwrite: Predict finished cases again.
        probabilities: Write them as well; a finished case without them is predicted again.
        uncertainty: Write a map of it as well; a finished case without it is predicted again.
        roi: "auto": look only near what the low-resolution run beside the model finds; a model's
            name: near what that one finds; None: everywhere.
        modality: By which each case is normalised: "CT", "MR", or "auto", what it looks like; None:
            what the model was planned for, which its own dataset's cases are.
        exact: Compute in float32 with the networks as they are; nothing is chosen by timing.
        machine: The device and memory that may be used.
    """

    step: float = 0.5
    mirror: bool = True
    overwrite: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    roi: str | None = None
    modality: ModalityChoice | None = "auto"
    exact: bool = False
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses values that cannot be.

        Raises:
            OptionError: Naming the option and its value.
        """
        check_types(self)
        self.options()
        if self.roi is not None:
            check_text("--roi", self.roi, "auto, off or the name of a model")

    def options(self, *, overlap: bool = True) -> PredictOptions:
        """How a model predicts, with or without work on several cases at a time."""
        return PredictOptions(
            step=self.step,
            mirror=self.mirror,
            overlap=overlap,
            probabilities=self.probabilities,
            uncertainty=self.uncertainty,
            modality=self.modality,
            exact=self.exact,
        )


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
    from autoliver.inference.predict import make_jobs
    from autoliver.networks.device import choose_device

    jobs = make_jobs(cases, output)
    todo = _todo(jobs, request)
    if todo:
        model = load_model(files, device=choose_device(request.machine.device))
        _check_memory(model, todo, request)
        predict_as_asked(model, todo, request)
    return {job.name: job.output for job in jobs}


def predict_as_asked(
    model: "Model",
    jobs: "Sequence[PredictJob]",
    request: PredictRequest,
    *,
    export: "Export | None" = None,
    on_case: Callable[[], object] = lambda: None,
) -> None:
    """Predicts with a bar, reading ahead where memory allows.

    Args:
        model: What predicts.
        jobs: The cases.
        request: How.
        export: As in `predict_jobs`.
        on_case: As in `predict_jobs`.
    """
    from autoliver.inference.predict import predict_jobs

    needs = [model_need(job.name, job.images, model) for job in jobs]
    options = request.options(overlap=overlap_fits(needs, request.machine.limits))
    with window_bars(len(jobs)) as on_windows:
        predict_jobs(model, jobs, options, on_windows=on_windows, export=export, on_case=on_case)


def _todo(jobs: "Sequence[PredictJob]", request: PredictRequest) -> "list[PredictJob]":
    """The cases that lack something that was asked for."""

    def complete(job: "PredictJob") -> bool:
        return job.complete(probabilities=request.probabilities, uncertainty=request.uncertainty)

    return [job for job in jobs if request.overwrite or not complete(job)]


def _check_memory(model: "Model", jobs: "Sequence[PredictJob]", request: PredictRequest) -> None:
    """Refuses a case that is far too large for the memory, before anything is read or written."""
    parts = model.parts
    needs = [
        max(
            (single_need(job.name, job.images, p.plan, p.configuration) for p in parts),
            key=lambda need: need.gb,
        )
        for job in jobs
    ]
    refuse_over_budget(needs, request.machine.limits, "predict")


def model_need(name: str, images: Sequence[Path], model: "Model") -> Need:
    """What a case needs in all members of a model at once."""
    every = (*model.members, *filter(None, [model.finder]))
    each = [overlap_need(name, images, m.plan, m.configuration) for m in every]
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
    models: Iterable[str] = (),
    folds: str | None = None,
) -> Predicted:
    """Predicts all cases of a folder (or one file) with a model of the workspace.

    What they were predicted with is written beside them (`inference/record.py`).

    Args:
        workspace: Where models are looked up.
        source: Folder of cases, or one file.
        output: Folder for the label maps.
        request: How.
        models: Names of models, averaged; none: the workspace's only one.
        folds: "0,2" or "all": instead of all finished or selected folds.

    Raises:
        ModelError: No model, several that could be meant, or a damaged one; no model that finds
            the region to look in.
        DatasetError: A case lacks a channel or does not fit the model.
        OptionError: Finished cases in the folder were predicted with another model or other
            options.
    """
    from autoliver.inference.predict import make_jobs
    from autoliver.inference.record import begin_record, describe
    from autoliver.models.files import MODEL_FILE, FoldModel, together

    names = check_texts("--model", models)
    chosen = together([workspace.model_to_predict(m, folds=folds) for m in names or (None,)])
    if request.roi is not None:
        chosen = dataclasses.replace(chosen, finder=find_finder(workspace, chosen, request.roi))
    plan = FoldModel.load(chosen.members[0].folds[0] / MODEL_FILE).plan
    cases = find_case_images(source, channels=len(plan.channel_names), file_ending=None)
    jobs = make_jobs(cases, output)
    todo = _todo(jobs, request)
    now = describe(chosen, request.options(), folds=folds_text(folds), roi=request.roi)
    record = begin_record(output, now, [job.output.name for job in todo])
    if todo:
        _predict_recorded(chosen, todo, request, record)
    return Predicted(
        model=chosen.name,
        files=tuple(job.output for job in jobs),
        new=len(todo),
        skipped=len(jobs) - len(todo),
    )


def _predict_recorded(
    files: "ModelFiles", todo: "Sequence[PredictJob]", request: PredictRequest, record: "Prediction"
) -> None:
    """Predicts cases of one folder, and keeps its record of the ways that are taken."""
    from autoliver.inference.model import load_model
    from autoliver.inference.record import clear_outdated, save_record
    from autoliver.networks.device import choose_device

    output = todo[0].output.parent
    model = load_model(files, device=choose_device(request.machine.device))
    _check_memory(model, todo, request)
    clear_outdated(output, record)
    save_record(output, record)
    known = record

    def note() -> None:
        nonlocal known
        now = known.with_ways(model, exact=request.exact)
        if now != known:
            save_record(output, now)
            known = now

    predict_as_asked(model, todo, request, on_case=note)


def find_finder(workspace: Workspace, model: "ModelFiles", roi: str) -> "MemberFiles":
    """What finds the region to look in: one fold, since a rough outline is enough.

    Args:
        workspace: Where models are looked up.
        model: What will look there.
        roi: "auto" for the low-resolution run beside it, or the name of a model.

    Raises:
        ModelError: There is none.
    """
    from autoliver.models.files import MemberFiles, one_fold

    if roi != "auto":
        first = workspace.model_to_predict(roi).members[0]
        # A cascade begins with a coarse stage of its own.
        return MemberFiles(folds=(one_fold(first.previous or first.folds),))
    place = model.members[0].folds[0].parent
    if not isinstance(place, Path):
        raise ModelError(
            f"--roi auto: {model.name} is one file, without other runs beside it.",
            hint="Name a model that finds the organ: --roi MODEL.",
        )
    run = RunFolder(place)
    folder = ModelFolder(run.path.parent.parent)
    if run.configuration == _LOW:
        raise ModelError(
            f"--roi auto: {run.name} is of low resolution itself.",
            hint="Leave out --roi, or name a coarser model that finds the organ: --roi MODEL.",
        )
    beside = [each for each in folder.runs if each.configuration == _LOW]
    if not beside:
        raise ModelError(
            f"--roi auto: {run.name} has no trained {_LOW} run beside it.", hint=_to_train(folder)
        )
    # The one like it in source and tag, else the one without.
    beside.sort(
        key=lambda each: (each.source != run.source, each.tag != run.tag, each.source, each.tag)
    )
    return MemberFiles(folds=(one_fold(beside[0].finished),))


def _to_train(folder: ModelFolder) -> str:
    other = "or name any model that finds the organ: --roi MODEL."
    plan = DatasetFolder(folder.path).plan
    if plan.exists() and _LOW not in Plan.load(plan).configurations:
        return f"The plan has no {_LOW}: leave out --roi, {other}"
    return f"Train it (autoliver train {folder.name} {_LOW}), {other}"
