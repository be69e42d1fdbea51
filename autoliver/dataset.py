"""What the user hands in: cases, labels, channels, and where their files are."""

from typing import ClassVar, Literal

import msgspec

from autoliver.artifacts import Artifact, Record

Modality = Literal["CT", "MR", "other"]
Origin = Literal["real", "synthetic", "pseudo"]
Annotation = Literal["real", "pseudo", "absent", "none"]


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
    """

    name: str
    images: tuple[str, ...]
    label: str | None = None
    patient: str
    modality: Modality = "other"
    origin: Origin = "real"
    annotated: dict[str, Annotation] = msgspec.field(default_factory=dict)


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
        file_ending: Of the images, e.g. ".nii.gz"; predictions are written with it.
        cases: Sorted by name.
    """

    KIND: ClassVar[str] = "dataset"

    name: str
    folder: str
    layout: Literal["nnunet", "msd", "plain"] = "nnunet"
    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str = ".nii.gz"
    cases: tuple[Case, ...]

    @property
    def short_name(self) -> str:
        """The name without a leading "DatasetNNN_"."""
        head, _, tail = self.name.partition("_")
        return tail if head.startswith("Dataset") and head[7:].isdigit() and tail else self.name

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The cases that have a label: what can be trained on."""
        return tuple(case for case in self.cases if case.label is not None)
