"""Two sets of predictions compared case by case: which is better, and is that chance?"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy import stats

from autoliver.artifacts import Artifact, Record, csv_text, write_bytes
from autoliver.datasets.cases import Labels
from autoliver.evaluation.bootstrap import Interval, resampled, statistic
from autoliver.evaluation.results import (
    COLUMNS,
    CaseScores,
    MetricOptions,
    Score,
    Scores,
)
from autoliver.evaluation.tables import aligned, span

# With fewer differences no signed-rank test can be significant: 2 / 2 ** 5 > 0.05.
LEAST_PATIENTS = 6

# The label and the metric of the classes of all lesions together.
ALL_CLASSES, CLASS_ACCURACY = "all classes", "class_accuracy"

_CLASS_COLUMN = ("right classes", 3)  # heading and decimals
_LABEL = 8  # the least characters of a label
_LOWER_IS_BETTER = {
    *("ravd_percent", "assd_mm", "mad_mm", "mssd_mm", "hd95_mm", "volume_difference_ml"),
}
_NO_QUALITY = {"volume_ml", "reference_volume_ml"}
_DIGITS = 12  # decimals of a difference; what is left is rounding


class CaseDifference(Record, frozen=True, kw_only=True):
    """A metric of one label of one case in both predictions.

    Attributes:
        case: The case's name.
        patient: The patient's identifier.
        label: The label; `ALL_CLASSES` for the classes of lesions.
        metric: Field of `Score`; volume differences are compared by their absolute value. For the
            classes of lesions `CLASS_ACCURACY`: the share of the reference's lesions that have the
            right class, of which a missed one is wrong.
        a: The value of the first prediction; None if undefined.
        b: The value of the second prediction.
        difference: b - a; None if one of them is undefined.
    """

    case: str
    patient: str
    label: str
    metric: str
    a: float | None
    b: float | None
    difference: float | None


class Difference(Record, frozen=True, kw_only=True):
    """A metric of one label in both predictions, over the cases that define it in both.

    Attributes:
        cases: Number of these cases.
        patients: Number of their patients.
        mean_a: Mean of the first prediction.
        mean_b: Mean of the second one.
        mean: Mean of the differences, second minus first.
        interval: 95 % interval of this mean by resampling patients; None for fewer than two.
        p: Two-sided p of the Wilcoxon signed-rank test of the mean difference of each patient;
            differences of zero are left out. None for fewer than `LEAST_PATIENTS` patients.
        a_better: Cases in which the first one is better.
        b_better: Cases in which the second one is better.
        equal: Cases in which both are equal.
    """

    cases: int
    patients: int
    mean_a: float
    mean_b: float
    mean: float
    interval: Interval | None
    p: float | None
    a_better: int
    b_better: int
    equal: int


class Comparison(Artifact, frozen=True, kw_only=True):
    """Two predictions of the same cases, compared case by case.

    Attributes:
        predictions: The paths of both.
        reference: What both were compared with.
        labels: The labels that were scored.
        options: The metrics that were computed, and their settings.
        cases: Each case, label and metric.
        summary: Label -> field of `Score` -> the difference over all cases. The classes of lesions
            are under `ALL_CLASSES` and `CLASS_ACCURACY`.
        warnings: Suspicious findings, one sentence each.
    """

    KIND: ClassVar[str] = "comparison"

    predictions: tuple[str, str]
    reference: str
    labels: Labels
    options: MetricOptions
    cases: tuple[CaseDifference, ...]
    summary: dict[str, dict[str, Difference]]
    warnings: tuple[str, ...] = ()


def compare_scores(
    first: Scores,
    second: Scores,
    *,
    predictions: tuple[str, str],
    reference: str,
    options: MetricOptions | None = None,
) -> Comparison:
    """Compares the scores of two predictions of the same cases, whose patients are known.

    Args:
        first: Scores of the first prediction.
        second: Scores of the second one, with the same labels, metrics and cases.
        predictions: The paths of both.
        reference: What both were compared with.
        options: The metrics to compare; None: all that the scores have. Classes of lesions are
            compared where both have them.
    """
    options = options or first.options
    wanted = options.wanted
    fields = [f for f, c in COLUMNS.items() if c.metric in wanted and f not in _NO_QUALITY]
    rows = []
    for case, other in zip(first.cases, second.cases, strict=True):
        for label, field in itertools.product(case.labels, fields):
            a, b = (_value(each.labels[label], field) for each in (case, other))
            if a is not None or b is not None:
                rows.append(_row(case, label, field, a, b))
        a, b = (_class_accuracy(each) for each in (case, other))
        if a is not None and b is not None:
            rows.append(_row(case, ALL_CLASSES, CLASS_ACCURACY, a, b))
    summary: dict[str, dict[str, Difference]] = {}
    compared = [*itertools.product(first.labels.foreground, fields), (ALL_CLASSES, CLASS_ACCURACY)]
    for label, field in compared:
        same = [row for row in rows if (row.label, row.metric) == (label, field)]
        if (found := _summary(same, field)) is not None:
            summary.setdefault(label, {})[field] = found
    return Comparison(
        predictions=predictions,
        reference=reference,
        labels=first.labels,
        options=options,
        cases=tuple(rows),
        summary=summary,
        warnings=tuple(dict.fromkeys((*first.warnings, *second.warnings))),
    )


def signed_rank_p(differences: Sequence[float]) -> float | None:
    """Returns the two-sided p of the Wilcoxon signed-rank test; None for too few differences.

    Differences of zero are left out (Wilcoxon's own treatment); if all are zero, p is 1.
    """
    if len(differences) < LEAST_PATIENTS:
        return None
    rounded = np.round(np.asarray(differences, np.float64), _DIGITS)
    changed = rounded[rounded != 0]
    return float(stats.wilcoxon(changed).pvalue) if len(changed) else 1.0


def comparison_table(found: Comparison) -> str:
    """Formats a table for each metric, for lines of 80 characters."""
    parts = [f"A  {found.predictions[0]}\nB  {found.predictions[1]}"]
    few = False
    for field in dict.fromkeys(field for label in found.summary.values() for field in label):
        heading, decimals = COLUMNS[field][1:] if field in COLUMNS else _CLASS_COLUMN
        head = [heading, "cases", "A", "B", "B - A", "95 % interval", "p", "A:B wins"]
        rows = [head]
        for label, fields in found.summary.items():
            if (each := fields.get(field)) is not None:
                rows.append([label, *_cells(each, decimals)])
                few = few or each.p is None
        parts.append(aligned(rows, least=_LABEL))
    if few:
        parts.append(
            f"p: signed-rank test over patients; it needs at least {LEAST_PATIENTS} of them."
        )
    return "\n\n".join(parts)


def write_comparison(found: Comparison, path: Path) -> None:
    """Writes a CSV file with one row per case, label and metric; undefined values are empty."""
    head = CaseDifference.__struct_fields__
    rows = [[getattr(row, name) for name in head] for row in found.cases]
    write_bytes(path, csv_text([head, *rows]).encode())


def _value(score: Score, field: str) -> float | None:
    value: float | None = getattr(score, field)
    return abs(value) if value is not None and field == "volume_difference_ml" else value


def _class_accuracy(case: CaseScores) -> float | None:
    """The share of the lesions of the reference with the right class; None without any."""
    there = [each for each in case.lesions or () if each.reference is not None]
    right = [each for each in there if each.predicted_class == each.reference_class]
    return len(right) / len(there) if there else None


def _row(
    case: CaseScores, label: str, field: str, a: float | None, b: float | None
) -> CaseDifference:
    return CaseDifference(
        case=case.name,
        patient=case.patient,
        label=label,
        metric=field,
        a=a,
        b=b,
        difference=None if a is None or b is None else round(b - a, _DIGITS),
    )


def _summary(rows: Sequence[CaseDifference], field: str) -> Difference | None:
    known = [row for row in rows if row.difference is not None]
    values = [row.difference for row in known if row.difference is not None]
    patients = [row.patient for row in known]
    mean = statistic([(value,) for value in values], resampled(patients))
    if mean is None:
        return None
    of: dict[str, list[float]] = {}
    for patient, value in zip(patients, values, strict=True):
        of.setdefault(patient, []).append(value)
    better = [-value if field in _LOWER_IS_BETTER else value for value in values]
    return Difference(
        cases=len(known),
        patients=len(of),
        mean_a=float(np.mean([row.a for row in known])),
        mean_b=float(np.mean([row.b for row in known])),
        mean=mean.mean,
        interval=mean.interval,
        p=signed_rank_p([float(np.mean(each)) for each in of.values()]),
        a_better=sum(value < 0 for value in better),
        b_better=sum(value > 0 for value in better),
        equal=sum(value == 0 for value in better),
    )


def _cells(found: Difference, decimals: int) -> list[str]:
    numbers = [f"{v:z.{decimals}f}" for v in (found.mean_a, found.mean_b, found.mean)]
    small = found.p is not None and found.p < 0.001
    p = "too few" if found.p is None else "<0.001" if small else f"{found.p:.3f}"
    wins = f"{found.a_better}:{found.b_better}"
    return [str(found.cases), *numbers, span(found.interval, decimals), p, wins]
