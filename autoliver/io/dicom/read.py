"""Reads the voxels of a DICOM series.

Stored values are decoded by pydicom where they are not compressed (or deflated), else by GDCM,
which gets a copy without rescaling. So what stored values mean is decided here alone: ITK applies
one rescaling to all frames of a file.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autoliver.errors import DatasetError
from autoliver.io.dicom.planes import BAD_VALUE, damaged_file, open_dataset, quiet
from autoliver.io.dicom.series import Series
from autoliver.io.itk import gdcm_voxels
from autoliver.io.volume import Volume
from autoliver.values import counted

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Array = npt.NDArray[Any]

# Compressed syntaxes that GDCM decodes: JPEG, JPEG-LS, JPEG 2000 and RLE.
_GDCM = (
    *(f"1.2.840.10008.1.2.4.{end}" for end in ("50", "51", "57", "70", "80", "81", "90", "91")),
    "1.2.840.10008.1.2.5",
)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# What the layout of stored values is read from.
_LAYOUT = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
# More rows or columns are taken for a damaged header where the voxels are compressed.
_MOST = 1 << 14


def read_series(series: Series) -> Volume:
    """Reads a series, with rescaling as its headers say.

    The public RescaleSlope and RescaleIntercept of each slice or frame are applied, as ITK does;
    private ones (Philips: 2005,100E and 2005,100D) are not.

    Returns:
        The image (1, z, y, x): int16 where that holds all values, else float32.

    Raises:
        DatasetError: A file is damaged, changed, or compressed in a way that cannot be read.
        MachineError: The system refuses to read a file.
    """
    shape = series.geometry.shape_zyx
    array = np.empty(0, np.float32)
    padded: list[tuple[int, Array]] = []
    whole, inverted = True, 0
    for file, indices in _by_file(series).items():
        data = open_dataset(file)
        with quiet():
            frames = _stored(file, data)
            if not array.size:  # not before a file is known to hold what its header declares
                array = np.empty(shape, np.float32)
            for index in indices:
                stored = _frame(file, frames, series.slices[index].frame, shape[1:])
                padding = _padding(data, stored)
                if padding.any():
                    padded.append((index, padding))
                if _is_inverted(data, series.modality):
                    stored = _mirrored(stored, data)
                    inverted += 1
                slope, intercept = _rescaling(file, data, series.slices[index].frame)
                whole &= slope.is_integer() and intercept.is_integer()
                array[index] = stored.astype(np.float64) * slope + intercept
    notes = list(series.notes)
    if inverted:
        notes.append(f"MONOCHROME1: {counted(inverted, 'slice')} inverted, so that bright is high.")
    if filled := _fill(array, padded):
        notes.append(f"Padding above all other values was set to the lowest one: {filled} voxels.")
    small = np.iinfo(np.int16)
    if whole and array.min() >= small.min and array.max() <= small.max:
        array = array.astype(np.int16)
    return Volume(array=array[None], geometry=series.geometry, notes=tuple(notes))


def _by_file(series: Series) -> dict[Path, list[int]]:
    """File -> the z of its slices, so that each file is read once."""
    found: dict[Path, list[int]] = {}
    for index, each in enumerate(series.slices):
        found.setdefault(each.file, []).append(index)
    return found


def _frame(file: Path, frames: Array, number: int | None, size: tuple[int, ...]) -> Array:
    index = (number or 1) - 1
    if index >= len(frames) or frames.shape[1:] != size:
        raise damaged_file(
            file, f"it holds {len(frames)} x {frames.shape[1:]} voxels, expected {size}"
        )
    stored: Array = frames[index]
    return stored


def _stored(file: Path, data: "Dataset") -> Array:
    """The stored values (frames, rows, columns)."""
    try:
        layout = [int(data[keyword].value) for keyword in _LAYOUT]
        frames = int(data.get("NumberOfFrames") or 1)
        syntax = str(data.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))
        pixels = data.get("PixelData")
    except BAD_VALUE as error:
        raise damaged_file(file, f"its layout of voxels is not stated: {error}") from None
    if not pixels:
        raise damaged_file(file, "it holds no voxels (PixelData)")
    rows, columns, allocated, stored, high, signed = layout
    if allocated not in (8, 16, 32) or not 0 < stored <= high + 1 <= allocated:
        raise damaged_file(file, f"{allocated} bits of a voxel, of which {stored} up to {high}")
    if frames < 1 or data.get("ModalityLUTSequence"):
        what = "a table of values (ModalityLUTSequence)" if frames > 0 else f"{frames} frames"
        raise damaged_file(file, f"{what} cannot be used")
    if syntax in _GDCM:
        if max(rows, columns) > _MOST:
            raise damaged_file(file, f"{rows} rows and {columns} columns are declared")
        values = _decompressed(file, data, frames)
    elif data.file_meta.get("TransferSyntaxUID") and data.file_meta.TransferSyntaxUID.is_compressed:
        name = data.file_meta.TransferSyntaxUID.name
        if name != "Deflated Explicit VR Little Endian":
            raise DatasetError(
                f"{file}: {name} cannot be decoded; expected JPEG, JPEG-LS, JPEG 2000, RLE or no "
                "compression.",
                hint="Decompress the series, e.g. with GDCM's gdcmconv.",
            )
        values = _native(file, data, layout, frames)
    else:
        values = _native(file, data, layout, frames)
    return _stored_bits(values.reshape(frames, rows, columns), stored, high, signed)


def _native(file: Path, data: "Dataset", layout: list[int], frames: int) -> Array:
    """Stored values that are not compressed."""
    rows, columns, allocated, _, _, _ = layout
    expected = rows * columns * frames * allocated // 8
    if len(data.PixelData) < expected:
        raise damaged_file(file, f"{len(data.PixelData)} bytes of voxels, expected {expected}")
    order = ">" if data.original_encoding[1] is False else "<"
    if order == ">" and allocated == 8:  # bytes in swapped pairs, which pydicom undoes
        order = "<"
    kind = np.dtype(f"{order}u{allocated // 8}")
    count = rows * columns * frames
    return np.frombuffer(data.PixelData, kind, count).astype(kind.newbyteorder("="))


def _decompressed(file: Path, data: "Dataset", frames: int) -> Array:
    """Stored values, decoded by GDCM from a copy that says nothing but their layout."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    copy, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = copy.SOPClassUID = UID(_SECONDARY_CAPTURE)
    meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID = UID("1.2.3")
    copy.SamplesPerPixel, copy.PhotometricInterpretation = 1, "MONOCHROME2"
    copy.NumberOfFrames = frames
    for keyword in _LAYOUT:
        copy[keyword] = data[keyword]
    copy["PixelData"] = data["PixelData"]
    copy.file_meta = meta
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "voxels.dcm"
        try:
            copy.save_as(place, enforce_file_format=True)
            values = gdcm_voxels(place)
        except (*BAD_VALUE, RuntimeError) as error:
            raise damaged_file(file, f"its compressed voxels are damaged ({error})") from None
    if values.size != frames * int(data.Rows) * int(data.Columns):
        raise damaged_file(file, "its compressed voxels are cut short")
    return values


def _stored_bits(values: Array, stored: int, high: int, signed: int) -> Array:
    """Keeps the bits that are values: others hold overlays, or nothing."""
    size = values.dtype.itemsize
    unsigned, kind = np.dtype(f"u{size}"), np.dtype(f"i{size}" if signed else f"u{size}")
    bits = values.view(unsigned) << unsigned.type(8 * size - 1 - high)
    kept: Array = bits.view(kind) >> kind.type(8 * size - stored)
    return kept


def _parts(data: "Dataset", frame: int | None) -> "Iterator[Dataset]":
    """The parts of a header that concern a frame, the nearest one first."""
    if frame is not None:
        for keyword, index in (
            ("PerFrameFunctionalGroupsSequence", frame - 1),
            ("SharedFunctionalGroupsSequence", 0),
        ):
            items = data.get(keyword) or []
            if index < len(items):
                yield from (items[index].get("PixelValueTransformationSequence") or [])[:1]
    yield data


def _rescaling(file: Path, data: "Dataset", frame: int | None) -> tuple[float, float]:
    """The slope and intercept of a slice."""
    for part in _parts(data, frame):
        slope, intercept = part.get("RescaleSlope"), part.get("RescaleIntercept")
        if slope in (None, "") and intercept in (None, ""):
            continue
        try:
            found = float(1 if slope in (None, "") else slope), float(intercept or 0)
        except BAD_VALUE:
            found = (0.0, 0.0)
        if not np.isfinite(found).all() or found[0] == 0:
            raise damaged_file(file, f"RescaleSlope is {slope}, RescaleIntercept {intercept}")
        return found
    return 1.0, 0.0


def _padding(data: "Dataset", stored: Array) -> Array:
    """Where a slice holds padding, in stored values."""
    try:
        low = int(data.get("PixelPaddingValue"))
        high = data.get("PixelPaddingRangeLimit")
        ends = sorted((low, low if high is None else int(high)))
    except BAD_VALUE:
        return np.zeros((), bool)
    if stored.dtype.kind == "u":  # stored as if it was signed
        ends = [end % (1 << stored.dtype.itemsize * 8) for end in ends]
    return (stored >= ends[0]) & (stored <= ends[1])


def _fill(array: Array, padded: list[tuple[int, Array]]) -> int:
    """Sets padding that lies above all other values to the lowest one; returns its number.

    Padding below all others stays: that is what other converters do.
    """
    if not padded:
        return 0
    valid = np.ones(array.shape, bool)
    for index, mask in padded:
        valid[index] &= ~mask
    if valid.all() or not valid.any() or array[~valid].min() <= array[valid].max():
        return 0
    array[~valid] = array[valid].min()
    return int(np.count_nonzero(~valid))


def _is_inverted(data: "Dataset", modality: str) -> bool:
    """Whether high values are shown dark: in CT they are HU all the same."""
    shown = str(data.get("PhotometricInterpretation", ""))
    return shown == "MONOCHROME1" and modality != "CT"


def _mirrored(stored: Array, data: "Dataset") -> Array:
    """Exchanges high and low values within the bits that are stored."""
    signed = int(data.PixelRepresentation)
    total = -1 if signed else (1 << int(data.BitsStored)) - 1
    return total - stored.astype(np.int64)
