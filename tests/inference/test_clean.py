import numpy as np
from scipy import ndimage

from autoliver.inference.clean import clean
from autoliver.models.selection import CleaningRule

VALUES = {"background": (0,), "liver": (1, 2), "tumour": (2,), "spleen": (3,)}
SPACING = (2.0, 1.0, 0.5)  # 1 microlitre a voxel


def pieces():
    """A liver of 100 voxels with a tumour of 8, a speck of 3, a tumour far off, a spleen of 12."""
    array = np.zeros((8, 16, 16), np.uint8)
    array[1:5, 1:6, 1:6] = 1
    array[2:4, 2:4, 2:4] = 2
    array[7, 15, 1:4] = 1
    array[7, 1, 13:15] = 2
    array[4:7, 9:11, 9:11] = 3
    return array


def test_only_the_largest_component_of_a_union_stays():
    array = pieces()
    rule = CleaningRule(labels=("liver",), keep="largest")
    result = clean(array, [rule], values=VALUES, spacing_mm=SPACING)
    components, _ = ndimage.label(np.isin(array, (1, 2)), np.ones((3, 3, 3)))
    expected = np.where(components > 1, 0, array)
    np.testing.assert_array_equal(result, expected)
    assert (result == 2).sum() == 8
    np.testing.assert_array_equal(array, pieces())


def test_small_components_go_by_volume():
    array = pieces()
    for least_ml, specks, tumours in ((0.0025, 3, 0), (0.0035, 0, 0), (0.0015, 3, 2)):
        rules = [
            CleaningRule(labels=(name,), keep="least", least_ml=least_ml)
            for name in ("liver", "spleen")
        ]
        result = clean(array, rules, values=VALUES, spacing_mm=SPACING)
        assert (result[7, 15] == 1).sum() == specks
        assert (result[7, 1] == 2).sum() == tumours
        assert (result == 3).sum() == 12


def test_rules_follow_one_another_and_may_find_nothing():
    array = pieces()
    everything = CleaningRule(labels=("liver", "spleen"), keep="largest")
    gone = CleaningRule(labels=("spleen",), keep="least", least_ml=1.0)
    result = clean(array, [everything, gone], values=VALUES, spacing_mm=SPACING)
    assert (result > 0).sum() == 100
    empty = np.zeros((3, 3, 3), np.uint8)
    assert clean(empty, [everything], values=VALUES, spacing_mm=SPACING) is empty


def test_diagonal_neighbours_are_one_component():
    array = np.zeros((2, 2, 2), np.uint8)
    array[0, 0, 0] = array[1, 1, 1] = 3
    rule = CleaningRule(labels=("spleen",), keep="largest")
    assert (clean(array, [rule], values=VALUES, spacing_mm=SPACING) == 3).sum() == 2
