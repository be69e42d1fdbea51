"""The user's dataset: its cases, labels and channels, and the paths of their files."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import msgspec

from autoliver.artifacts import Artifact, Fault, Record, unfit, within
from autoliver.datasets.description import (
    MOST_VALUE,
    Description,
    guess_description,
    missing_description,
    modality_of,
    read_description,
)
from autoliver.datasets.label_values import refuse_image, values_of
from autoliver.datasets.layouts import (
    Files,
    check_spelling,
    commonest_ending,
    dicom_hint,
    listed_files,
    paired_files,
    table_files,
)
from autoliver.datasets.layouts import find_case_images as find_case_images
from autoliver.datasets.pool import check_members, read_pool
from autoliver.errors import DatasetError
from autoliver.io.dicom.codes import SegmentCodes
from autoliver.io.files import read_label
from autoliver.io.paths import check_printable
from autoliver.values import LONGEST_NAME, meant, name_problem

Modality = Literal["CT", "MR", "other"]
Origin = Literal["real", "synthetic", "pseudo"]
Annotation = Literal["real", "pseudo", "absent", "none"]

# States of a label in which nobody has marked it: its predictions are not scored.
_UNSCORED = ("pseudo", "none")


class FileContent(Record, frozen=True, kw_only=True):
    """The content of one file of a case, independent of where the dataset is.

    Attributes:
        kind: Whether the file belongs to the image or to the label.
        name: Path relative to the dataset's folder, with "/"; only the file name if it is outside.
        size: Size in bytes.
        hash: Hash of the content, in hex digits; empty if the file could not be read.
    """

    kind: Literal["image", "label"]
    name: str
    size: int
    hash: str


class CaseFacts(Record, frozen=True, kw_only=True):
    """Facts about a case besides its voxels; they are passed along with every patch of the case.

    Attributes:
        name: The case's identifier.
        patient: The patient's identifier; cases of one patient are never split between folds.
        modality: The modality of the image.
        origin: Whether the image was acquired ("real") or generated.
        annotated: Label name -> state of its annotation; labels not listed are "real".
        lesion_classes: Lesion -> class of the lesion.
        source: The collection that the case comes from; empty if the dataset names none.
    """

    name: str
    patient: str
    modality: Modality = "other"
    origin: Origin = "real"
    annotated: dict[str, Annotation] = msgspec.field(default_factory=dict)
    lesion_classes: dict[str, str] = msgspec.field(default_factory=dict)
    source: str = ""

    @classmethod
    def named(cls, name: str) -> "CaseFacts":
        """Returns the facts of a case of which only the name is known."""
        return cls(name=name, patient=name)


class Case(Record, frozen=True, kw_only=True):
    """One patient study: one or several channels on one grid, with or without a label.

    Attributes:
        name: The case's identifier: its file stem without the channel suffix.
        images: Absolute paths in channel order; one 4D file may hold all channels.
        label: Absolute path of the label map; None if there is none.
        patient: The patient's identifier; cases of one patient are never split between folds.
        modality: The modality of the image, which decides on the normalisation.
        origin: Whether the image was acquired ("real") or generated.
        annotated: Label name -> state of its annotation; labels not listed are "real".
        lesion_classes: Lesion -> class of the lesion.
        source: The collection that the case comes from; empty if the dataset names none.
        contents: The contents of its files, images first; empty until `contents.identify` fills it
            in.
        files: Digest of `contents`, which changes if the content of a file changes, but not if a
            file is moved or touched; empty until `contents.identify` fills it in.
    """

    name: str
    images: tuple[str, ...]
    label: str | None = None
    patient: str
    modality: Modality = "other"
    origin: Origin = "real"
    annotated: dict[str, Annotation] = msgspec.field(default_factory=dict)
    lesion_classes: dict[str, str] = msgspec.field(default_factory=dict)
    source: str = ""
    contents: tuple[FileContent, ...] = ()
    files: str = ""

    @property
    def facts(self) -> CaseFacts:
        """The facts about the case besides its voxels."""
        return CaseFacts(
            name=self.name,
            patient=self.patient,
            modality=self.modality,
            origin=self.origin,
            annotated=self.annotated,
            lesion_classes=self.lesion_classes,
            source=self.source,
        )

    @property
    def unscored(self) -> frozenset[str]:
        """The labels whose predictions are not scored: they are unknown, or not drawn by people."""
        return frozenset(name for name, state in self.annotated.items() if state in _UNSCORED)


def unscored_labels(cases: Iterable[Case]) -> dict[str, frozenset[str]]:
    """Maps the cases of which some labels are not scored to these labels."""
    return {case.name: case.unscored for case in cases if case.unscored}


class Labels(Record, frozen=True, kw_only=True):
    """Label names and the values they have in label files.

    Attributes:
        values: Name -> values, "background" (0) first; a label with several values is a region.
        regions_class_order: The value that is written for each region, in painting order; None
            without regions. Labels of a single value are regions if it is given.
        ignore: The value of voxels that are ignored in training and evaluation; None if there is
            none.
        exclusive: Whether a label with several values is a class that excludes the others, rather
            than a region.
    """

    values: dict[str, tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None
    ignore: int | None = None
    exclusive: bool = False

    @property
    def has_regions(self) -> bool:
        """Whether labels are independent of each other (sigmoid) rather than exclusive (softmax).

        They are if any label is a union of values, or if not all of them are known in every case.
        """
        return self.regions_class_order is not None or self.has_unions

    @property
    def has_unions(self) -> bool:
        """Whether any label is a region that is a union of values."""
        return not self.exclusive and any(len(v) > 1 for v in self.values.values())

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """Name -> values of all labels except the background."""
        return {name: v for name, v in self.values.items() if v != (0,)}

    @property
    def foreground_values(self) -> tuple[int, ...]:
        """All values of labels and regions except the background's, in ascending order."""
        return tuple(sorted({v for group in self.values.values() for v in group} - {0}))

    @property
    def allowed(self) -> frozenset[int]:
        """All values that a label file may hold."""
        values = {v for group in self.values.values() for v in group}
        return frozenset(values | ({self.ignore} if self.ignore is not None else set()))

    @property
    def rows(self) -> tuple[str, ...]:
        """The label that each row of a network's output stands for; a background comes first."""
        if self.has_regions:
            return tuple(self.foreground)
        return tuple(sorted(self.values, key=lambda name: self.values[name]))

    @property
    def out_channels(self) -> int:
        """Channels of the segmentation heads: classes with background, or regions without it."""
        return len(self.foreground) if self.has_regions else len(self.values)

    def faults(self) -> Iterator[Fault]:
        """Yields labels without values, values that no file can hold, and those that repeat."""
        for name, group in self.values.items():
            if not group or min(group) < 0 or max(group) > MOST_VALUE:
                yield f"values.{name}", unfit(list(group), f"whole numbers from 0 to {MOST_VALUE}")
            if len(set(group)) < len(group):
                yield f"values.{name}", unfit(list(group), "each value once")
        every = [value for group in self.values.values() for value in group]
        if not self.has_regions and len(set(every)) < len(every):
            yield "values", unfit(sorted(every), "values of their own for every label")
        if self.ignore is not None and (self.ignore in every or not 0 < self.ignore <= MOST_VALUE):
            yield "ignore", unfit(self.ignore, f"a value up to {MOST_VALUE} that no label has")
        order = self.regions_class_order
        if order is not None and len(order) != len(self.foreground):
            yield "regions_class_order", unfit(list(order), f"{len(self.foreground)} values")
        elif not set(order or ()) <= set(self.foreground_values):
            yield (
                "regions_class_order",
                unfit(list(order or ()), "values of labels, never 0"),
            )
        elif len(set(order or ())) < min(len(order or ()), len(self.foreground_values)):
            yield "regions_class_order", unfit(list(order or ()), "another value for each region")


def contradictions(one: Labels, other: Labels) -> list[str]:
    """Names of labels that both have, with values of which none is the same."""
    known = {name.casefold(): values for name, values in other.foreground.items()}
    return [
        name
        for name, values in one.foreground.items()
        if not set(values) & set(known.get(name.casefold(), values))
    ]


def unknown_values(case: CaseFacts, labels: Labels) -> list[int]:
    """Lists the values of a label map that only labels hold which are unknown in the case."""
    known = {
        value
        for name, values in labels.foreground.items()
        if case.annotated.get(name) != "none"
        for value in values
    }
    return sorted(set(labels.foreground_values) - known)


def known_around(labels: Mapping[str, Sequence[int]], case: CaseFacts) -> dict[str, str]:
    """Maps labels that are unknown in a case to the smallest known label that they lie in.

    Args:
        labels: Name -> values of the foreground labels.
        case: The case.

    Returns:
        Unknown label -> known label, such as tumour -> liver; without unknown labels that lie in no
        known one.
    """
    unknown = {name for name in labels if case.annotated.get(name) == "none"}
    found = {}
    for inner in unknown:
        outer = [n for n in labels if n not in unknown and set(labels[inner]) < set(labels[n])]
        if outer:
            found[inner] = min(outer, key=lambda name: len(labels[name]))
    return found


def labels_for(labels: Labels, cases: Iterable[Case]) -> Labels:
    """Returns the labels as cases allow them to be learnt.

    Classes of a softmax exclude each other, so that all of them must be known in every case. If a
    label of a labelled case is unknown or a pseudo-label, each label becomes a region of its own.

    Args:
        labels: The labels.
        cases: The cases of the dataset.
    """
    if labels.has_unions:
        return labels
    partial = any(case.unscored for case in cases if case.label is not None)
    order = tuple(values[0] for values in labels.foreground.values())
    return labels.replace(regions_class_order=order if partial else None)


class Dataset(Artifact, frozen=True, kw_only=True):
    """A folder of cases with the paths of all their files.

    Attributes:
        name: The folder's name, e.g. "Dataset003_LiTS".
        folder: The folder's absolute path.
        layout: The layout of the files (DESIGN section 3).
        channel_names: The name of each image channel, e.g. ("CT",).
        labels: Label names and values.
        file_ending: The ending of the images, e.g. ".nii.gz".
        cases: The cases, sorted by name.
        lesion_class_names: The classes that lesions may have; None if dataset.json lists none.
        codes: Label -> its codes for DICOM, where its name does not say them. They are left out of
            digests, since nothing is learnt from them.
        from_workspace: The folder's path relative to the workspace, by which it is found again if
            both were moved together; empty if it is not known.
    """

    KIND: ClassVar[str] = "dataset"
    NOT_COUNTED: ClassVar[frozenset[str]] = frozenset({"codes"})

    name: str
    folder: str
    layout: Literal["nnunet", "msd", "plain"] = "nnunet"
    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str = ".nii.gz"
    cases: tuple[Case, ...]
    lesion_class_names: tuple[str, ...] | None = None
    codes: dict[str, SegmentCodes] = msgspec.field(default_factory=dict)
    from_workspace: str = ""

    def digest(self) -> str:
        """Returns a hash of the dataset as twelve hex digits, independent of its name and place.

        The contents of files are included only after `contents.identify` has filled them in.
        """
        cases = tuple(_placeless(case, Path(self.folder)) for case in self.cases)
        placeless = self.replace(name="", folder="", from_workspace="", cases=cases)
        return super(Dataset, placeless).digest()

    @property
    def short_name(self) -> str:
        """The name without a leading "DatasetNNN_"."""
        return short_name(self.name)

    def faults(self) -> Iterator[Fault]:
        """Yields cases that repeat, have no image or have a name that is no file's, and labels'."""
        yield from within("labels", self.labels.faults())
        if not self.channel_names:
            yield "channel_names", unfit([], "a name for each channel")
        seen: set[str] = set()
        for number, case in enumerate(self.cases):
            if case.name in seen:
                yield f"cases[{number}].name", unfit(case.name, "a name that no other case has")
            if name_problem(case.name):
                yield f"cases[{number}].name", unfit(case.name, name_problem(case.name))
            if not case.images:
                yield f"cases[{number}].images", unfit([], "at least one image")
            seen.add(case.name)

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The cases that have a label and can be trained on."""
        return tuple(case for case in self.cases if case.label is not None)


def name_inside(folder: Path, path: str | Path) -> str:
    """Returns a file's path relative to a folder, with "/"; only its name if it is outside."""
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return Path(path).name


def _placeless(case: Case, folder: Path) -> Case:
    """Returns the case with the names of its files instead of their paths."""
    return case.replace(
        images=tuple(name_inside(folder, path) for path in case.images),
        label=None if case.label is None else name_inside(folder, case.label),
        contents=(),  # represented by `files`
    )


def short_name(name: str) -> str:
    """Returns a dataset's name without a leading "DatasetNNN_"."""
    head, _, tail = name.partition("_")
    return tail if head.startswith("Dataset") and head[7:].isdigit() and tail else name


_MOST_VALUES = 100  # files with more distinct values than this are hardly label files


def read_dataset(folder: str | Path) -> Dataset:
    """Finds the cases, labels and files of a dataset's folder, without reading image voxels.

    Args:
        folder: A folder in the layout of nnU-Net v2 or of the Medical Segmentation Decathlon, or
            with a plain pair of folders `images/` and `labels/`. Without a dataset.json, the label
            values are read from the label files.

    Raises:
        DatasetError: The dataset.json or the files do not conform to any of the layouts.
    """
    folder = Path(os.path.normpath(Path(folder).absolute()))
    check_printable(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder.", hint="Check the path.")
    plain = (folder / "images").is_dir() and not (folder / "imagesTr").is_dir()
    if (folder / "dataset.json").exists():
        description = read_description(folder)
    elif plain:
        description = guess_description(folder)
    else:
        check_spelling(folder)
        missing = missing_description(folder)
        raise DatasetError(missing.problem, hint=dicom_hint(folder) or missing.hint)
    plain = plain and not description.table and not description.training
    try:
        files = _files(folder, description, plain=plain)
    except DatasetError:
        if (pool := read_pool(folder)) is not None:
            check_members(folder, pool)  # says of which member a file is missing
        raise
    stated = description.labels
    if stated is None:
        labels = _discover_labels(folder, files)
    else:
        labels = msgspec.convert(stated, Labels, from_attributes=True)
    ending = description.file_ending
    cases = tuple(_cases(description, files, labels))
    return Dataset(
        name=folder.name,
        folder=str(folder),
        layout="plain" if plain else description.layout,
        channel_names=description.channel_names,
        labels=labels_for(labels, cases),
        file_ending=ending or commonest_ending(p for images, _ in files.values() for p in images),
        cases=cases,
        lesion_class_names=description.lesion_class_names,
        codes=description.codes,
    )


def is_mixed(dataset: Dataset) -> bool:
    """Whether some labelled cases are CT and others MR."""
    return {"CT", "MR"} <= {case.modality for case in dataset.labelled}


def groups_of(cases: Iterable[Case]) -> dict[str, tuple[str, ...]]:
    """Groups cases by modality and by source.

    Returns:
        Name of the group -> names of its cases. Cases of one modality or of one source are no
        group, nor are sources that are the modalities under other names.
    """
    by_modality: dict[str, list[str]] = {}
    by_source: dict[str, list[str]] = {}
    for case in cases:
        by_modality.setdefault(case.modality, []).append(case.name)
        by_source.setdefault(case.source, []).append(case.name)
    found: dict[str, tuple[str, ...]] = {}
    for groups in (by_modality, by_source):
        parts = {name or "other": tuple(members) for name, members in sorted(groups.items())}
        if len(parts) > 1 and set(parts.values()) != set(found.values()):
            found |= parts
    return found


def is_described(dataset: Dataset) -> bool:
    """Whether a dataset.json names the channels; a plain pair of folders may lack it."""
    return dataset.layout != "plain" or (Path(dataset.folder) / "dataset.json").exists()


def with_channel(dataset: Dataset, name: str) -> Dataset:
    """Returns a plain pair of folders with another name of its channel, which says its modality."""
    modality = modality_of([name])
    cases = tuple(case.replace(modality=modality) for case in dataset.cases)
    return dataset.replace(channel_names=(name,), cases=cases)


def describe_plain(dataset: Dataset) -> dict[str, Any]:
    """Returns a dataset.json for a plain pair of folders that describes the same dataset."""
    return {
        "channel_names": {str(i): name for i, name in enumerate(dataset.channel_names)},
        "labels": {name: values[0] for name, values in dataset.labels.values.items()},
        "numTraining": len(dataset.labelled),
        "file_ending": dataset.file_ending,
    }


def describe_labels(labels: Labels, codes: Mapping[str, SegmentCodes]) -> dict[str, Any]:
    """Returns the part of a dataset.json that is about labels.

    Args:
        labels: The labels.
        codes: Codes of labels for DICOM, of which those of other labels are left out. Capitals do
            not count.
    """
    # A class of several values is written as the first of them.
    values: dict[str, Any] = {
        name: min(group) if len(group) == 1 or labels.exclusive else list(group)
        for name, group in labels.values.items()
    }
    if labels.ignore is not None:
        values["ignore"] = labels.ignore
    found: dict[str, Any] = {"labels": values}
    if labels.regions_class_order is not None:
        found["regions_class_order"] = list(labels.regions_class_order)
    known = {name.casefold(): given.concepts for name, given in codes.items()}
    kept = {n: known[n.casefold()] for n in labels.foreground if n.casefold() in known}
    return found | ({"codes": kept} if kept else {})


def read_new(beside: Path, output: Path, *, hint: str = "") -> None:
    """Checks that a dataset that is about to be put in its place can be read.

    Args:
        beside: The folder where it was made.
        output: Its place, which errors name.
        hint: What to do about an error; empty for what the error itself says.

    Raises:
        DatasetError: It cannot be read.
    """
    try:
        read_dataset(beside)
    except DatasetError as error:
        problem = error.problem.replace(str(beside.absolute()), str(output))
        raise DatasetError(problem, hint=hint or error.hint) from error


def _files(folder: Path, description: Description, *, plain: bool) -> Files:
    channels = len(description.channel_names)
    if description.table:
        files = table_files(description.where, description.table, channels)
    elif description.training:
        files = listed_files(description.where, description.training)
    else:
        check_spelling(folder)
        images, labels = ("images", "labels") if plain else ("imagesTr", "labelsTr")
        ending = description.file_ending
        files = paired_files(folder / images, folder / labels, ending=ending, channels=channels)
    if not files:
        raise DatasetError(f"{folder}: no images.", hint="List the training cases in dataset.json.")
    return files


def _discover_labels(folder: Path, files: Files) -> Labels:
    seen: set[int] = set()
    for name, (_, label) in files.items():
        if label is None:
            continue
        array = read_label(label).array
        own = values_of(array)
        refuse_image(array, own, f"{name}: {label}", most=_MOST_VALUES)
        seen |= own
        if len(seen) > _MOST_VALUES or min(seen) < 0:
            raise DatasetError(
                f"{name}: {label} holds values from {min(seen)} to {max(seen)}, "
                f"expected at most {_MOST_VALUES} label numbers.",
                hint="Are images and labels mixed up?",
            )
    if not seen - {0}:
        raise DatasetError(
            f"{folder / 'labels'}: found no label values other than background.",
            hint="Put a label map for each image there, with the same stem.",
        )
    names = {f"label_{value}": (value,) for value in sorted(seen - {0})}
    return Labels(values={"background": (0,), **names})


def _cases(description: Description, files: Files, labels: Labels) -> Iterable[Case]:
    _check_cases_known(description, files)
    where, stated = description.where, description.modality
    everywhere = (stated,) if isinstance(stated, str) else description.channel_names
    by_case = stated if isinstance(stated, dict) else {}
    for name, (images, label) in sorted(files.items()):
        check_printable(name)
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise DatasetError(
                f"{name}: the case's name has {len(os.fsencode(name))} bytes, expected at most "
                f"{LONGEST_NAME}, so that files made from it can be named.",
                hint="Shorten the names of its files.",
            )
        known = description.annotated.get(name, {})
        if unknown := [key for key in known if key not in labels.foreground]:
            raise DatasetError(
                f"{where}: annotated: {name}: there is no label '{unknown[0]}', expected one of "
                f"{', '.join(labels.foreground)}.",
                hint="Correct the name.",
            )
        for key, state in known.items():
            _check_state(f"{where}: annotated: {name}: {key}", state, get_args(Annotation))
        origin = description.origin.get(name, "real")
        _check_state(f"{where}: origin: {name}", origin, get_args(Origin))
        case = {
            "name": name,
            "images": [str(path) for path in images],
            "label": None if label is None else str(label),
            "patient": str(description.patients.get(name, name)),
            "modality": modality_of([by_case[name]] if name in by_case else everywhere),
            "origin": origin,
            "annotated": known,
            "lesion_classes": description.lesion_classes.get(name, {}),
            "source": description.sources.get(name, ""),
        }
        try:
            yield msgspec.convert(case, Case)
        except msgspec.ValidationError as error:
            raise DatasetError(
                f"{where}: {name}: {error}.", hint="Correct the value for this case."
            ) from None


def _check_state(where: str, state: str, states: Sequence[str]) -> None:
    if state not in states:
        raise DatasetError(
            f"{where}: '{state}' is none of {', '.join(states)}.",
            hint=meant(state, states) or "Write one of these.",
        )


def _check_cases_known(description: Description, files: Files) -> None:
    stated = description.modality
    tables: dict[str, Mapping[str, object]] = {
        "patients": description.patients,
        "origin": description.origin,
        "annotated": description.annotated,
        "lesion_classes": description.lesion_classes,
        "sources": description.sources,
        "modality": stated if isinstance(stated, dict) else {},
    }
    for key, table in tables.items():
        for name in table:
            if name not in files:
                near = difflib.get_close_matches(name, files, n=1)
                raise DatasetError(
                    f"{description.where}: {key}: there is no case '{name}'.",
                    hint=f"Did you mean '{near[0]}'?" if near else "Take it out of the table.",
                )
