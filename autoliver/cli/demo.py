"""demo."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoliver.cli.options import AsJson, Verbose
from autoliver.cli.output import emit, number, start, table

if TYPE_CHECKING:
    from autoliver.evaluation.results import Scores
    from autoliver.synthesis.phantom import PhantomOptions
    from autoliver.workspace import Workspace

_SEED = 20
_TEST_CASES = 4
_LESIONS = (2, 5)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for everything it makes.")
    ] = Path("autoliver-demo"),
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make phantom scans, then plan, train, predict and evaluate on them: under 5 minutes."""
    from autoliver.synthesis.phantom import PhantomOptions
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    begun = time.monotonic()
    workspace = Workspace(output / "workspace")
    ct = (PhantomOptions(contrast="CT", lesions=_LESIONS),)
    mr = (PhantomOptions(contrast="T2", lesions=_LESIONS),)
    parts = [
        _study(workspace, output, "Dataset001_PhantomCT", options=ct, cases=12, epochs=16),
        _study(workspace, output, "Dataset002_PhantomMR", options=mr, cases=12, epochs=16),
    ]
    minutes = (time.monotonic() - begun) / 60
    text = "\n\n".join(f"{name}: {_TEST_CASES} unseen cases\n{_show(s)}" for name, s in parts)
    emit(
        {
            "dice": {
                name: {label: score.metrics["dice"].mean for label, score in s.summary.items()}
                for name, s in parts
            },
            "folder": str(output.resolve()),
        },
        f"{text}\n\nDone in {minutes:.1f} minutes. Scans, models and predictions: {output}",
        as_json=as_json,
    )


def _study(
    workspace: "Workspace",
    output: Path,
    name: str,
    *,
    options: "tuple[PhantomOptions, ...]",
    cases: int,
    epochs: int,
) -> "tuple[str, Scores]":
    """One dataset from nothing to the scores of unseen cases."""
    from autoliver.pipeline.data import plan_dataset
    from autoliver.pipeline.evaluation import EvaluateRequest, evaluate
    from autoliver.pipeline.prediction import PredictRequest, predict_folder
    from autoliver.pipeline.training import TrainRequest, train
    from autoliver.planning.planner import PlanOptions
    from autoliver.synthesis.phantom import write_phantom_dataset

    source = output / "data" / name
    if not source.exists():
        write_phantom_dataset(
            source.parent,
            name=name,
            cases=cases,
            seed=_SEED,
            options=options,
            test_cases=_TEST_CASES,
        )
    plan_dataset(workspace, str(source), PlanOptions(preset="tiny"))
    request = TrainRequest(
        configuration="2d", folds=("all",), changes={"epochs": epochs, "iterations": 50}
    )
    train(workspace, name, request)
    predictions = output / "predictions" / name
    predict_folder(workspace, source / "imagesTs", predictions, PredictRequest(), models=(name,))
    request_scores = EvaluateRequest(dataset=name)
    return name, evaluate(workspace, predictions, source / "labelsTs", request_scores)


def _show(scores: "Scores") -> str:
    rows = [
        (label, *(number(_mean(scores, label, field)) for field in ("dice", "nsd", "hd95_mm")))
        for label in scores.summary
    ]
    return table(("label", "Dice", "NSD 2 mm", "HD95 mm"), rows)


def _mean(scores: "Scores", label: str, field: str) -> float | None:
    found = scores.summary[label].metrics.get(field)
    return found.mean if found else None
