"""Lesions as connected components, and which of them belong together."""

import itertools
import math

import numpy as np
import pytest

from autoliver.evaluation import lesions
from autoliver.evaluation.lesions import Lesion, Overlaps, commonest, list_lesions
from autoliver.io.volume import FLAT_SPACING

SPACING = (3.0, 1.5, 0.5)


def box(shape, *ranges):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def brute_components(mask):
    """The voxels of each component, in the order of the first voxels."""
    left = [tuple(voxel) for voxel in np.argwhere(mask).tolist()]
    found = []
    while left:
        grown, front = set(), {left[0]}
        while front:
            grown |= front
            front = {
                other
                for other in left
                if other not in grown
                and any(max(abs(a - b) for a, b in zip(other, v, strict=True)) <= 1 for v in front)
            }
        found.append(grown)
        left = [voxel for voxel in left if voxel not in grown]
    return found


def brute_best(reference, prediction, least):
    """The most common voxels, and the most matches with these, over all ways to match."""
    common = [
        [len(r & p) if len(r & p) > least * max(len(r), len(p)) else 0 for p in prediction]
        for r in reference
    ]
    if len(reference) > len(prediction):
        common = [list(row) for row in zip(*common, strict=True)]
    few, many = len(common), len(common[0]) if common else 0
    return max(
        (
            (sum(each), sum(value > 0 for value in each))
            for chosen in itertools.permutations(range(many), few)
            for each in [[common[i][j] for i, j in enumerate(chosen)]]
        ),
        default=(0, 0),
    )


@pytest.mark.parametrize("least", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 7, 7), (7, 7)])
@pytest.mark.parametrize("seed", range(8))
def test_matches_are_the_best_of_all(shape, seed, least):
    rng = np.random.default_rng(seed)
    reference, prediction = rng.random((2, *shape)) < (0.12 if len(shape) == 3 else 0.2)
    prediction |= reference & (rng.random(shape) < 0.6)
    theirs, ours = brute_components(reference), brute_components(prediction)
    found = Overlaps.of(prediction, reference)
    assert found.reference_voxels.tolist() == [len(each) for each in theirs]
    assert found.predicted_voxels.tolist() == [len(each) for each in ours]
    sides = ((found.reference, reference, theirs), (found.predicted, prediction, ours))
    for numbers, mask, each in sides:
        for number, voxels in enumerate(each, start=1):
            assert {tuple(v) for v in np.argwhere(mask)[numbers == number].tolist()} == voxels
    matches = found.matches(min_overlap=least)
    assert len({index for index, _ in matches.values()}) == len(matches)
    for r, (p, common) in matches.items():
        assert common == len(theirs[r] & ours[p]) > least * max(len(theirs[r]), len(ours[p]))
    total = sum(common for _, common in matches.values())
    assert (total, len(matches)) == brute_best(theirs, ours, least)


@pytest.mark.parametrize("seed", range(5))
def test_no_more_lesions_are_matched_than_covered(seed):
    rng = np.random.default_rng(seed)
    reference, prediction = rng.random((2, 6, 12, 12)) < 0.06
    found = Overlaps.of(prediction | (reference & (rng.random(reference.shape) < 0.5)), reference)
    for least in (0.0, 0.5):
        counts = found.counts(min_overlap=least)
        assert len(found.matches(min_overlap=least)) <= min(counts.detected, counts.confirmed)


def test_a_prediction_that_joins_two_lesions_is_matched_to_the_one_it_shares_more_with():
    shape = (3, 6, 20)
    reference = box(shape, (1, 2), (1, 4), (1, 5)) | box(shape, (1, 2), (1, 4), (8, 14))
    prediction = box(shape, (1, 2), (1, 4), (1, 14))
    found = list_lesions(Overlaps.of(prediction, reference), spacing_mm=(1.0, 1.0, 1.0))
    assert [(each.reference, each.predicted) for each in found] == [(1, None), (2, 1)]
    counts = lesions.match_lesions(prediction, reference)
    assert (counts.detected, counts.confirmed) == (2, 1)


def test_of_equal_overlaps_the_way_with_more_matches_is_taken():
    # One lesion shares 6 voxels with the first prediction, or 1 with the second while another
    # lesion shares 5 with the first.
    shape = (1, 3, 20)
    reference = box(shape, (0, 1), (0, 1), (0, 8)) | box(shape, (0, 1), (0, 1), (9, 14))
    prediction = box(shape, (0, 1), (0, 1), (0, 1)) | box(shape, (0, 1), (0, 1), (2, 14))
    found = Overlaps.of(prediction, reference)
    assert found.pairs.tolist() == [[0, 0], [0, 1], [1, 1]]
    assert found.common.tolist() == [1, 6, 5]
    assert found.matches() == {0: (0, 1), 1: (1, 5)}


def test_a_listed_lesion_has_the_numbers_of_its_masks():
    shape = (4, 10, 20)
    reference = box(shape, (0, 2), (1, 5), (1, 5)) | box(shape, (0, 1), (8, 9), (18, 20))
    prediction = box(shape, (0, 2), (1, 5), (2, 8)) | box(shape, (3, 4), (0, 1), (15, 16))
    found = list_lesions(Overlaps.of(prediction, reference), spacing_mm=SPACING)
    ml = 3.0 * 1.5 * 0.5 / 1000
    assert found == (
        Lesion(
            reference=1,
            predicted=1,
            reference_ml=pytest.approx(32 * ml),
            predicted_ml=pytest.approx(48 * ml),
            reference_mm=pytest.approx((6 * 32 * 2.25 / math.pi) ** (1 / 3)),
            predicted_mm=pytest.approx((6 * 48 * 2.25 / math.pi) ** (1 / 3)),
            dice=2 * 24 / 80,
            volume_difference_ml=pytest.approx(16 * ml),
            volume_difference_percent=50.0,
        ),
        Lesion(
            reference=2,
            reference_ml=pytest.approx(2 * ml),
            reference_mm=pytest.approx((6 * 2 * 2.25 / math.pi) ** (1 / 3)),
        ),
        Lesion(
            predicted=2,
            predicted_ml=pytest.approx(ml),
            predicted_mm=pytest.approx((6 * 2.25 / math.pi) ** (1 / 3)),
        ),
    )


def test_lesions_of_2d_files_have_areas_and_no_volumes():
    mask = box((1, 9, 9), (0, 1), (2, 4), (2, 7))
    (found,) = list_lesions(Overlaps.of(mask, mask), spacing_mm=(FLAT_SPACING, 1.0, 1.0))
    assert (found.reference_ml, found.volume_difference_ml) == (None, None)
    assert found.volume_difference_percent == 0.0
    assert found.reference_mm == pytest.approx(2 * math.sqrt(10 / math.pi))


def test_the_class_of_a_lesion_is_that_of_most_voxels():
    numbers = np.array([1, 1, 2, 1, 2, 3], np.int32)
    values = np.array([5, 6, 6, 7, 5, 7])
    classes = {"cyst": (5,), "hemangioma": (6, 7)}
    # Of the second one, each class has one voxel: the first class is taken.
    assert commonest(numbers, values, classes, count=3) == ("hemangioma", "cyst", "hemangioma")


def test_lesions_are_counted_each_way():
    shape = (5, 20, 20)
    reference = box(shape, (1, 3), (1, 5), (1, 5)) | box(shape, (1, 3), (10, 12), (10, 12))
    reference |= box(
        shape, (3, 4), (12, 13), (12, 13)
    )  # touches the second at a corner: one lesion
    prediction = box(shape, (1, 3), (4, 9), (4, 9)) | box(shape, (4, 5), (0, 2), (15, 18))
    touched = lesions.match_lesions(prediction, reference)
    assert (touched.reference, touched.detected) == (2, 1)
    assert (touched.predicted, touched.confirmed) == (2, 1)
    assert touched.recall == touched.precision == 0.5
    strict = lesions.match_lesions(prediction, reference, min_overlap=0.5)
    assert (strict.detected, strict.confirmed) == (0, 0)


def test_without_lesions_recall_and_precision_are_undefined():
    empty = np.zeros((3, 4, 5), dtype=bool)
    counts = lesions.match_lesions(empty, empty)
    assert counts.reference == counts.predicted == 0
    assert math.isnan(counts.recall)
    assert math.isnan(counts.precision)
