"""The slices of a case as one small picture, with outlines of its labels as paths of SVG."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoliver.evaluation.picture import shown_window
from autoliver.io.orientation import USUAL, axis_codes, reorientation
from autoliver.io.volume import Geometry, is_flat

Style = Literal["reference", "prediction", "second"]
Array = npt.NDArray[Any]

# Pieces of a label, and holes in it, that are outlined in a slice.
MOST_PIECES = 100
MOST_SLICES = 48
FEW_SLICES = 12
_EDGE = 256  # pixels of the longer side of a slice
_QUALITY = 70
_MARGIN = 0.12  # of the image, around what is labelled
_ENLARGED = 3.0  # most pixels of the picture for one of the image
_STEPS = 2  # coordinates of outlines are in halves of a pixel
_TOLERANCE = 0.35  # by how many pixels an outline may be simplified
_VIEWS = ("axial", "coronal", "sagittal")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMap:
    """Label values to outline.

    Attributes:
        title: What the map is, for the legend.
        style: How its outlines are drawn.
        array: Label values, (z, y, x), on the grid of the image.
    """

    title: str
    style: Style
    array: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """The outlines of one label map.

    Attributes:
        title: What the map is, for the legend.
        style: How its outlines are drawn.
        paths: Slice -> label -> outlines as a path of SVG, in halves of a pixel of the tile; empty
            where the label is absent.
    """

    title: str
    style: Style
    paths: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """The slices of a case.

    Attributes:
        image: All slices as tiles of one grey picture (WebP), row by row.
        tile: Pixels of a tile (y, x); they are square in the patient.
        columns: Tiles in a row.
        slices: Number of each slice in the case, from 1.
        depth: Number of slices of the case.
        view: "axial", "coronal" or "sagittal"; empty if that is not known.
        first: Index of the slice to show first: the one in which the maps differ most.
        labels: Names of the labels that are outlined.
        layers: The outlines, the reference first.
        poster: The first slice alone (WebP).
        window: The values that are black and white.
    """

    image: bytes
    tile: tuple[int, int]
    columns: int
    slices: tuple[int, ...]
    depth: int
    view: str
    first: int
    labels: tuple[str, ...]
    layers: tuple[Layer, ...]
    poster: bytes
    window: tuple[float, float]

    @property
    def caption(self) -> str:
        """Which slices these are, in words."""
        what = f"{self.view} slices".strip()
        if len(self.slices) == self.depth:
            return f"all {self.depth} {what}" if self.depth > 1 else "one slice"
        steps = self.slices[1] - self.slices[0] if len(self.slices) > 1 else 1
        which = "" if steps == 1 else f", every {_ordinal(steps)}"
        return f"{what} {self.slices[0]} to {self.slices[-1]} of {self.depth}{which}"


def make_sprite(
    image: Array,
    maps: Sequence[LabelMap],
    geometry: Geometry,
    *,
    labels: Mapping[str, Sequence[int]],
    is_ct: bool | None,
    most_slices: int = MOST_SLICES,
) -> Sprite:
    """Draws the slices of a case across its coarsest axis.

    They are those that hold a label, and one more on either side; of too many, every n-th.

    Args:
        image: Intensities of one channel (z, y, x).
        maps: What is outlined.
        geometry: The grid of image and maps.
        labels: Name -> values of the labels; each is outlined as the union of its values.
        is_ct: Whether the image is CT, which is shown in a window of soft tissue; None to go by its
            values.
        most_slices: The largest number of slices.
    """
    codes = axis_codes(geometry)
    turn = reorientation(codes, USUAL)
    spacing = (1.0, 1.0, 1.0) if is_flat(geometry) else turn.values(geometry.spacing_mm)
    axis = 0 if is_flat(geometry) else _slice_axis(spacing)
    given = (image, *(each.array for each in maps))
    arrays = [_sliced(turn.array(array), axis, flip=bool(codes)) for array in given]
    in_plane = tuple(mm for index, mm in enumerate(spacing) if index != axis)
    volume, drawn = arrays[0], arrays[1:]
    shown = _shown_slices(drawn, len(volume), most_slices)
    box = _box(drawn, volume.shape[1:])
    window = shown_window(volume, is_ct=is_ct)
    tile, scale = _tile_size(box, (in_plane[0], in_plane[1]))
    tiles = [_tile(volume[z][box], window, tile) for z in shown]
    columns = math.ceil(math.sqrt(len(tiles)))
    layers = tuple(
        Layer(
            title=each.title,
            style=each.style,
            paths=tuple(_outlines(array[z][box], labels, scale) for z in shown),
        )
        for each, array in zip(maps, drawn, strict=True)
    )
    first = _most_telling([array[shown] for array in drawn])
    return Sprite(
        image=_encoded(_sheet(tiles, columns)),
        tile=tile,
        columns=columns,
        slices=tuple(z + 1 for z in shown),
        depth=len(volume),
        view=_VIEWS[axis] if codes else "",
        first=first,
        labels=tuple(labels),
        layers=layers,
        poster=_encoded(tiles[first]),
        window=window,
    )


def _slice_axis(spacing_mm: Sequence[float]) -> int:
    """The coarsest axis; the first one of equals."""
    return int(np.argmax(np.round(spacing_mm, 2)))


def _sliced(array: Array, axis: int, *, flip: bool) -> Array:
    """The array with the axis of slices first; the head is up in coronal and sagittal slices."""
    moved = np.moveaxis(array, axis, 0)
    return moved[:, ::-1] if axis and flip else moved


def _shown_slices(maps: Sequence[Array], depth: int, most: int) -> list[int]:
    held = np.zeros(depth, bool)
    for array in maps:
        held |= (array > 0).any(axis=(1, 2))
    where = np.flatnonzero(held)
    start, stop = (max(where[0] - 1, 0), min(where[-1] + 2, depth)) if len(where) else (0, depth)
    step = math.ceil((stop - start) / most)
    return [int(z) for z in range(int(start), int(stop), step)]


def _box(maps: Sequence[Array], shape: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns around all that is labelled, with a margin; all without a label."""
    found = np.zeros(tuple(shape), bool)
    for array in maps:
        found |= (array > 0).any(axis=0)
    if not found.any():
        return slice(0, shape[0]), slice(0, shape[1])
    ends = []
    for size, held in zip(shape, (found.any(axis=1), found.any(axis=0)), strict=True):
        where, margin = np.flatnonzero(held), math.ceil(_MARGIN * size)
        ends.append(slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + 1 + margin, size)))
    return ends[0], ends[1]


def _tile_size(
    box: tuple[slice, slice], spacing_mm: tuple[float, float]
) -> tuple[tuple[int, int], tuple[float, float]]:
    """The pixels (y, x) of a tile, and how many of them a pixel of the image has (y, x)."""
    sizes = [each.stop - each.start for each in box]
    extents = [size * mm for size, mm in zip(sizes, spacing_mm, strict=True)]
    per_mm = min(_EDGE / max(extents), _ENLARGED / min(spacing_mm))
    height, width = (max(1, round(extent * per_mm)) for extent in extents)
    return (height, width), (height / sizes[0], width / sizes[1])


def _tile(
    values: Array, window: tuple[float, float], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    from PIL import Image

    low, high = window
    grey = (np.nan_to_num(values.astype(np.float32), nan=low) - low) / (high - low)
    plain = np.ascontiguousarray(np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8))
    resized = Image.fromarray(plain).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _sheet(tiles: Sequence[npt.NDArray[np.uint8]], columns: int) -> npt.NDArray[np.uint8]:
    height, width = tiles[0].shape
    sheet = np.zeros((math.ceil(len(tiles) / columns) * height, columns * width), np.uint8)
    for number, tile in enumerate(tiles):
        y, x = divmod(number, columns)
        sheet[y * height : (y + 1) * height, x * width : (x + 1) * width] = tile
    return sheet


def _encoded(picture: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=_QUALITY, method=4)
    return file.getvalue()


def _most_telling(maps: Sequence[Array]) -> int:
    """The slice in which the maps differ most; with one map or equal ones, the fullest one."""
    first = maps[0] if maps else np.zeros((1, 1, 1))
    differing = sum(
        (np.count_nonzero(first != other, axis=(1, 2)) for other in maps[1:]),
        start=np.zeros(len(first), np.int64),
    )
    if not differing.any():
        differing = np.count_nonzero(first, axis=(1, 2))
    return int(np.argmax(differing)) if differing.any() else len(first) // 2


def _outlines(
    values: Array, labels: Mapping[str, Sequence[int]], scale: tuple[float, float]
) -> tuple[str, ...]:
    there = set(np.unique(values).tolist())
    return tuple(
        _outline(np.isin(values, list(of)), scale) if there & set(of) else ""
        for of in labels.values()
    )


def _outline(mask: npt.NDArray[np.bool_], scale: tuple[float, float]) -> str:
    """The outline of a mask (y, x) as a path of SVG: closed, with relative whole numbers."""
    from skimage.measure import find_contours

    mask = _without_specks(mask)
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    inner = mask[ends[0][0] : ends[0][1] + 1, ends[1][0] : ends[1][1] + 1]
    # Centres of voxels are at halves, and the frame has added one voxel.
    first = np.array([ends[0][0], ends[1][0]]) - 0.5
    contours = find_contours(np.pad(inner, 1).astype(np.float32), 0.5)
    polygons = (_simplified((each + first) * scale) for each in contours)
    return "".join(_closed(np.rint(each * _STEPS).astype(int)) for each in polygons)


def _without_specks(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask with its largest pieces and holes alone, where it has more than can be told apart.

    A network that has only begun to learn finds thousands.
    """
    mask = _largest(mask)
    return ~_largest(~np.pad(mask, 1, constant_values=False))[1:-1, 1:-1]


def _largest(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    numbers, count = ndimage.label(mask)
    if count <= MOST_PIECES:
        return mask
    sizes = np.bincount(numbers.ravel())[1:]
    kept = np.zeros(count + 1, bool)
    kept[1 + np.argsort(-sizes, kind="stable")[:MOST_PIECES]] = True
    largest: npt.NDArray[np.bool_] = kept[numbers]
    return largest


def _simplified(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A line (n, 2) with the points alone that it needs to keep its shape (Douglas and Peucker)."""
    kept = np.zeros(len(points), bool)
    kept[[0, -1]] = True
    parts = [(0, len(points) - 1)]
    while parts:
        start, stop = parts.pop()
        if stop - start < 2:
            continue
        way, chord = points[start + 1 : stop] - points[start], points[stop] - points[start]
        length = float(np.hypot(*chord))
        if length:
            far = np.abs(way[:, 0] * chord[1] - way[:, 1] * chord[0]) / length
        else:  # a closed line
            far = np.hypot(way[:, 0], way[:, 1])
        middle = int(np.argmax(far))
        if far[middle] > _TOLERANCE:
            kept[start + 1 + middle] = True
            parts += [(start, start + 1 + middle), (start + 1 + middle, stop)]
    return points[kept]


def _closed(corners: npt.NDArray[np.int_]) -> str:
    (y, x), steps = corners[0], np.diff(corners, axis=0)[:-1]
    moves = " ".join(f"{dx} {dy}" for dy, dx in steps if dx or dy)
    return f"M{x} {y}l{moves}z".replace(" -", "-") if moves else ""


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
