import numpy as np
import pytest
from scipy import ndimage

from autoliver.planning.nonzero import bounding_box, nonzero_box, nonzero_mask


@pytest.mark.parametrize("density", [0.05, 0.3, 0.65, 0.8, 0.95])
def test_holes_are_filled_as_scipy_does(density):
    rng = np.random.default_rng(round(100 * density))
    for _ in range(100):
        shape = rng.integers(1, 10, size=3)
        image = (rng.random((2, *shape)) < density / 2).astype(np.float32)
        image = np.pad(image, [(0, 0), *rng.integers(0, 3, size=(3, 2)).tolist()])
        expected = ndimage.binary_fill_holes((image != 0).any(axis=0))
        np.testing.assert_array_equal(nonzero_mask(image), expected)


def test_hole_behind_a_winding_tunnel_is_outside():
    image = np.ones((1, 7, 7, 7), dtype=np.float32)
    image[0, 3, 3, 1:4] = 0
    image[0, 3, 3:6, 1] = 0
    assert nonzero_mask(image).all()
    image[0, 3, 5, 0] = 0
    np.testing.assert_array_equal(nonzero_mask(image), image[0] != 0)


def test_a_single_slice_has_no_holes():
    image = np.ones((1, 1, 5, 5), dtype=np.float32)
    image[0, 0, 2, 2] = 0
    assert nonzero_mask(image).sum() == 24


def test_image_is_left_alone():
    image = np.ones((1, 5, 5, 5), dtype=np.float32)
    image[0, 2, 2, 2] = 0
    nonzero_mask(image)
    assert image.sum() == 124


def test_bounding_box_is_half_open():
    mask = np.zeros((6, 7, 8), dtype=np.bool_)
    mask[1, 5, 2] = mask[4, 3, 6] = True
    assert bounding_box(mask) == nonzero_box(mask) == (slice(1, 5), slice(3, 6), slice(2, 7))
    assert bounding_box(mask[1]) == (slice(5, 6), slice(2, 3))


def test_bounding_box_of_nothing_is_empty():
    assert bounding_box(np.zeros((2, 3, 4), dtype=np.bool_)) == (slice(0, 0),) * 3


def test_of_an_image_of_zeros_everything_is_kept():
    assert nonzero_box(np.zeros((2, 3, 4), dtype=np.bool_)) == (
        slice(0, 2),
        slice(0, 3),
        slice(0, 4),
    )
