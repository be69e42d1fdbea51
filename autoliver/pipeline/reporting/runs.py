"""What a page says of runs: their folds, curves, scores, transfers and which is best."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autoliver.artifacts import Artifact
from autoliver.errors import ArtifactError, AutoliverError
from autoliver.evaluation.bootstrap import Statistic
from autoliver.evaluation.report.page import Cell, Figure, Section, Table
from autoliver.evaluation.report.plots import learning_curves
from autoliver.evaluation.report.tables import (
    POOLED,
    case_table,
    fold_tables,
    lesion_parts,
    number,
    pooled_cell,
    pooled_of,
    strip_figures,
    texts,
    transfer_tables,
    whole,
)
from autoliver.evaluation.results import Scores
from autoliver.models.files import SCORES_FILE, FoldFolder, FoldModel, fold_of
from autoliver.models.selection import Selection
from autoliver.pipeline.run.outcome import mean_of
from autoliver.pipeline.run.source_scores import SourceScores
from autoliver.pipeline.status import FoldStatus, repeated, run_status
from autoliver.system import entries
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import EpochLog, read_progress
from autoliver.transfer.table import Transfer
from autoliver.workspace import DatasetFolder, RunFolder

A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True, kw_only=True)
class RunFold:
    """A fold of a run, finished or not; None for what is missing or damaged.

    Attributes:
        name: "0" to "4", or "all".
        path: Its folder.
        model: Its description, once it is trained.
        logs: Its epochs.
        scores: Scores of its held-out cases.
        source: Scores of unseen cases of the dataset that its weights come from.
        status: What it is doing.
        problems: What is damaged.
    """

    name: str
    path: Path
    model: FoldModel | None
    logs: tuple[EpochLog, ...]
    scores: Scores | None
    source: SourceScores | None
    status: FoldStatus
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has begun.

    Attributes:
        folder: Its folder.
        options: Its options; None if they are missing or damaged.
        transfer: What became of the weights that it starts from; None without any.
        folds: Its folds: those about to begin, begun or finished.
        problems: What else is damaged.
    """

    folder: RunFolder
    options: TrainingOptions | None
    transfer: Transfer | None
    folds: tuple[RunFold, ...]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.path.name

    @property
    def scores(self) -> dict[str, Scores]:
        """Name of a fold -> scores of its held-out cases."""
        return {f"fold {f.name}": f.scores for f in self.folds if f.scores is not None}

    @property
    def mean_dice(self) -> dict[str, float | None]:
        """Label -> mean over the folds of their mean Dice, as `train` prints it."""
        return _mean_dice(list(self.scores.values()))

    @property
    def pooled_dice(self) -> dict[str, Statistic | None]:
        """Label -> Dice over the held-out cases of all folds; None where no case defines it."""
        return {label: pooled_of(self.scores, label, "dice") for label in self.mean_dice}


@dataclass(frozen=True, kw_only=True)
class Best:
    """The held-out predictions that a page shows.

    Attributes:
        name: The run, or the pair of runs.
        folds: Name, scores and folder of the label maps of each fold.
    """

    name: str
    folds: tuple[tuple[str, Scores, Path], ...]

    def fold_of(self, case: str) -> str:
        """The fold that held a case out."""
        names = (n for n, scores, _ in self.folds if any(c.name == case for c in scores.cases))
        return next(names, "")


def runs_of(folder: DatasetFolder) -> tuple[Run, ...]:
    """Reads all runs of a dataset that have begun, by name."""
    places = (RunFolder(path) for path in entries(folder.path / "runs") if path.is_dir())
    return tuple(_run(place) for place in places if place.begun or place.options.exists())


def shown_scores(folder: DatasetFolder, runs: Sequence[Run]) -> Best | None:
    """Returns the held-out predictions to show: of what `select` chose, or of the best run.

    The best run is that of the highest mean Dice; None if no held-out case was scored.
    """
    selection = _load(Selection, folder.trained.selection, [])
    scored = [run for run in runs if run.scores]
    if selection is not None:
        names = [member.run for member in selection.members]
        if len(names) > 1 and (pair := _pair(folder, names)) is not None:
            return pair
        scored = [run for run in scored if run.name in names] or scored
    if not scored:
        return None
    run = max(scored, key=lambda run: (mean_of(list(run.mean_dice.values())) or 0.0, run.name))
    folds = [
        (f"fold {f.name}", f.scores, FoldFolder(f.path).validation)
        for f in run.folds
        if f.scores is not None
    ]
    return Best(name=run.name, folds=tuple(folds))


def curves_section(run: Run) -> Section | None:
    """Returns the learning curves of all folds of a run; None before the first epoch."""
    logs = {f"fold {fold.name}": fold.logs for fold in run.folds if fold.logs}
    if not logs:
        return None
    svg = learning_curves(logs, title=f"Learning curves of {run.name}")
    several = any(len(each) > 200 for each in logs.values())
    means = " Of long trainings, means over neighbouring epochs are drawn." if several else ""
    return Section(
        anchor=f"curves-{_anchor(run.name)}",
        title=f"Learning curves of {run.name}",
        parts=(Figure(svg=svg, caption=f"From progress.jsonl of each fold.{means}"),),
    )


def score_sections(
    runs: Sequence[Run], best: Best | None, links: Mapping[str, str]
) -> list[Section]:
    """Returns the scores of held-out cases, a section for each run, and case by case for the best.

    Args:
        runs: The runs.
        best: What is shown case by case.
        links: Case -> anchor of its part of the page.
    """
    sections = []
    for run in runs:
        scores = run.scores
        if (best is not None and run.name == best.name) or not scores:
            continue
        sections.append(
            Section(
                anchor=f"scores-{_anchor(run.name)}",
                title=f"Scores of {run.name}",
                notes=_warnings(scores),
                parts=(*fold_tables(scores), *lesion_parts(scores)),
            )
        )
    if best is None:
        return sections
    scores = {name: each for name, each, _ in best.folds}
    cases = [case for each in scores.values() for case in each.cases]
    folds = {case.name: name for name, each in scores.items() for case in each.cases}
    labels = list(dict.fromkeys(label for each in scores.values() for label in each.summary))
    shown = Section(
        anchor=f"scores-{_anchor(best.name)}",
        title=f"Scores of {best.name}",
        notes=_warnings(scores),
        parts=(
            *fold_tables(scores),
            *strip_figures(cases, links, folds, labels=labels, of=best.name),
            case_table(cases, links, folds, labels=labels),
            *lesion_parts(scores),
        ),
    )
    return [shown, *sections]


def transfer_section(run: Run, runs: Sequence[Run]) -> Section | None:
    """Returns what a run took from other weights, and what it gained by them.

    None for a run from random weights. The twin from scratch is the run that
    `train --compare-scratch` makes.
    """
    found = run.transfer
    if found is None:
        return None
    twin = f"{run.name}-scratch" if run.folder.tag else f"{run.name}+scratch"
    scratch = next((other for other in runs if other.name == twin), None)
    notes = [
        f"From {found.source}: {100 * found.share:.0f} % of the parameters outside the heads.",
        f"The source was trained with the augmentations {found.augment}.",
    ]
    if found.inflate is not None:
        notes.append(f"Kernels were carried between 2D and 3D by {found.inflate}.")
    gain = [_gain(run, scratch)] if run.scores else []
    known = [_source(run, scratch)] if any(fold.source for fold in run.folds) else []
    return Section(
        anchor=f"transfer-{_anchor(run.name)}",
        title=f"Transfer of {run.name}",
        notes=tuple(notes),
        parts=(*gain, *known, *transfer_tables(found)),
    )


def comparison_section(folder: DatasetFolder, runs: Sequence[Run]) -> Section | None:
    """Returns the Dice of all runs beside each other, and what `select` chose; None for no run."""
    problems: list[str] = []
    selection = _load(Selection, folder.trained.selection, problems)
    scored = [run for run in runs if run.scores]
    if not scored and selection is None:
        return None
    labels = list(dict.fromkeys(label for run in scored for label in run.mean_dice))[:12]
    parts = []
    if scored:
        rows = [
            (
                Cell(run.name),
                Cell(", ".join(name.removeprefix("fold ") for name in run.scores)),
                number(_mean_of_labels(run), 3),
                *(pooled_cell(run.pooled_dice.get(label), 3) for label in labels),
            )
            for run in scored
        ]
        head = ("run", "folds", "mean of labels", *labels)
        caption = f"Dice of held-out cases; {POOLED}"
        parts.append(Table(caption=caption, head=head, rows=tuple(rows)))
    notes: tuple[str, ...] = ()
    if selection is not None:
        members = " + ".join(f"{m.run} ({', '.join(m.folds)})" for m in selection.members)
        notes = (f"select chose {members}.", *selection.why)
        if selection.scores:
            rows = [(Cell(name), number(dice, 4)) for name, dice in selection.scores.items()]
            head = ("candidate", "mean Dice")
            parts.append(Table(caption="What select compared", head=head, rows=tuple(rows)))
        if selection.cleaning:
            rules = tuple(texts(str(rule)) for rule in selection.cleaning)
            parts.append(Table(caption="Cleaning rules", head=("rule",), rows=rules))
    return Section(
        anchor="runs",
        title="Comparison of runs",
        notes=notes,
        parts=tuple(parts),
        warnings=tuple(problems),
    )


def runs_table(runs: Sequence[Run]) -> Table:
    """Returns the state of every fold of every run."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        for fold in run.folds:
            state = ": ".join(filter(None, (fold.status.state, fold.status.problem)))
            hours = sum(log.seconds for log in fold.logs) / 3600
            dice = None if fold.scores is None else fold.scores.mean.get("dice")
            held_out = len(fold.scores.cases) if fold.scores is not None else None
            rows.append(
                (
                    Cell(f"{run.name}, fold {fold.name}"),
                    Cell("; ".join([state, *fold.problems])),
                    whole(len(fold.logs)),
                    number(hours if fold.logs else None, 2),
                    Cell("-") if held_out is None else whole(held_out),
                    number(dice, 3),
                )
            )
        if not run.folds:
            rows.append((Cell(run.name), *texts("not begun", "-", "-", "-", "-")))
    head = ("run", "state", "epochs", "hours", "held-out cases", "mean Dice")
    return Table(caption="Runs", head=head, rows=tuple(rows))


def repeat_words(run: Run) -> list[str]:
    """Returns the options of `train` that make a run again."""
    words = ["--fold", ",".join(fold.name for fold in run.folds)] if run.folds else []
    words += ["--tag", run.folder.tag] if run.folder.tag else []
    options = run.options
    if options is None:
        return words
    if run.folder.source and options.pretrained is None:
        words += ["--like", run.folder.source]
    elif options.pretrained is not None and not run.folder.source:
        words += ["--own-plan"]
    return [*words, *repeated(options)]


def _run(place: RunFolder) -> Run:
    damaged: list[str] = []
    folds = tuple(_fold(place.fold(each.fold), each) for each in run_status(place, damaged))
    told = {problem for fold in folds for problem in fold.problems}
    return Run(
        folder=place,
        options=_load(TrainingOptions, place.options, damaged),
        transfer=_load(Transfer, place.transfer, damaged),
        folds=folds,
        problems=tuple(problem for problem in dict.fromkeys(damaged) if problem not in told),
    )


def _fold(path: Path, status: FoldStatus) -> RunFold:
    files, problems = FoldFolder(path), list[str]()
    return RunFold(
        name=status.fold,
        path=path,
        model=_load(FoldModel, files.model, problems),
        logs=tuple(read_progress(files.progress)),
        scores=_load(Scores, files.scores, problems),
        source=_load(SourceScores, files.on_source / SCORES_FILE, problems),
        status=status,
        problems=tuple(problems),
    )


def _load(kind: type[A], path: Path, problems: list[str]) -> A | None:
    """Reads an artefact; None if it is missing, or damaged, which is noted."""
    try:
        return kind.load(path) if path.exists() else None
    except ArtifactError as error:
        problems.append(error.problem)
    except AutoliverError as error:  # of values that an earlier version took
        problems.append(f"{path.name}: {error.problem}")
    return None


def _mean_of_labels(run: Run) -> float | None:
    return mean_of([None if each is None else each.mean for each in run.pooled_dice.values()])


def _pair(folder: DatasetFolder, runs: Sequence[str]) -> Best | None:
    """The held-out predictions of averaged runs, as `select` has kept them."""
    place = folder.path / "selection" / ",".join(runs)
    folds = []
    for path in entries(place):
        scores = _load(Scores, path / SCORES_FILE, [])
        if scores is not None and scores.cases:
            folds.append((f"fold {fold_of(path)}", scores, path))
    return Best(name=" + ".join(runs), folds=tuple(folds)) if folds else None


def _gain(run: Run, scratch: Run | None) -> Table:
    without = scratch.pooled_dice if scratch is not None else {}
    rows = []
    for label, gained in run.pooled_dice.items():
        before = without.get(label)
        gain = None if gained is None or before is None else gained.mean - before.mean
        signed = Cell("-") if gain is None else Cell(f"{gain:+.3f}", gain)
        rows.append((Cell(label), pooled_cell(gained, 3), pooled_cell(before, 3), signed))
    return Table(
        caption=f"Dice of held-out cases with and without transfer; {POOLED}",
        head=("label", "transferred", "from scratch", "difference"),
        rows=tuple(rows),
    )


def _source(run: Run, scratch: Run | None) -> Table:
    now = [fold.source for fold in run.folds if fold.source is not None]
    twins = [f.source for f in (scratch.folds if scratch is not None else ()) if f.source]
    labels = dict.fromkeys(label for each in now for label in each.mean)
    rows = tuple(
        (
            Cell(label),
            number(mean_of([each.mean_before.get(label) for each in now]), 3),
            number(mean_of([each.mean.get(label) for each in now]), 3),
            number(mean_of([each.mean.get(label) for each in twins]), 3),
        )
        for label in labels
    )
    return Table(
        caption=f"Dice of unseen cases of {now[0].dataset}, the source",
        head=("label", "source itself", "transferred", "from scratch"),
        rows=rows,
    )


def _mean_dice(folds: Sequence[Scores]) -> dict[str, float | None]:
    labels = dict.fromkeys(label for each in folds for label in each.summary)
    found = {}
    for label in labels:
        each = [s.summary[label].metrics.get("dice") for s in folds if label in s.summary]
        known = [value.mean for value in each if value is not None]
        found[label] = statistics.fmean(known) if known else None
    return found


def _warnings(scores: Mapping[str, Scores]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for each in scores.values() for text in each.warnings))


def _anchor(name: str) -> str:
    return "-".join(name.split())
