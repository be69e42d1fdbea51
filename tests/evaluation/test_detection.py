"""Lesions that were found: overall, by size and by patient."""

import pytest

from autoliver.evaluation.bootstrap import resampled
from autoliver.evaluation.detection import SIZES, PatientLesions, summarize_lesions
from autoliver.evaluation.lesions import Lesion


def lesion(reference_mm: float | None, predicted_mm: float | None, dice: float = 0.5) -> Lesion:
    """A lesion of these diameters, None where it is not; its volume in ml is its diameter."""
    both = reference_mm is not None and predicted_mm is not None
    difference = (predicted_mm or 0.0) - (reference_mm or 0.0)
    return Lesion(
        reference=None if reference_mm is None else 1,
        predicted=None if predicted_mm is None else 1,
        reference_mm=reference_mm,
        predicted_mm=predicted_mm,
        reference_ml=reference_mm,
        predicted_ml=predicted_mm,
        dice=dice if both else None,
        volume_difference_ml=difference if both else None,
        volume_difference_percent=100 * difference / (reference_mm or 1.0) if both else None,
    )


CASES = (
    (lesion(5, 12, 0.4), lesion(15, 12, 0.8), lesion(25, None)),
    (lesion(None, 8), lesion(20, 30, 0.9)),
    (),
)


@pytest.mark.parametrize(
    ("diameter_mm", "name"),
    [
        *((0.1, "< 10 mm"), (9.9999, "< 10 mm"), (10.0, "10-20 mm"), (20.0, "10-20 mm")),
        *((20.0001, "> 20 mm"), (500.0, "> 20 mm")),
    ],
)
def test_a_diameter_is_in_one_size_class(diameter_mm: float, name: str) -> None:
    assert [size.name for size in SIZES if size.holds(diameter_mm)] == [name]


def test_lesions_are_counted_in_the_class_of_their_own_size() -> None:
    found = summarize_lesions(CASES, patients=["", "", ""], weights=None)
    every = found.detection
    assert (every.reference, every.found, every.predicted, every.confirmed) == (4, 3, 4, 3)
    assert (every.recall, every.precision, every.f1) == (0.75, 0.75, 0.75)
    counts = {
        name: (each.reference, each.found, each.predicted, each.confirmed)
        for name, each in found.sizes.items()
    }
    assert counts == {"< 10 mm": (1, 1, 1, 0), "10-20 mm": (2, 2, 2, 2), "> 20 mm": (1, 0, 1, 1)}
    assert found.sizes["< 10 mm"].f1 == 0.5
    assert found.by_patient is None
    assert every.intervals == {}


def test_volumes_and_dice_are_those_of_matched_pairs() -> None:
    found = summarize_lesions(CASES, patients=["", "", ""], weights=None)
    assert found.dice is not None
    assert (found.dice.mean, found.dice.n) == (pytest.approx(0.7), 3)
    assert found.volume_difference_ml is not None
    assert found.volume_difference_ml.mean == pytest.approx((7 - 3 + 10) / 3)
    assert found.volume_error_ml is not None
    assert found.volume_error_ml.mean == pytest.approx((7 + 3 + 10) / 3)
    assert found.volume_error_percent is not None
    assert found.volume_error_percent.mean == pytest.approx((140 + 20 + 50) / 3)


def test_patients_are_summed_over_their_cases() -> None:
    patients = ["ann", "ann", "bob"]
    found = summarize_lesions(CASES, patients=patients, weights=resampled(patients)).by_patient
    assert found is not None
    assert (found.with_lesions, found.found, found.without_lesions, found.clear) == (1, 1, 1, 1)
    assert found.patients == {
        "ann": PatientLesions(
            cases=2,
            reference=4,
            predicted=4,
            matched=3,
            found=True,
            reference_ml=65.0,
            predicted_ml=62.0,
        ),
        "bob": PatientLesions(
            cases=1,
            reference=0,
            predicted=0,
            matched=0,
            found=None,
            reference_ml=0.0,
            predicted_ml=0.0,
        ),
    }


def test_a_patient_without_lesions_is_clear_only_without_predicted_ones() -> None:
    cases = ((lesion(None, 5),), (lesion(5, None),))
    found = summarize_lesions(cases, patients=["a", "b"], weights=None).by_patient
    assert found is not None
    assert (found.with_lesions, found.found, found.without_lesions, found.clear) == (1, 0, 1, 0)
    assert (found.patients["a"].found, found.patients["b"].found) == (None, False)


def test_intervals_are_those_of_resampled_patients() -> None:
    cases = ((lesion(5, 5),), (lesion(5, None),))
    weights = resampled(["a", "b"])
    found = summarize_lesions(cases, patients=["a", "b"], weights=weights)
    # Draws: the first twice, the second twice, or both.
    assert found.detection.intervals == {
        "recall": (0.0, 1.0),
        "precision": (1.0, 1.0),
        "f1": (0.0, 1.0),
    }
    assert found.sizes["> 20 mm"].intervals == {}
    assert (found.sizes["> 20 mm"].recall, found.sizes["> 20 mm"].f1) == (None, None)


def test_without_volumes_patients_have_none() -> None:
    flat = lesion(5, 5).replace(reference_ml=None, predicted_ml=None, volume_difference_ml=None)
    found = summarize_lesions([(flat,)], patients=["a"], weights=None)
    assert found.by_patient is not None
    assert found.by_patient.patients["a"].reference_ml is None
    assert found.volume_error_ml is None
    assert found.volume_error_percent is not None
