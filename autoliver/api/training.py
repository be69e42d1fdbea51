"""Training, and the choice of what predicts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoliver.arguments import (
    as_arguments,
    checked,
    dataset_name,
    name_of,
    once,
    taken,
    workspace_at,
)
from autoliver.commands import DEFAULT_WORKSPACE as WORKSPACE

if TYPE_CHECKING:
    from autoliver.pipeline.run.finish import Finished
    from autoliver.pipeline.run.job import FoldResult
    from autoliver.pipeline.selection import Selected


@checked
def train(
    dataset: str | Path,
    configuration: str,
    *,
    folds: "Sequence[int | str] | int | str" = (),
    workspace: str | Path = WORKSPACE,
    fresh: bool = False,
    **options: Any,
) -> "list[FoldResult]":
    """Trains folds of a configuration, like `autoliver train`; resumes interrupted folds.

    Args:
        dataset: Folder, or name of a planned dataset.
        configuration: "2d", "3d_lowres", "3d_fullres" or "3d_cascade".
        folds: A number, several numbers, "all" or "cv"; empty for all folds of the
            cross-validation.
        workspace: The workspace folder, which all results are written to.
        fresh: Whether to start over instead of resuming.
        **options: Fields of `autoliver.training.options.TrainingOptions`, such as epochs=100, of
            `autoliver.pipeline.run.request.TrainRequest`, such as pretrained="LiTS", and of
            `autoliver.machine.Machine`, such as device="cuda:1"; reset_heads, workers, memory_gb.

    Returns:
        For each fold its folder and the scores of its held-out cases.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.datasets.folds import check_folds
        from autoliver.machine import Machine
        from autoliver.pipeline.run.request import TrainRequest
        from autoliver.pipeline.run.train import train as train_folds
        from autoliver.training.options import TrainingOptions, given_options
        from autoliver.values import check_flag, flag_of
        from autoliver.workspace import check_configuration

        of_request = {*TrainRequest.__struct_fields__} - {"configuration", "changes", "machine"}
        of_machine = [name for name in Machine.__struct_fields__ if name != "limits"]
        kept = {"made_from", "extensions", "fold_seeds"}  # no options of a training
        of_run = {*TrainingOptions.__struct_fields__} - of_request - kept
        names = {"fold": "folds", "reset_heads": "reset_heads"}
        own = {name: name for name in (*of_request, *of_run)}
        given = taken(options, own | names, of=train, machine=of_machine)
        once(("folds", "fold"), folds, given.get("folds"))
        if check_flag("--reset-heads", given.pop("reset_heads", False)):
            given["heads"] = "reset"
        changed = {name: given.pop(name) for name in list(given) if name in of_run}
        if changed.get("replay") is not None:
            changed["replay"] = name_of("--replay", changed["replay"])
        checked = given_options(changed)
        for name in ("pretrained", "encoder_weights", "like"):
            if given.get(name) is not None:
                given[name] = name_of(flag_of(name), given[name])
        request = TrainRequest(
            configuration=check_configuration(configuration),
            folds=check_folds(given.pop("folds", folds)),
            fresh=fresh,
            changes={name: getattr(checked, name) for name in changed},
            **given,
        )
        return train_folds(workspace_at(workspace), dataset_name(dataset), request)


@checked
def finish(
    dataset: str | Path, run: str, *, workspace: str | Path = WORKSPACE, **options: Any
) -> "Finished":
    """Brings together folds that were trained on several machines, like `autoliver finish`.

    Nothing is trained.

    Args:
        dataset: Folder, or name of a planned dataset.
        run: Name of the run, such as "3d_fullres".
        workspace: The workspace folder, which all results are written to.
        **options: accept_changes, device="cuda:1", workers and memory_gb.

    Returns:
        The folds with the scores of their held-out cases, and what was selected.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.run.finish import finish as bring_together
        from autoliver.values import check_flag, flag_of

        names = {"accept_changes": "accept_changes"}
        given = taken(options, names, of=finish, machine=("device",))
        check_flag(flag_of("accept_changes"), given.get("accept_changes", False))
        return bring_together(
            workspace_at(workspace), dataset_name(dataset), name_of("run", run), **given
        )


@checked
def select(
    dataset: str | Path,
    *,
    runs: Sequence[str] | str = (),
    workspace: str | Path = WORKSPACE,
    **options: Any,
) -> "Selected":
    """Selects the run or pair of runs, and the cleaning rules, with the best out-of-fold scores.

    It works like `autoliver select`. `predict` uses the selection.

    Args:
        dataset: Folder, or name of a planned dataset.
        runs: Names of the runs to compare; empty for all finished runs.
        workspace: The workspace folder, which all results are written to.
        **options: device="cuda:1", workers and memory_gb.

    Returns:
        The selection, and what was compared.

    Raises:
        AutoliverError: The command would fail with the same error.
    """
    with as_arguments():
        from autoliver.pipeline.selection import SelectRequest
        from autoliver.pipeline.selection import select as select_runs

        names = {"accept_changes": "accept_changes"}
        given = taken(options, names, of=select, machine=("device",))
        request = SelectRequest(runs=runs, **given)  # type: ignore[arg-type]
        return select_runs(workspace_at(workspace), dataset_name(dataset), request)
