"""What headers in text (MetaImage, NRRD) say of their voxels, judged before ITK reads them.

ITK 5.4 dies of some numbers of axes and file names, waits for pipes, and takes voxels that are
missing or cannot be unpacked for zeros, in silence (measured).
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from autoliver.errors import DatasetError
from autoliver.io.header import bad_numbers, file_type, unreadable
from autoliver.io.packed import BEST_RATIO, packed_fault
from autoliver.io.paths import check_path, check_printable
from autoliver.system import open_file

Fields = Mapping[str, str]
# How voxels are stored: as they are, packed with gzip or zlib, or in ways that only ITK reads.
_Stored = Literal["raw", "packed", "otherwise"]

_LOCAL = "LOCAL"
_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR", "MET_ASCII_CHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT", "MET_LONG", "MET_ULONG"), 4),
    **dict.fromkeys(("MET_DOUBLE", "MET_LONG_LONG", "MET_ULONG_LONG"), 8),
}
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8"), 1),
    **dict.fromkeys(("uint8_t",), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16"), 2),
    **dict.fromkeys(("int16_t", "ushort", "unsigned short", "unsigned short int"), 2),
    **dict.fromkeys(("uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int"), 4),
    **dict.fromkeys(("uint32", "uint32_t", "float"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long"), 8),
    **dict.fromkeys(("signed long long int", "int64", "int64_t", "ulonglong"), 8),
    **dict.fromkeys(("unsigned long long", "unsigned long long int", "uint64"), 8),
    **dict.fromkeys(("uint64_t", "double"), 8),
}
_GZIP = ("gz", "gzip")
_ENCODINGS = ("raw", "txt", "text", "ascii", "hex", "bz2", "bzip2", *_GZIP)
_MOST_NAME = 255  # bytes that most disks take
_MOST_FILES = 1 << 16
_HEADER_BYTES = 1 << 24
# A pattern of file names with its first and last number and their step.
_PATTERN = re.compile(
    r"([^%]*)%0?(\d{0,2})d([^%]*?)\s+(-?\d{1,9})\s+(-?\d{1,9})\s+(-?\d{1,9})(?:\s+\d+)?"
)


def check_meta_voxels(path: Path, fields: Fields) -> None:
    """Refuses a MetaImage whose voxels cannot be read.

    Args:
        path: The file.
        fields: Name in small letters -> value.

    Raises:
        DatasetError: A number is impossible, or a file of voxels is missing, too short or damaged.
    """
    axes = _whole(path, fields, "NDims", 2, 4)
    sizes = _sizes(path, fields, "DimSize", axes)
    kind = fields.get("elementtype", "").upper().removesuffix("_ARRAY")
    if kind not in _META_BYTES:
        raise bad_numbers(path, "ElementType", kind or "missing", "a type such as MET_SHORT")
    channels = max(1, _whole(path, fields, "ElementNumberOfChannels", 0, 1 << 16, default=1))
    skip = _whole(path, fields, "HeaderSize", -1, 1 << 62, default=0)
    needed = math.prod(sizes) * channels * _META_BYTES[kind]
    data = fields.get("elementdatafile", "")
    if not data:
        raise bad_numbers(path, "ElementDataFile", "missing", "LOCAL or the name of a file")
    local = data.upper() == _LOCAL
    files = [] if local else _data_files(path, data, "ElementDataFile", sizes[-1])
    how: _Stored = "raw"
    if fields.get("compresseddata", "").casefold() in ("true", "1"):
        how = "packed"
    elif fields.get("binarydata", "true").casefold() in ("false", "0"):
        how = "otherwise"
    if local:
        start = _end_of(path, rb"^\s*ElementDataFile\s*=[^\n]*\n")
        _check_bytes(path, path, start, needed, how)
    elif len(files) == 1:
        _check_bytes(path, files[0], max(0, skip), needed, how)
    else:
        for file in files:
            _check_bytes(path, file, max(0, skip), needed // len(files), how)


def check_nrrd_voxels(path: Path, fields: Fields) -> None:
    """Refuses an NRRD file whose voxels cannot be read; arguments and errors as for MetaImage."""
    axes = _whole(path, fields, "dimension", 2, 5)
    sizes = _sizes(path, fields, "sizes", axes)
    kind = fields.get("type", "").casefold()
    if kind not in _NRRD_BYTES:
        raise bad_numbers(path, "type", kind or "missing", "a type of numbers such as short")
    encoding = fields.get("encoding", "").casefold()
    if encoding not in _ENCODINGS:
        raise bad_numbers(path, "encoding", encoding or "missing", ", ".join(_ENCODINGS))
    skips = [_whole(path, fields, name, -1, 1 << 62, default=0) for name in _skips(fields)]
    needed = math.prod(sizes) * _NRRD_BYTES[kind]
    data = fields.get("data file", fields.get("datafile", ""))
    how: _Stored = "packed" if encoding in _GZIP else "raw" if encoding == "raw" else "otherwise"
    if any(skips):  # of the unpacked bytes, or lines: only ITK counts them
        how = "otherwise"
    if not data:
        if file_type(path) == ".nhdr":
            raise bad_numbers(path, "data file", "missing", "the name of a file")
        _check_bytes(path, path, _end_of(path, rb"\n\r?\n"), needed, how)
        return
    files = _data_files(path, data, "data file", sizes[-1])
    for file in files:
        _check_bytes(path, file, 0, needed // len(files), how)


def _skips(fields: Fields) -> list[str]:
    names = ("byte skip", "byteskip", "line skip", "lineskip")
    return [name for name in names if name in fields]


def _check_bytes(path: Path, file: Path, start: int, needed: int, how: _Stored) -> None:
    """Refuses a file whose bytes from a place on are too few for the voxels of a header."""
    held = file.stat().st_size - start
    where = "its voxels" if file == path else f"its voxels in {file.name}"
    if how == "packed" and held * BEST_RATIO >= needed:
        problem = packed_fault(file, start, needed=needed)
        if problem:
            raise unreadable(path, f"{where} {problem}")
    elif how == "packed" or (how == "raw" and held < needed):
        raise unreadable(path, f"{where} have {held} bytes, too few for the {needed} needed")


def _data_files(path: Path, data: str, field: str, slices: int) -> list[Path]:
    """The files with the voxels, each of which is there and regular."""
    listed = re.fullmatch(r"LIST(\s+\d+)?", data, re.IGNORECASE)
    pattern = _PATTERN.fullmatch(data)
    if listed:
        names = _listed(path)
        if not names:
            raise bad_numbers(path, field, f"{data}, and no names", "the names of files")
    elif pattern:
        before, width, after = pattern[1], pattern[2], pattern[3]
        first, last, step = (int(pattern[at]) for at in (4, 5, 6))
        count = (last - first) // step + 1 if step else 0
        if not 1 <= count <= _MOST_FILES:
            raise bad_numbers(path, field, data, "a pattern of numbered files")
        fill = f"0{width}" if width and re.search(r"%0", data) else width
        names = [f"{before}{n:{fill}d}{after}" for n in range(first, first + count * step, step)]
    elif "%" in data:
        raise bad_numbers(path, field, data, "a pattern such as slice%03d.raw 1 40 1")
    else:
        names = [data]
    if len(names) > 1 and slices % len(names):
        raise unreadable(path, f"{field} names {len(names)} files, its header says {slices} slices")
    return [_file(path, field, name) for name in names]


def _file(path: Path, field: str, name: str) -> Path:
    check_printable(name)
    if len(Path(name).name.encode()) > _MOST_NAME:
        raise bad_numbers(path, field, f"a name of {len(name)} letters", "the name of a file")
    file = path.parent / name
    if file.exists() and path.samefile(file):
        raise bad_numbers(path, field, "the header's own file", "LOCAL or another file")
    problem = ""
    try:
        check_path(file)
    except DatasetError as error:
        problem = error.problem
    if problem:  # not as an error of the system, which `check_path` has told in words
        raise unreadable(path, f"the file with its voxels cannot be used ({problem})")
    return file


def _listed(path: Path) -> list[str]:
    text = _head(path).decode("utf-8", "surrogateescape")
    lines = re.split(r"(?im)^\s*(?:ElementDataFile\s*=|data ?file:).*$", text, maxsplit=1)[-1]
    return [line.strip() for line in lines.splitlines() if line.strip()]


def _end_of(path: Path, mark: bytes) -> int:
    """Where the voxels begin: behind what ends the header."""
    found = re.search(mark, _head(path), re.IGNORECASE | re.MULTILINE)
    if found is None:
        raise unreadable(path, "its header has no end")
    return found.end()


def _head(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(_HEADER_BYTES)


def _whole(
    path: Path, fields: Fields, name: str, low: int, high: int, default: int | None = None
) -> int:
    """A field that is one whole number within bounds; it must be there if it has no default."""
    text = fields.get(name.casefold())
    if text is None and default is not None:
        return default
    value = _number(text or "")
    if value is None or not low <= value <= high:
        raise bad_numbers(path, name, text or "missing", f"a whole number from {low} to {high}")
    return value


def _sizes(path: Path, fields: Fields, name: str, axes: int) -> Sequence[int]:
    text = fields.get(name.casefold(), "")
    values = [_number(word) for word in text.split()]
    whole = [value for value in values if value is not None and value > 0]
    if len(whole) != len(values) or len(whole) != axes:
        raise bad_numbers(path, name, text or "missing", f"{axes} whole numbers above 0")
    return whole


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text.strip()) else None
