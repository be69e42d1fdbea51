"""Plots as SVG that stands in a page of HTML, readable on light and on dark ground."""

import hashlib
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.evaluation.picture import OKABE_ITO
from autoliver.training.progress import EpochLog
from autoliver.values import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 6.2  # inches
_LABEL = 26  # characters of a name
_POINTS = 200  # of a curve; of more, means over neighbours are drawn
_MOST_POINTS = 1500  # as elements of SVG; more are drawn as one picture in it
_MARKERS = "osD^vP*X"
_LINES = ("solid", "dashed", "dotted", "dashdot", (0, (5, 1, 1, 1, 1, 1)))
# All but yellow are seen on light and on dark ground.
_ORDER = ("blue", "vermilion", "green", "purple", "orange", "sky blue")
_COLOURS = tuple(OKABE_ITO[name] for name in _ORDER)
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.parse_math": False,
    "axes.spines.top": False,
    "legend.frameon": False,
    "axes.spines.right": False,
}


class Point(NamedTuple):
    """A case in a strip plot.

    Attributes:
        value: Its value.
        group: Index of its group, which decides on its mark.
        link: Anchor of the case; empty for none.
    """

    value: float
    group: int = 0
    link: str = ""


def learning_curves(folds: Mapping[str, Sequence[EpochLog]], *, title: str) -> str:
    """Draws Dice and losses of the folds of a run over the epochs.

    Args:
        folds: Name of each fold -> its epochs; folds without an epoch are passed over.
        title: Title of the plot, for those who do not see it.
    """
    from matplotlib.ticker import MaxNLocator

    with _figure(2.9, title) as (figure, svg):
        dice, loss = figure.subplots(1, 2)
        for number, (fold, logs) in enumerate((f, each) for f, each in folds.items() if each):
            epochs = [log.epoch + 1.0 for log in logs]
            held_out = [log.mean_validation_dice for log in logs]
            shown = [log.train_dice for log in logs] if _empty(held_out) else held_out
            name = f"{fold}, training patches" if _empty(held_out) else fold
            _curve(dice, epochs, shown, number, name)
            _curve(loss, epochs, [log.train_loss for log in logs], number, f"{fold}, training")
            _curve(loss, epochs, [log.validation_loss for log in logs], number, "", faint=True)
        dice.set(ylabel="mean Dice of patches", ylim=(0, 1))
        loss.set(ylabel="loss (pale: held-out)")
        for axis in (dice, loss):
            axis.set(xlabel="epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.25)
        if dice.get_legend_handles_labels()[0]:
            figure.legend(*dice.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return svg[0]


def strips(
    rows: Mapping[str, Sequence[Point]],
    *,
    groups: Sequence[str],
    label: str,
    title: str,
    limits: tuple[float, float] | None = None,
) -> str:
    """Draws every case as a point, a row for each label, with the median as a line.

    Args:
        rows: Label -> its cases; labels without a case keep an empty row.
        groups: Names of the groups of cases, for the legend.
        label: What the values are.
        title: Title of the plot, for those who do not see it.
        limits: Ends of the axis of values; None: as wide as the values need.
    """
    many = sum(map(len, rows.values())) > _MOST_POINTS
    with _figure(1.1 + 0.42 * len(rows), title, linked=not many) as (figure, svg):
        axis = figure.subplots()
        for row, points in enumerate(rows.values()):
            _strip(axis, row, points, as_picture=many)
            if points:
                median = float(np.median([point.value for point in points]))
                axis.plot([median] * 2, [row - 0.36, row + 0.36], color="black", linewidth=2)
        names = [shortened(_plain(name), _LABEL) for name in rows]
        axis.set_yticks(range(len(rows)), names)
        axis.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"{label} (line: median)")
        if limits is not None:
            axis.set_xlim(limits[0] - 0.02, limits[1] + 0.02)
        axis.grid(axis="x", alpha=0.25)
        if len(groups) > 1:
            for number, name in enumerate(groups):
                axis.scatter([], [], label=_plain(name), **_mark(number))
            figure.legend(loc="outside lower center", ncols=5, handletextpad=0.2)
    return svg[0]


def reliability_bars(
    bins: Sequence[tuple[float, float, float | None, float | None, int]], *, title: str
) -> str:
    """Draws how often lesions of a probability have the right class.

    Args:
        bins: Lower and upper end of each bin, its mean probability, the share that is right, and
            the number of lesions.
        title: Title of the plot, for those who do not see it.
    """
    known = [each for each in bins if each[2] is not None and each[3] is not None]
    with _figure(3.4, title) as (figure, svg):
        axis = figure.subplots()
        axis.plot([0, 1], [0, 1], color="black", linestyle="dashed", linewidth=1)
        axis.plot(
            [float(each[2] or 0) for each in known],
            [float(each[3] or 0) for each in known],
            color=_COLOURS[0],
            marker="o",
        )
        for _low, _high, sure, right, number in known:
            axis.annotate(
                str(number),
                (float(sure or 0), float(right or 0)),
                (4, -12),
                textcoords="offset points",
                fontsize=9,
            )
        axis.set(
            xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability of the class (number: lesions)"
        )
        axis.set(ylabel="share that is right", box_aspect=1)
        axis.grid(alpha=0.25)
    return svg[0]


@contextmanager
def _figure(
    height: float, title: str, *, linked: bool = False
) -> Iterator[tuple["Figure", list[str]]]:
    """A figure to draw into; afterwards the list holds it as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    svg: list[str] = []
    with mpl.rc_context(_SETTINGS | {"svg.hashsalt": title}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, svg
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    svg.append(_for_page(file.getvalue(), title, linked=linked))


def _for_page(svg: str, title: str, *, linked: bool) -> str:
    """The `<svg>` element alone, with a title, in the colour of the text around it."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    # Several plots of a page define marks of the same name.
    own = hashlib.sha256(title.encode()).hexdigest()[:8]
    for name in dict.fromkeys(re.findall(r'\bid="([^"]*)"', body)):
        body = re.sub(rf'(\bid="|#){re.escape(name)}(?=["\)])', rf"\g<1>p{own}-{name}", body)
    # Points lead to their cases for the mouse; the tables do so for the keyboard.
    body = body.replace("<a xlink:href=", '<a tabindex="-1" xlink:href=')
    body = re.sub(r"#000000|(?<=: )black", "currentColor", body)
    box = re.search(r'viewBox="[^"]*"', body)
    head = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} '
        f'role="{"group" if linked else "img"}" aria-label="{html.escape(title)}">'
        f"<title>{html.escape(title)}</title>"
    )
    # Texts without a colour of their own would be black.
    return re.sub(r"<svg[^>]*>", lambda _: head, body, count=1).replace(
        '<text style="', '<text style="fill: currentColor; '
    )


def _curve(
    axis: "Axes",
    epochs: Sequence[float],
    values: Sequence[float | None],
    number: int,
    name: str,
    *,
    faint: bool = False,
) -> None:
    if _empty(values):
        return
    plain = np.array([np.nan if value is None else value for value in values], np.float64)
    x, y = _thinned(np.asarray(epochs, np.float64)), _thinned(plain)
    axis.plot(
        x,
        y,
        color=_COLOURS[number % len(_COLOURS)],
        linestyle=_LINES[number % len(_LINES)],
        marker=_MARKERS[number % len(_MARKERS)] if len(x) < 20 else "",
        markersize=4,
        linewidth=1.5,
        alpha=0.4 if faint else 1.0,
        label=name or None,
    )


def _thinned(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """At most so many values as a curve can show: means over neighbours."""
    step = -(-len(values) // _POINTS)
    if step == 1:
        return values
    padded = np.pad(values, (0, -len(values) % step), constant_values=np.nan).reshape(-1, step)
    known = ~np.isnan(padded)
    total = np.where(known, padded, 0.0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


def _strip(axis: "Axes", row: int, points: Sequence[Point], *, as_picture: bool) -> None:
    """The points of a row, spread across it so that equal ones are seen beside each other."""
    spread = _spread([point.value for point in points])
    for group in sorted({point.group for point in points}):
        those = [n for n, point in enumerate(points) if point.group == group]
        marks = axis.scatter(
            [points[n].value for n in those], [row + spread[n] for n in those], **_mark(group)
        )
        marks.set_rasterized(as_picture)
        marks.set_urls([f"#{points[n].link}" if points[n].link else None for n in those])


def _spread(values: Sequence[float]) -> list[float]:
    """Distances from the middle of a row, larger where values lie close together."""
    order = np.argsort(np.asarray(values, np.float64), kind="stable")
    found = [0.0] * len(values)
    for place, index in enumerate(order.tolist()):
        found[index] = 0.24 * ((place * 0.618034) % 1.0 - 0.5) * 2 if len(values) > 1 else 0.0
    return found


def _mark(group: int) -> dict[str, Any]:
    return {
        "marker": _MARKERS[group % len(_MARKERS)],
        "s": 26,
        "facecolor": "none",
        "edgecolor": _COLOURS[group % len(_COLOURS)],
        "linewidth": 1.3,
    }


def _empty(values: Sequence[float | None]) -> bool:
    return all(value is None for value in values)


def _plain(name: str) -> str:
    """A name on one line; matplotlib leaves those with a leading _ out of legends."""
    return " ".join(name.split()).removeprefix("_") or name
