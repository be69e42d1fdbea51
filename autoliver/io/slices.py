"""Folders of slices: a DICOM series as one volume, and label maps of one file for each slice."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.errors import DatasetError
from autoliver.io.dicom.planes import BAD_VALUE, Instance, damaged_file, open_dataset, read_instance
from autoliver.io.dicom.read import read_series
from autoliver.io.dicom.series import Series, Slice
from autoliver.io.dicom.stack import SAME_PLACE_MM, NoStack, are_alike, make_stack, places
from autoliver.io.dicom.walk import is_dicom
from autoliver.io.files import read_label
from autoliver.io.volume import Geometry
from autoliver.system import entries
from autoliver.values import counted

Array = npt.NDArray[Any]

_COMPLETE = "Complete the series, or take out what does not belong to it."


class FolderSeries(NamedTuple):
    """A folder that is one DICOM series.

    Attributes:
        array: (z, y, x), in the unit of the modality.
        geometry: Its grid.
        order: For each file in the order of the series (InstanceNumber, else its name): its z.
    """

    array: Array
    geometry: Geometry
    order: tuple[int, ...]


def series_files(folder: Path) -> list[Path]:
    """Lists the DICOM files of a folder by their names, numbers in them by value."""
    return sorted(filter(is_dicom, _visible(folder)), key=_by_numbers)


def slice_files(folder: Path) -> list[Path]:
    """Lists the slices of a label map, PNG or DICOM, by their names, numbers in them by value."""
    pictures = [path for path in _visible(folder) if path.suffix.lower() == ".png"]
    return sorted(pictures, key=_by_numbers) or series_files(folder)


def _visible(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.is_file() and not path.name.startswith(".")]


def _by_numbers(path: Path) -> tuple[tuple[int, ...], str]:
    """The numbers in a name, the last one first, and the name."""
    numbers = (int(text) for text in reversed(re.findall(r"\d+", path.stem)))
    return tuple(numbers), path.name


def read_folder(folder: Path) -> FolderSeries:
    """Reads all DICOM files of a folder as the slices of one volume.

    UIDs are not looked at, since anonymised data have a series for each slice.

    Raises:
        DatasetError: A file cannot be read, or the slices are not those of one volume: places that
            are missing or there twice, uneven distances, several orientations or sizes.
    """
    files = series_files(folder)
    strange = [path for path in _visible(folder) if path.suffix.lower() in (".dcm", ".dicom")]
    if damaged := sorted(set(strange) - set(files)):
        raise damaged_file(damaged[0], "it does not begin as DICOM files do")
    if not files:
        raise DatasetError(f"{folder}: there is no DICOM file.", hint="Give the whole data.")
    return _one_series(folder, [_only_slice(path) for path in files])


def _one_series(folder: Path, instances: Sequence[Instance]) -> FolderSeries:
    planes = [instance.planes[0] for instance in instances]
    first = planes[0]
    for plane in planes:
        problem = ""
        if plane.fault:
            problem = f"{plane.file.name}: {plane.fault}"
        elif not are_alike(first, plane):
            problem = (
                f"{first.file.name} and {plane.file.name} differ in orientation, spacing or size"
            )
        if problem:
            raise DatasetError(f"{folder}: {problem}.", hint=_COMPLETE)
    along = places(planes)
    for one, other in zip(order := np.argsort(along, kind="stable"), order[1:], strict=False):
        if along[other] - along[one] < SAME_PLACE_MM:
            names = f"{planes[one].file.name} and {planes[other].file.name}"
            raise DatasetError(f"{folder}: {names} lie at one place.", hint=_COMPLETE)
    try:
        stack = make_stack(planes)
    except NoStack as error:
        raise DatasetError(f"{folder}: {error}.", hint=_COMPLETE) from None
    files = tuple(plane.file for plane in stack.planes)
    array = _voxels(files, stack.geometry, modality=instances[0].modality)
    where = {plane.file: z for z, plane in enumerate(stack.planes)}
    numbered = _by_instance([plane.file for plane in planes])
    return FolderSeries(array, stack.geometry, tuple(where[path] for path in numbered))


def read_slices(folder: Path) -> Array | FolderSeries:
    """Reads a label map of one file for each slice.

    Returns:
        The slices in the order of their names, (n, y, x); a series, where they are DICOM files that
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
    if files[0].suffix.lower() == ".png":
        arrays = [read_label(path).array[0, 0] for path in files]
    else:
        instances = [found for path in files if (found := read_instance(path))]
        placed = [one for one in instances if len(one.planes) == 1 and not one.planes[0].fault]
        if len(placed) == len(files):
            return _one_series(folder, placed)
        arrays = [_unplaced(path) for path in files]
    sizes = {array.shape: path for array, path in zip(arrays, files, strict=True)}
    if len(sizes) > 1:
        said = ", ".join(f"{path.name} {size[1]}x{size[0]}" for size, path in sizes.items())
        raise DatasetError(
            f"{folder}: slices differ in size: {said}.", hint="Export them again in one size."
        )
    return np.stack(arrays)


def _only_slice(path: Path) -> Instance:
    """A file of one slice."""
    instance = read_instance(path)
    held = len(instance.planes) if instance else 0
    if instance is None or held != 1:
        what = instance.kind if instance else "a directory of a disc"
        raise DatasetError(
            f"{path}: {what} with {counted(held, 'slice')}, expected an image of one slice.",
            hint="Export the series with one file for each slice.",
        )
    return instance


def _unplaced(path: Path) -> Array:
    """The voxels of a slice that says no place, (y, x)."""
    data = open_dataset(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    try:
        size = int(data.Rows), int(data.Columns)
    except BAD_VALUE:
        raise damaged_file(path, "it says no number of rows and columns") from None
    plane: Array = _voxels([path], Geometry(shape_zyx=(1, *size), spacing_mm=(1.0, 1.0, 1.0)))[0]
    return plane


def _voxels(files: Sequence[Path], grid: Geometry, *, modality: str = "") -> Array:
    """The voxels of files of one slice each, (z, y, x)."""
    series = Series(
        uid="",
        study_uid="",
        modality=modality,
        description="",
        number=None,
        slices=tuple(Slice(path) for path in files),
        geometry=grid,
    )
    array: Array = read_series(series).array[0]
    return array


def _by_instance(files: Sequence[Path]) -> Sequence[Path]:
    """Files in the order of their instance numbers, if these tell them apart, else as given."""
    numbers = [
        open_dataset(path, stop_before_pixels=True, specific_tags=["InstanceNumber"]).get(
            "InstanceNumber"
        )
        for path in files
    ]
    if None in numbers or len(set(numbers)) < len(files):
        return files
    return [path for _, path in sorted(zip(map(int, numbers), files, strict=True))]
