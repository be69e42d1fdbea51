"""Verify, fingerprint, plan, preprocess: what is missing is made, what is there is kept."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from autoliver.artifacts import Artifact, write_bytes
from autoliver.datasets.cases import Dataset, describe_plain
from autoliver.datasets.changes import describe_changes
from autoliver.datasets.folds import Folds, make_folds, read_splits
from autoliver.datasets.ignored import refuse_ignored
from autoliver.errors import ArtifactError, AutoliverError, DatasetError, OptionError
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.needs import prepare_need, read_need
from autoliver.parallel import case_bar
from autoliver.planning.fingerprint import make_fingerprint
from autoliver.planning.names import ConfigurationName
from autoliver.planning.options import asked_of, option_words
from autoliver.planning.plan import Configuration, Fingerprint, Plan, PlanOptions
from autoliver.planning.planner import make_plan
from autoliver.planning.verify import Verification, placeless, raise_on_errors, verify
from autoliver.preprocessing.prepare import PrepareTask, prepare_case
from autoliver.preprocessing.store import finished_cases, open_store, store_key
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

_log = logging.getLogger(__name__)

# Where commands look for a workspace that is not named.
_DEFAULT_ROOT = Path("autoliver-workspace")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A dataset with everything that is decided about it.

    Attributes:
        folder: What the workspace holds of it.
        dataset: The dataset.
        plan: Its own plan, or one like a source's.
        source: The source's short name; empty with its own plan.
    """

    folder: DatasetFolder
    dataset: Dataset
    plan: Plan
    source: str = ""

    def run(self, configuration: ConfigurationName, *, tag: str | None = None) -> RunFolder:
        """The run of a configuration with this plan."""
        return self.folder.run(configuration, source=self.source, tag=tag)


def verify_dataset(
    workspace: Workspace, name: str | None, *, machine: Machine = WHOLE_MACHINE
) -> tuple[DatasetFolder, Dataset, Verification]:
    """Checks a dataset's integrity; what was checked and did not change is not read again."""
    dataset = workspace.source(name)
    folder = workspace.folder_for(dataset)
    return folder, dataset, _verification(folder, dataset, machine=machine)


def _verification(folder: DatasetFolder, dataset: Dataset, *, machine: Machine) -> Verification:
    made_from = {"dataset": dataset.digest()}
    if folder.verify.exists():
        found = Verification.load(folder.verify, mend=f"autoliver verify {dataset.name}")
        if found.made_from == made_from:
            return found
    pool = machine.pool("verify", need=read_need, light=True)
    bar = case_bar("verify", len(dataset.cases))
    found = verify(dataset, executor=pool, progress=bar).replace(made_from=made_from)
    found = placeless(found, Path(dataset.folder))
    if not folder.plan.exists():  # a plan keeps the dataset that it was made of beside it
        dataset.save(folder.dataset)
    found.save(folder.verify)
    return found


def plan_dataset(
    workspace: Workspace,
    name: str | None,
    options: PlanOptions,
    *,
    machine: Machine = WHOLE_MACHINE,
) -> Planned:
    """Verify, fingerprint, plan.

    Args:
        workspace: Where the artefacts go.
        name: Path or name of the dataset.
        options: How to plan.
        machine: Its processes and memory read the cases.

    Raises:
        DatasetError: There is no such dataset, it fails verification, or its dataset.json says
            what has no effect yet.
    """
    folder, dataset = to_train(workspace, name)
    return plan_folder(folder, dataset, options, machine=machine)


def plan_folder(
    folder: DatasetFolder,
    dataset: Dataset,
    options: PlanOptions,
    *,
    machine: Machine = WHOLE_MACHINE,
) -> Planned:
    """Verify, fingerprint, plan, for a dataset that was read.

    Args:
        folder: Where the artefacts go.
        dataset: The dataset, as `to_train` gives it.
        options: How to plan.
        machine: Its processes and memory read the cases.

    Raises:
        DatasetError: The dataset fails verification, or none of its cases has a label.
        OptionError: The options cannot work.
    """
    raise_on_errors(_verification(folder, dataset, machine=machine))
    _describe(dataset)
    if not dataset.labelled:
        raise DatasetError(
            f"{dataset.name}: none of its {len(dataset.cases)} cases has a label.",
            hint=f"Put label maps into {dataset.folder}.",
        )
    fingerprint = _fingerprint(folder, dataset, machine=machine)
    plan = make_plan(dataset, fingerprint, options)
    dataset.save(folder.dataset)
    plan.save(folder.plan)
    current_folds(folder, dataset)
    return Planned(folder=folder, dataset=dataset, plan=plan)


def planned_dataset(
    workspace: Workspace, name: str | None, *, machine: Machine = WHOLE_MACHINE
) -> Planned:
    """The plan there is; a dataset without one is planned with the defaults.

    Raises:
        ArtifactError: The dataset changed since it was planned.
        DatasetError: As `plan_dataset`.
    """
    folder, dataset = to_train(workspace, name)
    if not folder.plan.exists():
        return plan_folder(folder, dataset, PlanOptions(), machine=machine)
    plan = Plan.load(folder.plan, mend=plan_command(folder, dataset))
    mend = plan_command(folder, dataset, option_words(asked_of(plan)))
    planned = Planned(folder=folder, dataset=dataset, plan=plan)
    check_unchanged(plan, planned, where=f"The plan of {dataset.name}", mend=mend)
    return planned


def check_unchanged(artifact: Artifact, planned: Planned, *, where: str, mend: str) -> None:
    """Refuses what was made from the dataset as it was before it changed.

    Args:
        artifact: What was made from the dataset.
        planned: The dataset as it is.
        where: The artefact's name for the message.
        mend: The command that makes the artefact again.

    Raises:
        ArtifactError: Saying what has changed.
    """
    then, dataset = artifact.made_from.get("dataset"), planned.dataset
    if then == dataset.digest():
        return
    path = planned.folder.dataset
    before = Dataset.load(path, mend=mend) if path.exists() else None
    changes = ""
    if before is not None and before.digest() == then:
        changes = describe_changes(before, dataset)
    raise ArtifactError(
        f"{where} was made from another dataset: {changes or f'{dataset.name} has changed since'}.",
        hint=f"Make it again with: {mend}",
    )


def plan_command(folder: DatasetFolder, dataset: Dataset, words: Sequence[str] = ()) -> str:
    """The command that plans a dataset, to be pasted into a shell.

    Args:
        folder: What the workspace holds of the dataset.
        dataset: The dataset; it is named by its path where the workspace does not know that.
        words: The options.
    """
    known = folder.dataset.exists() and Dataset.load(folder.dataset).folder == dataset.folder
    root = folder.path.parent
    place = () if root.resolve() == _DEFAULT_ROOT.resolve() else ("-w", str(root))
    name = dataset.name if known else dataset.folder
    return shlex.join(["autoliver", "plan", name, *words, *place])


def preprocess(
    planned: Planned,
    configurations: Sequence[ConfigurationName] = (),
    *,
    machine: Machine = WHOLE_MACHINE,
) -> dict[ConfigurationName, Path]:
    """Fills the store for some configurations (default: all of the plan); finished cases stay.

    Returns:
        Configuration -> folder of its store.

    Raises:
        OptionError: The plan has no such configuration.
    """
    stores = {}
    for name in configurations or tuple(planned.plan.configurations):
        configuration = planned_configuration(planned, name)
        key = store_key(planned.plan, name)
        store = planned.folder.store(key)
        open_store(store, key=key, dataset=planned.dataset.name)
        done = finished_cases(store)
        todo = [
            PrepareTask(case=case, plan=planned.plan, configuration=configuration, folder=store)
            for case in planned.dataset.labelled
            if done.get(case.name) != case.files
        ]
        pool = machine.pool(f"preprocess {name}", need=prepare_need)
        for _ in case_bar(pool.what, len(todo))(pool.map(prepare_case, todo)):
            pass
        stores[name] = store
    return stores


def planned_configuration(planned: Planned, name: ConfigurationName) -> Configuration:
    """The plan's configuration of that name.

    Raises:
        OptionError: The plan has none.
    """
    plan = planned.plan
    if name not in plan.configurations:
        why = plan.reasons.get(name, "")
        raise OptionError(
            f"The plan of {plan.dataset} has no {name}"
            + (f" ({why.rstrip('.')})." if why else "."),
            hint=f"Choose one of: {', '.join(plan.configurations)}.",
        )
    return plan.configurations[name]


def current_folds(folder: DatasetFolder, dataset: Dataset) -> Folds:
    """The user's splits, else our own; saved for people to read."""
    own = Path(dataset.folder) / "splits_final.json"
    splits = read_splits(own, dataset.labelled) if own.exists() else make_folds(dataset.labelled)
    folds = Folds(made_from={"dataset": dataset.digest()}, splits=splits)
    folds.save(folder.folds)
    return folds


def to_train(workspace: Workspace, name: str | None) -> tuple[DatasetFolder, Dataset]:
    """A dataset that is about to be planned or trained on."""
    dataset = workspace.source(name)
    refuse_ignored(dataset)
    return workspace.folder_for(dataset), dataset


def _describe(dataset: Dataset) -> None:
    """Writes the dataset.json that a plain folder pair lacks, beside its images."""
    path = Path(dataset.folder) / "dataset.json"
    if dataset.layout != "plain" or path.exists():
        return
    text = msgspec.json.format(msgspec.json.encode(describe_plain(dataset)), indent=1)
    try:
        write_bytes(path, text)
    except AutoliverError as error:
        # The labels are then found out anew by every command, which is slow but right.
        _log.warning("%s", error.problem)
    else:
        _log.warning("%s: written; check its channel and label names:\n%s", path, text.decode())


def _fingerprint(folder: DatasetFolder, dataset: Dataset, *, machine: Machine) -> Fingerprint:
    """The fingerprint there is, if the dataset did not change; else a new one."""
    if folder.fingerprint.exists():
        mend = f"rm {shlex.quote(str(folder.fingerprint))}"
        found = Fingerprint.load(folder.fingerprint, mend=mend)
        # Those made before orders of axes were looked at lack them, as do all images of 2D files.
        known = any(case.axis_codes or 1 in case.shape for case in found.cases)
        if known and found.made_from == {"dataset": dataset.digest()}:
            return found
    pool = machine.pool("fingerprint", need=read_need, light=True)
    bar = case_bar("fingerprint", len(dataset.labelled))
    made = make_fingerprint(dataset, executor=pool, progress=bar)
    made.save(folder.fingerprint)
    return made
