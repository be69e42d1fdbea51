"""Shards of `plan` and `preprocess`.

A shard of `plan` reads its cases, for a plan that is made when all of them are read.
"""

from collections.abc import Sequence
from pathlib import Path

from autoliver.datasets.cases import Case, Dataset, is_described
from autoliver.errors import DatasetError
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.needs import read_need
from autoliver.parallel import case_bar
from autoliver.pipeline.data import (
    known_fingerprint,
    known_verification,
    plan_command,
    planned_dataset,
    preprocess,
    shards_of_plan,
    to_train,
)
from autoliver.pipeline.describe import by_first_case, told
from autoliver.pipeline.replan import PlanRequest
from autoliver.planning.fingerprint import read_cases
from autoliver.planning.kept import CHECKS, SUMMARIES
from autoliver.planning.names import ConfigurationName
from autoliver.planning.verify import Verification, check_cases, placeless, raise_on_errors
from autoliver.preprocessing.store import finished_cases, store_key
from autoliver.shards import Shard, Sharded, ShardFolder
from autoliver.workspace import DatasetFolder, Workspace


def plan_shard(
    workspace: Workspace, name: str | None, request: PlanRequest, shard: Shard
) -> Sharded:
    """Verifies some cases of a dataset, and reads them for its fingerprint.

    The results of the cases are kept in the workspace until `replan` makes the plan. Nothing is
    read that is known already.

    Args:
        workspace: The workspace that the results are written to.
        name: Path or name of the dataset; None for the only one.
        request: The request for the plan.
        shard: The part of the cases.

    Raises:
        DatasetError: There is no such dataset, or one of these cases fails verification.
        OptionError: dataset.json says another modality than the request.
        AutoliverError: Another process does the same.
    """
    folder, dataset = to_train(workspace, name)
    if request.modality is not None:
        dataset = told(dataset, request.modality)
    elif not (folder.plan.exists() or is_described(dataset)):
        dataset = by_first_case(dataset)
    kept = shards_of_plan(folder)
    cases = shard.part(dataset.cases, lambda case: case.name)
    new: set[str] = set()
    if cases:
        with kept.doing(shard):
            new |= _verified(folder, dataset, cases, kept, request.machine)
            new |= _summarised(folder, dataset, cases, kept, request.machine)
    names = tuple(case.name for case in cases)
    return Sharded(shard=shard, cases=names, new=len(new), of=len(dataset.cases))


def preprocess_shard(
    workspace: Workspace,
    name: str | None,
    configurations: Sequence[ConfigurationName],
    shard: Shard,
    *,
    machine: Machine = WHOLE_MACHINE,
) -> Sharded:
    """Preprocesses some of a planned dataset's labelled cases; finished cases are kept.

    Args:
        workspace: The workspace.
        name: Path or name of the dataset; None for the only one.
        configurations: The configurations; empty for all configurations of the plan.
        shard: The part of the cases.
        machine: The processes and memory that may be used.

    Raises:
        DatasetError: The dataset has no plan yet, or a case cannot be read.
        AutoliverError: As for `planned_dataset` and `preprocess`.
    """
    folder, dataset = to_train(workspace, name)
    if not folder.plan.exists():
        raise DatasetError(
            f"--shard {shard}: {dataset.name} has no plan yet, which all shards need.",
            hint="Make it first, with the options that it is to have: "
            f"{plan_command(folder, dataset)}",
        )
    planned = planned_dataset(workspace, name, machine=machine)
    labelled = planned.dataset.labelled
    cases = shard.part(labelled, lambda case: case.name)
    names = configurations or tuple(planned.plan.configurations)
    new: set[str] = set()
    for configuration in names if cases else ():
        done = finished_cases(planned.folder.store(store_key(planned.plan, configuration)))
        new |= {case.name for case in cases if done.get(case.name) != case.files}
    if cases:
        preprocess(planned, names, cases=cases, machine=machine)
    done_cases = tuple(case.name for case in cases)
    return Sharded(shard=shard, cases=done_cases, new=len(new), of=len(labelled))


def _verified(
    folder: DatasetFolder,
    dataset: Dataset,
    cases: Sequence[Case],
    kept: ShardFolder,
    machine: Machine,
) -> set[str]:
    """Verifies cases; returns the names of those that were not verified before."""
    if known_verification(folder, dataset) is not None:
        return set()
    if not folder.plan.exists():  # by this the workspace knows the dataset by its name
        dataset.save(folder.dataset)
    mapper = kept.kept(CHECKS, machine.pool("verify", need=read_need, light=True))
    bar = case_bar("verify", len(cases))
    checks = check_cases(dataset, cases, executor=mapper, progress=bar)
    findings = tuple(finding for check in checks for finding in check.findings)
    raise_on_errors(placeless(Verification(findings=findings), Path(dataset.folder)))
    return mapper.new


def _summarised(
    folder: DatasetFolder,
    dataset: Dataset,
    cases: Sequence[Case],
    kept: ShardFolder,
    machine: Machine,
) -> set[str]:
    """Reads labelled cases; returns the names of those that were not read before."""
    labelled = [case for case in cases if case.label is not None]
    if not labelled or known_fingerprint(folder, dataset) is not None:
        return set()
    mapper = kept.kept(SUMMARIES, machine.pool("fingerprint", need=read_need, light=True))
    read_cases(dataset, labelled, executor=mapper, progress=case_bar("fingerprint", len(labelled)))
    return mapper.new
