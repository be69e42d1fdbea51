"""Which labels are tumours that are counted, which lie inside an organ, and which are classes."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import ndimage

from autoliver.datasets.lesions import (
    connected_lesions,
    is_lesion,
    is_tumour,
    lesion_classes,
    mixed_lesions,
)
from autoliver.evaluation.results import MetricOptions


@pytest.mark.parametrize(
    ("label", "tumour", "lesion"),
    [
        ("tumour", True, True),
        ("tumor", True, True),
        ("Liver Tumors", True, True),
        ("kidney_tumor", True, True),
        ("Lesion 2", True, True),
        ("pancreatic cancer", True, True),
        ("metastasis", True, True),
        ("Metastases", True, True),
        ("HCC", False, True),
        ("cyst", False, True),
        ("liver_cysts", False, True),
        ("hemangioma", False, True),
        ("haemangioma", False, True),
        ("cholangiocarcinoma", False, True),
        ("ICC", False, True),
        ("liver_FNH", False, True),
        ("abscess", False, True),
        ("BCLM", False, True),
        ("cystic_duct", False, False),
        ("liver", False, False),
        ("vessel", False, False),
        ("mass", False, False),
        ("fnhx", False, False),
        ("spleen", False, False),
    ],
)
def test_words_of_lesions(label: str, tumour: bool, lesion: bool) -> None:
    assert is_tumour(label) == tumour
    assert is_lesion(label) == lesion
    assert MetricOptions().counts_lesions(label) == tumour


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (["liver", "cyst", "hemangioma", "metastasis"], None, ["cyst", "hemangioma", "metastasis"]),
        (["liver", "HCC", "ICC", "other lesion"], None, ["HCC", "ICC", "other lesion"]),
        (["liver", "tumour"], None, []),
        (["kidney", "tumor", "cyst"], None, []),  # KiTS
        (["edema", "non-enhancing tumor", "enhancing tumour"], None, []),  # parts of one lesion
        (["liver", "a", "b"], ["a", "b"], ["a", "b"]),
        (["liver", "a", "b"], ["a"], []),
        (["liver", "cyst", "HCC"], [], []),
        (["liver", "tumour"], ["cyst", "HCC"], []),  # the label maps do not hold them yet
    ],
)
def test_classes_are_listed_or_named_like_diagnoses(
    labels: Sequence[str], names: Sequence[str] | None, classes: Sequence[str]
) -> None:
    values = {name: (number,) for number, name in enumerate(labels, 1)}
    assert list(lesion_classes(values, names)) == classes
    union = values | {"all": tuple(range(1, len(labels) + 1))}
    assert list(lesion_classes(union, names)) == classes


def test_lesions_are_connected_across_corners_and_numbered_in_the_order_of_the_array() -> None:
    mask = np.random.default_rng(1).random((9, 10, 11)) < 0.04
    numbers, count = connected_lesions(mask)
    expected, number = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    assert count == number > 3
    assert np.array_equal(numbers, expected)
    corner = np.zeros((3, 3, 3), bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert connected_lesions(corner)[1] == 1
    assert connected_lesions(np.zeros((2, 3, 4), bool))[1] == 0


def test_mixed_lesions_are_found_by_place_and_size() -> None:
    array = np.ones((6, 20, 20), np.uint8)
    array[1:3, 2:6, 2:6] = 2
    array[3, 10:14, 10:14] = 2
    array[4, 14, 14:16] = 3  # touches at a corner
    array[1, 18, 2] = 3
    assert mixed_lesions(array, [2, 3]) == [(3, {2: 16, 3: 2}, (3, 12, 12))]
    assert mixed_lesions(array, [2]) == []
    assert mixed_lesions(np.zeros((2, 3, 4), np.uint8), [2, 3]) == []
