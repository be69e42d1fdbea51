"""Prediction of folders of cases: what is finished stays, what fails is named at the end."""

import dataclasses
import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import brief
from autoliver.datasets.cases import find_case_images
from autoliver.datasets.folds import folds_text
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.header import label_ending, split_ending
from autoliver.pipeline.prediction import (
    PredictRequest,
    check_memory,
    find_finder,
    is_complete,
    predict_as_asked,
)
from autoliver.system import in_words
from autoliver.values import check_texts, counted
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.inference.model import Model
    from autoliver.inference.predict import LabelArray, PredictJob
    from autoliver.inference.record import InputFile, Prediction
    from autoliver.models.files import ModelFiles

_log = logging.getLogger(__name__)
_SHOWN = 10  # failed cases named in one message
_WITH_GRID = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A case that was not predicted.

    Attributes:
        case: Its name.
        problem: Why.
        hint: What to do about it.
    """

    case: str
    problem: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The result of `predict_folder`.

    Attributes:
        model: Name of the model that predicted.
        files: Label maps of all cases that are finished.
        new: Number of cases that were predicted now.
        skipped: Number of cases that were already finished.
        failures: The cases that were not predicted.
    """

    model: str
    files: tuple[Path, ...]
    new: int
    skipped: int
    failures: tuple[Failure, ...] = ()

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "model": self.model,
            "predicted": self.new,
            "skipped": self.skipped,
            "files": [str(path) for path in self.files],
            "failed": [dataclasses.asdict(failure) for failure in self.failures],
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
        """Returns the error that names the cases, with their reasons and all hints once."""
        failures = predicted.failures
        total = len(failures) + len(predicted.files)
        lines = [failure.problem for failure in failures[:_SHOWN]]
        if len(failures) > _SHOWN:
            lines.append(f"... and {len(failures) - _SHOWN} more")
        hints = dict.fromkeys(failure.hint for failure in failures if failure.hint)
        return cls(
            "\n".join([f"{len(failures)} of {counted(total, 'case')} failed:", *lines]),
            hint=" ".join([*hints, "The same command again predicts what is missing."]),
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
    from autoliver.inference.record import (
        begin_record,
        describe,
        own_records,
        read_record,
        refuse_mixing,
    )
    from autoliver.models.files import MODEL_FILE, FoldModel, together

    names = check_texts("--model", models)
    sources = (source,) if isinstance(source, Path) else tuple(source)
    failures: list[Failure] = []
    chosen = together([workspace.model_to_predict(m, folds=folds) for m in names or (None,)])
    if request.roi is not None:
        chosen = dataclasses.replace(chosen, finder=find_finder(workspace, chosen, request.roi))
    plan = FoldModel.load(chosen.members[0].folds[0] / MODEL_FILE).plan
    cases = find_cases(sources, len(plan.channel_names), failures)
    jobs, path = _jobs(sources, cases, output, overwrite=request.overwrite)
    own = own_records(jobs, path)
    changed = _changed(jobs, (*own, path), request)
    todo = [
        job
        for job in jobs
        if request.overwrite or job.name in changed or not is_complete(job, request)
    ]
    replaced = {job.output.name for job in todo if request.overwrite or job.name in changed}
    now = describe(chosen, request.options(), folds=folds_text(folds), roi=request.roi)
    for file in own:
        refuse_mixing(read_record(file), now, replaced=replaced, folder=path.parent)
    record = begin_record(path, now, [job.output.name for job in todo], replaced=replaced)
    if todo:
        _check_writable(path.parent)
        _Recording(path, record, request, failures).predict(chosen, todo, changed=changed)
    failed = {failure.case for failure in failures}
    done = Predicted(
        model=chosen.name,
        files=tuple(job.output for job in jobs if job.name not in failed),
        new=len([job for job in todo if job.name not in failed]),
        skipped=len(jobs) - len(todo),
        failures=tuple(failures),
    )
    if failures and len(failures) + len(done.files) == 1:
        raise DatasetError(failures[0].problem, hint=failures[0].hint)
    if failures:
        raise CasesFailed.of(done)
    return done


def find_cases(
    sources: Sequence[Path], channels: int, failures: list[Failure]
) -> dict[str, tuple[Path, ...]]:
    """Finds the images of all cases.

    Args:
        sources: Folders of cases, or files.
        channels: Number of channels of a case.
        failures: Takes the cases that lack a channel, which are left out.

    Raises:
        DatasetError: A source has no images.
        OptionError: Two sources have a case of the same name.
    """

    def note(name: str, error: DatasetError) -> None:
        failures.append(Failure(case=name, problem=error.problem, hint=error.hint))

    found: dict[str, tuple[Path, ...]] = {}
    place: dict[str, Path] = {}  # of failures as well
    for source in sources:
        before = len(failures)
        cases = find_case_images(source, channels=channels, file_ending=None, on_problem=note)
        for name in (*cases, *(failure.case for failure in failures[before:])):
            if name in place:
                raise OptionError(
                    f"-i: the case {name} is in {place[name]} and in {source}.",
                    hint="Predict them into two folders, or rename one of them.",
                )
            place[name] = source
        found |= cases
    return found


def _jobs(
    sources: Sequence[Path],
    cases: dict[str, tuple[Path, ...]],
    output: Path,
    *,
    overwrite: bool,
) -> "tuple[list[PredictJob], Path]":
    """Returns the cases with the files to write, and the file of the record.

    Raises:
        OptionError: The output cannot take the label maps.
    """
    from autoliver.inference.predict import make_jobs
    from autoliver.inference.record import RECORD_FILE

    for source in sources:
        if source.is_dir() and output.resolve() == source.resolve():
            raise OptionError(
                f"-o {output}: this is the folder of the images (-i), where the label maps would "
                "be taken for images the next time.",
                hint="Choose another folder with -o, e.g. one inside it.",
            )
    if not split_ending(output.name)[1] or output.is_dir():
        return make_jobs(cases, output), output / RECORD_FILE
    if len(cases) != 1 or any(source.is_dir() for source in sources):
        raise OptionError(
            f"-o {output}: one file, but -i names {counted(len(cases), 'case')}.",
            hint="Name a folder with -o.",
        )
    ((name, images),) = cases.items()
    job, path = _one_job(name, images, output)
    if output.is_file() and not overwrite and not _is_recorded(job, path):
        raise OptionError(
            f"-o {output}: this file exists, and {path.name} does not say that it was predicted.",
            hint="Choose another file with -o, or replace it with --overwrite.",
        )
    return [job], path


def _one_job(name: str, images: tuple[Path, ...], output: Path) -> "tuple[PredictJob, Path]":
    """Returns a case with the file that is named for its label map, and that of the record.

    Raises:
        OptionError: The file cannot take the label map.
    """
    from autoliver.inference.predict import PredictJob
    from autoliver.inference.record import RECORD_FILE, own_record, read_record

    stem, ending = split_ending(output.name)
    like_image = label_ending(split_ending(images[0].name)[1])
    # Pictures do not say where in the body they are.
    if ending not in (*_WITH_GRID, like_image):
        better = label_ending(ending)
        better = better if better in (*_WITH_GRID, like_image) else like_image
        raise OptionError(
            f"-o {output}: {ending} cannot hold label maps of {images[0].name}.",
            hint=f"Choose {stem}{better}.",
        )
    job = PredictJob(name=name, images=images, output=output)
    if output.resolve() in {image.resolve() for image in images}:
        raise OptionError(
            f"-o {output}: this is the image itself.", hint="Choose another file with -o."
        )
    shared = output.with_name(RECORD_FILE)
    known = read_record(shared)  # of a folder that this case was predicted in before
    named = known is not None and output.name in known.label_maps
    return job, shared if named else own_record(output)


def _is_recorded(job: "PredictJob", path: Path) -> bool:
    from autoliver.inference.record import read_record

    known = read_record(path)
    return known is not None and job.output.name in known.label_maps


def _changed(
    jobs: "Sequence[PredictJob]", records: Sequence[Path], request: PredictRequest
) -> set[str]:
    """Returns the names of finished cases whose image has changed since it was recorded."""
    from autoliver.inference.record import is_changed, read_record

    inputs: dict[str, tuple[InputFile, ...]] = {}
    for known in map(read_record, records):
        inputs |= {} if known is None else known.inputs
    found = set()
    for job in jobs:
        made_from = inputs.get(job.output.name) if job.finished else None
        if made_from is not None and is_changed(made_from, job.images):
            found.add(job.name)
            if not request.overwrite:
                _log.warning(
                    "%s: its image has changed since it was predicted; it is predicted again.",
                    job.name,
                )
    return found


def _check_writable(folder: Path) -> None:
    """Refuses an output that cannot be written, before the model is loaded."""
    with in_words(folder, verb="written"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


@dataclass
class _Recording:
    """A prediction that keeps the record of its folder.

    Attributes:
        path: The record's file.
        record: The record so far.
        request: How to predict.
        failures: Takes the cases that fail.
    """

    path: Path
    record: "Prediction"
    request: PredictRequest
    failures: list[Failure]

    def predict(
        self, files: "ModelFiles", todo: "Sequence[PredictJob]", *, changed: set[str]
    ) -> None:
        """Predicts cases and records the images and the ways of computing that were used."""
        from autoliver.inference.model import load_model
        from autoliver.inference.predict import Listener
        from autoliver.inference.record import (
            clear_outdated,
            input_files,
            own_records,
            save_record,
            voxel_hash,
            with_hashes,
        )
        from autoliver.networks.device import choose_device

        model = load_model(files, device=choose_device(self.request.machine.device))
        check_memory(model, todo, self.request)
        clear_outdated(self.path, self.record, todo, changed=changed)
        save_record(self.path, self.record)
        for own in own_records(todo, self.path):
            own.unlink()
        before = {job.name: input_files(job.images) for job in todo}

        def note(job: "PredictJob", predicted: "LabelArray") -> None:
            made_from = with_hashes(before[job.name], job.images)
            self._note(model, job.output.name, made_from, voxel_hash(predicted))

        listener = Listener(on_case=note, on_failure=self._fail)
        predict_as_asked(model, todo, self.request, listener=listener)

    def _note(
        self, model: "Model", name: str, made_from: "tuple[InputFile, ...]", predicted: str
    ) -> None:
        """Records a label map that is finished."""
        from autoliver.inference.record import save_record

        record = self.record.with_ways(model, exact=self.request.exact)
        self.record = record.replace(
            inputs={**record.inputs, name: made_from}, voxels={**record.voxels, name: predicted}
        )
        save_record(self.path, self.record)

    def _fail(self, job: "PredictJob", error: AutoliverError) -> None:
        _log.warning("Failed: %s", error.problem)
        self.failures.append(Failure(case=job.name, problem=error.problem, hint=error.hint))
