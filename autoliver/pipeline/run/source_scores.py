"""Scores a fine-tuned fold on cases of the dataset that its weights come from.

Only cases that the dataset's own fold holds out are scored, and that the weights have not seen.
"""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import msgspec
import numpy as np

from autoliver.artifacts import Artifact
from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.datasets.contents import image_key
from autoliver.datasets.folds import Fold, Folds
from autoliver.errors import AutoliverError
from autoliver.inference.options import ModalityChoice
from autoliver.io.files import read_label
from autoliver.machine import Machine
from autoliver.models.files import SCORES_FILE, FoldFolder, FoldModel, fold_of
from autoliver.parallel import case_bar
from autoliver.pipeline.prediction import PredictRequest, predict
from autoliver.pipeline.run.replay import fold_named, source_fold
from autoliver.pipeline.run.request import Notify
from autoliver.pipeline.run.source import safe
from autoliver.planning.plan import Plan
from autoliver.training.options import TrainingOptions
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

_log = logging.getLogger(__name__)

Dice = dict[str, float | None]


class SourceScores(Artifact, frozen=True, kw_only=True):
    """The Dice of a fold on unseen cases of the dataset that its weights come from.

    Attributes:
        dataset: The dataset's name.
        cases: Case -> label of the fold -> Dice; None where neither label map has the label, or it
            is not annotated.
        before: The same of the network that the weights come from; empty if it is not known.
    """

    KIND: ClassVar[str] = "source scores"

    dataset: str
    cases: dict[str, Dice]
    before: dict[str, Dice] = msgspec.field(default_factory=dict)

    @property
    def mean(self) -> Dice:
        """Label -> mean Dice over the cases."""
        return _mean(self.cases)

    @property
    def mean_before(self) -> Dice:
        """Label -> mean Dice over the cases of the network that the weights come from."""
        return _mean(self.before)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A dataset that a fold was fine-tuned from, or that it replayed.

    Attributes:
        folder: Its folder in the workspace.
        dataset: The dataset as it was planned.
        labels: Its labels.
        fold: The fold of it whose held-out cases are scored.
        said: What the weights come from, for messages.
    """

    folder: DatasetFolder
    dataset: Dataset
    labels: Labels
    fold: Fold
    said: str


def score_source(
    workspace: Workspace,
    fold: FoldFolder,
    tuned: FoldFolder,
    *,
    machine: Machine,
    notify: Notify = _log.info,
) -> SourceScores | None:
    """Scores a fold on unseen cases of the source of a fine-tuned one; finished scores are kept.

    Args:
        workspace: The workspace.
        fold: The fold to score.
        tuned: The fold whose source is meant and whose weights have not seen the cases: the same,
            or the one that `fold` is the twin of.
        machine: The device and memory that may be used.
        notify: Called with the reason why nothing can be scored.

    Returns:
        The scores; None if the weights come from no other dataset of the workspace, or there is no
        case to score.

    Raises:
        AutoliverError: A case cannot be predicted.
    """
    run = RunFolder(tuned.path.parent)
    options, model = TrainingOptions.load(run.options, mend=run.mend), FoldModel.load(fold.model)
    found = _source(workspace, tuned, options)
    if found is None or found.folder.path == run.path.parents[1]:
        return None
    cases = _unseen(workspace, found, FoldModel.load(tuned.model), notify)
    names = _names(found, model.plan)
    if not cases or not names:
        return None
    if model.needs_lesions:
        notify(
            f"Cases of {found.dataset.short_name} are not scored: a classifier has to be told "
            "where lesions are."
        )
        return None
    if model.roi is not None and model.roi.truth:
        notify(
            f"Cases of {found.dataset.short_name} are not scored: with --roi-truth nothing finds "
            f"the {model.roi.label} there."
        )
        return None
    made_from = {"weights": model.weights_sha256[:12], "dataset": found.dataset.digest()}
    path = fold.on_source / SCORES_FILE
    if path.exists():
        kept = SourceScores.load(path)
        if kept.made_from == made_from and kept.cases.keys() == {case.name for case in cases}:
            return kept
        shutil.rmtree(fold.on_source)
    request = PredictRequest(
        exact=options.deterministic, roi_from=options.roi_from, machine=machine
    )
    written = _predict(fold, model, cases, request)
    tables = {n: (model.plan.labels.values[n], found.labels.values[s]) for n, s in names.items()}
    bar = case_bar(f"score {found.dataset.short_name}", len(cases))
    scores = SourceScores(
        made_from=made_from,
        dataset=found.dataset.name,
        cases={
            case.name: _dice(written[case.name], case, tables, found.labels.ignore)
            | {name: None for name, source in names.items() if source in case.unscored}
            for case in bar(cases)
        },
        before=_before(found, options, [case.name for case in cases], names),
    )
    scores.save(path)
    return scores


def _source(workspace: Workspace, tuned: FoldFolder, options: TrainingOptions) -> _Source | None:
    """Returns the dataset of the weights that a fold started from, or else the replayed one."""
    for folder in workspace.datasets:
        dataset = Dataset.load(folder.dataset)
        held = fold_named(options.pretrained, dataset)
        if held is None and folder.name != options.replay:
            continue
        if held is not None and not _is_start(folder, options, tuned):
            continue
        splits = Folds.load(folder.folds)
        own = fold_of(tuned.path)
        fold = source_fold("all" if own == "all" else int(own), splits) if held is None else held
        return _Source(
            folder=folder,
            dataset=dataset,
            labels=dataset.labels,
            fold=fold,
            said=options.pretrained if held is not None and options.pretrained else folder.name,
        )
    return None


def _is_start(folder: DatasetFolder, options: TrainingOptions, tuned: FoldFolder) -> bool:
    """Whether a dataset has the very weights that a fold started from."""
    path = _source_fold(folder, options)
    if path is None or not path.model.exists():
        return False
    ancestors = FoldModel.load(tuned.model).ancestors
    return FoldModel.load(path.model).weights_sha256[:12] in ancestors[:1]


def _source_fold(folder: DatasetFolder, options: TrainingOptions) -> FoldFolder | None:
    """Returns the folder of the fold that a training started from, in a dataset's folder."""
    name, _, place = (options.pretrained or "").partition("/")
    known = place and name == safe(Dataset.load(folder.dataset).short_name)
    return FoldFolder(folder.path / "runs" / place) if known else None


def _unseen(workspace: Workspace, found: _Source, model: FoldModel, notify: Notify) -> list[Case]:
    """Returns the held-out cases of the source that the weights of a fold have not seen."""
    held_out = set()
    if found.fold != "all":
        names = [case.name for case in found.dataset.labelled]
        split = Folds.load(found.folder.folds).split(found.fold, names)
        seen = {*model.trained_on, *model.seen_before}
        held_out = {
            case.name
            for case in found.dataset.labelled
            if case.name in split.validation and image_key(case) not in seen
        }
    if not held_out:
        why = ": it was trained on every case" if found.fold == "all" else ""
        notify(f"There are no unseen cases of {found.said} to score{why}.")
        return []
    try:
        dataset = workspace.source(found.dataset.name)
    except AutoliverError as error:
        notify(f"Unseen cases of {found.dataset.name} are not scored. {error.problem}")
        return []
    keys = {image_key(case) for case in found.dataset.labelled if case.name in held_out}
    return [c for c in dataset.labelled if c.name in held_out and image_key(c) in keys]


def _names(found: _Source, plan: Plan) -> dict[str, str]:
    """Returns label of the fold -> label of the source, of those that both have."""
    from autoliver.transfer.labels import match_labels

    if len(found.dataset.channel_names) != len(plan.channel_names):
        return {}
    return {name: s for name, s in match_labels(found.labels, plan.labels).items() if s}


def _predict(
    fold: FoldFolder, model: FoldModel, cases: Sequence[Case], request: PredictRequest
) -> dict[str, Path]:
    """Predicts cases of the source, each normalised as its modality asks for."""
    files = RunFolder(fold.path.parent).files(model.fold)
    written: dict[str, Path] = {}
    for modality in sorted({case.modality for case in cases}):
        images = {c.name: [Path(p) for p in c.images] for c in cases if c.modality == modality}
        choice: ModalityChoice | None = None if modality == "other" else modality
        asked = replace(request, modality=choice)
        written |= predict(files, images, fold.on_source, asked)
    return written


def _dice(
    prediction: Path,
    case: Case,
    labels: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    ignore: int | None,
) -> Dice:
    """Returns the Dice of each label, whose values differ in the two label maps."""
    from autoliver.evaluation.metrics import dice

    reference = Path(str(case.label))
    predicted, actual = read_label(prediction).array[0], read_label(reference).array[0]
    counts = np.True_ if ignore is None else actual != ignore
    found: Dice = {}
    for name, (mine, theirs) in labels.items():
        value = dice(np.isin(predicted, mine) & counts, np.isin(actual, theirs) & counts)
        found[name] = None if math.isnan(value) else float(value)
    return found


def _before(
    found: _Source, options: TrainingOptions, cases: Sequence[str], names: Mapping[str, str]
) -> dict[str, Dice]:
    """Returns what the source's own scores say of the cases; empty if it has none of them."""
    from autoliver.evaluation.results import Scores

    place = _source_fold(found.folder, options)
    if place is None or not place.scores.exists():
        return {}
    known = {case.name: case.labels for case in Scores.load(place.scores).cases}
    return {
        case: {
            name: known[case][label].dice if label in known[case] else None
            for name, label in names.items()
        }
        for case in cases
        if case in known and any(label in known[case] for label in names.values())
    }


def _mean(cases: Mapping[str, Dice]) -> Dice:
    labels = dict.fromkeys(label for case in cases.values() for label in case)
    found: Dice = {}
    for label in labels:
        values = [v for case in cases.values() if (v := case[label]) is not None]
        found[label] = fmean(values) if values else None
    return found
