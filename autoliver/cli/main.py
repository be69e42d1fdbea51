"""The `autoliver` program: its commands, and how it reports errors."""

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autoliver.cli import (
    adopt,
    clean,
    convert,
    data,
    demo,
    doctor,
    finish,
    models,
    pool,
    prediction,
    pseudolabel,
    report,
    selection,
    status,
    synthesize,
    training,
)
from autoliver.cli.help import USAGE_ERROR, HelpfulCommand, HelpfulGroup, help_hint, show_help
from autoliver.cli.output import say
from autoliver.cli.stop import STOPPED, answer_signals, say_stopped
from autoliver.errors import AutoliverError, MachineError
from autoliver.system import in_words

app = typer.Typer(
    name="autoliver",
    cls=HelpfulGroup,
    help="Self-configuring segmentation of liver and liver tumours in CT and MR.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # Otherwise pages are two columns narrower, and summaries of commands are cut.
        "terminal_width": min(80, shutil.get_terminal_size().columns),
    },
)


def _add(
    name: str, function: Any, example: str = "", *, hidden: bool = False, group: Any = app
) -> None:
    group.command(name, cls=HelpfulCommand, epilog=example, hidden=hidden)(function)


def help_(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="Command to explain. [default: all of them]"),
    ] = None,
) -> None:
    """Show the help of a command, like COMMAND --help."""
    typer.echo(show_help(ctx, command or []))


_add("demo", demo.demo, "autoliver demo -o /tmp/demo")
_add("doctor", doctor.doctor, "autoliver doctor LiTS")
_add("convert", convert.convert, "autoliver convert camus /data/CAMUS /data/Dataset040_CAMUS")
_add("verify", data.verify, "autoliver verify /data/Dataset003_LiTS")
_add("plan", data.plan, "autoliver plan /data/Dataset003_LiTS --preset M")
_add("preprocess", data.preprocess, "autoliver preprocess LiTS 2d 3d_fullres")
_add("train", training.train, "autoliver train LiTS 3d_fullres --fold 0 --epochs 250")
_add("train-queued", training.train_queued, hidden=True)
_add("finish", finish.finish, "autoliver finish LiTS 3d_fullres")
_add("status", status.status, "autoliver status LiTS --watch")
_add("select", selection.select, "autoliver select LiTS")
_add("predict", prediction.predict, "autoliver predict -i /data/new -o /data/out -m LiTS")
_add("evaluate", prediction.evaluate, "autoliver evaluate -p /data/out -r /data/truth -d LiTS")
_add("report", report.report, "autoliver report LiTS")
_add("adopt", adopt.adopt, "autoliver adopt -i /data/mr -p /data/corrected /data/Dataset020_OurMR")
_add("pool", pool.pool, "autoliver pool /data/Both --add LiTS --add CHAOS:liver=real,tumour=absent")
_add(
    "pseudolabel",
    pseudolabel.pseudolabel,
    "autoliver pseudolabel /data/Dataset008_MSD /data/MSD_labelled -m LiTS",
)
_synthesize = typer.Typer(
    cls=HelpfulGroup,
    help="Make labelled images of another modality.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(_synthesize, name="synthesize")
_add(
    "fit",
    synthesize.fit,
    "autoliver synthesize fit --from LiTS --to OurMR -o LiTS-as-MR",
    group=_synthesize,
)
_add(
    "apply",
    synthesize.apply,
    "autoliver synthesize apply LiTS-as-MR /data/Dataset030_SyntheticMR",
    group=_synthesize,
)
_add("export", models.export, "autoliver export LiTS liver.autoliver")
_add("import", models.import_, "autoliver import liver.autoliver --name OurLiver")
_add("clean", clean.clean, "autoliver clean LiTS --yes")
_add("help", help_, "autoliver help train")


@app.callback(invoke_without_command=True)
def _main(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"autoliver {installed('autoliver')}")
        raise typer.Exit


def _check_surroundings() -> None:
    """Stands in for closed streams, and refuses a current folder that was deleted.

    Raises:
        MachineError: There is no current folder any more.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open to the end
    try:
        Path.cwd()
    except FileNotFoundError:
        raise MachineError(
            "The current folder does not exist any more.", hint="Change to another one with cd."
        ) from None


def run() -> None:
    """Runs the command line and exits.

    The exit code is 0 for success, 1 for an `AutoliverError`, which the user can fix, and 2 for
    wrong usage of the command line: a word that is not known, or a value that an option cannot have
    whatever the data. A command that was stopped ends with 130 (Ctrl-C), 143 (SIGTERM), 129 (the
    terminal is lost) or 75 (SIGUSR1: a scheduler is to start it again).
    """
    answer_signals()
    try:
        with in_words():
            _check_surroundings()
            sys.exit(app(standalone_mode=False))
    except AutoliverError as error:
        _print_json(error.problem, error.hint, **error.facts)
        say(f"Error: {error.problem}")
        if error.hint:
            say(f"Hint: {error.hint}")
        sys.exit(error.exit_code)
    except USAGE_ERROR as error:
        _print_json(error.format_message(), help_hint(error))
        shown = io.StringIO()
        error.show(file=shown)
        say(shown.getvalue().removesuffix("\n"))
        sys.exit(error.exit_code)
    except SystemExit as done:
        if done.code in STOPPED:
            say_stopped()
        raise


def _print_json(problem: str, hint: str, **facts: object) -> None:
    """Prints an error as one object on stdout if that was asked for."""
    if "--json" in sys.argv:
        with contextlib.suppress(OSError):  # which may be the error itself
            typer.echo(json.dumps({"error": problem, "hint": hint, **facts}))
