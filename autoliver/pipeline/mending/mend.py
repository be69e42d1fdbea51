"""Makes a dataset without the errors of another one: verify --fix."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoliver.artifacts import as_json, brief, read_json, write_bytes
from autoliver.commands import command
from autoliver.datasets.cases import Case, Dataset, describe_labels, read_new
from autoliver.datasets.folds import read_splits
from autoliver.errors import DatasetError
from autoliver.io.files import read_stored
from autoliver.locks import only_writing
from autoliver.machine import WHOLE_MACHINE, Machine
from autoliver.needs import read_need
from autoliver.parallel import Need, case_bar
from autoliver.pipeline.conversion.result import check_output
from autoliver.pipeline.data import SPLITS_FILE, verify_dataset
from autoliver.pipeline.mending.case import Mended, MendTask, mend_case
from autoliver.pipeline.mending.record import FIXES_FILE, Fix, Fixes
from autoliver.pipeline.mending.values import Values, levels_of, parse_values, scaled_values
from autoliver.planning.findings import Finding
from autoliver.planning.verify import Verification
from autoliver.values import check_flag, counted, first_few, hints_of
from autoliver.workspace import Workspace

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class MendRequest:
    """What is asked for.

    Attributes:
        values: What values in label files mean, such as "7=0".
        leave_out: Whether cases that cannot be repaired are left out.
    """

    values: Sequence[str] = ()
    leave_out: bool = False

    def __post_init__(self) -> None:
        parse_values(self.values)
        check_flag("--leave-out", self.leave_out)


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """The result of `verify --fix`.

    Attributes:
        folder: The new dataset; None if nothing was wrong, and so nothing was written.
        cases: Number of its cases.
        fixes: The files that were repaired.
        left_out: Case -> why it could not be repaired.
        next_command: The command that makes sense next.
    """

    folder: Path | None
    cases: int
    fixes: tuple[Fix, ...]
    left_out: Mapping[str, str]
    next_command: str

    @property
    def facts(self) -> dict[str, object]:
        """The result as plain values, for --json."""
        return {
            "dataset": None if self.folder is None else str(self.folder),
            "cases": self.cases,
            "fixes": [
                {"case": f.case, "file": f.file, "done": f.done, "picture": f.picture}
                for f in self.fixes
            ],
            "left_out": dict(self.left_out),
            "next": self.next_command,
        }

    __repr__ = brief


def mend(
    workspace: Workspace,
    name: str | None,
    output: Path,
    *,
    request: MendRequest | None = None,
    machine: Machine = WHOLE_MACHINE,
) -> Repaired:
    """Writes a dataset with repaired copies of the files in which there are errors.

    Other files are referred to by their paths; the originals stay as they are.

    Args:
        workspace: The workspace.
        name: Path or name of the dataset; None for the only one.
        output: Folder of the new dataset.
        request: What is asked for; None for the defaults.
        machine: The processes and memory that may be used.

    Raises:
        DatasetError: There is no such dataset, or some of its errors cannot be repaired.
        OptionError: The output exists already.
    """
    asked = request or MendRequest()
    dataset, found = verify_dataset(workspace, name, machine=machine)[1:]
    output = output.absolute()
    check_output(Path(dataset.folder), output)
    if not found.errors:
        again = command("plan", dataset.folder, workspace=workspace.root)
        return Repaired(
            folder=None, cases=len(dataset.cases), fixes=(), left_out={}, next_command=again
        )
    _refuse_general(found)
    with only_writing(output) as beside:
        beside.mkdir(parents=True)
        mended = _mend_all(dataset, found, beside, asked, machine)
        failed = {case: each for case, each in mended.items() if each.failed}
        _refuse_failed(failed, leave_out=asked.leave_out)
        kept = [case for case in dataset.cases if case.name not in failed]
        if not any(case.label for case in kept):
            raise DatasetError(
                "Nothing was written: no case with a label map is left.",
                hint="Look at the errors: autoliver verify DATASET",
            )
        fixes = tuple(fix for each in mended.values() for fix in each.fixes)
        left_out = {case: each.failed for case, each in failed.items()}
        write_bytes(beside / "dataset.json", as_json(_description(dataset, kept, mended)))
        _keep_splits(dataset, beside, {case.name for case in kept})
        record = Fixes(fixes=fixes, left_out=left_out, made_from={"dataset": dataset.digest()})
        record.save(beside / FIXES_FILE)
        read_new(beside, output)
    return Repaired(
        folder=output,
        cases=len(kept),
        fixes=fixes,
        left_out=left_out,
        next_command=command("plan", str(output), workspace=workspace.root),
    )


def _refuse_general(found: Verification) -> None:
    """Refuses errors that are not those of a case."""
    general = [error for error in found.errors if error.case is None]
    if general:
        raise DatasetError(
            f"Nothing was written: --fix does not mend this: {general[0].problem}",
            hint=general[0].hint,
        )


def _mend_all(
    dataset: Dataset, found: Verification, beside: Path, asked: MendRequest, machine: Machine
) -> dict[str, Mended]:
    """Repairs all cases with errors, by name; the others are not in the result."""
    errors: dict[str, list[Finding]] = {}
    for error in found.errors:
        errors.setdefault(str(error.case), []).append(error)
    mended = {
        name: Mended(failed=one.problem.removesuffix("."), hint=one.hint)
        for name, all_of_case in errors.items()
        for one in reversed(all_of_case)
        if one.repair is None
    }
    cases = [case for case in dataset.cases if case.name in errors and case.name not in mended]
    values = (*parse_values(asked.values), *_scaled(dataset, cases, errors))
    tasks = [
        MendTask(
            case=case,
            repairs=tuple(dict.fromkeys(e.repair for e in errors[case.name] if e.repair)),
            output=beside,
            labels=dataset.labels,
            channels=len(dataset.channel_names),
            values=values,
        )
        for case in cases
    ]
    stage = machine.pool("fix", need=_need, light=True)
    made = case_bar("fix", len(tasks))(stage.map(mend_case, tasks))
    return mended | {case.name: each for case, each in zip(cases, made, strict=True)}


def _need(task: MendTask) -> Need:
    return read_need(task.case)


def _scaled(
    dataset: Dataset, cases: Iterable[Case], errors: Mapping[str, Sequence[Finding]]
) -> Values:
    """What the values of label files mean if they are scaled, by all files with wrong ones."""
    wrong = [
        case
        for case in cases
        if case.label is not None and any(e.repair == "values" for e in errors[case.name])
    ]
    held = [levels_of(read_stored(str(case.label))) for case in wrong]
    if not all(held):
        return ()
    return scaled_values({level for levels in held for level in levels}, dataset.labels.allowed)


def _refuse_failed(failed: Mapping[str, Mended], *, leave_out: bool) -> None:
    if failed and not leave_out:
        problems = [f"{case}: {each.failed}" for case, each in failed.items()]
        hints = [(case, each.hint) for case, each in failed.items() if each.hint]
        raise DatasetError(
            f"Nothing was written: {counted(len(failed), 'case')} cannot be repaired: "
            f"{first_few(problems, _SHOWN)}.",
            hint=f"{hints_of(hints, _SHOWN)}\n--leave-out repairs the others without them.".strip(),
        )


def _description(
    dataset: Dataset, cases: Sequence[Case], mended: Mapping[str, Mended]
) -> dict[str, Any]:
    """The dataset.json: that of the source, with the paths of repaired files."""

    def files(case: Case) -> dict[str, object]:
        one = mended.get(case.name, Mended(images=case.images, label=case.label))
        return {"images": list(one.images), "label": one.label}

    result: dict[str, Any] = {
        "channel_names": {str(n): name for n, name in enumerate(dataset.channel_names)},
        **describe_labels(dataset.labels, dataset.codes),
        "numTraining": len(cases),
        "file_ending": dataset.file_ending,
        "converted_by": "autoliver, by verify --fix",
        "dataset": {case.name: files(case) for case in cases},
        "modality": {case.name: case.modality for case in cases},
        "patients": {case.name: case.patient for case in cases},
    }
    further: dict[str, dict[str, Any]] = {
        "annotated": {case.name: case.annotated for case in cases},
        "lesion_classes": {case.name: case.lesion_classes for case in cases},
        "origin": {case.name: case.origin for case in cases if case.origin != "real"},
        "sources": {case.name: case.source for case in cases if case.source},
    }
    for key, by_name in further.items():
        if table := {name: value for name, value in by_name.items() if value}:
            result[key] = table
    if dataset.lesion_class_names:
        result["lesion_class_names"] = list(dataset.lesion_class_names)
    return result


def _keep_splits(dataset: Dataset, beside: Path, kept: set[str]) -> None:
    """Keeps the user's own folds, without the cases that were left out."""
    path = Path(dataset.folder) / SPLITS_FILE
    if path.is_file():
        read_splits(path, dataset.labelled)  # refuses what is no list of folds
        splits = [
            {**fold, **{side: [n for n in fold[side] if n in kept] for side in ("train", "val")}}
            for fold in read_json(path)
        ]
        write_bytes(beside / SPLITS_FILE, json.dumps(splits, indent=2).encode())
