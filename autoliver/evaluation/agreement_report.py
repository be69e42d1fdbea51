"""Agreement of volumes on a terminal, as CSV and as a picture (Bland and Altman 1986)."""

from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import csv_text, write_bytes
from autoliver.evaluation.agreement import LEAST_CASES, Agreement, Limits
from autoliver.evaluation.picture import OKABE_ITO
from autoliver.evaluation.results import Scores
from autoliver.evaluation.tables import aligned
from autoliver.io.drawn import save_figure
from autoliver.values import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LIMITS = Limits.__struct_fields__
_COLUMNS = 3  # panels beside each other
_MOST_PANELS = 30  # more labels than that are not drawn
_PANEL_INCHES = (4.0, 3.2)
_DOTS_PER_INCH = 100
_COLOUR = OKABE_ITO["blue"]
_TITLE = 30  # characters


def agreement_table(scores: Scores) -> str:
    """Formats bias and limits of agreement of each label, for lines of 80 characters.

    Empty if volumes are not known.
    """
    found = _known(scores)
    if not found:
        return ""
    rows = [["volumes", "cases", "bias ml", "limits ml", "bias %", "limits %", "CCC"]]
    for label, each in found.items():
        if each.ml is None or each.percent is None:
            rows.append([label, str(each.cases), *["too few"] * 2, *["-"] * 3])
            continue
        ccc = "-" if each.concordance is None else f"{each.concordance:.3f}"
        rows.append([label, str(each.cases), *_cells(each.ml), *_cells(each.percent), ccc])
    notes = ["Limits of agreement: mean difference +- 1.96 SD. CCC: Lin's concordance."]
    if any(each.ml is None for each in found.values()):
        notes.append(f"Agreement needs at least {LEAST_CASES} cases with the label.")
    return "\n".join([aligned(rows), *notes])


def write_agreement(scores: Scores, path: Path) -> bool:
    """Writes a CSV file with one row per label; returns whether volumes are known.

    Undefined values are empty cells. A file of earlier scores is removed if they are not known.
    """
    found = _known(scores)
    if not found:
        path.unlink(missing_ok=True)
        return False
    heads = [f"{name}_{unit}" for unit in ("ml", "percent") for name in _LIMITS]
    rows: list[list[object]] = [["label", "cases", *heads, "concordance"]]
    for label, each in found.items():
        values = [getattr(part, name, None) for part in (each.ml, each.percent) for name in _LIMITS]
        rows.append([label, each.cases, *values, each.concordance])
    write_bytes(path, csv_text(rows).encode())
    return True


def draw_agreement(scores: Scores, path: Path) -> bool:
    """Draws differences against means for each label with limits, as a PNG.

    A picture of earlier scores is removed if there is none now, which the result says.
    """
    drawn = {name: each for name, each in _known(scores).items() if each.ml is not None}
    if not 0 < len(drawn) <= _MOST_PANELS:
        path.unlink(missing_ok=True)
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(drawn))
    lines = -(-len(drawn) // columns)
    size = (_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * lines)
    figure = Figure(figsize=size, layout="constrained", dpi=_DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (label, each) in zip(axes, drawn.items(), strict=False):
        _draw(axis, scores, label, each)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    figure.supxlabel("mean of prediction and reference, ml", fontsize="medium")
    figure.supylabel("prediction - reference, ml", fontsize="medium")
    save_figure(figure, path)
    return True


def _known(scores: Scores) -> dict[str, Agreement]:
    found = {name: label.volumes for name, label in scores.summary.items()}
    return {name: each for name, each in found.items() if each is not None}


def _cells(found: Limits) -> list[str]:
    return [f"{found.bias:z.1f}", f"{found.low:z.1f} to {found.high:z.1f}"]


def _draw(axis: "Axes", scores: Scores, label: str, found: Agreement) -> None:
    pairs = [
        (score.volume_ml, score.reference_volume_ml)
        for case in scores.cases
        if (score := case.labels.get(label)) is not None
    ]
    both = [(p, r) for p, r in pairs if p is not None and r is not None and (p or r)]
    axis.scatter([(p + r) / 2 for p, r in both], [p - r for p, r in both], s=16, color=_COLOUR)
    limits = found.ml
    if limits is None:
        return
    axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    for value, style in ((limits.bias, "solid"), (limits.low, "dashed"), (limits.high, "dashed")):
        axis.axhline(value, color="black", linewidth=1.0, linestyle=style)
        axis.annotate(
            f"{value:z.1f}",
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize="small",
        )
    axis.margins(0.1, 0.15)
    # A name may hold what would begin a formula.
    title = f"{shortened(label, _TITLE)} (n = {found.cases})"
    axis.set_title(title, fontsize="medium", parse_math=False)
