"""Voxels are lesions where all classes together are the most probable."""

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from autoliver.inference.lesions.union import raised, with_union

ROWS = (1, 3, 4)


def logits(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(5, 4, 6, 7)) * 2).astype(np.float32)


def by_voxel(probabilities: np.ndarray) -> np.ndarray:
    """The label of each voxel, by a loop: lesion or not first, then which."""
    result = np.zeros(probabilities.shape[1:], int)
    others = [row for row in range(len(probabilities)) if row not in ROWS]
    for place in np.ndindex(result.shape):
        p = probabilities[(slice(None), *place)]
        if sum(p[row] for row in ROWS) > max(p[row] for row in others):
            result[place] = max(ROWS, key=lambda row: p[row])
        else:
            result[place] = max(others, key=lambda row: p[row])
    return result


def test_logits_and_probabilities_decide_as_a_loop_does():
    scores = logits()
    probabilities = softmax(scores.astype(float), axis=0)
    expected = by_voxel(probabilities)
    assert (expected != probabilities.argmax(0)).any()
    for given, are_logits in ((scores, True), (probabilities, False)):
        changed = given.copy()
        changed[list(ROWS)] = with_union(given, ROWS, logits=are_logits)
        np.testing.assert_array_equal(changed.argmax(0), expected)


def test_the_highest_class_has_the_score_of_the_union():
    scores = logits(1).astype(float)
    found = with_union(scores, ROWS, logits=True)
    np.testing.assert_allclose(found.max(0), logsumexp(scores[list(ROWS)], axis=0))
    np.testing.assert_array_equal(found.argmax(0), scores[list(ROWS)].argmax(0))


def test_huge_logits_stay_finite():
    scores = np.full((5, 1), 3e4, np.float32)
    assert np.isfinite(with_union(scores, ROWS, logits=True)).all()


@pytest.mark.parametrize("rows", [(), ROWS])
def test_logits_are_as_before_after_the_block(rows):
    scores = logits(2)
    before = scores.copy()
    with raised(scores, rows):
        assert (scores != before).any() == bool(rows)
    np.testing.assert_array_equal(scores, before)
