"""Packed bytes (gzip, zlib): unpacked no further than a header says, so that no bomb goes off."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from autoliver.io.header import unreadable
from autoliver.system import read_blocks

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


def unpacked_parts(path: Path, *, needed: int) -> Iterator[bytes]:
    """Unpacks a file part by part, so that it is never in memory as a whole.

    A file that is not packed is read part by part as it is, not much further than needed.

    Args:
        path: The file.
        needed: How many bytes its header tells of.

    Raises:
        DatasetError: It unpacks to far more.
        EOFError: It is cut short.
        zlib.error, gzip.BadGzipFile: It is damaged.
        MachineError: The system refuses to read it.
    """
    blocks = read_blocks(path, _BLOCK)
    rest = next(blocks, b"")
    size = 0
    if not is_packed(rest):
        while rest and size < needed + SURPLUS_BYTES:
            size += len(rest)
            yield rest
            rest = next(blocks, b"")
        return
    while rest:
        rest += next(blocks, b"") if len(rest) < len(_MAGIC) else b""
        if not is_packed(rest):
            raise gzip.BadGzipFile("something else follows the packed bytes")
        packer = zlib.decompressobj(16 + zlib.MAX_WBITS)
        while not packer.eof:
            part = packer.decompress(rest, _BLOCK)
            size += len(part)
            if size > needed + SURPLUS_BYTES:
                raise unreadable(path, f"it unpacks to more than the {needed} bytes of its header")
            yield part
            rest = packer.unconsumed_tail
            if not (rest or part or packer.eof):
                rest = next(blocks, b"")
                if not rest:
                    raise EOFError("the packed bytes end too early")
        rest = packer.unused_data.lstrip(b"\0")
        while not rest and (block := next(blocks, b"")):
            rest = block.lstrip(b"\0")


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
        for block in read_blocks(path, _BLOCK, start=start):
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
