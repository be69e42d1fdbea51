"""Checks the files, grids and values of a dataset, and suggests how to fix each defect."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Artifact, Record
from autoliver.commands import DATASET, command
from autoliver.datasets.cases import Case, Dataset, Labels, is_described
from autoliver.datasets.description import modality_of, read_description
from autoliver.datasets.layouts import image_files, transparency
from autoliver.datasets.lesions import lesion_classes, mixed_lesions
from autoliver.errors import DatasetError, MachineError
from autoliver.io.files import read_label, read_values
from autoliver.io.orientation import axis_codes
from autoliver.parallel import CaseMapper
from autoliver.planning.compare import compare_cases
from autoliver.planning.findings import Finding, Findings
from autoliver.planning.modality import AIR_HU
from autoliver.planning.nonzero import foreground_mask
from autoliver.planning.ranges import CaseRange, ChannelRange, channel_range
from autoliver.planning.verify_values import check_values, is_finite
from autoliver.values import counted, first_few, hints_of

_LOWEST_AIR_HU = -1200.0  # below the -1024 of air, with some room for noise
_SHOWN = 3  # number of errors, files or values that are listed in one message


class Verification(Artifact, frozen=True, kw_only=True):
    """All findings of a dataset.

    Attributes:
        findings: The findings in single cases, sorted by the case's name, and then those that
            result from comparing cases or concern the dataset as a whole.
        ranges: Grid and intensities of every case that could be read; None for a result of an
            earlier version, which did not look at them.
    """

    KIND: ClassVar[str] = "verify"

    findings: tuple[Finding, ...]
    ranges: tuple[CaseRange, ...] | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop planning."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that deserve a look."""
        return tuple(f for f in self.findings if f.severity == "warning")


class CaseCheck(Record, frozen=True, kw_only=True):
    """The result of checking one case.

    Attributes:
        case: The case's name.
        findings: The findings in this case alone.
        label_values: The values in its label file; empty if there is none or it is unreadable.
        content: A digest of the voxels of its images; empty if they could not be read.
        ranges: Its grid and intensities; None if an image could not be read or used.
        axis_codes: Anatomical order of its axes; "" if unknown.
    """

    case: str
    findings: tuple[Finding, ...]
    label_values: tuple[int, ...]
    content: str
    ranges: CaseRange | None = None
    axis_codes: str = ""


def verify(
    dataset: Dataset,
    *,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[CaseCheck]], Iterable[CaseCheck]] | None = None,
) -> Verification:
    """Checks every file of a dataset, reading each one once.

    Args:
        dataset: The dataset as returned by `read_dataset`.
        executor: Maps over the cases; None to check them one after the other.
        progress: Wraps the iterable of results, as tqdm does; None for no progress bar.

    Returns:
        The findings; the caller fills in `made_from`.
    """
    checks = check_cases(dataset, dataset.cases, executor=executor, progress=progress)
    findings = [finding for one in checks for finding in one.findings]
    ranges = tuple(check.ranges for check in checks if check.ranges is not None)
    findings += _unlike_others(dataset, ranges)
    findings += _misnamed(dataset, ranges)
    findings += _same_images(checks)
    findings += _mixed_axes(checks)
    findings += _missing_labels(dataset)
    findings += _unused_labels(dataset, checks)
    findings += _extra_files(dataset)
    findings += _wrong_number(dataset)
    return Verification(findings=tuple(findings), ranges=ranges)


def check_cases(
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[CaseCheck]], Iterable[CaseCheck]] | None = None,
) -> list[CaseCheck]:
    """Checks some cases of a dataset, each by itself.

    Args:
        dataset: The dataset.
        cases: The cases.
        executor: As for `verify`.
        progress: As for `verify`.
    """
    check = partial(
        check_case,
        labels=dataset.labels,
        channels=len(dataset.channel_names),
        described=is_described(dataset),
        classes=lesion_classes(dataset.labels.foreground, dataset.lesion_class_names),
    )
    results = executor.map(check, cases) if executor else map(check, cases)
    return list(progress(results) if progress else results)


def placeless(verification: Verification, folder: Path) -> Verification:
    """Makes paths in the findings relative to the dataset's folder, since it may be moved."""
    start = f"{folder}{os.sep}"
    return verification.replace(
        findings=tuple(
            finding.replace(
                problem=finding.problem.replace(start, ""), hint=finding.hint.replace(start, "")
            )
            for finding in verification.findings
        )
    )


def raise_on_errors(verification: Verification, *, listed: bool = False) -> None:
    """Raises an error if any finding stops planning.

    Args:
        verification: The findings.
        listed: Whether the user sees the findings already; otherwise the error names some, and the
            command that lists all.

    Raises:
        DatasetError: There are such findings. The error states their number, at least one of each
            kind with its hint, and the first few.
    """
    errors = verification.errors
    if not errors:
        return
    lines = [f"The dataset has {counted(len(errors), 'error')}."]
    first = {error.code: error for error in reversed(errors)}
    hint = hints_of(
        (
            (error.case or "the dataset", error.hint)
            for error in errors
            if error.hint == first[error.code].hint
        ),
        _SHOWN,
    )
    if any(error.repair for error in errors):
        fix = command("verify", DATASET, options=["--fix", "OUT"])
        hint = f"{hint}\nTo have them mended in copies, where that is possible: {fix}".strip()
    if not listed:
        shown = [e for n, e in enumerate(errors) if n < _SHOWN or e is first[e.code]]
        lines += [f"{e.case}: {e.problem}" if e.case else e.problem for e in shown]
        more = len(errors) - len(shown)
        lines += [f"... and {more} more"] if more else []
        hint = f"{hint}\nTo see every finding: {command('verify', DATASET)}".strip()
    raise DatasetError("\n".join(lines), hint=hint)


def check_case(
    case: Case,
    *,
    labels: Labels,
    channels: int,
    described: bool = True,
    classes: Mapping[str, int] | None = None,
) -> CaseCheck:
    """Checks one case.

    Args:
        case: The case.
        labels: The labels of the dataset, whose values the label file may hold.
        channels: The expected number of channels of all its images together.
        described: Whether there is a dataset.json that names the channels.
        classes: Classes of lesions -> their values; None for none.
    """
    found = Findings(case.name)
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
        held = sum(header.channels for _, header in whole)
        if held != channels:
            hint = _channels_hint(case, labels, held, channels, described=described)
            names = ", ".join(Path(path).name for path in case.images)
            problem = f"{counted(held, 'channel')} in {names}, expected {channels}."
            found.add("error", "channels", problem, hint)
    voxels = [_check_voxels(found, Path(path), case, labels) for path, _ in whole]
    contents = [one.content for one in voxels]
    same = [c for n, c in enumerate(contents) if c and c in contents[:n]]
    if same:
        found.add("warning", "duplicate_channel", "two of its channels hold the same image", "")
    values: tuple[int, ...] = ()
    if label_header is not None:
        values = _check_label(found, case, labels, classes or {})
    readable = len(contents) == len(headers) and all(contents)
    seen = tuple(channel for one in voxels for channel in one.channels)
    ranges = None
    if readable and len(seen) == channels and all(one.channels for one in voxels):
        grid = whole[0][1].geometry
        ranges = CaseRange(
            name=case.name, spacing_mm=grid.spacing_mm, shape=grid.shape_zyx, channels=seen
        )
    return CaseCheck(
        case=case.name,
        findings=tuple(found.all),
        label_values=values,
        content="-".join(contents) if readable else "",
        ranges=ranges,
        axis_codes=axis_codes(whole[0][1].geometry) if whole else "",
    )


def _channels_hint(case: Case, labels: Labels, held: int, channels: int, *, described: bool) -> str:
    alpha = transparency(case.images, held=held, channels=channels)
    if alpha or described:
        return alpha or "Correct the files, or channel_names in dataset.json."
    colours = ("red", "green", "blue") if held == len("RGB") else ()
    names = {str(i): colours[i] if colours else f"channel {i}" for i in range(held)}
    values = {name: group[0] for name, group in labels.values.items()}
    return (
        "Save the images with one channel, or write a dataset.json beside images/ that names "
        f"all: {json.dumps({'channel_names': names, 'labels': values})}"
    )


class _Voxels(NamedTuple):
    """What the voxels of a file gave: a digest, "" if it cannot be read, and finite ranges."""

    content: str = ""
    channels: tuple[ChannelRange, ...] = ()


def _check_voxels(found: Findings, path: Path, case: Case, labels: Labels) -> _Voxels:
    image = None
    with found.gathering(path):
        image = read_values(path)
    if image is None:
        return _Voxels()
    array = image.array
    labelled = partial(_labelled, case, labels)
    is_ct = case.modality == "CT"
    for said in check_values(path, image, is_ct=is_ct, labelled=labelled):
        found.add(*said)
    content = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    content.update(array.data)
    whole = is_finite(array)
    ranges = tuple(channel_range(channel) for channel in array) if whole else ()
    return _Voxels(content.hexdigest(), ranges)


def _labelled(case: Case, labels: Labels) -> npt.NDArray[np.bool_] | None:
    """Where a case's label map has foreground, (z, y, x); None where it cannot be read."""
    try:
        array = None if case.label is None else read_label(case.label).array[0]
    except (DatasetError, MachineError):  # a finding of `_check_label`
        return None
    return None if array is None else foreground_mask(array, labels.ignore)


def _check_label(
    found: Findings, case: Case, labels: Labels, classes: Mapping[str, int]
) -> tuple[int, ...]:
    path = Path(str(case.label))
    counts: dict[int, int] = {}
    with found.gathering(path):
        array = read_label(path).array
        counts = _count_values(array)
        _check_classes(found, path, array[0], classes)
    if not counts:
        return ()
    odd = [f"{v} ({n} voxels)" for v, n in counts.items() if v not in labels.allowed]
    if odd:
        found.add(
            "error",
            "label_values",
            f"{path.name} holds {first_few(odd, _SHOWN)}; dataset.json has "
            f"{', '.join(str(v) for v in sorted(labels.allowed))}.",
            "Correct the label file, or add the value to the labels in dataset.json.",
        )
    known_empty = all(case.annotated.get(name) in ("absent", "none") for name in labels.foreground)
    if not known_empty and not set(counts) - {0, labels.ignore}:
        found.add(
            "warning",
            "label_empty",
            f"{path.name} holds no label other than background.",
            "Fine if the image shows none of the labels; otherwise label it, or remove the file.",
        )
    for name, values in labels.foreground.items():
        voxels = sum(counts.get(value, 0) for value in values)
        if case.annotated.get(name) == "absent" and voxels:
            found.add(
                "error",
                "label_absent",
                f"{path.name} holds {counted(voxels, 'voxel')} of '{name}', which dataset.json "
                "says is absent.",
                "Correct the label file, or the state in 'annotated'.",
            )
    return tuple(counts)


def _check_classes(
    found: Findings, path: Path, array: npt.NDArray[Any], classes: Mapping[str, int]
) -> None:
    """Warns of connected lesions with voxels of several classes."""
    mixed = mixed_lesions(array, classes.values()) if classes else []
    if not mixed:
        return
    named = {value: name for name, value in classes.items()}
    first = mixed[0]
    held = " and ".join(f"{counted(n, 'voxel')} of {named[v]}" for v, n in first.voxels.items())
    found.add(
        "warning",
        "lesion_classes",
        f"{path.name}: {counted(len(mixed), 'connected lesion')} with several classes: that around "
        f"voxel {first.centre[::-1]} (x, y, z, from 0) has {held}.",
        "Fine if lesions of different classes touch; otherwise give the lesion one class.",
    )


def _count_values(array: npt.NDArray[Any]) -> dict[int, int]:
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        # Slice by slice, since bincount converts each voxel to 8 bytes.
        top = int(array.max()) + 1
        counts = sum(np.bincount(plane.ravel(), minlength=top) for plane in array[0])
        return {int(v): int(np.asarray(counts)[v]) for v in np.flatnonzero(counts)}
    values, numbers = np.unique(array, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, numbers, strict=True)}


def _unlike_others(dataset: Dataset, ranges: Sequence[CaseRange]) -> Iterable[Finding]:
    modalities = {case.name: case.modality for case in dataset.cases}
    for one in compare_cases(ranges, modalities, dataset.channel_names):
        yield Finding(
            case=one.case, severity=one.severity, code=one.code, problem=one.problem, hint=one.hint
        )


def _misnamed(dataset: Dataset, ranges: Sequence[CaseRange]) -> Iterable[Finding]:
    """Channels that hold Hounsfield units in every case, and whose names do not say so."""
    if not ranges or {case.modality for case in dataset.cases} == {"CT"}:
        return
    for index, name in enumerate(dataset.channel_names):
        lows = [case.channels[index].percentile_00_5 for case in ranges]
        # MR with padding or outliers may hold still lower values.
        if modality_of([name]) == "CT" or not _LOWEST_AIR_HU <= min(lows) <= max(lows) <= AIR_HU:
            continue
        yield Finding(
            case=None,
            severity="warning",
            code="channel_name",
            problem=f"channel {index} is named {name}, but the images of "
            f"{counted(len(ranges), 'case')} have the values of air in CT (about "
            f"{min(lows):g}). It is normalised by each image's own mean and deviation, which "
            "loses Hounsfield units.",
            hint='If it is CT, name it "CT" in dataset.json.',
        )


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
                hint="Take one of them out, or give both the same patient under 'patients' in "
                "dataset.json, so that they are never split between training and validation.",
            )
        first.setdefault(check.content, check.case)


def _unused_labels(dataset: Dataset, checks: Iterable[CaseCheck]) -> Iterable[Finding]:
    seen = {value for check in checks for value in check.label_values}
    if not seen:
        return
    labels = dataset.labels.foreground
    if all(case.annotated.get(n) == "none" for n in labels for case in dataset.labelled):
        yield Finding(
            case=None,
            severity="error",
            code="label_unused",
            problem="no label is annotated in any case ('none' everywhere), so that there is "
            "nothing to learn.",
            hint="Correct 'annotated' in dataset.json, or add annotated cases.",
        )
        return
    for name, values in labels.items():
        if all(case.annotated.get(name) == "none" for case in dataset.labelled):
            yield Finding(
                case=None,
                severity="warning",
                code="label_unused",
                problem=f"label '{name}' is annotated in no case ('none' in all of them).",
                hint="It cannot be learned: take it out of dataset.json, or add cases with it.",
            )
        elif not seen & set(values):
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
    """Reports cases without a label if others have one, unless dataset.json has `annotated`."""
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
                hint="Add its label, or move its images out (imagesTs is for unlabelled cases).",
            )


def _extra_files(dataset: Dataset) -> Iterable[Finding]:
    used = {Path(p) for case in dataset.cases for p in (*case.images, case.label or "")}
    folders = sorted({path.parent for path in used if path.parent.parent == Path(dataset.folder)})
    for folder in folders:
        extra = [path.name for path in image_files(folder) if path not in used]
        if extra:
            yield Finding(
                case=None,
                severity="warning",
                code="extra_file",
                problem=f"{folder.name} holds files that belong to no case: "
                f"{first_few(extra, _SHOWN)}.",
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
            problem=f"dataset.json has numTraining {stated}, but there is "
            f"{counted(len(dataset.cases), 'case')}, {len(dataset.labelled)} with a label.",
            hint="Are cases missing? If not, correct the number.",
        )
