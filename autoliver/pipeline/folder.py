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
    predict_as_asked,
)
from autoliver.system import in_words
from autoliver.values import check_texts, counted, hints_of
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.inference.model import Model
    from autoliver.inference.predict import LabelArray, PredictJob
    from autoliver.inference.record import InputFile, Prediction
    from autoliver.models.files import ModelFiles

_log = logging.getLogger(__name__)


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
    from autoliver.inference.record import begin_record, describe, read_record, refuse_mixing
    from autoliver.models.files import MODEL_FILE, FoldModel, together
    from autoliver.pipeline.targets import find_standing, find_targets

    names = check_texts("--model", models)
    sources = (source,) if isinstance(source, Path) else tuple(source)
    failures: list[Failure] = []
    chosen = together([workspace.model_to_predict(m, folds=folds) for m in names or (None,)])
    if request.roi is not None:
        chosen = dataclasses.replace(chosen, finder=find_finder(workspace, chosen, request.roi))
    plan = FoldModel.load(chosen.members[0].folds[0] / MODEL_FILE).plan
    cases = find_cases(sources, len(plan.channel_names), failures)
    _check_ending(output)
    targets = find_targets(sources, cases, output, overwrite=request.overwrite)
    standing = find_standing(targets, request)
    jobs, path, todo = targets.jobs, targets.record, standing.todo
    failures += [_stays(name, reason) for name, reason in standing.kept.items()]
    replaced = {j.output.name for j in todo if request.overwrite or j.name in standing.outdated}
    now = describe(chosen, request.options(), folds=folds_text(folds), roi=request.roi)
    for file in targets.own_records:
        refuse_mixing(read_record(file), now, replaced=replaced, folder=path.parent)
    record = begin_record(path, now, [job.output.name for job in todo], replaced=replaced)
    if todo:
        _check_writable(path.parent)
        work = _Recording(path, record, request, failures)
        work.predict(chosen, todo, outdated=standing.outdated)
    failed = {failure.case for failure in failures}
    done = Predicted(
        model=chosen.name,
        files=tuple(job.output for job in jobs if job.name not in failed),
        new=len([job for job in todo if job.name not in failed]),
        skipped=len(jobs) - len(todo) - len(standing.kept),
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


def _stays(name: str, reason: str) -> Failure:
    hint = "Predict it into another folder with -o, or replace it with --overwrite."
    return Failure(case=name, problem=reason, hint=hint)


def _check_ending(output: Path) -> None:
    """Refuses a file whose ending is in capitals, in which image files are read but not written."""
    stem, ending = split_ending(output.name)
    if ending != ending.lower() and not output.is_dir():
        raise OptionError(
            f"-o {output}: label maps are written with endings in small letters, found {ending}.",
            hint=f"Choose {output.with_name(stem + label_ending(ending))}",
        )


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
        self, files: "ModelFiles", todo: "Sequence[PredictJob]", *, outdated: set[str]
    ) -> None:
        """Predicts cases and records the images and the ways of computing that were used."""
        from autoliver.inference.model import check_histograms, load_model
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
        if self.request.match:
            check_histograms(model)
        check_memory(model, todo, self.request)
        clear_outdated(self.path, self.record, todo, outdated=outdated)
        save_record(self.path, self.record)
        for own in own_records(todo, self.path):
            own.unlink()
        before = {job.name: input_files(job.images) for job in todo}

        def note(job: "PredictJob", predicted: "LabelArray") -> None:
            made_from = with_hashes(before[job.name], job.images)
            self._note(model, job, made_from, voxel_hash(predicted))

        listener = Listener(on_case=note, on_failure=self._fail)
        predict_as_asked(model, todo, self.request, listener=listener)

    def _note(
        self, model: "Model", job: "PredictJob", made_from: "tuple[InputFile, ...]", predicted: str
    ) -> None:
        """Records a label map that is finished."""
        from autoliver.inference.record import save_record

        name, asked = job.output.name, self.request
        further = job.further(probabilities=asked.probabilities, uncertainty=asked.uncertainty)
        record = self.record.with_ways(model, exact=self.request.exact)
        self.record = record.with_case(name, made_from, predicted, [job.output, *further])
        save_record(self.path, self.record)

    def _fail(self, job: "PredictJob", error: AutoliverError) -> None:
        _log.warning("Failed: %s", error.problem)
        self.failures.append(Failure(case=job.name, problem=error.problem, hint=error.hint))
