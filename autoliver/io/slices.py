"""Folders of slices: a DICOM series as one volume, and label maps of one file for each slice."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.errors import DatasetError
from autoliver.io.files import read_label
from autoliver.io.grids import geometry_from_xyz
from autoliver.io.volume import Geometry
from autoliver.system import entries, in_words
from autoliver.values import counted

Array = npt.NDArray[Any]

DICOM = (".dcm", ".dicom", ".ima", "")
# Largest deviation of the distance of two slices from that of the others, as a share of it.
_UNEVEN = 0.02
# Largest difference of direction cosines within a series.
_TURNED = 1e-3
_INSTANCE, _POSITION, _ORIENTATION = "0020|0013", "0020|0032", "0020|0037"
_SPACING, _THICKNESS = "0028|0030", "0018|0050"


class Stack(NamedTuple):
    """A DICOM series.

    Attributes:
        array: (z, y, x), in the unit of the modality.
        geometry: Its grid.
        places: For each file in the order of the series (InstanceNumber, else its name): its z.
    """

    array: Array
    geometry: Geometry
    places: tuple[int, ...]


class _Slice(NamedTuple):
    path: Path
    instance: int | None
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float
    size: tuple[int, ...]


def dicom_files(folder: Path) -> list[Path]:
    """Lists the DICOM files of a folder by their names, numbers in them by value."""
    return _named(folder, DICOM)


def slice_files(folder: Path) -> list[Path]:
    """Lists the slices of a label map, PNG or DICOM, by their names, numbers in them by value."""
    return _named(folder, (".png",)) or dicom_files(folder)


def _named(folder: Path, endings: Sequence[str]) -> list[Path]:
    found = [
        path
        for path in entries(folder)
        if path.suffix.lower() in endings
        and path.is_file()
        and not path.name.startswith(".")
        and path.name.upper() != "DICOMDIR"
    ]
    return sorted(found, key=lambda path: (_numbers(path.stem), path.name))


def _numbers(name: str) -> tuple[int, ...]:
    """The numbers in a name, the last one first."""
    return tuple(int(text) for text in reversed(re.findall(r"\d+", name)))


def read_stack(folder: Path) -> Stack:
    """Reads all DICOM files of a folder as the slices of one volume.

    UIDs are not looked at, since anonymised data have a series for each slice.

    Raises:
        DatasetError: A file cannot be read, or the slices are not those of one volume: places that
            are missing or there twice, uneven distances, several orientations or sizes.
    """
    return _stacked(folder, [_header(path) for path in dicom_files(folder)])


def _stacked(folder: Path, slices: list[_Slice]) -> Stack:
    if not slices:
        raise DatasetError(f"{folder}: there is no DICOM file.", hint="Give the whole data.")
    direction = _direction(folder, slices)
    depths = [float(np.dot(each.position, direction[2])) for each in slices]
    order = np.argsort(depths, kind="stable").tolist()
    step = _step(folder, [depths[i] for i in order], [slices[i] for i in order])
    first = slices[order[0]]
    geometry = geometry_from_xyz(
        (*first.size[:2], len(slices)),
        (first.spacing[1], first.spacing[0], step),
        first.position,
        direction.T,
    )
    array = _pixels([slices[i].path for i in order])
    by_number = _by_number(slices)
    return Stack(array, geometry, tuple(order.index(i) for i in by_number))


def read_slices(folder: Path) -> Array | Stack:
    """Reads a label map of one file for each slice.

    Returns:
        The slices in the order of their names, (n, y, x); a stack, where they are DICOM files that
        say their places.

    Raises:
        DatasetError: A file cannot be read, or they differ in size.
    """
    files = slice_files(folder)
    if not files:
        raise DatasetError(
            f"{folder}: there is no slice of a label map, expected PNG or DICOM files.",
            hint="Give the whole data.",
        )
    if files[0].suffix.lower() != ".png":
        headers = [_header(path, placed=False) for path in files]
        if all(each.position for each in headers):
            return _stacked(folder, headers)
        arrays = [_pixels([path])[0] for path in files]
    else:
        arrays = [read_label(path).array[0, 0] for path in files]
    sizes = {array.shape: path for array, path in zip(arrays, files, strict=True)}
    if len(sizes) > 1:
        said = ", ".join(f"{path.name} {size[1]}x{size[0]}" for size, path in sizes.items())
        raise DatasetError(
            f"{folder}: slices differ in size: {said}.", hint="Export them again in one size."
        )
    return np.stack(arrays)


def _by_number(slices: Sequence[_Slice]) -> list[int]:
    """Indices of slices in the order of their instance numbers, if these tell them apart."""
    numbers = {each.instance for each in slices}
    if None in numbers or len(numbers) < len(slices):
        return list(range(len(slices)))
    return sorted(range(len(slices)), key=lambda i: slices[i].instance or 0)


def _direction(folder: Path, slices: Sequence[_Slice]) -> npt.NDArray[np.float64]:
    """Rows: the directions of x, y and z."""
    first = slices[0]
    for other in slices[1:]:
        turned = np.abs(np.subtract(first.orientation, other.orientation)).max() > _TURNED
        if turned or other.size != first.size or other.spacing != first.spacing:
            what = "orientation" if turned else "size or spacing"
            raise DatasetError(
                f"{folder}: {first.path.name} and {other.path.name} differ in {what}.",
                hint="Put each series into a folder of its own.",
            )
    x, y = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    return np.stack([x, y, np.cross(x, y)])


def _step(folder: Path, depths: Sequence[float], slices: Sequence[_Slice]) -> float:
    """The distance of neighbouring slices in mm; they are sorted."""
    if len(depths) == 1:
        return slices[0].thickness or 1.0
    steps = np.diff(depths)
    usual = float(np.median(steps))
    odd = np.abs(steps - usual) > _UNEVEN * max(usual, 1e-6)
    if usual <= 0 or odd.any():
        at = int(np.argmax(np.abs(steps - usual))) if usual > 0 else 0
        raise DatasetError(
            f"{folder}: {slices[at].path.name} and {slices[at + 1].path.name} are "
            f"{steps[at]:.3g} mm apart, most neighbours {usual:.3g} mm: slices are missing or "
            "there twice.",
            hint="Complete the series, or take out what is there twice.",
        )
    return float(depths[-1] - depths[0]) / (len(depths) - 1)


def _header(path: Path, *, placed: bool = True) -> _Slice:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    with in_words(path, verb="read"):
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            raise _unreadable(path) from None
    keys = set(reader.GetMetaDataKeys())

    def numbers(key: str) -> tuple[float, ...]:
        text = reader.GetMetaData(key) if key in keys else ""
        return tuple(float(part) for part in text.split("\\") if part.strip())

    position, orientation = numbers(_POSITION), numbers(_ORIENTATION)
    if placed and (len(position) != 3 or len(orientation) != 6):
        raise DatasetError(
            f"{path}: it does not say where the slice lies (ImagePositionPatient and "
            "ImageOrientationPatient are missing).",
            hint="Export the series again from where it comes from.",
        )
    instance, thickness = numbers(_INSTANCE), numbers(_THICKNESS)
    return _Slice(
        path=path,
        instance=int(instance[0]) if instance else None,
        position=position if len(orientation) == 6 else (),
        orientation=orientation,
        spacing=numbers(_SPACING) or (1.0, 1.0),
        thickness=thickness[0] if thickness else 0.0,
        size=tuple(reader.GetSize()),
    )


def _pixels(files: Sequence[Path]) -> Array:
    """The voxels of files in this order, (n, y, x)."""
    import SimpleITK as sitk

    planes = []
    for path in files:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        with in_words(path, verb="read"):
            try:
                plane = sitk.GetArrayFromImage(reader.Execute())
            except RuntimeError:
                raise _unreadable(path) from None
        if plane.ndim != 3 or plane.shape[0] != 1:
            raise DatasetError(
                f"{path}: {counted(plane.shape[0], 'frame')} or several colours, expected one "
                "grey slice.",
                hint="Export the series with one file for each slice.",
            )
        planes.append(plane[0])
    return np.stack(planes)


def _unreadable(path: Path) -> DatasetError:
    return DatasetError(
        f"{path}: it is no DICOM file, or damaged.", hint="Get it again from where it comes from."
    )
