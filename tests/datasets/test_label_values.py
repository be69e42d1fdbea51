"""Values of label maps, compared with numpy's, and images and noise in their place."""

import numpy as np
import pytest

from autoliver.datasets.label_values import refuse_image, refuse_other_values, values_of
from autoliver.errors import DatasetError


def organs(labels: int) -> np.ndarray:
    """A label map of so many labels, each in cubes of 4 x 4 x 4 voxels."""
    cubes = np.random.default_rng(0).permutation(np.resize(np.arange(labels), 6 * 10 * 10))
    return np.kron(cubes.reshape(6, 10, 10), np.ones((4, 4, 4), int))


def noise(values: int, dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(1).integers(0, values, (10, 20, 20)).astype(dtype)


@pytest.mark.parametrize("array", [organs(7), noise(90), np.zeros((2, 3, 1), int), noise(3, "i8")])
def test_values_are_those_of_numpy(array: np.ndarray) -> None:
    assert values_of(array) == set(np.unique(array).tolist())


@pytest.mark.parametrize("values", [21, 60, 120, 200, 255])
def test_noise_and_images_are_no_label_maps(values: int) -> None:
    array = noise(values)
    with pytest.raises(DatasetError, match="it is an image, expected a label map"):
        refuse_image(array, values_of(array), "x", most=200)


@pytest.mark.parametrize("values", [2, 3, 20])
def test_a_few_values_may_be_the_noise_of_a_new_network(values: int) -> None:
    array = noise(values)
    refuse_image(array, values_of(array), "x", most=200)


@pytest.mark.parametrize("labels", [4, 30, 60])
def test_many_organs_are_no_image(labels: int) -> None:
    array = organs(labels)
    assert len(values_of(array)) == labels
    refuse_image(array, values_of(array), "x", most=200)


def test_a_negative_value_is_no_label() -> None:
    array = -organs(3)
    with pytest.raises(DatasetError, match="x holds the value -2, expected label numbers from 0"):
        refuse_image(array, values_of(array), "x", most=200)


def test_the_bound_on_values() -> None:
    array = np.repeat(np.arange(300), 50).reshape(10, 30, 50)
    refuse_image(array, values_of(array), "x", most=300)
    with pytest.raises(DatasetError, match="300 values from 0 to 299"):
        refuse_image(array, values_of(array), "x", most=299)


def test_values_of_no_label() -> None:
    array = organs(4)
    refuse_other_values(array, (0, 1, 2, 3, 9), "x")
    with pytest.raises(DatasetError, match="x holds 3, expected values of labels: 0, 1, 2"):
        refuse_other_values(array, (0, 1, 2), "x")
