"""Scores as tables for a terminal of 80 characters."""

import statistics
from collections.abc import Mapping, Sequence

from autoliver.evaluation.bootstrap import Interval, Statistic
from autoliver.evaluation.chaos import POINTS, organ_of
from autoliver.evaluation.results import COLUMNS, LabelSummary, Score, Scores
from autoliver.values import shortened

_WIDTH = 80  # characters of a line of the table
_SHOWN = 3  # metrics in the table; the CSV file has all of them
_CASES = 40  # as many as the challenge has; of more, only the means are listed
# As the challenge prints them: DICE=0.978 RAVD=0.665 ASSD=0.734 MSSD=14.000.
_CHAOS = {"DICE": "dice", "RAVD": "ravd_percent", "ASSD": "assd_mm", "MSSD": "mssd_mm"}
# The fields for the table, most telling first; those that no case defines are passed over.
_TELLING = (
    *("chaos", "dice", "hd95_mm", "volume_difference_ml", "nsd", "assd_mm", "mad_mm", "mssd_mm"),
    *("iou", "recall", "precision", "ravd_percent", "lesion_recall", "lesion_precision"),
)


def table(scores: Scores) -> str:
    """Formats a table of labels by metrics, mean +- SD over cases, for lines of 80 characters.

    It shows the three most telling metrics that some case defines; the CSV file has all of them.
    Labels that are too long for the line are shortened.
    """
    fields = _fields(scores)
    empty = any(summary.n_empty for summary in scores.summary.values())
    rows = [
        ["label", "cases", *(["empty"] if empty else []), *(COLUMNS[f].heading for f in fields)]
    ]
    rows += _rows(scores.summary, fields, empty=empty)
    if len(scores.summary) > 1:
        cells = ["-" if f not in scores.mean else _mean(scores.mean[f], f) for f in fields]
        rows.append(["mean", "", *([""] if empty else []), *cells])
    for group, found_there in scores.groups.items():
        rows += _rows(found_there, fields, empty=empty, prefix=f"{group}: ")
    return aligned(rows)


def interval_table(scores: Scores) -> str:
    """Formats the 95 % intervals of the means of `table`; empty if there are none."""
    fields = [f for f in _fields(scores) if any(_interval(s, f) for s in scores.summary.values())]
    if not fields:
        return ""
    rows = [["95 % interval", *(COLUMNS[field].heading for field in fields)]]
    for label, summary in scores.summary.items():
        spans = [span(_interval(summary, f), COLUMNS[f].decimals) for f in fields]
        if any(each != "-" for each in spans):
            rows.append([label, *spans])
    return aligned(rows)


def chaos_table(scores: Scores) -> str:
    """Formats metrics and points of the CHAOS challenge by organ and case, for 80 characters.

    Empty if no organ has points.
    """
    parts = []
    for label, summary in scores.summary.items():
        if organ_of(label) is None or "chaos" not in summary.metrics:
            continue
        known = [
            (case.name, score)
            for case in scores.cases
            if (score := case.labels.get(label)) is not None and score.chaos is not None
        ]
        rows = [[label, *_CHAOS, "score"]]
        if len(known) <= _CASES:
            rows += [[name, *_points([score]), f"{score.chaos:.2f}"] for name, score in known]
        each = [score for _, score in known]
        rows.append(["mean", *_points(each), f"{summary.metrics['chaos'].mean:.2f}"])
        parts.append(aligned(rows))
    if not parts:
        return ""
    found = [f"CHAOS score (tasks {name}): {value:.2f}" for name, value in scores.chaos.items()]
    head = "CHAOS challenge, in brackets the points of 100"
    return "\n\n".join([f"{head}\n{parts[0]}", *parts[1:], "\n".join(found)]).rstrip()


def aligned(rows: Sequence[Sequence[str]], *, least: int = 12) -> str:
    """Joins cells to lines of 80 characters; the first column is shortened to fit.

    Args:
        rows: The cells of each row, as many in all rows.
        least: Characters that the first column keeps in any case.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], max(least, _WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = (
        "  ".join(_fit(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def span(interval: Interval | None, decimals: int) -> str:
    """Formats an interval: "0.71 to 0.85"; a dash if there is none."""
    if interval is None:
        return "-"
    return " to ".join(f"{value:z.{decimals}f}" for value in interval)


def _points(scores: Sequence[Score]) -> list[str]:
    """Means of metrics and of their points; a mask without the organ has no distances."""
    cells = []
    for value, points in zip(_CHAOS.values(), POINTS, strict=True):
        apart = value.endswith("_mm")
        numbers = [
            number
            for score in scores
            if (number := getattr(score, value)) is not None and (score.voxels or not apart)
        ]
        shown = f"{statistics.fmean(numbers):.3f}" if numbers else "-"
        earned = statistics.fmean(getattr(score, points) for score in scores)
        cells.append(f"{shown} ({earned:.1f})")
    return cells


def _fields(scores: Scores) -> list[str]:
    """The most telling fields of `Score` that some case defines."""
    found = {field for summary in scores.summary.values() for field in summary.metrics}
    return [field for field in _TELLING if field in found][:_SHOWN]


def _interval(summary: LabelSummary, field: str) -> Interval | None:
    found = summary.metrics.get(field)
    return None if found is None else found.interval


def _rows(
    summary: Mapping[str, LabelSummary], fields: Sequence[str], *, empty: bool, prefix: str = ""
) -> list[list[str]]:
    """The rows of the table, one for each label."""
    rows = []
    for label, found in summary.items():
        cells = [_cell(found.metrics.get(f), COLUMNS[f].decimals) for f in fields]
        if not found.cases:
            cells = ["n/a"] * len(fields)
        counts = [str(found.cases), *([str(found.n_empty)] if empty else [])]
        rows.append([f"{prefix}{label}", *counts, *cells])
    return rows


def _fit(text: str, width: int) -> str:
    return shortened(text, width).ljust(width)


def _mean(value: float, field: str) -> str:
    return f"{value:.{COLUMNS[field].decimals}f}"


def _cell(statistic: Statistic | None, decimals: int) -> str:
    if statistic is None:
        return "-"
    mean = f"{statistic.mean:z.{decimals}f}"
    return mean if statistic.sd is None else f"{mean} +- {statistic.sd:.{decimals}f}"
