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
        path: Path of the file.
        values: Value in the file -> value in the dataset; others are refused.
    """

    path: str
    values: dict[int, int]


class Found(Record, frozen=True, kw_only=True):
    """A case found in a source.

    Attributes:
        name: Its name in the dataset.
        images: Paths in channel order.
        layers: The files of its label map, each painted over those before it where it has a label;
            empty if there is no label map.
        patient: The patient; cases of one patient are never split between folds.
    """

    name: str
    images: tuple[str, ...]
    layers: tuple[Layer, ...]
    patient: str


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
    """

    title: str
    layout: str
    description: Mapping[str, Any]
    find: Finder
    raters: Mapping[int, Finder] = field(default_factory=dict)


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
