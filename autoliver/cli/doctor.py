"""The command `doctor`."""

import dataclasses
import shutil
import sys
import textwrap
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoliver.cli.options import DEFAULT_WORKSPACE, AsJson, Device, Verbose, WorkspaceDir
from autoliver.cli.output import emit, start, table

if TYPE_CHECKING:
    from autoliver.pipeline.checkup.findings import Checkup, Estimate, Finding

_WIDTH = 80  # where the terminal's is not known
_LEAST_TEXT = 30
_WORST = ("will fail", "worth changing", "ok")
_FAILS = 1  # the exit code if commands will fail here


def doctor(
    dataset: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="Folder or name of a planned dataset: also how long its trainings take. "
            "[default: the machine alone]",
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe",
            help="Take training steps, for about ten seconds with each network, and time the "
            "disk of the workspace.",
        ),
    ] = True,
    device: Device = "auto",
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Say what this machine can do, and what to change.

    For a planned dataset, it also says how long trainings and predictions take here.

    It looks at GPU, driver, build of torch, memory, cores, disk and limits, those of a container
    too. The exit code is 1 if something will fail, else 0.
    """
    from autoliver.pipeline.checkup.doctor import doctor as examine
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    found = examine(Workspace(workspace), dataset, probe=probe, device=device)
    emit(_result(found), _show(found), as_json=as_json)
    if found.will_fail:
        raise typer.Exit(_FAILS)


def _result(found: "Checkup") -> dict[str, Any]:
    return {
        "will_fail": found.will_fail,
        "findings": [dataclasses.asdict(each) for each in found.findings],
        "estimates": [dataclasses.asdict(each) for each in found.estimates],
    }


def _show(found: "Checkup") -> str:
    width = shutil.get_terminal_size((_WIDTH, 24)).columns if sys.stdout.isatty() else _WIDTH
    lines = [_findings(found.findings, width)]
    if found.estimates:
        lines += ["", _times(found.estimates), *_remarks(found.estimates, width)]
    levels = Counter[str](each.level for each in found.findings if each.level != "ok")
    told = ", ".join(f"{levels[level]} {level}" for level in _WORST if levels[level])
    return "\n".join([*lines, "", f"{told}." if told else "All is well."])


def _findings(findings: "tuple[Finding, ...]", width: int) -> str:
    """A row for each finding, the worst first, with why it matters and what to do."""
    first = max(len(each.level) for each in findings)
    room = max(_LEAST_TEXT, width - first - 2)
    lines = []
    for each in sorted(findings, key=lambda each: _WORST.index(each.level)):
        texts = [f"{each.topic}: {each.found}"]
        texts += [f"  why: {each.why}"] if each.why else []
        texts += [f"  do: {each.todo}"] if each.todo else []
        cells = [piece for text in texts for piece in _filled(text, room)]
        rows = zip([each.level, *[""] * (len(cells) - 1)], cells, strict=True)
        lines += [f"{level:<{first}}  {cell}" for level, cell in rows]
    return "\n".join(lines)


def _filled(text: str, room: int) -> list[str]:
    indent = len(text) - len(text.lstrip()) + 2
    return textwrap.wrap(
        text,
        room,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _times(estimates: "tuple[Estimate, ...]") -> str:
    from autoliver.pipeline.checkup.estimate import days

    rows = [
        (
            each.configuration,
            f"{each.step_s:.3g} s",
            days(each.epoch_s),
            str(each.epochs),
            days(each.fold_s),
            days(each.all_s),
            "-" if each.case_s is None else days(each.case_s),
        )
        for each in estimates
    ]
    folds = max(each.folds for each in estimates)
    header = ("", "step", "epoch", "epochs", "fold", f"{folds} folds", "predict a case")
    return table(header, rows)


def _remarks(estimates: "tuple[Estimate, ...]", width: int) -> list[str]:
    remarks = [
        "Times are of this machine as busy as it is now, for a training without further options; "
        "a prediction is that of one fold, without reading and writing."
    ]
    scaled = [each for each in estimates if each.scaled < 1.0]
    remarks += [
        f"{each.configuration}: timed on {100 * each.scaled:.2g} % of the voxels of a batch, "
        "since whole batches take too long."
        for each in scaled
    ]
    return [line for remark in remarks for line in textwrap.wrap(remark, width)]
