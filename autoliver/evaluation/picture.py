"""What pictures share: colours, windows, and outlines on slices of their images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from autoliver.io.drawn import save_figure
from autoliver.planning.modality import AIR_HU
from autoliver.preprocessing.normalize import SOFT_TISSUE_HU

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from autoliver.inference.lesions.calibration import ReliabilityBin

# Okabe and Ito's colours, which people with any colour vision tell apart, on grey as well.
OKABE_ITO = {
    "orange": "#e69f00",
    "sky blue": "#56b4e9",
    "green": "#009e73",
    "yellow": "#f0e442",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "purple": "#cc79a7",
}
# The style of the line tells them apart once more.
REFERENCE_COLOUR, PREDICTION_COLOUR = OKABE_ITO["sky blue"], OKABE_ITO["orange"]
# Of a second prediction, as far from the other two as they are from each other.
SECOND_COLOUR = OKABE_ITO["purple"]
_LINES: tuple[tuple[str, Literal["solid", "dashed"]], ...] = (
    (REFERENCE_COLOUR, "solid"),
    (PREDICTION_COLOUR, "dashed"),
)
_PANEL_INCHES = 3.4
_BARS_INCHES = 4.0
_PERCENTILES = (0.5, 99.5)  # of what is not background
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
        window: The grey values that are shown black and white; None: the `shown_window` of each
            slice.
    """

    title: str
    panels: tuple[Panel, ...]
    window: tuple[float, float] | None = None


def shown_window(image: npt.NDArray[Any], *, is_ct: bool | None) -> tuple[float, float]:
    """Returns the grey values that are shown black and white.

    Of CT they are those of soft tissue, of other images nearly all that is not background.

    Args:
        image: Intensities of one channel, of any shape.
        is_ct: Whether it is CT; None to go by its values, among which are those of air.
    """
    if is_ct or (is_ct is None and image.size and image.min() <= AIR_HU):
        return SOFT_TISSUE_HU
    values = image[np.isfinite(image)]
    inside = values[values != values.min()] if values.size else values
    if not inside.size:
        return 0.0, 1.0
    low, high = np.percentile(inside.astype(np.float64), _PERCENTILES)
    if high <= low:  # all tissue alike
        low = values.min()
    return float(low), float(high)


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
    save_figure(figure, path)


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


def draw_reliability(path: Path, panels: Mapping[str, Sequence["ReliabilityBin"]]) -> None:
    """Draws accuracy against confidence, with the number of lesions of each bin, as a PNG.

    Args:
        path: The PNG.
        panels: Title -> bins from `reliability`, drawn side by side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (_BARS_INCHES * len(panels), _BARS_INCHES)
    figure = Figure(figsize=size, layout="constrained", dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, bins) in zip(axes, panels.items(), strict=True):
        axis.set_title(title, fontsize="medium")
        _draw_bins(axis, bins)
    save_figure(figure, path)


def _draw_bins(axis: "Axes", bins: Sequence["ReliabilityBin"]) -> None:
    axis.plot([0, 1], [0, 1], color="grey", linestyle="dashed", linewidth=1)
    for each in bins:
        if each.accuracy is None:
            continue
        width = each.high - each.low
        axis.bar(
            each.low,
            each.accuracy,
            width,
            align="edge",
            color=OKABE_ITO["sky blue"],
            edgecolor="white",
        )
        middle = each.low + width / 2
        axis.text(middle, each.accuracy, str(each.lesions), ha="center", va="bottom", fontsize=7)
    axis.set(xlim=(0, 1), ylim=(0, 1.06), xlabel="probability", ylabel="share that is right")


def _draw_panel(
    axis: "Axes",
    panel: Panel,
    window: tuple[float, float] | None,
    outlined: Sequence[tuple[int, ...]],
) -> None:
    low, high = window or shown_window(panel.image, is_ct=None)
    height, width = panel.spacing_mm
    axis.imshow(panel.image, cmap="gray", vmin=low, vmax=high, aspect=height / width)
    for values in outlined:
        for (colour, style), label in zip(_LINES, (panel.reference, panel.prediction), strict=True):
            region = np.isin(label, values)
            if not region.all():
                draw_outline(axis, region, colour, style)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(panel.caption, fontsize="small")
