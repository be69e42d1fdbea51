"""Reads what is drawn on a DICOM series: segmentations (SEG) and structure sets (RTSTRUCT)."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.errors import DatasetError
from autoliver.io.dicom.planes import BAD_VALUE, damaged_file, open_dataset, quiet
from autoliver.io.dicom.series import Series
from autoliver.io.dicom.source import Plane, affine_of, plane_of
from autoliver.io.volume import Geometry, Volume
from autoliver.values import counted

if TYPE_CHECKING:
    from pydicom import Dataset

Mask = npt.NDArray[np.bool_]

SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
# Largest distance, in voxels, of a pixel from the grid that it is put on.
_NEAR = 0.1
# Largest distance, in slices, of the points of a contour from their plane; and of contours that lie
# in one plane, for what rounding in files makes of it.
_FLAT, _SAME_PLANE = 0.5, 0.05


class Drawn(NamedTuple):
    """A label with where it is.

    Attributes:
        name: Its name in the file.
        mask: Where it is, (z, y, x).
        notes: What had to be decided, a sentence each.
    """

    name: str
    mask: Mask
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnLabels:
    """The label map that segmentations and structure sets of a series make.

    Attributes:
        volume: The label map (1, z, y, x) on the grid of the series.
        values: Name of each label -> its value, from 1 in the order of the files.
        notes: What had to be decided, a sentence each.
    """

    volume: Volume
    values: dict[str, int]
    notes: tuple[str, ...] = ()


def labels_of(series: Series, candidates: Sequence[Path]) -> DrawnLabels | None:
    """Makes a label map of the SEG and RTSTRUCT files that are about a series.

    Where labels overlap, the smaller one stays, as a tumour does in a liver.

    Args:
        series: The series.
        candidates: Files that may be about it; those about other series are passed over.

    Returns:
        The label map; None if no file is about the series.

    Raises:
        DatasetError: A file cannot be read, is drawn on another grid, or holds no region.
    """
    found: dict[str, Mask] = {}
    notes: list[str] = []
    about = files_about(series, {path: references(path) for path in candidates})
    for path in about:
        for drawn, mask, said in read_drawn(path, series.geometry):
            name, renamed = _label(drawn, path)
            notes += [*said, *renamed]
            if name:
                found[name] = found[name] | mask if name in found else mask
    if about and not found:
        raise DatasetError(
            f"{', '.join(map(str, about))}: no region but the background is drawn.",
            hint="Take the file out, or draw the labels.",
        )
    return _label_map(found, series.geometry, notes) if about else None


def _label(drawn: str, path: Path) -> tuple[str, tuple[str, ...]]:
    """The label that a segment becomes, empty for the background; and what is said of it.

    Labels must have a name, and two names have a meaning of their own: "background", and "ignore"
    for voxels that are not trained on.
    """
    plain = drawn.casefold()
    if plain == "background":
        return "", (f"{path.name}: its segment {drawn} is taken for the background.",)
    label = "unnamed" if not plain else f"{drawn} (segment)" if plain == "ignore" else drawn
    if label == drawn:
        return label, ()
    return label, (f"{path.name}: its segment {drawn or 'without a name'} is called {label!r}.",)


class References(NamedTuple):
    """What a SEG or RTSTRUCT file refers to.

    Attributes:
        series: SeriesInstanceUIDs.
        images: SOPInstanceUIDs.
    """

    series: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()


def references(path: Path) -> References:
    """Returns what a SEG or RTSTRUCT file refers to; nothing for files of other kinds.

    Raises:
        DatasetError: It is damaged.
    """
    dataset = _open(path, stop_before_pixels=True)
    if not is_drawn(str(dataset.SOPClassUID)):
        return References()
    found: dict[str, set[str]] = {"SeriesInstanceUID": set(), "ReferencedSOPInstanceUID": set()}
    with _in_words(path):
        _collect(dataset, found)
    series, images = found.values()
    return References(frozenset(series - {dataset.get("SeriesInstanceUID")}), frozenset(images))


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Turns what pydicom and its decoders raise for damaged values into a `DatasetError`."""
    try:
        with quiet():
            yield
    except (*BAD_VALUE, EOFError, LookupError, RuntimeError) as error:
        raise damaged_file(path, f"{type(error).__name__}: {error}") from None


def files_about(series: Series, referring: Mapping[Path, References]) -> list[Path]:
    """Returns the files that refer to images of a series, or to none and to the series.

    A series may hold several volumes, so that its images decide.

    Args:
        series: The series.
        referring: File -> what it refers to.
    """
    tags = ["SOPInstanceUID"]
    files = {one.file for one in series.slices} if referring else set()
    images = (open_dataset(f, stop_before_pixels=True, specific_tags=tags) for f in files)
    uids = {str(image.get("SOPInstanceUID")) for image in images}
    return [
        path
        for path, found in referring.items()
        if found.images & uids or (not found.images and series.uid in found.series)
    ]


def _collect(dataset: "Dataset", found: dict[str, set[str]]) -> None:
    """Adds the identifiers in a data set and in all that it holds."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _collect(item, found)
        elif element.keyword in found:
            found[element.keyword].add(str(element.value))


def read_drawn(path: Path, geometry: Geometry) -> list[Drawn]:
    """Reads the segments of a SEG file, or the regions of an RTSTRUCT file.

    Args:
        path: The file.
        geometry: The grid to put them on. Frames of a SEG may lie in any order and be flipped or
            turned by right angles against it.

    Returns:
        The segments in the order of their numbers, or the regions in that of the file; nothing for
        files of other kinds.

    Raises:
        DatasetError: The file is damaged, or its pixels or contours do not lie on the grid.
        MachineError: The system refuses to read it.
    """
    dataset = _open(path)
    kind = dataset.SOPClassUID
    with _in_words(path):
        if kind in SEG_CLASSES:
            return _segments(path, dataset, geometry)
        return _contours(path, dataset, geometry) if kind == RTSTRUCT_CLASS else []


def is_drawn(sop_class_uid: str) -> bool:
    """Whether files of a class are segmentations or structure sets."""
    return sop_class_uid in (*SEG_CLASSES, RTSTRUCT_CLASS)


def _open(path: Path, **how: object) -> "Dataset":
    dataset = open_dataset(path, **how)
    if not dataset.get("SOPClassUID"):
        raise damaged_file(path, "it does not say what it is")
    return dataset


def _label_map(
    found: dict[str, Mask], geometry: Geometry, drawn_notes: Sequence[str]
) -> DrawnLabels:
    values = {name: value for value, name in enumerate(found, start=1)}
    array = np.zeros(geometry.shape_zyx, dtype=np.min_scalar_type(len(found)))
    notes = list(drawn_notes)
    for name in sorted(found, key=lambda name: -np.count_nonzero(found[name])):
        covered = int(np.count_nonzero(array[found[name]]))
        if covered:
            notes.append(f"{name} covers {counted(covered, 'voxel')} of labels that are larger.")
        array[found[name]] = values[name]
    return DrawnLabels(
        volume=Volume(array=array[None], geometry=geometry), values=values, notes=tuple(notes)
    )


def _segments(path: Path, dataset: "Dataset", geometry: Geometry) -> list[Drawn]:
    names = {
        int(item.SegmentNumber): str(
            item.get("SegmentDescription") or item.get("SegmentLabel") or ""
        ).strip()
        for item in dataset.SegmentSequence
        if int(item.SegmentNumber) > 0
    }
    labelmap = dataset.get("SegmentationType") == "LABELMAP"
    most = int(dataset.get("MaximumFractionalValue") or 1)
    masks = {number: np.zeros(geometry.shape_zyx, dtype=bool) for number in names}
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for frame, image in enumerate(pixels, start=1):
        place = _place(path, plane_of(dataset, frame), image.shape, geometry)
        if labelmap:
            for number in np.unique(image[image > 0]):
                _put(masks[int(number)], place, image == number)
        else:
            _put(masks[_segment_of(dataset, frame)], place, image >= most / 2)
    return [Drawn(names[number], masks[number]) for number in sorted(names)]


def _segment_of(dataset: "Dataset", frame: int) -> int:
    """The number of the segment that a frame shows."""
    for group in (
        dataset.PerFrameFunctionalGroupsSequence[frame - 1],
        dataset.SharedFunctionalGroupsSequence[0],
    ):
        if "SegmentIdentificationSequence" in group:
            return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    return 1


def _place(
    path: Path, plane: Plane, shape: Sequence[int], geometry: Geometry
) -> npt.NDArray[np.intp]:
    """The voxels (z, y, x) that the pixels of a frame are, (3, rows, columns).

    Raises:
        DatasetError: Pixels lie between voxels.
    """
    affine = affine_of(geometry)
    inverse = np.linalg.inv(affine[:3, :3])
    start = inverse @ (plane.position - affine[:3, 3])
    steps = [inverse @ plane.row_step, inverse @ plane.column_step]
    row, column = np.indices(shape)
    exact = start[:, None, None] + steps[0][:, None, None] * row + steps[1][:, None, None] * column
    voxels = np.rint(exact)
    if np.abs(exact - voxels).max() > _NEAR or np.abs(np.abs(steps).sum(1) - 1).max() > _NEAR:
        raise DatasetError(
            f"{path}: it is drawn on another grid than the series that it refers to.",
            hint="Export the segmentation on the grid of the series.",
        )
    placed: npt.NDArray[np.intp] = voxels[::-1].astype(np.intp)
    return placed


def _put(mask: Mask, place: npt.NDArray[np.intp], image: Mask) -> None:
    """Sets the voxels of a frame that lie in the grid; others cannot be labels of it."""
    shape = np.array(mask.shape)[:, None, None]
    inside = image & ((place >= 0) & (place < shape)).all(0)
    mask[tuple(place[:, inside])] = True


def _contours(path: Path, dataset: "Dataset", geometry: Geometry) -> list[Drawn]:
    """The regions of a structure set; a contour inside another one of its plane is a hole."""
    names = {
        int(r.ROINumber): str(r.get("ROIName") or "").strip()
        for r in dataset.StructureSetROISequence
    }
    found = []
    for region in dataset.get("ROIContourSequence") or []:
        name = names[int(region.ReferencedROINumber)]
        contours = [
            _in_voxels(path, contour.ContourData, geometry)
            for contour in region.get("ContourSequence") or []
            if contour.get("ContourGeometricType") in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
        ]
        drawn = _region(name, contours, geometry)
        if drawn.mask.any():
            found.append(drawn)
    return found


class _Contour(NamedTuple):
    """A closed line in voxels.

    Attributes:
        z: Its plane; between slices it is no whole number.
        points_yx: Its points, (n, 2).
    """

    z: float
    points_yx: npt.NDArray[np.float64]


def _in_voxels(path: Path, points: Iterable[float], geometry: Geometry) -> _Contour:
    """Converts a contour from mm (x, y, z; LPS).

    Raises:
        DatasetError: It does not lie in a plane along the slices.
    """
    affine = affine_of(geometry)
    in_mm = np.array(list(points), dtype=np.float64).reshape(-1, 3)
    x, y, z = np.linalg.solve(affine[:3, :3], (in_mm - affine[:3, 3]).T)
    plane = float(z.mean())
    if np.abs(z - plane).max() > _FLAT:
        raise DatasetError(
            f"{path}: a contour does not lie in a slice of the series that it refers to.",
            hint="Export the structure set for this series.",
        )
    return _Contour(plane, np.stack([y, x], axis=1))


def _region(name: str, contours: Sequence[_Contour], geometry: Geometry) -> Drawn:
    """Fills contours: each slice takes the nearest plane of those that are nearest to it."""
    from skimage.draw import polygon

    planes: list[list[_Contour]] = []
    for contour in sorted(contours, key=lambda contour: contour.z):
        if planes and contour.z - planes[-1][0].z <= _SAME_PLANE:
            planes[-1].append(contour)
        else:
            planes.append([contour])
    nearest: dict[int, list[_Contour]] = {}
    for plane in planes:
        # Half a slice goes up always, so that planes halfway between slices stay as many.
        index = int(np.floor(plane[0].z + 0.5 + _SAME_PLANE))
        held = nearest.get(index, plane)
        # Of two that are as near, the first: the last digits of a file do not decide.
        nearest[index] = min(held, plane, key=lambda each: round(abs(each[0].z - index), 3))
    mask = np.zeros(geometry.shape_zyx, dtype=bool)
    for index in nearest.keys() & set(range(len(mask))):
        for contour in nearest[index]:
            rows, columns = polygon(*contour.points_yx.T, mask.shape[1:])
            mask[index, rows, columns] ^= True
    return Drawn(name, mask, tuple(_notes_on(name, planes, nearest)))


def _notes_on(
    name: str, planes: Sequence[Sequence[_Contour]], nearest: Mapping[int, object]
) -> Iterator[str]:
    """Says where the planes of contours are not the slices of the series."""
    left = len(planes) - len(nearest)
    if left:
        yield (
            f"{name}: {counted(left, 'plane')} of contours between slices left out; each slice "
            "takes the nearest one."
        )
    empty = [index for index in nearest if index + 1 not in nearest and index + 2 in nearest]
    if empty:
        yield (
            f"{name}: {counted(len(empty), 'slice')} between contours without a contour, left "
            "empty."
        )
