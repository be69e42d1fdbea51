"""The command `select`."""

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoliver.cli.data import DatasetArgument
from autoliver.cli.options import (
    DEFAULT_WORKSPACE,
    AcceptChanges,
    AsJson,
    Device,
    MemoryGb,
    Verbose,
    Workers,
    WorkspaceDir,
    machine_of,
)
from autoliver.cli.output import emit, number, start, table
from autoliver.cli.transfer_tables import NAMED
from autoliver.commands import command
from autoliver.values import counted

if TYPE_CHECKING:
    from autoliver.pipeline.selection import Selected

_DIGITS = 4
_WIDTH = 100


def select(
    dataset: DatasetArgument = None,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Runs to compare. [default: all finished ones]"),
    ] = None,
    accept_changes: AcceptChanges = False,
    device: Device = "auto",
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Choose the best run or pair of runs, and cleaning rules.

    They are compared by the Dice of held-out cases. `predict` then uses what was chosen.
    """
    from autoliver.pipeline import selection
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    request = selection.SelectRequest(
        runs=tuple(runs or ()),
        accept_changes=accept_changes,
        machine=machine_of(workers=workers, memory_gb=memory_gb, device=device),
    )
    selected = selection.select(Workspace(workspace), dataset, request)
    emit(result_of(selected), show_selected(selected), as_json=as_json)


def result_of(selected: "Selected") -> dict[str, Any]:
    """The selection as plain values, for --json."""
    import msgspec

    made = selected.selection
    return {
        "dataset": made.dataset,
        "model": str(selected.path),
        "members": msgspec.to_builtins(made.members),
        "candidates": [
            {
                "name": c.name,
                "runs": c.runs,
                "dice": c.dice,
                "labels": c.labels,
                "lesion_accuracy": c.lesion_accuracy,
            }
            for c in selected.candidates
        ],
        "rules": [
            {"text": str(trial.rule), **msgspec.to_builtins(trial)} for trial in selected.trials
        ],
        "left_out": selected.left_out,
        "why": made.why,
        "temperature": msgspec.to_builtins(made.temperature),
        "reliability": None if selected.reliability is None else str(selected.reliability),
    }


def show_selected(selected: "Selected") -> str:
    """The runs that were compared, the rules that were tried, and what was chosen."""
    made = selected.selection
    chosen = [member.run for member in made.members]
    labels = list(selected.candidates[0].labels)
    named = any(candidate.lesion_accuracy is not None for candidate in selected.candidates)
    rows = [
        (
            "*" if list(candidate.runs) == chosen else "",
            candidate.name,
            number(candidate.dice, _DIGITS),
            *([number(candidate.lesion_accuracy, _DIGITS)] if named else []),
            *(number(value, _DIGITS) for value in candidate.labels.values()),
        )
        for candidate in selected.candidates
    ]
    classes = [NAMED] if named else []
    parts = [table(("", "candidate", "mean Dice", *classes, *labels), rows)]
    if selected.trials:
        parts.append(_show_rules(selected))
    parts.append(
        "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in made.why)
    )
    workspace = selected.path.parent.parent
    members = " + ".join(f"{m.run} ({', '.join(m.folds)})" for m in made.members)
    shown = selected.reliability
    picture = "" if shown is None else f"How often classes are right: {shown}\n"
    parts.append(
        f"Chosen: {members}, {counted(len(made.cleaning), 'cleaning rule')}\n"
        f"Written: {selected.path}\n"
        f"{picture}"
        "Next: "
        + command(
            "predict", options=["-i", "IN", "-o", "OUT", "-m", made.dataset], workspace=workspace
        )
    )
    return "\n\n".join(parts)


def _show_rules(selected: "Selected") -> str:
    rows = [
        (
            "*" if trial.kept else "",
            str(trial.rule),
            number(trial.dice_before, _DIGITS),
            number(trial.dice_after, _DIGITS),
        )
        for trial in selected.trials
    ]
    return table(("", "cleaning rule", "Dice before", "after"), rows)
