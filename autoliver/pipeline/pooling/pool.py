"""Makes one dataset of several, by reference: images stay where they are."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoliver.artifacts import Record, as_json, brief, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import Case, Labels, describe_labels, read_new
from autoliver.datasets.contents import file_state
from autoliver.datasets.description import CHANNEL_OF
from autoliver.datasets.names import refuse_inside_dataset
from autoliver.datasets.pool import POOL_FILE, Pool, PooledCase, PooledFile
from autoliver.errors import DatasetError, OptionError, WrongValue
from autoliver.io.detached import data_files
from autoliver.io.files import read_label, write_label
from autoliver.locks import only_writing
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.needs import score_need
from autoliver.parallel import case_bar
from autoliver.pipeline.pooling.duplicates import Placed, find_duplicates
from autoliver.pipeline.pooling.members import Add, Member, settle_labels
from autoliver.system import entries
from autoliver.values import check_types, counted, first_few, refused
from autoliver.workspace import Workspace

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class PoolRequest:
    """A request to `pool`.

    Attributes:
        add: The datasets as for `--add`: DATASET or DATASET:label=state,...
        inside: Label -> the label that it lies in; None: where annotations are partial, lesions lie
            in the liver.
        drop_duplicates: Whether cases whose image an earlier member holds are left out.
        overwrite: Whether a pool that is there may be replaced.
        machine: The processes and memory that may be used.
    """

    add: tuple[str, ...]
    inside: dict[str, str] | None = None
    drop_duplicates: bool = False
    overwrite: bool = False
    machine: Machine = WHOLE_MACHINE

    def __post_init__(self) -> None:
        """Refuses invalid values.

        Raises:
            WrongValue: Fewer than two datasets, or an `--add` of another form.
        """
        check_types(self)
        pairs = self.inside.items() if isinstance(self.inside, dict) else [("", "")]
        if self.inside is not None and not all(isinstance(n, str) and n for p in pairs for n in p):
            raise refused("--inside", self.inside, "labels with the label that each lies in")
        if len(self.add) < 2:
            raise WrongValue(
                f"--add: {counted(len(self.add), 'dataset')}, expected at least two.",
                hint="Repeat the option: --add LiTS --add CHAOS:liver=real,tumour=absent",
            )
        for inner in self.inside or {}:
            passed, outer = {inner}, (self.inside or {}).get(inner)
            while outer is not None:
                if outer in passed:
                    raise WrongValue(
                        f"--inside: {inner} would lie in itself.", hint="Leave one of them out."
                    )
                passed.add(outer)
                outer = (self.inside or {}).get(outer)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """The result of `pool`.

    Attributes:
        folder: The new dataset.
        labels: Its labels.
        members: The datasets with the states of their labels.
        cases: Number of cases of each member, by name.
        modalities: Number of cases of each modality, by member.
        unlabelled: Number of cases that were left out, since they have no label map.
        dropped: Cases that were left out, since another member has the same image.
        next_command: The command that makes sense next.
    """

    folder: Path
    labels: Labels
    members: tuple[Member, ...]
    cases: dict[str, int]
    modalities: dict[str, dict[str, int]]
    unlabelled: int
    dropped: tuple[str, ...]
    next_command: str

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "dataset": str(self.folder),
            "labels": {name: list(values) for name, values in self.labels.values.items()},
            "members": {member.name: dict(member.states) for member in self.members},
            "cases": self.cases,
            "modalities": self.modalities,
            "unlabelled": self.unlabelled,
            "dropped": list(self.dropped),
            "next": self.next_command,
        }

    __repr__ = brief


class _Task(Record, frozen=True, kw_only=True):
    """A case of the pool that is about to be made.

    Attributes:
        name: Its name in the pool.
        member: Name of the dataset.
        case: The case there.
        values: Its values of labels -> those of the pool.
        absent: Values of the pool that the case must not have.
        folder: Folder for the label map, if its values have to be changed.
    """

    name: str
    member: str
    case: Case
    values: dict[int, int]
    absent: tuple[int, ...]
    folder: Path


class _Made(Record, frozen=True, kw_only=True):
    """A case of the pool that was made.

    Attributes:
        case: Where it comes from.
        label: Path of its label map: in the pool, relative to it, or that of the member.
        problem: Why it cannot be made; empty if it can.
    """

    case: PooledCase | None = None
    label: str = ""
    problem: str = ""


def pool(workspace: Workspace, output: Path, request: PoolRequest) -> Pooled:
    """Makes one dataset of several; images are referred to, and not copied.

    Label maps are referred to as well, and written anew only where the values of labels differ.

    Args:
        workspace: The workspace in which datasets are looked up.
        output: Folder of the new dataset.
        request: What to pool.

    Raises:
        DatasetError: The datasets do not fit together, or two of them have the same images.
        OptionError: The output exists already.
        MachineError: The output cannot be written.
    """
    _check_output(output, overwrite=request.overwrite)
    members = [_member(workspace, text) for text in request.add]
    _check_members(members)
    _refuse_own_files(members, output)
    settled, labels = settle_labels(members, inside=request.inside)
    placed = [
        Placed(member=member.name, case=case)
        for member in settled
        for case in member.dataset.labelled
    ]
    twins = find_duplicates(placed, request.machine)
    if twins and not request.drop_duplicates:
        raise _duplicates(twins)
    dropped = {str(later) for later, _ in twins}
    kept = [each for each in placed if str(each) not in dropped]
    for member in settled:
        if not any(each.member == member.name for each in kept):
            raise DatasetError(
                f"--add {member.add.text}: no case of {member.name} is left, since other members "
                "have all of them.",
                hint="Leave it out.",
            )
    by_name = {member.name: member for member in settled}
    with only_writing(output) as beside:
        (beside / "labelsTr").mkdir(parents=True)
        tasks = [_task(each, by_name[each.member], labels, beside / "labelsTr") for each in kept]
        _refuse_equal_names(tasks)
        stage = request.machine.pool("pool", need=_need, light=True)
        found = list(case_bar("pool", len(tasks))(stage.map(_make, tasks)))
        _refuse([made.problem for made in found if made.problem])
        record = Pool(
            added=tuple(member.add.again(member.dataset.folder) for member in settled),
            members={member.name: member.dataset.folder for member in settled},
            dropped=tuple(f"{later} = {first}" for later, first in twins),
            cases=tuple(made.case for made in found if made.case is not None),
        )
        record.save(beside / POOL_FILE)
        description = _description(settled, labels, tasks, found)
        write_bytes(beside / "dataset.json", as_json(description))
        hint = "Nothing was written. Say otherwise with --add what the labels are."
        read_new(beside, output, hint=hint)
    return Pooled(
        folder=output,
        labels=labels,
        members=settled,
        cases=dict(Counter(each.member for each in kept)),
        modalities={
            m.name: dict(Counter(e.case.modality for e in kept if e.member == m.name))
            for m in settled
        },
        unlabelled=sum(len(m.dataset.cases) - len(m.dataset.labelled) for m in settled),
        dropped=record.dropped,
        next_command=command("plan", str(output), workspace=workspace.root),
    )


def read_inside(given: Sequence[str] | None) -> dict[str, str] | None:
    """Reads the values of `--inside`, LABEL=OUTER; None if there are none.

    Raises:
        WrongValue: One is of another form.
    """
    if not given:
        return None
    pairs = [text.partition("=") for text in given]
    for text, (inner, equals, outer) in zip(given, pairs, strict=True):
        if not (inner and equals and outer) or inner == outer:
            raise WrongValue(
                f"--inside {text}: expected LABEL=OUTER.", hint="Give it as --inside tumour=liver."
            )
    return {inner.strip(): outer.strip() for inner, _, outer in pairs}


def _refuse_own_files(members: Sequence[Member], output: Path) -> None:
    """Refuses to write a pool over files that it would refer to, or into a member's folder."""
    place = output.resolve()
    for member in members:
        folder = Path(member.dataset.folder).resolve()
        files = (f for c in member.dataset.cases for f in (*c.images, c.label) if f)
        if place.is_relative_to(folder) or any(
            Path(file).resolve().is_relative_to(place) for file in files
        ):
            raise OptionError(
                f"{output}: {member.dataset.name}, which is a member, has files there.",
                hint="Choose another folder for the pool.",
            )


def _check_output(output: Path, *, overwrite: bool) -> None:
    refuse_inside_dataset(output)
    if not (output.is_symlink() or output.is_file() or entries(output)):
        return
    if (output / POOL_FILE).is_file():
        if overwrite:
            return
        raise OptionError(
            f"{output}: this pool exists already.",
            hint="Choose a new folder, or make it anew with --overwrite.",
        )
    raise OptionError(f"{output}: it exists already, and is no pool.", hint="Choose a new folder.")


def _member(workspace: Workspace, text: str) -> Member:
    # The name of a folder may look like a dataset with labels: /data/a:b,c
    add = Add(text=text, dataset=text) if workspace.knows(text) else Add.read(text)
    dataset, _, spec = text.rpartition(":")
    if add.dataset == text and spec and not workspace.knows(text) and workspace.knows(dataset):
        raise WrongValue(
            f"--add {text}: '{spec}' is no list of labels with their states.",
            hint=f"Give it as --add {dataset}:liver=real,tumour=absent",
        )
    return Member(add=add, dataset=workspace.read(add.dataset))


def _check_members(members: Sequence[Member]) -> None:
    """Refuses members that are there twice, differ in channels or do not say their modality."""
    names = Counter(member.name for member in members)
    for member in members:
        dataset, where = member.dataset, f"--add {member.add.text}"
        if names[member.name] > 1:
            raise DatasetError(
                f"{where}: two of the datasets are called {member.name}.",
                hint="Name each once; rename the folder of one if they are not the same.",
            )
        if not dataset.labelled:
            raise DatasetError(
                f"{where}: none of the cases of {dataset.name} has a label map.",
                hint="Leave it out, or make label maps first, by hand or with a model.",
            )
        expected = len(members[0].dataset.channel_names)
        if len(dataset.channel_names) != expected:
            raise DatasetError(
                f"{where}: {dataset.name} has {counted(len(dataset.channel_names), 'channel')} "
                f"({', '.join(dataset.channel_names)}), {members[0].dataset.name} {expected}.",
                hint="Pool datasets with the same channels.",
            )
    kinds = {case.modality for member in members for case in member.dataset.labelled}
    if "other" in kinds and len(kinds) > 1:
        unknown = next(
            (member.dataset, case)
            for member in members
            for case in member.dataset.labelled
            if case.modality == "other"
        )
        dataset, case = unknown
        raise DatasetError(
            f"{dataset.name}: it is not known whether {case.name} is CT or MR (channel "
            f"'{dataset.channel_names[0]}').",
            hint=f'Write "modality": "CT" or "modality": "MR" into {dataset.folder}/dataset.json, '
            "or name the channel CT or MRI there.",
        )


def _duplicates(twins: Sequence[tuple[Placed, Placed]]) -> DatasetError:
    pairs = [f"{later} = {first}" for later, first in twins]
    return DatasetError(
        f"{counted(len(pairs), 'case')} of one member {'is' if len(pairs) == 1 else 'are'} in "
        f"another one as well, by {'its' if len(pairs) == 1 else 'their'} voxels: "
        f"{first_few(pairs, _SHOWN)}. They would be trained on and held out at the same time.",
        hint="Leave the later ones out with --drop-duplicates; the labels of the datasets that are "
        "added first are kept.",
    )


def _task(placed: Placed, member: Member, labels: Labels, folder: Path) -> _Task:
    states = member.annotated(placed.case.annotated)
    absent = [name for name, state in states.items() if state == "absent"]
    return _Task(
        name=f"{placed.member}_{placed.case.name}",
        member=placed.member,
        case=placed.case,
        values=member.values(labels),
        absent=tuple(labels.values[name][0] for name in absent),
        folder=folder,
    )


def _refuse_equal_names(tasks: Sequence[_Task]) -> None:
    """Refuses cases that get one name, as case B_1 of member A and case 1 of member A_B."""
    seen: dict[str, _Task] = {}
    for task in tasks:
        other = seen.setdefault(task.name, task)
        if other is not task:
            raise DatasetError(
                f"case {other.case.name} of {other.member} and case {task.case.name} of "
                f"{task.member} would both be {task.name}.",
                hint="Pool a copy of one of the datasets whose folder has another name.",
            )


def _need(task: _Task) -> Any:
    return score_need(Path(str(task.case.label)))


def _make(task: _Task) -> _Made:
    """Maps the values of a case's label map, and notes the state of its files."""
    source = Path(str(task.case.label))
    label = read_label(source)
    there = {int(value) for value in np.unique(label.array)}
    if unknown := sorted(there - task.values.keys()):
        return _Made(
            problem=f"{task.member}/{task.case.name}: {source} holds the value {unknown[0]}, which "
            "no label of the dataset has"
        )
    mapped = {value: task.values[value] for value in there}
    if wrong := sorted(set(mapped.values()) & set(task.absent)):
        return _Made(
            problem=f"{task.member}/{task.case.name}: a label that was said to be absent is in "
            f"{source} (value {next(v for v in there if mapped[v] == wrong[0])})"
        )
    path = str(source)
    if any(value != new for value, new in mapped.items()):
        table = np.zeros(max(there) + 1, dtype=np.uint16)
        for value, new in mapped.items():
            table[value] = new
        path = f"labelsTr/{task.name}.nii.gz"
        write_label(task.folder / Path(path).name, table[label.array[0]], label.geometry)
    return _Made(
        case=PooledCase(
            name=task.name,
            member=task.member,
            case=task.case.name,
            images=tuple(_file(f) for image in task.case.images for f in data_files(Path(image))),
            label=_file(source),
        ),
        label=path,
    )


def _file(path: Path) -> PooledFile:
    return PooledFile(path=str(path), hash=file_state(path).hash)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise DatasetError(
            f"Nothing was written: {first_few(problems, _SHOWN)}.",
            hint="Correct the label maps, or what --add says of these labels.",
        )


def _description(
    members: Sequence[Member], labels: Labels, tasks: Sequence[_Task], found: Sequence[_Made]
) -> dict[str, Any]:
    """The dataset.json of a pool."""
    by_name = {member.name: member for member in members}
    cases = {task.name: task for task in tasks}
    codes = {n: given for m in reversed(members) for n, given in m.dataset.codes.items()}
    result: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(_channels(members))},
        **describe_labels(labels, codes),
        "numTraining": len(tasks),
        "file_ending": ".nii.gz",
        "dataset": {
            task.name: {"images": list(task.case.images), "label": made.label}
            for task, made in zip(tasks, found, strict=True)
        },
        "modality": {name: task.case.modality for name, task in cases.items()},
        "patients": {n: f"{t.member}/{t.case.patient}" for n, t in cases.items()},
        "sources": {name: task.member for name, task in cases.items()},
    }
    further: dict[str, dict[str, Any]] = {
        "annotated": {n: by_name[t.member].annotated(t.case.annotated) for n, t in cases.items()},
        "origin": {n: t.case.origin for n, t in cases.items() if t.case.origin != "real"},
        "lesion_classes": {n: t.case.lesion_classes for n, t in cases.items()},
    }
    for key, table in further.items():
        if any(table.values()):
            result[key] = {name: value for name, value in table.items() if value}
    return result


def _channels(members: Sequence[Member]) -> Iterator[str]:
    """Names of the channels; one that differs between members is named after the modality."""
    for names in zip(*(member.dataset.channel_names for member in members), strict=True):
        if len(set(names)) == 1:
            yield names[0]
            continue
        kinds = {case.modality for member in members for case in member.dataset.labelled}
        yield CHANNEL_OF[kinds.pop()] if len(kinds) == 1 else "CT or MRI"
