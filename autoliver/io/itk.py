"""Image files <-> volumes, through SimpleITK.

The voxels of NIfTI files are read in io.nifti, which also says why.
"""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import disk_error, replacing
from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.grids import compare_grids, geometry_from_xyz, orthonormal
from autoliver.io.header import Header, label_ending, split_ending, unreadable
from autoliver.io.nifti import read_sheared_header, read_voxels, sform_note
from autoliver.io.volume import Geometry, Volume

Array = npt.NDArray[Any]

_NIFTI = (".nii.gz", ".nii")
_FLAT_ONLY = (".png", ".bmp", ".jpg", ".jpeg")
# Their libraries write to file descriptor 2, past every switch of ITK's.
_NOISY = (".mha", ".mhd", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".hdr", "")
_GIPL_HEADER_BYTES = 256
# Slice spacing given to 2D images, in units of their in-plane spacing: that of nnU-Net, and our
# mark that the file was 2D.
_FLAT_SPACING = 999.0
# How far a stored label may be from a whole number: scaled types round.
_WHOLE = 1e-4


class NotWholeNumbers(DatasetError):
    """A label file holds values that are not whole numbers."""


def read_header(path: str | Path) -> Header:
    """Reads where a file's grid lies and what it holds, not its voxels.

    Raises:
        DatasetError: The file is missing, empty, damaged or of a type that cannot be read.
    """
    return _open(Path(path))[0]


def read_image(paths: Sequence[str | Path]) -> Volume:
    """Reads the channels of one case.

    A file may be 3D (one channel), 4D (the channels are its 4th dimension), 2D (one slice, whose
    spacing is 999 times the in-plane one) or have several components per pixel (RGB).

    Args:
        paths: In channel order.

    Returns:
        float32 (c, z, y, x).

    Raises:
        DatasetError: A file cannot be read, or the files do not share one grid.
    """
    files = [Path(path) for path in paths]
    opened = [_open(file) for file in files]
    geometry = opened[0][0].geometry
    for file, (header, _) in zip(files, opened, strict=True):
        _same_grid(files[0], geometry, file, header.geometry)
    channels = sum(header.channels for header, _ in opened)
    array = np.empty((channels, *geometry.shape_zyx), dtype=np.float32)
    start = 0
    for file, (header, reader) in zip(files, opened, strict=True):
        array[start : start + header.channels] = _voxels(file, header, reader)
        start += header.channels
    return Volume(array=array, geometry=geometry)


def read_label(path: str | Path) -> Volume:
    """Reads a label map.

    Returns:
        (1, z, y, x), in the smallest integer type that holds the values.

    Raises:
        NotWholeNumbers: It holds fractions, NaN or infinity.
        DatasetError: It cannot be read or has several channels.
    """
    path = Path(path)
    header, reader = _open(path)
    array = _voxels(path, header, reader)
    if header.channels != 1:
        raise DatasetError(
            f"{path}: {header.channels} channels, expected a label map with one.",
            hint="Save the labels as one grey image whose values are the label numbers.",
        )
    return Volume(array=_whole_numbers(path, array), geometry=header.geometry)


def write_label(path: str | Path, array_zyx: Array, geometry: Geometry) -> None:
    """Writes a label map in the file type of its ending, whole or not at all.

    Args:
        path: The file; its folder is made where missing.
        array_zyx: (z, y, x), whole numbers >= 0; the smallest unsigned type is written.
        geometry: Its grid.

    Raises:
        AutoliverError: The ending cannot hold labels, or the disk refused.
    """
    path = Path(path)
    ending = split_ending(path.name)[1].lower()
    if ending in (".jpg", ".jpeg"):
        raise AutoliverError(
            f"{path}: {ending} alters values, so it cannot hold labels.",
            hint=f"Choose {label_ending(ending)}.",
        )
    if array_zyx.min() < 0:
        raise ValueError(f"labels must be >= 0, found {array_zyx.min()}")
    smallest = np.min_scalar_type(int(array_zyx.max()))
    _write(path, array_zyx.astype(smallest)[None], geometry)


def write_image(path: str | Path, array_czyx: Array, geometry: Geometry) -> None:
    """Writes an image in the file type of its ending, whole or not at all.

    Args:
        path: The file; its folder is made where missing.
        array_czyx: (c, z, y, x) in the type to write; several channels become a 4D file.
        geometry: The grid of one channel.

    Raises:
        AutoliverError: The ending cannot hold the image, or the disk refused.
    """
    _write(Path(path), array_czyx, geometry)


def _same_grid(first: Path, grid: Geometry, second: Path, other: Geometry) -> None:
    for difference in compare_grids(grid, other):
        if not difference.rounding:
            one, two = difference.values()
            raise DatasetError(
                f"The channels of one case differ in {difference.what}: {first} has {one}, "
                f"{second} has {two}.",
                hint="Resample the channels to one grid before using them together.",
            )


def _sitk() -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


_SILENCE = threading.Lock()


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    # Only for the formats that need it: meanwhile other threads' messages would be lost too.
    if split_ending(path.name)[1].lower() not in _NOISY:
        yield
        return
    with _SILENCE:
        saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(null)


def _open(path: Path) -> tuple[Header, Any]:
    """The header and ITK's reader; None for it where ITK refuses the header."""
    _check_file(path)
    reader = _sitk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _quiet(path):
            reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            return read_sheared_header(path), None
        raise unreadable(path, "no known image format, or its header is damaged") from None
    return _itk_header(path, reader), reader


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DatasetError(
            f"{path}: a folder, expected an image file.",
            hint="Convert a folder of DICOM slices to one NIfTI file first.",
        )
    if not path.exists():
        raise DatasetError(f"{path}: there is no such file.", hint="Check the path.")
    if path.stat().st_size == 0:
        raise unreadable(path, "the file is empty")


def _itk_header(path: Path, reader: Any) -> Header:
    size, dimension = reader.GetSize(), reader.GetDimension()
    components = reader.GetNumberOfComponents()
    kind = _sitk().GetPixelIDValueAsString(reader.GetPixelID())
    if dimension > 4 or (dimension == 4 and components > 1) or "complex" in kind:
        raise DatasetError(
            f"{path}: {dimension} dimensions of {kind}, expected up to 3 and channels.",
            hint="Save each channel as a 3D file of its own.",
        )
    matrix = np.array(reader.GetDirection()).reshape(dimension, dimension)
    space = min(dimension, 3)
    direction = np.eye(3)
    direction[:space, :space] = matrix[:space, :space]
    direction, note = orthonormal(direction)
    spacing, origin = list(reader.GetSpacing()[:3]), list(reader.GetOrigin()[:3])
    if dimension == 2:
        size, spacing, origin = (*size, 1), [*spacing, _FLAT_SPACING * max(spacing)], [*origin, 0.0]
    return Header(
        geometry=geometry_from_xyz(size[:3], spacing, origin, direction),
        channels=size[3] if dimension == 4 else components,
        pixel_type=kind,
        integer="integer" in kind,
        note=note or sform_note(reader),
    )


def _voxels(path: Path, header: Header, reader: Any) -> Array:
    """The voxels in the file's own type, (c, z, y, x)."""
    shape = (header.channels, *header.geometry.shape_zyx)
    ending = split_ending(path.name)[1].lower()
    if reader is None or (ending in _NIFTI and reader.GetNumberOfComponents() == 1):
        return read_voxels(path).reshape(shape)
    if ending == ".gipl":
        _check_gipl(path, reader)
    try:
        with _quiet(path):
            image = reader.Execute()
    except RuntimeError:
        raise unreadable(path, "its voxels are damaged or cut short") from None
    array: Array = _sitk().GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    if array.size != np.prod(shape):
        raise unreadable(path, f"it holds {array.size} voxels, its header says {np.prod(shape)}")
    return array.reshape(shape)


def _check_gipl(path: Path, reader: Any) -> None:
    image_bytes = (
        int(np.prod(reader.GetSize()))
        * _sitk().Image(1, 1, reader.GetPixelID()).GetSizeOfPixelComponent()
    )
    if path.stat().st_size < _GIPL_HEADER_BYTES + image_bytes:
        raise unreadable(path, f"it has {path.stat().st_size} bytes, too few for its header")


def _whole_numbers(path: Path, array: Array) -> Array:
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            odd = ~(np.abs(array - np.rint(array)) <= _WHOLE)  # so that NaN is odd, too
        if odd.any():
            raise NotWholeNumbers(
                f"{path}: {int(odd.sum())} voxels hold values that are not whole numbers, "
                f"e.g. {array[odd][0]:g}; expected label numbers.",
                hint="Export the labels anew without interpolation (nearest neighbour).",
            )
        array = np.rint(array)
    low, high = int(array.min()), int(array.max())
    smallest = np.min_scalar_type(high if low >= 0 else min(low, -high - 1))
    return np.ascontiguousarray(array, dtype=smallest)


def _write(path: Path, array_czyx: Array, geometry: Geometry) -> None:
    ending = split_ending(path.name)[1].lower()
    if not ending or ending in (".nhdr", ".mhd", ".hdr"):
        raise AutoliverError(
            f"{path}: images cannot be written with this ending.",
            hint=f"Choose {label_ending(ending) or '.nii.gz'}.",
        )
    image = _to_itk(path, array_czyx, geometry)
    with replacing(path) as beside:
        # Gives the disk's own reason, which ITK keeps to itself.
        beside.touch()
        try:
            with _quiet(path):
                _sitk().WriteImage(image, str(beside), ending not in _FLAT_ONLY)
            # ITK does not notice a full disk when it writes these two.
            if ending in _NIFTI or ending == ".gipl":
                _voxels(beside, *_open(beside))
        except (RuntimeError, DatasetError) as error:
            raise _unwritable(path, array_czyx.nbytes, error) from error


def _unwritable(path: Path, size_bytes: int, error: Exception) -> AutoliverError:
    if shutil.disk_usage(path.parent).free < size_bytes + 2**20:
        return disk_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    reason = str(error).strip().splitlines()[-1]
    return AutoliverError(
        f"{path}: cannot be written: {reason}.",
        hint="Check the space on the disk, or choose another file type, e.g. .nii.gz.",
    )


def _to_itk(path: Path, array_czyx: Array, geometry: Geometry) -> Any:
    sitk = _sitk()
    if array_czyx.ndim != 4 or array_czyx.shape[1:] != geometry.shape_zyx:
        raise ValueError(f"{array_czyx.shape} is not on a grid of {geometry.shape_zyx}")
    only_flat = split_ending(path.name)[1].lower() in _FLAT_ONLY
    slices = geometry.shape_zyx[0]
    if only_flat and slices > 1:
        raise AutoliverError(
            f"{path}: {slices} slices, this file type holds one.", hint="Choose .nii.gz."
        )
    in_plane = max(geometry.spacing_mm[1:])
    was_flat = slices == 1 and geometry.spacing_mm[0] >= 0.999 * _FLAT_SPACING * in_plane
    space = 2 if only_flat or was_flat else 3
    channels = array_czyx.shape[0]
    array = array_czyx[:, 0] if space == 2 else array_czyx
    if channels == 1 or space == 2:
        array = array[0] if channels == 1 else np.moveaxis(array, 0, -1)
    image = sitk.GetImageFromArray(array, isVector=channels > 1 and space == 2)
    total = image.GetDimension()
    direction = np.eye(total)
    direction[:space, :space] = np.array(geometry.direction).reshape(3, 3)[:space, :space]
    padding = total - space
    image.SetSpacing([*geometry.spacing_mm[::-1][:space], *[1.0] * padding])
    image.SetOrigin([*geometry.origin_xyz[:space], *[0.0] * padding])
    image.SetDirection(direction.ravel().tolist())
    return image
