"""The command `demo`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from autoliver.cli.options import AsJson, Verbose
from autoliver.cli.output import emit, number, say, start, table


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for everything it writes.")
    ] = Path("autoliver-demo"),
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Try the whole pipeline on phantom scans in under 5 minutes.

    It makes phantom scans, trains on CT, transfers the model to a few MR scans, and compares the
    results in a table, a picture and a page of HTML.
    """
    from autoliver.pipeline.demo import FULL_DEMO, run_demo

    start(verbose=verbose)
    begun = time.monotonic()
    result = run_demo(output, FULL_DEMO, notify=say)
    minutes = (time.monotonic() - begun) / 60
    labels = list(next(iter(result.dice.values())))
    rows = [
        (what, *(number(dice[label]) for label in labels)) for what, dice in result.dice.items()
    ]
    text = f"Dice of {FULL_DEMO.test_cases} unseen scans each\n{table(('', *labels), rows)}"
    where = f"Scans, models and predictions: {output}\nOutlines: {result.picture}"
    where += f"\nReport on the transfer, for a browser: {result.report}"
    emit(
        {
            "dice": result.dice,
            "folder": str(output.resolve()),
            "picture": str(result.picture.resolve()),
            "report": str(result.report.resolve()),
        },
        f"{text}\n\nDone in {minutes:.1f} minutes. {where}",
        as_json=as_json,
    )
