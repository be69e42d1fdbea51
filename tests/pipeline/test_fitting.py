"""Label maps that are turned over are told from those that are not, by the intensities."""

from pathlib import Path

import numpy as np
import pytest
from abdomen_trees import grey, organs

from autoliver.io.files import read_image, read_label
from autoliver.pipeline.fitting import fitting_turn, spread

TURNS = ((0,), (1,), (0, 1))


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_is_found_and_none_is_made_up(turn: tuple[int, ...]) -> None:
    label = organs(5)
    image = grey(label)
    assert fitting_turn(image, label, TURNS) == ()
    assert fitting_turn(image, np.flip(label, turn), TURNS) == turn


def test_an_empty_label_map_fits() -> None:
    assert fitting_turn(grey(organs(1)), np.zeros_like(organs(1)), TURNS) == ()


def test_noise_tells_nothing() -> None:
    image = np.random.default_rng(0).normal(size=organs(1).shape)
    assert fitting_turn(image, organs(1), TURNS) == ()


def test_spread_is_the_variance_within_the_largest_label() -> None:
    label = np.array([[[1, 1, 1, 2, 0]]])
    assert spread(np.array([[[1.0, 2.0, 3.0, 9.0, 7.0]]]), label) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["Dataset102_AbdomenMR", "Dataset101_AbdomenCT"])
def test_real_abdomens(name: str, shared: Path) -> None:
    folder = shared / "data" / name
    for path in sorted((folder / "labelsTr").iterdir())[:5]:
        case = path.name.removesuffix(".nii.gz")
        image = read_image([folder / f"imagesTr/{case}_0000.nii.gz"]).array[0]
        label = read_label(path).array[0]
        assert fitting_turn(image, label, TURNS) == (), case
        for turn in TURNS:
            assert fitting_turn(image, np.flip(label, turn), TURNS) == turn, case
