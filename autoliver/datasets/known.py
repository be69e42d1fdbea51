"""Datasets that a workspace knows: by name and content, wherever they and the workspace lie."""

import errno
import os
from collections.abc import Collection
from pathlib import Path

from autoliver.artifacts import disk_error
from autoliver.datasets.cases import Dataset, read_dataset
from autoliver.datasets.changes import describe_changes
from autoliver.datasets.contents import FileIndex, identify
from autoliver.errors import DatasetError

# What a file system answers to a name that it cannot hold.
_NOT_A_NAME = (errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ)


def make_folder(root: Path, dataset: Dataset, *, taken: Collection[str]) -> Path:
    """The folder of a dataset in a workspace; it is made where it is missing.

    Args:
        root: The workspace.
        dataset: The dataset.
        taken: Names of folders that the workspace uses itself, in lower case: also refused in
            upper case, as some file systems take both for one.

    Raises:
        DatasetError: The dataset's name cannot be that of a folder there, or the workspace lies
            where the dataset does.
        AutoliverError: The workspace cannot be written.
    """
    name, folder = dataset.name, root / dataset.name
    rename = f"Rename the folder {dataset.folder}."
    if name.casefold() in taken:
        raise DatasetError(
            f"{dataset.folder}: a dataset cannot be named {name}: the workspace keeps files of its "
            f"own in {root / name.casefold()}.",
            hint=rename,
        )
    if not name:
        raise DatasetError(
            f"{dataset.folder}: the folder has no name to know the dataset by.",
            hint="Put the dataset into a folder of its own.",
        )
    if folder.resolve() == Path(dataset.folder).resolve():
        raise DatasetError(
            f"{dataset.folder}: the workspace {root} would keep its files among the dataset's own.",
            hint="Choose another folder for the workspace (-w).",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _NOT_A_NAME:
            raise DatasetError(
                f"{dataset.folder}: {root} cannot hold a folder named {name!r}: {error.strerror}.",
                hint=rename,
            ) from error
        raise disk_error(folder, error) from error
    return folder


def settle(dataset: Dataset, root: Path, *, kept: Path, index: Path) -> Dataset:
    """The dataset with what its files hold; where it was planned, its place is remembered.

    Args:
        dataset: As `read_dataset` found it.
        root: The workspace.
        kept: The file that keeps the dataset as it was planned, if it was.
        index: The file that keeps the hashes of the dataset's files.

    Raises:
        DatasetError: Its name belongs to another dataset.
        AutoliverError: The workspace cannot be written.
    """
    dataset = _identified(dataset, root, index)
    if not kept.exists():
        return dataset
    known = Dataset.load(kept)
    if known.digest() == dataset.digest():
        if known != dataset:  # it was moved, or copied: this is its place now
            dataset.save(kept)
    # A folder that is gone may have been moved here, and changed since.
    elif Path(dataset.folder) not in _places(known, root) and Path(known.folder).is_dir():
        raise DatasetError(
            f"{dataset.folder}: the name {dataset.name} already belongs to {known.folder} in this "
            f"workspace, which holds something else: "
            f"{describe_changes(known, dataset, then='there')}.",
            hint="Rename the folder, or use another workspace (-w).",
        )
    return dataset


def read_planned(root: Path, kept: Path) -> Dataset:
    """Reads a planned dataset from where it lies now.

    Args:
        root: The workspace.
        kept: The file that keeps the dataset as it was planned.

    Raises:
        DatasetError: It is not where it was, nor where it would be had it been moved together with
            the workspace.
    """
    known = Dataset.load(kept)
    for place in _places(known, root):
        if place.is_dir():
            return read_dataset(place)
    raise DatasetError(
        f"{kept.parent.name}: its images were in {known.folder}, which is not there any more.",
        hint="Bring the folder back, or give its new place: autoliver plan PATH",
    )


def _identified(dataset: Dataset, root: Path, index: Path) -> Dataset:
    known = FileIndex.load(index, mend=f"rm {index}") if index.exists() else FileIndex()
    dataset, now = identify(dataset, known)
    if now != known:
        now.save(index)
    try:
        seen = Path(os.path.relpath(dataset.folder, root.absolute())).as_posix()
    except ValueError:  # on another drive
        seen = ""
    return dataset.replace(from_workspace=seen)


def _places(known: Dataset, root: Path) -> list[Path]:
    """Where a dataset may lie: as seen from the workspace, then where it was last seen.

    The first is right where both were moved or copied together.
    """
    places = [Path(known.folder)]
    if known.from_workspace:
        places.insert(0, Path(os.path.normpath(root.absolute() / known.from_workspace)))
    return places
