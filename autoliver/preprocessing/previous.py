"""What a cascade's first stage found in the training cases, on the cascade's grid.

Kept beside the runs it belongs to, not in the store, which other trainings read as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoliver.artifacts import write_bytes
from autoliver.io.files import read_label
from autoliver.preprocessing.case import forward_labels
from autoliver.preprocessing.store import StoredCase, compress, open_array, read_case


@dataclass(frozen=True, kw_only=True)
class PreviousTask:
    """A label map of the first stage, the case it belongs to, and where the result goes."""

    name: str
    found: Path
    store: Path
    folder: Path
    patch_shape: Sequence[int]


def prepare_previous(task: PreviousTask) -> str:
    """Brings a first stage's label map to the cascade's grid.

    Returns:
        The case's name.

    Raises:
        DatasetError: The label map cannot be read.
        AutoliverError: The disk is full.
    """
    case = read_case(task.store, task.name)
    label = forward_labels(read_label(task.found).array[0], case.properties)
    write_bytes(_file(task.folder, task.name), compress(label, task.patch_shape))
    return task.name


def is_prepared(folder: Path, name: str) -> bool:
    """Whether a case is there; files are written whole or not at all."""
    return _file(folder, name).exists()


def with_previous(case: StoredCase, folder: Path) -> StoredCase:
    """A stored case together with what the first stage found in it."""
    return replace(case, previous=open_array(_file(folder, case.name)))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.b2nd"
