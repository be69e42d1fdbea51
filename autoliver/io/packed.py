"""Packed bytes (gzip, zlib): unpacked no further than a header says, so that no bomb goes off."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from autoliver.io.header import unreadable
from autoliver.system import open_file

# What deflate packs a byte into at the best: 258 bytes in 2 bits.
BEST_RATIO = 1032
_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 20
# What may follow the voxels of a file that is in use, such as padding.
SURPLUS_BYTES = 1 << 24
_ANY_HEAD = 32 + zlib.MAX_WBITS  # zlib or gzip


def is_packed(content: bytes) -> bool:
    """Whether bytes begin as those of gzip."""
    return content[:2] == _MAGIC


def unpacked(path: Path, content: bytes, *, needed: int) -> bytes:
    """Unpacks the bytes of a file; those that are not packed are returned as they are.

    Args:
        path: The file, for the message.
        content: All of its bytes.
        needed: How many bytes its header tells of.

    Raises:
        DatasetError: It unpacks to far more.
        EOFError: It is cut short.
        zlib.error, gzip.BadGzipFile: It is damaged.
    """
    if not is_packed(content):
        return content
    most = needed + SURPLUS_BYTES
    parts, size = [], 0
    while content:
        if not is_packed(content):
            raise gzip.BadGzipFile("something else follows the packed bytes")
        packer = zlib.decompressobj(16 + zlib.MAX_WBITS)
        parts.append(packer.decompress(content, most - size + 1))
        size += len(parts[-1])
        if size > most:
            raise unreadable(path, f"it unpacks to more than the {needed} bytes of its header")
        if not packer.eof:
            raise EOFError("the packed bytes end too early")
        content = packer.unused_data.lstrip(b"\0")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def packed_fault(path: Path, start: int, *, needed: int) -> str:
    """Unpacks what a file holds from a place on, block by block, and compares the length.

    ITK takes voxels that cannot be unpacked for zeros, in silence.

    Args:
        path: The file.
        start: Where its packed bytes begin.
        needed: How many bytes they should unpack to.

    Returns:
        What is wrong with them: damaged, cut short, or of another length; empty if nothing is.
    """
    packer, size = zlib.decompressobj(_ANY_HEAD), 0
    try:
        for block in _blocks(path, start):
            rest = block
            while rest and not packer.eof:
                size += len(packer.decompress(rest, _BLOCK))
                rest = packer.unconsumed_tail
                if size > needed + SURPLUS_BYTES:
                    return f"unpack to more than the {needed} bytes needed"
            if packer.eof:
                break
        size += 0 if packer.eof else len(packer.flush())
    except zlib.error as error:
        return f"are damaged ({error})"
    if size < needed:
        return f"unpack to {size} bytes, too few for the {needed} needed"
    return "" if packer.eof else "are cut short"


def _blocks(path: Path, start: int) -> Iterator[bytes]:
    with open_file(path) as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            yield block
