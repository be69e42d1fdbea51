"""How well lesions were named: confusion, accuracy, F1 and the area under the ROC curve."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.evaluation.bootstrap import Interval, Values, Weights, interval, ratio
from autoliver.evaluation.lesions import Lesion
from autoliver.inference.lesions.calibration import expected_calibration_error, reliability
from autoliver.inference.lesions.vote import normalised

Confusion = npt.NDArray[np.float64]
MEASURES = ("accuracy", "balanced_accuracy", "macro_f1")


class Classification(Record, frozen=True, kw_only=True):
    """How many lesions of the reference have the right class.

    Attributes:
        lesions: Number of lesions of the reference that count.
        accuracy: Share of them with the right class; None if there are none.
        balanced_accuracy: Mean over the classes of the share of their lesions with the right class.
        macro_f1: Mean F1 over the classes that occur, 2 right / (in reference + predicted).
        intervals: Name of a measure -> 95 % interval by resampling patients.
    """

    lesions: int
    accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    intervals: dict[str, Interval] = msgspec.field(default_factory=dict)


class ClassSummary(Record, frozen=True, kw_only=True):
    """The classes of the lesions of all cases.

    Attributes:
        classes: Names of the classes.
        confusion: For each class of the reference, how many of its matched lesions were predicted
            as each class.
        missed: For each class, its lesions of the reference without a match.
        spurious: For each class, its predicted lesions without a match.
        of_reference: Over all lesions of the reference; one that was missed is wrong.
        of_detected: Over the matched lesions alone.
        auc: Mean over the classes of the area under the ROC curve, one class against the others,
            over the matched lesions with known probabilities; None if there are none.
        auc_by_class: The area of each class that has lesions and is not the only one.
        auc_lesions: Number of matched lesions with known probabilities.
        auc_interval: 95 % interval of `auc` by resampling patients.
        calibration_error: Expected calibration error over the lesions of `auc_lesions`: the mean
            difference, in ten bins, between the probability of the most probable class and how
            often it is right; None if there are none.
    """

    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    missed: tuple[int, ...]
    spurious: tuple[int, ...]
    of_reference: Classification
    of_detected: Classification
    auc: float | None = None
    auc_by_class: dict[str, float] = msgspec.field(default_factory=dict)
    auc_lesions: int = 0
    auc_interval: Interval | None = None
    calibration_error: float | None = None


def summarize_classes(
    cases: Sequence[Sequence[Lesion]], classes: Sequence[str], *, weights: Weights | None
) -> ClassSummary:
    """Summarises the classes of the lesions of cases.

    Args:
        cases: The lesions of each case.
        classes: Names of the classes.
        weights: As from `bootstrap.resampled`; None: without intervals.
    """
    confusion, spurious = _confusion(cases, classes)
    total = confusion.sum(axis=0).astype(int)
    probable = [[each for each in case if _probable(each)] for case in cases]
    bins = reliability(*matched_probabilities(cases, classes))
    by_class, drawn = _areas(probable, classes, weights)
    return ClassSummary(
        classes=tuple(classes),
        confusion=tuple(tuple(map(int, row[:-1])) for row in total),
        missed=tuple(map(int, total[:, -1])),
        spurious=tuple(map(int, spurious)),
        of_reference=_classification(confusion, weights),
        of_detected=_classification(confusion[..., :-1], weights),
        auc=float(np.mean(list(by_class.values()))) if by_class else None,
        auc_by_class=by_class,
        auc_lesions=sum(map(len, probable)),
        auc_interval=None if drawn is None else interval(drawn),
        calibration_error=expected_calibration_error(bins),
    )


def lesion_accuracy(cases: Sequence[Sequence[Lesion]], classes: Sequence[str]) -> float | None:
    """Returns the share of the reference's lesions that were found and have the right class.

    Args:
        cases: The lesions of each case.
        classes: Names of the classes.

    Returns:
        None without classes or lesions.
    """
    if not classes:
        return None
    return summarize_classes(cases, classes, weights=None).of_reference.accuracy


def matched_probabilities(
    cases: Sequence[Sequence[Lesion]], classes: Sequence[str]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Returns what is known of the matched lesions with known probabilities.

    Args:
        cases: The lesions of each case.
        classes: Names of the classes.

    Returns:
        Probabilities (lesions, classes), scaled to add up to 1; and the index of the class that
        each lesion has in the reference.
    """
    found = [each for case in cases for each in case if _probable(each)]
    rows = [[each.probabilities[name] for name in classes] for each in found]
    index = {name: i for i, name in enumerate(classes)}
    truth = np.array([index[each.reference_class] for each in found], np.intp)
    return normalised(np.array(rows, np.float64).reshape(-1, len(classes))), truth


def _probable(lesion: Lesion) -> bool:
    return lesion.matched and bool(lesion.probabilities)


def measures(confusion: Confusion) -> dict[str, Values]:
    """Computes `MEASURES` from confusion matrices; NaN where undefined.

    Args:
        confusion: (..., classes, classes) or, with a last column for missed lesions,
            (..., classes, classes + 1); rows are classes of the reference.
    """
    named = confusion[..., : confusion.shape[-2]]
    right = np.diagonal(named, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(axis=-1), named.sum(axis=-2)
    return {
        "accuracy": ratio(right.sum(axis=-1), support.sum(axis=-1)),
        "balanced_accuracy": _mean_of_known(ratio(right, support)),
        "macro_f1": _mean_of_known(ratio(2 * right, support + predicted)),
    }


def area(positive: Values, negative: Values) -> float:
    """Returns the area under the ROC curve: how often a positive has more than a negative.

    Args:
        positive: (n,) scores of positives, at least one.
        negative: (m,) scores of negatives, at least one; a draw counts half.
    """
    return float(_wins(positive, negative).mean())


def _wins(positive: Values, negative: Values) -> Values:
    return np.greater.outer(positive, negative) + 0.5 * np.equal.outer(positive, negative)


def _mean_of_known(values: Values) -> Values:
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


def _confusion(
    cases: Sequence[Sequence[Lesion]], classes: Sequence[str]
) -> tuple[Confusion, npt.NDArray[np.int64]]:
    """Counts (cases, classes, classes + 1), missed ones last; and lesions only predicted."""
    index = {name: i for i, name in enumerate(classes)}
    missed = len(classes)
    confusion = np.zeros((len(cases), len(classes), len(classes) + 1))
    spurious = np.zeros(len(classes), np.int64)
    for counts, lesions in zip(confusion, cases, strict=True):
        for lesion in lesions:
            ours = missed if lesion.predicted is None else index[lesion.predicted_class]
            if lesion.reference is None:
                spurious[ours] += 1
            else:
                counts[index[lesion.reference_class], ours] += 1
    return confusion, spurious


def _classification(confusion: Confusion, weights: Weights | None) -> Classification:
    total = confusion.sum(axis=0)
    values = {n: None if np.isnan(v) else float(v) for n, v in measures(total).items()}
    intervals = {}
    if weights is not None:
        drawn = np.tensordot(weights, confusion, axes=1)
        found = {name: interval(each) for name, each in measures(drawn).items()}
        intervals = {name: each for name, each in found.items() if each is not None}
    return Classification(lesions=int(total.sum()), intervals=intervals, **values)


def _areas(
    cases: Sequence[Sequence[Lesion]], classes: Sequence[str], weights: Weights | None
) -> tuple[dict[str, float], Values | None]:
    """The area of each class that has positives and negatives; and their resampled means."""
    case = np.array([i for i, lesions in enumerate(cases) for _ in lesions], np.intp)
    lesions = [lesion for each in cases for lesion in each]
    by_class, drawn = {}, []
    for name in classes:
        is_it = np.array([lesion.reference_class == name for lesion in lesions], np.bool_)
        if not is_it.any() or is_it.all():
            continue
        scores = np.array([lesion.probabilities[name] for lesion in lesions])
        wins = _wins(scores[is_it], scores[~is_it])
        by_class[name] = float(wins.mean())
        if weights is not None:
            there, other = weights[:, case[is_it]], weights[:, case[~is_it]]
            won = ((there @ wins) * other).sum(axis=1)
            drawn.append(ratio(won, there.sum(axis=1) * other.sum(axis=1)))
    return by_class, _mean_of_known(np.stack(drawn, axis=-1)) if drawn else None
