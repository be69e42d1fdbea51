"""Reads and writes image files with SimpleITK.

The voxels of NIfTI files are read in io.nifti, which also explains why.
"""

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import replacing
from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.grids import geometry_from_xyz, orthonormal
from autoliver.io.header import (
    Header,
    OpenedFile,
    bad_numbers,
    file_type,
    label_ending,
    numbers,
    unreadable,
)
from autoliver.io.nifti import read_parts as read_nifti_parts
from autoliver.io.nifti import read_sheared_header, sform_note
from autoliver.io.nifti import read_voxels as read_nifti_voxels
from autoliver.io.nifti_forms import (
    Placed,
    RawForms,
    kept_forms,
    own_header,
    place,
    read_forms,
    write_forms,
)
from autoliver.io.nifti_header import check_nifti_header
from autoliver.io.paths import check_printable
from autoliver.io.text_headers import check_text_header
from autoliver.io.tiff import check_tiff
from autoliver.io.volume import FLAT_SPACING, Geometry, is_flat

Array = npt.NDArray[Any]

_NIFTI = (".nii.gz", ".nii")
_FLAT_ONLY = (".png", ".bmp", ".jpg", ".jpeg")
# The libraries for these formats write to file descriptor 2, which no setting of ITK prevents.
_NOISY = (
    ".mha",
    ".mhd",
    ".nrrd",
    ".nhdr",
    ".tif",
    ".tiff",
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".hdr",
    "",
)
# What ITK reads each type with.
_READERS = {
    **dict.fromkeys((".nii.gz", ".nii", ".hdr"), "NiftiImageIO"),
    **dict.fromkeys((".nrrd", ".nhdr"), "NrrdImageIO"),
    **dict.fromkeys((".mha", ".mhd"), "MetaImageIO"),
    **dict.fromkeys((".tif", ".tiff"), "TIFFImageIO"),
    **dict.fromkeys((".jpg", ".jpeg"), "JPEGImageIO"),
    **{".gipl": "GiplImageIO", ".png": "PNGImageIO", ".bmp": "BMPImageIO"},
}
_GIPL_HEADER_BYTES = 256
_PROBE_BYTES = 1 << 24
# Three direction cosines that span less lie in one plane.
_LEAST_VOLUME = 1e-6


def _sitk() -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


_SILENCE = threading.Lock()


@contextlib.contextmanager
def _quiet(path: Path, *, always: bool = False) -> Iterator[None]:
    # Only for the formats that need it, since the messages of other threads are lost meanwhile.
    if not always and file_type(path) not in _NOISY:
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
    ending = file_type(path)
    check_text_header(path)
    if ending in (*_NIFTI, ".hdr"):
        check_nifti_header(path)
    elif ending in (".tif", ".tiff"):
        check_tiff(path)
    forms = read_forms(path) if ending in (*_NIFTI, ".hdr") else None
    placed = None if forms is None else place(path, forms)
    if forms is not None and placed is not None and placed.geometry is not None:
        own = own_header(forms, placed.geometry, placed.note)
        if own is not None and ending in _NIFTI:
            return _opened(path, own, None)
    reader = _sitk().ImageFileReader()
    # ITK does not recognise all types by an ending in capitals.
    if ending and not path.name.endswith(ending):
        reader.SetImageIO(_READERS[ending])
    try:
        with _spelt(path, ending) as name:
            reader.SetFileName(str(name))
            with _quiet(path, always=placed is not None and bool(placed.note)):
                reader.ReadImageInformation()
        reader.SetFileName(str(path))
    except RuntimeError as error:
        if "orthonormal" not in str(error):
            raise unreadable(path, "no known image format, or its header is damaged") from None
        header, reader = read_sheared_header(path), None
    else:
        header = _itk_header(path, reader, None if placed is None else placed.geometry)
    if placed is not None and forms is not None:
        header = _placed_header(header, forms, placed)
    return _opened(path, header, reader)


@contextlib.contextmanager
def _spelt(path: Path, ending: str) -> Iterator[Path]:
    """The path, or a link to it whose ending ITK takes: NIfTI's not in small and capital letters.

    The voxels of NIfTI files are not read by ITK.
    """
    if ending not in (*_NIFTI, ".hdr") or path.name.endswith((ending, ending.upper())):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"image{ending}"
        link.symlink_to(path.absolute())
        yield link


def _placed_header(header: Header, forms: RawForms, placed: Placed) -> Header:
    """The header with what ITK does not say of a NIfTI file's place."""
    geometry = placed.geometry or header.geometry
    note = placed.note
    if note and placed.geometry is None:
        used = geometry.spacing_mm, geometry.origin_xyz, geometry.direction
        note += "; used: spacing (z, y, x) {}, origin {}, direction {}".format(*map(numbers, used))
    # What ITK took instead of a form that is not valid is said in the note already.
    notes = [note] if placed.geometry is not None else [header.note, note]
    return header.replace(
        geometry=geometry.replace(forms=kept_forms(forms, geometry)),
        note="; ".join(filter(None, notes)),
        doubtful=header.doubtful or bool(placed.note),
    )


def _itk_header(path: Path, reader: Any, placed: Geometry | None) -> Header:
    """What ITK says of a file, but for its place where that is known better."""
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
    spacing, origin = list(reader.GetSpacing()[:3]), list(reader.GetOrigin()[:3])
    if placed is not None:
        spacing, origin, direction = [1.0] * len(spacing), [0.0] * len(origin), np.eye(3)
    _check_numbers(path, spacing, origin, direction)
    negative = [axis for axis, mm in enumerate(spacing) if mm < 0]
    flipped = ""
    if negative:
        flipped = (
            f"spacing is {numbers(spacing)} (x, y, z): absolute values used, the direction of "
            "negative axes flipped"
        )
        direction[:, negative] *= -1
        spacing = [abs(mm) for mm in spacing]
    direction, note = orthonormal(direction)
    if dimension == 2:
        size, spacing, origin = (*size, 1), [*spacing, FLAT_SPACING * max(spacing)], [*origin, 0.0]
    return Header(
        geometry=geometry_from_xyz(size[:3], spacing, origin, direction),
        channels=size[3] if dimension == 4 else components,
        pixel_type=kind,
        integer="integer" in kind,
        note="; ".join(filter(None, [flipped, note or sform_note(reader)])),
        doubtful=bool(flipped),
    )


def _check_numbers(path: Path, spacing: list[float], origin: list[float], direction: Array) -> None:
    """Refuses numbers that ITK hands on from a header; those in text are checked before."""
    if not (np.isfinite(spacing).all() and all(spacing)):
        raise bad_numbers(path, "spacing", numbers(spacing), "lengths other than zero, in mm")
    if not np.isfinite(origin).all():
        raise bad_numbers(path, "origin", numbers(origin), "finite numbers")
    whole = np.isfinite(direction).all() and abs(np.linalg.det(direction)) > _LEAST_VOLUME
    if not whole:
        raise bad_numbers(
            path, "direction", numbers(direction.ravel()), "three directions in space"
        )


def _opened(path: Path, header: Header, reader: Any) -> OpenedFile:
    """A file whose header is read; `reader` is None if ITK need not or cannot read it."""
    shape = (header.channels, *header.geometry.shape_zyx)
    nifti = file_type(path) in (*_NIFTI, ".hdr")
    if reader is None or (nifti and reader.GetNumberOfComponents() == 1):
        return OpenedFile(
            header,
            lambda: read_nifti_voxels(path).reshape(shape),
            lambda: read_nifti_parts(path),
        )
    return OpenedFile(header, lambda: _read_voxels(path, header, reader))


def _read_voxels(path: Path, header: Header, reader: Any) -> Array:
    """Reads the voxels (c, z, y, x) with ITK."""
    shape = (header.channels, *header.geometry.shape_zyx)
    ending = file_type(path)
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


def gdcm_voxels(path: Path) -> Array:
    """Decodes the voxels of a DICOM file with GDCM, which ITK contains.

    Returns:
        The voxels (frames, rows, columns), rescaled as one header for all of them says.

    Raises:
        RuntimeError: GDCM cannot decode them.
    """
    reader = _sitk().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    with _quiet(path, always=True):
        array: Array = _sitk().GetArrayFromImage(reader.Execute())
    return array


def write_file(
    path: Path, array_czyx: Array, geometry: Geometry, *, compressed: bool = True
) -> None:
    """Writes an image with ITK; see `io.files.write_image` for arguments and errors."""
    check_printable(path)
    ending = file_type(path)
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
                _sitk().WriteImage(image, str(beside), compressed and ending not in _FLAT_ONLY)
            del image  # before the file is read again
            if not beside.stat().st_size:
                raise _unwritable(path, RuntimeError("nothing was written"))
            # ITK does not notice a full disk when it writes these two formats.
            if ending in _NIFTI or ending == ".gipl":
                open_file(beside).voxels()
            if ending in _NIFTI and geometry.forms is not None:
                write_forms(beside, geometry.forms)
        except (RuntimeError, DatasetError) as error:
            _raise_cause(beside, array_czyx.nbytes)
            raise _unwritable(path, error) from error


def _raise_cause(path: Path, size_bytes: int) -> None:
    """Writes as many bytes as the image has, so that the system says why ITK could not."""
    zeros = bytes(min(size_bytes, _PROBE_BYTES))
    with path.open("wb") as file:
        for _ in range(0, size_bytes, _PROBE_BYTES):
            file.write(zeros)
        file.flush()
        os.fsync(file.fileno())


def _unwritable(path: Path, error: Exception) -> AutoliverError:
    reason = str(error).strip().splitlines()[-1]
    return AutoliverError(
        f"{path}: cannot be written: {reason}.",
        hint="Check the space on the disk, or choose another file type, e.g. .nii.gz.",
    )


def _to_itk(path: Path, array_czyx: Array, geometry: Geometry) -> Any:
    sitk = _sitk()
    if array_czyx.ndim != 4 or array_czyx.shape[1:] != geometry.shape_zyx:
        raise ValueError(f"{array_czyx.shape} is not on a grid of {geometry.shape_zyx}")
    only_flat = file_type(path) in _FLAT_ONLY
    slices = geometry.shape_zyx[0]
    if only_flat and slices > 1:
        raise AutoliverError(
            f"{path}: {slices} slices, but this file type holds one.", hint="Choose .nii.gz."
        )
    space = 2 if only_flat or is_flat(geometry) else 3
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
