"""demo: the whole pipeline on phantom scans, from CT to MR, with a table, pictures and a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autoliver.artifacts import Record
from autoliver.evaluation.picture import Panel, Row, draw_outlines, slice_with_most
from autoliver.io.files import read_image, read_label
from autoliver.pipeline.data import plan_dataset
from autoliver.pipeline.evaluation import EvaluateRequest, evaluate
from autoliver.pipeline.folder import predict_folder
from autoliver.pipeline.prediction import PredictRequest
from autoliver.pipeline.reporting.report import REPORT_FILE, ReportRequest, report
from autoliver.pipeline.run.request import Notify, TrainRequest
from autoliver.pipeline.run.train import train
from autoliver.pipeline.run.twin import train_both
from autoliver.planning.plan import PlanOptions
from autoliver.preprocessing.normalize import SOFT_TISSUE_HU
from autoliver.synthesis.phantom import (
    PHANTOM_LABELS,
    Contrast,
    PhantomOptions,
    write_phantom_dataset,
)
from autoliver.workspace import Workspace

if TYPE_CHECKING:
    from autoliver.evaluation.results import Scores

_CT, _MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"
_SOURCE = "PhantomCT"
_LESIONS = (2, 5)
_BIAS = 0.1  # of MR as most scanners give it, corrected for the coils' sensitivity
_COLUMNS = 3  # slices in a row of the picture
_WINDOW: dict[str, tuple[float, float] | None] = {_CT: SOFT_TISSUE_HU, _MR: None}
# A tumour is part of the liver's outline, and outlined itself.
_OUTLINED = ((1, 2), (2,), (3,), (4,), (5,))
_SHOWN = ("liver", "tumour")
_TITLE = "The first unseen phantoms, each in the slice with most tumour"


class DemoOptions(Record, frozen=True, kw_only=True):
    """How large a demo is.

    Attributes:
        seed: Seed of the phantoms and of the trainings.
        ct_cases: CT scans to train on.
        mr_cases: MR scans to train on.
        test_cases: Unseen scans of each kind that are predicted and scored.
        ct_training: Training options on CT.
        mr_training: Training options on MR, from CT and from scratch.
    """

    seed: int = 20
    ct_cases: int = 12
    mr_cases: int = 4
    test_cases: int = 4
    ct_training: dict[str, Any]
    mr_training: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What a demo has found.

    Attributes:
        dice: Row of the table -> label -> mean Dice of the unseen scans; None where it has none.
        picture: PNG with the outlines of reference and prediction, row by row.
        report: Page of HTML about the transfer to MR, against the training from scratch.
    """

    dice: dict[str, dict[str, float | None]]
    picture: Path
    report: Path


# Tumours fill a few thousandths of a scan, and are not learnt in so few steps unless half of the
# patches show a label that is drawn for them (docs/RESULTS.md).
FULL_DEMO = DemoOptions(
    ct_training={"epochs": 44, "iterations": 50, "augment": "gin:0.4", "foreground": 0.5},
    mr_training={"epochs": 8, "iterations": 50, "foreground": 0.5, "lr": 4e-3},
)


def run_demo(output: Path, options: DemoOptions, *, notify: Notify) -> DemoResult:
    """Makes phantoms, trains on CT, transfers to MR, scores all models, and reports on them.

    What an earlier demo in the folder has finished is kept.

    Args:
        output: Folder for everything it writes.
        options: How large it is.
        notify: Called with messages of the trainings.
    """
    workspace, data = Workspace(output / "workspace"), output / "data"
    _phantoms(data, _CT, "CT", options)
    _phantoms(data, _MR, "T2", options)
    plan_dataset(workspace, str(data / _CT), PlanOptions(preset="tiny", window_hu=SOFT_TISSUE_HU))
    seed = {"seed": options.seed}
    training = TrainRequest(configuration="2d", folds=("all",))
    on_ct = training.replace(changes=seed | options.ct_training)
    train(workspace, str(data / _CT), on_ct, notify=notify)
    on_mr = training.replace(changes=seed | options.mr_training, pretrained=_SOURCE)
    train_both(workspace, str(data / _MR), on_mr, notify=notify)
    parts = {
        f"CT, trained on {options.ct_cases} CT scans": _Part(_CT, f"{_CT}/2d"),
        "MR, same model: saw no MR": _Part(_MR, f"{_CT}/2d", match=True),
        f"MR, from scratch on {options.mr_cases} scans": _Part(_MR, f"{_MR}/2d@{_SOURCE}+scratch"),
        f"MR, transferred to {options.mr_cases} scans": _Part(_MR, f"{_MR}/2d@{_SOURCE}"),
    }
    dice, rows, folders = {}, [], []
    for title, part in parts.items():
        folder = output / "predictions" / f"{part.dataset} by {part.model.replace('/', ' ')}"
        folders.append(folder)
        scores = _score(workspace, data / part.dataset, folder, part)
        dice[title] = {label: _mean_dice(scores, label) for label in scores.summary}
        rows.append(_row(title, dice[title], data / part.dataset, folder))
    picture = output / "outlines.png"
    draw_outlines(picture, rows, outlined=_OUTLINED, title=_TITLE)
    request = ReportRequest(
        dataset=_MR,
        predictions=tuple(folders[-2:]),
        images=(data / _MR / "imagesTs",),
        reference=data / _MR / "labelsTs",
        output=output / REPORT_FILE,
    )
    made = report(workspace, request)
    return DemoResult(dice=dice, picture=picture, report=made.path)


class _Part(NamedTuple):
    """A row of the table: a model and the dataset whose unseen scans it predicts."""

    dataset: str
    model: str
    match: bool = False


def _phantoms(data: Path, name: str, contrast: Contrast, options: DemoOptions) -> None:
    if not (data / name).exists():
        write_phantom_dataset(
            data,
            name=name,
            cases=options.ct_cases if contrast == "CT" else options.mr_cases,
            seed=options.seed + (contrast != "CT"),  # so that the patients differ
            options=(PhantomOptions(contrast=contrast, lesions=_LESIONS, bias=_BIAS),),
            test_cases=options.test_cases,
        )


def _score(workspace: Workspace, source: Path, folder: Path, part: _Part) -> "Scores":
    """Predicts the unseen scans of a dataset with a model and scores the result."""
    how = PredictRequest(match=part.match)
    predict_folder(workspace, source / "imagesTs", folder, how, models=(part.model,))
    request = EvaluateRequest(dataset=part.dataset)
    return evaluate(workspace, folder, source / "labelsTs", request)


def _mean_dice(scores: "Scores", label: str) -> float | None:
    found = scores.summary[label].metrics.get("dice")
    return found.mean if found else None


def _row(title: str, dice: dict[str, float | None], source: Path, predictions: Path) -> Row:
    """The first unseen scans, each in the slice with most tumour of the reference."""
    references = sorted((source / "labelsTs").iterdir())[:_COLUMNS]
    panels = tuple(_panel(source / "imagesTs", each, predictions) for each in references)
    known = {label: dice[label] for label in _SHOWN if dice.get(label) is not None}
    means = ", ".join(f"{label} {value:.3f}" for label, value in known.items())
    return Row(
        title=f"{title}\nDice of all unseen scans: {means}",
        panels=panels,
        window=_WINDOW[source.name],
    )


def _panel(images: Path, reference: Path, predictions: Path) -> Panel:
    name = reference.name.removesuffix(".nii.gz")
    image = read_image([images / f"{name}_0000.nii.gz"])
    labels = [read_label(file).array[0] for file in (reference, predictions / reference.name)]
    z = slice_with_most(labels[0], PHANTOM_LABELS.values["tumour"][0])
    return Panel(
        image=image.array[0, z].astype(np.float32),
        reference=labels[0][z],
        prediction=labels[1][z],
        spacing_mm=image.geometry.spacing_mm[1:],
        caption=f"{name}, slice {z + 1} of {len(labels[0])}",
    )
