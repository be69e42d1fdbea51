"""The command `clean`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoliver.cli.options import DEFAULT_WORKSPACE, AsJson, Verbose, WorkspaceDir
from autoliver.cli.output import emit, start, table
from autoliver.commands import command

if TYPE_CHECKING:
    from pathlib import Path

    from autoliver.pipeline.clean import Cleaned

_KB = 1000


def clean(
    dataset: Annotated[
        str | None,
        typer.Argument(metavar="DATASET", help="Folder or name. [default: the whole workspace]"),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them. [default: only list them]")
    ] = False,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """List files in the workspace that nothing uses, or remove them.

    These are preprocessed cases that no plan needs any more, first-stage label maps of cascades
    whose first stage was trained again, and files of interrupted commands, such as the images of
    DICOM series. Runs, models and datasets are never touched.
    """
    from autoliver.pipeline import clean as pipeline
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    done = pipeline.clean(Workspace(workspace), dataset, yes=yes)
    named = [dataset] if dataset else []
    again = command("clean", *named, options=["--yes"], workspace=workspace)
    emit(_result(done), _show(done, workspace, again), as_json=as_json)


def _result(done: "Cleaned") -> dict[str, Any]:
    return {
        "removed": done.removed,
        "bytes": done.size,
        "leftovers": [
            {"path": str(each.path), "kind": each.kind, "why": each.why, "bytes": each.size}
            for each in done.leftovers
        ],
        "kept": list(done.kept),
    }


def _show(done: "Cleaned", workspace: "Path", again: str) -> str:
    parts = [f"Kept: {each}" for each in done.kept]
    if not done.leftovers:
        return "\n".join([*parts, f"{workspace} holds nothing that is not used."])
    rows = [
        (_size(each.size), each.kind, each.why, str(each.path.relative_to(workspace)))
        for each in done.leftovers
    ]
    found = table(("size", "what", "because", "path"), rows)
    total = _size(done.size)
    said = f"Freed: {total}." if done.removed else f"Nothing was removed. To free {total}: {again}"
    return "\n".join([found, *parts, said])


def _size(number: float) -> str:
    """A size in bytes for people, e.g. 1.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < _KB:
            return f"{number:.3g} {unit}"
        number /= _KB
    return f"{number:.3g} TB"
