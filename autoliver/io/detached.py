"""Images of several files, such as a header and its voxels: finds the files that hold them."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoliver.errors import MachineError
from autoliver.io.dicom.walk import dicom_files
from autoliver.io.header import file_type, split_ending
from autoliver.system import open_file

# Text headers name the file of their voxels in a line, or list several files in the lines below it.
_DATA_LINE = re.compile(r"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.*?)\s*$", re.I | re.M)
_MOST_HEADER_BYTES = 1 << 20


def data_files(path: Path) -> tuple[Path, ...]:
    """Returns an image file and, if it is only a header, the files that hold its voxels.

    Of a folder with a DICOM series, these are its DICOM files. Numbered slices that a header names
    by a pattern are not found.
    """
    if path.is_dir():
        return tuple(dicom_files(path))
    stem = split_ending(path.name)[0]
    match file_type(path):
        case ".hdr":
            return (path, *_beside(path, [f"{stem}.img", f"{stem}.img.gz"]))
        case ".mhd" | ".nhdr":
            names = _names_in_header(path)
        case _:
            return (path,)
    found = (path.parent / name for name in names if name)
    return (path, *(file for file in found if file.is_file()))


def file_states(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Returns name, size and time of the last change (ns) of all `data_files` of image files."""
    files = [file for path in paths for file in data_files(path)]
    states = [(file.name, file.stat()) for file in files]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def can_be_copied(path: Path) -> bool:
    """Whether an image file stays whole in another folder, with `data_files` beside it.

    Headers that name files by a path or by a pattern, or that name an image, cannot be copied byte
    by byte; nor can folders.
    """
    if path.is_dir():
        return False
    if file_type(path) not in (".mhd", ".nhdr"):
        return True
    names = _names_in_header(path)
    if not names or names[0].upper() == "LOCAL":  # the voxels are in the header's own file
        return True
    return all(
        os.path.normpath(name) == Path(name).name
        and (path.parent / name).is_file()
        and not split_ending(name)[1]
        for name in names
        if name
    )


def _beside(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The first of the files of these names that is there, in small letters or capitals."""
    for name in names:
        if path.with_name(name).is_file():
            return (path.with_name(name),)
    small = [name.lower() for name in names]
    others = sorted(file for file in path.parent.iterdir() if file.name.lower() in small)
    return next(((file,) for file in others if file.is_file()), ())


def _names_in_header(path: Path) -> list[str]:
    try:
        with open_file(path) as file:
            text = file.read(_MOST_HEADER_BYTES).decode("latin-1")
    except (OSError, MachineError):  # whoever reads the image says what is wrong with it
        return []
    named = _DATA_LINE.search(text)
    if named is None:
        return []
    if named[1].upper().startswith("LIST"):
        return [line.strip() for line in text[named.end() :].splitlines()]
    return [named[1]]
