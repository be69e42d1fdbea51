import json
from pathlib import Path

import pytest

from autoliver.datasets.cases import Case
from autoliver.datasets.folds import Folds, Split, make_folds, read_splits
from autoliver.errors import DatasetError


def cases(names: str, patients: str | None = None) -> list[Case]:
    pairs = zip(names, patients or names, strict=True)
    return [Case(name=n, images=(f"{n}.nii",), label=f"{n}.nii", patient=p) for n, p in pairs]


def test_five_folds_are_those_of_scikit_learn() -> None:
    names = "abcdefghijkl"
    splits = make_folds(cases(names))
    assert splits[0].validation == ("a", "d", "i")
    model_selection = pytest.importorskip("sklearn.model_selection")
    expected = model_selection.KFold(5, shuffle=True, random_state=12345).split(list(names))
    assert [tuple(names[i] for i in held) for _, held in expected] == [
        split.validation for split in splits
    ]


def test_every_case_is_held_back_once() -> None:
    splits = make_folds(cases("abcdefg"))
    held = [name for split in splits for name in split.validation]
    assert sorted(held) == list("abcdefg")
    for split in splits:
        assert set(split.train) | set(split.validation) == set("abcdefg")
        assert not set(split.train) & set(split.validation)


def test_a_patient_is_never_split() -> None:
    splits = make_folds(cases("abcdefghijkl", "PPPQQRRSSTTU"))
    patient = dict(zip("abcdefghijkl", "PPPQQRRSSTTU", strict=True))
    assert len(splits) == 5
    for split in splits:
        assert not {patient[n] for n in split.train} & {patient[n] for n in split.validation}


def test_fewer_than_five_patients_leave_one_out() -> None:
    assert [s.validation for s in make_folds(cases("abc"))] == [("a",), ("b",), ("c",)]
    assert make_folds(cases("a")) == ()


def test_a_missing_fold_is_named_with_what_there_is() -> None:
    folds = Folds(splits=make_folds(cases("abc")))
    assert folds.split("all", "abc") == Split(train=("a", "b", "c"), validation=())
    with pytest.raises(DatasetError, match="no fold 3: 3 labelled cases make 3 folds"):
        folds.split(3, "abc")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"train": ["a"], "val": ["x"]}], "unknown case x"),
        ([{"train": ["a", "b"], "val": ["b"]}], "b is on both sides"),
        ([{"train": [], "val": ["a"]}], "no training cases"),
        ({"train": []}, "expected a list"),
        ([{"train": "a", "val": []}], "expected a list"),
        ([{"train": ["a", 1], "val": []}], "expected a list"),
        ([], "holds no folds"),
    ],
)
def test_own_splits_are_checked(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=words):
        read_splits(path, cases("abc"))


def test_a_patient_on_both_sides_of_an_own_split_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a"], "val": ["c"]}, {"train": ["a"], "val": ["b"]}]))
    read_splits(path, cases("abc", "PPQ"))
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
        "fold 1: cases of patient P are on both sides: its scores will be too good."
    ]


def test_cases_that_are_not_real_are_never_held_out() -> None:
    real = [Case(name=f"r{n}", images=("i",), label="l", patient=f"p{n}") for n in range(5)]
    made = [
        Case(name="s0", images=("i",), label="l", patient="p0", origin="synthetic"),
        Case(name="q1", images=("i",), label="l", patient="p1", origin="pseudo"),
        Case(name="x", images=("i",), label="l", patient="elsewhere", origin="synthetic"),
    ]
    folds = make_folds([*real, *made])
    alone = make_folds(real)
    assert [fold.validation for fold in folds] == [fold.validation for fold in alone]
    for fold, before in zip(folds, alone, strict=True):
        expected = {*before.train, "x"}
        expected |= set() if "r0" in fold.validation else {"s0"}
        expected |= set() if "r1" in fold.validation else {"q1"}
        assert fold.train == tuple(sorted(expected))
    assert make_folds([*real[:1], made[2]]) == ()


def test_own_splits_may_not_hold_out_a_case_that_is_not_real(tmp_path: Path) -> None:
    cases = [
        Case(name="a", images=("i",), label="l", patient="a"),
        Case(name="b", images=("i",), label="l", patient="b", origin="synthetic"),
    ]
    path = tmp_path / "splits_final.json"
    path.write_text('[{"train": ["b"], "val": ["a"]}]')
    assert read_splits(path, cases)[0].train == ("b",)
    path.write_text('[{"train": ["a"], "val": ["b"]}]')
    with pytest.raises(DatasetError, match="fold 0: b is in 'val', but its origin is synthetic"):
        read_splits(path, cases)
