"""Scoring of predictions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.needs import score_need
from autoliver.parallel import NO_LIMITS, CasePool, Limits, case_bar
from autoliver.workspace import Workspace

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
    from autoliver.evaluation.score import score_folder

    labels = workspace.source(request.dataset).labels if request.dataset else None
    options = MetricOptions(metrics=request.metrics or ALL_METRICS, chaos=request.chaos)
    scores = score_folder(
        prediction,
        reference,
        labels=labels,
        options=options,
        executor=CasePool(what="evaluate", limits=request.limits, need=score_need),
        progress=case_bar("evaluate", 0),
    )
    scores.save(prediction / "scores.json")
    write_csv(scores, prediction / "scores.csv")
    return scores
