"""Predicts and scores the held-out cases of a fold with every pair of runs; can be resumed."""

import functools
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import digest
from autoliver.commands import remove
from autoliver.datasets.cases import Case, Labels, unscored_labels
from autoliver.inference.lesions.measure import CaseLesions, LesionLabels, measure
from autoliver.inference.lesions.table import LesionFiles, LesionTable
from autoliver.inference.lesions.vote import LabelArray, VoteOptions, vote
from autoliver.models.files import SCORES_FILE
from autoliver.needs import score_need
from autoliver.parallel import case_bar
from autoliver.pipeline.prediction import (
    PredictRequest,
    locate,
    model_need,
    predict_as_asked,
)
from autoliver.pipeline.region import OF_TRUTH, find_finders, regions_of
from autoliver.pipeline.temperature import classes_of
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.evaluation.results import Scores
    from autoliver.inference.ensemble import Output
    from autoliver.inference.model import Model
    from autoliver.inference.predict import PredictJob


@dataclass(frozen=True, kw_only=True)
class FoldPairs:
    """All pairs of some runs in one fold.

    Attributes:
        folder: The dataset's folder; label maps and scores are written to its `selection/`.
        dataset: Digest of the dataset.
        runs: At least two runs, in all of which this fold is finished.
        fold: Number of the fold.
        cases: The labelled cases that the fold holds out.
        labels: The labels of all runs.
        request: How to predict.
    """

    folder: DatasetFolder
    dataset: str
    runs: tuple[RunFolder, ...]
    fold: int
    cases: tuple[Case, ...]
    labels: Labels
    request: PredictRequest

    def scores(self) -> dict[tuple[str, str], "Scores"]:
        """Scores every pair; label maps and scores that are up to date are reused.

        Returns:
            Maps the names of the two runs of each pair to its scores.

        Raises:
            AutoliverError: A model or a case cannot be used.
        """
        pairs = self._pairs()
        lacking = [pair for pair in pairs if pair.lacking]
        if lacking:
            self._predict(lacking)
        return {pair.names: pair.score(self) for pair in pairs}

    def label_maps(self, names: Sequence[str]) -> dict[str, tuple[Path, Path]]:
        """Maps each case to the predicted and the true label map of one pair, which is scored."""
        (pair,) = (pair for pair in self._pairs() if pair.names == tuple(names))
        return pair.files(self)

    def lesions(self, names: Sequence[str]) -> Path:
        """The table of lesions of one pair, which is scored and tells classes of them apart."""
        (pair,) = (pair for pair in self._pairs() if pair.names == tuple(names))
        return pair.tables.json

    def _pairs(self) -> "list[_Pair]":
        from autoliver.inference.predict import make_jobs

        images = {case.name: [Path(path) for path in case.images] for case in self.cases}
        digests = [run_digest(run, [self.fold]) for run in self.runs]
        pairs = []
        for one, other in itertools.combinations(range(len(self.runs)), 2):
            names = (self.runs[one].path.name, self.runs[other].path.name)
            folder = self.folder.ensemble(names, self.fold)
            made_from = {"dataset": self.dataset}
            made_from |= {names[0]: digests[one], names[1]: digests[other]}
            if classes := classes_of((self.runs[one], self.runs[other]), [self.fold]):
                made_from["lesions"] = digest(classes)
            _open(folder, made_from, self.labels, classes)
            kinds = {case.name: case.modality for case in self.cases}
            jobs = make_jobs(images, folder, modalities=kinds)
            table = LesionTable(made_from=made_from, classes=classes, voted=True)
            pair = _Pair(names, (one, other), folder, tuple(jobs), table)
            pair.begin()
            pairs.append(pair)
        return pairs

    def _predict(self, pairs: "Sequence[_Pair]") -> None:
        """Predicts each case once with every run and writes the label maps of all pairs."""
        from autoliver.inference.model import load_model
        from autoliver.models.files import ModelFiles
        from autoliver.networks.device import choose_device

        members = tuple(run.member(str(self.fold)) for run in self.runs)
        files = ModelFiles(name=f"{self.folder.name} fold {self.fold}", members=members)
        home = Workspace(self.folder.path.parent)
        finders = find_finders(home, files, None, referred=True)
        drawn = {case.name: Path(case.label) for case in self.cases if case.label}
        model = load_model(files, device=choose_device(self.request.machine.device))
        for part, some in self._fitting(model, pairs):
            missing = {job.name: job for pair in some for job in pair.lacking}
            export = _Writer(some, self.labels)
            jobs = locate(finders, list(missing.values()), self.request, references=drawn)
            predict_as_asked(part, jobs, self.request, export=export)

    def _fitting(
        self, model: "Model", pairs: "Sequence[_Pair]"
    ) -> "Iterator[tuple[Model, Sequence[_Pair]]]":
        """Yields models with the pairs to predict with them: all pairs at once if memory allows.

        Otherwise each pair comes with a model of its own.
        """
        largest = max(model_need(job.name, job.images, model).gb for job in pairs[0].jobs)
        if largest <= self.request.machine.limits.budget_gb:
            yield model, pairs
            return
        for pair in pairs:
            members = tuple(model.members[index] for index in pair.indices)
            yield replace(model, members=members), [replace(pair, indices=(0, 1))]


@dataclass(frozen=True)
class _Pair:
    """Two runs in one fold.

    Attributes:
        names: Names of the two runs.
        indices: Positions of the two runs among the members of the model.
        folder: Folder for the label maps and scores.
        jobs: The cases to predict.
        table: The table of lesions without cases, as it begins; its classes are empty if the runs
            tell no classes of lesions apart.
    """

    names: tuple[str, str]
    indices: tuple[int, int]
    folder: Path
    jobs: "tuple[PredictJob, ...]"
    table: LesionTable

    @property
    def tables(self) -> LesionFiles:
        """The files of the table of lesions."""
        return LesionFiles(self.folder / "lesions.json", self.folder / "lesions.csv")

    @property
    def lacking(self) -> "list[PredictJob]":
        """The cases that are not finished, or whose lesions are not in the table."""
        names = [job.name for job in self.jobs]
        missing = self.tables.missing(self.table, names) if self.table.classes else ()
        return [job for job in self.jobs if not job.finished or job.name in missing]

    def begin(self) -> None:
        """Begins or continues the table of lesions."""
        if self.table.classes:
            for file in self.tables.foreign():
                file.unlink()
            self.tables.begin(self.table, ())

    def files(self, fold: FoldPairs) -> dict[str, tuple[Path, Path]]:
        labels = {case.name: Path(case.label) for case in fold.cases if case.label}
        return {job.name: (job.output, labels[job.name]) for job in self.jobs}

    def score(self, fold: FoldPairs) -> "Scores":
        from autoliver.evaluation.results import Scores
        from autoliver.evaluation.score import score_files

        path = self.folder / SCORES_FILE
        known = Scores.load(path)
        if len(known.cases) == len(self.jobs):
            return known
        machine = fold.request.machine
        runs = [fold.folder.path / "runs" / name for name in self.names]
        parts = [RunFolder(run).files(str(fold.fold)) for run in runs]
        truth = any(roi.truth for part in parts for roi in regions_of(part))
        scores = score_files(
            self.files(fold),
            labels=fold.labels,
            options=known.options,
            unscored=unscored_labels(fold.cases),
            executor=machine.pool("score", need=score_need, light=True),
            progress=case_bar(f"score {' + '.join(self.names)} fold {fold.fold}", len(self.jobs)),
        ).replace(made_from=known.made_from)
        if truth:
            scores = scores.replace(warnings=(OF_TRUTH, *scores.warnings))
        scores.save(path)
        return scores


@dataclass(frozen=True)
class _Writer:
    """Writes the label maps of pairs from the outputs of the members."""

    pairs: Sequence[_Pair]
    labels: Labels

    def __call__(self, job: "PredictJob", found: "Sequence[Output]") -> None:
        from autoliver.inference.ensemble import group_labels
        from autoliver.io.files import write_label

        geometry = found[0].properties.geometry
        maps = group_labels(
            found,
            [pair.indices for pair in self.pairs],
            labels=self.labels,
            classes=[self._votes(pair).shared for pair in self.pairs],
        )
        for pair, array in zip(self.pairs, maps, strict=True):
            if pair.table.classes:
                members = [found[index] for index in pair.indices]
                array, lesions = self._named(array, members, pair)
                pair.tables.add(job.name, lesions)
            write_label(pair.folder / job.output.name, array, geometry)

    def _votes(self, pair: _Pair) -> VoteOptions:
        return VoteOptions.of(self.labels, pair.table.classes, model=" + ".join(pair.names))

    def _named(
        self, array: LabelArray, members: "Sequence[Output]", pair: _Pair
    ) -> tuple[LabelArray, CaseLesions]:
        """Gives every lesion one class, as `predict` does, and measures it."""
        from autoliver.inference.ensemble import component_means

        classes = pair.table.classes
        means = functools.partial(component_means, members, labels=self.labels)
        voted = vote(array, self._votes(pair), means)
        which = LesionLabels(labels=self.labels, names=classes, voted=True)
        geometry = members[0].properties.geometry
        lesions = measure(voted.segmentation, geometry, which, means)
        return voted.segmentation, CaseLesions(lesions=lesions, removed_without_organ=voted.removed)


def run_digest(run: RunFolder, folds: Sequence[int]) -> str:
    """Returns a digest of the models of some folds of a run, a first stage included."""
    from autoliver.models.files import MODEL_FILE, FoldModel

    members = [run.member(str(fold)) for fold in folds]
    folders = [path for member in members for path in (*member.folds, *member.previous)]
    return digest([FoldModel.load(path / MODEL_FILE).digest() for path in folders])


def _open(
    folder: Path, made_from: dict[str, str], labels: Labels, classes: tuple[str, ...]
) -> None:
    """Writes what the label maps will be made from, and removes outdated ones.

    This happens before the first label map is written, as scores without cases.
    """
    from autoliver.evaluation.results import MetricOptions, Scores

    path = folder / SCORES_FILE
    mend = f"{remove(folder)} (then run the same command)"
    if path.exists() and Scores.load(path, mend=mend).made_from == made_from:
        return
    if folder.exists():
        shutil.rmtree(folder)
    options = MetricOptions(metrics=("dice",))
    if classes:
        options = MetricOptions(metrics=("dice", "lesions"), lesion_labels=classes)
    empty = Scores(
        made_from=made_from, labels=labels, options=options, cases=(), summary={}, mean={}
    )
    empty.save(path)
