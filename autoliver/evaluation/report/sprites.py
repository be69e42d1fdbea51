"""The slices of a case as one small picture, with outlines of its labels as paths of SVG."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoliver.evaluation.picture import shown_window
from autoliver.io.orientation import USUAL, axis_codes, reorientation
from autoliver.io.volume import Geometry, is_flat

Style = Literal["reference", "prediction", "second"]
Array = npt.NDArray[Any]
T = TypeVar("T")

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
_PART_VOXELS = 1 << 24  # of a label map that are looked at together
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


@dataclass(frozen=True, kw_only=True, slots=True)
class CutMap:
    """What is kept of a label map.

    Attributes:
        title: What the map is, for the legend.
        style: How its outlines are drawn.
        planes: Slice -> label values (y, x) in the part that is shown.
    """

    title: str
    style: Style
    planes: Mapping[int, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """The part of a case that may be shown, across its coarsest axis, and its label maps there.

    Neither the maps nor the image are kept as a whole, so that they need not be in memory together.

    Attributes:
        axis: The axis (z, y, x) of the slices, once the case is brought to the usual order of axes.
        codes: Its own order of axes; empty if that is not known.
        depth: Number of slices of the case.
        box: Rows and columns around all that is labelled.
        spacing_mm: Distance of pixel centres, (y, x).
        slices: Largest number of slices -> the slices: those that hold a label, and one more on
            either side; of too many, every n-th.
        maps: The label maps.
    """

    axis: int
    codes: str
    depth: int
    box: tuple[slice, slice]
    spacing_mm: tuple[float, float]
    slices: Mapping[int, tuple[int, ...]]
    maps: tuple[CutMap, ...]

    @classmethod
    def of(
        cls, maps: Sequence[LabelMap], geometry: Geometry, *, most: Sequence[int] = (MOST_SLICES,)
    ) -> "Cut":
        """Cuts label maps out.

        Args:
            maps: What is outlined.
            geometry: The grid of image and maps.
            most: The largest numbers of slices among which `make_sprite` can choose.
        """
        codes = axis_codes(geometry)
        turn, flat = reorientation(codes, USUAL), is_flat(geometry)
        spacing = (1.0, 1.0, 1.0) if flat else turn.values(geometry.spacing_mm)
        axis = 0 if flat else _slice_axis(spacing)
        drawn = [_sliced(turn.array(each.array), axis, flip=bool(codes)) for each in maps]
        depth, *shape = _first(turn.values(geometry.shape_zyx), axis)
        held, found = _labelled(drawn, (depth, *shape))
        slices = {number: _shown_slices(held, number) for number in most}
        kept, box = sorted({z for each in slices.values() for z in each}), _box(found)
        _, y_mm, x_mm = _first(spacing, axis)
        return cls(
            axis=axis,
            codes=codes,
            depth=depth,
            box=box,
            spacing_mm=(y_mm, x_mm),
            slices=slices,
            maps=tuple(
                CutMap(title=each.title, style=each.style, planes=_planes(array, kept, box))
                for each, array in zip(maps, drawn, strict=True)
            ),
        )

    def grey(self, image: Array, *, is_ct: bool | None) -> "Grey":
        """Cuts the same part out of the image.

        Args:
            image: Intensities of one channel (z, y, x), on the grid of the maps.
            is_ct: Whether the image is CT, which is shown in a window of soft tissue; None to go by
                its values.
        """
        turned = reorientation(self.codes, USUAL).array(image)
        kept = sorted({z for each in self.slices.values() for z in each})
        volume = _sliced(turned, self.axis, flip=bool(self.codes))
        return Grey(planes=_planes(volume, kept, self.box), window=shown_window(image, is_ct=is_ct))


@dataclass(frozen=True, kw_only=True, slots=True)
class Grey:
    """What is kept of an image.

    Attributes:
        planes: Slice -> intensities (y, x) in the part that is shown.
        window: The values that are black and white.
    """

    planes: Mapping[int, Array]
    window: tuple[float, float]


def make_sprite(
    cut: Cut,
    grey: Grey,
    *,
    labels: Mapping[str, Sequence[int]],
    most_slices: int = MOST_SLICES,
) -> Sprite:
    """Draws the slices of a case.

    Args:
        cut: The part of the case that is shown, with its label maps.
        grey: The image there.
        labels: Name -> values of the labels; each is outlined as the union of its values.
        most_slices: The largest number of slices, one of those that the part was cut for.
    """
    shown = cut.slices[most_slices]
    tile, scale = _tile_size(cut.box, cut.spacing_mm)
    tiles = [_tile(grey.planes[z], grey.window, tile) for z in shown]
    columns = math.ceil(math.sqrt(len(tiles)))
    layers = tuple(
        Layer(
            title=each.title,
            style=each.style,
            paths=tuple(_outlines(each.planes[z], labels, scale) for z in shown),
        )
        for each in cut.maps
    )
    first = _most_telling([np.stack([each.planes[z] for z in shown]) for each in cut.maps])
    return Sprite(
        image=_encoded(_sheet(tiles, columns)),
        tile=tile,
        columns=columns,
        slices=tuple(z + 1 for z in shown),
        depth=cut.depth,
        view=_VIEWS[cut.axis] if cut.codes else "",
        first=first,
        labels=tuple(labels),
        layers=layers,
        poster=_encoded(tiles[first]),
        window=grey.window,
    )


def _slice_axis(spacing_mm: Sequence[float]) -> int:
    """The coarsest axis; the first one of equals."""
    return int(np.argmax(np.round(spacing_mm, 2)))


def _first(values: tuple[T, T, T], axis: int) -> tuple[T, T, T]:
    """One value per axis, that of the axis of slices first."""
    first, second, third = values[axis], *(v for index, v in enumerate(values) if index != axis)
    return first, second, third


def _sliced(array: Array, axis: int, *, flip: bool) -> Array:
    """The array with the axis of slices first; the head is up in coronal and sagittal slices."""
    moved = np.moveaxis(array, axis, 0)
    return moved[:, ::-1] if axis and flip else moved


def _planes(array: Array, slices: Sequence[int], box: tuple[slice, slice]) -> dict[int, Array]:
    """Copies of parts of some slices, so that the array itself is not kept."""
    return {z: array[z][box].copy() for z in slices}


def _labelled(
    maps: Sequence[Array], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which slices hold a label, and which of their pixels (y, x) do in any slice."""
    held, found = np.zeros(shape[0], bool), np.zeros(shape[1:], bool)
    for array in maps:
        # In parts that lie together in memory.
        axis = int(np.argmax(np.abs(array.strides)))
        step = max(1, _PART_VOXELS * array.shape[axis] // array.size)
        for start in range(0, array.shape[axis], step):
            part = [slice(None)] * 3
            part[axis] = slice(start, start + step)
            inside = array[*part] > 0
            held[part[0]] |= inside.any(axis=(1, 2))
            found[part[1], part[2]] |= inside.any(axis=0)
    return held, found


def _shown_slices(held: npt.NDArray[np.bool_], most: int) -> tuple[int, ...]:
    where, depth = np.flatnonzero(held), len(held)
    start, stop = (max(where[0] - 1, 0), min(where[-1] + 2, depth)) if len(where) else (0, depth)
    step = math.ceil((stop - start) / most)
    return tuple(int(z) for z in range(int(start), int(stop), step))


def _box(found: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns around all that is labelled, with a margin; all without a label."""
    if not found.any():
        return slice(0, found.shape[0]), slice(0, found.shape[1])
    ends = []
    for size, held in zip(found.shape, (found.any(axis=1), found.any(axis=0)), strict=True):
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
