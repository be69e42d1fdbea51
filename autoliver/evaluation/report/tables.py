"""Tables of what artefacts hold: plans, scores, lesions, transfers and comparisons."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from autoliver.datasets.cases import Dataset
from autoliver.evaluation.bootstrap import Statistic
from autoliver.evaluation.classification import MEASURES, ClassSummary, matched_probabilities
from autoliver.evaluation.comparison import Comparison
from autoliver.evaluation.detection import Detection
from autoliver.evaluation.report.page import Cell, Figure, Part, Table
from autoliver.evaluation.report.plots import Point, reliability_bars, strips
from autoliver.evaluation.results import (
    COLUMNS,
    CaseScores,
    LabelSummary,
    Scores,
    by_mean_dice,
    statistic_of,
)
from autoliver.evaluation.tables import span
from autoliver.inference.lesions.calibration import reliability
from autoliver.planning.changes import decisions
from autoliver.planning.findings import Finding
from autoliver.planning.plan import Fingerprint, Plan
from autoliver.transfer.table import Transfer
from autoliver.values import counted

ALL_CLASSES = "all classes"
# Heading of means over the cases of all folds.
POOLED = "all cases: mean ± SD (95 % interval)"
# The fields of scores that are shown, in this order; scores.csv has all of them.
SHOWN = (
    *("chaos", "dice", "hd95_mm", "assd_mm", "nsd", "volume_difference_ml"),
    *("recall", "precision"),
)
_BY_FOLD = ("chaos", "dice", "hd95_mm", "nsd", "volume_difference_ml")
_STRIPS = {"dice": (0.0, 1.0), "hd95_mm": None, "volume_difference_ml": None}
_MOST_LABELS = 12  # in columns of a table of cases
_MOST_FINDINGS = 300
_ROLES = {"loaded": "unchanged", "adapted": "changed to fit", "reset": "initialised at random"}


def number(value: float | None, decimals: int) -> Cell:
    """Returns a number as a cell; a dash without one."""
    return Cell("-") if value is None else Cell(f"{value:z.{decimals}f}", value)


def whole(value: int) -> Cell:
    """Returns a whole number as a cell."""
    return Cell(f"{value:,}", value)


def texts(*values: str) -> tuple[Cell, ...]:
    """Returns texts as a row of cells."""
    return tuple(map(Cell, values))


def findings_table(findings: Sequence[Finding], links: Mapping[str, str]) -> Table | None:
    """Returns what `verify` found; None if it found nothing.

    Args:
        findings: The findings.
        links: Case -> anchor of its part of the page.
    """
    order = sorted(findings, key=lambda f: ("error", "warning", "note").index(f.severity))
    rows = [
        (Cell(f.case or "all", link=links.get(f.case or "", "")), Cell(f.severity), Cell(f.problem))
        for f in order
    ]
    if not rows:
        return None
    shown = rows[:_MOST_FINDINGS]
    more = "" if len(shown) == len(rows) else f"; the first {_MOST_FINDINGS} of {len(rows)}"
    return Table(
        caption=f"Findings of verify{more}",
        head=("case", "severity", "found"),
        rows=tuple(shown),
        folded=len(rows) > _MOST_LABELS,
    )


def facts_table(dataset: Dataset, fingerprint: Fingerprint | None) -> Table:
    """Returns what is known of a dataset."""
    kinds: dict[str, int] = {}
    for case in dataset.cases:
        kinds[case.modality] = kinds.get(case.modality, 0) + 1
    sources = sorted({case.source for case in dataset.cases if case.source})
    labels = (f"{name} ({'+'.join(map(str, v))})" for name, v in dataset.labels.foreground.items())
    facts = {
        "folder": dataset.folder,
        "cases": f"{len(dataset.cases)}, of which {len(dataset.labelled)} have a label",
        "patients": str(len({case.patient for case in dataset.cases})),
        "modality": ", ".join(f"{name} ({n})" for name, n in sorted(kinds.items())),
        "channels": ", ".join(dataset.channel_names),
        "labels (values)": ", ".join(labels),
        "sources": ", ".join(sources),
    }
    if dataset.labels.has_regions:
        facts["kind of labels"] = "regions, which may overlap"
    if fingerprint is not None:
        facts |= _grids(fingerprint)
    rows = tuple(texts(name, value) for name, value in facts.items() if value)
    return Table(caption="The dataset", head=("fact", "value"), rows=rows)


def _grids(fingerprint: Fingerprint) -> dict[str, str]:
    spacings = list(zip(*(case.spacing_mm for case in fingerprint.cases), strict=True))
    shapes = list(zip(*(case.shape for case in fingerprint.cases), strict=True))
    spans = [(min(v), statistics.median(v), max(v)) for v in spacings]
    sizes = [(min(v), statistics.median(v), max(v)) for v in shapes]
    orders = sorted({case.axis_codes for case in fingerprint.cases if case.axis_codes})
    return {
        "spacing z, y, x (least, median, most)": "; ".join(
            f"{a:.3g}, {b:.3g}, {c:.3g} mm" for a, b, c in spans
        ),
        "voxels z, y, x (least, median, most)": "; ".join(
            f"{a:g}, {b:g}, {c:g}" for a, b, c in sizes
        ),
        "directions of axes": ", ".join(orders),
    }


def plan_tables(plan: Plan) -> list[Table]:
    """Returns the decisions of a plan with their reasons, a table for each configuration."""
    tables = [
        Table(
            caption=f"Plan of {name}",
            head=("decision", "value", "because"),
            rows=tuple(
                texts(made.what, made.text, c.reasons.get(made.reason, ""))
                for made in decisions(c)
                if made.text
            ),
        )
        for name, c in plan.configurations.items()
    ]
    if plan.reasons:
        rows = tuple(texts(*item) for item in plan.reasons.items())
        tables.append(Table(caption="Of the plan as a whole", head=("what", "because"), rows=rows))
    return tables


def fold_tables(folds: Mapping[str, Scores]) -> list[Table]:
    """Returns the scores of the folds of a run, a table for each metric, a row for each label.

    Behind the folds come the mean over them, as `train` prints it, and the mean, standard deviation
    and 95 % interval over the cases of all folds.
    """
    found = {f for s in folds.values() for each in s.summary.values() for f in each.metrics}
    return [_fold_table(folds, field) for field in _BY_FOLD if field in found]


def _fold_table(folds: Mapping[str, Scores], field: str) -> Table:
    column = COLUMNS[field]
    several = len(folds) > 1
    groups = dict.fromkeys(name for scores in folds.values() for name in scores.groups)
    rows = []
    for group in ("", *groups):
        summaries = [s.groups.get(group, {}) if group else s.summary for s in folds.values()]
        for label in dict.fromkeys(name for each in summaries for name in each):
            values = [_mean(each.get(label), field) for each in summaries]
            cases = sum(each[label].cases for each in summaries if label in each)
            cells = [number(value, column.decimals) for value in values]
            known = [value for value in values if value is not None]
            mean = [number(statistics.fmean(known) if known else None, column.decimals)]
            name = f"{group}: {label}" if group else label
            pooled = _of_group(summaries, label, field) if group else pooled_of(folds, label, field)
            last = [*(mean if several else []), pooled_cell(pooled, column.decimals)]
            rows.append((Cell(name), whole(cases), *cells, *last))
    heads = (*(("mean of folds",) if several else ()), POOLED)
    return Table(
        caption=f"{column.heading} of held-out cases",
        head=("label", "cases", *folds, *heads),
        rows=tuple(rows),
    )


def pooled_of(folds: Mapping[str, Scores], label: str, field: str) -> Statistic | None:
    """Returns the mean of a field of `Score` over the cases of all folds; None without a value."""
    return statistic_of([case for scores in folds.values() for case in scores.cases], label, field)


def _of_group(
    summaries: Sequence[Mapping[str, LabelSummary]], label: str, field: str
) -> Statistic | None:
    """The same for a group of cases, of which only the summary of each fold is known."""
    found = [s for each in summaries if label in each and (s := each[label].metrics.get(field))]
    count = sum(each.n for each in found)
    if not count:
        return None
    mean = sum(each.n * each.mean for each in found) / count
    squares = sum((s.n - 1) * (s.sd or 0.0) ** 2 + s.n * (s.mean - mean) ** 2 for s in found)
    sd = math.sqrt(squares / (count - 1)) if count > 1 else None
    return Statistic(mean=mean, sd=sd, n=count)


def pooled_cell(found: Statistic | None, decimals: int) -> Cell:
    """Returns a mean with its standard deviation and interval as a cell, as `POOLED` says."""
    if found is None:
        return Cell("-")
    text = f"{found.mean:z.{decimals}f}"
    text += "" if found.sd is None else f" ± {found.sd:.{decimals}f}"
    text += "" if found.interval is None else f" ({span(found.interval, decimals)})"
    return Cell(text, found.mean)


def summary_table(scores: Scores) -> Table:
    """Returns the means of scores with their 95 % intervals, a row for each label."""
    found = {field for each in scores.summary.values() for field in each.metrics}
    fields = [field for field in SHOWN if field in found]
    rows = []
    for group, summaries in (("", scores.summary), *scores.groups.items()):
        for label, each in summaries.items():
            name = f"{group}: {label}" if group else label
            counts = (whole(each.cases), whole(each.n_missed), whole(each.n_false_positive))
            cells = (_statistic(each.metrics.get(f), COLUMNS[f].decimals) for f in fields)
            rows.append((Cell(name), *counts, *cells))
    if len(scores.summary) > 1:
        means = (number(scores.mean.get(f), COLUMNS[f].decimals) for f in fields)
        rows.append((Cell("mean of labels"), Cell(""), Cell(""), Cell(""), *means))
    return Table(
        caption="Scores: mean (95 % interval by resampling patients)",
        head=("label", "cases", "missed", "only predicted", *(COLUMNS[f].heading for f in fields)),
        rows=tuple(rows),
    )


def case_table(
    cases: Sequence[CaseScores],
    links: Mapping[str, str],
    groups: Mapping[str, str],
    *,
    labels: Sequence[str],
) -> Table:
    """Returns the Dice of each case, the lowest mean first.

    Args:
        cases: The cases.
        links: Case -> anchor of its part of the page.
        groups: Case -> its fold; empty if there are no folds.
        labels: All labels.
    """
    rows = []
    for case in by_mean_dice(cases):
        dice = {name: score.dice for name, score in case.labels.items()}
        known = {name: value for name, value in dice.items() if value is not None}
        mean = number(case.mean_dice, 3)
        lead = [Cell(case.name, link=links.get(case.name, ""))]
        lead += [Cell(groups[case.name])] if groups else []
        if len(labels) <= _MOST_LABELS:
            rows.append((*lead, mean, *(number(dice.get(name), 3) for name in labels)))
            continue
        worst = min(known, key=lambda name: (known[name], name), default="")
        rows.append((*lead, mean, number(known.get(worst), 3), Cell(worst)))
    names = labels if len(labels) <= _MOST_LABELS else ("lowest", "label")
    return Table(
        caption="Dice of every case, the lowest mean first",
        head=("case", *(("fold",) if groups else ()), "mean of labels", *names),
        rows=tuple(rows),
        folded=len(rows) > 30,
    )


def numbers_of(case: CaseScores) -> Table:
    """Returns the scores of one case, a row for each label."""
    held = {f for s in case.labels.values() for f in SHOWN if getattr(s, f) is not None}
    fields = [field for field in SHOWN if field in held]
    volumes = [f for f in ("volume_ml", "reference_volume_ml") if _any(case, f)]
    fields = [*fields[:4], *volumes]
    rows = tuple(
        (Cell(name), *(number(getattr(score, f), COLUMNS[f].decimals) for f in fields))
        for name, score in case.labels.items()
        if score.voxels or score.reference_voxels or len(case.labels) <= _MOST_LABELS
    )
    head = ("label", *(COLUMNS[f].heading for f in fields))
    return Table(caption="Scores of the case", head=head, rows=rows)


def strip_figures(
    cases: Sequence[CaseScores],
    links: Mapping[str, str],
    groups: Mapping[str, str],
    *,
    labels: Sequence[str],
    of: str,
) -> list[Figure]:
    """Returns a strip plot for Dice and, where they are known, distances and volumes.

    Args:
        cases: The cases.
        links: Case -> anchor of its part of the page.
        groups: Case -> its fold; empty if there are no folds.
        labels: All labels.
        of: What the scores are of, for the titles.
    """
    names = list(dict.fromkeys(groups.values()))
    figures = []
    for field, limits in _STRIPS.items():
        rows = {
            label: [
                Point(value, names.index(groups[c.name]) if groups else 0, links.get(c.name, ""))
                for c in cases
                if label in c.labels and (value := getattr(c.labels[label], field)) is not None
            ]
            for label in labels
        }
        if not any(rows.values()):
            continue
        heading = COLUMNS[field].heading
        svg = strips(rows, groups=names, label=heading, title=f"{heading} of {of}", limits=limits)
        mean = " A point leads to its case." if links else ""
        figures.append(Figure(svg=svg, caption=f"{heading} by label and case.{mean}"))
    return figures


def lesion_parts(named: Mapping[str, Scores]) -> list[Part]:
    """Returns what is known of lesions: detection, classes, confusion and reliability.

    Args:
        named: What the scores are of, such as a fold -> the scores.
    """
    rows: list[tuple[Cell, ...]] = []
    parts: list[Part] = []
    for name, scores in named.items():
        rows += _detections(name, scores)
    if rows:
        head = ("lesions", "of", "true", "predicted", "recall", "precision", "F1", "Dice")
        parts.append(
            Table(caption="Lesions, matched one to one", head=(*head, "error ml"), rows=tuple(rows))
        )
    for name, scores in named.items():
        if scores.lesion_classes is not None:
            parts += _classes(name, scores, scores.lesion_classes)
    return parts


def _detections(of: str, scores: Scores) -> Iterator[tuple[Cell, ...]]:
    found = [(name, label.lesions) for name, label in scores.summary.items()]
    found.append((ALL_CLASSES, scores.lesions))
    for name, summary in found:
        if summary is None or not (summary.detection.reference or summary.detection.predicted):
            continue
        means = (_plain_mean(summary.dice, 3), _plain_mean(summary.volume_error_ml, 2))
        yield (Cell(name), Cell(of), *_rates(summary.detection), *means)
        for size, each in summary.sizes.items():
            if each.reference or each.predicted:
                yield (Cell(f"{name}, {size}"), Cell(of), *_rates(each), Cell(""), Cell(""))


def _rates(found: Detection) -> Iterator[Cell]:
    yield whole(found.reference)
    yield whole(found.predicted)
    for value in (found.recall, found.precision, found.f1):
        yield number(value, 3)


def _classes(of: str, scores: Scores, found: ClassSummary) -> list[Part]:
    measured = tuple(
        (
            Cell(name),
            whole(each.lesions),
            *(number(getattr(each, measure), 3) for measure in MEASURES),
            number(found.auc if each is found.of_detected else None, 3),
        )
        for name, each in (
            ("all of the reference", found.of_reference),
            ("those that were found", found.of_detected),
        )
    )
    confusion = tuple(
        (Cell(name), *map(whole, counts), whole(missed))
        for name, counts, missed in zip(found.classes, found.confusion, found.missed, strict=True)
    )
    spurious = (Cell("only predicted"), *map(whole, found.spurious), Cell(""))
    head = ("lesions", "number", "accuracy", "balanced accuracy", "macro F1", "AUC")
    where = f" ({of})" if of else ""
    parts: list[Part] = [
        Table(caption=f"Classes of lesions{where}", head=head, rows=measured),
        Table(
            caption=f"Confusion of classes{where}: a row for each class of the reference",
            head=("reference", *found.classes, "missed"),
            rows=(*confusion, spurious),
        ),
    ]
    if found.calibration_error is not None:
        lesions = [case.lesions or () for case in scores.cases]
        bins = reliability(*matched_probabilities(lesions, found.classes))
        svg = reliability_bars(
            [(b.low, b.high, b.confidence, b.accuracy, b.lesions) for b in bins],
            title=f"Reliability of the classes of lesions{where}",
        )
        what = f"Calibration error {found.calibration_error:.3f}"
        of_ = counted(found.auc_lesions, "found lesion")
        parts.append(Figure(svg=svg, caption=f"How often classes are right: {what}, {of_}."))
    return parts


def transfer_tables(transfer: Transfer) -> list[Table]:
    """Returns what a transfer did with the weights, in all and one by one."""
    weights = transfer.table.weights
    every = max(1, sum(weight.parameters for weight in weights))
    rows: list[tuple[Cell, ...]] = []
    for action, meaning in _ROLES.items():
        group = [weight for weight in weights if weight.action == action]
        number_of = sum(weight.parameters for weight in group)
        how = "; ".join(dict.fromkeys(w.how for w in group if w.how)) or meaning
        share = Cell(f"{100 * number_of / every:.1f} %")
        rows.append((Cell(action), whole(len(group)), whole(number_of), share, Cell(how)))
    rows.append(
        (
            Cell("ignored"),
            whole(len(transfer.table.ignored)),
            *texts("-", "-", "the source's alone"),
        )
    )
    heads = tuple(
        texts(label, source or "none: initialised at random")
        for label, source in transfer.table.labels.items()
    )
    each = tuple(
        (Cell(w.name), Cell(w.action), whole(w.parameters), whole(w.taken), Cell(w.how))
        for w in weights
    )
    tables = [
        Table(
            caption="What became of the weights",
            head=("weights", "number", "parameters", "share", "how"),
            rows=tuple(rows),
        ),
        Table(
            caption="Every weight",
            head=("weight", "action", "parameters", "from the source", "how"),
            rows=each,
            folded=True,
        ),
    ]
    if heads:
        tables.insert(1, Table(caption="Labels", head=("label", "from the source's"), rows=heads))
    return tables


def comparison_table(found: Comparison) -> Table:
    """Returns how two predictions differ, a row for each label and metric."""
    rows = []
    for label, fields in found.summary.items():
        for field, each in fields.items():
            decimals = COLUMNS[field].decimals
            interval = span(each.interval, decimals)
            numbers = (number(v, decimals) for v in (each.mean_a, each.mean_b, each.mean))
            wins = f"{each.a_better}:{each.b_better}"
            p = Cell("too few") if each.p is None else number(each.p, 3)
            lead = (Cell(label), Cell(COLUMNS[field].heading), whole(each.cases))
            rows.append((*lead, *numbers, Cell(interval), p, Cell(wins)))
    return Table(
        caption="A against B, over the cases that define both",
        head=("label", "metric", "cases", "A", "B", "B - A", "95 % interval", "p", "A:B wins"),
        rows=tuple(rows),
    )


def _statistic(found: Statistic | None, decimals: int) -> Cell:
    if found is None:
        return Cell("-")
    text = f"{found.mean:z.{decimals}f}"
    if found.interval is not None:
        text += f" ({span(found.interval, decimals)})"
    return Cell(text, found.mean)


def _plain_mean(found: Statistic | None, decimals: int) -> Cell:
    return number(None if found is None else found.mean, decimals)


def _mean(summary: LabelSummary | None, field: str) -> float | None:
    found = summary.metrics.get(field) if summary is not None else None
    return None if found is None else found.mean


def _any(case: CaseScores, field: str) -> bool:
    return any(getattr(score, field) is not None for score in case.labels.values())
