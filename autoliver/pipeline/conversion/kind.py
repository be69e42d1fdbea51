"""What a kind of published data says of its files: the row of the table of kinds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from autoliver.artifacts import Record
from autoliver.errors import DatasetError
from autoliver.system import entries

Finder: TypeAlias = "Callable[[Path], Iterator[Found]]"


class Layer(Record, frozen=True, kw_only=True):
    """A file with labels of a case.

    Attributes:
        path: Path of the file; or a folder of slices, PNG or DICOM, that belong to those of the
            image one by one.
        values: Value in the file -> value in the dataset; others are refused.
    """

    path: str
    values: dict[int, int]


class Found(Record, frozen=True, kw_only=True):
    """A case found in a source.

    Attributes:
        name: Its name in the dataset.
        images: Paths in channel order; a folder is a DICOM series.
        layers: The files of its label map, each painted over those before it where it has a label;
            empty if there is no label map.
        patient: The patient; cases of one patient are never split between folds.
        modality: CT or MR, where the data hold both; empty if the channels say it.
    """

    name: str
    images: tuple[str, ...]
    layers: tuple[Layer, ...]
    patient: str
    modality: str = ""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of published data.

    Attributes:
        title: What it is called, for messages.
        layout: A path of an image below the source, for messages.
        description: The keys of dataset.json that do not depend on the cases.
        find: Finds the cases of a source; empty if it holds none. It raises a `DatasetError` that
            names a case of which an image is missing.
        raters: Number of a rater -> what finds the cases with that one's label maps, where the data
            have several; the first one's are those of `find`.
        parts: Name -> a part of the data that is a dataset of its own. If only one of them is
            there, it is taken. All of them are one dataset where there is a `description`.
        describe: Reads of the source what `description` does not say; None for nothing.
        by_voxel: Whether label maps belong to their images voxel by voxel although the headers of
            some say otherwise. Whether they do is checked by the intensities.
        note: A sentence about such data for whoever converts them; empty for none.
    """

    title: str
    layout: str
    description: Mapping[str, Any]
    find: Finder
    raters: Mapping[int, Finder] = field(default_factory=dict)
    parts: "Mapping[str, Kind]" = field(default_factory=dict)
    describe: Callable[[Path], Mapping[str, Any]] | None = None
    by_voxel: bool = False
    note: str = ""


def mask(path: Path, value: int) -> Layer:
    """Returns the layer of a file that holds one label, as 1 or as 255.

    Args:
        path: The file.
        value: Value of the label in the dataset.
    """
    return Layer(path=str(path), values={0: 0, 1: value, 255: value})


def without_image(case: str, label: Path, wanted: str) -> DatasetError:
    """Returns the error for a label map without an image.

    Args:
        case: The case.
        label: The label map.
        wanted: Name of the image that belongs to it.
    """
    return DatasetError(
        f"{case}: {label} is a label map without an image.", hint=f"Add the image {wanted}."
    )


def there_twice(files: dict[str, Path], case: str, path: Path) -> None:
    """Adds a file of a case to those found.

    Raises:
        DatasetError: There is one of this case already.
    """
    if case in files:
        raise DatasetError(
            f"{case}: it is there twice: {files[case]} and {path}.",
            hint="Move one of them out of the folder.",
        )
    files[case] = path


def folders_in(source: Path, *, depth: int = 2) -> list[Path]:
    """Lists the folders of a source in which cases are looked for: those in it, and those in them.

    Releases differ in whether their cases are divided among folders, such as HGG and LGG.

    Args:
        source: The source.
        depth: How many levels of folders below it are listed.
    """
    outer = _folders(source) if depth else []
    return [*outer, *(each for one in outer for each in folders_in(one, depth=depth - 1))]


def passed_over(source: Path, cases: Iterable[Found]) -> list[Path]:
    """Lists the folders of a source without any case; of a folder in such a one, that one alone."""
    files = {path for c in cases for path in (*c.images, *(layer.path for layer in c.layers))}
    holding = {folder for path in files for folder in Path(path).parents}
    return [
        folder
        for folder in folders_in(source)
        if folder not in holding and folder.parent in (source, *holding)
    ]


def _folders(folder: Path) -> list[Path]:
    return [each for each in entries(folder) if each.is_dir() and not each.name.startswith(".")]
