"""Windows on given lesions: each lesion is covered, and its middle is the middle of its window."""

import numpy as np
import pytest

from autoliver.inference.lesions.centred import windows_on
from autoliver.io.volume import Geometry
from autoliver.preprocessing.case import CaseProperties

SHAPE = (10, 40, 60)


def properties(network: tuple[int, int, int], *, transpose=(0, 1, 2), box=None) -> CaseProperties:
    ends = box or tuple((0, SHAPE[axis]) for axis in transpose)
    return CaseProperties(
        name="case",
        modality="CT",
        geometry=Geometry(shape_zyx=SHAPE, spacing_mm=(5.0, 1.0, 1.0)),
        transpose_forward=transpose,
        box=ends,
        shape_zyx=network,
        spacing_mm=(5.0, 1.0, 1.0),
    )


def lesions(*boxes: tuple[tuple[int, int], ...]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[tuple(slice(*ends) for ends in box)] = True
    return mask


def test_a_slice_of_a_lesion_has_a_window_around_its_middle():
    mask = lesions(((2, 5), (10, 20), (30, 34)))
    found = windows_on(mask, properties(SHAPE), (16, 16), SHAPE)
    assert found == [(z, slice(7, 23), slice(24, 40)) for z in (2, 3, 4)]


def test_in_3d_a_lesion_has_one_window_that_stays_inside():
    mask = lesions(((0, 2), (0, 4), (50, 60)))
    found = windows_on(mask, properties(SHAPE), (8, 16, 16), SHAPE)
    assert found == [(slice(0, 8), slice(0, 16), slice(44, 60))]


def test_a_lesion_larger_than_the_patch_is_covered():
    mask = lesions(((3, 4), (5, 35), (10, 20)))
    found = windows_on(mask, properties(SHAPE), (16, 16), SHAPE)
    covered = np.zeros(SHAPE, bool)
    for window in found:
        covered[window] = True
    assert covered[mask].all()


def test_padding_moves_windows():
    mask = lesions(((4, 5), (18, 22), (28, 32)))
    padded = (10, 48, 64)
    ((z, y, x),) = windows_on(mask, properties(SHAPE), (48, 16), padded)
    assert (z, y) == (4, slice(0, 48))
    assert x == slice(2 + 30 - 8, 2 + 30 + 8)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_other_grids_and_orders_of_axes(transpose):
    """The middle of the window lies on the lesion, brought to the network's grid by hand."""
    ends = ((2, 5), (13, 16), (30, 34))
    crop = tuple((1, SHAPE[axis] - 1) for axis in transpose)
    network = tuple(2 * (high - low) for low, high in crop)
    (first, *_) = windows_on(
        lesions(ends), properties(network, transpose=transpose, box=crop), (8, 8, 8), network
    )
    middles = [(ends[axis][0] + ends[axis][1]) / 2 for axis in transpose]
    expected = [2 * (middle - 1) for middle in middles]
    for part, middle, size in zip(first, expected, network, strict=True):
        start = min(max(round(middle - 4), 0), size - 8)
        assert part == slice(start, start + 8)


def test_lesions_that_touch_no_voxel_of_the_grid_are_seen_all_the_same():
    mask = lesions(((7, 8), (11, 12), (13, 14)))
    found = windows_on(mask, properties((5, 10, 15)), (4, 4), (5, 10, 15))
    assert len(found) == 1
    assert found[0][0] == 3


def test_without_lesions_there_are_no_windows():
    assert windows_on(lesions(), properties(SHAPE), (8, 8), SHAPE) == []
