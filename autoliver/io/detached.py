"""Image formats with a separate header file: finds the files that hold the voxels."""

import re
from collections.abc import Sequence
from pathlib import Path

from autoliver.io.header import file_type, split_ending

# Text headers name the file of their voxels in a line, or list several files in the lines below it.
_DATA_LINE = re.compile(r"^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.*?)\s*$", re.I | re.M)
_MOST_HEADER_BYTES = 1 << 20


def data_files(path: Path) -> tuple[Path, ...]:
    """Returns an image file and, if it is only a header, the files that hold its voxels.

    Numbered slices that a header names by a pattern are not found.
    """
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


def _beside(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """The first of the files of these names that is there, in small letters or capitals."""
    exact = [path.with_name(name) for name in names]
    others = (p for p in path.parent.iterdir() if p.name.lower() in [n.lower() for n in names])
    return next(((file,) for file in (*exact, *sorted(others)) if file.is_file()), ())


def _names_in_header(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_HEADER_BYTES).decode("latin-1")
    except OSError:
        return []
    named = _DATA_LINE.search(text)
    if named is None:
        return []
    if named[1].upper().startswith("LIST"):
        return [line.strip() for line in text[named.end() :].splitlines()]
    return [named[1]]
