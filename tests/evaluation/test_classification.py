"""How well lesions were named, against numbers worked out by hand and by scikit-learn."""

import itertools

import numpy as np
import pytest

from autoliver.evaluation.bootstrap import resampled
from autoliver.evaluation.classification import area, measures, summarize_classes
from autoliver.evaluation.lesions import Lesion

CLASSES = ("cyst", "hemangioma", "metastasis")


def lesions(text: str) -> tuple[Lesion, ...]:
    """Lesions of pairs of letters, the reference's class first; "-" where it is not."""
    names = {"c": "cyst", "h": "hemangioma", "m": "metastasis", "-": ""}
    return tuple(
        Lesion(
            reference=None if pair[0] == "-" else 1,
            predicted=None if pair[1] == "-" else 1,
            reference_class=names[pair[0]],
            predicted_class=names[pair[1]],
        )
        for pair in text.split()
    )


def test_a_known_confusion_matrix() -> None:
    cases = [lesions("cc cc ch hh h-"), lesions("mm mc m- m- -c"), lesions("-h")]
    found = summarize_classes(cases, CLASSES, weights=None)
    assert found.confusion == ((2, 1, 0), (0, 1, 0), (1, 0, 1))
    assert (found.missed, found.spurious) == ((0, 1, 2), (1, 1, 0))
    detected, reference = found.of_detected, found.of_reference
    assert (detected.lesions, reference.lesions) == (6, 9)
    assert detected.accuracy == pytest.approx(4 / 6)
    assert reference.accuracy == pytest.approx(4 / 9)
    assert detected.balanced_accuracy == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert reference.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1 / 4) / 3)
    assert detected.macro_f1 == pytest.approx((4 / 6 + 2 / 3 + 2 / 3) / 3)
    assert reference.macro_f1 == pytest.approx((4 / 6 + 2 / 4 + 2 / 5) / 3)
    assert found.auc is None


@pytest.mark.parametrize("seed", range(5))
def test_measures_are_those_of_scikit_learn(seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, 3, (2, 40))
    predicted = np.where(rng.random(40) < 0.5, true, predicted)
    found = measures(sklearn.confusion_matrix(true, predicted, labels=range(3)).astype(float))
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(true, predicted))
    balanced = sklearn.balanced_accuracy_score(true, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(true, predicted, average="macro"))


def test_classes_that_do_not_occur_are_left_out_of_means() -> None:
    found = summarize_classes([lesions("cc cc")], CLASSES, weights=None).of_detected
    assert (found.accuracy, found.balanced_accuracy, found.macro_f1) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("text", ["", "-c"])
def test_without_lesions_of_the_reference_nothing_is_defined(text: str) -> None:
    found = summarize_classes([lesions(text), ()], CLASSES, weights=resampled(["a", "b"]))
    for each in (found.of_reference, found.of_detected):
        assert (each.accuracy, each.balanced_accuracy, each.macro_f1) == (None, None, None)
        assert each.intervals == {}


def test_intervals_are_those_of_resampled_patients() -> None:
    cases = [lesions("cc cc"), lesions("ch hh")]
    found = summarize_classes(cases, CLASSES, weights=resampled(["a", "b"]))
    assert found.of_detected.intervals["accuracy"] == (0.5, 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_the_share_of_pairs_in_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive, negative = (np.round(rng.random(n), 1) for n in (7, 9))
    pairs = list(itertools.product(positive, negative))
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs)
    assert area(positive, negative) == pytest.approx(wins / len(pairs))


def test_the_auc_is_the_mean_over_the_classes_of_matched_lesions() -> None:
    shares = ((0.8, 0.1, 0.1), (0.2, 0.5, 0.3), (0.3, 0.6, 0.1), (0.5, 0.1, 0.4))
    named = lesions("cc ch hh mc")
    given = [
        each.replace(probabilities=dict(zip(CLASSES, p, strict=True)))
        for each, p in zip(named, shares, strict=True)
    ]
    missed = lesions("c- m- -h")[2].replace(probabilities=dict.fromkeys(CLASSES, 1 / 3))
    weights = resampled(["a", "b"])
    found = summarize_classes([given[:2], [*given[2:], missed]], CLASSES, weights=weights)
    # cyst: 0.8 and 0.2 against 0.3 and 0.5; hemangioma: 0.6 against all; metastasis: 0.4 too.
    assert found.auc_by_class == {"cyst": 0.5, "hemangioma": 1.0, "metastasis": 1.0}
    assert found.auc == pytest.approx(2.5 / 3)
    assert found.auc_lesions == 4
    assert found.auc_interval is not None
    assert found.auc_interval[0] <= found.auc <= found.auc_interval[1]
