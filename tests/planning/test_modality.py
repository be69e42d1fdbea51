"""What images are by their values, case by case and as a dataset."""

import numpy as np
import pytest

from autoliver.datasets.cases import Modality
from autoliver.planning.modality import judge, looks_like
from autoliver.planning.ranges import CaseRange, ChannelRange, channel_range

RNG = np.random.default_rng(0)
SHAPE = (8, 32, 32)
HU = np.where(RNG.random(SHAPE) < 0.4, -1000.0, RNG.normal(40, 20, SHAPE))
IMAGES = {
    "ct": HU,
    "window": np.clip(HU, -150, 250),
    "offset": HU.clip(-1024) + 1024,
    "mr": RNG.gamma(2.0, 100.0, SHAPE),
    "noisy": RNG.gamma(2.0, 100.0, SHAPE) + RNG.normal(0, 5, SHAPE) - 10,
    "normed": RNG.normal(0, 1, SHAPE),
    "zeros": np.zeros(SHAPE),
    "air": np.full(SHAPE, -1000.0),
}


def channel(kind: str) -> ChannelRange:
    return channel_range(IMAGES[kind][None][0])


def cases(kinds: str) -> list[CaseRange]:
    return [
        CaseRange(
            name=f"case_{n}", spacing_mm=(1.0, 1.0, 1.0), shape=SHAPE, channels=(channel(kind),)
        )
        for n, kind in enumerate(kinds.split())
    ]


@pytest.mark.parametrize(
    ("kind", "modality"),
    [
        ("ct", "CT"),
        ("window", "CT"),
        ("offset", "MR"),
        ("mr", "MR"),
        ("noisy", None),
        ("normed", None),
        ("zeros", None),
        ("air", None),
    ],
)
def test_an_image_by_its_values(kind: str, modality: Modality | None) -> None:
    assert looks_like([channel(kind)])[0] == modality


@pytest.mark.parametrize(
    ("kinds", "named", "modality", "words"),
    [
        ("ct ct ct", "other", "CT", "3 of 3 cases look like CT: values from -1000 to 1"),
        ("window", "other", "CT", "1 of 1 case looks like CT: values from -150 to 1"),
        ("mr mr", "other", "MR", "2 of 2 cases look like MR: values from"),
        ("mr mr", "MR", "MR", "none below zero"),
        # an empty image says nothing, but is named
        ("mr zeros zeros", "other", "MR", "2 of 3 cases (case_1, case_2) are empty: every voxel"),
        ("ct zeros", "other", "CT", "1 of 2 cases (case_1) is empty"),
        ("zeros", "other", None, "1 of 1 case is empty: every voxel has the same value"),
        ("zeros air", "CT", "CT", "2 of 2 cases are empty"),
        # values win if nothing else can have them, and otherwise nothing is decided
        ("ct ct", "MR", "CT", "although the folder's name says MR"),
        ("offset offset", "CT", None, "although the folder's name says CT"),
        # cases that tell nothing go with the others, unless there are more of them
        ("ct ct normed", "other", "CT", "1 of 3 cases (case_2) looks like neither"),
        ("ct normed normed", "other", None, "1 of 3 cases (case_0) looks like CT"),
        ("noisy noisy", "MR", "MR", "the folder's name says MR"),
        ("noisy noisy", "other", None, "2 of 2 cases look like neither CT nor MR"),
        ("ct mr mr mr mr", "MR", None, "(case_1, case_2, case_3, ...) look like MR"),
        ("ct ct mr", "CT", None, "1 of 3 cases (case_2) looks like MR"),
    ],
)
def test_a_dataset_by_the_values_of_its_cases(
    kinds: str, named: Modality, modality: Modality | None, words: str
) -> None:
    judged = judge(cases(kinds), named=named)
    assert judged.modality == modality
    assert words in judged.why
    assert judged.mixed == ("ct" in kinds and "mr" in kinds)
