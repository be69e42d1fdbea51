"""The datasets of a workspace, recognised by name and content even if they were moved."""

import contextlib
import errno
import os
from collections.abc import Collection
from pathlib import Path

from autoliver.commands import command, remove
from autoliver.datasets.cases import Dataset, is_described, read_dataset, with_channel
from autoliver.datasets.changes import describe_changes
from autoliver.datasets.contents import FileIndex, identify, unread
from autoliver.datasets.pool import Pool, check_members, read_pool, refuse_members
from autoliver.errors import ArtifactError, AutoliverError, DatasetError
from autoliver.io.paths import check_path
from autoliver.system import system_error
from autoliver.values import counted, first_few

# errno values for names that a file system does not support.
_NOT_A_NAME = (errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ)
_SHOWN = 3  # cases named in one message


def workspace_inside(root: Path, dataset: str | Path) -> DatasetError:
    """Returns the error for a workspace inside the folder of a dataset."""
    return DatasetError(
        f"{root.absolute()}: the workspace is inside the folder of the dataset, {dataset}, which "
        "has to stay as it is.",
        hint="Choose a folder outside it with -w, or go to another folder first.",
    )


def make_folder(root: Path, dataset: Dataset, *, taken: Collection[str]) -> Path:
    """Returns the folder of a dataset in a workspace, and creates it if it is missing.

    Args:
        root: The workspace.
        dataset: The dataset.
        taken: Lower-case names of folders that the workspace itself uses. They are refused in any
            case, since some file systems do not distinguish case.

    Raises:
        DatasetError: No folder there can have the dataset's name, that folder is the dataset's
            own, or the workspace is inside the dataset's folder.
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
            f"{dataset.folder}: the folder has no name that the dataset could have.",
            hint="Put the dataset into a folder of its own.",
        )
    if folder.resolve() == Path(dataset.folder).resolve():
        raise DatasetError(
            f"{dataset.folder}: the workspace {root} would keep its files among the dataset's own.",
            hint="Choose another folder for the workspace (-w).",
        )
    if root.resolve().is_relative_to(Path(dataset.folder).resolve()):
        raise workspace_inside(root, dataset.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _NOT_A_NAME:
            raise DatasetError(
                f"{dataset.folder}: {root} cannot hold a folder named {name!r}: {error.strerror}.",
                hint=rename,
            ) from error
        raise system_error(error, folder, verb="written") or error from error
    return folder


def settle(dataset: Dataset, root: Path, *, kept: Path, index: Path) -> Dataset:
    """Fills in the contents of a dataset's files; if it was planned, its place is updated.

    Args:
        dataset: The dataset as returned by `read_dataset`.
        root: The workspace.
        kept: The file with the dataset as it was planned; it need not exist.
        index: The file with the hashes of the dataset's files; it is updated.

    Raises:
        DatasetError: The name belongs to another dataset of the workspace; a file is missing; or it
            is a pool with members whose files have changed.
        MachineError: The system refuses to read a file.
        AutoliverError: The workspace cannot be written.
    """
    dataset = _identified(dataset, root, index)
    if not kept.exists():
        return dataset
    known = Dataset.load(kept)
    if not is_described(dataset):  # then only the workspace knows what its images are
        dataset = with_channel(dataset, known.channel_names[0])
    if known.digest() != dataset.digest():
        # A file that cannot be read now may be the same as before.
        for path in unread(dataset):
            check_path(path)
    if known.digest() == dataset.digest():
        if known != dataset:  # it was moved or copied, and this is now its place
            dataset.save(kept)
    # If the known folder is gone, it may have been moved here and changed since.
    elif Path(dataset.folder) not in _places(known, root) and Path(known.folder).is_dir():
        raise DatasetError(
            f"{dataset.folder}: the name {dataset.name} already belongs to {known.folder} in this "
            f"workspace, which is a different dataset: "
            f"{describe_changes(known, dataset, then='there')}.",
            hint="Rename the folder, or use another workspace (-w).",
        )
    return dataset


def read_planned(root: Path, kept: Path) -> Dataset:
    """Reads a planned dataset from its current folder.

    Args:
        root: The workspace.
        kept: The file with the dataset as it was planned.

    Raises:
        DatasetError: The folder is neither at its old place nor where it would be if it had been
            moved together with the workspace.
    """
    known = Dataset.load(kept)
    for place in _places(known, root):
        if place.is_dir():
            return read_dataset(place)
    raise DatasetError(
        f"{kept.parent.name}: its images were in {known.folder}, which does not exist any more.",
        hint="Restore the folder, or give its new place: "
        + command("plan", "PATH", workspace=root),
    )


def is_there(root: Path, kept: Path) -> bool:
    """Whether the folder of a planned dataset still exists; arguments as for `read_planned`."""
    try:
        known = Dataset.load(kept)
    except ArtifactError:
        return False
    return any(place.is_dir() for place in _places(known, root))


def _identified(dataset: Dataset, root: Path, index: Path) -> Dataset:
    known = FileIndex.load(index, mend=remove(index)) if index.exists() else FileIndex()
    folder = Path(dataset.folder)
    pool = read_pool(folder)
    # Label maps of members that were written anew are no files of the dataset, but must stay.
    members = [] if pool is None else [Path(file.path) for _, file in pool.files]
    dataset, now = identify(dataset, known, further=members)
    if now != known:
        now.save(index)
    if pool is not None:
        _check_members(folder, pool, now)
    try:
        seen = Path(os.path.relpath(dataset.folder, root.absolute())).as_posix()
    except ValueError:  # on another drive
        seen = ""
    return dataset.replace(from_workspace=seen)


def _places(known: Dataset, root: Path) -> list[Path]:
    """Returns the possible folders of a dataset, in the order in which to try them.

    The first is its path relative to the workspace, which is right if both were moved or copied
    together; the second is its last known absolute path.
    """
    places = [Path(known.folder)]
    if known.from_workspace:
        places.insert(0, Path(os.path.normpath(root.absolute() / known.from_workspace)))
    return places


def added_to_members(dataset: Dataset) -> str:
    """Says which labelled cases the members of a pool have that it lacks; empty if none.

    Members that cannot be read are passed over.

    Args:
        dataset: Any dataset.

    Raises:
        ArtifactError: pool.json is damaged.
    """
    folder = Path(dataset.folder)
    pool = read_pool(folder)
    if pool is None:
        return ""
    known = {f"{case.member}/{case.case}" for case in pool.cases}
    known |= {dropped.partition(" = ")[0] for dropped in pool.dropped}
    new: list[str] = []
    for member, place in pool.members.items():
        with contextlib.suppress(AutoliverError):
            cases = (f"{member}/{case.name}" for case in read_dataset(place).labelled)
            new += [case for case in cases if case not in known]
    if not new:
        return ""
    return (
        f"{dataset.name} lacks {counted(len(new), 'labelled case')} that its members have by now "
        f"({first_few(new, _SHOWN)}). To have them as well: {pool.again(folder)}"
    )


def _check_members(folder: Path, pool: Pool, index: FileIndex) -> None:
    """Refuses a pool with members whose files are missing, or have changed since it was made.

    Args:
        folder: Its folder.
        pool: How it was made.
        index: The state of its files and of its members' now.

    Raises:
        DatasetError: There are such files; the error names the first one.
    """
    check_members(folder, pool)
    changed = [
        (case, file)
        for case, file in pool.files
        if index.hash_of(folder, Path(file.path)) != file.hash
    ]
    refuse_members(folder, pool, changed, "has changed")
