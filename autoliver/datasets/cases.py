"""What the user hands in: cases, labels, channels, and where their files are."""

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from autoliver.artifacts import Artifact, Record
from autoliver.datasets.description import (
    Description,
    guess_description,
    missing_description,
    modality_of,
    read_description,
)
from autoliver.datasets.layouts import (
    Files,
    commonest_ending,
    listed_files,
    paired_files,
    table_files,
)
from autoliver.datasets.layouts import find_case_images as find_case_images
from autoliver.errors import DatasetError
from autoliver.io.files import read_label

Modality = Literal["CT", "MR", "other"]
Origin = Literal["real", "synthetic", "pseudo"]
Annotation = Literal["real", "pseudo", "absent", "none"]


class FileContent(Record, frozen=True, kw_only=True):
    """What one file of a case holds, wherever it lies.

    Attributes:
        kind: What it is a part of.
        name: Its path in the dataset's folder, with "/"; of a file outside, its name alone.
        size: In bytes.
        hash: Of its content, in hex digits; "" where it could not be read.
    """

    kind: Literal["image", "label"]
    name: str
    size: int
    hash: str


class CaseFacts(Record, frozen=True, kw_only=True):
    """What is known of a case besides its voxels; it comes with every patch of the case.

    Attributes:
        name: The case's identifier.
        patient: Cases of one patient are never split between folds.
        modality: What made the image.
        origin: Whether the image was acquired or made.
        annotated: Label name -> what is known of it; a label not named here is "real".
        lesion_classes: Lesion -> its class.
    """

    name: str
    patient: str
    modality: Modality = "other"
    origin: Origin = "real"
    annotated: dict[str, Annotation] = msgspec.field(default_factory=dict)
    lesion_classes: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def named(cls, name: str) -> "CaseFacts":
        """The facts of a case of which only the name is known."""
        return cls(name=name, patient=name)


class Case(Record, frozen=True, kw_only=True):
    """One patient study: one or several channels on one grid, perhaps a label.

    Attributes:
        name: The case's identifier: its file stem without the channel suffix.
        images: Absolute paths in channel order; one 4D file may hold all channels.
        label: Absolute path of the label map, None where there is none.
        patient: Cases of one patient are never split between folds.
        modality: Decides the normalisation.
        origin: Whether the image was acquired or made.
        annotated: Label name -> what is known of it; a label not named here is "real".
        lesion_classes: Lesion -> its class.
        contents: What its files hold, images first; filled in by `contents.identify`.
        files: Digest of `contents`: changes when a file does, not when it is moved or touched.
    """

    name: str
    images: tuple[str, ...]
    label: str | None = None
    patient: str
    modality: Modality = "other"
    origin: Origin = "real"
    annotated: dict[str, Annotation] = msgspec.field(default_factory=dict)
    lesion_classes: dict[str, str] = msgspec.field(default_factory=dict)
    contents: tuple[FileContent, ...] = ()
    files: str = ""

    @property
    def facts(self) -> CaseFacts:
        """What is known of it besides its voxels."""
        return CaseFacts(
            name=self.name,
            patient=self.patient,
            modality=self.modality,
            origin=self.origin,
            annotated=self.annotated,
            lesion_classes=self.lesion_classes,
        )


class Labels(Record, frozen=True, kw_only=True):
    """Label names and the values they have in label files.

    Attributes:
        values: Name -> values, "background" (0) first; several values make a region.
        regions_class_order: With regions: the value written for each region, in painting order.
        ignore: The value of voxels that must not count, None where there is none.
    """

    values: dict[str, tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None
    ignore: int | None = None

    @property
    def has_regions(self) -> bool:
        """Whether any label is a union of values."""
        return any(len(v) > 1 for v in self.values.values())

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """Name -> values of everything but the background."""
        return {name: v for name, v in self.values.items() if v != (0,)}

    @property
    def foreground_values(self) -> tuple[int, ...]:
        """Every value of a label or region but the background's, in order."""
        return tuple(sorted({v for group in self.values.values() for v in group} - {0}))

    @property
    def allowed(self) -> frozenset[int]:
        """Every value a label file may hold."""
        values = {v for group in self.values.values() for v in group}
        return frozenset(values | ({self.ignore} if self.ignore is not None else set()))

    @property
    def out_channels(self) -> int:
        """Rows of the segmentation heads: classes with background, or regions without it."""
        return len(self.foreground) if self.has_regions else len(self.values)


class Dataset(Artifact, frozen=True, kw_only=True):
    """A folder of cases, resolved: what is where.

    Attributes:
        name: The folder's name, e.g. "Dataset003_LiTS".
        folder: Its absolute path.
        layout: How the files are laid out (DESIGN section 3).
        channel_names: One per image channel, e.g. ("CT",).
        labels: Label names and values.
        file_ending: Of the images, e.g. ".nii.gz".
        cases: Sorted by name.
        from_workspace: Its folder as seen from the workspace, to find it again when both were
            moved together; "" where no workspace knows it.
    """

    KIND: ClassVar[str] = "dataset"

    name: str
    folder: str
    layout: Literal["nnunet", "msd", "plain"] = "nnunet"
    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str = ".nii.gz"
    cases: tuple[Case, ...]
    from_workspace: str = ""

    def digest(self) -> str:
        """Twelve hex digits of what the dataset is: the same wherever it lies and is called.

        Contents of files count only once `contents.identify` has filled them in.
        """
        cases = tuple(_placeless(case, Path(self.folder)) for case in self.cases)
        placeless = self.replace(name="", folder="", from_workspace="", cases=cases)
        return super(Dataset, placeless).digest()

    @property
    def short_name(self) -> str:
        """The name without a leading "DatasetNNN_"."""
        return short_name(self.name)

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The cases that have a label: what can be trained on."""
        return tuple(case for case in self.cases if case.label is not None)


def name_inside(folder: Path, path: str | Path) -> str:
    """A file's path in the dataset's folder, with "/"; of a file outside, its name alone."""
    try:
        return Path(path).relative_to(folder).as_posix()
    except ValueError:
        return Path(path).name


def _placeless(case: Case, folder: Path) -> Case:
    """A case with the names of its files in place of their paths."""
    return case.replace(
        images=tuple(name_inside(folder, path) for path in case.images),
        label=None if case.label is None else name_inside(folder, case.label),
        contents=(),  # `files` stands for them
    )


def short_name(name: str) -> str:
    """A dataset's name without a leading "DatasetNNN_"."""
    head, _, tail = name.partition("_")
    return tail if head.startswith("Dataset") and head[7:].isdigit() and tail else name


_MOST_VALUES = 100  # more than that in label files and they are hardly labels


def read_dataset(folder: str | Path) -> Dataset:
    """Finds out what is where in a dataset's folder; images are not opened.

    Args:
        folder: In the layout of nnU-Net v2 or the Medical Segmentation Decathlon, or a plain pair
            of `images/` and `labels/`, whose label values are read where no dataset.json has them.

    Raises:
        DatasetError: dataset.json or the files are not what one of the layouts says.
    """
    folder = Path(os.path.normpath(Path(folder).absolute()))
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder.", hint="Check the path.")
    plain = (folder / "images").is_dir() and not (folder / "imagesTr").is_dir()
    if (folder / "dataset.json").exists():
        description = read_description(folder)
    elif plain:
        description = guess_description(folder)
    else:
        raise missing_description(folder)
    plain = plain and not description.table and not description.training
    files = _files(folder, description, plain=plain)
    stated = description.labels
    if stated is None:
        labels = _discover_labels(folder, files)
    else:
        labels = msgspec.convert(stated, Labels, from_attributes=True)
    ending = description.file_ending
    return Dataset(
        name=folder.name,
        folder=str(folder),
        layout="plain" if plain else description.layout,
        channel_names=description.channel_names,
        labels=labels,
        file_ending=ending or commonest_ending(p for images, _ in files.values() for p in images),
        cases=tuple(_cases(description, files, labels)),
    )


def describe_plain(dataset: Dataset) -> dict[str, Any]:
    """The dataset.json of a plain folder pair; with it the folder reads as the same dataset."""
    return {
        "channel_names": {str(i): name for i, name in enumerate(dataset.channel_names)},
        "labels": {name: values[0] for name, values in dataset.labels.values.items()},
        "numTraining": len(dataset.labelled),
        "file_ending": dataset.file_ending,
    }


def _files(folder: Path, description: Description, *, plain: bool) -> Files:
    channels = len(description.channel_names)
    if description.table:
        files = table_files(description.where, description.table, channels)
    elif description.training:
        files = listed_files(description.where, description.training)
    else:
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
        seen |= {int(value) for value in np.unique(read_label(label).array)}
        if len(seen) > _MOST_VALUES or min(seen) < 0:
            raise DatasetError(
                f"{name}: {label} holds values from {min(seen)} to {max(seen)}, "
                f"expected at most {_MOST_VALUES} label numbers.",
                hint="Are images and labels mixed up?",
            )
    if not seen - {0}:
        raise DatasetError(
            f"{folder / 'labels'}: no label values but background.",
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
        known = description.annotated.get(name, {})
        if unknown := [key for key in known if key not in labels.foreground]:
            raise DatasetError(
                f"{where}: annotated: {name}: there is no label '{unknown[0]}', expected of "
                f"{', '.join(labels.foreground)}.",
                hint="Correct the name.",
            )
        case = {
            "name": name,
            "images": [str(path) for path in images],
            "label": None if label is None else str(label),
            "patient": str(description.patients.get(name, name)),
            "modality": modality_of([by_case[name]] if name in by_case else everywhere),
            "origin": description.origin.get(name, "real"),
            "annotated": known,
            "lesion_classes": description.lesion_classes.get(name, {}),
        }
        try:
            yield msgspec.convert(case, Case)
        except msgspec.ValidationError as error:
            raise DatasetError(
                f"{where}: {name}: {error}.", hint="Correct the value for this case."
            ) from None


def _check_cases_known(description: Description, files: Files) -> None:
    stated = description.modality
    tables: dict[str, Mapping[str, object]] = {
        "patients": description.patients,
        "origin": description.origin,
        "annotated": description.annotated,
        "lesion_classes": description.lesion_classes,
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
