"""Hashes the files of a dataset, each one only once unless it seems to have changed.

The hashes of a dataset's files are kept in an index, by path relative to the dataset's folder. A
file counts as unchanged if its size and its time of modification equal those in the index. An edit
that keeps the size and restores the old time is therefore not noticed; only reading every file in
every command could notice it.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
from tqdm import tqdm

from autoliver.artifacts import Artifact, Record, digest
from autoliver.datasets.cases import Case, Dataset, FileContent, name_inside
from autoliver.errors import MachineError
from autoliver.io.detached import data_files
from autoliver.parallel import bar_pace, cores
from autoliver.system import open_file

# Number of files that are read at the same time; more do not make a disk or a network faster.
_MOST_THREADS = 8
_BAR_AFTER_SECONDS = 2.0


class FileState(Record, frozen=True, kw_only=True):
    """The state of a file when it was hashed.

    Attributes:
        size: Size in bytes.
        mtime_ns: Time of the last modification, in nanoseconds.
        hash: Hash of the content, in hex digits; empty if the file could not be read.
    """

    size: int
    mtime_ns: int
    hash: str


class FileIndex(Artifact, frozen=True, kw_only=True):
    """The state of the files of a dataset when they were last hashed.

    Attributes:
        files: Path relative to the dataset's folder -> state.
    """

    KIND: ClassVar[str] = "files"

    files: dict[str, FileState] = msgspec.field(default_factory=dict)

    def hash_of(self, folder: Path, path: Path) -> str:
        """Returns the hash of a file of the dataset in a folder; empty if it is not known."""
        state = self.files.get(_place(folder, path))
        return "" if state is None else state.hash


def identify(
    dataset: Dataset, known: FileIndex, *, further: Iterable[Path] = ()
) -> tuple[Dataset, FileIndex]:
    """Fills in the hashes of a dataset's files; shows a bar if that takes long.

    Args:
        dataset: The dataset as returned by `read_dataset`.
        known: The index of files that were hashed before; unchanged ones are not hashed again.
        further: Files besides those of its cases that the index is to have.

    Returns:
        The dataset with the contents of its files, and the current index of the files.
    """
    folder = Path(dataset.folder)
    own = (path for case in dataset.cases for _, path in _files(case))
    files = {path: _place(folder, path) for path in (*own, *further)}
    now = {path: _state(path) for path in files}
    todo = [path for path, state in now.items() if not _same(state, known.files.get(files[path]))]
    found = {path: known.files[files[path]] for path in files if path not in set(todo)}
    for path, state in zip(todo, _hashes(todo, [now[path].size for path in todo]), strict=True):
        found[path] = state
    index = {place: found[path] for path, place in files.items() if found[path].hash}
    cases = tuple(_with_contents(case, folder, found) for case in dataset.cases)
    return dataset.replace(cases=cases), FileIndex(files=dict(sorted(index.items())))


def image_key(case: Case) -> str:
    """Returns what recognises a case by the content of its images, whatever its name and place.

    Args:
        case: A case whose contents `identify` has filled in.
    """
    return digest([content.hash for content in case.contents if content.kind == "image"])


def seen_cases(dataset: Dataset, keys: Iterable[str]) -> set[str]:
    """Returns the names of the cases whose `image_key` is among some.

    Args:
        dataset: A dataset whose contents `identify` has filled in.
        keys: The keys, e.g. those that a model's weights have seen.
    """
    known = set(keys)
    return {case.name for case in dataset.cases if image_key(case) in known}


def unread(dataset: Dataset) -> list[Path]:
    """Returns the files of a dataset that `identify` could not read."""
    return [
        path
        for case in dataset.cases
        for (_, path), content in zip(_files(case), case.contents, strict=True)
        if not content.hash
    ]


def _files(case: Case) -> Iterator[tuple[Literal["image", "label"], Path]]:
    """Yields all files of a case, with separate files of voxels that belong to a header."""
    for image in case.images:
        yield from (("image", path) for path in data_files(Path(image)))
    if case.label is not None:
        yield from (("label", path) for path in data_files(Path(case.label)))


def _with_contents(case: Case, folder: Path, found: dict[Path, FileState]) -> Case:
    contents = tuple(
        FileContent(
            kind=kind,
            name=name_inside(folder, path),
            size=found[path].size,
            hash=found[path].hash,
        )
        for kind, path in _files(case)
    )
    return case.replace(contents=contents, files=digest(contents))


def _place(folder: Path, path: Path) -> str:
    """Returns the path of a file in the index, relative to the dataset's folder."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return path.as_posix()


def _state(path: Path) -> FileState:
    """Returns the size and time of a file, without its hash; zeros if it cannot be accessed."""
    try:
        state = path.stat()
    except (OSError, MachineError):
        return FileState(size=0, mtime_ns=0, hash="")
    return FileState(size=state.st_size, mtime_ns=state.st_mtime_ns, hash="")


def _same(now: FileState, then: FileState | None) -> bool:
    return then is not None and (now.size, now.mtime_ns) == (then.size, then.mtime_ns)


def _hashes(paths: Sequence[Path], sizes: Iterable[int]) -> Iterator[FileState]:
    """Yields the state of each file with its hash, in order.

    Threads are used, since reading and hashing both release Python's global interpreter lock.
    """
    with (
        ThreadPoolExecutor(min(_MOST_THREADS, cores())) as pool,
        tqdm(
            desc="look at files",
            total=sum(sizes),
            unit="B",
            unit_scale=True,
            delay=_BAR_AFTER_SECONDS,
            disable=not paths,
            **bar_pace(),
        ) as bar,
    ):
        try:
            states = pool.map(file_state, paths)
        except RuntimeError:  # no thread can be started
            states = map(file_state, paths)
        for state in states:
            bar.update(state.size)
            yield state


def file_state(path: Path) -> FileState:
    """Returns a file's state with its hash; zeros if it cannot be read, which `verify` reports."""
    try:
        with open_file(path) as file:
            # Before the content is read, so that a file that is written meanwhile is hashed again
            # the next time.
            state = os.fstat(file.fileno())
            content = file_digest(file, lambda: blake2b(digest_size=20)).hexdigest()
            return FileState(size=state.st_size, mtime_ns=state.st_mtime_ns, hash=content)
    except (OSError, MachineError):
        return FileState(size=0, mtime_ns=0, hash="")
