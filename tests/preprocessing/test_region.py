"""Boxes around organs, against brute force."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from autoliver.io.volume import Geometry
from autoliver.preprocessing.case import CaseProperties, forward_labels
from autoliver.preprocessing.region import grown_ends, inner_box, organ_box, outer_bounds


@pytest.mark.parametrize("seed", range(6))
def test_the_box_is_that_of_the_largest_component(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 11, 10)) < 0.06
    mask[2:5, 3:6, 4:8] = True
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = [(labels == number).sum() for number in range(1, count + 1)]
    places = np.argwhere(labels == 1 + int(np.argmax(sizes)))
    expected = tuple(zip(places.min(0).tolist(), (places.max(0) + 1).tolist(), strict=True))
    assert organ_box(mask) == expected


def test_an_empty_mask_has_no_box():
    assert organ_box(np.zeros((3, 4, 5), bool)) is None


def properties(codes, transpose, *, crop, shape, size):
    """A case of 20 x 24 x 18 voxels of 4 x 2 x 3 mm, stored as RAI."""
    geometry = Geometry(
        shape_zyx=(20, 24, 18),
        spacing_mm=(4.0, 2.0, 3.0),
        origin_xyz=(0.0, 0.0, 0.0),
        direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0),
    )
    spacing = tuple(
        mm * (stop - start) / n for mm, (start, stop), n in zip(size, crop, shape, strict=True)
    )
    return CaseProperties(
        name="case",
        modality="CT",
        geometry=geometry,
        transpose_forward=transpose,
        box=crop,
        shape_zyx=shape,
        spacing_mm=spacing,
        axis_codes=codes,
    )


@pytest.mark.parametrize("codes", ["", "LPS", "PSL"])
@pytest.mark.parametrize("transpose", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("margin", [0.0, 6.0])
def test_a_box_goes_to_the_network_s_grid_as_the_label_map_does(codes, transpose, margin):
    place = ((6, 11), (9, 15), (5, 10))
    steps = (4.0, 2.0, 3.0)
    whole = properties(codes, transpose, crop=((0, 1),) * 3, shape=(1, 1, 1), size=(1, 1, 1))
    before = whole.shape_before_crop
    crop = tuple((1, n - 2) for n in before)
    shape = tuple(2 * (stop - start) for start, stop in crop)
    case = properties(codes, transpose, crop=crop, shape=shape, size=whole.input_spacing_mm)
    # Brute force: voxels of the input that are within the margin along each axis, carried over.
    mask = np.zeros((20, 24, 18), np.uint8)
    mask[
        tuple(
            slice(max(0, low - int(margin // mm)), high + int(margin // mm))
            for (low, high), mm in zip(place, steps, strict=True)
        )
    ] = 1
    there = np.argwhere(forward_labels(mask, case)[0])
    expected = tuple(zip(there.min(0).tolist(), (there.max(0) + 1).tolist(), strict=True))
    ends = grown_ends(place, margin, case)
    exact = all(margin % mm == 0 for mm in steps) or margin == 0
    for (low, high), (first, last) in zip(ends, expected, strict=True):
        assert low == pytest.approx(first, abs=0 if exact else 1.01)
        assert high == pytest.approx(last, abs=0 if exact else 1.01)
    if exact:
        assert outer_bounds(ends) == expected
        assert inner_box(ends, shape) == tuple(slice(*pair) for pair in expected)


def test_ends_stay_within_the_image_and_are_never_empty():
    case = properties(
        "", (0, 1, 2), crop=((5, 15), (0, 24), (0, 18)), shape=(10, 24, 18), size=(4.0, 2.0, 3.0)
    )
    beyond = grown_ends(((0, 2), (0, 24), (17, 18)), 0.0, case)  # its slices were cropped away
    assert beyond == ((0.0, 1.0), (0.0, 24.0), (17.0, 18.0))
    wide = grown_ends(((8, 9), (3, 5), (4, 6)), 200.0, case)
    assert wide == ((0.0, 10.0), (0.0, 24.0), (0.0, 18.0))


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((1.4, 3.6), (1, 4)), ((1.6, 3.4), (2, 3)), ((2.6, 3.4), (3, 4)), ((4.8, 5.0), (4, 5))],
)
def test_inner_voxels_have_their_centres_inside(ends, expected):
    box = inner_box((ends, (0.0, 2.0), (0.0, 2.0)), (5, 2, 2))
    assert (box[0].start, box[0].stop) == expected
