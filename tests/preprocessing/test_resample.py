import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage.transform import resize

from autoliver.preprocessing.resample import (
    apply_operators,
    linear_operators,
    resample_image,
    resample_labels,
    separate_axis,
)


def linear(rows, wanted, *, separate_axis=None):
    """Every row resampled as networks' outputs are."""
    operators = linear_operators(rows.shape[1:], wanted, separate_axis=separate_axis)
    return np.stack([apply_operators(row, operators) for row in rows])


SIZES = [
    pytest.param((20, 31, 17), (33, 25, 40), id="odd sizes, up and down"),
    pytest.param((16, 16, 16), (32, 32, 32), id="doubled: ties at every border"),
    pytest.param((16, 18, 20), (24, 27, 30), id="by three halves"),
    pytest.param((24, 24, 24), (12, 12, 12), id="halved"),
    pytest.param((20, 31, 17), (20, 25, 40), id="first axis unchanged"),
    pytest.param((1, 31, 17), (3, 62, 34), id="one voxel thick"),
    pytest.param((9, 1, 17), (18, 3, 5), id="one voxel high"),
    pytest.param((30, 20, 25), (1, 1, 1), id="down to one voxel"),
    pytest.param((5, 150, 140), (9, 100, 170), id="more rows than a block"),
]


def skimage_resize(array, shape, order):
    array = array.astype(np.float64)
    return resize(array, shape, order, mode="edge", clip=True, anti_aliasing=False)


def share_by_share(labels, shape):
    """Each label's indicator resized on its own; the largest wins, ties go to the nearest voxel."""
    values = np.unique(labels)
    scores = np.stack([skimage_resize(labels == value, shape, 1) for value in values])
    nearest = skimage_resize(labels, shape, 0)
    tied = scores == scores.max(axis=0)
    lowest = values[tied.argmax(axis=0)]
    nearest_ties = np.any(tied & (values[:, None, None, None] == nearest), axis=0)
    return np.where(nearest_ties, nearest, lowest)


def slice_by_slice(array, shape, axis, resample):
    """Slices on their own, then scipy's nearest slice along the axis."""
    across = [n for a, n in enumerate(shape) if a != axis]
    slices = [resample(s, across) for s in np.moveaxis(array, axis, 0)]
    stack = np.moveaxis(np.stack(slices), 0, axis)
    grid = list(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    grid[axis] = (grid[axis] + 0.5) * (array.shape[axis] / shape[axis]) - 0.5
    return map_coordinates(stack, np.array(grid), order=0, mode="nearest")


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def patches(shape, values, seed=0):
    fields = np.random.default_rng(seed).normal(size=(len(values), *shape))
    smooth = gaussian_filter(fields, (0, 1.5, 1.5, 1.5))
    return np.array(values, dtype=np.int16)[smooth.argmax(axis=0)]


@pytest.mark.parametrize(("shape", "wanted"), SIZES)
def test_an_image_becomes_what_skimage_makes_of_it(shape, wanted):
    image = noise((2, *shape)) * 300 + 1000

    result = resample_image(image, wanted)

    expected = np.stack([skimage_resize(channel, wanted, 3) for channel in image])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * image.std())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("shape", "wanted"), SIZES)
def test_a_separate_axis_takes_nearest_slices_of_an_image(shape, wanted, axis):
    image = noise((1, *shape))

    result = resample_image(image, wanted, separate_axis=axis)

    expected = slice_by_slice(image[0], wanted, axis, lambda s, n: skimage_resize(s, n, 3))
    np.testing.assert_allclose(result[0], expected, rtol=0, atol=1e-5)


def test_an_image_keeps_the_range_it_had():
    image = np.zeros((1, 12, 12, 12), dtype=np.float32)
    image[:, 4:8, 4:8, 4:8] = 1

    result = resample_image(image, (31, 31, 31))

    assert result.min() == 0
    assert result.max() == 1


@pytest.mark.parametrize("air", [-1.2345678, 0.0, -1024.0])
@pytest.mark.parametrize("wanted", [(15, 140, 130), (9, 41, 37)])
def test_air_stays_constant_to_the_last_bit(wanted, air):
    image = np.random.default_rng(3).gamma(2, 40, (1, 12, 100, 90)).astype(np.float32)
    image += np.float32(air)
    image[:, :, :60] = air
    resampled = resample_image(image, wanted)[0]
    # A spline's ringing dies away within some 15 voxels.
    assert np.unique(resampled[:, : wanted[1] // 3]).tolist() == [np.float32(air)]


@pytest.mark.parametrize(("shape", "wanted"), SIZES)
def test_probabilities_are_resampled_linearly(shape, wanted):
    logits = noise((3, *shape))

    result = linear(logits, wanted)
    separate = linear(logits, wanted, separate_axis=0)

    expected = np.stack([skimage_resize(channel, wanted, 1) for channel in logits])
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
    across = slice_by_slice(logits[0], wanted, 0, lambda s, n: skimage_resize(s, n, 1))
    np.testing.assert_allclose(separate[0], across, rtol=0, atol=1e-5)


@pytest.mark.parametrize("values", [(0, 3, 200, -1), (0, 1), tuple(range(12))])
@pytest.mark.parametrize(("shape", "wanted"), SIZES)
def test_labels_equal_the_largest_share_computed_label_by_label(shape, wanted, values):
    labels = patches(shape, values)

    result = resample_labels(labels[None], wanted)

    assert result.dtype == labels.dtype
    np.testing.assert_array_equal(result[0], share_by_share(labels, wanted))


@pytest.mark.parametrize("values", [(-(2**15), 0, 2**15 - 1), tuple(range(-130, 127))])
def test_labels_may_fill_their_type_or_be_too_many_for_a_byte(values):
    labels = patches((6, 12, 10), values)
    result = resample_labels(labels[None], (9, 10, 15))
    np.testing.assert_array_equal(result[0], share_by_share(labels, (9, 10, 15)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_along_a_separate_axis_are_those_of_the_nearest_slice(axis):
    labels = patches((9, 14, 11), (0, 3, 200, -1))
    wanted = (15, 21, 16)

    result = resample_labels(labels[None], wanted, separate_axis=axis)

    def in_plane(image, shape):
        return share_by_share(image[None], (1, *shape))[0]

    np.testing.assert_array_equal(result[0], slice_by_slice(labels, wanted, axis, in_plane))


def test_a_tie_goes_to_the_nearest_voxel_and_else_to_the_smallest_label():
    # Halving puts the new voxel in the middle of eight: 1 and 2 hold three each, 3 holds two,
    # and the nearest (the last) is a 3 that lost.
    lost = np.array([3, 1, 1, 1, 2, 2, 2, 3], dtype=np.int16).reshape(1, 2, 2, 2)
    tied = np.array([1, 1, 1, 1, 2, 2, 2, 2], dtype=np.int16).reshape(1, 2, 2, 2)

    assert resample_labels(lost, (1, 1, 1)).item() == 1
    assert resample_labels(tied, (1, 1, 1)).item() == 2


def test_unchanged_sizes_give_equal_arrays():
    image, labels = noise((1, 5, 6, 7)), patches((5, 6, 7), (0, 1))[None]

    np.testing.assert_array_equal(resample_image(image, (5, 6, 7)), image)
    np.testing.assert_array_equal(resample_labels(labels, (5, 6, 7), separate_axis=0), labels)
    np.testing.assert_array_equal(linear(image, (5, 6, 7)), image)


@pytest.mark.parametrize("wanted", [(40, 9, 30), (13, 30, 9), (20, 31, 9)])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_rows_of_the_result_can_be_had_on_their_own(wanted, axis):
    channel = noise((20, 31, 17))
    operators = linear_operators(channel.shape, wanted, separate_axis=axis)

    parts = [
        apply_operators(channel, operators, rows=slice(start, min(start + 7, wanted[0])))
        for start in range(0, wanted[0], 7)
    ]

    np.testing.assert_allclose(
        np.concatenate(parts), apply_operators(channel, operators), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
        ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), 1),
        ((0.7, 0.7, 5.0), (8.0, 1.0, 1.0), 2),
        ((0.24, 1.25, 1.25), (1.0, 1.0, 1.0), None),
        ((0.24, 1.25, 1.25), (5.0, 1.0, 1.0), None),
    ],
)
def test_the_separate_axis_is_the_one_coarsest_by_more_than_three(before, after, expected):
    assert separate_axis(before, after) == expected


@pytest.mark.parametrize("wanted", [(9, 8, 7), (5, 8, 7), (5, 9, 9)])
@pytest.mark.parametrize("axis", [None, 0])
def test_inputs_may_be_read_only(wanted, axis):
    image, labels = noise((1, 9, 8, 7)), patches((9, 8, 7), (0, 1))[None]
    image.flags.writeable = labels.flags.writeable = False

    assert resample_image(image, wanted, separate_axis=axis).shape[1:] == wanted
    assert linear(image, wanted, separate_axis=axis).shape[1:] == wanted
    assert resample_labels(labels, wanted, separate_axis=axis).shape[1:] == wanted
