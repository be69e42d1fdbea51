"""Malformed images, label maps, folders and names: a table of them, each made by a function.

A member is written into the middle of a dataset of two good cases. `runner.py` runs the commands on
it; `test_images.py` runs a sample, and `python -m benchmarks.hostile_images` runs all of them.
"""

import gzip
import json
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Role = Literal["image", "label", "pair", "dataset", "series"]
Expected = Literal["right", "refused", "either"]

SHAPE = (12, 14, 16)
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Member:
    """One malformed input.

    Attributes:
        name: Its name, FAMILY/WHAT.
        role: What it is: the image of a case (written as `c_0000` + ending), its label map (`c` +
            ending), both of them of one kind, a whole dataset, or a folder with a DICOM series.
        make: Writes it; takes the path of the file without an ending, or the dataset's folder.
        expected: "right": commands use it; "refused": none may use it; "either": each may do both.
        ending: The ending of the file.
    """

    name: str
    role: Role
    make: Callable[[Path], object]
    expected: Expected = "refused"
    ending: str = ".nii.gz"


def image_voxels(seed: int = 0) -> Array:
    """Noise around a bright block, int16 (z, y, x)."""
    array = np.random.default_rng(seed).integers(0, 250, SHAPE).astype("<i2")
    array[3:9, 4:10, 4:10] += 300
    return array


def label_voxels() -> Array:
    """The block as 1, with 2 inside, uint8 (z, y, x)."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[3:9, 4:10, 4:10] = 1
    array[5:7, 6:8, 6:8] = 2
    return array


# --- NIfTI, byte by byte --------------------------------------------------------------------------

_CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "c8": 32, "f8": 64, "i1": 256, "u2": 512, "u4": 768}
_CODES |= {"i8": 1024, "u8": 1280, "f16": 1536, "c16": 1792, "c32": 2048}
# Field -> offset and type in a NIfTI-1 header.
_FIELDS: dict[str, tuple[int, str]] = {
    **{
        "sizeof_hdr": (0, "i"),
        "ndim": (40, "h"),
        "nx": (42, "h"),
        "ny": (44, "h"),
        "nz": (46, "h"),
    },
    **{"nt": (48, "h"), "nu": (50, "h"), "datatype": (70, "h"), "bitpix": (72, "h")},
    **{"dx": (80, "f"), "dy": (84, "f"), "dz": (88, "f"), "vox_offset": (108, "f")},
    **{"slope": (112, "f"), "inter": (116, "f"), "units": (123, "B"), "qcode": (252, "h")},
    **{
        "scode": (254, "h"),
        "qb": (256, "f"),
        "qx": (268, "f"),
        "sx": (280, "f"),
        "sx3": (292, "f"),
    },
    **{"magic": (344, "4s"), "extension": (348, "4s"), "handed": (76, "f")},
}


def nifti_bytes(array: Array, *, order: str = "<", single: bool = True, **changes: Any) -> bytes:
    """A NIfTI-1 file of an array (.., z, y, x), with fields of its header replaced."""
    kind = array.dtype.newbyteorder("=").str[1:]
    header = bytearray(352)
    sizes = [*array.shape[::-1], *[1] * 7][:7]
    struct.pack_into(order + "i", header, 0, 348)
    struct.pack_into(order + "8h", header, 40, array.ndim, *sizes)
    struct.pack_into(order + "2h", header, 70, _CODES[kind], array.dtype.itemsize * 8)
    struct.pack_into(order + "8f", header, 76, 1, 1.5, 1.5, 3, 1, 1, 1, 1)
    struct.pack_into(order + "3f", header, 108, 352 if single else 0, 1, 0)
    header[123] = 2
    struct.pack_into(order + "2h", header, 252, 1, 1)
    struct.pack_into(order + "6f", header, 256, 0, 0, 1, 0, 0, 0)
    rows = (-1.5, 0, 0, 0, 0, -1.5, 0, 0, 0, 0, 3, 0)
    struct.pack_into(order + "12f", header, 280, *rows)
    header[344:348] = b"n+1\0" if single else b"ni1\0"
    for field, value in changes.items():
        offset, form = _FIELDS[field]
        struct.pack_into(order + form, header, offset, value)
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    return bytes(header) + data if single else bytes(header[:348])


def _put(path: Path, content: bytes, ending: str) -> None:
    packed = gzip.compress(content, 1) if ending == ".nii.gz" else content
    Path(f"{path}{ending}").write_bytes(packed)


def _nifti(path: Path, ending: str, array: Array, **changes: Any) -> None:
    _put(path, nifti_bytes(array, **changes), ending)


_HEADERS: dict[str, tuple[dict[str, Any], Expected]] = {
    **{f"sizeof_hdr {n}": ({"sizeof_hdr": n}, "refused") for n in (0, -1, 347, 540, 2**31 - 1)},
    **{f"{n} dimensions": ({"ndim": n}, "refused") for n in (-1, 0, 8, 99, 32767)},
    "1 dimension": ({"ndim": 1}, "refused"),
    "2 of 3 dimensions": ({"ndim": 2}, "either"),
    "4 dimensions, the last missing": ({"ndim": 4, "nt": 0}, "either"),
    "no columns": ({"nx": 0}, "refused"),
    "negative columns": ({"nx": -16}, "refused"),
    "negative slices": ({"nz": -12}, "refused"),
    "more slices than voxels": ({"nz": 13}, "refused"),
    "32767 slices": ({"nz": 32767}, "refused"),
    "32767 cubed": ({"nx": 32767, "ny": 32767, "nz": 32767}, "refused"),
    "32767 times": ({"ndim": 4, "nt": 32767}, "refused"),
    "a fifth dimension": ({"ndim": 5, "nt": 1, "nu": 3}, "refused"),
    **{f"type {n}": ({"datatype": n}, "refused") for n in (0, 1, 3, 5, -1, 9999)},
    "complex without the bytes": ({"datatype": 32, "bitpix": 64}, "refused"),
    "long double without the bytes": ({"datatype": 1536, "bitpix": 128}, "refused"),
    **{f"bitpix {n}": ({"bitpix": n}, "either") for n in (0, 7, -1)},
    "vox_offset 0": ({"vox_offset": 0.0}, "either"),
    **{
        f"vox_offset {n:g}": ({"vox_offset": n}, "refused")
        for n in (-1.0, 1e9, 1e30, NAN, INF, -INF)
    },
    **{f"slope {n:g}": ({"slope": n}, "refused") for n in (NAN, INF, 3e38)},
    **{f"intercept {n:g}": ({"inter": n}, "refused") for n in (NAN, INF, -INF)},
    **{
        f"spacing {n:g}, no form": ({"dz": n, "qcode": 0, "scode": 0}, "refused")
        for n in (0.0, NAN, INF)
    },
    "spacing -3, no form": ({"dz": -3.0, "qcode": 0, "scode": 0}, "either"),
    **{
        f"spacing {n:g}, no sform": ({"dz": n, "scode": 0}, "either")
        for n in (0.0, -3.0, 1000.0, 1e30, 1e-30, NAN, INF)
    },
    **{
        f"all spacings {n:g}": ({"dx": n, "dy": n, "dz": n, "qcode": 0, "scode": 0}, "either")
        for n in (1000.0, 1e30, 1e-30)
    },
    **{f"sform {n:g}, no qform": ({"sx": n, "qcode": 0}, "refused") for n in (NAN, INF, 0.0)},
    **{f"sform {n:g}": ({"sx": n}, "either") for n in (NAN, INF, 0.0, 1e30)},
    **{f"origin {n:g}": ({"sx3": n, "qx": n}, "either") for n in (NAN, INF, 1e30)},
    "quaternion NaN": ({"qb": NAN, "scode": 0}, "refused"),
    "quaternion 1e30": ({"qb": 1e30, "scode": 0}, "either"),
    "handedness 7": ({"handed": 7.0}, "either"),
    "units 255": ({"units": 255}, "either"),
    "codes 99": ({"qcode": 99, "scode": 99}, "either"),
    "codes -1": ({"qcode": -1, "scode": -1}, "either"),
    "no magic": ({"magic": b"\0\0\0\0"}, "either"),
    "another magic": ({"magic": b"n+9\0"}, "either"),
    "magic of a pair": ({"magic": b"ni1\0"}, "either"),
    "an extension of nothing": ({"extension": b"\1\0\0\0"}, "either"),
    "big-endian": ({"order": ">"}, "right"),
}


def _headers() -> Iterator[Member]:
    for what, (changes, expected) in _HEADERS.items():
        for ending in (".nii", ".nii.gz"):
            # Both of a case, so that their grids agree where the header can be read.
            yield Member(
                f"nifti{ending}/{what}",
                "pair",
                partial(_pair_of_nifti, ending=ending, changes=changes),
                expected,
                ending,
            )


def _pair_of_nifti(folder: Path, *, ending: str, changes: dict[str, Any]) -> None:
    _nifti(folder / "imagesTr/c_0000", ending, image_voxels(7), **changes)
    _nifti(folder / "labelsTr/c", ending, label_voxels(), **changes)


def _bytes_of(role: Role) -> bytes:
    return nifti_bytes(image_voxels(7) if role == "image" else label_voxels())


def _cut(content: bytes, ending: str) -> dict[str, bytes]:
    """What may happen to the bytes of a file."""
    packed = gzip.compress(content, 6) if ending == ".nii.gz" else content
    found = {
        "empty": b"",
        "one byte": packed[:1],
        "the first 20 bytes": packed[:20],
        "half": packed[: len(packed) // 2],
        "without the last byte": packed[:-1],
        "text": b"this is no image\n" * 40,
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>" * 20,
        "zeros": bytes(5000),
        "random": np.random.default_rng(3).bytes(5000),
        "only 0xff": b"\xff" * 5000,
        "a Python pickle": b"\x80\x04\x95" + b"c" * 400,
        "an archive": b"PK\x03\x04" + bytes(400),
    }
    if ending == ".nii.gz":
        wrong = bytearray(packed)
        wrong[-8] ^= 0xFF
        flipped = bytearray(packed)
        flipped[len(flipped) // 2] ^= 0xFF
        found |= {
            "without the last 8 bytes": packed[:-8],
            "a wrong checksum": bytes(wrong),
            "a flipped bit": bytes(flipped),
            "only the start of gzip": packed[:10],
            "gzip of nothing": gzip.compress(b""),
            "gzip in gzip": gzip.compress(packed),
            "gzip of text": gzip.compress(b"no image " * 100),
            "cut before it is packed": gzip.compress(content[:2000]),
            "a header alone": gzip.compress(content[:352]),
        }
    else:
        found |= {
            "347 bytes": content[:347],
            "a header alone": content[:352],
            "half of the voxels": content[: 352 + (len(content) - 352) // 2],
        }
    return found


def _cuts() -> Iterator[Member]:
    for ending in (".nii", ".nii.gz"):
        roles: tuple[Role, ...] = ("image", "label")
        for role in roles:
            for what, content in _cut(_bytes_of(role), ending).items():
                yield Member(
                    f"nifti{ending} {role}/{what}",
                    role,
                    partial(_write, content=content, ending=ending),
                    "refused",
                    ending,
                )
        for what, content, expected in (
            ("bytes too many", _bytes_of("image") + b"more" * 50, "either"),
            ("packed as the name does not say", None, "either"),
        ):
            if content is None:
                content = (
                    _bytes_of("image") if ending == ".nii.gz" else gzip.compress(_bytes_of("image"))
                )
            else:
                content = gzip.compress(content) if ending == ".nii.gz" else content
            yield Member(
                f"nifti{ending} image/{what}",
                "image",
                partial(_write, content=content, ending=ending),
                expected,
                ending,
            )


def _write(path: Path, *, content: bytes, ending: str) -> None:
    Path(f"{path}{ending}").write_bytes(content)


def _packed_block() -> bytes:
    """A MB of zeros as deflated blocks that stand alone, so that they may be repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(_BLOCK) + packer.flush(zlib.Z_FULL_FLUSH)


_BLOCK = bytes(1 << 20)
_PACKED = _packed_block()


def _zeros(size_mb: int) -> bytes:
    """Many MB of zeros, packed with zlib."""
    check = (size_mb << 20) % 65521 << 16 | 1
    return b"\x78\xda" + _PACKED * size_mb + b"\3\0" + struct.pack(">I", check)


def _bomb(path: Path, *, claimed: tuple[int, ...], stored_mb: int, ending: str = ".nii.gz") -> None:
    """A file of few bytes that unpacks to many zeros.

    Args:
        path: The file without its ending.
        claimed: What the header says, (z, y, x).
        stored_mb: How many MB of zeros follow it.
        ending: The ending of the file.
    """
    small = np.zeros((1, 1, 1), dtype="<i2")
    head = nifti_bytes(small, **dict(zip(("nz", "ny", "nx"), claimed, strict=True)))[:352]
    Path(f"{path}{ending}").write_bytes(_gzip_zeros(stored_mb, head))


@cache
def _gzip_zeros(size_mb: int, head: bytes = b"") -> bytes:
    """Bytes and many MB of zeros behind them, packed with gzip."""
    check = zlib.crc32(head)
    for _ in range(size_mb):
        check = zlib.crc32(_BLOCK, check)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    size = len(head) + (size_mb << 20)
    end = struct.pack("<2I", check, size % 2**32)
    return b"\x1f\x8b\x08" + bytes(7) + start + _PACKED * size_mb + b"\3\0" + end


def _bombs() -> Iterator[Member]:
    small, large = SHAPE, (8000, 2048, 2048)
    yield Member(
        "bomb/4 GB behind a small header", "image", partial(_bomb, claimed=small, stored_mb=4000)
    )
    yield Member(
        "bomb/4 GB of labels behind a small header",
        "label",
        partial(_bomb, claimed=small, stored_mb=4000),
    )
    yield Member(
        "bomb/a header of 64 GB, 3 GB stored",
        "image",
        partial(_bomb, claimed=large, stored_mb=3000),
    )
    yield Member(
        "bomb/labels of 64 GB, nothing stored", "label", partial(_bomb, claimed=large, stored_mb=1)
    )


def _arrays() -> Iterator[Member]:
    """Voxels of types and values that are unusual for an image, and for a label map."""
    image, label = image_voxels(7), label_voxels()
    wide = image.astype("<f4")
    with_nan, with_inf = wide.copy(), wide.copy()
    with_nan[2, 3, 4], with_inf[2, 3, 4] = NAN, INF
    images: dict[str, tuple[Array, Expected]] = {
        "complex": (image.astype("<c8"), "refused"),
        "complex of 32 bytes": (image.astype("c16"), "refused"),
        "NaN": (with_nan, "refused"),
        "infinite": (with_inf, "refused"),
        "all NaN": (np.full(SHAPE, NAN, dtype="<f4"), "refused"),
        "one value": (np.full(SHAPE, 7, dtype="<i2"), "either"),
        "beyond float32": (np.full(SHAPE, 1e300), "refused"),
        "2D": (image[5], "either"),
        "1D": (image[5, 5], "refused"),
        "4D, one channel": (image[None], "either"),
        "4D, two channels": (np.stack([image, image]), "refused"),
        "5D": (np.stack([image, image])[:, None], "refused"),
        "6D": (image[None, None, None], "either"),
        "one voxel": (image[:1, :1, :1], "either"),
        "one row": (image[:1, :1], "either"),
        "uint64": (image.astype(np.int64).clip(0).astype("<u8"), "either"),
        "int8": (image.clip(-100, 100).astype("i1"), "either"),
        "float64": (image.astype("<f8"), "either"),
    }
    for what, (array, expected) in images.items():
        yield Member(
            f"values image/{what}",
            "image",
            partial(_nifti, ending=".nii.gz", array=array),
            expected,
        )
    noise = np.random.default_rng(5)
    flat = label.astype("<f4")
    halves, broken, infinite, tiny = flat.copy(), flat.copy(), flat.copy(), flat.copy()
    halves[4, 5, 5], broken[4, 5, 5], infinite[4, 5, 5], tiny[label == 1] = 0.5, NAN, INF, 1.00001
    labels: dict[str, tuple[Array, Expected]] = {
        "an intensity image": (image, "refused"),
        "noise": (noise.normal(size=SHAPE).astype("<f4"), "refused"),
        "random whole numbers": (noise.integers(0, 255, SHAPE).astype("u1"), "refused"),
        "random among 60": (noise.integers(0, 60, SHAPE).astype("u1"), "refused"),
        "fractions": (halves, "refused"),
        "NaN": (broken, "refused"),
        "infinite": (infinite, "refused"),
        "all NaN": (np.full(SHAPE, NAN, dtype="<f4"), "refused"),
        "1e30": (np.where(label, 1e30, 0).astype("<f4"), "refused"),
        "negative": (label.astype("<i2") * -1, "refused"),
        "rounded": (tiny, "right"),
        "floats": (flat, "right"),
        "float64": (label.astype("<f8"), "right"),
        "int64": (label.astype("<i8"), "right"),
        "uint64 beyond int64": (label.astype("<u8") * np.uint64(2**63), "refused"),
        "int32 beyond int16": (label.astype("<i4") * 10**6, "either"),
        "nothing": (label * 0, "either"),
        "only foreground": (label * 0 + 1, "either"),
        "complex": (label.astype("<c8"), "refused"),
        "2D": (label[5], "refused"),
        "4D, one channel": (label[None], "either"),
        "4D, two channels": (np.stack([label, label]), "refused"),
        "5D": (np.stack([label, label])[:, None], "refused"),
        "another size": (label[:-1], "refused"),
        "as many values as voxels": (np.arange(label.size, dtype="<i4").reshape(SHAPE), "refused"),
    }
    for what, (array, expected) in labels.items():
        yield Member(
            f"values label/{what}",
            "label",
            partial(_nifti, ending=".nii.gz", array=array),
            expected,
        )
    yield Member("values label/10^6 values", "pair", _many_labels, "refused")
    yield Member("values image/RGB", "image", partial(_coloured, code=128, count=3), "refused")
    yield Member("values image/RGBA", "image", partial(_coloured, code=2304, count=4), "refused")
    yield Member("values label/RGB", "label", partial(_coloured, code=128, count=3), "refused")


def _many_labels(folder: Path) -> None:
    shape = (100, 100, 100)
    noise = np.random.default_rng(1).integers(0, 400, shape).astype("<i2")
    _nifti(folder / "imagesTr/c_0000", ".nii.gz", noise)
    _nifti(folder / "labelsTr/c", ".nii.gz", np.arange(10**6, dtype="<i4").reshape(shape))


def _coloured(path: Path, *, code: int, count: int) -> None:
    content = nifti_bytes(label_voxels(), datatype=code, bitpix=8 * count)
    _put(path, content[:352] + content[352:] * count, ".nii.gz")


# --- pairs of files: Analyze and NIfTI .hdr/.img --------------------------------------------------


def _hdr(path: Path, *, voxels: bytes | None, **changes: Any) -> None:
    Path(f"{path}.hdr").write_bytes(nifti_bytes(image_voxels(7), single=False, **changes))
    if voxels is not None:
        Path(f"{path}.img").write_bytes(voxels)


def _pairs() -> Iterator[Member]:
    whole = image_voxels(7).tobytes()
    cases: dict[str, tuple[bytes | None, dict[str, Any], Expected]] = {
        "whole": (whole, {}, "either"),
        "no .img": (None, {}, "refused"),
        "an empty .img": (b"", {}, "refused"),
        "half of an .img": (whole[: len(whole) // 2], {}, "refused"),
        ".img without the last byte": (whole[:-1], {}, "refused"),
        "Analyze": (whole, {"magic": b"\0\0\0\0"}, "either"),
        "Analyze, half of an .img": (whole[: len(whole) // 2], {"magic": b"\0\0\0\0"}, "refused"),
        "sizeof_hdr 0": (whole, {"sizeof_hdr": 0}, "refused"),
        "sizeof_hdr 0, Analyze": (whole, {"sizeof_hdr": 0, "magic": b"\0\0\0\0"}, "refused"),
        "32767 cubed": (whole, {"nx": 32767, "ny": 32767, "nz": 32767}, "refused"),
        "no columns": (whole, {"nx": 0}, "refused"),
        "negative columns": (whole, {"nx": -16}, "refused"),
        "99 dimensions": (whole, {"ndim": 99}, "refused"),
        "type 9999": (whole, {"datatype": 9999}, "refused"),
        "vox_offset beyond": (whole, {"vox_offset": 1e9}, "refused"),
        "spacing 0": (whole, {"dz": 0.0, "scode": 0, "qcode": 0}, "refused"),
        "spacing 0, Analyze": (whole, {"dz": 0.0, "magic": b"\0\0\0\0"}, "refused"),
        "spacing NaN, Analyze": (whole, {"dz": NAN, "magic": b"\0\0\0\0"}, "refused"),
    }
    for what, (voxels, changes, expected) in cases.items():
        make = partial(_hdr, voxels=voxels, **changes)
        yield Member(f"hdr/{what}", "image", make, expected, ".hdr")
    yield Member("hdr/.img is a pipe", "image", _hdr_pipe, "refused", ".hdr")
    yield Member("hdr/.img is a device", "image", _hdr_zero, "refused", ".hdr")
    yield Member("hdr/.img is a folder", "image", _hdr_folder, "refused", ".hdr")
    yield Member("hdr/.img.gz of 4 GB", "image", _hdr_bomb, "refused", ".hdr")


def _hdr_pipe(path: Path) -> None:
    _hdr(path, voxels=None)
    os.mkfifo(f"{path}.img")


def _hdr_zero(path: Path) -> None:
    _hdr(path, voxels=None)
    Path(f"{path}.img").symlink_to("/dev/zero")


def _hdr_folder(path: Path) -> None:
    _hdr(path, voxels=None)
    Path(f"{path}.img").mkdir()


def _hdr_bomb(path: Path) -> None:
    _hdr(path, voxels=None)
    _bomb(path, claimed=SHAPE, stored_mb=4000, ending=".img.gz")


# --- headers in text: MetaImage and NRRD ----------------------------------------------------------

_META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "1.5 1.5 3",
    "DimSize": "16 14 12",
    "ElementType": "MET_SHORT",
}


def _meta(
    path: Path, *, ending: str, data: str, voxels: bytes | None, changes: dict[str, Any]
) -> None:
    fields = {key: value for key, value in (_META | changes).items() if value is not None}
    text = "".join(f"{key} = {value}\n" for key, value in fields.items())
    text += f"ElementDataFile = {data}\n"
    whole = image_voxels(7).tobytes() if voxels is None else voxels
    local = data == "LOCAL"
    Path(f"{path}{ending}").write_bytes(
        text.encode("utf-8", "surrogateescape") + (whole if local else b"")
    )
    if data == "c.raw":
        (path.parent / data).write_bytes(whole)


_META_CHANGES: dict[str, tuple[dict[str, Any], Expected]] = {
    "whole": ({}, "either"),
    **{
        f"NDims {n}": ({"NDims": n}, "refused")
        for n in ("-1", "0", "1", "9", "10", "11", "99", "4294967297", "1e9", "x", "")
    },
    "NDims 2": ({"NDims": "2"}, "either"),
    "NDims 4": ({"NDims": "4"}, "refused"),
    "no NDims": ({"NDims": None}, "refused"),
    **{
        f"DimSize {n}": ({"DimSize": n}, "refused")
        for n in (
            "0 14 12",
            "-16 14 12",
            "16 14",
            "x y z",
            "",
            "16 14 13",
            "60000 60000 60000",
            "1e5 1e5 1e5",
            "4294967296 4294967296 4294967296",
            "nan 14 12",
            "16.5 14 12",
        )
    },
    "no DimSize": ({"DimSize": None}, "refused"),
    **{
        f"ElementType {n}": ({"ElementType": n}, "refused")
        for n in ("MET_NONE", "MET_OTHER", "x", "", "MET_STRING", "MET_DOUBLE")
    },
    "no ElementType": ({"ElementType": None}, "refused"),
    **{
        f"ElementNumberOfChannels {n}": ({"ElementNumberOfChannels": n}, "refused")
        for n in ("-1", "2", "1000000", "999999999999")
    },
    "ElementNumberOfChannels 0": ({"ElementNumberOfChannels": "0"}, "either"),
    **{
        f"HeaderSize {n}": ({"HeaderSize": n}, "either")
        for n in ("-1", "-2", "5", "1000000000000", "x")
    },
    "compressed, not so": ({"CompressedData": "True"}, "refused"),
    "compressed, size -1": ({"CompressedData": "True", "CompressedDataSize": "-1"}, "refused"),
    "compressed, size 10^15": (
        {"CompressedData": "True", "CompressedDataSize": str(10**15)},
        "refused",
    ),
    "in text, not so": ({"BinaryData": "False"}, "refused"),
    **{
        f"ElementSpacing {n}": ({"ElementSpacing": n}, "refused")
        for n in ("0 0 0", "nan 1 1", "inf 1 1")
    },
    **{
        f"ElementSpacing {n}": ({"ElementSpacing": n}, "either")
        for n in ("-1.5 1.5 3", "1e30 1e30 1e30", "1000 1000 1000", "1.5", "x", "")
    },
    **{
        f"TransformMatrix {n}": ({"TransformMatrix": n}, "refused")
        for n in ("0 0 0 0 0 0 0 0 0", "nan 0 0 0 1 0 0 0 1")
    },
    **{f"TransformMatrix {n}": ({"TransformMatrix": n}, "either") for n in ("1 0 0", "x")},
    "Offset NaN": ({"Offset": "nan 0 0"}, "refused"),
    "Offset of one": ({"Offset": "1"}, "either"),
    "an unknown field": ({"Patient": "x" * 100000}, "either"),
    "a line of 10 MB": ({"Comment": "x" * 10**7}, "either"),
    "undecodable bytes": ({"Comment": "\udcff\udcfe" * 50}, "either"),
}
_DATA_FILES: dict[str, Expected] = {
    "missing.raw": "refused",
    "/dev/zero": "refused",
    "/dev/null": "refused",
    "..": "refused",
    "": "refused",
    "LIST": "refused",
    "LIST 2": "refused",
    "LIST 99": "refused",
    "%d": "refused",
    "s%d.raw 1 12 1": "refused",
    "s%s%s%s%n.raw 1 12 1": "refused",
    "s%d.raw 1 1000000000 1": "refused",
    "x" * 5000: "refused",
    "\udcff.raw": "refused",
}


def _metas() -> Iterator[Member]:
    def make(ending: str, data: str, voxels: bytes | None = None, **changes: Any) -> Any:
        return partial(_meta, ending=ending, data=data, voxels=voxels, changes=changes)

    for what, (changes, expected) in _META_CHANGES.items():
        yield Member(f"mha/{what}", "image", make(".mha", "LOCAL", **changes), expected, ".mha")
        if what.startswith(("whole", "NDims", "compressed", "ElementNumber", "HeaderSize")):
            yield Member(f"mhd/{what}", "image", make(".mhd", "c.raw", **changes), expected, ".mhd")
    for data, expected in _DATA_FILES.items():
        yield Member(f"mhd/voxels in {data[:30]!a}", "image", make(".mhd", data), expected, ".mhd")
    half = image_voxels(7).tobytes()[:2000]
    yield Member("mha/half of the voxels", "image", make(".mha", "LOCAL", half), "refused", ".mha")
    yield Member("mhd/half of the voxels", "image", make(".mhd", "c.raw", half), "refused", ".mhd")
    yield Member("mha/no voxels", "image", make(".mha", "LOCAL", b""), "refused", ".mha")
    bomb = _zeros(3000)
    packed = {"CompressedData": "True", "CompressedDataSize": str(len(bomb))}
    yield Member(
        "mha/a bomb of 3 GB", "image", make(".mha", "LOCAL", bomb, **packed), "refused", ".mha"
    )
    large = packed | {"DimSize": "2048 2048 8000"}
    yield Member(
        "mha/a bomb of 64 GB", "image", make(".mha", "LOCAL", bomb, **large), "refused", ".mha"
    )
    yield Member("mhd/voxels in itself", "image", make(".mhd", "c_0000.mhd"), "refused", ".mhd")
    yield Member("mhd/voxels in a pipe", "image", _meta_pipe, "refused", ".mhd")
    yield Member(
        "mha/only ObjectType",
        "image",
        partial(_write, content=b"ObjectType = Image\n", ending=".mha"),
        "refused",
        ".mha",
    )
    yield Member(
        "mha/another ObjectType",
        "image",
        make(".mha", "LOCAL", ObjectType="Scene"),
        "either",
        ".mha",
    )
    for ending in (".mha", ".mhd", ".nrrd", ".nhdr"):
        for what in ("text", "zeros", "random", "only 0xff", "empty"):
            content = _cut(b"", ".nii")[what]
            yield Member(
                f"{ending[1:]}/{what}",
                "image",
                partial(_write, content=content, ending=ending),
                "refused",
                ending,
            )


def _meta_pipe(path: Path) -> None:
    os.mkfifo(path.parent / "pipe.raw")
    _meta(path, ending=".mhd", data="pipe.raw", voxels=None, changes={})


_NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "16 14 12",
    "space directions": "(1.5,0,0) (0,1.5,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(0,0,0)",
}
_NRRD_CHANGES: dict[str, tuple[dict[str, Any], Expected]] = {
    "whole": ({}, "either"),
    **{
        f"dimension {n}": ({"dimension": n}, "refused")
        for n in ("-1", "0", "1", "2", "4", "16", "17", "99", "x", "", "4294967299")
    },
    "no dimension": ({"dimension": None}, "refused"),
    **{
        f"sizes {n}": ({"sizes": n}, "refused")
        for n in (
            "0 14 12",
            "-16 14 12",
            "16 14",
            "x y z",
            "",
            "16 14 13",
            "60000 60000 60000",
            "4294967296 4294967296 4294967296",
            "nan 1 1",
        )
    },
    "no sizes": ({"sizes": None}, "refused"),
    **{f"type {n}": ({"type": n}, "refused") for n in ("block", "x", "", "double")},
    "no type": ({"type": None}, "refused"),
    **{f"encoding {n}": ({"encoding": n}, "refused") for n in ("gzip", "bzip2", "hex", "zzz", "")},
    "encoding text": ({"encoding": "text"}, "refused"),
    "no encoding": ({"encoding": None}, "refused"),
    "endian x": ({"endian": "x"}, "refused"),
    "no endian": ({"endian": None}, "either"),
    **{f"byte skip {n}": ({"byte skip": n}, "either") for n in ("-1", "-2", "1000000000", "x")},
    **{f"line skip {n}": ({"line skip": n}, "either") for n in ("-1", "1000000000", "x")},
    **{
        f"space directions {n}": ({"space directions": n}, "refused")
        for n in (
            "(0,0,0) (0,0,0) (0,0,0)",
            "(nan,0,0) (0,1,0) (0,0,1)",
            "(inf,0,0) (0,1,0) (0,0,1)",
            "none none none x",
        )
    },
    **{
        f"space directions {n}": ({"space directions": n}, "either")
        for n in ("(1,0,0)", "(1e30,0,0) (0,1e30,0) (0,0,1e30)", "none none none")
    },
    "space origin NaN": ({"space origin": "(nan,0,0)"}, "refused"),
    "space x": ({"space": "x"}, "either"),
    "kinds x": ({"kinds": "x y z"}, "either"),
    "a line of 10 MB": ({"content": "x" * 10**7}, "either"),
    "undecodable bytes": ({"content": "\udcff\udcfe"}, "either"),
    "a field twice": ({"sizes ": "3 3 3"}, "either"),
}


def _nrrd(
    path: Path, *, ending: str, data: str | None, voxels: bytes | None, changes: dict[str, Any]
) -> None:
    fields = {key: value for key, value in (_NRRD | changes).items() if value is not None}
    text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items())
    whole = image_voxels(7).tobytes() if voxels is None else voxels
    text += f"data file: {data}\n" if data is not None else "\n"
    Path(f"{path}{ending}").write_bytes(
        text.encode("utf-8", "surrogateescape") + (whole if data is None else b"")
    )
    if data == "c.raw":
        (path.parent / data).write_bytes(whole)


def _nrrds() -> Iterator[Member]:
    def make(ending: str, data: str | None, voxels: bytes | None = None, **changes: Any) -> Any:
        return partial(_nrrd, ending=ending, data=data, voxels=voxels, changes=changes)

    for what, (changes, expected) in _NRRD_CHANGES.items():
        yield Member(f"nrrd/{what}", "image", make(".nrrd", None, **changes), expected, ".nrrd")
        if what.startswith(("whole", "encoding", "byte", "line")):
            yield Member(
                f"nhdr/{what}", "image", make(".nhdr", "c.raw", **changes), expected, ".nhdr"
            )
    for data, expected in _DATA_FILES.items():
        yield Member(
            f"nhdr/voxels in {data[:30]!a}", "image", make(".nhdr", data), expected, ".nhdr"
        )
    half = image_voxels(7).tobytes()[:2000]
    yield Member("nrrd/half of the voxels", "image", make(".nrrd", None, half), "refused", ".nrrd")
    yield Member("nrrd/no voxels", "image", make(".nrrd", None, b""), "refused", ".nrrd")
    bomb = _gzip_zeros(3000)
    yield Member(
        "nrrd/a bomb of 3 GB",
        "image",
        make(".nrrd", None, bomb, encoding="gzip"),
        "refused",
        ".nrrd",
    )
    yield Member(
        "nrrd/a bomb of 64 GB",
        "image",
        make(".nrrd", None, bomb, encoding="gzip", sizes="2048 2048 8000"),
        "refused",
        ".nrrd",
    )
    yield Member(
        "nrrd/only its first line",
        "image",
        partial(_write, content=b"NRRD0004\n", ending=".nrrd"),
        "refused",
        ".nrrd",
    )
    yield Member(
        "nrrd/another version",
        "image",
        partial(_write, content=b"NRRD9999\ntype: short\n\n", ending=".nrrd"),
        "refused",
        ".nrrd",
    )


# --- pictures -------------------------------------------------------------------------------------


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_bytes(width: int, height: int, packed: bytes, *, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG file of lines that are packed already."""
    head = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", head), _chunk(b"IDAT", packed), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _pngs() -> Iterator[Member]:
    plane = image_voxels(7)[5].clip(0, 255).astype("u1")
    lines = b"".join(b"\0" + row.tobytes() for row in plane)
    packed = zlib.compress(lines)
    good = png_bytes(16, 14, packed)
    wrong = bytearray(good)
    wrong[30] ^= 0xFF
    contents: dict[str, tuple[bytes, Expected]] = {
        "whole": (good, "either"),
        "half": (good[: len(good) // 2], "refused"),
        "its mark alone": (good[:8], "refused"),
        "a wrong checksum": (bytes(wrong), "refused"),
        "no width": (png_bytes(0, 14, packed), "refused"),
        "2^31 wide": (png_bytes(2**31, 14, packed), "refused"),
        "2^31-1 squared": (png_bytes(2**31 - 1, 2**31 - 1, packed), "refused"),
        "more lines than data": (png_bytes(16, 30, packed), "refused"),
        "30000 squared without data": (png_bytes(30000, 30000, packed), "refused"),
        "16384 squared of zeros": (png_bytes(16384, 16384, _zeros(257)), "either"),
        "60000 squared of zeros": (png_bytes(60000, 60000, _zeros(3500)), "refused"),
        "depth 3": (png_bytes(16, 14, packed, depth=3), "refused"),
        "colour 9": (png_bytes(16, 14, packed, colour=9), "refused"),
        "a palette that is missing": (png_bytes(16, 14, packed, colour=3), "refused"),
        "lines that are not packed": (png_bytes(16, 14, lines), "refused"),
        "text": (b"no picture" * 100, "refused"),
        "empty": (b"", "refused"),
        "a comment of 1 GB": (
            good[:33] + _chunk(b"zTXt", b"a\0\0" + _zeros(1000)) + good[33:],
            "either",
        ),
    }
    for what, (content, expected) in contents.items():
        yield Member(
            f"png/{what}",
            "image",
            partial(_write, content=content, ending=".png"),
            expected,
            ".png",
        )


def tiff_bytes(tags: dict[int, tuple[int, int, int]], data: bytes, *, following: int = 0) -> bytes:
    """A TIFF file of one directory, which follows the data.

    Args:
        tags: Number -> (type, count, value).
        data: What lies from byte 8 on.
        following: Where the next directory is; -1 for this one again.
    """
    at = 8 + len(data)
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    following = at if following == -1 else following
    return (
        struct.pack("<2sHI", b"II", 42, at)
        + data
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", following)
    )


def _tiffs() -> Iterator[Member]:
    plane = image_voxels(7)[5].clip(0, 255).astype("u1").tobytes()
    tags = {
        **{256: (3, 1, 16), 257: (3, 1, 14), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)},
        **{273: (4, 1, 8), 277: (3, 1, 1), 278: (3, 1, 14), 279: (4, 1, len(plane))},
    }
    good = tiff_bytes(tags, plane)

    def changed(**changes: tuple[int, int, int]) -> bytes:
        return tiff_bytes(tags | {int(key[1:]): value for key, value in changes.items()}, plane)

    contents: dict[str, tuple[bytes, Expected]] = {
        "whole": (good, "either"),
        "half": (good[: len(good) // 2], "refused"),
        "a directory that leads to itself": (tiff_bytes(tags, plane, following=-1), "either"),
        "a directory beyond the file": (struct.pack("<2sHI", b"II", 42, 10**9), "refused"),
        "a directory at 0": (struct.pack("<2sHI", b"II", 42, 0), "refused"),
        "a next directory beyond the file": (tiff_bytes(tags, plane, following=10**9), "either"),
        "a next directory in the header": (tiff_bytes(tags, plane, following=1), "either"),
        "no width": (changed(t256=(3, 1, 0)), "refused"),
        "60000 squared": (changed(t256=(4, 1, 60000), t257=(4, 1, 60000)), "refused"),
        "2^32-1 wide": (changed(t256=(4, 1, 2**32 - 1)), "refused"),
        "2^32-1 squared": (changed(t256=(4, 1, 2**32 - 1), t257=(4, 1, 2**32 - 1)), "refused"),
        "strip beyond the file": (changed(t273=(4, 1, 10**9)), "refused"),
        "strip of 4 GB": (changed(t279=(4, 1, 2**32 - 1)), "either"),
        "7 bits": (changed(t258=(3, 1, 7)), "refused"),
        "0 bits": (changed(t258=(3, 1, 0)), "refused"),
        "60000 samples": (changed(t277=(3, 1, 60000)), "refused"),
        "compression 9999": (changed(t259=(3, 1, 9999)), "refused"),
        "LZW that is none": (changed(t259=(3, 1, 5)), "refused"),
        "deflate that is none": (changed(t259=(3, 1, 8)), "refused"),
        "complex": (changed(t339=(3, 1, 6)), "either"),
        "tiles of 0": (
            changed(t322=(3, 1, 0), t323=(3, 1, 0), t324=(4, 1, 8), t325=(4, 1, 10)),
            "either",
        ),
        "10^9 values in a tag": (changed(t273=(4, 10**9, 8)), "either"),
        "rows per strip 0": (changed(t278=(3, 1, 0)), "either"),
        "no tags": (tiff_bytes({}, plane), "refused"),
        "text": (b"no picture" * 100, "refused"),
        "empty": (b"", "refused"),
    }
    bomb = _zeros(3000)
    large = {
        256: (4, 1, 60000),
        257: (4, 1, 50000),
        259: (3, 1, 8),
        278: (4, 1, 50000),
        279: (4, 1, len(bomb)),
    }
    contents["deflated, 3 GB"] = (tiff_bytes(tags | large, bomb), "refused")
    for what, (content, expected) in contents.items():
        yield Member(
            f"tif/{what}",
            "image",
            partial(_write, content=content, ending=".tif"),
            expected,
            ".tif",
        )


def bmp_bytes(
    width: int, height: int, data: bytes, *, bits: int = 8, packing: int = 0, start: int = 1078
) -> bytes:
    """A BMP file with a grey palette."""
    palette = b"".join(bytes((n, n, n, 0)) for n in range(256))
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, len(data), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", 1078 + len(data), 0, 0, start) + info + palette + data


def _bmps() -> Iterator[Member]:
    plane = image_voxels(7)[5].clip(0, 255).astype("u1").tobytes()
    contents: dict[str, tuple[bytes, Expected]] = {
        "whole": (bmp_bytes(16, 14, plane), "either"),
        "upside down": (bmp_bytes(16, -14, plane), "either"),
        "half": (bmp_bytes(16, 14, plane[:100]), "refused"),
        "no width": (bmp_bytes(0, 14, plane), "refused"),
        "negative width": (bmp_bytes(-16, 14, plane), "refused"),
        "2^31-1 squared": (bmp_bytes(2**31 - 1, 2**31 - 1, plane), "refused"),
        "60000 squared": (bmp_bytes(60000, 60000, plane), "refused"),
        "11 bits": (bmp_bytes(16, 14, plane, bits=11), "refused"),
        "packing 99": (bmp_bytes(16, 14, plane, packing=99), "refused"),
        "runs that are none": (bmp_bytes(16, 14, plane, packing=1), "either"),
        "runs of 30000 squared": (
            bmp_bytes(30000, 30000, b"\xff\x00" * 50 + b"\0\1", packing=1),
            "refused",
        ),
        "data beyond the file": (bmp_bytes(16, 14, plane, start=10**9), "refused"),
        "text": (b"BMno picture" * 100, "refused"),
        "its mark alone": (b"BM", "refused"),
    }
    for what, (content, expected) in contents.items():
        yield Member(
            f"bmp/{what}",
            "image",
            partial(_write, content=content, ending=".bmp"),
            expected,
            ".bmp",
        )


def _jpegs() -> Iterator[Member]:
    import io

    import PIL.Image

    made = io.BytesIO()
    PIL.Image.fromarray(image_voxels(7)[5].clip(0, 255).astype("u1")).save(made, "JPEG")
    good = made.getvalue()
    at = good.index(b"\xff\xc0") + 5
    contents: dict[str, tuple[bytes, Expected]] = {
        "whole": (good, "either"),
        "half": (good[: len(good) // 2], "refused"),
        "without its end": (good[:-2], "either"),
        "65500 squared": (good[:at] + struct.pack(">2H", 65500, 65500) + good[at + 4 :], "refused"),
        "no size": (good[:at] + bytes(4) + good[at + 4 :], "refused"),
        "its mark alone": (good[:4], "refused"),
        "text": (b"no picture" * 100, "refused"),
    }
    for what, (content, expected) in contents.items():
        yield Member(
            f"jpg/{what}",
            "image",
            partial(_write, content=content, ending=".jpg"),
            expected,
            ".jpg",
        )


def gipl_bytes(
    sizes: tuple[int, ...], data: bytes, *, kind: int = 15, spacing: float = 1.5
) -> bytes:
    """A GIPL file, big-endian."""
    header = bytearray(256)
    struct.pack_into(">4H", header, 0, *sizes)
    struct.pack_into(">H", header, 8, kind)
    struct.pack_into(">4f", header, 10, spacing, spacing, spacing, 1)
    struct.pack_into(">I", header, 252, 4026526128)
    return bytes(header) + data


def _gipls() -> Iterator[Member]:
    voxels = image_voxels(7).astype(">i2").tobytes()
    sizes = (16, 14, 12, 1)
    contents: dict[str, tuple[bytes, Expected]] = {
        "whole": (gipl_bytes(sizes, voxels), "either"),
        "half": (gipl_bytes(sizes, voxels[:2000]), "refused"),
        "65535 cubed": (gipl_bytes((65535, 65535, 65535, 1), voxels), "refused"),
        "no columns": (gipl_bytes((0, 14, 12, 1), voxels), "refused"),
        "type 999": (gipl_bytes(sizes, voxels, kind=999), "refused"),
        "spacing 0": (gipl_bytes(sizes, voxels, spacing=0.0), "refused"),
        "spacing NaN": (gipl_bytes(sizes, voxels, spacing=NAN), "refused"),
        "spacing -1": (gipl_bytes(sizes, voxels, spacing=-1.0), "either"),
        "text": (b"no picture" * 100, "refused"),
        "a header alone": (gipl_bytes(sizes, b""), "refused"),
    }
    for what, (content, expected) in contents.items():
        yield Member(
            f"gipl/{what}",
            "image",
            partial(_write, content=content, ending=".gipl"),
            expected,
            ".gipl",
        )


# --- what is no regular file ----------------------------------------------------------------------


def pipe(path: Path) -> None:
    """A named pipe."""
    os.mkfifo(path)


def device(path: Path) -> None:
    """A link to a device without an end."""
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    """A socket; its name is bound from inside its folder, since addresses are short."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def a_folder(path: Path) -> None:
    """A folder with a file in it."""
    path.mkdir()
    (path / "readme.txt").write_text("a folder")


def loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    """A link to nothing."""
    path.symlink_to("nothing-here")


# Name -> makes it in the place of a file.
IRREGULAR: dict[str, Callable[[Path], None]] = {
    **{"a pipe": pipe, "a device": device, "a socket": a_socket},
    **{"a folder": a_folder, "a link to itself": loop, "a link to nothing": dangling},
}


def _irregular() -> Iterator[Member]:
    def beside(path: Path, *, put: Callable[[Path], None], ending: str) -> None:
        put(Path(f"{path}{ending}"))

    def replaced(folder: Path, *, put: Callable[[Path], None], name: str) -> None:
        place = folder / name
        if place.is_dir():
            place.rename(folder / "away")
        else:
            place.unlink(missing_ok=True)
        put(place)

    for what, put in IRREGULAR.items():
        for ending in (
            ".nii.gz",
            ".nii",
            ".hdr",
            ".mha",
            ".mhd",
            ".nrrd",
            ".nhdr",
            ".png",
            ".tif",
            ".bmp",
            ".jpg",
            ".gipl",
        ):
            make = partial(beside, put=put, ending=ending)
            yield Member(f"irregular/image{ending} is {what}", "image", make, "refused", ending)
        yield Member(
            f"irregular/label is {what}", "label", partial(beside, put=put, ending=".nii.gz")
        )
        for name in ("dataset.json", "imagesTr", "labelsTr", "splits_final.json"):
            if (what, name) in (("a folder", "imagesTr"), ("a folder", "labelsTr")):
                continue
            expected: Expected = (
                "either" if name in ("splits_final.json", "labelsTr") else "refused"
            )
            yield Member(
                f"irregular/{name} is {what}",
                "dataset",
                partial(replaced, put=put, name=name),
                expected,
            )
    for name in ("imagesTr", "labelsTr"):
        put_file = partial(replaced, put=lambda path: path.write_text("x") and None, name=name)
        yield Member(f"irregular/{name} is a file", "dataset", put_file, "refused")


# --- names ----------------------------------------------------------------------------------------


def _case(folder: Path, name: str, seed: int = 7) -> None:
    _nifti(folder / f"imagesTr/{name}_0000", ".nii.gz", image_voxels(seed))
    _nifti(folder / f"labelsTr/{name}", ".nii.gz", label_voxels())


_NAMES: dict[str, tuple[tuple[str, ...], Expected]] = {
    "spaces": (("a case of mine",), "right"),
    "two dots": (("c..d",), "right"),
    "only dots behind": (("c...",), "right"),
    "a leading dash": (("-c",), "right"),
    "an option": (("--help",), "right"),
    "composed letters": (("Leber_\u00fc",), "right"),
    "decomposed letters": (("Leber_u\u0308",), "right"),
    "both forms": (("c\u00fc", "cu\u0308"), "either"),
    "capitals": (("Case", "case"), "either"),
    "a line break": (("c\nd",), "refused"),
    "a tabulator": (("c\td",), "refused"),
    "an escape": (("c\x1b[31m",), "refused"),
    "undecodable": (("c\udcff",), "refused"),
    "right to left": (("c\u202egz",), "either"),
    "quotes": (("c'd\"e",), "right"),
    "a shell": (("$(touch x)`y`;z",), "right"),
    "a formula": (("=1+1",), "right"),
    "HTML": (("<b>c",), "right"),
    "a percent sign": (("c%s%n",), "right"),
    "a backslash": (("c\\d",), "either"),
    "a star": (("c*[a]?",), "right"),
    "230 bytes": (("c" * 230,), "right"),
    "236 bytes": (("c" * 236,), "either"),
    "243 bytes": (("c" * 243,), "either"),
    "a word of Windows": (("CON",), "either"),
    "x and x_uncertainty": (("x", "x_uncertainty"), "either"),
    "x and x_label": (("x", "x_label"), "either"),
    "x and x_preview": (("x", "x_preview"), "either"),
    "x and x_0000": (("x", "x_0000"), "either"),
    "x and x.nii": (("x", "x.nii"), "either"),
    "predict": (("predict",), "either"),
    "scores": (("scores",), "either"),
    "digits": (("0001",), "right"),
    "emoji": (("c\U0001f600",), "right"),
    "a zero-width space": (("c\u200bd", "cd"), "either"),
}


def _named(folder: Path, *, names: tuple[str, ...]) -> None:
    for seed, name in enumerate(names):
        _case(folder, name, 20 + seed)


def _names() -> Iterator[Member]:
    for what, (names, expected) in _NAMES.items():
        yield Member(f"name/{what}", "dataset", partial(_named, names=names), expected)


# --- whole datasets -------------------------------------------------------------------------------


def _json(folder: Path, **changes: Any) -> None:
    text = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(text | changes))


def _same_names(folder: Path) -> None:
    """A Decathlon table whose cases have equal names in several folders."""
    listed = []
    for number in range(3):
        for kind in ("images", "labels"):
            (folder / f"site{number}/{kind}").mkdir(parents=True)
        _nifti(folder / f"site{number}/images/scan", ".nii.gz", image_voxels(number))
        _nifti(folder / f"site{number}/labels/scan", ".nii.gz", label_voxels())
        listed.append(
            {
                "image": f"site{number}/images/scan.nii.gz",
                "label": f"site{number}/labels/scan.nii.gz",
            }
        )
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}}
    (folder / "dataset.json").write_text(json.dumps({**content, "training": listed}))


def _listed_twice(folder: Path) -> None:
    entry = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}}
    (folder / "dataset.json").write_text(json.dumps({**content, "training": [entry, entry]}))


def _equal_cases(folder: Path) -> None:
    for name in ("c", "d"):
        _case(folder, name, 7)


def _no_label(folder: Path) -> None:
    for path in (folder / "labelsTr").iterdir():
        path.unlink()


def _orphan(folder: Path) -> None:
    _nifti(folder / "labelsTr/orphan", ".nii.gz", label_voxels())


def _two_types(folder: Path) -> None:
    _nifti(folder / "imagesTr/a_0000", ".nii", image_voxels(0))


def _looping_folder(folder: Path) -> None:
    (folder / "imagesTr/loop").symlink_to("..")


def _many_files(folder: Path) -> None:
    for number in range(3000):
        (folder / f"imagesTr/note_{number}.txt").touch()


def _datasets() -> Iterator[Member]:
    yield Member("dataset/equal names in several folders", "dataset", _same_names, "refused")
    yield Member("dataset/a case listed twice", "dataset", _listed_twice, "refused")
    yield Member("dataset/two cases of one content", "dataset", _equal_cases, "either")
    yield Member("dataset/no label at all", "dataset", _no_label, "either")
    yield Member("dataset/a label without image", "dataset", _orphan, "refused")
    yield Member("dataset/an image in two types", "dataset", _two_types, "either")
    yield Member("dataset/a folder that leads back", "dataset", _looping_folder, "either")
    yield Member("dataset/3000 other files", "dataset", _many_files, "right")
    for what, changes in {
        "labels of another image": {"labels": {"background": 0, "liver": 1}},
        "a channel too many": {"channel_names": {"0": "MR", "1": "T2"}},
        "another ending": {"file_ending": ".mha"},
        "an ending of nothing": {"file_ending": ""},
        "an ending that is a path": {"file_ending": "/../../x"},
    }.items():
        yield Member(f"dataset/{what}", "dataset", partial(_json, **changes), "refused")


# --- DICOM ----------------------------------------------------------------------------------------


def _series(folder: Path, change: Any = None, after: Any = None, **tags: Any) -> None:
    """A series of six slices in a folder of its own."""
    from dicom_series import slices

    folder.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(2).integers(0, 500, (6, 14, 16)).astype(np.int16)
    usual = {"Modality": "MR", "RescaleIntercept": 0}
    made = slices(array, tags=usual | tags, **({"change": change} if change else {}))
    for number, data in enumerate(made):
        data.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    if after is not None:
        after(folder)


def _drop(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _replace(folder: Path, *, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def _instead(folder: Path, *, put: Callable[[Path], None]) -> None:
    (folder / "003.dcm").unlink()
    put(folder / "003.dcm")


def _copy(folder: Path) -> None:
    (folder / "copy.dcm").write_bytes((folder / "003.dcm").read_bytes())


def _halve(folder: Path) -> None:
    whole = (folder / "003.dcm").read_bytes()
    (folder / "003.dcm").write_bytes(whole[: len(whole) - 200])


def _at(index: int, **tags: Any) -> Any:
    """A change of one slice's tags."""

    def change(number: int, data: Any) -> None:
        if number == index or index < 0:
            for tag, value in tags.items():
                if value is None:
                    delattr(data, tag)
                else:
                    setattr(data, tag, value)

    return change


def _nest(folder: Path, *, levels: int) -> None:
    """Puts sequences in sequences behind the pixels of a slice, each of unstated length."""
    sequence = b"\xe1\x7f\x10\x10SQ\0\0\xff\xff\xff\xff"
    item, item_end = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\0\0\0\0"
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    with (folder / "003.dcm").open("ab") as file:
        file.write((sequence + item) * levels + (item_end + end) * levels)


def _dicoms() -> Iterator[Member]:
    def make(change: Any = None, after: Any = None, **tags: Any) -> Any:
        return partial(_series, change=change, after=after, **tags)

    cases: dict[str, tuple[Any, Expected]] = {
        "whole": (make(), "right"),
        "a gap": (make(after=partial(_drop, name="003.dcm")), "refused"),
        "the end missing": (make(after=partial(_drop, name="005.dcm")), "either"),
        "a slice twice": (make(after=_copy), "either"),
        "a slice of another patient": (
            make(_at(3, PatientID="other", PatientName="Other^One")),
            "either",
        ),
        "half of the slices of another patient": (
            make(lambda n, d: setattr(d, "PatientID", f"p{n % 2}")),
            "either",
        ),
        "a slice of another size": (make(_at(3, Rows=13)), "refused"),
        "two slices at one place": (
            make(_at(3, ImagePositionPatient=[-10.0, 20.0, 35.0])),
            "either",
        ),
        "no rows": (make(_at(-1, Rows=0)), "refused"),
        "65535 rows": (make(_at(-1, Rows=65535, Columns=65535)), "refused"),
        "no Rows": (make(_at(-1, Rows=None)), "refused"),
        "no pixels": (make(_at(-1, PixelData=None)), "refused"),
        "no pixels in one": (make(_at(3, PixelData=None)), "refused"),
        "pixels too few": (make(_at(3, PixelData=bytes(10))), "refused"),
        "no position": (make(_at(-1, ImagePositionPatient=None)), "refused"),
        "a position of two": (make(_at(3, ImagePositionPatient=[1.0, 2.0])), "refused"),
        "no orientation": (make(_at(-1, ImageOrientationPatient=None)), "refused"),
        "orientation of zeros": (make(ImageOrientationPatient=[0.0] * 6), "refused"),
        "spacing 0": (make(PixelSpacing=[0.0, 0.0]), "refused"),
        "spacing -1": (make(PixelSpacing=[-1.0, -1.0]), "refused"),
        "spacing 1000": (make(PixelSpacing=[1000.0, 1000.0]), "either"),
        "spacing 1e30": (make(PixelSpacing=["1e30", "1e30"]), "either"),
        "no spacing": (make(_at(-1, PixelSpacing=None)), "refused"),
        "slope 0": (make(RescaleSlope=0), "either"),
        "slope 1e38": (make(RescaleSlope="1e38"), "either"),
        "7 bits": (make(BitsAllocated=7), "refused"),
        "64 bits": (make(BitsAllocated=64, BitsStored=64, HighBit=63), "refused"),
        "three samples": (make(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "refused"),
        "10^6 frames": (make(NumberOfFrames=10**6), "refused"),
        "-1 frames": (make(NumberOfFrames=-1), "refused"),
        "20 levels": (make(after=partial(_nest, levels=20)), "right"),
        "5000 levels": (make(after=partial(_nest, levels=5000)), "either"),
        "text of another alphabet": (make(SpecificCharacterSet="ISO 2022 IR 999"), "either"),
        "no series": (make(_at(-1, SeriesInstanceUID=None)), "either"),
        "a UID that is none": (make(SeriesInstanceUID="../../x"), "either"),
        "a description that is a path": (make(SeriesDescription="../../../tmp/x"), "either"),
        "an empty description": (make(SeriesDescription=""), "either"),
        "half of a file": (make(after=_halve), "refused"),
        "an empty file": (make(after=partial(_replace, name="003.dcm", content=b"")), "refused"),
        "a file of text": (
            make(after=partial(_replace, name="003.dcm", content=b"text" * 100)),
            "refused",
        ),
        "a file of zeros": (
            make(after=partial(_replace, name="003.dcm", content=bytes(9000))),
            "refused",
        ),
        "a preamble alone": (
            make(after=partial(_replace, name="003.dcm", content=bytes(128) + b"DICM")),
            "refused",
        ),
        "noise behind a preamble": (
            make(
                after=partial(
                    _replace,
                    name="003.dcm",
                    content=bytes(128) + b"DICM" + np.random.default_rng(0).bytes(3000),
                )
            ),
            "refused",
        ),
        "a length of 4 GB": (
            make(
                after=partial(
                    _replace,
                    name="003.dcm",
                    content=bytes(128) + b"DICM\x08\0\x05\0OB\0\0\xf0\xff\xff\xff",
                )
            ),
            "refused",
        ),
    }
    for what, (function, expected) in cases.items():
        yield Member(f"dicom/{what}", "series", function, expected, "")
    for what, put in IRREGULAR.items():
        yield Member(
            f"dicom/a slice is {what}",
            "series",
            make(after=partial(_instead, put=put)),
            "either",
            "",
        )


def corpus() -> list[Member]:
    """Every malformed input."""
    kinds = (_headers, _cuts, _bombs, _arrays, _pairs, _metas, _nrrds, _pngs, _tiffs, _bmps)
    kinds = (*kinds, _jpegs, _gipls, _irregular, _names, _datasets, _dicoms)
    return [member for kind in kinds for member in kind()]
