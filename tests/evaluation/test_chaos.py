"""The score of the CHAOS challenge: points, organs, tasks, and how it is printed."""

import csv
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from autoliver.datasets.cases import Labels
from autoliver.errors import OptionError
from autoliver.evaluation.chaos import organ_of, points, task_scores
from autoliver.evaluation.results import CaseScores, MetricOptions, Scores, write_csv
from autoliver.evaluation.score import score_case, score_files
from autoliver.evaluation.tables import chaos_table
from autoliver.io.files import write_label
from autoliver.io.volume import Geometry, Volume

ORGANS = Labels(
    values={
        "background": (0,),
        "liver": (1,),
        "right_kidney": (2,),
        "left_kidney": (3,),
        "spleen": (4,),
    }
)
SHAPE = (6, 20, 20)
GEOMETRY = Geometry(shape_zyx=SHAPE, spacing_mm=(5.0, 1.5, 1.5))
OPTIONS = MetricOptions(metrics=("dice",), chaos=True)
Array = npt.NDArray[np.uint8]


def cuboids(*values: int, move: int = 0) -> Array:
    array = np.zeros(SHAPE, np.uint8)
    for value in values:
        start = 5 * (value - 1) + move
        array[1:5, start : start + 4, 4:16] = value
    return array


def case(prediction: Array, reference: Array, name: str = "case_1") -> CaseScores:
    pair = [Volume(array=each[None], geometry=GEOMETRY) for each in (prediction, reference)]
    return score_case(*pair, labels=ORGANS, options=OPTIONS, name=name)


def scores(*cases: CaseScores) -> Scores:
    return Scores.of(cases, labels=ORGANS, options=OPTIONS)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.9784341, 0.66453, 0.734131, 14), (97.84341, 86.7094, 95.105793, 76.666667)),
        ((1, 0, 0, 0), (100, 100, 100, 100)),
        ((0.8, 5, 15, 60), (80, 0, 0, 0)),
        ((0.79, 5.1, 15.1, 61), (0, 0, 0, 0)),
        ((0, math.nan, math.inf, 30), (0, 0, 0, 50)),
    ],
)
def test_points_by_hand(values: tuple[float, ...], expected: tuple[float, ...]) -> None:
    fields = ("dice", "ravd_percent", "assd_mm", "mssd_mm")
    found = list(points(dict(zip(fields, values, strict=True))).values())
    assert found[:4] == pytest.approx(expected, abs=1e-5)
    assert found[4] == pytest.approx(sum(expected) / 4, abs=1e-5)


@pytest.mark.parametrize(
    ("label", "organ"),
    [
        ("liver", "liver"),
        ("Liver", "liver"),
        ("right_kidney", "right kidney"),
        ("kidney_right", "right kidney"),
        ("Kidney (R)", "right kidney"),
        ("left kidney", "left kidney"),
        ("LK", "left kidney"),
        ("spleen", "spleen"),
        ("liver tumour", None),
        ("kidney", None),
        ("label_1", None),
        ("deliver", None),
    ],
)
def test_organs_go_by_the_name_of_a_label(label: str, organ: str | None) -> None:
    assert organ_of(label) == organ


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (cuboids(1), cuboids(1), 100.0),
        (cuboids(), cuboids(1), 0.0),  # missed: no distance is near enough
        (cuboids(1), cuboids(), 0.0),
        (cuboids(), cuboids(), None),
    ],
)
def test_an_organ_that_one_side_lacks_has_no_points(
    ours: Array, theirs: Array, expected: float | None
) -> None:
    liver = case(ours, theirs).labels["liver"]
    every = (liver.chaos_dice, liver.chaos_ravd, liver.chaos_assd, liver.chaos_mssd, liver.chaos)
    assert set(every) == {expected}


def test_a_task_is_scored_when_its_organs_are_there() -> None:
    assert task_scores({"liver": 80.0, "tumour": 2.0}) == {"1, 2, 3": 80.0}
    four = {"liver": 80.0, "kidney_left": 60.0, "kidney_right": 50.0, "spleen": 30.0}
    assert task_scores(four) == {"1, 2, 3": 80.0, "4, 5": 55.0}
    assert task_scores({"spleen": 30.0}) == {}


def test_the_score_is_the_mean_over_organs_and_cases(tmp_path: Path) -> None:
    whole = cuboids(1, 2, 3, 4)
    found = scores(case(whole, whole, "a"), case(cuboids(1, 2), whole, "b"))
    assert found.chaos == {"1, 2, 3": 100.0, "4, 5": 75.0}
    assert found.mean["chaos"] == 75.0
    found.save(tmp_path / "scores.json")
    assert Scores.load(tmp_path / "scores.json") == found
    write_csv(found, tmp_path / "scores.csv")
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["chaos"] for row in rows] == ["100.0"] * 6 + ["0.0"] * 2
    assert [row["chaos_mssd"] for row in rows] == ["100.0"] * 6 + ["0.0"] * 2


def test_it_is_printed_by_organ_with_metrics_and_points() -> None:
    whole = cuboids(1, 2, 3, 4)
    text = chaos_table(scores(case(whole, whole, "a"), case(cuboids(1, move=1), whole, "b")))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["liver", "DICE", "RAVD", "ASSD", "MSSD", "score"]
    first = "a 1.000 (100.0) 0.000 (100.0) 0.000 (100.0) 0.000 (100.0) 100.00"
    assert lines[2].split() == first.split()
    spleen = next(i for i, line in enumerate(lines) if line.startswith("spleen"))
    # Of distances the mean of those that there are, of points that of all cases.
    mean = "mean 0.500 (50.0) 50.000 (50.0) 0.000 (50.0) 0.000 (50.0) 50.00"
    assert lines[spleen + 3].split() == mean.split()
    assert "- (0.0)" in text  # the spleen of b has no distances
    assert lines[-2].startswith("CHAOS score (tasks 1, 2, 3): ")
    assert lines[-1].startswith("CHAOS score (tasks 4, 5): ")


def test_labels_without_an_organ_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_label(path, cuboids(1), GEOMETRY)
    labels = Labels(values={"background": (0,), "label_1": (1,)})
    with pytest.raises(OptionError, match="found the labels label_1; the challenge scores liver"):
        score_files({"a": (path, path)}, labels=labels, options=OPTIONS)
