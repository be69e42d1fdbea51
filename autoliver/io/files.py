"""Reads and writes images and label maps of any supported file type."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.bitmap import open_bitmap
from autoliver.io.detached import data_files
from autoliver.io.dicom.folder import open_folder
from autoliver.io.dicom.walk import holds_dicom
from autoliver.io.grids import compare_grids
from autoliver.io.header import (
    LOSSY,
    PICTURES,
    SEGMENTATION,
    Header,
    OpenedFile,
    UnreadableImage,
    bad_numbers,
    file_type,
    label_ending,
    numbers,
    split_ending,
    unreadable,
)
from autoliver.io.itk import open_file as open_itk
from autoliver.io.itk import write_file
from autoliver.io.paths import check_path
from autoliver.io.volume import Geometry, Volume
from autoliver.memory import GB, check_room
from autoliver.system import in_words, raise_refusal

T = TypeVar("T")
Array = npt.NDArray[Any]

# Ending -> the function that opens such a file; SimpleITK opens all others. The endings are listed
# in io/header.py.
_OPENERS: dict[str, Callable[[Path], OpenedFile]] = {".bmp": open_bitmap}
# Largest distance of a stored label from a whole number; scaled types are subject to rounding.
_WHOLE = 1e-4
_LARGEST_LABEL = 2**31 - 1
# No scanner has voxels of more mm; resampled, such an image would take hours. Of several voxels.
_LARGEST_MM = 500.0
# Images are read as float32; whether one fits is asked of the system from a size on.
_VOXEL_BYTES = 4
_SMALL_GB = 0.25
# A picture of so many pixels that has less than this share of a byte for each shows nothing.
_LARGE_PICTURE = 10**8
_LEAST_BYTES = 1 / 200
_GREY = "Save the labels as one grey image whose values are the label numbers."
_ONE_LABEL_MAP = {
    SEGMENTATION: "Its segments overlap. In 3D Slicer, export it with 'Export to files' as one "
    "label map (.nrrd), in the order in which segments may cover each other.",
}


class StoredImage(NamedTuple):
    """The voxels of an image file.

    Attributes:
        array: (c, z, y, x), as the pipeline sees them.
        parts: Reads the voxels in the file's own type part by part, (n,), in the order of the
            array; None: every value of that type is the same in float32.
    """

    array: npt.NDArray[np.float32]
    parts: Callable[[], Iterator[Array]] | None


class NotWholeNumbers(DatasetError):
    """A label file holds values that are not whole numbers."""


def read_header(path: str | Path) -> Header:
    """Reads a file's grid, channels and type, but not its voxels.

    Raises:
        DatasetError: The file is missing, empty, damaged or of a type that cannot be read.
    """
    return _open(Path(path)).header


def read_image(paths: Sequence[str | Path]) -> Volume:
    """Reads the channels of one case.

    A file may be 3D (one channel), 4D (the channels are its 4th dimension), 2D (one slice, whose
    spacing is 999 times the in-plane one) or have several components per pixel (RGB). A folder
    with the slices of one DICOM series counts as a file.

    Args:
        paths: The files in channel order.

    Returns:
        The image as float32, (c, z, y, x).

    Raises:
        DatasetError: A file cannot be read, or the files do not share one grid.
    """
    files = [Path(path) for path in paths]
    opened = [_open(file) for file in files]
    geometry = opened[0].header.geometry
    for file, one in zip(files, opened, strict=True):
        _same_grid(files[0], geometry, file, one.header.geometry)
    channels = sum(one.header.channels for one in opened)
    array = np.empty((channels, *geometry.shape_zyx), dtype=np.float32)
    start = 0
    for file, one in zip(files, opened, strict=True):
        part = array[start : start + one.header.channels]
        # What float32 cannot hold becomes infinite, which whoever uses the image refuses.
        with np.errstate(over="ignore", under="ignore"):
            _whole_or_refused(file, partial(one.fill, part))
        start += one.header.channels
    notes = [(file, one.header) for file, one in zip(files, opened, strict=True)]
    return Volume(
        array=array,
        geometry=geometry,
        notes=tuple(f"{file}: {header.note}." for file, header in notes if header.doubtful),
    )


def read_stored(path: str | Path) -> Array:
    """Reads the voxels of one image file in the file's own type, (c, z, y, x).

    Raises:
        DatasetError: It cannot be read.
    """
    return _open(Path(path)).voxels()


def read_values(path: str | Path) -> StoredImage:
    """Reads one image file as float32, and says how to read what is stored where that differs.

    Raises:
        DatasetError: It cannot be read.
    """
    file = Path(path)
    opened = _open(file)
    if opened.parts is None:
        stored = opened.voxels()
        exact = _is_exact(stored.dtype)
        with np.errstate(over="ignore", under="ignore"):
            array = np.ascontiguousarray(stored, dtype=np.float32)
        return StoredImage(array, None if exact else lambda: iter([stored.reshape(-1)]))
    parts = opened.parts
    first = _whole_or_refused(file, lambda: next(parts()).dtype)
    array = np.empty((opened.header.channels, *opened.header.geometry.shape_zyx), np.float32)
    with np.errstate(over="ignore", under="ignore"):
        _whole_or_refused(file, lambda: opened.fill(array))
    return StoredImage(array, None if _is_exact(first) else parts)


def _is_exact(kind: "np.dtype[Any]") -> bool:
    """Whether float32 holds every value of a type."""
    return np.can_cast(kind, np.float32, casting="safe")


def read_label(path: str | Path) -> Volume:
    """Reads a label map.

    Returns:
        The label map (1, z, y, x) in the smallest integer type that holds its values.

    Raises:
        NotWholeNumbers: The file holds fractions, NaN or infinity.
        DatasetError: The file cannot be read, has several channels, or is of a type that alters
            values.
    """
    path = Path(path)
    if path.is_dir():
        check_path(path)
    if file_type(path) in LOSSY:
        raise DatasetError(
            f"{path}: a label map in a JPEG file, whose compression alters its values.",
            hint="Export the labels again as PNG or NIfTI from where they were drawn. Converting "
            "the JPEG file would keep the altered values.",
        )
    opened = _open(path)
    header, array = opened.header, opened.voxels()
    if header.channels != 1:
        raise DatasetError(
            f"{path}: {header.channels} channels, expected a label map with one.",
            hint=_ONE_LABEL_MAP.get(split_ending(path.name)[1].lower(), _GREY),
        )
    return Volume(array=_whole_numbers(path, array), geometry=header.geometry)


def write_label(path: str | Path, array_zyx: Array, geometry: Geometry) -> None:
    """Writes a label map atomically; the file ending decides on the file type.

    Args:
        path: The file; its folder is created if it is missing.
        array_zyx: Labels (z, y, x), whole numbers >= 0; written in the smallest unsigned type that
            holds them.
        geometry: The grid of the labels.

    Raises:
        AutoliverError: This file type cannot hold labels, or the file cannot be written.
    """
    path = Path(path)
    ending = file_type(path)
    if ending in LOSSY:
        raise AutoliverError(
            f"{path}: {ending} alters values, so it cannot hold labels.",
            hint=f"Choose {label_ending(ending)}.",
        )
    if array_zyx.min() < 0:
        raise ValueError(f"labels must be >= 0, found {array_zyx.min()}")
    smallest = np.min_scalar_type(int(array_zyx.max()))
    write_file(path, array_zyx.astype(smallest, copy=False)[None], geometry)


def write_image(
    path: str | Path, array_czyx: Array, geometry: Geometry, *, compressed: bool = True
) -> None:
    """Writes an image atomically; the file ending decides on the file type.

    Args:
        path: The file; its folder is created if it is missing.
        array_czyx: The image (c, z, y, x) in the data type to write; several channels are written
            as a 4D file.
        geometry: The grid of one channel.
        compressed: Whether the voxels are compressed, if the file type can be either way.

    Raises:
        AutoliverError: This file type cannot hold the image, or the file cannot be written.
    """
    write_file(Path(path), array_czyx, geometry, compressed=compressed)


def _open(path: Path) -> OpenedFile:
    if holds_dicom(path):
        opened = open_folder(path)
        _check_size(path, opened.header)
        return opened
    check_path(path)
    opener = _OPENERS.get(file_type(path), open_itk)
    opened = _whole_or_refused(path, lambda: opener(path))
    _check_size(path, opened.header)
    return OpenedFile(opened.header, lambda: _whole_or_refused(path, opened.voxels), opened.parts)


def _check_size(path: Path, header: Header) -> None:
    """Refuses an image without voxels, and one that does not fit into the memory that is free."""
    sizes = (header.channels, *header.geometry.shape_zyx)
    if min(sizes) < 1:
        shown = " x ".join(map(str, sizes))
        raise unreadable(path, f"its header says {shown} voxels (c, z, y, x)")
    spacing = header.geometry.spacing_mm
    if any(
        n > 1 and mm > _LARGEST_MM for n, mm in zip(header.geometry.shape_zyx, spacing, strict=True)
    ):
        raise bad_numbers(
            path, "spacing", numbers(spacing), f"at most {_LARGEST_MM:g} mm (z, y, x)"
        )
    voxels, held = math.prod(sizes), path.stat().st_size
    if file_type(path) in PICTURES and voxels > _LARGE_PICTURE and held < voxels * _LEAST_BYTES:
        raise unreadable(path, f"it has {held} bytes, its header says {voxels} pixels")
    needed_gb = voxels * _VOXEL_BYTES / GB
    if needed_gb > _SMALL_GB:
        check_room(needed_gb, case=str(path), what=f"it has {voxels} voxels")


def _whole_or_refused(path: Path, read: Callable[[], T]) -> T:
    """Reads a file; if its reader calls it damaged, looks whether it is the system that fails.

    Raises:
        DatasetError: The file is damaged.
        MachineError: The system refuses to read it, or the file with its voxels.
    """
    with in_words(path, verb="read"):
        try:
            return read()
        except UnreadableImage as error:
            for file in data_files(path):
                raise_refusal(file, error)
        # What failed only once, as on a share, is not there any more.
        return read()


def _same_grid(first: Path, grid: Geometry, second: Path, other: Geometry) -> None:
    for difference in compare_grids(grid, other):
        if not difference.rounding:
            one, two = difference.values()
            raise DatasetError(
                f"The channels of one case differ in {difference.what}: {first} has {one}, "
                f"{second} has {two}.",
                hint="Resample the channels to one grid before using them together.",
            )


def _whole_numbers(path: Path, array: Array) -> Array:
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            odd = ~(np.abs(array - np.rint(array)) <= _WHOLE)  # written so that NaN is odd as well
        if odd.any():
            raise NotWholeNumbers(
                f"{path}: {int(odd.sum())} voxels hold values that are not whole numbers, "
                f"e.g. {array[odd][0]:g}; expected label numbers.",
                hint="Export the labels again without interpolation (nearest neighbour).",
            )
        array = np.rint(array)
    low, high = int(array.min()), int(array.max())
    if max(abs(low), high) > _LARGEST_LABEL:
        raise DatasetError(
            f"{path}: it holds the value {high if high > -low else low}; expected label numbers.",
            hint="Is it an image? Give the label map, or export it again as whole numbers.",
        )
    smallest = np.min_scalar_type(high if low >= 0 else min(low, -high - 1))
    return np.ascontiguousarray(array, dtype=smallest)
