"""Groups DICOM files into series, and series into volumes; says what makes none, and why."""

import dataclasses
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoliver.errors import DatasetError
from autoliver.io.dicom.planes import SPLITS, Instance, Plane, open_dataset, read_instance
from autoliver.io.dicom.series import Series, Slice
from autoliver.io.dicom.stack import (
    SAME_PLACE_MM,
    Array,
    NoStack,
    Stack,
    are_alike,
    make_stack,
    name_of,
    normal_of,
    places,
)
from autoliver.values import counted

# A few slices of another direction in a series are localizers; more of them are not.
_FEW = 0.25
_TURNED = 0.98  # cosine of the angle above which a direction is another one
_MOST_KEYS = 2
# How localizers are called, which many scanners do not mark.
_LOCALIZER = re.compile(
    r"locali[sz]er|scout|survey|surview|topogram|scanogram|\bloc\b", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoSeries:
    """Files that make no volume.

    Attributes:
        files: The files.
        number: SeriesNumber; None if there is none.
        description: SeriesDescription, or the file name.
        modality: The tag Modality.
        images: Number of slices.
        problem: Why they make no volume: a sentence without a full stop.
        localizer: Whether they are a localizer, which nobody expects to be a volume.
    """

    files: tuple[Path, ...]
    number: int | None
    description: str
    modality: str
    images: int
    problem: str
    localizer: bool = False

    @property
    def folder(self) -> Path:
        """The folder that holds them."""
        return folder_of(self.files)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What DICOM files hold.

    Attributes:
        series: The volumes.
        refused: What makes no volume.
        others: What files are that are no images (segmentations, reports, ...) -> their number.
    """

    series: tuple[Series, ...]
    refused: tuple[NoSeries, ...]
    others: dict[str, int]


def find_series(files: Iterable[Path]) -> Found:
    """Groups DICOM files into volumes.

    Raises:
        MachineError: The system refuses to read a file.
    """
    series: list[Series] = []
    refused: list[NoSeries] = []
    others: Counter[str] = Counter()
    groups: dict[tuple[object, ...], list[Instance]] = {}
    for file in files:
        try:
            instance = read_instance(file)
        except DatasetError as error:
            refused.append(_damaged(file, error.problem))
            continue
        if instance is None:
            continue
        if not instance.is_image:
            others[instance.kind] += 1
            continue
        groups.setdefault(_key(instance), []).append(instance)
    for group in groups.values():
        made, problem = _volumes(group)
        series += made
        if problem is not None:
            refused.append(problem)
    return Found(series=tuple(series), refused=tuple(refused), others=dict(others))


def _damaged(file: Path, problem: str) -> NoSeries:
    return NoSeries(
        files=(file,),
        number=None,
        description=file.name,
        modality="",
        images=1,
        problem=problem.rstrip("."),
    )


def folder_of(files: Iterable[Path]) -> Path:
    """Returns the innermost folder that holds all files."""
    return Path(os.path.commonpath([file.parent for file in files]))


def _key(instance: Instance) -> tuple[object, ...]:
    """What the files of one series have in common."""
    if instance.uid:
        return (instance.uid,)
    plane = instance.planes[0]
    grid = (plane.size, *(np.round((*plane.axes, *plane.spacing), 2).tolist() or ()))
    named = instance.modality, instance.number, instance.description
    return (instance.patient, instance.study_uid, *named, instance.file.parent, grid)


def _volumes(group: Sequence[Instance]) -> tuple[list[Series], NoSeries | None]:
    """Makes the volumes of a series; or says why it is none."""
    first = group[0]
    every = [plane for instance in group for plane in instance.planes]
    notes = [] if first.uid else ["No SeriesInstanceUID: grouped by size, direction and spacing."]
    planes = [plane for plane in every if not plane.localizer]
    try:
        if not planes:
            raise NoStack("a localizer")
        stacks = _stacks(planes, notes)
    except NoStack as error:
        return [], NoSeries(
            files=tuple(instance.file for instance in group),
            number=first.number,
            description=first.description,
            modality=first.modality,
            images=len(every),
            problem=str(error),
            localizer=not planes or bool(_LOCALIZER.search(first.description)),
        )
    if len(planes) < len(every):
        notes.append(f"Left out: {counted(len(every) - len(planes), 'localizer')}.")
    return [_series(first, part, stack, notes) for part, stack in stacks], None


def _series(first: Instance, part: str, stack: Stack, notes: Sequence[str]) -> Series:
    return Series(
        uid=first.uid,
        study_uid=first.study_uid,
        modality=first.modality,
        description=first.description,
        number=first.number,
        slices=tuple(Slice(plane.file, plane.frame) for plane in stack.planes),
        geometry=stack.geometry,
        notes=(*notes, *stack.notes),
        part=part,
        patient=first.patient,
    )


def _stacks(planes: list[Plane], notes: list[str]) -> list[tuple[str, Stack]]:
    """Makes the volumes of slices, each with what tells it apart; notes what is left out.

    Raises:
        NoStack: The slices make no volumes.
    """
    for plane in planes:
        if plane.fault:
            raise NoStack(f"{name_of(plane)}: {plane.fault}")
    planes = _without_turned(planes, notes)
    planes = _once(planes, notes, same_instance=True)
    if not _shared_places(planes):
        return [("", make_stack(planes))]
    if split := _split(planes):
        words = ", ".join(part for part, _ in split)
        notes.append(f"One series of {counted(len(split), 'volume')}: {words}.")
        return split
    planes = _once(planes, notes, same_instance=False)
    shared = _shared_places(planes)
    if not shared:
        return [("", make_stack(planes))]
    one, other = shared[0]
    raise NoStack(
        f"{counted(len(shared) + 1, 'slice')} lie at places of others with different voxels, e.g. "
        f"{name_of(one)} and {name_of(other)}, and no acquisition, echo or time tells whole "
        "volumes apart"
        if len(shared) > 1
        else f"{name_of(one)} and {name_of(other)} lie at one place with different voxels, and no "
        "acquisition, echo or time tells whole volumes apart"
    )


def _without_turned(planes: list[Plane], notes: list[str]) -> list[Plane]:
    """Leaves out a few slices of another direction, which are localizers without a mark.

    Raises:
        NoStack: Slices differ in size, spacing or direction otherwise.
    """
    kinds: list[list[Plane]] = []
    for plane in planes:
        kind = next((kind for kind in kinds if are_alike(kind[0], plane)), None)
        if kind is None:
            kinds.append([plane])
        else:
            kind.append(plane)
    kinds.sort(key=len, reverse=True)
    main, others = kinds[0], kinds[1:]
    if not others:
        return planes
    turned = all(abs(normal_of(kind[0]) @ normal_of(main[0])) < _TURNED for kind in others)
    rest = sum(map(len, others))
    if turned and rest <= _FEW * len(main):
        named = name_of(others[0][0])
        said = counted(rest, "slice")
        notes.append(f"Left out: {said} of another direction ({named}), as in a localizer.")
        return main
    raise NoStack(_difference(main[0], others[0][0]))


def _difference(one: Plane, other: Plane) -> str:
    named = (
        ("size (rows, columns)", one.size, other.size),
        ("spacing in mm (rows, columns)", one.spacing, other.spacing),
        ("direction (ImageOrientationPatient)", one.axes, other.axes),
    )
    what, first, second = max(named, key=lambda row: not np.allclose(row[1], row[2], rtol=1e-3))
    texts = [f"({', '.join(f'{value:g}' for value in side)})" for side in (first, second)]
    return (
        f"its slices differ in {what}: {texts[0]} in {name_of(one)}, {texts[1]} in {name_of(other)}"
    )


def _shared_places(planes: Sequence[Plane]) -> list[tuple[Plane, Plane]]:
    """Pairs of slices that lie at one place."""
    along = places(planes)
    order = np.argsort(along, kind="stable")
    return [
        (planes[i], planes[j])
        for i, j in itertools.pairwise(order)
        if along[j] - along[i] < SAME_PLACE_MM
    ]


def _once(planes: list[Plane], notes: list[str], *, same_instance: bool) -> list[Plane]:
    """Leaves out copies: slices with the same voxels at one place.

    Args:
        planes: The slices.
        notes: Takes what was left out.
        same_instance: Whether only copies with the same SOPInstanceUID are looked for.
    """
    left: set[int] = set()
    digests: dict[Path, str] = {}

    def held(plane: Plane) -> tuple[str, int | None]:
        if plane.file not in digests:
            digests[plane.file] = _voxel_digest(plane.file)
        return digests[plane.file], plane.frame

    for group in _at_one_place(planes):
        for one, other in itertools.combinations(group, 2):
            if {one, other} & left:
                continue
            alike = planes[one].instance == planes[other].instance or not same_instance
            alike = alike and planes[one].position == planes[other].position
            if alike and held(planes[one]) == held(planes[other]):
                left.add(other)
    if left:
        example = name_of(planes[min(left)])
        notes.append(f"Copies were read once: {counted(len(left), 'slice')}, e.g. {example}.")
    return [plane for index, plane in enumerate(planes) if index not in left]


def _at_one_place(planes: Sequence[Plane]) -> Iterator[list[int]]:
    """Groups of indices of slices that lie at one place."""
    along = places(planes)
    group: list[int] = []
    for index in map(int, np.argsort(along, kind="stable")):
        if group and along[index] - along[group[-1]] >= SAME_PLACE_MM:
            if len(group) > 1:
                yield group
            group = []
        group.append(index)
    if len(group) > 1:
        yield group


def _voxel_digest(file: Path) -> str:
    """A hash of the voxels of a file as they are stored; of nothing if they cannot be read."""
    try:
        data = open_dataset(file)
    except DatasetError:  # told when the series is read
        return str(file)
    return hashlib.sha256(bytes(data.get("PixelData") or str(file).encode())).hexdigest()


def _split(planes: Sequence[Plane]) -> list[tuple[str, Stack]]:
    """Divides slices among volumes by what tells them apart; empty if that gives no whole ones."""
    words = [word for word, _, _ in SPLITS]
    varied = [word for word in words if len({plane.told_apart[word] for plane in planes}) > 1]
    for count in range(1, _MOST_KEYS + 1):
        for keys in itertools.combinations(varied, count):
            parts: dict[tuple[str, ...], list[Plane]] = {}
            for plane in planes:
                parts.setdefault(tuple(plane.told_apart[key] for key in keys), []).append(plane)
            if stacks := _whole(list(parts.values())):
                names = _part_names(keys, list(parts))
                return _compared(sorted(zip(names, stacks, strict=True), key=lambda pair: pair[0]))
    return []


def _compared(parts: Sequence[tuple[str, Stack]]) -> list[tuple[str, Stack]]:
    """The same volumes; those that do not reach as far as the fullest one say so."""
    fullest, most = max(parts, key=lambda pair: len(pair[1].planes))
    normal = normal_of(most.planes[0])

    def along(stack: Stack) -> Array:
        return np.array([plane.position for plane in stack.planes]) @ normal

    found = []
    for part, stack in parts:
        apart = np.abs(along(most)[:, None] - along(stack)).min(axis=1)
        step = max(most.geometry.spacing_mm[0], stack.geometry.spacing_mm[0])
        missing = int((apart > step / 2 + SAME_PLACE_MM).sum())
        if missing:
            note = (
                f"{counted(missing, 'slice')} of {fullest} (of {len(most.planes)}) beyond the ends "
                f"of {part} ({len(stack.planes)}), of which slices may be missing."
            )
            stack = dataclasses.replace(stack, notes=(*stack.notes, note))
        found.append((part, stack))
    return found


def _whole(parts: Sequence[list[Plane]]) -> list[Stack]:
    """The volumes of all parts; empty if some part is none."""
    if any(len(part) < 2 or _shared_places(part) for part in parts):
        return []
    try:
        return [make_stack(part) for part in parts]
    except NoStack:
        return []


def _part_names(keys: Sequence[str], values: Sequence[tuple[str, ...]]) -> list[str]:
    """Names of parts: the words with their values if these are short, else with their rank."""
    columns = []
    for key, column in zip(keys, zip(*values, strict=True), strict=True):
        ordered = sorted(set(column), key=_by_number)
        short = all(value.isdigit() and len(value) < 4 for value in ordered)
        shown = {value: value if short else str(n) for n, value in enumerate(ordered, start=1)}
        columns.append([f"{key}{shown[value]}" for value in column])
    return ["_".join(row) for row in zip(*columns, strict=True)]


def _by_number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
