"""What a kind of published data says of its files: the row of the table of kinds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoliver.artifacts import Record
from autoliver.system import entries


class Found(Record, frozen=True, kw_only=True):
    """A case found in a source.

    Attributes:
        name: Its name in the dataset.
        images: Paths in channel order.
        label: Path of the label map; None if there is none.
        patient: The patient; cases of one patient are never split between folds.
        values: Value in the label map -> value in the dataset; others are refused.
    """

    name: str
    images: tuple[str, ...]
    label: str | None
    patient: str
    values: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of published data.

    Attributes:
        title: What it is called, for messages.
        layout: A path of an image below the source, for messages.
        description: The keys of dataset.json that do not depend on the cases.
        find: Finds the cases of a source; empty if it holds none. It raises a `DatasetError` that
            names a case of which an image is missing.
    """

    title: str
    layout: str
    description: Mapping[str, Any]
    find: Callable[[Path], Iterator[Found]]


def folders_in(source: Path) -> list[Path]:
    """Lists the folders of a source in which cases are looked for: those in it, and those in them.

    Releases differ in whether their cases are divided among folders, such as HGG and LGG.
    """
    outer = _folders(source)
    return [*outer, *(inner for each in outer for inner in _folders(each))]


def passed_over(source: Path, cases: Iterable[Found]) -> list[Path]:
    """Lists the folders of a source without any case; of a folder in such a one, that one alone."""
    holding = {folder for case in cases for folder in Path(case.images[0]).parents}
    return [
        folder
        for folder in folders_in(source)
        if folder not in holding and folder.parent in (source, *holding)
    ]


def _folders(folder: Path) -> list[Path]:
    return [each for each in entries(folder) if each.is_dir() and not each.name.startswith(".")]
