"""Probabilities of lesions from a table beside the label maps."""

from pathlib import Path

import pytest

from autoliver.errors import DatasetError
from autoliver.evaluation.lesions import Lesion
from autoliver.evaluation.probabilities import read_probabilities, with_probabilities
from autoliver.evaluation.results import CaseScores

CLASSES = ("cyst", "HCC")
HEAD = "case,lesion,class,probability_cyst,probability_hcc,volume_ml\n"


def write(folder: Path, text: str) -> Path:
    (folder / "lesions.csv").write_text(text)
    return folder / "lesions.csv"


def case(name: str, volumes: tuple[float | None, ...]) -> CaseScores:
    """A case of predicted lesions of these volumes, after one that was missed."""
    lesions = [
        Lesion(predicted=i, predicted_ml=ml, predicted_class="cyst")
        for i, ml in enumerate(volumes, start=1)
    ]
    missed = Lesion(reference=1, reference_class="HCC")
    return CaseScores(name=name, labels={}, lesions=(missed, *lesions))


def test_rows_are_joined_to_lesions_by_case_and_number(tmp_path: Path) -> None:
    rows = "a,2,HCC,0.25,0.75,3.0\na,1,cyst,1,0,1.5\n'=b,1,cyst,0.5,0.5,\n"
    table = read_probabilities(write(tmp_path, HEAD + rows), CLASSES)
    cases = [case("a", (1.5, 3.001)), case("=b", (9.0,)), case("c", (1.0,))]
    found, unlike = with_probabilities(cases, table)
    assert unlike == []
    assert [[each.probabilities for each in c.lesions or ()] for c in found] == [
        [{}, {"cyst": 1.0, "HCC": 0.0}, {"cyst": 0.25, "HCC": 0.75}],
        [{}, {"cyst": 0.5, "HCC": 0.5}],
        [{}, {}],
    ]


@pytest.mark.parametrize("volumes", [(1.5,), (1.5, 3.0, 1.0), (3.0, 1.5)])
def test_a_table_of_other_lesions_is_not_used(volumes: tuple[float, ...], tmp_path: Path) -> None:
    rows = "a,1,cyst,1,0,1.5\na,2,HCC,0.25,0.75,3.0\n"
    table = read_probabilities(write(tmp_path, HEAD + rows), CLASSES)
    cases, unlike = with_probabilities([case("a", volumes)], table)
    assert unlike == ["a"]
    assert all(not each.probabilities for each in cases[0].lesions or ())


def test_a_table_without_a_class_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "case,lesion,probability_cyst\na,1,0.5\n"
    assert read_probabilities(write(tmp_path, text), CLASSES) == {}
    assert "without a column probability_hcc" in caplog.text


def test_a_table_without_probabilities_has_none(tmp_path: Path) -> None:
    assert read_probabilities(write(tmp_path, "case,lesion,class\na,1,cyst\n"), CLASSES) == {}
    assert read_probabilities(write(tmp_path, ""), CLASSES) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lesion,probability_cyst,probability_hcc\n1,0,1\n", "no column case"),
        ("case;lesion;probability_cyst\na;1;0.5\n", "one column 'case;lesion;prob.*commas"),
        (f"{HEAD}a,1,cyst,0.5,high,1\n", "row 2: probability_hcc is 'high'; expected a number"),
        (f"{HEAD}a,1,cyst,0.5,1.5,1\n", "probability_hcc is '1.5'; expected a number from 0 to 1"),
        (f"{HEAD}a,1,cyst,0.5,,1\n", "probability_hcc is ''"),
        (f"{HEAD}a,1,cyst\n", "probability_cyst is ''"),
        (f"{HEAD}a,one,cyst,0.5,0.5,1\n", "lesion is 'one'; expected a whole number from 1"),
        (f"{HEAD}a,1.5,cyst,0.5,0.5,1\n", "lesion is '1.5'"),
        (HEAD + 2 * "a,1,cyst,0.5,0.5,1\n", "row 3: lesion is '1'; .* once in a case"),
        (f"{HEAD}a,1,cyst,0.5,0.5,-1\n", "volume_ml is '-1'"),
        (f"{HEAD}a,1,cyst,nan,0.5,1\n", "probability_cyst is 'nan'"),
    ],
)
def test_a_damaged_table_is_refused_where_it_is_damaged(
    text: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=problem) as caught:
        read_probabilities(write(tmp_path, text), CLASSES)
    assert "lesions.csv" in str(caught.value)
    assert caught.value.hint
