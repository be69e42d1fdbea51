"""Scoring of predictions: of the user's, and of the cases that folds hold back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.datasets.cases import Case, Labels
from autoliver.datasets.folds import Fold
from autoliver.errors import OptionError
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.models.files import SCORES_FILE, FoldFolder
from autoliver.needs import score_need
from autoliver.parallel import case_bar
from autoliver.pipeline.prediction import PredictRequest, predict
from autoliver.values import check_text, check_texts, check_types, set_field
from autoliver.workspace import RunFolder, Workspace

if TYPE_CHECKING:
    from autoliver.evaluation.results import MetricOptions, Scores


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What `evaluate` was asked for.

    Attributes:
        dataset: Names the labels; None: label values name themselves.
        metrics: Only these; empty: all. A single one may be given as a text.
        chaos: Add the CHAOS score.
        output: Folder for the scores; None: that of the predictions.
        overwrite: Replace scores that hold what the new ones do not.
        machine: The processes and memory that may be used.
    """

    dataset: str | None = None
    metrics: tuple[str, ...] = ()
    chaos: bool = False
    output: Path | None = None
    overwrite: bool = False
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses values that cannot be.

        Raises:
            OptionError: Naming the option and its value.
        """
        set_field(self, "metrics", check_texts("--metrics", self.metrics))
        check_types(self)
        if self.dataset is not None:
            check_text("--dataset", self.dataset, "a folder or the name of a planned dataset")
        self.options()

    def folder(self, prediction: Path) -> Path:
        """The folder that the scores of these predictions, a folder or one file, are written to."""
        return self.output or (prediction.parent if prediction.is_file() else prediction)

    def options(self) -> "MetricOptions":
        """What is measured."""
        from autoliver.evaluation.results import ALL_METRICS, MetricOptions

        return MetricOptions(metrics=self.metrics or ALL_METRICS, chaos=self.chaos)


def evaluate(
    workspace: Workspace, prediction: Path, reference: Path, request: EvaluateRequest
) -> "Scores":
    """Scores a folder of label maps; writes scores.json and scores.csv beside them.

    Raises:
        DatasetError: The folders do not fit together, or a file cannot be read.
        OptionError: There are scores that hold what the new ones would not.
    """
    from autoliver.evaluation.results import write_csv
    from autoliver.evaluation.score import discover_labels, find_pairs, score_folder

    labels = workspace.read(request.dataset).labels if request.dataset else None
    output = request.folder(prediction)
    pairs, _ = find_pairs(prediction, reference)
    if not request.overwrite:
        references = {name: pair[1] for name, pair in pairs.items()}
        _refuse_loss(output / SCORES_FILE, references, labels, request.options())
    pool = request.machine.pool("evaluate", need=score_need)
    if labels is None:
        bar = case_bar("read label values", len(pairs))
        labels = discover_labels(
            [reference for _, reference in pairs.values()], executor=pool, progress=bar
        )
    scores = score_folder(
        prediction,
        reference,
        labels=labels,
        options=request.options(),
        executor=pool,
        progress=case_bar("evaluate", len(pairs)),
    )
    scores.save(output / SCORES_FILE)
    write_csv(scores, output / "scores.csv")
    return scores


def _refuse_loss(
    path: Path, references: Mapping[str, Path], labels: Labels | None, options: "MetricOptions"
) -> None:
    """Refuses to replace scores that hold what the new ones would not.

    Args:
        path: Of the scores that may be there.
        references: Case -> the label map that it will be compared with.
        labels: What will be scored; None: values that name themselves.
        options: What will be measured.

    Raises:
        ArtifactError: The scores are damaged.
        OptionError: Saying what would be lost.
    """
    from autoliver.evaluation.results import Scores

    if not path.exists():
        return
    then = Scores.load(path, mend="the same command with --overwrite")
    lost = _lost(then, references, labels, options)
    if lost:
        raise OptionError(
            f"{path}: holds {' and '.join(lost)}, which the new scores would not.",
            hint="Write them elsewhere with --output, or replace the old ones with --overwrite.",
        )


def _lost(
    then: "Scores",
    references: Mapping[str, Path],
    labels: Labels | None,
    options: "MetricOptions",
) -> list[str]:
    """What scores hold that new ones would not, in words; arguments as `_refuse_loss`."""
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
