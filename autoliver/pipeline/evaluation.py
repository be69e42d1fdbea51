"""Scores predictions: those of the user, and those of the held-out cases of folds."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from autoliver.datasets.cases import (
    Case,
    Dataset,
    Labels,
    contradictions,
    groups_of,
    read_dataset,
    unscored_labels,
)
from autoliver.datasets.description import read_description
from autoliver.datasets.folds import Fold
from autoliver.datasets.layouts import RELIABILITY_FILE, VOLUMES_FILE, label_files
from autoliver.datasets.names import dataset_around, dataset_of, is_dataset
from autoliver.errors import DatasetError, OptionError
from autoliver.io.header import split_ending
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.models.files import SCORES_FILE, FoldFolder, FoldModel
from autoliver.needs import score_need
from autoliver.parallel import CaseMapper, case_bar, refuse_over_budget
from autoliver.pipeline.prediction import PredictRequest, predict_unfinished
from autoliver.pipeline.region import OF_TRUTH
from autoliver.shards import Shard, ShardFolder
from autoliver.values import check_text, check_texts, check_types, first_few, set_field
from autoliver.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.evaluation.pairs import Pairs
    from autoliver.evaluation.probabilities import Rows
    from autoliver.evaluation.results import MetricOptions, Scores
    from autoliver.inference.predict import Listener

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """A request to `evaluate`.

    Attributes:
        dataset: The dataset that names the labels; None to name the labels by their values.
        metrics: The metrics to compute; empty for all. A single one may be given as a text.
        chaos: Whether to add the CHAOS score.
        lesion_labels: Labels whose components are lesions; empty for those that are named like
            lesions. A single one may be given as a text.
        lesion_overlap: A lesion is found if more than this share (0 to 1) of its voxels is covered.
        output: Folder for the scores; None for the folder of the predictions.
        subset: Whether references without a prediction are left out rather than refused.
        overwrite: Whether to replace existing scores even if the new ones lack some of their
            content.
        shard: The part of the cases to score, for scores that are written later; None for all.
        machine: The processes and memory that may be used.
    """

    dataset: str | None = None
    metrics: tuple[str, ...] = ()
    chaos: bool = False
    lesion_labels: tuple[str, ...] = ()
    lesion_overlap: float = 0.0
    output: Path | None = None
    subset: bool = False
    overwrite: bool = False
    shard: Shard | None = None
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            OptionError: A value is invalid; the message names the option and the value.
        """
        set_field(self, "metrics", check_texts("--metrics", self.metrics))
        labels = check_texts("--lesion-labels", self.lesion_labels)
        parts = (part.strip() for label in labels for part in label.split(","))
        set_field(self, "lesion_labels", tuple(dict.fromkeys(filter(None, parts))))
        check_types(self)
        if self.dataset is not None:
            check_text("--dataset", self.dataset, "a folder or the name of a planned dataset")
        self.options()

    def files(self, prediction: Path) -> tuple[Path, Path]:
        """The JSON and the CSV file for the scores of these predictions, a folder or one file.

        Scores of one file lie beside it under its name (CASE_scores.json), so that those of its
        neighbours do not replace them.
        """
        start, folder = "", self.output or prediction
        if self.output is None and prediction.is_file():
            start, folder = f"{split_ending(prediction.name)[0]}_", prediction.parent
        return folder / f"{start}{SCORES_FILE}", folder / f"{start}scores.csv"

    def lesion_file(self, prediction: Path) -> Path:
        """The CSV file for the lesions of these predictions; it lies beside the scores."""
        return self._beside(prediction, "lesion_scores.csv")

    def reliability_file(self, prediction: Path) -> Path:
        """The picture of how often the classes of lesions are right; it lies beside the scores."""
        return self._beside(prediction, RELIABILITY_FILE)

    def volume_files(self, prediction: Path) -> tuple[Path, Path]:
        """The CSV file and the picture of how well volumes agree; they lie beside the scores."""
        return self._beside(prediction, "volumes.csv"), self._beside(prediction, VOLUMES_FILE)

    def _beside(self, prediction: Path, name: str) -> Path:
        as_csv = self.files(prediction)[1]
        return as_csv.with_name(as_csv.name.replace("scores.csv", name))

    def options(self) -> "MetricOptions":
        """Returns the metrics to compute, with their settings."""
        from autoliver.evaluation.results import ALL_METRICS, MetricOptions

        return MetricOptions(
            metrics=self.metrics or ALL_METRICS,
            chaos=self.chaos,
            lesion_labels=self.lesion_labels or None,
            lesion_overlap=self.lesion_overlap,
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What there is to score.

    Attributes:
        pairs: The predicted label maps with their references.
        labels: The labels to score; None to name them by the values of the references.
        dataset: The dataset that says of each case what is scored, and whose it is; None without
            one.
        warnings: Suspicious findings, one sentence each.
    """

    pairs: "Pairs"
    labels: Labels | None
    dataset: Dataset | None
    warnings: tuple[str, ...]


def evaluate(
    workspace: Workspace, prediction: Path, reference: Path, request: EvaluateRequest
) -> "Scores":
    """Scores label maps and writes the scores as JSON and CSV (`EvaluateRequest.files`).

    If labels are lesions, a second CSV file lists each of them (`EvaluateRequest.lesion_file`). How
    well volumes agree is in a file and a picture of their own (`EvaluateRequest.volume_files`). If
    the probabilities of their classes are known, a picture shows how often these are right
    (`EvaluateRequest.reliability_file`).

    Args:
        workspace: The workspace in which the dataset is looked up.
        prediction: Folder of predicted label maps, or one file.
        reference: Folder of reference label maps, or one file; or the folder or name of a dataset,
            which need not have its label maps in one folder. It says which labels each case is
            scored for, and to which groups it belongs, and it defines the labels if no other
            dataset does.
        request: What to compute, and where to write it.

    Raises:
        DatasetError: The folders do not fit together, or a file cannot be read.
        OptionError: Existing scores contain something that the new ones would not, or the place for
            them is a folder of images or labels of a dataset; or a label has other values in the
            reference, or in the model that predicted.
    """
    from autoliver.evaluation.agreement_report import draw_agreement, write_agreement
    from autoliver.evaluation.lesion_report import draw_lesions, write_lesions
    from autoliver.evaluation.results import write_csv

    as_json, as_csv = request.files(prediction)
    task = task_of(workspace, prediction, reference, request, output=as_json.parent)
    if not request.overwrite:
        references = {name: pair[1] for name, pair in task.pairs.files.items()}
        _refuse_loss(as_json, references, task.labels, request.options())
    labels = _labels(task, request)
    request = with_named(request, task.dataset, labels)
    rows = _probabilities(prediction, request.options().lesion_classes(labels))
    shards = shards_of_scores(workspace, prediction, reference, as_json)
    with shards.finishing():
        found = score(replace(task, labels=labels), request, shards=shards)
        scores = _with_probabilities(found, rows)
        if task.dataset is not None:
            scores = scores.grouped(groups_of(task.dataset.cases))
        scores.save(as_json)
        write_csv(scores, as_csv)
        write_lesions(scores, request.lesion_file(prediction))
        draw_lesions(scores, request.reliability_file(prediction))
        volumes, picture = request.volume_files(prediction)
        write_agreement(scores, volumes)
        draw_agreement(scores, picture)
    return scores


def shards_of_scores(
    workspace: Workspace, prediction: Path, reference: Path, output: Path
) -> ShardFolder:
    """Returns where shards of `evaluate` keep the scores of their cases.

    Args:
        workspace: As for `evaluate`.
        prediction: As for `evaluate`.
        reference: As for `evaluate`.
        output: The file of the scores.
    """
    there = reference.resolve() if reference.exists() else reference
    return workspace.shards("evaluate", prediction.resolve(), there, output.resolve())


def task_of(
    workspace: Workspace,
    prediction: Path,
    reference: Path,
    request: EvaluateRequest,
    *,
    output: Path,
    model: Labels | None = None,
) -> Task:
    """Finds what there is to score, and what the values of the label maps mean.

    Args:
        workspace: As for `evaluate`.
        prediction: As for `evaluate`.
        reference: As for `evaluate`.
        request: As for `evaluate`.
        output: The folder for the result.
        model: Names and values of the labels where no dataset gives them: those of the model that
            predicted; None: the values of the references.

    Raises:
        DatasetError: The folders do not fit together.
        OptionError: A label has other values in the reference, or in the model that predicted; or
            the result would lie in a folder of a dataset.
    """
    from autoliver.evaluation.pairs import find_pairs
    from autoliver.inference.record import refuse_other_labels

    referred = _dataset_at(workspace, reference)
    named = workspace.read(request.dataset) if request.dataset else referred
    labels = named.labels if named else model
    renamed: tuple[str, ...] = ()
    if labels is not None:
        whose = f"-r {reference}" if referred else "the model that predicted"
        whose = f"-d {request.dataset}" if request.dataset else whose
        refuse_other_labels(prediction, labels, whose=whose)
        if referred is not None:
            hint = "Leave -d out: the reference is a dataset, and says what its values mean."
            renamed = _compare(referred.labels, referred.name, labels, whose=whose, hint=hint)
            labels = labels.replace(ignore=referred.labels.ignore)
        elif (around := _dataset_around(reference)) is not None:
            stated, folder = around
            hint = f"{reference} belongs to {folder}: give it with -d."
            if named is None:
                hint = f"{reference} belongs to {folder}: check that its labels were predicted."
            renamed = _compare(stated, folder.name, labels, whose=whose, hint=hint)
    _refuse_dataset(output)
    files = referred and {case.name: Path(str(case.label)) for case in referred.labelled}
    return Task(
        pairs=find_pairs(prediction, files or reference, subset=request.subset),
        labels=labels,
        dataset=referred or named,  # its label maps are scored, unless a folder holds others
        warnings=renamed,
    )


def score(task: Task, request: EvaluateRequest, *, shards: ShardFolder | None = None) -> "Scores":
    """Scores label maps, with intervals by patient.

    Args:
        task: What there is to score.
        request: What to compute.
        shards: Where shards have kept scores of cases; None if there are none.

    Raises:
        DatasetError: A file cannot be read.
        OptionError: A label whose lesions should be counted does not exist.
    """
    from autoliver.evaluation.kept import KEPT_SCORES
    from autoliver.evaluation.score import score_pairs

    dataset, labels = task.dataset, _labels(task, request)
    pool: CaseMapper = request.machine.pool("evaluate", need=score_need)
    scores = score_pairs(
        task.pairs,
        labels=labels,
        options=request.options(),
        unscored=unscored_in(dataset, labels) if dataset else None,
        executor=pool if shards is None else shards.whole(KEPT_SCORES, pool),
        progress=case_bar("evaluate", len(task.pairs.files)),
    )
    patients = {case.name: case.patient for case in dataset.cases} if dataset else {}
    scores = scores.by_patient(patients)
    return scores.replace(warnings=(*task.warnings, *scores.warnings))


def _labels(task: Task, request: EvaluateRequest) -> Labels:
    """The labels to score: those of the task, or one for each value of the references."""
    from autoliver.evaluation.score import discover_labels

    if task.labels is not None:
        return task.labels
    references = task.pairs.references
    pool = request.machine.pool("evaluate", need=score_need)
    bar = case_bar("read label values", len(references))
    return discover_labels(references, executor=pool, progress=bar)


def _probabilities(prediction: Path, classes: Collection[str]) -> "Rows":
    """Reads the probabilities of the table of lesions beside predictions; empty without one."""
    from autoliver.evaluation.probabilities import LESION_FILE, read_probabilities
    from autoliver.inference.lesions.table import LesionFiles
    from autoliver.inference.record import RECORD_FILE, own_record

    path = prediction / LESION_FILE
    if prediction.is_file():
        alone = LesionFiles.beside(own_record(prediction), RECORD_FILE).csv
        path = alone if alone.is_file() else prediction.with_name(LESION_FILE)
    return read_probabilities(path, tuple(classes)) if classes and path.is_file() else {}


def _with_probabilities(scores: "Scores", rows: "Rows") -> "Scores":
    """Adds the probabilities of lesions to those that the label maps hold."""
    from autoliver.evaluation.probabilities import LESION_FILE, with_probabilities

    if not rows:
        return scores
    cases, unlike = with_probabilities(scores.cases, rows)
    scores = scores.with_cases(cases)
    if not unlike:
        return scores
    note = (
        f"{LESION_FILE}: its lesions are not those of the label maps, so that their probabilities "
        f"are left out ({len(unlike)}): {first_few(unlike, 5)}."
    )
    return scores.replace(warnings=(*scores.warnings, note))


def with_named(
    request: EvaluateRequest, dataset: Dataset | None, labels: Labels
) -> EvaluateRequest:
    """Returns the request with the classes of lesions that dataset.json names, unless it has some.

    Args:
        request: The request.
        dataset: The dataset; None without one.
        labels: The labels that are scored.
    """
    named = dataset.lesion_class_names if dataset is not None else None
    known = tuple(name for name in named or () if name in labels.foreground)
    return request if request.lesion_labels or not known else replace(request, lesion_labels=known)


def _dataset_at(workspace: Workspace, reference: Path) -> Dataset | None:
    """Reads the dataset of a name or in a folder; None for label maps: a file or their folder."""
    if not reference.exists():
        name = str(reference)
        named = workspace.knows(name) or (not split_ending(name)[1] and workspace.meant(name))
        return workspace.read(name) if named else None
    described = (reference / "dataset.json").is_file() or is_dataset(reference)
    return read_dataset(reference) if described and not label_files(reference) else None


def _dataset_around(reference: Path) -> tuple[Labels, Path] | None:
    """The labels and the folder of the dataset whose label maps these are; None if not known."""
    folder = dataset_of(reference.parent if reference.is_file() else reference)
    if folder is None or not (folder / "dataset.json").is_file():
        return None
    try:
        stated = read_description(folder).labels
    except DatasetError:  # label maps may be scored whatever lies beside their folder
        return None
    return msgspec.convert(stated, Labels, from_attributes=True), folder


def _compare(
    theirs: Labels, name: str, labels: Labels, *, whose: str, hint: str
) -> tuple[str, ...]:
    """Compares labels with those of the dataset that the reference label maps belong to.

    Args:
        theirs: The labels of that dataset.
        name: Its name.
        labels: Names and values of the labels to score.
        whose: Where these come from, for the message: "-d LiTS".
        hint: What to do if they contradict.

    Returns:
        A warning, if some labels of the dataset are scored under other names.

    Raises:
        OptionError: A label of the same name has another value in the dataset, or the dataset
            ignores a value that is a label.
    """
    there = {own.casefold(): (own, values) for own, values in theirs.values.items()}
    problem = ""
    for label in contradictions(labels, theirs)[:1]:
        own, values = there[label.casefold()]
        given = _numbers(labels.values[label])
        problem = f"there {label} is {given}, but in {name} {own} is {_numbers(values)}"
    if not problem and theirs.ignore in labels.foreground_values:
        label = next(each for each, values in labels.values.items() if theirs.ignore in values)
        problem = f"there {label} has the value {theirs.ignore}, which {name} ignores"
    if problem:
        raise OptionError(f"{whose}: {problem}.", hint=hint)
    return renamed_labels(theirs, name, labels, whose=whose)


def renamed_labels(theirs: Labels, name: str, labels: Labels, *, whose: str) -> tuple[str, ...]:
    """Says which labels are read under other names; empty if none is.

    Args:
        theirs: The labels by which label maps were made.
        name: Whose label maps they are.
        labels: The labels by which they are read.
        whose: Where these come from.
    """
    there = {own.casefold() for own in theirs.values}
    renamed = [
        f"{own} is scored as {label}"
        for label, values in labels.foreground.items()
        for own, same in theirs.foreground.items()
        if label.casefold() not in there and set(values) == set(same)
    ]
    return (f"{whose}: of {name}, {', '.join(renamed)}.",) if renamed else ()


def _numbers(values: Sequence[int]) -> str:
    return " and ".join(map(str, values))


def unscored_in(dataset: Dataset, labels: Labels) -> dict[str, list[str]]:
    """Maps cases of which some labels are not scored to these, under the names that `labels` gives.

    These are labels of the same name, whatever its case, and of the same values.
    """
    alike = {
        own: {name for name, values in labels.foreground.items() if set(values) == set(theirs)}
        | {name for name in labels.foreground if name.casefold() == own.casefold()}
        for own, theirs in dataset.labels.foreground.items()
    }
    return {
        case: sorted({name for own in unscored for name in alike.get(own, ())})
        for case, unscored in unscored_labels(dataset.cases).items()
    }


def _refuse_dataset(folder: Path) -> None:
    """Refuses the folders of a dataset; test cases may have been predicted beside their images."""
    from autoliver.inference.record import RECORD_FILE

    dataset = dataset_around(folder)
    if dataset is not None and not (folder / RECORD_FILE).exists():
        raise OptionError(
            f"{folder}: the scores would be written into a folder of the dataset {dataset}.",
            hint=f"Choose another folder with --output, e.g. {dataset.parent / 'scores'}",
        )


def _refuse_loss(
    path: Path, references: Mapping[str, Path], labels: Labels | None, options: "MetricOptions"
) -> None:
    """Refuses to replace scores that contain something the new ones would not.

    Args:
        path: The file of the scores, which may exist.
        references: Maps each case to the reference label map that it will be compared with.
        labels: The labels that will be scored; None if labels are named by their values.
        options: The metrics that will be computed.

    Raises:
        ArtifactError: The existing scores are damaged.
        OptionError: Something would be lost; the message says what.
    """
    from autoliver.evaluation.results import Scores

    if not path.exists():
        return
    then = Scores.load(path, mend="the same command with --overwrite")
    lost = _lost(then, references, labels, options)
    if lost:
        raise OptionError(
            f"{path}: it contains {' and '.join(lost)}, which the new scores would not contain.",
            hint="Write them elsewhere with --output, or replace the old ones with --overwrite.",
        )


def _lost(
    then: "Scores",
    references: Mapping[str, Path],
    labels: Labels | None,
    options: "MetricOptions",
) -> list[str]:
    """Lists in words what the existing scores contain and the new ones would not.

    Args:
        then: The existing scores.
        references: As for `_refuse_loss`.
        labels: As for `_refuse_loss`.
        options: As for `_refuse_loss`.
    """
    from autoliver.evaluation.results import ALL_METRICS

    lost = []
    metrics = [name for name in (*ALL_METRICS, "chaos") if name in then.options.wanted]
    if gone := [name for name in metrics if name not in options.wanted]:
        lost.append(f"the metrics {', '.join(gone)}")
    ways = [each.replace(metrics=(), chaos=False) for each in (then.options, options)]
    if ways[0] != ways[1]:
        lost.append("metrics that were computed in another way")
    known = {case.name: Path(case.reference) for case in then.cases}
    if gone := [name for name in known if name not in references]:
        lost.append(f"{gone[0]}" + (f" and {len(gone) - 1} more" if gone[1:] else ""))
    compared = [(known[name], references[name]) for name in known if name in references]
    if any(one.resolve() != other.resolve() for one, other in compared):
        lost.append("the comparison with other reference files")
    named = tuple(then.labels.foreground)
    if set(named) != set(labels.foreground if labels else filter(_names_itself, named)):
        lost.append(f"the labels {', '.join(named)}")
    return lost


def _names_itself(label: str) -> bool:
    return re.fullmatch(r"label_[0-9]+", label) is not None


def predict_held_out(
    run: RunFolder, fold: Fold, cases: Sequence[Case], request: PredictRequest
) -> dict[str, tuple[Path, Path]]:
    """Predicts the held-out cases of a fold; finished ones are skipped.

    A model that tells classes of lesions apart also writes a table of lesions
    (`FoldFolder.lesions`); cases that it lacks are predicted again.

    Returns:
        Maps each labelled case to its predicted and its true label map.
    """
    from autoliver.inference.predict import make_jobs

    images = {case.name: [Path(path) for path in case.images] for case in cases}
    files, kinds = run.files(str(fold)), {case.name: case.modality for case in cases}
    place = FoldFolder(run.fold(fold))
    drawn = {case.name: Path(case.label) for case in cases if case.label}
    info = FoldModel.load(place.model)
    if info.needs_lesions:
        _log.warning(
            "%s: a classifier is told where lesions are, here by the reference: of its scores, "
            "only the classes mean anything.",
            run.name,
        )
    again, listener = _lesion_table(place, info, images)
    lesions = drawn if info.needs_lesions else {}
    jobs = make_jobs(images, place.validation, modalities=kinds, lesions=lesions)
    written = predict_unfinished(
        files, jobs, request, again=again, listener=listener, references=drawn
    )
    return {case.name: (written[case.name], Path(case.label)) for case in cases if case.label}


def _lesion_table(
    place: FoldFolder, info: FoldModel, names: Collection[str]
) -> "tuple[list[str], Listener | None]":
    """Begins the table of lesions of held-out cases, if a model tells classes of them apart.

    Returns:
        The cases that it lacks, and what adds those that are predicted.
    """
    from autoliver.inference.lesions.table import LesionFiles, LesionTable
    from autoliver.inference.predict import Listener

    if not info.votes:
        return [], None
    tables = LesionFiles(json=place.lesions, csv=place.lesions.with_suffix(".csv"))
    table = LesionTable(made_from={"model": info.digest()}, classes=info.lesion_classes, voted=True)
    lacking = tables.missing(table, names)
    if lacking:
        place.validation.mkdir(parents=True, exist_ok=True)
        for file in tables.foreign():
            file.unlink()
        tables.begin(table, lacking)
    return lacking, Listener(on_lesions=lambda job, found: tables.add(job.name, found))


def score_held_out(
    run: RunFolder, fold: Fold, cases: Sequence[Case], *, labels: Labels, request: PredictRequest
) -> "Scores":
    """Predicts and scores the held-out cases of a fold, unless they are already scored."""
    from autoliver.evaluation.results import MetricOptions, Scores
    from autoliver.evaluation.score import score_files

    path = FoldFolder(run.fold(fold)).scores
    if path.exists():
        return Scores.load(path)
    pairs = predict_held_out(run, fold, cases, request)
    needs = [score_need(pair) for pair in pairs.items()]
    refuse_over_budget(needs, request.machine.limits, "score")
    model = FoldModel.load(FoldFolder(run.fold(fold)).model)
    bar = case_bar(f"score {run.path.name} fold {fold}", len(pairs))
    scores = score_files(
        pairs,
        labels=labels,
        options=MetricOptions(lesion_labels=model.lesion_classes or None),
        unscored=unscored_labels(cases),
        progress=bar,
    )
    scores = scores.grouped(groups_of(cases))
    if model.roi is not None and model.roi.truth:
        scores = scores.replace(warnings=(OF_TRUTH, *scores.warnings))
    scores.save(path)
    return scores
