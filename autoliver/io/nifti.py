"""Reads NIfTI files where ITK does not suffice: damaged voxels and sheared headers.

ITK 5.4 reads a truncated or damaged .nii/.nii.gz file without an error and fills the missing voxels
with arbitrary values (measured). The voxels are therefore read from the decompressed bytes, whose
length and checksum are checked. ITK also refuses an affine that is not orthonormal, unless the file
has a qform to use instead.
"""

import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.io.detached import data_files
from autoliver.io.grids import geometry_from_xyz, orthonormal
from autoliver.io.header import Header, file_type, unreadable
from autoliver.io.nifti_header import check_length, check_nifti_header
from autoliver.io.packed import unpacked_parts

Array = npt.NDArray[Any]

# Voxels that are read at a time.
_PART_VOXELS = 1 << 20
# The longest header, that of NIfTI-2, and whether extensions follow.
_HEADERS_BYTES = 544

_MM = {"meter": 1000.0, "micron": 0.001}


def read_sheared_header(path: Path) -> Header:
    """Reads the header of a NIfTI file whose affine ITK refuses as not orthonormal."""
    nibabel = _nibabel()
    image = nibabel.load(path)
    unit = _MM.get(image.header.get_xyzt_units()[0], 1.0)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine  # RAS+ -> LPS+
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and spacing.all()):
        raise unreadable(path, f"its affine is not valid: {image.affine.tolist()}")
    direction, note = orthonormal(affine[:3, :3] / spacing)
    size = (*image.shape, 1, 1)[: max(4, image.ndim)]
    scaled = not (image.dataobj.slope == 1 and image.dataobj.inter == 0)
    return Header(
        geometry=geometry_from_xyz(size, spacing * unit, affine[:3, 3] * unit, direction),
        channels=int(np.prod(size[3:])),
        pixel_type=str(image.get_data_dtype()),
        integer=image.get_data_dtype().kind in "iu" and not scaled,
        note=note,
    )


def read_voxels(path: Path) -> Array:
    """Returns the voxels of a file, (n,); see `read_parts`."""
    whole: Array | None = None
    at = 0
    for total, part in _parts(path):
        if whole is None:
            whole = np.empty(total, dtype=part.dtype)
        whole[at : at + part.size] = part
        at += part.size
    if whole is None:
        raise ValueError(f"{path} has no voxels")
    return whole


def read_parts(path: Path) -> Iterator[Array]:
    """Reads the voxels of a .nii or .nii.gz file, or of a pair of .hdr and .img files.

    Yields:
        Some voxels (n,) in the file's data type. Their order in all parts together is that of a
        (c, z, y, x) array.

    Raises:
        DatasetError: A file is cut short, its checksum is wrong, or a header's voxels are missing.
    """
    for _, part in _parts(path):
        yield part


def _parts(path: Path) -> Iterator[tuple[int, Array]]:
    """Yields the number of all voxels and some of them."""
    files = data_files(path)
    if file_type(path) == ".hdr" and len(files) < 2:
        raise unreadable(path, "the .img file with its voxels is not beside it")
    needed = check_nifti_header(path)
    if len(files) > 1:
        check_length(files[1], needed)
    try:
        yield from _scaled_parts(files, needed)
    except (EOFError, zlib.error, OSError, ValueError, OverflowError) as error:
        what = str(error).partition("\n")[0].rstrip(".")
        raise unreadable(files[-1], f"it is damaged or cut short ({what})") from None


def _scaled_parts(files: Sequence[Path], needed: int) -> Iterator[tuple[int, Array]]:
    stream = _Stream(unpacked_parts(files[-1], needed=needed))
    if len(files) == 1:
        image = _opened(_bare(stream.peek(_HEADERS_BYTES)))
    else:
        image = _opened(_bare(b"".join(unpacked_parts(files[0], needed=needed))), b"")
    proxy = image.dataobj
    stream.skip(proxy.offset)
    total = math.prod(proxy.shape)
    for at in range(0, total, _PART_VOXELS):
        number = min(_PART_VOXELS, total - at)
        content = stream.read(number * proxy.dtype.itemsize)
        # nibabel scales every part as it would the whole.
        form = ((number,), proxy.dtype, 0, proxy.slope, proxy.inter)
        yield total, np.asanyarray(type(proxy)(io.BytesIO(content), form))
    stream.drain()


class _Stream:
    """The bytes of a file, read forward.

    Args:
        parts: They, part by part.
    """

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._held = b""

    def peek(self, number: int) -> bytes:
        """Returns the next bytes, which stay; fewer at the end."""
        held = [self._held]
        size = len(self._held)
        while size < number and (part := next(self._parts, None)) is not None:
            held.append(part)
            size += len(part)
        self._held = b"".join(held)
        return self._held[:number]

    def read(self, number: int) -> bytes:
        """Returns the next bytes.

        Raises:
            EOFError: There are fewer.
        """
        found = self.peek(number)
        if len(found) < number:
            raise EOFError(f"expected {number} bytes, found {len(found)}")
        self._held = self._held[number:]
        return found

    def skip(self, number: int) -> None:
        """Leaves the next bytes out."""
        while number > 0:
            step = min(number, _PART_VOXELS)
            self.read(step)
            number -= step

    def drain(self) -> None:
        """Reads to the end, since a checksum comes last."""
        for _ in self._parts:
            pass


def _opened(header: bytes, voxels: bytes | None = None) -> Any:
    """Opens the bytes of one file, or those of a header and of its voxels, with nibabel."""
    nibabel = _nibabel()
    second = header[4:7] in (b"n+2", b"ni2")
    if voxels is None:
        return (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(header)
    files = {
        name: nibabel.FileHolder(fileobj=io.BytesIO(content))
        for name, content in {"header": header, "image": voxels}.items()
    }
    first = header[344:347] == b"ni1"
    kind = nibabel.Nifti1Pair if first else nibabel.AnalyzeImage
    return (nibabel.Nifti2Pair if second else kind).from_file_map(files)


def _bare(content: bytes) -> bytes:
    """A header without its extensions, and without NIfTI-1's forms, over which nibabel stumbles."""
    if content[:4] not in (struct.pack("<i", 348), struct.pack(">i", 348)) or len(content) < 348:
        return content[:540] + bytes(4)
    order = "<" if content[0] else ">"
    raw = bytearray(content)
    # They are not needed for the voxels.
    struct.pack_into(order + "4f", raw, 76, 1.0, 1.0, 1.0, 1.0)
    struct.pack_into(order + "2h", raw, 252, 0, 0)
    return bytes(raw[:348]) + bytes(4)


def sform_note(reader: Any) -> str:
    """Returns a note if ITK used the qform because the sform is not orthonormal, else ""."""
    # ITK silently ignores a sheared sform if the file has a qform.
    if not reader.HasMetaDataKey("srow_x") or int(reader.GetMetaData("sform_code") or 0) == 0:
        return ""
    rows = [[float(v) for v in reader.GetMetaData(f"srow_{axis}").split()] for axis in "xyz"]
    matrix = np.array(rows)[:, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not (np.isfinite(matrix).all() and lengths.all()):
        return "sform was not a valid matrix: qform used"
    note = orthonormal(matrix / lengths)[1]
    return note.replace("direction", "sform").replace("nearest orthonormal one", "qform")


def _nibabel() -> Any:
    import nibabel

    # nibabel logs each header field that it corrects; what matters is a note or an error here.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    return nibabel
