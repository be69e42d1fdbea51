"""The numbers of a NIfTI or Analyze header that say how many voxels follow, judged before reading.

nibabel and ITK take some headers that are damaged, and end in errors of their own with others.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from autoliver.errors import DatasetError
from autoliver.io.header import bad_numbers, file_type, numbers, unreadable
from autoliver.io.packed import BEST_RATIO, is_packed
from autoliver.system import open_file

HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 and Analyze have 348
_MOST_AXES = 7
_SINGLE, _PAIR = (b"n+1", b"n+2"), (b"ni1", b"ni2")
# Code of a type of voxels -> its bits.
_BITS = {
    **{2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32},
    **{1024: 64, 1280: 64, 1536: 128, 1792: 128, 2048: 256, 2304: 32},
}


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What a header says of its voxels.

    Attributes:
        dim: The number of axes and their sizes.
        datatype: The code of the type of a voxel.
        start: Where the voxels begin, in bytes.
        magic: Whether it is NIfTI, and where the voxels are; other bytes for Analyze.
        pixdim: The lengths of a voxel's edges, behind one number of another meaning.
    """

    dim: tuple[int, ...]
    datatype: int
    start: float
    magic: bytes
    pixdim: tuple[float, ...]


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file as they are unpacked; fewer or none if it is damaged.

    Raises:
        MachineError: It is no file.
    """
    try:
        with open_file(path) as file:
            head = file.read(HEADER_BYTES)
            if not is_packed(head):
                return head
            file.seek(0)
            with gzip.open(file) as packed:
                return packed.read(HEADER_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""


def check_nifti_header(path: Path) -> int:
    """Refuses a header whose voxels cannot be read.

    Args:
        path: A file whose ending is that of NIfTI or Analyze.

    Returns:
        How many bytes the voxels take, with what is before them in their file.

    Raises:
        DatasetError: A number is impossible, or the file is too short for the voxels.
    """
    said = _numbers(path, first_bytes(path))
    axes, sizes = said.dim[0], said.dim[1 : said.dim[0] + 1]
    if not 2 <= axes <= _MOST_AXES:
        raise bad_numbers(path, "dim[0]", str(axes), f"2 to {_MOST_AXES} axes")
    if min(sizes) < 1:
        found = ", ".join(map(str, sizes))
        raise bad_numbers(path, f"dim[1:{axes + 1}]", found, "sizes of 1 or more")
    if said.datatype not in _BITS:
        raise bad_numbers(path, "datatype", str(said.datatype), "the code of a type of NIfTI")
    _check_lengths(path, said, axes)
    alone = path.suffix.lower() != ".hdr"
    least = 0 if said.start == 0 or not alone else 348
    if not math.isfinite(said.start) or said.start < least:
        raise bad_numbers(path, "vox_offset", f"{said.start:g}", "a place behind the header")
    needed = int(said.start) + math.prod(sizes) * _BITS[said.datatype] // 8
    if alone:
        check_length(path, needed)
    return needed


def _check_lengths(path: Path, said: _Numbers, axes: int) -> None:
    """Refuses the spacing of Analyze, which has no other; that of NIfTI is weighed elsewhere."""
    lengths = said.pixdim[1 : min(3, axes) + 1]
    if said.magic not in (*_SINGLE, *_PAIR) and not all(map(_is_length, lengths)):
        field = f"pixdim[1:{len(lengths) + 1}]"
        raise bad_numbers(path, field, numbers(lengths), "lengths other than zero, in mm")


def _is_length(value: float) -> bool:
    return math.isfinite(value) and value != 0


def check_length(path: Path, needed: int) -> None:
    """Refuses a file that cannot hold as many bytes, packed or not.

    Raises:
        DatasetError: It is too short.
    """
    with open_file(path) as file:
        packed = is_packed(file.read(2))
    held = path.stat().st_size
    if held * (BEST_RATIO if packed else 1) < needed:
        raise unreadable(path, f"it has {held} bytes, too few for the {needed} of its header")


def _numbers(path: Path, head: bytes) -> _Numbers:
    order = next((o for o in "<>" if head[:4] in (struct.pack(o + "i", n) for n in (348, 540))), "")
    if not order:
        raise _not_nifti(path, head)
    if struct.unpack(order + "i", head[:4])[0] == 540:
        if len(head) < 540:
            raise unreadable(path, "its header is cut short")
        found = _Numbers(
            dim=struct.unpack_from(order + "8q", head, 16),
            datatype=struct.unpack_from(order + "h", head, 12)[0],
            start=struct.unpack_from(order + "q", head, 168)[0],
            magic=head[4:7],
            pixdim=struct.unpack_from(order + "8d", head, 104),
        )
    else:
        if len(head) < 348:
            raise unreadable(path, "its header is cut short")
        found = _Numbers(
            dim=struct.unpack_from(order + "8h", head, 40),
            datatype=struct.unpack_from(order + "h", head, 70)[0],
            start=struct.unpack_from(order + "f", head, 108)[0],
            magic=head[344:347],
            pixdim=struct.unpack_from(order + "8f", head, 76),
        )
    # A single file must say that it is NIfTI; a pair may be Analyze, which says nothing.
    if file_type(path) != ".hdr" and found.magic not in (*_SINGLE, *_PAIR):
        raise unreadable(path, f"no NIfTI file: its magic is {found.magic!r}")
    return found


def _not_nifti(path: Path, head: bytes) -> DatasetError:
    if len(head) < 4:
        return unreadable(path, "no known image format, or its header is damaged")
    values = "/".join(str(struct.unpack(order + "i", head[:4])[0]) for order in "<>")
    return unreadable(
        path,
        "no known image format, or its header is damaged: it begins with the number "
        f"{values} (little/big-endian), not with 348 or 540",
    )
