"""Orders of regions: those whose painting gives the regions back, and those that are refused."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from autoliver.datasets.description import read_description
from autoliver.datasets.regions import paintable, painted, painting_problem
from autoliver.errors import DatasetError

BRAIN = {"whole": [1, 2, 3], "core": [1, 2], "enhancing": 1}
KIDNEY = {"kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}
COVERED = {"liver": [1, 2, 3], "left": [1, 2], "right": 3}
ALL_COVERED = {"organs": [1, 2], "liver": 1, "spleen": 2}
CROSSED = {"a": [1, 2], "b": [2, 3]}
CROSSED_AND_BOTH = {"a": [1, 2], "b": [2, 3], "both": 2}
APART = {"lungs": [1, 2], "heart": 3, "ribs": [4, 5]}
EIGHT = {f"level {n}": list(range(n, 9)) for n in range(1, 9)}


def describe(folder: Path, labels: dict[str, Any], order: Any) -> Path:
    raw = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, **labels},
        "regions_class_order": order,
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (BRAIN, [3, 2, 1]),
        ({"a": [1, 2, 3], "b": [2, 3], "c": 3}, [1, 2, 3]),
        (KIDNEY, [1, 3, 2]),
        (COVERED, [2, 1, 3]),  # the first value is painted over everywhere
        (ALL_COVERED, [1, 1, 2]),  # more regions than values: one has to be shared
        (CROSSED_AND_BOTH, [1, 3, 2]),
        (APART, [1, 3, 4]),
        (APART, [2, 3, 5]),  # either value of a region that nothing tells apart
        ({"a": [1, 2]}, [1]),
        ({"a": [1, 2]}, [2]),
        (EIGHT, list(range(1, 9))),
        ({"whole": [7, 300], "part": 300}, [7, 300]),
    ],
)
def test_an_order_that_gives_the_regions_back_passes(
    tmp_path: Path, labels: dict[str, Any], order: list[int]
) -> None:
    found = read_description(describe(tmp_path, labels, order)).labels
    assert found is not None
    assert found.regions_class_order == tuple(order)


@pytest.mark.parametrize(
    ("labels", "order", "problem", "hint"),
    [
        (
            BRAIN,
            [1, 2, 3],
            "region 'core' [1, 2] becomes [2, 3]",
            '"regions_class_order": [3, 2, 1]',
        ),
        (BRAIN, [2, 3, 1], "'core'", "[3, 2, 1]"),
        (BRAIN, [3, 1, 2], "'enhancing' [1] becomes [2]", "[3, 2, 1]"),
        (KIDNEY, [1, 2, 3], "'tumour' [2] becomes [3]", "[1, 3, 2]"),
        (
            {"enhancing": 1, "core": [1, 2], "whole": [1, 2, 3]},
            [1, 2, 3],
            "'enhancing' [1] becomes empty",
            'in the order whole, core, enhancing, and write "regions_class_order": [3, 2, 1]',
        ),
        (CROSSED, [1, 3], "'a' [1, 2] becomes [1]", "No order can"),
        (CROSSED, [1, 2], "'a'", "'a' and 'b' overlap in [2]"),
        (CROSSED_AND_BOTH, [1, 2, 3], "'a'", "[1, 3, 2]"),
        (
            {"both": 2, "a": [1, 2], "b": [2, 3]},
            [2, 1, 3],
            "'both' [2] becomes empty",
            "order a, b, both",
        ),
        (APART, [3, 1, 4], "'lungs' [1, 2] becomes [3]", "[1, 3, 4]"),
        (APART, [1, 4, 3], "'heart' [3] becomes [4, 5]", "[1, 3, 4]"),
        (EIGHT, list(range(8, 0, -1)), "'level 2'", str(list(range(1, 9)))),
        (BRAIN, [3, 2, 2], "holds a value twice", "[3, 2, 1]"),
        (COVERED, [1, 1, 3], "holds a value twice", "[2, 1, 3]"),
        (BRAIN, [3, 2, 4], "holds 4, which is in no region", "[3, 2, 1]"),
        ({**BRAIN, "ignore": 4}, [4, 2, 1], "holds 4, which is in no region", "[3, 2, 1]"),
        (BRAIN, [3, 2, 0], "holds 0, which is in no region", "[3, 2, 1]"),
        (BRAIN, [3, 2, -1], "holds -1, which is in no region", "[3, 2, 1]"),
        (BRAIN, [3, 2], "one value for each of 3, found [3, 2]", "[3, 2, 1]"),
        (BRAIN, [3, 2, 1, 1], "one value for each of 3", "[3, 2, 1]"),
        (BRAIN, [], "one value for each of 3", "[3, 2, 1]"),
        (BRAIN, None, "one value for each of 3, found None", "[3, 2, 1]"),
        (BRAIN, {"whole": 3}, "one value for each of 3", "[3, 2, 1]"),
        (BRAIN, [3, 2, True], "expected whole numbers", "[3, 2, 1]"),
        (BRAIN, [3, 2, "1"], "expected whole numbers", "[3, 2, 1]"),
        (BRAIN, [3, 2, 1.5], "expected whole numbers", "[3, 2, 1]"),
        ({"a": [1, 2], "b": [2, 1]}, [1, 2], "regions 'a' and 'b' are equal", "its own values"),
        ({"a": [1, 2], "air": 0}, [1, 2], "'air' holds nothing but the background", "above 0"),
        ({"a": [0, 1], "b": 2}, [1, 2], "'a' holds the background's value 0", "above 0"),
        ({"a": [1, 2], "b": []}, [1, 2], "b: expected a number", "liver"),
    ],
)
def test_an_order_that_does_not_is_refused_with_one_that_does(
    tmp_path: Path, labels: dict[str, Any], order: Any, problem: str, hint: str
) -> None:
    with pytest.raises(DatasetError) as error:
        read_description(describe(tmp_path, labels, order))
    assert problem in error.value.problem
    assert str(tmp_path / "dataset.json") in error.value.problem
    assert hint in str(error.value.hint)


def gives_back(regions: dict[str, tuple[int, ...]], order: tuple[int, ...]) -> bool:
    """By painting voxels: one of each value, and none of the background."""
    stored = sorted({v for group in regions.values() for v in group})
    voxels = dict.fromkeys(stored, 0)
    for group, value in zip(regions.values(), order, strict=True):
        for voxel in group:
            voxels[voxel] = value
    return all({v for v in stored if voxels[v] in g} == set(g) for g in regions.values())


@pytest.mark.parametrize("seed", range(40))
def test_suggestions_are_found_exactly_where_some_order_can(seed: int) -> None:
    rng = random.Random(seed)
    values = range(1, rng.choice((3, 4, 5)))
    groups = [g for n in range(1, len(values) + 1) for g in itertools.combinations(values, n)]
    chosen = rng.sample(groups, min(len(groups), rng.choice((2, 3, 4))))
    regions = {f"r{number}": group for number, group in enumerate(chosen)}
    known = sorted({v for group in chosen for v in group})
    orders = list(itertools.product(known, repeat=len(chosen)))
    possible = any(
        gives_back(dict(names), order)
        for names in itertools.permutations(regions.items())
        for order in orders
    )
    found = paintable(regions)
    assert (found is not None) == possible
    if found is not None:
        names, order = found
        assert gives_back({name: regions[name] for name in names}, tuple(order))
        assert painting_problem({name: regions[name] for name in names}, order) == ("", "")


def test_the_last_region_of_a_voxel_is_what_is_written() -> None:
    assert painted({"a": (1, 2), "b": (2,)}, [5, 6]) == {1: 5, 2: 6}


def test_a_trained_model_keeps_its_order_and_says_what_it_does(tmp_path: Path) -> None:
    found = read_description(describe(tmp_path, BRAIN, [1, 2, 3]), trained=True)
    assert found.labels is not None
    assert found.labels.regions_class_order == (1, 2, 3)
    assert "region 'core' [1, 2] becomes [2, 3]" in found.painting
    assert "[3, 2, 1]" in found.painting
    right = read_description(describe(tmp_path, BRAIN, [3, 2, 1]), trained=True)
    assert right.painting == ""
