"""Learns the temperature of lesions' classes from the held-out cases of folds."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.datasets.cases import Case, unscored_labels
from autoliver.machine import Machine
from autoliver.models.files import FoldFolder, FoldModel
from autoliver.models.selection import Temperature
from autoliver.needs import score_need
from autoliver.parallel import case_bar
from autoliver.values import first_few
from autoliver.workspace import RunFolder

if TYPE_CHECKING:
    from autoliver.evaluation.probabilities import Rows
    from autoliver.inference.lesions.calibration import ReliabilityBin

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """A temperature, and how often classes are right.

    Attributes:
        temperature: The temperature.
        panels: "before" and "after" it -> lesions grouped by their probability; empty if there are
            no lesions to learn from.
    """

    temperature: Temperature
    panels: "Mapping[str, Sequence[ReliabilityBin]]"

    def draw(self, path: Path) -> Path | None:
        """Draws the groups as a PNG; a picture of before is removed if there are none."""
        from autoliver.evaluation.picture import draw_reliability

        if not self.panels:
            path.unlink(missing_ok=True)
            return None
        draw_reliability(path, self.panels)
        return path


def classes_of(runs: Sequence[RunFolder], folds: Sequence[int]) -> tuple[str, ...]:
    """Returns the classes of lesions that all folds of runs tell apart; empty without several."""
    models = [FoldModel.load(FoldFolder(run.fold(fold)).model) for run in runs for fold in folds]
    alike = len({model.lesion_classes for model in models}) == 1
    return models[0].lesion_classes if alike and models[0].votes else ()


def learn_temperature(
    model: FoldModel,
    cases: Sequence[Case],
    tables: Sequence[Path],
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    machine: Machine,
) -> Learnt:
    """Learns the temperature of a run or pair of runs that tells classes of lesions apart.

    Predicted lesions are matched one to one to those of the reference, whatever their class.

    Args:
        model: One of the folds, which all have the same labels and classes.
        cases: The held-out cases of all folds, which are predicted.
        tables: The lesions.json of each fold.
        pairs: Case -> its predicted and its true label map.
        machine: The processes and memory that may be used.
    """
    from autoliver.evaluation.classification import matched_probabilities
    from autoliver.evaluation.probabilities import with_probabilities
    from autoliver.evaluation.results import MetricOptions
    from autoliver.evaluation.score import score_files
    from autoliver.inference.lesions.calibration import calibrated, fit_temperature, reliability

    classes = model.lesion_classes
    scores = score_files(
        pairs,
        labels=model.plan.labels,
        options=MetricOptions(metrics=("lesions",), lesion_labels=classes),
        unscored=unscored_labels(cases),
        executor=machine.pool("match lesions", need=score_need, light=True),
        progress=case_bar("match lesions", len(pairs)),
    )
    found, unlike = with_probabilities(scores.cases, _rows(tables))
    if unlike:
        _log.warning(
            "%s: the lesions in lesions.json are not those of the label maps, so that these cases "
            "teach no temperature (%d): %s.",
            *(model.plan.dataset, len(unlike), first_few(unlike, 5)),
        )
    probabilities, truth = matched_probabilities([case.lesions or () for case in found], classes)
    fitted = fit_temperature(probabilities, truth)
    if not len(truth):
        return Learnt(temperature=fitted, panels={})
    after = calibrated(probabilities, fitted.value)
    title = f"after (temperature {fitted.value:.2f})"
    panels = {"before": reliability(probabilities, truth), title: reliability(after, truth)}
    return Learnt(temperature=fitted, panels=panels)


def _rows(tables: Sequence[Path]) -> "Rows":
    """Reads the lesions of held-out cases, as rows of a table that `predict` writes."""
    from autoliver.artifacts import text_cell
    from autoliver.evaluation.probabilities import Row
    from autoliver.inference.lesions.table import LesionTable

    return {
        text_cell(case): {
            each.lesion: Row(each.probabilities, each.volume_ml) for each in lesions.lesions
        }
        for path in tables
        for case, lesions in LesionTable.load(path).cases.items()
    }
