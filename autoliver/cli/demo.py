"""The command `demo`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoliver.cli.options import AsJson, Verbose
from autoliver.cli.output import emit, number, say, start, table

if TYPE_CHECKING:
    from autoliver.evaluation.results import Scores
    from autoliver.workspace import Workspace

_SEEDS = {"CT": 20, "T2": 21}  # so that the patients differ
_TEST_CASES = 4
_LESIONS = (2, 5)
_CT, _MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"
_CT_CASES, _MR_CASES = 12, 2
_CT_STEPS, _MR_STEPS = (18, 50), (2, 50)  # epochs, and steps per epoch


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for everything it writes.")
    ] = Path("autoliver-demo"),
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Try the whole pipeline on phantom scans in under 5 minutes.

    It makes phantom scans, trains on CT, transfers the model to two MR scans and compares the
    results.
    """
    from autoliver.pipeline.data import plan_dataset
    from autoliver.planning.plan import PlanOptions
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    begun = time.monotonic()
    workspace, data = Workspace(output / "workspace"), output / "data"
    _phantoms(data, _CT, contrast="CT", cases=_CT_CASES)
    _phantoms(data, _MR, contrast="T2", cases=_MR_CASES)
    plan_dataset(workspace, str(data / _CT), PlanOptions(preset="tiny", window_hu=(-150.0, 250.0)))
    _train(workspace, data / _CT, _CT_STEPS, augment="cross-modality")
    _train(workspace, data / _MR, _MR_STEPS, pretrained="PhantomCT", compare=True)
    parts = {
        "CT, trained on 12 CT scans": (_CT, f"{_CT}/2d"),
        "MR, the same model: it never saw MR": (_MR, f"{_CT}/2d"),
        "MR, from scratch on 2 MR scans": (_MR, f"{_MR}/2d@PhantomCT+scratch"),
        "MR, transferred from CT to 2 MR scans": (_MR, f"{_MR}/2d@PhantomCT"),
    }
    scores = {
        what: _score(workspace, output, dataset, model) for what, (dataset, model) in parts.items()
    }
    minutes = (time.monotonic() - begun) / 60
    labels = list(next(iter(scores.values())).summary)
    rows = [(what, *(number(_dice(s, label)) for label in labels)) for what, s in scores.items()]
    text = f"Dice of {_TEST_CASES} unseen scans each\n{table(('', *labels), rows)}"
    emit(
        {
            "dice": {
                what: {label: _dice(found, label) for label in labels}
                for what, found in scores.items()
            },
            "folder": str(output.resolve()),
        },
        f"{text}\n\nDone in {minutes:.1f} minutes. Scans, models and predictions: {output}",
        as_json=as_json,
    )


def _phantoms(data: Path, name: str, *, contrast: Literal["CT", "T2"], cases: int) -> None:
    from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

    if not (data / name).exists():
        write_phantom_dataset(
            data,
            name=name,
            cases=cases,
            seed=_SEEDS[contrast],
            options=(PhantomOptions(contrast=contrast, lesions=_LESIONS),),
            test_cases=_TEST_CASES,
        )


def _train(
    workspace: "Workspace",
    dataset: Path,
    steps: tuple[int, int],
    *,
    augment: str = "default",
    pretrained: str | None = None,
    compare: bool = False,
) -> None:
    from autoliver.pipeline.run.request import TrainRequest
    from autoliver.pipeline.run.train import train
    from autoliver.pipeline.run.twin import train_both

    request = TrainRequest(
        configuration="2d",
        folds=("all",),
        changes={"epochs": steps[0], "iterations": steps[1], "augment": augment},
        pretrained=pretrained,
    )
    begin = train_both if compare else train
    begin(workspace, str(dataset), request, notify=say)


def _score(workspace: "Workspace", output: Path, dataset: str, model: str) -> "Scores":
    """Predicts the unseen scans of a dataset with a model and scores the result."""
    from autoliver.pipeline.evaluation import EvaluateRequest, evaluate
    from autoliver.pipeline.folder import predict_folder
    from autoliver.pipeline.prediction import PredictRequest

    source = output / "data" / dataset
    predictions = output / "predictions" / f"{dataset} by {model.replace('/', ' ')}"
    predict_folder(workspace, source / "imagesTs", predictions, PredictRequest(), models=(model,))
    request = EvaluateRequest(dataset=dataset)
    return evaluate(workspace, predictions, source / "labelsTs", request)


def _dice(scores: "Scores", label: str) -> float | None:
    found = scores.summary[label].metrics.get("dice")
    return found.mean if found else None
