"""Is a dataset what it says it is? Files, grids, values; each defect with a way out."""

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Artifact, Record
from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.datasets.description import read_description
from autoliver.datasets.layouts import image_files
from autoliver.errors import DatasetError
from autoliver.io.files import NotWholeNumbers, read_header, read_label, read_stored
from autoliver.io.grids import compare_grids
from autoliver.io.header import Header
from autoliver.io.orientation import axis_codes
from autoliver.parallel import CaseMapper
from autoliver.planning.nonzero import foreground_mask
from autoliver.planning.verify_values import check_values, to_float32

Severity = Literal["error", "warning", "note"]

_RESAMPLE = "Export both on one grid, or take the case out of the dataset."
_HEADER = "Find out which values are right, and write them into the file's header."
_SHOWN = 3  # errors, files or values told in one message


class Finding(Record, frozen=True, kw_only=True):
    """One thing that is not as it should be.

    Attributes:
        case: The case, None for the dataset as a whole.
        severity: An error stops planning; a warning deserves a look; a note is for the record.
        code: What kind of thing, for programs: missing_file, missing_label, extra_file, unreadable,
            channels, channel_grid, label_grid, not_finite, constant, outliers, padding, precision,
            label_values, label_fractions, label_empty, label_unused, duplicate_image,
            duplicate_channel, direction, header, axes, num_training.
        problem: What was found and what was expected.
        hint: What to do about it.
    """

    case: str | None
    severity: Severity
    code: str
    problem: str
    hint: str = ""


class Verification(Artifact, frozen=True, kw_only=True):
    """All that was found, by case in the order of names, the dataset as a whole last."""

    KIND: ClassVar[str] = "verify"

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop planning."""
        return tuple(f for f in self.findings if f.severity == "error")


class CaseCheck(Record, frozen=True, kw_only=True):
    """What one case contributes.

    Attributes:
        case: Its name.
        findings: Of this case alone.
        label_values: The values of its label file.
        content: A digest of the voxels of its images, "" where they could not be read.
        axis_codes: The anatomical order of its axes, "" where unknown.
    """

    case: str
    findings: tuple[Finding, ...]
    label_values: tuple[int, ...]
    content: str
    axis_codes: str = ""


def verify(
    dataset: Dataset,
    *,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[CaseCheck]], Iterable[CaseCheck]] | None = None,
) -> Verification:
    """Checks every file of a dataset; each is read once.

    Args:
        dataset: As `read_dataset` found it.
        executor: Maps over the cases; None: one after the other.
        progress: Wraps the iterable of results, as tqdm does.

    Returns:
        The findings; an artefact whose `made_from` is the caller's to fill.
    """
    check = partial(check_case, labels=dataset.labels, channels=len(dataset.channel_names))
    results = executor.map(check, dataset.cases) if executor else map(check, dataset.cases)
    checks = list(progress(results) if progress else results)
    findings = [finding for one in checks for finding in one.findings]
    findings += _same_images(checks)
    findings += _mixed_axes(checks)
    findings += _missing_labels(dataset)
    findings += _unused_labels(dataset, checks)
    findings += _extra_files(dataset)
    findings += _wrong_number(dataset)
    return Verification(findings=tuple(findings))


def placeless(verification: Verification, folder: Path) -> Verification:
    """The findings with paths as seen from the dataset's folder, since that may be moved."""
    start = f"{folder}{os.sep}"
    return verification.replace(
        findings=tuple(
            finding.replace(
                problem=finding.problem.replace(start, ""), hint=finding.hint.replace(start, "")
            )
            for finding in verification.findings
        )
    )


def raise_on_errors(verification: Verification) -> None:
    """Raises if anything was found that stops planning.

    Raises:
        DatasetError: With the number of errors and the first few of them.
    """
    errors = verification.errors
    if not errors:
        return
    shown = [f"{e.case}: {e.problem}" if e.case else e.problem for e in errors[:_SHOWN]]
    more = len(errors) - len(shown)
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    rest = [f"... and {more} more"] if more else []
    raise DatasetError(
        "\n".join([f"The dataset has {count}.", *shown, *rest]),
        hint=f"{errors[0].hint} 'autoliver verify' lists everything.",
    )


def check_case(case: Case, *, labels: Labels, channels: int) -> CaseCheck:
    """Checks one case.

    Args:
        case: The case.
        labels: What its label file may hold.
        channels: What its images must add up to.
    """
    found = _Findings(case.name)
    headers = {path: found.header(Path(path)) for path in case.images}
    label_header = found.header(Path(case.label)) if case.label is not None else None
    whole = [(path, header) for path, header in headers.items() if header is not None]
    if whole:
        first = whole[0]
        for other in whole[1:]:
            found.grids(first, other, code="channel_grid")
        if label_header is not None and case.label is not None:
            found.grids(first, (case.label, label_header), code="label_grid")
    if len(whole) == len(headers):
        _check_channels(found, case, [header for _, header in whole], channels)
    contents = [_check_voxels(found, Path(path), case, labels) for path, _ in whole]
    same = [c for n, c in enumerate(contents) if c and c in contents[:n]]
    if same:
        found.add("warning", "duplicate_channel", "two of its channels hold the same image", "")
    values = _check_label(found, case, labels) if label_header is not None else ()
    readable = len(contents) == len(headers) and all(contents)
    return CaseCheck(
        case=case.name,
        findings=tuple(found.all),
        label_values=values,
        content="-".join(contents) if readable else "",
        axis_codes=axis_codes(whole[0][1].geometry) if whole else "",
    )


class _Findings:
    """Gathers the findings of one case."""

    def __init__(self, case: str) -> None:
        self.case = case
        self.all: list[Finding] = []

    def add(self, severity: Severity, code: str, problem: str, hint: str) -> None:
        self.all.append(
            Finding(case=self.case, severity=severity, code=code, problem=problem, hint=hint)
        )

    def header(self, path: Path) -> Header | None:
        if not path.exists():
            self.add("error", "missing_file", f"{path} is not there.", "Put the file back.")
            return None
        try:
            header = read_header(path)
        except DatasetError as error:
            self.add("error", "unreadable", error.problem, error.hint)
            return None
        if header.note:
            if header.doubtful:
                self.add("warning", "header", f"{path}: {header.note}.", _HEADER)
            else:
                self.add("note", "direction", f"{path}: {header.note}.", "")
        return header

    def grids(self, first: tuple[str, Header], second: tuple[str, Header], *, code: str) -> None:
        for difference in compare_grids(first[1].geometry, second[1].geometry):
            one, two = difference.values()
            files = f"{Path(first[0]).name} {one}, {Path(second[0]).name} {two}"
            who = "image and label" if code == "label_grid" else "two channels"
            if difference.rounding:
                problem = f"{who} differ in {difference.what} by rounding: {files}."
                self.add("note", code, problem, "")
            else:
                self.add("error", code, f"{who} differ in {difference.what}: {files}.", _RESAMPLE)


def _check_channels(found: _Findings, case: Case, headers: list[Header], channels: int) -> None:
    held = sum(header.channels for header in headers)
    if held != channels:
        names = ", ".join(Path(path).name for path in case.images)
        found.add(
            "error",
            "channels",
            f"{held} channel(s) in {names}, expected {channels}.",
            "Correct the files, or channel_names in dataset.json.",
        )


def _check_voxels(found: _Findings, path: Path, case: Case, labels: Labels) -> str:
    try:
        stored = read_stored(path)
    except DatasetError as error:
        found.add("error", "unreadable", error.problem, error.hint)
        return ""
    array = to_float32(stored)
    labelled = partial(_labelled, case, labels)
    is_ct = case.modality == "CT"
    for said in check_values(path, stored, array, is_ct=is_ct, labelled=labelled):
        found.add(*said)
    content = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    content.update(array.data)
    return content.hexdigest()


def _labelled(case: Case, labels: Labels) -> npt.NDArray[np.bool_] | None:
    """Where a case's label map has foreground, (z, y, x); None where it cannot be read."""
    try:
        array = None if case.label is None else read_label(case.label).array[0]
    except DatasetError:  # a finding of `_check_label`
        return None
    return None if array is None else foreground_mask(array, labels.ignore)


def _check_label(found: _Findings, case: Case, labels: Labels) -> tuple[int, ...]:
    path = Path(str(case.label))
    try:
        counts = _count_values(read_label(path).array)
    except NotWholeNumbers as error:
        found.add("error", "label_fractions", error.problem, error.hint)
        return ()
    except DatasetError as error:
        found.add("error", "unreadable", error.problem, error.hint)
        return ()
    odd = [f"{v} ({n} voxels)" for v, n in counts.items() if v not in labels.allowed]
    if odd:
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        found.add(
            "error",
            "label_values",
            f"{path.name} holds {', '.join(odd[:_SHOWN])}{more}; dataset.json has "
            f"{', '.join(str(v) for v in sorted(labels.allowed))}.",
            "Correct the label file, or add the value to the labels in dataset.json.",
        )
    known_empty = all(case.annotated.get(name) == "absent" for name in labels.foreground)
    if not known_empty and not set(counts) - {0, labels.ignore}:
        found.add(
            "warning",
            "label_empty",
            f"{path.name} holds no label but background.",
            "Fine if nothing is there to be seen; otherwise label it, or leave the label file out.",
        )
    return tuple(counts)


def _count_values(array: npt.NDArray[Any]) -> dict[int, int]:
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        # Slice by slice: bincount makes 8 bytes of each voxel.
        top = int(array.max()) + 1
        counts = sum(np.bincount(plane.ravel(), minlength=top) for plane in array[0])
        return {int(v): int(np.asarray(counts)[v]) for v in np.flatnonzero(counts)}
    values, numbers = np.unique(array, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, numbers, strict=True)}


def _same_images(checks: Iterable[CaseCheck]) -> Iterable[Finding]:
    first: dict[str, str] = {}
    for check in checks:
        if not check.content:
            continue
        if check.content in first:
            yield Finding(
                case=check.case,
                severity="warning",
                code="duplicate_image",
                problem=f"the image is the same as that of {first[check.content]}.",
                hint="Take one of them out, or give both one patient in dataset.json's 'patients', "
                "lest one validates what the other trained.",
            )
        first.setdefault(check.content, check.case)


def _unused_labels(dataset: Dataset, checks: Iterable[CaseCheck]) -> Iterable[Finding]:
    seen = {value for check in checks for value in check.label_values}
    if not seen:
        return
    for name, values in dataset.labels.foreground.items():
        if not seen & set(values):
            yield Finding(
                case=None,
                severity="warning",
                code="label_unused",
                problem=f"label '{name}' ({', '.join(map(str, values))}) occurs in no case.",
                hint="It cannot be learned: take it out of dataset.json, or add cases with it.",
            )


def _mixed_axes(checks: Iterable[CaseCheck]) -> Iterable[Finding]:
    cases: dict[str, list[str]] = {}
    for check in checks:
        if check.axis_codes:
            cases.setdefault(check.axis_codes, []).append(check.case)
    if len(cases) < 2:
        return
    found = ", ".join(
        f"{codes} ({len(names)}, e.g. {names[0]})" for codes, names in sorted(cases.items())
    )
    yield Finding(
        case=None,
        severity="warning",
        code="axes",
        problem=f"the cases store their axes in {len(cases)} orders: {found}.",
        hint="'autoliver plan' brings them to the commonest by flips and exchanges of axes; "
        "--keep-axes leaves them.",
    )


def _missing_labels(dataset: Dataset) -> Iterable[Finding]:
    """Cases without a label among cases with one, unless dataset.json says so (`annotated`)."""
    if not dataset.labelled:
        return
    for case in dataset.cases:
        if case.label is None and not case.annotated:
            yield Finding(
                case=case.name,
                severity="error",
                code="missing_label",
                problem=f"has an image ({Path(case.images[0]).name}) but no label file, which the "
                f"{len(dataset.labelled)} other cases have.",
                hint="Add its label, or move its images out (imagesTs is for cases without one).",
            )


def _extra_files(dataset: Dataset) -> Iterable[Finding]:
    used = {Path(p) for case in dataset.cases for p in (*case.images, case.label or "")}
    folders = sorted({path.parent for path in used if path.parent.parent == Path(dataset.folder)})
    for folder in folders:
        extra = [path.name for path in image_files(folder) if path not in used]
        if extra:
            more = f" and {len(extra) - _SHOWN} more" if len(extra) > _SHOWN else ""
            yield Finding(
                case=None,
                severity="warning",
                code="extra_file",
                problem=f"{folder.name} holds files of no case: {', '.join(extra[:_SHOWN])}{more}.",
                hint="Move them out, or correct their names.",
            )


def _wrong_number(dataset: Dataset) -> Iterable[Finding]:
    folder = Path(dataset.folder)
    if not (folder / "dataset.json").exists():
        return
    stated = read_description(folder).num_training
    if stated not in (None, len(dataset.cases), len(dataset.labelled)):
        yield Finding(
            case=None,
            severity="note",
            code="num_training",
            problem=f"dataset.json has numTraining {stated}, there are {len(dataset.cases)} cases, "
            f"{len(dataset.labelled)} of them with a label.",
            hint="Are cases missing? If not, correct the number.",
        )
