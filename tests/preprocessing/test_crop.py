import numpy as np
from scipy.ndimage import binary_fill_holes

from autoliver.preprocessing.crop import crop_to_nonzero


def two_channels():
    image = np.zeros((2, 8, 9, 10), dtype=np.float32)
    image[0, 2:5, 2:6, 3:7] = 5
    image[0, 3, 3, 4] = 0  # a hole inside
    image[1, 4:7, 4:8, 5:9] = -2
    return image


def test_the_box_holds_what_is_nonzero_in_any_channel():
    image = two_channels()

    cropped = crop_to_nonzero(image)

    assert cropped.box == ((2, 7), (2, 8), (3, 9))
    np.testing.assert_array_equal(cropped.image, image[:, 2:7, 2:8, 3:9])
    assert cropped.label is None
    filled = binary_fill_holes((image != 0).any(axis=0))
    np.testing.assert_array_equal(cropped.mask, filled[2:7, 2:8, 3:9])
    assert cropped.mask[1, 1, 1]


def test_background_outside_the_mask_is_marked_in_the_label():
    image = two_channels()
    label = np.zeros((1, 8, 9, 10), dtype=np.uint8)
    label[0, 2:4, 2:4, 3:5] = 2
    label[0, 6, 2, 3] = 1  # labelled where the image is zero

    cropped = crop_to_nonzero(image, label)

    outside = ~crop_to_nonzero(image).mask
    expected = label[:, 2:7, 2:8, 3:9].astype(np.int16)
    expected[0, outside & (expected[0] == 0)] = -1
    np.testing.assert_array_equal(cropped.label, expected)
    assert cropped.label[0, 4, 0, 0] == 1
    np.testing.assert_array_equal(cropped.mask, expected[0] >= 0)
    assert label.min() == 0


def test_an_image_of_zeros_is_kept_whole():
    cropped = crop_to_nonzero(np.zeros((1, 3, 4, 5), dtype=np.float32))

    assert cropped.box == ((0, 3), (0, 4), (0, 5))
    assert not cropped.mask.any()
