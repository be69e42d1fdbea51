"""Headers in text (MetaImage, NRRD): their numbers are checked before ITK reads past them.

ITK 5.4 takes a MetaImage's NaN for 0 and an NRRD's for a missing number, in silence (measured).
"""

import math
import re
from pathlib import Path

from autoliver.errors import DatasetError
from autoliver.io.header import SEGMENTATION, bad_numbers, file_type, split_ending, unreadable
from autoliver.io.text_voxels import check_meta_voxels, check_nrrd_voxels
from autoliver.system import open_file
from autoliver.values import natural

_MOST_HEADER_BYTES = 1 << 24
_LENGTHS = ("ElementSpacing", "ElementSize")
_META = (
    *_LENGTHS,
    *("Offset", "Position", "Origin", "TransformMatrix", "Rotation", "Orientation"),
)
_NRRD = ("spacings", "space origin", "space directions")
_FINITE = "finite numbers"
_ABOVE_ZERO = "lengths other than zero, in mm"
# What an axis of NRRD may be called that is one of space, or may be.
_OF_SPACE = ("domain", "space", "???", "none")


def check_text_header(path: Path) -> None:
    """Checks the numbers of a header in text; files of other types pass.

    Raises:
        DatasetError: A number is not finite, or a spacing is zero; it names the field.
    """
    match file_type(path):
        case ".mha" | ".mhd":
            _check_meta(path)
        case ".nrrd" | ".nhdr":
            _check_nrrd(path)


def segment_values(path: Path) -> dict[str, int]:
    """Returns the names of a segmentation's segments with their values, as 3D Slicer writes them.

    Files of other types have none.
    """
    fields = _fields(path, ":=") if split_ending(path.name)[1].lower() == SEGMENTATION else {}
    found = {}
    for key, name in fields.items():
        segment = re.fullmatch(r"(segment\d+)_name", key)
        value = natural(fields.get(f"{segment[1]}_labelvalue", "")) if segment else None
        if value is not None:
            found[name] = value
    return found


def _check_meta(path: Path) -> None:
    fields = _fields(path, "=")
    if not fields:
        raise unreadable(path, "no known image format, or its header is damaged")
    for name in _META:
        values = _numbers(fields.get(name.casefold(), ""))
        if not all(map(math.isfinite, values)):
            raise _bad(path, name, fields[name.casefold()], _FINITE)
    # The size of a voxel counts where no spacing is given.
    name = next((name for name in _LENGTHS if name.casefold() in fields), "")
    if name and not all(_numbers(fields[name.casefold()])):
        raise _bad(path, name, fields[name.casefold()], _ABOVE_ZERO)
    check_meta_voxels(path, fields)


def _check_nrrd(path: Path) -> None:
    with open_file(path) as file:
        if file.read(4) != b"NRRD":
            raise unreadable(path, "no known image format, or its header is damaged")
    fields = _fields(path, ":")
    kinds = fields.get("kinds", "").split()
    for name in _NRRD:
        text = fields.get(name, "")
        vectors = re.findall(r"\(([^)]*)\)|(\S+)", text)
        for axis, (inside, word) in enumerate(vectors):
            if name != "space origin" and not _is_space(kinds, axis):
                continue
            values = _numbers(inside or word)
            if not all(map(math.isfinite, values)):
                raise _bad(path, name, text, _FINITE)
            if name != "space origin" and values and not any(values):
                raise _bad(path, name, text, _ABOVE_ZERO)
    check_nrrd_voxels(path, fields)


def _is_space(kinds: list[str], axis: int) -> bool:
    return axis >= len(kinds) or kinds[axis].casefold() in _OF_SPACE


def _bad(path: Path, name: str, text: str, expected: str) -> DatasetError:
    return bad_numbers(path, name, text, expected)


def _fields(path: Path, between: str) -> dict[str, str]:
    """Name in lower case -> value, of the lines before the voxels."""
    with open_file(path) as file:
        text = file.read(_MOST_HEADER_BYTES).decode("utf-8", "surrogateescape")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, found, value = line.partition(between)
        name = name.strip().casefold()
        if not line.strip():
            break
        if found:
            fields[name] = value.strip()
        if name in ("elementdatafile", "data file", "datafile"):
            break
    return fields


def _numbers(text: str) -> list[float]:
    """The numbers of a line; words such as NRRD's "none" are none."""
    values = []
    for word in re.split(r"[\s,]+", text.strip()):
        try:
            values.append(float(word))
        except ValueError:
            continue
    return values
