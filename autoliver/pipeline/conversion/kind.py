"""What a kind of published data says of its files: the row of the table of kinds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoliver.artifacts import Record


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
