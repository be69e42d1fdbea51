"""Verifying, fingerprinting, planning and preprocessing; results that are up to date are kept."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoliver.artifacts import Artifact, digest, read_json, to_record
from autoliver.commands import command, remove
from autoliver.datasets.cases import Case, Dataset, is_described, with_channel
from autoliver.datasets.changes import describe_changes, without_added
from autoliver.datasets.description import CHANNEL_OF
from autoliver.datasets.folds import Folds, make_folds, read_splits
from autoliver.datasets.ignored import refuse_ignored
from autoliver.datasets.known import added_to_members
from autoliver.datasets.layouts import image_files
from autoliver.datasets.lesions import lesion_classes
from autoliver.errors import ArtifactError, AutoliverError, DatasetError, OptionError
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.needs import prepare_need, read_need
from autoliver.parallel import case_bar, refuse_over_budget
from autoliver.pipeline.describe import by_all_cases, by_first_case, describe, finding, told
from autoliver.planning.findings import PASSING, Finding
from autoliver.planning.fingerprint import make_fingerprint
from autoliver.planning.kept import CHECKS, SUMMARIES
from autoliver.planning.names import ConfigurationName, ModalityName
from autoliver.planning.options import asked_of, option_words
from autoliver.planning.plan import Configuration, Fingerprint, Plan, PlanOptions
from autoliver.planning.planner import doubts, make_plan
from autoliver.planning.ranges import seen_images
from autoliver.planning.verify import Verification, placeless, raise_on_errors, verify
from autoliver.preprocessing.prepare import PrepareTask, prepare_case
from autoliver.preprocessing.store import finished_cases, open_store, store_key
from autoliver.shards import ShardFolder
from autoliver.values import counted, first_few
from autoliver.workspace import DatasetFolder, RunFolder, Workspace

_log = logging.getLogger(__name__)

_WARNINGS_SHOWN = 10
_SHOWN = 3  # cases named in one message
SPLITS_FILE = "splits_final.json"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A dataset and its plan.

    Attributes:
        folder: The dataset's folder in the workspace.
        dataset: The dataset.
        plan: The dataset's own plan, or one that follows a source.
        source: Short name of the source that the runs are named after; empty for the dataset's own
            plan.
        warnings: The warnings that `verify` gave for the dataset as it is now.
        warned: Whether they have been shown by this command.
        lesion_classes: Labels that a run tells apart as classes of a lesion, if any.
    """

    folder: DatasetFolder
    dataset: Dataset
    plan: Plan
    source: str = ""
    warnings: tuple[Finding, ...] = ()
    warned: bool = False
    lesion_classes: tuple[str, ...] = ()

    def run(self, configuration: ConfigurationName, *, tag: str | None = None) -> RunFolder:
        """Returns the run of a configuration with this plan."""
        return self.folder.run(configuration, source=self.source, tag=tag)


def verify_dataset(
    workspace: Workspace, name: str | None, *, machine: Machine = WHOLE_MACHINE
) -> tuple[DatasetFolder, Dataset, Verification]:
    """Checks a dataset's integrity; if nothing changed since the last check, its result is reused.

    Args:
        workspace: The workspace.
        name: Path or name of the dataset; None for the only one.
        machine: The processes and memory that may be used.

    Returns:
        The dataset's workspace folder, the dataset and the findings.

    Raises:
        DatasetError: There is no such dataset, or it cannot be read.
    """
    dataset = workspace.source(name)
    folder = workspace.folder_for(dataset)
    return folder, *_examined(folder, dataset, machine=machine)


def _examined(
    folder: DatasetFolder, dataset: Dataset, *, machine: Machine
) -> tuple[Dataset, Verification]:
    """Verifies a dataset; a new one without dataset.json gets the modality its images look like.

    A finding of code "modality" then says why; it is an error if the images do not show it.
    """
    if is_described(dataset) or folder.plan.exists():
        return dataset, _verification(folder, dataset, machine=machine)
    dataset = by_first_case(dataset)
    found = _verification(folder, dataset, machine=machine)
    judged = by_all_cases(dataset, found.ranges or ())
    if judged.modality not in (None, dataset.cases[0].modality):
        dataset = with_channel(dataset, CHANNEL_OF[judged.modality])
        found = _verification(folder, dataset, machine=machine)
    said = finding(dataset, judged, workspace=folder.path.parent)
    return dataset, found.replace(findings=(*found.findings, said))


def shards_of_plan(folder: DatasetFolder) -> ShardFolder:
    """Returns where shards of `plan` keep what they have found out of a dataset's cases."""
    return Workspace(folder.path.parent).shards("plan", folder.name)


def known_verification(folder: DatasetFolder, dataset: Dataset) -> Verification | None:
    """Returns the findings that were made of a dataset as it is; None if there are none."""
    if not folder.verify.exists():
        return None
    found = _kept_verification(folder)
    passing = any(finding.code in PASSING for finding in found.findings)
    current = found.made_from == _verified(dataset) and found.ranges is not None
    return found if current and not passing else None


def _verified(dataset: Dataset) -> dict[str, str]:
    """What the findings of a dataset are made from."""
    return {"dataset": dataset.digest(), "folder": digest(_surroundings(dataset))}


def _verification(folder: DatasetFolder, dataset: Dataset, *, machine: Machine) -> Verification:
    known = known_verification(folder, dataset)
    if known is not None:
        return known
    made_from = _verified(dataset)
    pool = machine.pool("verify", need=read_need, light=True)
    kept = shards_of_plan(folder).whole(CHECKS, pool)
    bar = case_bar("verify", len(dataset.cases))
    found = verify(dataset, executor=kept, progress=bar).replace(made_from=made_from)
    found = placeless(found, Path(dataset.folder))
    if not folder.plan.exists():  # else dataset.json stays as the dataset was when planned
        dataset.save(folder.dataset)
    found.save(folder.verify)
    return found


def _surroundings(dataset: Dataset) -> list[object]:
    """What `verify` looks at besides the files of the cases: their folders, and a wrong number."""
    used = {Path(p) for case in dataset.cases for p in (*case.images, case.label) if p}
    files = [path.name for folder in {path.parent for path in used} for path in image_files(folder)]
    description = Path(dataset.folder) / "dataset.json"
    content = read_json(description) if description.exists() else {}
    stated = content.get("numTraining") if isinstance(content, dict) else None
    right = stated in (None, len(dataset.cases), len(dataset.labelled))
    return [sorted(files), None if right else stated]


def plan_dataset(
    workspace: Workspace,
    name: str | None,
    options: PlanOptions,
    *,
    machine: Machine = WHOLE_MACHINE,
) -> Planned:
    """Verifies, fingerprints and plans a dataset.

    Args:
        workspace: The workspace that the artefacts are written to.
        name: Path or name of the dataset; None for the only one.
        options: How to plan.
        machine: The processes and memory that may be used to read the cases.

    Raises:
        DatasetError: There is no such dataset, it fails verification, or its dataset.json has
            entries that are not supported yet.
        OptionError: The options cannot work.
    """
    folder, dataset = to_train(workspace, name)
    return plan_folder(folder, dataset, options, machine=machine)


def plan_folder(
    folder: DatasetFolder,
    dataset: Dataset,
    options: PlanOptions,
    *,
    machine: Machine = WHOLE_MACHINE,
    modality: ModalityName | None = None,
) -> Planned:
    """Verifies, fingerprints and plans a dataset that was already read.

    Args:
        folder: The dataset's workspace folder, which the artefacts are written to.
        dataset: The dataset, as returned by `to_train`.
        options: How to plan.
        machine: The processes and memory that may be used to read the cases.
        modality: What the images of a dataset without dataset.json are; None to decide it by their
            values.

    Raises:
        DatasetError: The dataset fails verification, its images do not show whether they are CT or
            MR, or none of its cases has a label.
        OptionError: The options cannot work, or dataset.json says another modality.
    """
    with shards_of_plan(folder).finishing():
        return _plan_folder(folder, dataset, options, machine=machine, modality=modality)


def _plan_folder(
    folder: DatasetFolder,
    dataset: Dataset,
    options: PlanOptions,
    *,
    machine: Machine,
    modality: ModalityName | None,
) -> Planned:
    new = not (_is_of(folder.verify, dataset) and _is_of(folder.plan, dataset))
    if modality is None:
        dataset, verification = _examined(folder, dataset, machine=machine)
    else:
        dataset = told(dataset, modality)
        verification = _verification(folder, dataset, machine=machine)
    if new:
        _show_warnings(verification.warnings, folder)
    raise_on_errors(verification)
    describe(dataset, "".join(f.problem for f in verification.findings if f.code == "modality"))
    if not dataset.labelled:
        raise DatasetError(
            f"{dataset.name}: {counted(len(dataset.cases), 'case')}, none with a label.",
            hint=f"Put label maps into {dataset.folder}.",
        )
    if not folder.plan.exists():
        _note_other_name(folder, dataset, options)
    fingerprint = _with_seen(_fingerprint(folder, dataset, machine=machine), verification, dataset)
    fingerprint.save(folder.fingerprint)
    plan = make_plan(dataset, fingerprint, options)
    for doubt in doubts(plan, fingerprint, options):
        _log.warning("%s", doubt)
    dataset.save(folder.dataset)
    plan.save(folder.plan)
    current_folds(folder, dataset)
    warnings = verification.warnings
    return Planned(folder=folder, dataset=dataset, plan=plan, warnings=warnings, warned=new)


def _note_other_name(folder: DatasetFolder, dataset: Dataset, options: PlanOptions) -> None:
    """Says that the same data is planned with other options under another name, if it is."""
    for other in Workspace(folder.path.parent).datasets:
        if other == folder or not _is_of(other.plan, dataset):
            continue
        try:
            asked = asked_of(Plan.load(other.plan))
        except ArtifactError:  # whoever uses that plan is told
            continue
        if asked != options:
            _log.warning(
                "%s is planned anew, but the same data has a plan as %s, with: %s. To plan with "
                "these options: %s",
                *(dataset.name, other.name, shlex.join(option_words(asked)) or "the defaults"),
                command(
                    "plan",
                    dataset.folder,
                    options=["--fresh", *option_words(asked)],
                    workspace=folder.path.parent,
                ),
            )


def remind(planned: Planned) -> None:
    """Says how many warnings an earlier command has shown, and what a pool lacks of its members."""
    number = len(planned.warnings)
    if number and not planned.warned:
        _log.warning(
            "%s: %s of 'verify' (shown before; again with: %s).",
            planned.dataset.name,
            counted(number, "warning"),
            _verify_command(planned.folder),
        )
    if new := added_to_members(planned.dataset):
        _log.warning("%s", new)


def warnings_kept(folder: DatasetFolder) -> tuple[Finding, ...]:
    """What the dataset's verify.json warns of; nothing where there is none."""
    return _kept_verification(folder).warnings if folder.verify.exists() else ()


def _show_warnings(warnings: Sequence[Finding], folder: DatasetFolder) -> None:
    lines = dict.fromkeys(f"{w.case}: {w.problem}" if w.case else w.problem for w in warnings)
    shown = list(lines)[:_WARNINGS_SHOWN]
    for line in shown:
        _log.warning("%s", line)
    if len(lines) > len(shown):
        _log.warning("and %d more: %s", len(lines) - len(shown), _verify_command(folder))


def _verify_command(folder: DatasetFolder) -> str:
    return command("verify", folder.name, workspace=folder.path.parent)


def _kept_verification(folder: DatasetFolder) -> Verification:
    mend = f"{remove(folder.verify)} && {_verify_command(folder)}"
    return Verification.load(folder.verify, mend=mend)


def _is_of(path: Path, dataset: Dataset) -> bool:
    """Whether an artefact was made from the dataset as it is."""
    try:
        found = read_json(path)
    except ArtifactError:
        return False
    made_from = found.get("made_from") if isinstance(found, dict) else None
    return isinstance(made_from, dict) and made_from.get("dataset") == dataset.digest()


def _known_warnings(folder: DatasetFolder, dataset: Dataset) -> tuple[Finding, ...]:
    """What verify.json warns of; nothing where it is of another state of the dataset."""
    if not _is_of(folder.verify, dataset):
        return ()
    return _kept_verification(folder).warnings


def _with_seen(
    fingerprint: Fingerprint, verification: Verification, dataset: Dataset
) -> Fingerprint:
    """The fingerprint with what `verify` has read of the labelled cases' images."""
    labelled = {case.name for case in dataset.labelled}
    known = [case for case in verification.ranges or () if case.name in labelled]
    return fingerprint.replace(seen=seen_images(known))


def planned_dataset(
    workspace: Workspace,
    name: str | None,
    *,
    accept_changes: bool = False,
    machine: Machine = WHOLE_MACHINE,
) -> Planned:
    """Loads a dataset's plan; a dataset without a plan is planned with the default options.

    Args:
        workspace: The workspace.
        name: Path or name of the dataset; None for the only one.
        accept_changes: Whether to leave out cases that were added since the dataset was planned.
        machine: The processes and memory that may be used.

    Raises:
        ArtifactError: The dataset changed since it was planned.
        DatasetError: As for `plan_dataset`.
    """
    folder, dataset = to_train(workspace, name)
    if accept_changes:
        dataset = as_planned(folder, dataset)
    if not folder.plan.exists():
        return plan_folder(folder, dataset, PlanOptions(), machine=machine)
    plan = Plan.load(folder.plan, mend=plan_command(folder, dataset))
    mend = plan_command(folder, dataset, option_words(asked_of(plan)))
    warnings = _known_warnings(folder, dataset)
    planned = Planned(folder=folder, dataset=dataset, plan=plan, warnings=warnings)
    check_unchanged(plan, planned, where=f"The plan of {dataset.name}", mend=mend)
    return planned


def as_planned(folder: DatasetFolder, dataset: Dataset) -> Dataset:
    """Returns a dataset without the cases that were added since it was planned, with a warning.

    Raises:
        ArtifactError: More has changed than that cases were added.
    """
    if not folder.plan.exists():
        return dataset
    before = Dataset.load(folder.dataset)
    rest = without_added(before, dataset)
    if rest is None:
        raise ArtifactError(
            "--accept-changes goes on where nothing but cases was added, but of "
            f"{dataset.name}: {describe_changes(before, dataset)}.",
            hint=f"Plan it again with: {plan_command(folder, dataset)}",
        )
    added = [case.name for case in dataset.cases if case not in rest.cases]
    if added:
        _log.warning(
            "%s: left out, since added after planning: %s.",
            *(dataset.name, first_few(added, _SHOWN)),
        )
    return rest


def check_unchanged(artifact: Artifact, planned: Planned, *, where: str, mend: str) -> None:
    """Refuses an artefact if the dataset has changed since it was made.

    Args:
        artifact: The artefact that was made from the dataset.
        planned: The dataset as it is now.
        where: The artefact's name for the message.
        mend: The command that makes the artefact again.

    Raises:
        ArtifactError: The dataset has changed; the message says how.
    """
    then, dataset = artifact.made_from.get("dataset"), planned.dataset
    if then == dataset.digest():
        return
    path = planned.folder.dataset
    before = Dataset.load(path, mend=mend) if path.exists() else None
    changes, other = "", ""
    if before is not None and before.digest() == then:
        changes = describe_changes(before, dataset)
        if without_added(before, dataset) is not None:
            other = " (or add --accept-changes to train and select without the new cases)"
    raise ArtifactError(
        f"{where} was made from another dataset: {changes or f'{dataset.name} has changed since'}.",
        hint=f"Make it again with: {mend}{other}",
    )


def plan_command(folder: DatasetFolder, dataset: Dataset, words: Sequence[str] = ()) -> str:
    """Returns the command that plans a dataset, quoted for a shell.

    Args:
        folder: The dataset's folder in the workspace.
        dataset: The dataset; it is named by its path if the workspace does not know that path.
        words: The options of the command; empty for those of the plan that is there, if any.
    """
    words = words or _asked_before(folder)
    known = folder.dataset.exists() and Dataset.load(folder.dataset).folder == dataset.folder
    name = dataset.name if known else dataset.folder
    return command("plan", name, options=words, workspace=folder.path.parent)


def _asked_before(folder: DatasetFolder) -> tuple[str, ...]:
    """The options that a plan was made with, as words; nothing if they cannot be read."""
    try:
        asked = read_json(folder.plan).get("asked") if folder.plan.exists() else None
        return option_words(to_record(asked, PlanOptions, where=str(folder.plan))) if asked else ()
    except (AutoliverError, AttributeError):  # damaged; the message is about that
        return ()


def preprocess(
    planned: Planned,
    configurations: Sequence[ConfigurationName] = (),
    *,
    cases: Sequence[Case] | None = None,
    machine: Machine = WHOLE_MACHINE,
) -> dict[ConfigurationName, Path]:
    """Preprocesses cases for some configurations; finished cases are kept.

    Args:
        planned: The dataset and its plan.
        configurations: The configurations; empty for all configurations of the plan.
        cases: The cases; None for the labelled ones.
        machine: The processes and memory that may be used.

    Returns:
        Maps each configuration to the folder of its preprocessed cases.

    Raises:
        OptionError: The plan has no such configuration, or a case needs far more memory than may
            be used.
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
            for case in (planned.dataset.labelled if cases is None else cases)
            if done.get(case.name) != case.files
        ]
        refuse_over_budget([prepare_need(task) for task in todo], machine.limits, "preprocess")
        pool = machine.pool(f"preprocess {name}", need=prepare_need)
        for _ in case_bar(pool.what, len(todo))(pool.map(prepare_case, todo)):
            pass
        stores[name] = store
    return stores


def planned_configuration(planned: Planned, name: ConfigurationName) -> Configuration:
    """Returns the plan's configuration of that name.

    Raises:
        OptionError: The plan has no such configuration.
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
    """Returns the user's splits, or else generated ones, and saves them for users to read.

    A splits_final.json where it is not looked for is warned of.
    """
    own = Path(dataset.folder) / SPLITS_FILE
    if not own.exists():
        _warn_of_other_splits(folder, dataset)
    if own.exists():
        splits = read_splits(own, dataset.labelled)
    else:
        splits = make_folds(dataset.labelled, _classes_of_cases(folder, dataset))
    folds = Folds(made_from={"dataset": dataset.digest()}, splits=splits)
    folds.save(folder.folds)
    return folds


def _classes_of_cases(folder: DatasetFolder, dataset: Dataset) -> dict[str, list[str]]:
    """Case -> classes of its lesions; empty if the dataset has no classes, or they are not known.

    They are not known where the fingerprint was made by a version that did not look at them.
    """
    classes = lesion_classes(dataset.labels.foreground, dataset.lesion_class_names)
    if not classes or not _is_of(folder.fingerprint, dataset):
        return {}
    return {
        case.name: [name for name, value in classes.items() if value in case.label_values]
        for case in Fingerprint.load(folder.fingerprint).cases
    }


def _warn_of_other_splits(folder: DatasetFolder, dataset: Dataset) -> None:
    place = Path(dataset.folder)
    elsewhere = [place / name for name in ("imagesTr", "labelsTr", "images", "labels")]
    elsewhere.append(folder.path)
    # nnU-Net keeps the file of nnUNet_raw/DatasetNNN_NAME in nnUNet_preprocessed/DatasetNNN_NAME.
    elsewhere += [
        parent / "nnUNet_preprocessed" / dataset.name for parent in place.absolute().parents[:2]
    ]
    for path in (each / SPLITS_FILE for each in elsewhere):
        if path.exists():
            _log.warning(
                "%s is not used: splits are read from %s. Copy it there, if they are meant.",
                *(path, place / SPLITS_FILE),
            )


def to_train(workspace: Workspace, name: str | None) -> tuple[DatasetFolder, Dataset]:
    """Reads a dataset that is about to be planned or trained on.

    Returns:
        The dataset's workspace folder, and the dataset.

    Raises:
        DatasetError: There is no such dataset, or its dataset.json has entries that are not
            supported yet.
    """
    dataset = workspace.source(name)
    refuse_ignored(dataset)
    return workspace.folder_for(dataset), dataset


def known_fingerprint(folder: DatasetFolder, dataset: Dataset) -> Fingerprint | None:
    """Returns the fingerprint that was made of a dataset as it is; None if there is none."""
    if not folder.fingerprint.exists():
        return None
    found = Fingerprint.load(folder.fingerprint, mend=remove(folder.fingerprint))
    # Those made before orders of axes were looked at lack them, as do all images of 2D files;
    # and likewise the values in the label maps, by which folds are made.
    known = any(case.axis_codes or 1 in case.shape for case in found.cases)
    if lesion_classes(dataset.labels.foreground, dataset.lesion_class_names):
        known &= any(case.label_values for case in found.cases)
    return found if known and found.made_from == {"dataset": dataset.digest()} else None


def _fingerprint(folder: DatasetFolder, dataset: Dataset, *, machine: Machine) -> Fingerprint:
    """Loads the fingerprint, or makes a new one if it is missing or the dataset has changed."""
    known = known_fingerprint(folder, dataset)
    if known is not None:
        return known
    pool = machine.pool("fingerprint", need=read_need, light=True)
    kept = shards_of_plan(folder).whole(SUMMARIES, pool)
    bar = case_bar("fingerprint", len(dataset.labelled))
    made = make_fingerprint(dataset, executor=kept, progress=bar)
    made.save(folder.fingerprint)
    return made
