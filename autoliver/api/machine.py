"""The machine and the workspace."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.arguments import (
    as_arguments,
    checked,
    dataset_name,
    taken,
    workspace_at,
)
from autoliver.commands import DEFAULT_WORKSPACE as WORKSPACE

if TYPE_CHECKING:
    from autoliver.pipeline.checkup.findings import Checkup
    from autoliver.pipeline.clean import Cleaned
    from autoliver.pipeline.status import WorkspaceStatus


@checked
def clean(
    dataset: str | Path | None = None,
    *,
    yes: bool = False,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Cleaned":
    """Lists what a workspace holds that nothing uses, like `autoliver clean`, or removes it.

    Args:
        dataset: Folder, or name of a planned dataset; None for the whole workspace.
        yes: Whether to remove what is found.
        workspace: The workspace folder.
        **options: None so far; others than those above are refused.

    Returns:
        What was found, with sizes, and whether it was removed.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.clean import clean as clean_up
        from autoliver.values import check_flag

        taken(options, {}, of=clean, machine=None)
        name = None if dataset is None else dataset_name(dataset)
        return clean_up(workspace_at(workspace), name, yes=check_flag("--yes", yes))


@checked
def doctor(
    dataset: str | Path | None = None,
    *,
    probe: bool = True,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Checkup":
    """Says what this machine can do and what to change, like `autoliver doctor`.

    Args:
        dataset: Folder, or name of a planned dataset, to estimate the time that its trainings take;
            None for the machine alone.
        probe: Whether to time training steps, for about ten seconds with each network, and the
            disk.
        workspace: The workspace folder.
        **options: device.

    Returns:
        What was found, and estimates of times; `.will_fail` says whether anything will fail.

    Raises:
        AutoliverError: The command would end without looking, with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.checkup.doctor import doctor as examine
        from autoliver.values import check_flag

        on = taken(options, {"device": "device"}, of=doctor, machine=None).get("device", "auto")
        name = None if dataset is None else dataset_name(dataset)
        timed = check_flag("--probe", probe)
        return examine(workspace_at(workspace), name, probe=timed, device=on)


@checked
def status(
    dataset: str | Path | None = None,
    *,
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "WorkspaceStatus":
    """Says what the runs of a workspace are doing, like `autoliver status`; it may be called often.

    Args:
        dataset: Folder, or name of a planned dataset; None for the whole workspace.
        workspace: The workspace folder.
        **options: None so far; others than those above are refused.

    Returns:
        The folds of all runs; `.at_work` says whether any process works on them.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.status import read_status

        taken(options, {}, of=status, machine=None)
        name = None if dataset is None else dataset_name(dataset)
        return read_status(workspace_at(workspace), name)
