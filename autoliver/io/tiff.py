"""Directories of TIFF files, judged before libtiff follows them in a circle without end."""

import struct
from pathlib import Path
from typing import BinaryIO

from autoliver.io.header import unreadable
from autoliver.system import open_file

_MOST_DIRECTORIES = 1 << 16  # pages of one TIFF file
_WIDTH, _HEIGHT, _BITS, _PACKING = 256, 257, 258, 259
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 16: 8}  # types of TIFF values: bytes of one
_NOT_PACKED = 1


def check_tiff(path: Path) -> None:
    """Refuses a TIFF file that cannot hold what its header says, or whose pages go around.

    Raises:
        DatasetError: It is damaged.
    """
    with open_file(path) as file:
        head = file.read(16)
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            _check_tiff(path, file, head)


def _check_tiff(path: Path, file: BinaryIO, head: bytes) -> None:
    order, large = "<" if head[:2] == b"II" else ">", b"+" in head[2:4]
    if len(head) < (16 if large else 8):
        raise unreadable(path, "its header is cut short")
    place = struct.unpack_from(order + ("Q" if large else "I"), head, 8 if large else 4)[0]
    seen: set[int] = set()
    while place:
        if place in seen or len(seen) >= _MOST_DIRECTORIES:
            raise unreadable(path, "its directories of pages lead in a circle")
        seen.add(place)
        found = _directory(file, place, order, large=large)
        if found is None:
            raise unreadable(path, "a directory of its pages lies beyond its end")
        tags, place = found
        _check_page(path, tags)


def _check_page(path: Path, tags: dict[int, int]) -> None:
    """Refuses a page whose pixels are not packed and are more than the file is long."""
    if tags.get(_PACKING, _NOT_PACKED) != _NOT_PACKED:
        return
    bits = tags.get(_WIDTH, 0) * tags.get(_HEIGHT, 0) * max(1, tags.get(_BITS, 1))
    held = path.stat().st_size
    if bits // 8 > held:
        size = f"{tags.get(_WIDTH, 0)} x {tags.get(_HEIGHT, 0)}"
        raise unreadable(path, f"it has {held} bytes, its header says {size} pixels")


def _directory(
    file: BinaryIO, place: int, order: str, *, large: bool
) -> tuple[dict[int, int], int] | None:
    """The numbers of one directory that stand in it, and where the next is; None if cut short."""
    count_form, entry, offset = ("Q", 20, "Q") if large else ("H", 12, "I")
    file.seek(0, 2)
    if place >= file.tell():
        return None
    file.seek(place)
    start = file.read(struct.calcsize(count_form))
    if len(start) < struct.calcsize(count_form):
        return None
    count = struct.unpack(order + count_form, start)[0]
    if count > _MOST_DIRECTORIES:
        return None
    body = file.read(count * entry + struct.calcsize(offset))
    if len(body) < count * entry + struct.calcsize(offset):
        return None
    tags = {}
    for at in range(0, count * entry, entry):
        tag, kind = struct.unpack_from(order + "2H", body, at)
        number = struct.unpack_from(order + offset, body, at + 4)[0]
        form = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        held = _SIZES.get(kind, 0) * number
        if form and 0 < held <= struct.calcsize(offset):
            tags[tag] = struct.unpack_from(order + form, body, at + 4 + struct.calcsize(offset))[0]
    return tags, struct.unpack_from(order + offset, body, count * entry)[0]
