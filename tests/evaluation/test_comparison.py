"""Two predictions of the same cases compared with each other."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from autoliver.datasets.cases import Labels
from autoliver.evaluation.comparison import (
    ALL_CLASSES,
    CLASS_ACCURACY,
    Comparison,
    compare_scores,
    comparison_table,
    signed_rank_p,
    write_comparison,
)
from autoliver.evaluation.lesions import Lesion
from autoliver.evaluation.results import CaseScores, MetricOptions, Score, Scores

LABELS = Labels(values={"background": (0,), "liver": (1,)})


def scores(
    values: Sequence[float | None], *, field: str = "dice", patients: str = "", name: str = "c{}"
) -> Scores:
    """Scores of one label with one value per case; patients are letters."""
    cases = [
        CaseScores(
            name=name.format(i),
            patient=patients[i] if patients else f"p{i}",
            labels={"liver": Score(voxels=1, reference_voxels=1, **{field: value})},
        )
        for i, value in enumerate(values)
    ]
    metric = {"dice": "dice", "hd95_mm": "hd95", "volume_difference_ml": "volume"}[field]
    return Scores.of(cases, labels=LABELS, options=MetricOptions(metrics=(metric,)))


def compare(first: Scores, second: Scores) -> Comparison:
    return compare_scores(first, second, predictions=("one", "two"), reference="ref")


@pytest.mark.parametrize("seed", range(6))
def test_p_is_that_of_all_signs(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.3, 1.0, 8).tolist()
    ranks = rankdata(np.abs(values))
    statistic = abs(sum(np.sign(values) * ranks))
    signs = itertools.product((-1, 1), repeat=len(values))
    share = np.mean([abs(sum(np.array(s) * ranks)) >= statistic - 1e-9 for s in signs])
    assert signed_rank_p(values) == pytest.approx(share)


@pytest.mark.parametrize(
    ("values", "p"),
    [
        ([], None),
        ([0.1] * 5, None),
        ([0.0] * 6, 1.0),
        ([1e-15] * 6, 1.0),  # rounding
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 2 / 2**6),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0], 2 / 2**6),
        ([0.1] * 6, 2 / 2**6),  # ties
        ([0.1, -0.1, 0.1, -0.1, 0.1, -0.1], 1.0),
    ],
)
def test_p_with_few_values_zeros_and_ties(values: list[float], p: float | None) -> None:
    assert signed_rank_p(values) == (None if p is None else pytest.approx(p))


def test_differences_are_those_of_cases_that_both_define() -> None:
    found = compare(scores([0.5, 0.75, None, 0.9]), scores([0.75, 0.5, 0.5, 0.9]))
    each = found.summary["liver"]["dice"]
    assert (each.cases, each.patients) == (3, 3)
    assert each.mean_a == pytest.approx(2.15 / 3)
    assert each.mean_b == pytest.approx(2.15 / 3)
    assert each.mean == 0.0
    assert (each.a_better, each.b_better, each.equal) == (1, 1, 1)
    assert each.p is None
    assert each.interval is not None
    assert each.interval[0] == -each.interval[1]
    assert [row.difference for row in found.cases] == [0.25, -0.25, None, 0.0]


@pytest.mark.parametrize(
    ("field", "first", "second", "wins"),
    [
        ("dice", [0.5], [0.6], (0, 1)),
        ("hd95_mm", [5.0], [6.0], (1, 0)),
        ("volume_difference_ml", [-9.0], [5.0], (0, 1)),
        ("volume_difference_ml", [3.0], [-4.0], (1, 0)),
    ],
)
def test_what_is_better_depends_on_the_metric(
    field: str, first: list[float], second: list[float], wins: tuple[int, int]
) -> None:
    each = compare(scores(first, field=field), scores(second, field=field)).summary["liver"][field]
    assert (each.a_better, each.b_better) == wins
    assert each.interval is None


def test_patients_are_tested_rather_than_cases() -> None:
    first, second = [0.5] * 12, [0.6] * 12
    few = compare(scores(first, patients="aabbccddeeee"), scores(second, patients="aabbccddeeee"))
    assert few.summary["liver"]["dice"].patients == 5
    assert few.summary["liver"]["dice"].p is None
    assert "needs at least 6" in comparison_table(few)
    many = compare(scores(first, patients="aabbccddeeff"), scores(second, patients="aabbccddeeff"))
    assert many.summary["liver"]["dice"].p == pytest.approx(2 / 2**6)
    assert "needs" not in comparison_table(many)


def test_the_table_says_who_wins_and_fits_80_columns() -> None:
    label = "a label with a name that is far longer than a line of the terminal can be"
    found = compare(scores([0.5, 0.6, 0.7]), scores([0.6, 0.5, 0.8]))
    found = found.replace(summary={label: found.summary["liver"]})
    lines = comparison_table(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["A  one", "B  two"]
    head, row = (line.split("  ") for line in lines[3:5])
    assert [each.strip() for each in head if each.strip()] == [
        *("Dice", "cases", "A", "B", "B - A", "95 % interval", "p", "A:B wins"),
    ]
    cells = [each.strip() for each in row if each.strip()]
    assert cells[1:5] == ["3", "0.600", "0.633", "0.033"]
    assert cells[-2:] == ["too few", "1:2"]


def test_the_csv_has_every_case_and_no_formula(tmp_path: Path) -> None:
    found = compare(scores([0.5, None], name="=x{}"), scores([0.75, 0.5], name="=x{}"))
    write_comparison(found, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["case", "patient", "label", "metric", "a", "b", "difference"],
        ["'=x0", "p0", "liver", "dice", "0.5", "0.75", "0.25"],
        ["'=x1", "p1", "liver", "dice", "", "0.5", ""],
    ]


CLASSES = Labels(values={"background": (0,), "cyst": (1,), "hcc": (2,)})


def named(*cases: tuple[str, Sequence[tuple[str, str]]]) -> Scores:
    """Scores of cases, each a patient with lesions; "" is the class of one that is not there."""
    return Scores.of(
        [
            CaseScores(
                name=f"c{i}",
                patient=patient,
                labels={"cyst": Score(voxels=1, reference_voxels=1, dice=0.5)},
                lesions=tuple(
                    Lesion(
                        reference=n if there else None,
                        predicted=n if here else None,
                        reference_class=there,
                        predicted_class=here,
                    )
                    for n, (there, here) in enumerate(lesions, 1)
                ),
            )
            for i, (patient, lesions) in enumerate(cases)
        ],
        labels=CLASSES,
        options=MetricOptions(metrics=("dice", "lesions"), lesion_labels=("cyst", "hcc")),
    )


def test_classes_of_lesions_are_compared_over_those_of_the_reference() -> None:
    # Right are 1 of 2 and 1 of 1 in the first, 2 of 2 and 0 of 1 in the second; a missed lesion is
    # wrong, one that is only predicted counts for nothing, and p2 has no lesion.
    first = named(
        ("p0", [("cyst", "cyst"), ("hcc", "")]), ("p1", [("hcc", "hcc")]), ("p2", [("", "hcc")])
    )
    second = named(
        ("p0", [("cyst", "cyst"), ("hcc", "hcc"), ("", "cyst")]),
        ("p1", [("hcc", "cyst")]),
        ("p2", []),
    )
    found = compare_scores(
        first,
        second,
        predictions=("one", "two"),
        reference="ref",
        options=MetricOptions(metrics=("dice",)),
    )
    rows = [row for row in found.cases if row.metric == CLASS_ACCURACY]
    assert [(row.case, row.label, row.a, row.b, row.difference) for row in rows] == [
        ("c0", ALL_CLASSES, 0.5, 1.0, 0.5),
        ("c1", ALL_CLASSES, 1.0, 0.0, -1.0),
    ]
    summary = found.summary[ALL_CLASSES][CLASS_ACCURACY]
    assert (summary.cases, summary.patients) == (2, 2)
    assert (summary.mean_a, summary.mean_b, summary.mean) == (0.75, 0.5, -0.25)
    assert (summary.a_better, summary.b_better, summary.p) == (1, 1, None)
    assert set(found.summary["cyst"]) == {"dice"}
    lines = comparison_table(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split()[:2] == ["right", "classes"] for line in lines)


def test_without_classes_nothing_is_said_of_them() -> None:
    assert ALL_CLASSES not in compare(scores([0.5] * 3), scores([0.6] * 3)).summary
