"""The `autoliver` program: its commands, and how it reports errors."""

import json
import sys

import typer

from autoliver.cli import clean, data, demo, models, prediction, selection, training
from autoliver.errors import AutoliverError
from autoliver.system import in_words

_INTERRUPTED = 130

app = typer.Typer(
    name="autoliver",
    help="Self-configuring segmentation of liver and liver tumours in CT and MR.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("verify")(data.verify)
app.command("plan")(data.plan)
app.command("preprocess")(data.preprocess)
app.command("train")(training.train)
app.command("train-queued", hidden=True)(training.train_queued)
app.command("select")(selection.select)
app.command("predict")(prediction.predict)
app.command("evaluate")(prediction.evaluate)
app.command("export")(models.export)
app.command("import")(models.import_)
app.command("clean")(clean.clean)


@app.callback(invoke_without_command=True)
def _main(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"autoliver {installed('autoliver')}")
        raise typer.Exit


def run() -> None:
    """Runs the command line and exits.

    The exit code is 0 for success, 1 for an `AutoliverError`, which the user can fix, and 2 for
    wrong usage of the command line.
    """
    try:
        with in_words():
            app()
    except AutoliverError as error:
        if "--json" in sys.argv:
            typer.echo(json.dumps({"error": error.problem, "hint": error.hint}))
        typer.echo(f"Error: {error.problem}", err=True)
        if error.hint:
            typer.echo(f"Hint: {error.hint}", err=True)
        sys.exit(1)
    except SystemExit as done:
        if done.code == _INTERRUPTED:  # typer exits so on Ctrl-C, silently
            typer.echo("Stopped. Run the same command again to continue.", err=True)
        raise
