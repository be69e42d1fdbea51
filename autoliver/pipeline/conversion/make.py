"""Checks the files of one case, and writes those that cannot be referred to."""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.errors import DatasetError
from autoliver.io.files import read_header, read_image, read_label, write_image, write_label
from autoliver.io.grids import compare_grids
from autoliver.io.slices import FolderSeries, read_folder, read_slices
from autoliver.io.volume import Geometry
from autoliver.memory import GB
from autoliver.needs import score_need
from autoliver.parallel import Need
from autoliver.pipeline.conversion.kind import Found, Layer
from autoliver.pipeline.conversion.result import Failed
from autoliver.pipeline.fitting import fitting_turn, in_words
from autoliver.values import first_few

Array = npt.NDArray[Any]

_SHOWN = 5  # values that are listed
_EXACT = 1 << 15  # what int16 holds
# How label maps may lie with respect to their images: orders of slices, upside down or both; and
# any turn where a header may have been written with other signs.
_SLICES = ((0,), (1,), (0, 1))
_ANY = (*_SLICES, (2,), (0, 2), (1, 2), (0, 1, 2))
# Memory of a series in units of its files, which may be compressed.
_UNPACKED = 12.0


class Task(Record, frozen=True, kw_only=True):
    """A case with a label map.

    Attributes:
        case: The case.
        output: Folder of the new dataset, with imagesTr and labelsTr.
        by_voxel: As in `Kind`.
    """

    case: Found
    output: Path
    by_voxel: bool = False


class Made(Record, frozen=True, kw_only=True):
    """A case that was checked.

    Attributes:
        images: Paths of its images: relative if they were written, else those in the source.
        label: Path of its label map, likewise.
        told: What was done to its label map besides other values; empty for nothing.
        failed: What is wrong with its files; None if nothing is.
    """

    images: tuple[str, ...] = ()
    label: str = ""
    told: str = ""
    failed: Failed | None = None


class _Image(NamedTuple):
    path: Path
    geometry: Geometry
    series: FolderSeries | None


class _Label(NamedTuple):
    """Label values (z, y, x), and what was done to them."""

    array: Array
    told: str = ""


class _Unfit(DatasetError):
    """The files of a case do not fit together."""


def make_need(task: Task) -> Need:
    """Estimates the memory for a case."""
    path, image = Path(task.case.layers[0].path), Path(task.case.images[0])
    if not path.is_dir():
        need = score_need(path)
        # The image is read as well, where headers differ.
        return Need(name=task.case.name, gb=need.gb * (3 if task.by_voxel else 1))
    sizes = sum(file.stat().st_size for file in image.iterdir())
    return Need(name=task.case.name, gb=_UNPACKED * sizes / GB)


def make_case(task: Task) -> Made:
    """Makes the files of a case; what is wrong with those of the source is returned, not raised."""
    name = task.case.name
    try:
        return _made(task)
    except DatasetError as error:  # a file that cannot be read or is no label map, or misfits
        problem = error.problem.removesuffix(".")
        hint = Failed(problem="").hint if isinstance(error, _Unfit) else error.hint
        return Made(failed=Failed(problem=f"{name}: {problem}", hint=hint))


def _made(task: Task) -> Made:
    case = task.case
    images = [_image(Path(path)) for path in case.images]
    first = images[0]
    for other in images[1:]:
        _check_grid(first, other.path, other.geometry)
    labels = [_layer(first, layer, by_voxel=task.by_voxel) for layer in case.layers]
    painted, same = _painted(case.layers, labels)
    told = "; ".join(dict.fromkeys(label.told for label in labels if label.told))
    label = case.layers[0].path
    if not same or told or Path(label).is_dir():
        label = f"labelsTr/{case.name}.nii.gz"
        write_label(task.output / label, painted, first.geometry)
    return Made(images=tuple(_written(task, images)), label=label, told=told)


def _written(task: Task, images: Iterable[_Image]) -> Iterator[str]:
    """Writes series as one file each; other images are referred to."""
    for channel, image in enumerate(images):
        if image.series is None:
            yield str(image.path)
            continue
        path = f"imagesTr/{task.case.name}_{channel:04d}.nii.gz"
        write_image(task.output / path, _compact(image.series.array)[None], image.geometry)
        yield path


def _compact(array: Array) -> Array:
    """The voxels as int16 if they are whole numbers that it holds, else as float32."""
    whole = array.dtype.kind in "iu" or bool((array == np.rint(array)).all())
    fits = whole and array.min() >= -_EXACT and array.max() < _EXACT
    return array.astype(np.int16 if fits else np.float32)


def _image(path: Path) -> _Image:
    if path.is_dir():
        series = read_folder(path)
        return _Image(path, series.geometry, series)
    return _Image(path, read_header(path).geometry, None)


def _layer(image: _Image, layer: Layer, *, by_voxel: bool) -> _Label:
    path = Path(layer.path)
    if path.is_dir():
        return _from_slices(image, layer)
    label = read_label(path)
    array = label.array[0]
    if not by_voxel or label.geometry.shape_zyx != image.geometry.shape_zyx:
        _check_grid(image, path, label.geometry)
        return _Label(array)
    if all(each.rounding for each in compare_grids(image.geometry, label.geometry)):
        return _Label(array)
    turn = fitting_turn(read_image([image.path]).array[0], array, _ANY)
    if turn:
        raise _Unfit(
            f"{path.name} says another place than {image.path.name}, and fits it only with "
            f"{in_words(turn)} reversed"
        )
    return _Label(array, "header of the label map said another place than that of the image")


def _from_slices(image: _Image, layer: Layer) -> _Label:
    """A label map of one file for each slice, on the grid of the image.

    Raises:
        DatasetError: It does not fit.
    """
    series, folder = image.series, Path(layer.path)
    if series is None:
        raise TypeError(f"{image.path}: slices of labels belong to a series")
    read = read_slices(folder)
    if isinstance(read, FolderSeries):
        _check_grid(image, folder, read.geometry)
        return _Label(_labels(folder, read.array))
    named = _labels(folder, read)
    places = list(series.order)
    if len(named) != len(places):
        raise _Unfit(f"{len(named)} slices in {folder}, expected {len(places)} as in {image.path}")
    if named.shape[1:] != image.geometry.shape_zyx[1:]:
        y, x = image.geometry.shape_zyx[1:]
        raise _Unfit(
            f"slices in {folder} have {named.shape[2]}x{named.shape[1]} pixels, expected {x}x{y}"
        )
    array = np.zeros_like(named)
    array[places] = named
    # Values tell nothing here but where labels are.
    turn = fitting_turn(series.array, _known(array, layer), _SLICES)
    if not turn:
        return _Label(array)
    told = f"{in_words(turn)} of the label map reversed, since only so it fits the image"
    return _Label(np.flip(array, turn), told)


def _labels(folder: Path, array: Array) -> Array:
    if array.min() < 0 or (array != np.rint(array)).any():
        raise _Unfit(f"slices in {folder} hold values that are no label numbers")
    return array.astype(np.uint16)


def _known(array: Array, layer: Layer) -> npt.NDArray[np.uint8]:
    """The labels of the dataset; 0 for unknown values."""
    table = np.zeros(int(array.max()) + 1, np.uint8)
    for value, new in layer.values.items():
        if value < len(table):
            table[value] = new
    return table[array]


def _painted(
    layers: Iterable[Layer], labels: Iterable[_Label]
) -> tuple[npt.NDArray[np.uint8], bool]:
    """The label map of the layers, and whether it is the only one, with the same values."""
    arrays = [label.array for label in labels]
    painted, same = np.zeros(arrays[0].shape, np.uint8), len(arrays) == 1
    for layer, array in zip(layers, arrays, strict=True):
        held = np.unique(array).tolist()
        if odd := [value for value in held if value not in layer.values]:
            raise _Unfit(
                f"{layer.path} holds the value{'s' if len(odd) > 1 else ''} "
                f"{first_few(odd, _SHOWN)}, expected {_listed(layer.values)}"
            )
        for value in held:
            new = layer.values[value]
            same &= new == value
            if new:
                painted[array == value] = new
    return painted, same


def _listed(values: Collection[int]) -> str:
    """Numbers in words; of many, those in a row as first to last."""
    if len(values) <= _SHOWN:
        return ", ".join(map(str, values))
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)


def _check_grid(image: _Image, path: Path, other: Geometry) -> None:
    for difference in compare_grids(image.geometry, other):
        if not difference.rounding:
            one, two = difference.values()
            raise _Unfit(
                f"{image.path.name} and {path.name} have different grids: {difference.what} "
                f"{one} and {two}"
            )
