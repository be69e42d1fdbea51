"""Agreement of volumes: by hand, against other formulas, on the terminal, as CSV and picture."""

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from autoliver.datasets.cases import Labels
from autoliver.evaluation.agreement import agreement, concordance
from autoliver.evaluation.agreement_report import (
    agreement_table,
    draw_agreement,
    write_agreement,
)
from autoliver.evaluation.results import CaseScores, MetricOptions, Score, Scores

LABELS = Labels(values={"background": (0,), "liver": (1,), "=tumour $x": (2,)})
Pairs = list[tuple[float | None, float | None]]


def scores(liver: Pairs, tumour: Pairs) -> Scores:
    cases = [
        CaseScores(
            name=f"c{i}",
            labels={
                name: Score(voxels=1, reference_voxels=1, volume_ml=p, reference_volume_ml=r)
                for name, (p, r) in zip(LABELS.foreground, pair, strict=True)
            },
        )
        for i, pair in enumerate(zip(liver, tumour, strict=True))
    ]
    return Scores.of(cases, labels=LABELS, options=MetricOptions(metrics=("volume",)))


def test_limits_by_hand() -> None:
    # Differences 1, 2 and 3 ml; in percent of the means 10.5, 21 and 31.5 of: 10, 10, 10.
    found = agreement([(10.5, 9.5), (11.0, 9.0), (11.5, 8.5)])
    assert found is not None
    assert found.ml is not None
    assert found.percent is not None
    assert (found.cases, found.ml.bias, found.ml.sd) == (3, 2.0, 1.0)
    assert (found.ml.low, found.ml.high) == pytest.approx((0.04, 3.96))
    assert (found.percent.bias, found.percent.sd) == pytest.approx((20.0, 10.0))
    assert (found.percent.low, found.percent.high) == pytest.approx((0.4, 39.6))


@pytest.mark.parametrize("seed", range(3))
def test_concordance_is_correlation_times_accuracy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = rng.normal(1500, 300, 12)
    other = 0.8 * one + rng.normal(100, 80, 12)
    # Lin 1989: Pearson's correlation times the bias correction, of scale and location shift.
    scale = one.std() / other.std()
    shift = (one.mean() - other.mean()) / np.sqrt(one.std() * other.std())
    accuracy = 2 / (scale + 1 / scale + shift**2)
    assert concordance(one, other) == pytest.approx(np.corrcoef(one, other)[0, 1] * accuracy)


def test_concordance_of_equal_and_of_opposite_raters() -> None:
    values = np.array([1.0, 2.0, 4.0])
    assert concordance(values, values) == 1.0
    assert concordance(values, -values + 2 * values.mean()) == pytest.approx(-1.0)
    assert concordance(np.ones(3), np.ones(3)) is None


@pytest.mark.parametrize(
    ("pairs", "cases"),
    [
        ([], None),
        ([(None, None)] * 4, None),
        ([(1.0, 1.0), (2.0, 2.0)], 2),
        ([(1.0, 1.0), (2.0, 2.0), (0.0, 0.0)], 2),
        ([(0.0, 0.0)] * 3, 0),
    ],
)
def test_few_cases_have_no_numbers(pairs: Pairs, cases: int | None) -> None:
    found = agreement(pairs)
    assert (None if found is None else found.cases) == cases
    assert found is None or (found.ml, found.percent, found.concordance) == (None, None, None)


def test_a_missed_label_is_a_difference_of_200_percent() -> None:
    found = agreement([(0.0, 5.0)] * 3)
    assert found is not None
    assert found.percent is not None
    assert (found.percent.bias, found.percent.sd) == (-200.0, 0.0)


LIVER: Pairs = [(1512.0, 1490.0), (1730.5, 1750.0), (1200.0, 1185.0), (980.0, 1000.0)]
TUMOUR: Pairs = [(0.0, 0.0), (12.0, 10.0), (0.0, 0.0), (3.0, 4.0)]


def test_the_table_says_where_cases_are_too_few() -> None:
    text = agreement_table(scores(LIVER, TUMOUR))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    differences = [p - r for p, r in LIVER if p is not None and r is not None]
    bias, sd = np.mean(differences), np.std(differences, ddof=1)
    assert f"{bias:.1f}" in lines[1].split()
    assert f"{bias - 1.96 * sd:.1f} to {bias + 1.96 * sd:.1f}" in lines[1]
    assert lines[2].split()[2:5] == ["2", "too", "few"]
    assert "at least 3 cases" in lines[-1]
    assert agreement_table(scores([(None, None)] * 4, [(None, None)] * 4)) == ""


def test_csv_and_picture_are_those_of_the_last_scores(tmp_path: Path) -> None:
    table, picture = tmp_path / "volumes.csv", tmp_path / "volumes.png"
    found = scores(LIVER, TUMOUR)
    assert write_agreement(found, table)
    assert draw_agreement(found, picture)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["label"] for row in rows] == ["liver", "'=tumour $x"]
    volumes = found.summary["liver"].volumes
    assert volumes is not None
    assert volumes.ml is not None
    assert float(rows[0]["low_ml"]) == volumes.ml.low
    assert (rows[1]["cases"], rows[1]["bias_ml"]) == ("2", "")
    assert imread(picture).shape[:2] == (320, 400)
    unknown = scores([(None, None)] * 4, [(None, None)] * 4)
    assert not write_agreement(unknown, table)
    assert not draw_agreement(unknown, picture)
    assert not list(tmp_path.iterdir())


def test_names_with_signs_of_formulas_are_drawn(tmp_path: Path) -> None:
    assert draw_agreement(scores(LIVER, LIVER), tmp_path / "volumes.png")
    assert imread(tmp_path / "volumes.png").shape[:2] == (320, 800)
