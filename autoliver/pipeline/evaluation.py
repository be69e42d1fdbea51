"""Scoring of predictions: of the user's, and of the cases that folds hold back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.datasets.cases import Case, Labels
from autoliver.datasets.folds import Fold
from autoliver.models.files import SCORES_FILE, FoldFolder
from autoliver.needs import score_need
from autoliver.parallel import NO_LIMITS, CasePool, Limits, case_bar
from autoliver.pipeline.prediction import PredictRequest, predict
from autoliver.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.evaluation.results import Scores


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What `evaluate` was asked for.

    Attributes:
        dataset: Names the labels; None: label values name themselves.
        metrics: Only these; empty: all.
        chaos: Add the CHAOS score.
        limits: Processes and memory.
    """

    dataset: str | None = None
    metrics: tuple[str, ...] = ()
    chaos: bool = False
    limits: Limits = NO_LIMITS


def evaluate(
    workspace: Workspace, prediction: Path, reference: Path, request: EvaluateRequest
) -> "Scores":
    """Scores a folder of label maps; writes scores.json and scores.csv beside them."""
    from autoliver.evaluation.results import ALL_METRICS, MetricOptions, write_csv
    from autoliver.evaluation.score import discover_labels, find_pairs, score_folder

    labels = workspace.read(request.dataset).labels if request.dataset else None
    pairs, _ = find_pairs(prediction, reference)
    pool = CasePool(what="evaluate", limits=request.limits, need=score_need)
    if labels is None:
        references = [reference for _, reference in pairs.values()]
        bar = case_bar("read label values", len(pairs))
        labels = discover_labels(references, executor=pool, progress=bar)
    scores = score_folder(
        prediction,
        reference,
        labels=labels,
        options=MetricOptions(metrics=request.metrics or ALL_METRICS, chaos=request.chaos),
        executor=pool,
        progress=case_bar("evaluate", len(pairs)),
    )
    scores.save(prediction / SCORES_FILE)
    write_csv(scores, prediction / "scores.csv")
    return scores


def predict_held_out(
    run: RunFolder, fold: Fold, cases: Sequence[Case], request: PredictRequest
) -> dict[str, tuple[Path, Path]]:
    """Predicts the labelled cases that a fold holds back; finished ones are skipped.

    Returns:
        Case -> label map, true label map.
    """
    images = {case.name: [Path(path) for path in case.images] for case in cases}
    written = predict(run.files(str(fold)), images, FoldFolder(run.fold(fold)).validation, request)
    return {case.name: (written[case.name], Path(case.label)) for case in cases if case.label}


def score_held_out(
    run: RunFolder, fold: Fold, cases: Sequence[Case], *, labels: Labels, request: PredictRequest
) -> "Scores":
    """Predicts and scores the cases that a fold holds back, unless that was done."""
    from autoliver.evaluation.results import Scores
    from autoliver.evaluation.score import score_files

    path = FoldFolder(run.fold(fold)).scores
    if path.exists():
        return Scores.load(path)
    pairs = predict_held_out(run, fold, cases, request)
    bar = case_bar(f"score {run.path.name} fold {fold}", len(pairs))
    scores = score_files(pairs, labels=labels, progress=bar)
    scores.save(path)
    return scores
