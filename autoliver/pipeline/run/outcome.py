"""What the folds of a run have achieved so far, and the command that makes sense next."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autoliver.commands import command
from autoliver.datasets.folds import Folds
from autoliver.errors import AutoliverError
from autoliver.models.files import FoldFolder, fold_of
from autoliver.pipeline.run.encoder_source import without_unread
from autoliver.pipeline.run.job import FoldResult
from autoliver.pipeline.run.request import Notify, TrainRequest, train_command
from autoliver.pipeline.run.source_scores import score_source
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.evaluation.results import Scores

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The finished folds of a run.

    Attributes:
        run: The run.
        scores: Fold -> scores of its held-out cases; fold `all` holds none out.
        unfinished: Folds of the cross-validation that are not finished.
    """

    run: RunFolder
    scores: Mapping[str, "Scores"]
    unfinished: tuple[str, ...]

    @property
    def dice(self) -> dict[str, dict[str, float | None]]:
        """Label -> fold -> mean Dice of the held-out cases; None where none has the label."""
        labels = dict.fromkeys(label for each in self.scores.values() for label in each.summary)
        return {
            label: {fold: _dice(each, label) for fold, each in self.scores.items()}
            for label in labels
        }

    @property
    def mean_dice(self) -> dict[str, float | None]:
        """Label -> mean over the finished folds of their Dice; None where no fold has one."""
        return {label: mean_of(list(folds.values())) for label, folds in self.dice.items()}


def outcome_of(run: RunFolder) -> Outcome:
    """Reads the scores of the finished folds of a run.

    Raises:
        ArtifactError: The scores or the splits are damaged.
    """
    from autoliver.evaluation.results import Scores

    splits = Folds.load(DatasetFolder(run.path.parents[1]).folds).splits
    folders = {fold_of(path): FoldFolder(path) for path in run.finished}
    return Outcome(
        run=run,
        scores={
            fold: Scores.load(each.scores) for fold, each in folders.items() if each.scores.exists()
        },
        unfinished=tuple(str(fold) for fold in range(len(splits)) if str(fold) not in folders),
    )


def with_source_scores(
    workspace: Workspace,
    results: Sequence[FoldResult],
    request: TrainRequest,
    *,
    of: Sequence[FoldResult] = (),
    notify: Notify = _log.info,
) -> list[FoldResult]:
    """Scores folds on unseen cases of the dataset that their weights come from, if there are any.

    Args:
        workspace: The workspace.
        results: The folds.
        request: The request to `train`.
        of: The fine-tuned folds that these are twins of; empty if they are fine-tuned themselves.
        notify: Called with the reasons why nothing is scored.
    """
    if request.twin and not of:
        return list(results)
    tuned = {result.fold: FoldFolder(result.folder) for result in of or results}
    reasons: dict[str, None] = {}
    found = []
    for result in results:
        if result.fold not in tuned:
            continue
        try:
            scores = score_source(
                workspace,
                FoldFolder(result.folder),
                tuned[result.fold],
                machine=request.machine,
                notify=lambda reason: reasons.setdefault(reason),
            )
        except AutoliverError as error:  # the training itself is finished
            _log.warning("Fold %s: its source is not scored: %s", result.fold, error.problem)
            scores = None
        found.append(replace(result, source=scores))
    for reason in reasons:
        notify(reason)
    return found


def next_command(outcome: Outcome, request: TrainRequest, *, compare: bool = False) -> str:
    """The command that makes sense after a training.

    It trains the folds that are left, or selects the best run once the cross-validation is
    finished. After fold `all` alone it predicts.

    Args:
        outcome: The run.
        request: What was trained.
        compare: Whether a twin from scratch was trained as well.
    """
    run = outcome.run
    dataset, workspace = run.path.parents[1].name, run.path.parents[2]
    if request.folds == ("all",) or not (outcome.scores or outcome.unfinished):
        several = ["--folds", "all"] if outcome.scores else []
        words = ["-i", "IN", "-o", "OUT", "-m", run.name, *several]
        return command("predict", options=words, workspace=workspace)
    if not outcome.unfinished:
        return command("select", dataset, workspace=workspace)
    words = ["--compare-scratch"] if compare else []
    return train_command(run, without_unread(request, run), outcome.unfinished, options=words)


def mean_of(values: list[float | None]) -> float | None:
    """The mean of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _dice(scores: "Scores", label: str) -> float | None:
    found = scores.summary[label].metrics.get("dice") if label in scores.summary else None
    return None if found is None else found.mean
