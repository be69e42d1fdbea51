"""Prediction of folders of cases: what is finished stays, what fails is named at the end."""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import brief
from autoliver.datasets.cases import Labels
from autoliver.datasets.folds import folds_text
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.inference.lesions.table import LesionFiles, LesionTable
from autoliver.inference.options import UsedModality, UsedRegion
from autoliver.inference.record import RECORD_FILE
from autoliver.io.dicom.seg import needs_highdicom
from autoliver.pipeline.dicom.cases import (
    modality_of,
)
from autoliver.pipeline.dicom.segmentations import (
    label_map_of,
    refuse_files,
    refuse_foreign,
    write_segmentations,
)
from autoliver.pipeline.dicom.staging import discard, staged
from autoliver.pipeline.folder_shards import (
    arrange,
    claimed,
    gather,
    own_part,
    refuse_overwriting,
)
from autoliver.pipeline.inputs import (
    Failure,
    check_lesions,
    find_lesions,
    find_sources,
    name_folders_left_out,
)
from autoliver.pipeline.prediction import (
    PredictRequest,
    find_finder,
    locate,
    predict_as_asked,
    too_large,
)
from autoliver.pipeline.region import Finder, find_finders, truth_notes
from autoliver.pipeline.targets import Inputs
from autoliver.shards import Sharded
from autoliver.system import in_words
from autoliver.values import check_texts, counted, hints_of
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.inference.lesions.measure import CaseLesions
    from autoliver.inference.model import Model
    from autoliver.inference.predict import LabelArray, PredictJob
    from autoliver.inference.record import InputFile, Prediction
    from autoliver.models.files import ModelFiles
    from autoliver.pipeline.targets import Standing, Targets

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The result of `predict_folder`.

    Attributes:
        model: Name of the model that predicted.
        files: Label maps of all cases that are finished.
        new: Number of cases that were predicted now.
        skipped: Number of cases that were already finished.
        corrected: File names of those label maps that have been corrected since they were
            predicted; they stay.
        failures: The cases that were not predicted.
        lesions: The table of the lesions of all cases; None if the model has no labels of lesions.
        segmentations: DICOM segmentations of finished cases, if they are asked for.
        previews: The pictures of the label maps; empty unless they were asked for.
        shard: What was done, if it was a shard; the table of lesions is written without --shard.
    """

    model: str
    files: tuple[Path, ...]
    new: int
    skipped: int
    corrected: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    lesions: Path | None = None
    segmentations: tuple[Path, ...] = ()
    previews: tuple[Path, ...] = ()
    shard: Sharded | None = None

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "model": self.model,
            "predicted": self.new,
            "skipped": self.skipped,
            "corrected": list(self.corrected),
            "files": [str(path) for path in self.files],
            "failed": [dataclasses.asdict(failure) for failure in self.failures],
            "lesions": None if self.lesions is None else str(self.lesions),
            "segmentations": [str(path) for path in self.segmentations],
            "previews": [str(path) for path in self.previews],
            **({} if self.shard is None else self.shard.facts),
        }

    __repr__ = brief


class CasesFailed(AutoliverError):
    """Some of several cases were not predicted.

    Attributes:
        predicted: The result, with the cases that were predicted.
    """

    def __init__(self, problem: str, *, hint: str = "", predicted: Predicted | None = None) -> None:
        super().__init__(problem, hint=hint)
        self.predicted = predicted
        self.facts = {} if predicted is None else predicted.facts

    @classmethod
    def of(cls, predicted: Predicted) -> "CasesFailed":
        """Returns the error that names the cases, with their reasons, and each hint once."""
        failures = predicted.failures
        total = len(failures) + len(predicted.files)
        lines = [
            problem if problem.startswith(f"{case}: ") else f"{case}: {problem}"
            for case, problem in ((failure.case, failure.problem) for failure in failures)
        ]
        hint = hints_of((failure.case, failure.hint) for failure in failures)
        again = "The same command again predicts what is missing."
        return cls(
            "\n".join([f"{len(failures)} of {counted(total, 'case')} failed:", *lines]),
            hint=f"{hint}\n{again}".strip(),
            predicted=predicted,
        )


def predict_folder(
    workspace: Workspace,
    source: Path | Sequence[Path],
    output: Path,
    request: PredictRequest,
    *,
    models: Iterable[str] = (),
    folds: str | None = None,
) -> Predicted:
    """Predicts all cases of folders or files with a model of the workspace.

    The model, the options and the images are recorded beside the label maps
    (`inference/record.py`). A finished case whose image has changed is predicted again.

    Args:
        workspace: The workspace in which models are looked up.
        source: Folder of cases, or one file; or several of them.
        output: Folder for the label maps; or a file, for the label map of a single case.
        request: How to predict.
        models: Names of models, whose probabilities are averaged; empty for the only model of the
            workspace.
        folds: "0,2" or "all"; None for all finished or selected folds.

    Raises:
        ModelError: There is no such model, several could be meant, or it is damaged; or there is no
            model that finds the region to predict in.
        CasesFailed: Some cases lack a channel, cannot be read or do not fit the model; all others
            were predicted. A single case raises its own error.
        OptionError: Finished cases in the folder were predicted with another model or other
            options, or the output cannot take the label maps.
        MachineError: The output cannot be written.
    """
    from autoliver.models.files import MODEL_FILE, FoldModel, together

    names = check_texts("--model", models)
    sources = (source,) if isinstance(source, Path) else tuple(source)
    if not sources:
        raise OptionError("-i names no images.", hint="Give a folder of images, or images.")
    failures: list[Failure] = []
    chosen = together([workspace.model_to_predict(m, folds=folds) for m in names or (None,)])
    chosen, finders = _with_finders(workspace, chosen, request)
    first = FoldModel.load(chosen.members[0].folds[0] / MODEL_FILE)
    check_lesions(chosen.name, first, request.lesions)
    refuse_overwriting(request.shard, overwrite=request.overwrite)
    if request.format == "dicom-seg":
        needs_highdicom("--format dicom-seg")
        output = label_map_of(output)
    found = find_sources(sources, first.plan.channel_names, failures, request.series)
    if request.format == "dicom-seg":
        refuse_files(found.files)
    name_folders_left_out(found.plain, output)
    part = None
    if request.shard is not None:
        found, part = own_part(found, failures, request.shard)
        if not part.cases:
            return Predicted(model=chosen.name, files=(), new=0, skipped=0, shard=part)
    asked = _Asked(workspace, chosen, finders, first.plan.labels, request, folds)

    def note(name: str, error: AutoliverError) -> None:
        failures.append(Failure(case=name, problem=error.problem, hint=error.hint))

    limits = request.machine.limits
    with staged(workspace, found.series, output, note, limits) as images:
        inputs = Inputs(
            sources=sources,
            files={**found.files, **{name: (image,) for name, image in images.items()}},
            dicom={name: modality_of(found.series[name]) for name in images},
            series=found.series,
        )
        if not inputs.files and len(failures) == 1:
            raise DatasetError(failures[0].problem, hint=failures[0].hint)
        done = _predict_inputs(asked, inputs, output, failures)
    whole = part and dataclasses.replace(part, new=done.new)
    return dataclasses.replace(done, shard=whole)


@dataclass(frozen=True)
class _Asked:
    """What predicts, and how.

    Attributes:
        workspace: The workspace.
        model: The model.
        finders: What finds the regions that it predicts in.
        labels: The labels of the model.
        request: How to predict.
        folds: As in `predict_folder`.
    """

    workspace: Workspace
    model: "ModelFiles"
    finders: tuple[Finder, ...]
    labels: Labels
    request: PredictRequest
    folds: str | None


def _predict_inputs(
    asked: _Asked, inputs: Inputs, output: Path, failures: list[Failure]
) -> Predicted:
    """Predicts cases whose images are files; `failures` takes those that fail."""
    from autoliver.inference.record import describe
    from autoliver.pipeline.targets import find_standing, find_targets

    chosen, request = asked.model, asked.request
    lesions = find_lesions(request.lesions, inputs.files, failures)
    places = asked.workspace.names
    targets = find_targets(
        *(inputs, output),
        overwrite=request.overwrite,
        taken=places,
        lesions=lesions,
        shard=request.shard,
    )
    if request.format == "dicom-seg":
        refuse_foreign(targets.jobs)
    standing = find_standing(targets, request)
    jobs, todo = targets.jobs, standing.todo
    failures += [_stays(name, reason) for name, reason in standing.kept.items()]
    ways = {"folds": folds_text(asked.folds), "roi": request.roi}
    now = describe(chosen, request.options(), **ways, lesions=request.lesions)
    now = now.replace(finders={f.name: f.digest for f in asked.finders}, notes=truth_notes(chosen))
    for sentence in now.notes if todo else ():
        _log.warning("%s", sentence)
    gathering = request.shard is None and bool(targets.shards)
    with _claimed(targets, now) if todo or gathering else contextlib.nullcontext():
        record = _begin(targets, standing, now, overwrite=request.overwrite)
        if todo:
            # Pictures are drawn of the images in the end.
            dicom = frozenset() if request.preview else frozenset(inputs.dicom)
            work = _Recording(targets.record, record, request, failures, asked.finders, dicom)
            work.predict(chosen, standing)
        if gathering:
            arrange(targets)
    segmentations = _segmented(asked, inputs, targets, now, standing, failures)
    failed = {failure.case for failure in failures}
    done = Predicted(
        model=chosen.name,
        files=tuple(job.output for job in jobs if job.name not in failed),
        new=len([job for job in todo if job.name not in failed]),
        skipped=len(jobs) - len(todo) - len(standing.kept),
        corrected=tuple(standing.corrected),
        failures=tuple(failures),
        lesions=None if request.shard else _lesions_beside(targets),
        segmentations=segmentations,
        previews=_previews(targets, asked.labels, failed) if request.preview else (),
    )
    if failures and len(failures) + len(done.files) == 1:
        raise DatasetError(failures[0].problem, hint=failures[0].hint)
    if failures:
        raise CasesFailed.of(done)
    return done


def _segmented(
    asked: _Asked,
    inputs: Inputs,
    targets: "Targets",
    now: "Prediction",
    standing: "Standing",
    failures: list[Failure],
) -> tuple[Path, ...]:
    """Writes DICOM segmentations, if they are asked for; `failures` takes cases without one."""
    from autoliver.models.files import MODEL_FILE, FoldModel

    if asked.request.format != "dicom-seg":
        return ()
    failed = {failure.case for failure in failures}
    written, without = write_segmentations(
        [job for job in targets.jobs if job.name not in failed],
        inputs.series,
        now,
        codes=FoldModel.load(asked.model.members[0].folds[0] / MODEL_FILE).plan.codes,
        corrected=standing.corrected,
        seg_type=asked.request.seg_type,
    )
    for name, error in without.items():
        failures.append(Failure(case=name, problem=error.problem, hint=error.hint))
    return written


def _with_finders(
    workspace: Workspace, model: "ModelFiles", request: PredictRequest
) -> "tuple[ModelFiles, tuple[Finder, ...]]":
    """Returns a model with what finds the region that it predicts in, and the finders of its own.

    Raises:
        OptionError: It has its own, and another region is asked for.
        ModelError: There is no model that finds the region.
    """
    finders = find_finders(workspace, model, request.roi_from)
    if request.roi is None:
        return model, finders
    if finders:
        raise OptionError(
            f"--roi {request.roi}: {model.name} predicts in a region as it is, near the "
            f"{finders[0].roi.label}.",
            hint="Leave --roi out; --roi-from MODEL names another model that finds the region.",
        )
    return dataclasses.replace(model, finder=find_finder(workspace, model, request.roi)), finders


def _lesions_beside(targets: "Targets") -> Path | None:
    return LesionFiles.beside(targets.record, RECORD_FILE).written()


def _previews(targets: "Targets", labels: Labels, failed: Collection[str]) -> tuple[Path, ...]:
    """Draws the label maps of the cases that did not fail."""
    from autoliver.pipeline.previews import write_previews

    jobs = [job for job in targets.jobs if job.name not in failed]
    return tuple(write_previews(jobs, labels, targets.record))


def _stays(name: str, reason: str) -> Failure:
    hint = "Predict it into another folder with -o, or replace it with --overwrite."
    return Failure(case=name, problem=reason, hint=hint)


@contextlib.contextmanager
def _claimed(targets: "Targets", now: "Prediction") -> Iterator[None]:
    """Holds the output while it is written (`folder_shards.claimed`).

    Raises:
        AutoliverError: Another process predicts there with another model or other options.
        MachineError: The output cannot be written; that is noticed before the model is loaded.
    """
    folder = targets.record.parent
    with in_words(folder, verb="written"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    with claimed(targets, now):
        yield


def _begin(
    targets: "Targets", standing: "Standing", now: "Prediction", *, overwrite: bool
) -> "Prediction":
    """Returns the record as it will be; refuses to mix predictions of two models."""
    from autoliver.inference.record import begin_record, read_record, refuse_mixing

    todo, corrected = standing.todo, standing.corrected
    replaced = {job.output.name for job in todo if overwrite or job.name in standing.outdated}
    for file in (*targets.own_records, *targets.shards):
        then = read_record(file)
        refuse_mixing(then, now, replaced=replaced, corrected=corrected, path=file)
    if targets.shard is None and targets.shards:
        gather(targets, now)
    names = [job.output.name for job in todo]
    return begin_record(targets.record, now, names, replaced=replaced, corrected=corrected)


@dataclass
class _Recording:
    """A prediction that keeps the record of its folder.

    Attributes:
        path: The record's file.
        record: The record so far.
        request: How to predict.
        failures: Takes the cases that fail.
        finders: What finds the regions that the model predicts in.
        dicom: Names of cases whose image is removed when they are predicted: DICOM series.
        modalities: File names of label maps -> the modality that their images are normalised by.
    """

    path: Path
    record: "Prediction"
    request: PredictRequest
    failures: list[Failure]
    finders: tuple[Finder, ...]
    dicom: frozenset[str] = frozenset()
    modalities: dict[str, UsedModality] = field(default_factory=dict)

    @property
    def lesions(self) -> LesionFiles:
        """The tables of lesions beside the record."""
        return LesionFiles.beside(self.path, RECORD_FILE)

    def predict(self, files: "ModelFiles", standing: "Standing") -> None:
        """Predicts cases and records the images and the ways of computing that were used."""
        from autoliver.inference.model import check_histograms, load_model
        from autoliver.inference.predict import Listener, lesion_labels
        from autoliver.inference.record import (
            clear_outdated,
            input_files,
            own_records,
            save_record,
            voxel_hash,
            with_hashes,
        )
        from autoliver.networks.device import choose_device
        from autoliver.pipeline.targets import set_aside

        model = load_model(files, device=choose_device(self.request.machine.device))
        if self.request.match:
            check_histograms(model)
        which = lesion_labels(model)
        refused = too_large(model, standing.todo, self.request, outputs=bool(which.names))
        todo = [job for job in standing.todo if job.name not in refused]
        for job in standing.todo:
            if job.name in refused:
                self._fail(job, refused[job.name])
        set_aside(standing.set_aside)
        clear_outdated(self.path, self.record, todo, outdated=standing.outdated)
        save_record(self.path, self.record)
        for own in own_records(todo, self.path):
            own.unlink()
            LesionFiles.beside(own, RECORD_FILE).remove()
        before = {job.name: input_files(job.inputs) for job in todo}
        if todo and which.names:
            set_aside(self.lesions.foreign())
            made_from = {"prediction": self.record.way}
            table = LesionTable(
                made_from=made_from,
                classes=which.names,
                voted=which.voted,
                temperature=which.temperature,
            )
            self.lesions.begin(table, again={job.name for job in todo})

        def note(job: "PredictJob", predicted: "LabelArray", file: Path) -> None:
            made_from = with_hashes(before[job.name], job.inputs)
            self._note(model, job, made_from, voxel_hash(predicted), file)

        def decided(job: "PredictJob", found: UsedModality) -> None:
            self.modalities[job.output.name] = found

        def measured(job: "PredictJob", found: "CaseLesions") -> None:
            self.lesions.add(job.name, found)

        listener = Listener(
            on_modality=decided, on_lesions=measured, on_case=note, on_failure=self._fail
        )
        todo = locate(self.finders, todo, self.request, listener=listener)
        if todo:
            predict_as_asked(model, todo, self.request, listener=listener)

    def _note(
        self,
        model: "Model",
        job: "PredictJob",
        made_from: "tuple[InputFile, ...]",
        predicted: str,
        file: Path,
    ) -> None:
        """Records a label map that is about to get its name."""
        from autoliver.inference.record import save_record

        name, asked = job.output.name, self.request
        # That of an earlier label map; its name may be longer than the disk takes.
        with contextlib.suppress(OSError):
            job.preview.unlink()
        further = job.further(probabilities=asked.probabilities, uncertainty=asked.uncertainty)
        record = self.record.with_ways(model, exact=self.request.exact)
        files = [file, *further]
        regions = tuple(
            UsedRegion(label=f.roi.label, finder=f.name, box=job.boxes[f.roi.key])
            for f in self.finders
        )
        self.record = record.with_case(
            name, made_from, predicted, files, self.modalities[name], regions
        )
        save_record(self.path, self.record)
        if job.name in self.dicom:
            discard(job.images[0])

    def _fail(self, job: "PredictJob", error: AutoliverError) -> None:
        _log.warning("Failed: %s", error.problem)
        self.failures.append(Failure(case=job.name, problem=error.problem, hint=error.hint))
