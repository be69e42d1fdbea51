"""Reads and writes image files with SimpleITK.

The voxels of NIfTI files are read in io.nifti, which also explains why.
"""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import disk_error, replacing
from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.grids import geometry_from_xyz, orthonormal
from autoliver.io.header import Header, OpenedFile, label_ending, split_ending, unreadable
from autoliver.io.nifti import read_sheared_header, sform_note
from autoliver.io.nifti import read_voxels as read_nifti_voxels
from autoliver.io.volume import Geometry

Array = npt.NDArray[Any]

_NIFTI = (".nii.gz", ".nii")
_FLAT_ONLY = (".png", ".bmp", ".jpg", ".jpeg")
# The libraries for these formats write to file descriptor 2, which no setting of ITK prevents.
_NOISY = (".mha", ".mhd", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".hdr", "")
_GIPL_HEADER_BYTES = 256
# Slice spacing that 2D images get, as a multiple of their in-plane spacing. It is the one of
# nnU-Net, and it marks that the file was 2D.
_FLAT_SPACING = 999.0


def _sitk() -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


_SILENCE = threading.Lock()


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    # Only for the formats that need it, since the messages of other threads are lost meanwhile.
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


def open_file(path: Path) -> OpenedFile:
    """Opens a file and reads its header.

    Args:
        path: A file that exists and is not empty.

    Raises:
        DatasetError: The file is damaged or of a type that cannot be read.
    """
    reader = _sitk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _quiet(path):
            reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            header = read_sheared_header(path)
            return OpenedFile(header, lambda: _read_voxels(path, header, None))
        raise unreadable(path, "no known image format, or its header is damaged") from None
    header = _itk_header(path, reader)
    return OpenedFile(header, lambda: _read_voxels(path, header, reader))


def _itk_header(path: Path, reader: Any) -> Header:
    size, dimension = reader.GetSize(), reader.GetDimension()
    components = reader.GetNumberOfComponents()
    kind = _sitk().GetPixelIDValueAsString(reader.GetPixelID())
    if dimension > 4 or (dimension == 4 and components > 1) or "complex" in kind:
        raise DatasetError(
            f"{path}: {dimension} dimensions of {kind}, expected at most 3 and channels.",
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


def _read_voxels(path: Path, header: Header, reader: Any) -> Array:
    """Reads the voxels (c, z, y, x); `reader` is None if ITK refuses the header."""
    shape = (header.channels, *header.geometry.shape_zyx)
    ending = split_ending(path.name)[1].lower()
    if reader is None or (ending in _NIFTI and reader.GetNumberOfComponents() == 1):
        return read_nifti_voxels(path).reshape(shape)
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


def write_file(path: Path, array_czyx: Array, geometry: Geometry) -> None:
    """Writes an image with ITK; see `io.files.write_image` for arguments and errors."""
    ending = split_ending(path.name)[1].lower()
    if not ending or ending in (".nhdr", ".mhd", ".hdr"):
        raise AutoliverError(
            f"{path}: images cannot be written with this ending.",
            hint=f"Choose {label_ending(ending) or '.nii.gz'}.",
        )
    image = _to_itk(path, array_czyx, geometry)
    with replacing(path) as beside:
        # Fails with the reason of a disk error, which ITK does not report.
        beside.touch()
        try:
            with _quiet(path):
                _sitk().WriteImage(image, str(beside), ending not in _FLAT_ONLY)
            # ITK does not notice a full disk when it writes these two formats.
            if ending in _NIFTI or ending == ".gipl":
                open_file(beside).voxels()
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
            f"{path}: {slices} slices, but this file type holds one.", hint="Choose .nii.gz."
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
