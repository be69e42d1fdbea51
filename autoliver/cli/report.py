"""The command `report`."""

from pathlib import Path
from typing import Annotated

import typer

from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AsJson,
    MemoryGb,
    Verbose,
    Workers,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, start
from autoliver.values import first_few


# Longer than 60 lines, because every option of the command is a parameter with its help.
def report(
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="Folder or name of a planned dataset, or name of an imported model. [default: "
            "without -p, the only dataset in the workspace]",
        ),
    ] = None,
    prediction: Annotated[
        list[Path] | None,
        typer.Option(
            "--prediction",
            "-p",
            metavar="PRED",
            help="Folder of predicted label maps to show. Given twice, the two are compared.",
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            "-i",
            metavar="IMAGES",
            help="Folder of the images of these predictions; may be repeated. [default: those of "
            "REF, if it is a dataset]",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            "-r",
            metavar="REF",
            help="Folder of reference label maps; or a dataset (its folder or name). [default: "
            "none; scores.json in PRED is shown if it is there]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The page. [default: report.html in the workspace's folder of the dataset, or in "
            "PRED]",
        ),
    ] = None,
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show a dataset with its runs, or predictions, in a browser.

    Plan, learning curves, scores, and slices of the cases to look at first: all in one file of at
    most 5 MB that a browser opens without a network. Cases that are unlike the others come first.
    """
    from autoliver.pipeline.reporting.report import ReportRequest
    from autoliver.pipeline.reporting.report import report as make
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = ReportRequest(
        dataset=dataset,
        predictions=tuple(prediction or ()),
        images=tuple(images or ()),
        reference=reference,
        output=output,
        machine=machine_of(workers=workers, memory_gb=memory_gb),
    )
    found = make(Workspace(workspace), request)
    first = first_few(found.outliers, 5)
    text = f"Cases on the page: {found.cases}"
    text += f"\nLook first at: {first}" if first else ""
    text += f"\nWritten: {found.path} ({found.size / 1e6:.1f} MB)"
    result = {
        "file": str(found.path.resolve()),
        "bytes": found.size,
        "cases": found.cases,
        "outliers": found.outliers,
    }
    emit(result, text, as_json=as_json)
