"""Stores the label maps that a cascade's first stage predicted, on the cascade's grid.

They are kept beside the runs they belong to, not in the store, which other trainings read as well.
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
    """One case whose first-stage label map is brought to the cascade's grid.

    Attributes:
        name: The case's name.
        found: The label file that the first stage predicted.
        store: The store with the preprocessed case.
        folder: The folder that the result is written to.
        patch_shape: 2 or 3 values: the patch read at a time; sets the size of the blocks on disk.
    """

    name: str
    found: Path
    store: Path
    folder: Path
    patch_shape: Sequence[int]


def prepare_previous(task: PreviousTask) -> str:
    """Resamples a first-stage label map to the cascade's grid and writes it.

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
    """Whether a case's file exists; it is then complete, since files are written atomically."""
    return _file(folder, name).exists()


def with_previous(case: StoredCase, folder: Path) -> StoredCase:
    """Returns a stored case together with its first-stage label map."""
    return replace(case, previous=open_array(_file(folder, case.name)))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.b2nd"
