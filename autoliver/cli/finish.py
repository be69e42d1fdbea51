"""The command `finish`."""

from typing import Annotated

import typer

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
from autoliver.cli.output import emit, start
from autoliver.cli.selection import result_of, show_selected
from autoliver.cli.training import show_folds, summary_of
from autoliver.cli.transfer_tables import show_source


def finish(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Folder or name.")],
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Name of the run, such as 3d_fullres or 3d_fullres@LiTS+long."
        ),
    ],
    accept_changes: AcceptChanges = False,
    device: Device = "auto",
    workers: Workers = 0,
    memory_gb: MemoryGb = None,
    workspace: WorkspaceDir = DEFAULT_WORKSPACE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Bring together folds that were trained on several machines.

    Nothing is trained. Held-out cases that are not scored yet are scored, and the best of the
    dataset's runs is selected, as by select. If folds are missing, the commands are named that
    train them.
    """
    from autoliver.pipeline.run.finish import finish as bring_together
    from autoliver.workspace import Workspace

    start(verbose=verbose)
    machine = machine_of(workers=workers, memory_gb=memory_gb, device=device)
    done = bring_together(
        Workspace(workspace), dataset, run, accept_changes=accept_changes, machine=machine
    )
    folds = show_folds(done.folds) + show_source(done.folds)
    result = {**summary_of(done.folds), "selected": result_of(done.selected)}
    emit(result, f"{folds}\n\n{show_selected(done.selected)}", as_json=as_json)
