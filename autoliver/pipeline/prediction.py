"""Prediction of a folder of cases with a trained model."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.commands import command
from autoliver.errors import ModelError, OptionError
from autoliver.inference.options import ModalityChoice, OutputFormat, PredictOptions
from autoliver.io.dicom.codes import SegType
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.needs import Held, Stage, overlap_fits, overlap_need, single_need
from autoliver.parallel import Need, over_budget, window_bars
from autoliver.pipeline.dicom.cases import series_words
from autoliver.pipeline.region import Finder, find_finders, home_of
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Plan
from autoliver.shards import Shard
from autoliver.values import check_text, check_types, set_field
from autoliver.workspace import DatasetFolder, ModelFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.inference.ensemble import Output
    from autoliver.inference.model import Model
    from autoliver.inference.predict import Export, Listener, PredictJob
    from autoliver.models.files import MemberFiles, ModelFiles
    from autoliver.preprocessing.crop import Bounds

_LOW: ConfigurationName = "3d_lowres"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """A request to `predict`.

    Attributes:
        step: Distance between neighbouring windows as a share of the patch.
        mirror: Whether to average over flips, along the axes that training flipped.
        overwrite: Whether to predict finished cases again.
        probabilities: Whether to write the probabilities as well; a finished case without them is
            predicted again.
        uncertainty: Whether to write a map of the uncertainty as well; a finished case without it
            is predicted again.
        preview: Whether to draw a picture of each label map as well; finished cases are drawn
            without predicting them again.
        roi: "auto" predicts only near the foreground that the low-resolution run of the same
            dataset finds; the name of a model, near the foreground that it finds; None predicts
            everywhere.
        roi_from: The model that finds the region which the model predicts in; None for the one that
            it was trained with, or for a model of whole scans.
        modality: The modality by which each case is normalised: "CT", "MR", or "auto" for what the
            case looks like. None normalises as the model was planned, which is right for cases of
            its own dataset.
        exact: Whether to compute in float32 with the unchanged networks; nothing is then chosen by
            timing.
        match: Whether the grey values of cases of another modality than the model's are matched to
            those of its training images.
        lesions: Folder with a label map of each case, whose lesions alone get a class; None to find
            lesions.
        series: Numbers, descriptions or case names of the DICOM series to predict; empty for all.
        format: "dicom-seg" writes a DICOM segmentation beside each label map as well, for cases
            that are DICOM series; "nifti" writes label maps alone.
        seg_type: "binary" segmentations have a mask for each label, "labelmap" one map for all.
        shard: The part of the cases to predict; None for all of them.
        machine: The device and memory that may be used.
    """

    step: float = 0.5
    mirror: bool = True
    overwrite: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    preview: bool = False
    roi: str | None = None
    roi_from: str | None = None
    modality: ModalityChoice | None = "auto"
    exact: bool = False
    match: bool = False
    lesions: Path | None = None
    series: tuple[str, ...] = ()
    format: OutputFormat = "nifti"
    seg_type: SegType = "binary"
    shard: Shard | None = None
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        set_field(self, "series", series_words(self.series))
        check_types(self)
        self.options()
        if self.roi is not None:
            check_text("--roi", self.roi, "auto, off or the name of a model")
        if self.roi_from is not None:
            check_text("--roi-from", self.roi_from, "the name of a model")

    def options(self, *, overlap: bool = True) -> PredictOptions:
        """Returns the options of prediction, with or without work on several cases at a time."""
        return PredictOptions(
            step=self.step,
            mirror=self.mirror,
            overlap=overlap,
            probabilities=self.probabilities,
            uncertainty=self.uncertainty,
            modality=self.modality,
            exact=self.exact,
            match=self.match,
        )


def predict(
    files: "ModelFiles",
    cases: Mapping[str, Sequence[Path]],
    output: Path,
    request: PredictRequest,
    *,
    references: Mapping[str, Path] | None = None,
) -> dict[str, Path]:
    """Predicts cases with a model; finished cases are skipped.

    Args:
        files: The model.
        cases: Maps each case to its image files.
        output: Folder for the label maps.
        request: How to predict.
        references: Maps cases to their reference label maps, in which a model trained with
            --roi-truth looks for its region; None if they are not to be read.

    Returns:
        Maps each case, finished ones included, to its label map.
    """
    from autoliver.inference.predict import make_jobs

    return predict_unfinished(files, make_jobs(cases, output), request, references=references)


def predict_unfinished(
    files: "ModelFiles",
    jobs: "Sequence[PredictJob]",
    request: PredictRequest,
    *,
    again: Collection[str] = (),
    listener: "Listener | None" = None,
    references: Mapping[str, Path] | None = None,
) -> dict[str, Path]:
    """Predicts cases with a model; finished cases are skipped.

    Args:
        files: The model.
        jobs: The cases to predict.
        request: How to predict.
        again: Cases that are predicted even if they are finished.
        listener: As in `predict_jobs`.
        references: As for `predict`.

    Returns:
        Maps each case, finished ones included, to its label map.
    """
    from autoliver.inference.model import load_model
    from autoliver.networks.device import choose_device

    wanted = {job.name for job in jobs} if request.overwrite else set(again)
    todo = [job for job in jobs if job.name in wanted or not is_complete(job, request)]
    if todo:
        home = home_of(files)
        finders = find_finders(home, files, request.roi_from, referred=references is not None)
        todo = locate(finders, todo, request, references=references)
        model = load_model(files, device=choose_device(request.machine.device))
        predict_as_asked(model, todo, request, listener=listener)
    return {job.name: job.output for job in jobs}


def predict_as_asked(
    model: "Model",
    jobs: "Sequence[PredictJob]",
    request: PredictRequest,
    *,
    export: "Export | None" = None,
    listener: "Listener | None" = None,
) -> None:
    """Predicts cases with a progress bar, and reads ahead if memory allows.

    Args:
        model: The model to predict with.
        jobs: The cases to predict.
        request: How to predict.
        export: As in `predict_jobs`.
        listener: As in `predict_jobs`; the windows are shown in the bar.

    Raises:
        OptionError: A case needs more memory than may be used, and failures are not taken; nothing
            has been begun.
    """
    from autoliver.inference.predict import Listener, lesion_labels, predict_jobs
    from autoliver.networks.threads import threads_of

    lesions = listener is not None and listener.on_lesions is not None
    outputs = export is not None or (lesions and bool(lesion_labels(model).names))
    jobs = _that_fit(jobs, too_large(model, jobs, request, outputs=outputs), listener)
    if not jobs:
        return
    held = held_by(model, request, outputs=outputs)
    needs = [model_need(job.name, job.images, model, held) for job in jobs]
    options = request.options(overlap=overlap_fits(needs, request.machine.limits))
    device, asked = model.members[0].device, request.machine.threads
    with (
        threads_of(asked, device, timed=not request.exact, say=_log.info),
        window_bars(len(jobs), parts=len(model.parts)) as bar,
    ):
        heard = (listener or Listener()).shown(bar.start, bar.drop)
        predict_jobs(model, jobs, options, listener=heard, export=export)


def _that_fit(
    jobs: "Sequence[PredictJob]",
    refused: Mapping[str, OptionError],
    listener: "Listener | None",
) -> "list[PredictJob]":
    """The cases that are not refused; a listener that takes failures is told of the others."""
    take = None if listener is None else listener.on_failure
    for name, error in refused.items():
        if take is None:
            raise error
        take(next(job for job in jobs if job.name == name), error)
    return [job for job in jobs if job.name not in refused]


def locate(
    finders: "Sequence[Finder]",
    jobs: "Sequence[PredictJob]",
    request: PredictRequest,
    *,
    references: Mapping[str, Path] | None = None,
    listener: "Listener | None" = None,
) -> "list[PredictJob]":
    """Finds the regions of cases, which a model then predicts in.

    Args:
        finders: What finds the regions that the model needs.
        jobs: The cases.
        request: How to predict.
        references: Maps cases to their reference label maps, where these are the finder.
        listener: Takes the cases that fail.

    Returns:
        The cases with their regions; without those that failed and were taken.
    """
    for finder in finders:
        if finder.files is None:
            found = {job.name: _drawn(finder, (references or {})[job.name]) for job in jobs}
        else:
            found = find_boxes(finder, jobs, request, listener=listener)
        jobs = [
            replace(job, boxes={**job.boxes, finder.roi.key: found[job.name]})
            for job in jobs
            if job.name in found
        ]
        for name in (name for name, box in found.items() if box is None):
            _log.warning(
                "%s: %s shows no %s, so the whole scan is predicted.",
                *(name, finder.name, finder.roi.label),
            )
    return list(jobs)


def find_boxes(
    finder: "Finder",
    jobs: "Sequence[PredictJob]",
    request: PredictRequest,
    *,
    listener: "Listener | None" = None,
    on_box: "Callable[[str, Bounds | None], object]" = lambda _, __: None,
) -> "dict[str, Bounds | None]":
    """Predicts cases with the model that finds a region. A rough outline is enough: no flips.

    Args:
        finder: The finder; it has a model.
        jobs: The cases; no label maps are written.
        request: How to predict.
        listener: Takes the cases that fail.
        on_box: Called with the name of each case and its box.

    Returns:
        Case -> the box of the label on the image's grid; None if it is not found. Cases that failed
        and were taken are missing.
    """
    import numpy as np

    from autoliver.inference.model import load_model
    from autoliver.inference.predict import label_map
    from autoliver.networks.device import choose_device
    from autoliver.preprocessing.region import organ_box

    if finder.files is None:
        raise ValueError("there is no model to predict with")
    if not jobs:
        return {}
    model = load_model(finder.files, device=choose_device(request.machine.device))
    found: dict[str, Bounds | None] = {}

    def take(job: "PredictJob", outputs: "Sequence[Output]") -> None:
        labels = label_map(model, outputs, job.name)
        found[job.name] = organ_box(np.isin(labels, finder.values))
        on_box(job.name, found[job.name])

    rough = PredictRequest(
        mirror=False,
        modality=request.modality,
        exact=request.exact,
        match=request.match,
        machine=request.machine,
    )
    predict_as_asked(model, jobs, rough, export=take, listener=listener)
    return found


def _drawn(finder: "Finder", reference: Path) -> "Bounds | None":
    """The box of the region in a reference label map."""
    import numpy as np

    from autoliver.io.files import read_label
    from autoliver.preprocessing.region import organ_box

    return organ_box(np.isin(read_label(reference).array[0], finder.values))


def is_complete(job: "PredictJob", request: PredictRequest) -> bool:
    """Whether all requested files of a case exist."""
    return job.complete(probabilities=request.probabilities, uncertainty=request.uncertainty)


def too_large(
    model: "Model", jobs: "Sequence[PredictJob]", request: PredictRequest, *, outputs: bool
) -> dict[str, OptionError]:
    """Finds the cases that are too large for the memory, before anything is read or written.

    Args:
        model: The model.
        jobs: The cases.
        request: How to predict.
        outputs: As for `held_by`.
    """
    stages, held = stages_of(model), held_by(model, request, outputs=outputs)
    needs = [single_need(job.name, job.images, stages, held) for job in jobs]
    asked = {"--probabilities": request.probabilities, "--uncertainty": request.uncertainty}
    instead = [f"predict without {option}" for option, given in asked.items() if given]
    instead += ["predict with one of its members alone"] if len(model.members) > 1 else []
    return over_budget(needs, request.machine.limits, "predict", instead=instead)


def stages_of(model: "Model") -> list[Stage]:
    """Returns all that is run on an image, for estimates of memory."""
    return [Stage(part.plan, part.configuration) for part in model.parts]


def held_by(model: "Model", request: PredictRequest, *, outputs: bool) -> Held:
    """What a prediction holds of the outputs for a whole scan; label maps alone may do.

    Args:
        model: The model.
        request: How to predict.
        outputs: Whether more than a label map is made of the outputs: how sure a model is of each
            lesion is told from them.
    """
    from autoliver.networks.device import on_gpu

    several = len(model.members) > 1 or model.votes or request.probabilities or request.uncertainty
    averaged = all(m.configuration.average == "logits" for m in model.members)
    gpu = on_gpu(model.members[0].device)
    if averaged and not (several or outputs or model.finder or (request.exact and gpu)):
        return Held(slab=not gpu)
    return Held(
        # The spread of the folds is another; what is known only near a region is put into a whole.
        logits=1 + request.uncertainty + bool(model.finder and (several or outputs)),
        # Those of one fold, before they are added to those of the others.
        passing=int(request.uncertainty and any(len(m.networks) > 1 for m in model.members)),
        # While classes decide together, their own rows and two copies are there.
        rows=3 * len(model.lesion_classes) * model.votes,
        # One array and its copy in the order of axes of the image; the map of uncertainty and
        # components of lesions have one value per voxel.
        maps=2 * request.probabilities,
        values=3 * request.uncertainty + outputs,
    )


def model_need(name: str, images: Sequence[Path], model: "Model", held: Held | None = None) -> Need:
    """Estimates the memory that a case needs in all members of a model, with others beside it."""
    return overlap_need(name, images, stages_of(model), held or Held(logits=1))


def find_finder(workspace: Workspace, model: "ModelFiles", roi: str) -> "MemberFiles":
    """Returns the fold that finds the region to predict in.

    One fold is used, since a rough outline is enough.

    Args:
        workspace: The workspace in which models are looked up.
        model: The model that will predict in the region.
        roi: "auto" for the low-resolution run of the same dataset, or the name of a model.

    Raises:
        ModelError: There is no such run or model.
    """
    from autoliver.models.files import MemberFiles, one_fold

    if roi != "auto":
        first = workspace.model_to_predict(roi).members[0]
        # A cascade begins with a coarse stage of its own.
        return MemberFiles(folds=(one_fold(first.previous or first.folds),))
    place = model.members[0].folds[0].parent
    if not isinstance(place, Path):
        raise ModelError(
            f"--roi auto: {model.name} is a single file, without other runs beside it.",
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
    # Runs with the same source and the same tag come first, then those with empty ones.
    beside.sort(
        key=lambda each: (each.source != run.source, each.tag != run.tag, each.source, each.tag)
    )
    return MemberFiles(folds=(one_fold(beside[0].finished),))


def _to_train(folder: ModelFolder) -> str:
    other = "or name any model that finds the organ: --roi MODEL."
    plan = DatasetFolder(folder.path).plan
    if plan.exists() and _LOW not in Plan.load(plan).configurations:
        return f"The plan has no {_LOW}: leave out --roi, {other}"
    train = command("train", folder.name, _LOW, workspace=folder.path.parent)
    return f"Train it ({train}), {other}"
