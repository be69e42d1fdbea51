"""Outlines of references and predictions on slices of their images, as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A pair that people with any colour vision tell apart (Okabe and Ito), on grey as well; the style
# of the line tells them apart once more.
REFERENCE_COLOUR, PREDICTION_COLOUR = "#56b4e9", "#e69f00"
_LINES: tuple[tuple[str, Literal["solid", "dashed"]], ...] = (
    (REFERENCE_COLOUR, "solid"),
    (PREDICTION_COLOUR, "dashed"),
)
_PANEL_INCHES = 3.4
_DOTS_PER_INCH = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One slice with its outlines.

    Attributes:
        image: Grey values, (y, x).
        reference: Label values, (y, x).
        prediction: Label values, (y, x).
        spacing_mm: Distance of pixel centres, (y, x).
        caption: What is written under the slice.
    """

    image: npt.NDArray[np.floating]
    reference: npt.NDArray[np.integer]
    prediction: npt.NDArray[np.integer]
    spacing_mm: tuple[float, float]
    caption: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Slices beside each other.

    Attributes:
        title: What is written above them.
        panels: The slices; at least one.
        window: The grey values that are shown black and white; None: the lowest and the highest
            fiftieth of each slice.
    """

    title: str
    panels: tuple[Panel, ...]
    window: tuple[float, float] | None = None


def slice_with_most(label: npt.NDArray[np.integer], value: int) -> int:
    """Returns the slice of a label map (z, y, x) in which a value has most voxels.

    Where there is none of it, this is the slice with most foreground.
    """
    areas = np.count_nonzero(label == value, axis=(1, 2))
    return int(np.argmax(areas if areas.any() else np.count_nonzero(label, axis=(1, 2))))


def draw_outlines(
    path: Path,
    rows: Sequence[Row],
    *,
    outlined: Sequence[tuple[int, ...]],
    title: str,
    names: tuple[str, str] = ("reference", "prediction"),
) -> None:
    """Draws the outlines of references, solid, and predictions, dashed, and saves a PNG.

    Args:
        path: The PNG.
        rows: The rows, from the top; at least one.
        outlined: Each entry is outlined as one region, the union of its label values.
        title: Title of the picture.
        names: What the solid and the dashed outlines are called.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = max(len(row.panels) for row in rows)
    size = (columns * _PANEL_INCHES, len(rows) * _PANEL_INCHES)
    figure = Figure(figsize=size, layout="constrained", dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        part.suptitle(row.title, fontsize="medium")
        axes = part.subplots(1, columns, squeeze=False)[0]
        for axis, panel in zip(axes, row.panels, strict=False):
            _draw_panel(axis, panel, row.window, outlined)
        for axis in axes[len(row.panels) :]:
            axis.set_axis_off()
    lines = [
        Line2D([], [], color=colour, linestyle=style, label=name)
        for name, (colour, style) in zip(names, _LINES, strict=True)
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    with replacing(path) as beside:
        figure.savefig(beside)


def draw_outline(axis: "Axes", region: npt.NDArray[np.bool_], colour: str, style: str) -> None:
    """Draws the outline of a region; where it ends with the slice, along the slice's edge.

    Args:
        axis: Where the slice is drawn, with voxel centres at whole numbers.
        region: (y, x), of any size.
        colour: Of the line.
        style: "solid", "dashed", "dotted" or "dashdot".
    """
    if not region.any():
        return
    height, width = region.shape
    axis.contour(
        np.arange(-1, width + 1),
        np.arange(-1, height + 1),
        np.pad(region, 1).astype(np.float32),
        levels=[0.5],
        colors=[colour],
        linestyles=[style],
        linewidths=1.2,
    )
    # Not wider than the slice, whose first rows are on top.
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _draw_panel(
    axis: "Axes",
    panel: Panel,
    window: tuple[float, float] | None,
    outlined: Sequence[tuple[int, ...]],
) -> None:
    low, high = window or np.percentile(panel.image, (2, 98))
    height, width = panel.spacing_mm
    axis.imshow(panel.image, cmap="gray", vmin=low, vmax=high, aspect=height / width)
    for values in outlined:
        for (colour, style), label in zip(_LINES, (panel.reference, panel.prediction), strict=True):
            region = np.isin(label, values)
            if not region.all():
                draw_outline(axis, region, colour, style)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(panel.caption, fontsize="small")
