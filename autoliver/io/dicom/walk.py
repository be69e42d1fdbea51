"""DICOM files in folders: any depth, any name, with other files between them."""

from collections.abc import Iterator
from pathlib import Path

from autoliver.errors import MachineError
from autoliver.io.header import split_ending
from autoliver.system import in_words

_PREAMBLE = 128
_MARK = b"DICM"
# How a file begins that was written without preamble: with group 0002 or 0008, little endian, and
# an element that such files begin with.
_BARE = tuple(
    bytes((group, 0, element, 0)) for group in (2, 8) for element in (0, 1, 5, 8, 0x16, 0x18)
)


def is_dicom(path: Path) -> bool:
    """Whether a path is a file that begins as DICOM files do; it is False for pipes and devices.

    Raises:
        MachineError: The system refuses to read it, and it does not have the name of another type
            of image, whose reader then says so.
    """
    try:
        with in_words(path, verb="read"):
            return path.is_file() and _begins_as_dicom(path)
    except MachineError:
        if split_ending(path.name)[1]:
            return False
        raise


def _begins_as_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_PREAMBLE + len(_MARK))
    return head[_PREAMBLE:] == _MARK or head.startswith(_BARE)


def dicom_files(folder: Path) -> Iterator[Path]:
    """Lists the DICOM files in a folder and in those below it, sorted folder by folder.

    Links to folders are followed, each folder once, so that links in circles do no harm. Hidden
    files and folders are left out.

    Raises:
        MachineError: The system refuses to list a folder or to read a file.
    """
    seen: set[tuple[int, int]] = set()
    todo = [folder]
    while todo:
        here = todo.pop(0)
        with in_words(here, verb="read"):
            state = here.stat()
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            paths = sorted(path for path in here.iterdir() if not path.name.startswith("."))
        for path in paths:
            if path.is_dir():
                todo.append(path)
            elif is_dicom(path):
                yield path


def holds_dicom(folder: Path) -> bool:
    """Whether there is a DICOM file in a folder or below it."""
    return folder.is_dir() and next(dicom_files(folder), None) is not None
