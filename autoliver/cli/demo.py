"""demo."""

from pathlib import Path
from typing import Annotated

import typer

from autoliver.cli.options import AsJson, Verbose
from autoliver.cli.output import emit, start


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for everything it makes.")
    ] = Path("autoliver-demo"),
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make phantom scans, then plan, train, predict and evaluate on them: under 5 minutes."""
    from autoliver.demonstration import run_demo

    start(verbose=verbose)
    result = run_demo(output)
    emit(result.as_dict(), result.text, as_json=as_json)
