"""A predicted label map on its image in three planes, as one picture.

Axes are anatomical and planes are shown as radiologists see them: the patient's right is on the
left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from autoliver.evaluation.picture import OKABE_ITO, draw_outline
from autoliver.io.drawn import save_figure
from autoliver.io.orientation import USUAL, axis_codes, reorientation_to
from autoliver.io.volume import Volume, has_no_thickness
from autoliver.values import counted, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

A = TypeVar("A", bound=np.generic)

_COLOURS = tuple(OKABE_ITO.values())  # with the styles, 28 labels differ
_STYLES: tuple[Literal["solid", "dashed", "dotted", "dashdot"], ...] = (
    "solid",
    "dashed",
    "dotted",
    "dashdot",
)
_PANEL_INCHES = 3.6
_LINE_INCHES = 0.24  # of the legend
_LEGEND_COLUMNS = 3
_MOST_LISTED = 24  # labels in the legend
_NAME, _TITLE = 24, 60  # characters
_DOTS_PER_INCH = 100
_LEAST_TALL = 0.15  # height over width; in a flatter panel marks would cover each other

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane through a grid in the order LPS.

    Attributes:
        name: What it is called.
        axis: The axis (z, y, x) that it stands upright on.
        marks: The patient's sides on the left, right, top and bottom.
    """

    name: str
    axis: int
    marks: str

    def of(self, array: npt.NDArray[A], index: int) -> npt.NDArray[A]:
        """The rows from the top of a slice of an array (z, y, x)."""
        rows: npt.NDArray[A] = np.moveaxis(array, self.axis, 0)[index][
            :: 1 if self.axis == 0 else -1
        ]
        return rows


_PLANES = (_Plane("axial", 0, "RLAP"), _Plane("coronal", 1, "RLSI"), _Plane("sagittal", 2, "APSI"))


def draw_preview(
    path: Path,
    image: Volume,
    label: Volume,
    *,
    labels: Mapping[str, tuple[int, ...]],
    title: str,
    window: tuple[float, float],
) -> None:
    """Draws the outlines of labels on the slices in which the largest one has most voxels.

    Args:
        path: The PNG.
        image: (c, z, y, x), of which the first channel is shown.
        label: (1, z, y, x) label values, on the same grid.
        labels: Name -> values of each label; several are outlined as one region.
        title: Title of the picture.
        window: The grey values that are shown black and white.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    turn = reorientation_to(image.geometry, USUAL) if image.oriented else None
    grey, values, spacing = image.array[0], label.array[0], image.geometry.spacing_mm
    if turn is not None:
        grey, values, spacing = turn.array(grey), turn.array(values), turn.values(spacing)
    known = image.oriented and bool(axis_codes(image.geometry))
    voxels = _voxels(values, labels)
    found = max(voxels, key=voxels.__getitem__, default=None)
    largest = None if found is None else np.isin(values, labels[found])
    planes = [p for p in _PLANES if min(_sides(values.shape, p)) > 1] or list(_PLANES[:1])
    lines = -(-min(len(labels), _MOST_LISTED + 1) // _LEGEND_COLUMNS)
    size = (max(2, len(planes)) * _PANEL_INCHES, _PANEL_INCHES + 1 + lines * _LINE_INCHES)
    figure = Figure(figsize=size, layout="constrained", dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    note = "" if known else "\norientation unknown: as stored"
    heading = f"{shortened(title, _TITLE)}{'' if voxels else ': nothing was found'}{note}"
    figure.suptitle(heading, fontsize="medium", parse_math=False)
    for axis, plane in zip(figure.subplots(1, len(planes), squeeze=False)[0], planes, strict=True):
        index = _largest_slice(largest, plane.axis, values.shape)
        shown = plane.of(grey, index).astype(np.float32)
        low, high = window
        height, width = _sides(spacing, plane)
        aspect = 1.0 if has_no_thickness((height, width, width)) else height / width
        axis.imshow(shown, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        below = plane.of(values, index)
        for number, name in enumerate(labels):
            if name in voxels:
                draw_outline(axis, np.isin(below, labels[name]), *_look(number))
        tall = shown.shape[0] * height > _LEAST_TALL * shown.shape[1] * width
        _mark(axis, plane if known else None, index, values.shape, tall=bool(tall))
    _add_legend(figure, labels, voxels, spacing)
    save_figure(figure, path)


def _voxels(
    values: npt.NDArray[np.generic], labels: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Counts the voxels of the labels that are there."""
    there, counts = np.unique(values, return_counts=True)
    each = dict(zip(there.tolist(), counts.tolist(), strict=True))
    found = {name: sum(each.get(value, 0) for value in v) for name, v in labels.items()}
    return {name: count for name, count in found.items() if count}


def _look(number: int) -> tuple[str, Literal["solid", "dashed", "dotted", "dashdot"]]:
    """Colour and style of the line of a label, by its number."""
    return _COLOURS[number % len(_COLOURS)], _STYLES[number % len(_STYLES)]


def _sides(zyx: tuple[Any, ...], plane: _Plane) -> tuple[Any, Any]:
    """Of values per axis, those of the two axes of a plane: rows, columns."""
    rows, columns = (value for axis, value in enumerate(zyx) if axis != plane.axis)
    return rows, columns


def _largest_slice(mask: Mask | None, axis: int, shape: tuple[int, ...]) -> int:
    """The slice in which a mask has most voxels; the middle one without a mask."""
    if mask is None:
        return shape[axis] // 2
    others = tuple(other for other in range(3) if other != axis)
    return int(np.argmax(np.count_nonzero(mask, axis=others)))


def _mark(
    axis: "Axes", plane: _Plane | None, index: int, shape: tuple[int, ...], *, tall: bool
) -> None:
    """Writes which slice it is, and the patient's sides; above and below only if it is tall."""
    axis.set(xticks=[], yticks=[])
    if plane is None:
        return
    axis.set_xlabel(f"{plane.name}, slice {index + 1} of {shape[plane.axis]}", fontsize="small")
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    shown = 4 if tall else 2
    for mark, (x, y), (across, along) in zip(plane.marks[:shown], places, sides, strict=False):
        axis.text(
            *(x, y, mark),
            transform=axis.transAxes,
            color="white",
            ha=across,
            va=along,
            fontsize="small",
            bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.0},
        )


def _add_legend(
    figure: "Figure",
    labels: Mapping[str, tuple[int, ...]],
    voxels: Mapping[str, int],
    spacing_mm: tuple[float, ...],
) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for number, name in enumerate(labels):
        colour, style = _look(number)
        # A legend leaves out what begins with an underscore.
        space = " " if name.startswith("_") else ""
        text = f"{space}{shortened(name, _NAME)}: {_size(voxels.get(name), spacing_mm)}"
        line = Line2D([], [], color=colour, linestyle=style, label=text)
        line.set_alpha(None if name in voxels else 0.0)
        handles.append(line)
    # The labels that are there come first, in their own order.
    order = sorted(range(len(handles)), key=lambda i: list(labels)[i] not in voxels)
    listed = [handles[i] for i in order[:_MOST_LISTED]]
    if left := len(handles) - len(listed):
        text = f"and {counted(left, 'more label')}"
        listed.append(Line2D([], [], linestyle="none", label=text))
    if listed:
        legend = figure.legend(
            handles=listed,
            loc="outside lower center",
            ncols=min(_LEGEND_COLUMNS, len(listed)),
            fontsize="small",
            handlelength=3,
        )
        for entry in legend.get_texts():
            entry.set_parse_math(False)


def _size(voxels: int | None, spacing_mm: tuple[float, ...]) -> str:
    if voxels is None:
        return "not found"
    if has_no_thickness(spacing_mm):  # a 2D file
        return counted(voxels, "pixel")
    volume = voxels * float(np.prod(spacing_mm)) / 1000
    return f"{volume:.1f} ml" if volume >= 1 else f"{volume:.2g} ml"
