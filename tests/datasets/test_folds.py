import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from autoliver.datasets.cases import Case
from autoliver.datasets.folds import Folds, Split, make_folds, read_splits
from autoliver.datasets.stratify import stratified
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


def test_a_patient_on_both_sides_of_an_own_split_is_refused_unless_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "splits_final.json"
    good = {"train": ["a", "b"], "val": ["c"]}
    bad = {"train": ["c", "a"], "val": ["b"]}
    path.write_text(json.dumps([good, bad]))
    with pytest.raises(DatasetError) as caught:
        read_splits(path, cases("abc", "PPQ"))
    assert "fold 1: patient P is on both sides: a is in 'train', b in 'val'" in caught.value.problem
    assert '"shared_patients": true' in caught.value.hint
    assert caplog.messages == []
    path.write_text(json.dumps([good, bad | {"shared_patients": True}]))
    splits = read_splits(path, cases("abc", "PPQ"))
    assert splits[1] == Split(train=("c", "a"), validation=("b",))
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "fold 1: cases of patient P are on both sides: its scores will be too good."
    ]
    # Without patients, each case is one of its own.
    path.write_text(json.dumps([good, bad]))
    assert read_splits(path, cases("abc"))[1] == splits[1]


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


def spreads(parts: list[set[str]], held: Mapping[str, frozenset[str]]) -> list[int]:
    """By how many patients parts differ, for each class and then for all of them."""
    names = sorted(frozenset[str]().union(*held.values()))
    counts = [[sum(name in held[p] for p in part) for part in parts] for name in names]
    return [max(numbers) - min(numbers) for numbers in (*counts, [len(part) for part in parts])]


@pytest.mark.parametrize("seed", range(12))
def test_classes_are_spread_as_evenly_as_any_division_can(seed: int) -> None:
    rng = np.random.default_rng(seed)
    having = rng.random((8, 4)) < rng.uniform(0.2, 0.8, (8, 1))
    held = {f"p{n}": frozenset(itertools.compress("abcd", row)) for n, row in enumerate(having)}
    found = spreads(stratified(held, folds=3, seed=1), held)

    def beyond_one(division: tuple[int, ...]) -> int:
        counts = [having[np.equal(division, part)].sum(0) for part in range(3)]
        return int(np.maximum(np.ptp(counts, axis=0) - 1, 0).sum())

    best = min(map(beyond_one, itertools.product(range(3), repeat=len(held))))
    assert sum(max(spread - 1, 0) for spread in found[:-1]) == best


@pytest.mark.parametrize("seed", range(6))
def test_folds_differ_by_one_patient_in_each_class(seed: int) -> None:
    rng = np.random.default_rng(seed)
    patients = {
        f"p{n:02d}": rng.choice(["cyst", "HCC", "FNH"], p=[0.6, 0.3, 0.1]) for n in range(37)
    }
    named = [(f"{patient}_{n}", patient) for patient in patients for n in range(rng.integers(1, 4))]
    cases = [Case(name=name, images=("i",), label="l", patient=p) for name, p in named]
    # A patient's classes are those of all of its cases; some patients have none.
    classes = {name: [patients[p]] for name, p in named if name.endswith("_0") and p != "p07"}
    splits = make_folds(cases, classes)
    held = [{dict(named)[name] for name in split.validation} for split in splits]
    assert sorted(p for part in held for p in part) == sorted(patients)
    assert sorted(n for split in splits for n in split.validation) == sorted(n for n, _ in named)
    for split in splits:
        assert set(split.train) == {n for n, _ in named} - set(split.validation)
    own = {p: frozenset({name} - ({name} if p == "p07" else set())) for p, name in patients.items()}
    assert max(spreads(held, own)) <= 1
    # The order of cases does not matter, and nothing is left to chance.
    again = make_folds(cases[::-1], dict(reversed(classes.items())))
    assert [split.validation for split in again] == [split.validation for split in splits]


def test_without_different_classes_folds_stay_those_of_nnunet() -> None:
    names = "abcdefghijkl"
    plain = make_folds(cases(names))
    assert make_folds(cases(names), {}) == plain
    assert make_folds(cases(names), {name: ["cyst"] for name in names}) == plain
    assert make_folds(cases(names), {name: [] for name in names}) == plain
    few = make_folds(cases("abcd"))
    assert make_folds(cases("abcd"), {"a": ["cyst"], "b": ["HCC"]}) == few
    told = {name: ["cyst" if name in "adi" else "HCC"] for name in names}  # all in one fold
    assert make_folds(cases(names), told) != plain


def test_synthetic_cases_do_not_count_for_the_classes_of_a_patient() -> None:
    real = [Case(name=f"r{n}", images=("i",), label="l", patient=f"p{n}") for n in range(10)]
    made = [
        Case(name=f"s{n}", images=("i",), label="l", patient=f"p{n}", origin="synthetic")
        for n in range(10)
    ]
    classes = {f"r{n}": ["HCC" if n < 5 else "cyst"] for n in range(10)}
    alone = make_folds(real, classes)
    wrong = {f"s{n}": ["cyst"] for n in range(10)}
    both = make_folds([*real, *made], classes | wrong)
    assert [split.validation for split in both] == [split.validation for split in alone]
    for split in both:
        assert len({name for name in split.validation if int(name[1:]) < 5}) == 1
