"""How many lesions were found: overall, by size and by patient."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.evaluation.bootstrap import (
    Interval,
    Statistic,
    Values,
    Weights,
    interval,
    ratio,
    statistic,
)
from autoliver.evaluation.lesions import Lesion, VoxelOverlap


class _Size(NamedTuple):
    name: str
    least_mm: float
    most_mm: float

    def holds(self, diameter_mm: float | None) -> bool:
        return diameter_mm is not None and self.least_mm <= diameter_mm <= self.most_mm


_ALL = _Size("all", 0.0, np.inf)
_BELOW_10, _ABOVE_20 = float(np.nextafter(10.0, 0.0)), float(np.nextafter(20.0, 30.0))
SIZES = (
    _Size("< 10 mm", 0.0, _BELOW_10),
    _Size("10-20 mm", 10.0, 20.0),
    _Size("> 20 mm", _ABOVE_20, np.inf),
)


class Detection(Record, frozen=True, kw_only=True):
    """Lesions that were found, by one-to-one matches.

    In a size class, lesions of the reference count by their own size and predicted ones by theirs,
    so that `found` and `confirmed` may differ.

    Attributes:
        reference: Lesions of the reference.
        found: Those of them that are matched.
        predicted: Predicted lesions.
        confirmed: Those of them that are matched.
        recall: found / reference; None without a lesion in the reference.
        precision: confirmed / predicted; None without a predicted lesion.
        f1: (found + confirmed) / (reference + predicted); None without any lesion.
        intervals: recall, precision and f1 -> 95 % interval by resampling patients.
    """

    reference: int
    found: int
    predicted: int
    confirmed: int
    recall: float | None
    precision: float | None
    f1: float | None
    intervals: dict[str, Interval] = msgspec.field(default_factory=dict)


class PatientLesions(Record, frozen=True, kw_only=True):
    """The lesions of one patient, summed over the patient's cases.

    Attributes:
        cases: Number of cases.
        reference: Lesions of the reference.
        predicted: Predicted lesions.
        matched: Matched pairs of them.
        found: Whether any lesion of the reference is matched; None if there is none.
        reference_ml: Volume of all lesions of the reference; None if a case is a 2D file.
        predicted_ml: Volume of all predicted lesions; None if a case is a 2D file.
    """

    cases: int
    reference: int
    predicted: int
    matched: int
    found: bool | None
    reference_ml: float | None
    predicted_ml: float | None


class PatientDetection(Record, frozen=True, kw_only=True):
    """What was found patient by patient.

    Attributes:
        with_lesions: Patients with a lesion in the reference.
        found: Those of them of whom any lesion is matched.
        without_lesions: Patients without a lesion in the reference.
        clear: Those of them without a predicted lesion.
        patients: Patient -> the patient's lesions.
    """

    with_lesions: int
    found: int
    without_lesions: int
    clear: int
    patients: dict[str, PatientLesions]


class LesionSummary(Record, frozen=True, kw_only=True):
    """The lesions of all cases, matched one to one.

    Attributes:
        detection: Recall, precision and F1 over all lesions.
        sizes: Name of a size class -> the same over its lesions.
        dice: Dice of matched pairs.
        volume_difference_ml: Predicted volume minus that of the reference, of matched pairs.
        volume_error_ml: The absolute value of the same.
        volume_error_percent: The same in percent of the reference's volume.
        by_patient: What was found patient by patient; None if patients are not known.
        voxels: dice, recall and precision of the voxels of lesions against all others, over the
            cases that define them; empty for a single label, which has them as metrics.
    """

    detection: Detection
    sizes: dict[str, Detection]
    dice: Statistic | None
    volume_difference_ml: Statistic | None
    volume_error_ml: Statistic | None
    volume_error_percent: Statistic | None
    by_patient: PatientDetection | None = None
    voxels: dict[str, Statistic] = msgspec.field(default_factory=dict)


def summarize_lesions(
    cases: Sequence[Sequence[Lesion]],
    *,
    patients: Sequence[str],
    weights: Weights | None,
    voxels: Sequence[VoxelOverlap | None] = (),
) -> LesionSummary:
    """Summarises the lesions of cases.

    Args:
        cases: The lesions of each case.
        patients: The patient of each case; empty if it is not known.
        weights: As from `bootstrap.resampled`; None: without intervals.
        voxels: The voxels of lesions in each case, where they are known; empty if in none.
    """
    pairs = [[lesion for lesion in case if lesion.matched] for case in cases]
    ml = [[d for each in case if (d := each.volume_difference_ml) is not None] for case in pairs]
    percent = [
        [abs(d) for each in case if (d := each.volume_difference_percent) is not None]
        for case in pairs
    ]
    dice = [[each.dice for each in case if each.dice is not None] for case in pairs]
    return LesionSummary(
        detection=_detection(cases, _ALL, weights),
        sizes={size.name: _detection(cases, size, weights) for size in SIZES},
        dice=statistic(dice, weights),
        volume_difference_ml=statistic(ml, weights),
        volume_error_ml=statistic([map(abs, case) for case in ml], weights),
        volume_error_percent=statistic(percent, weights),
        by_patient=None if "" in patients else _by_patient(cases, patients),
        voxels=_voxel_rates(voxels, weights),
    )


def _voxel_rates(
    voxels: Sequence[VoxelOverlap | None], weights: Weights | None
) -> dict[str, Statistic]:
    each = [overlap.rates() if overlap is not None else {} for overlap in voxels]
    names = ("dice", "recall", "precision") if voxels else ()
    found = {
        name: statistic([[rates[name]] if name in rates else [] for rates in each], weights)
        for name in names
    }
    return {name: mean for name, mean in found.items() if mean is not None}


def _detection(
    cases: Sequence[Sequence[Lesion]], size: _Size, weights: Weights | None
) -> Detection:
    counts = np.array([_counted(lesions, size) for lesions in cases], np.int64).reshape(-1, 4)
    total = counts.sum(axis=0)
    intervals = {}
    if weights is not None:
        for name, values in _rates(weights @ counts.astype(np.float64)).items():
            if (found := interval(values)) is not None:
                intervals[name] = found
    rates = {
        name: None if np.isnan(value) else float(value)
        for name, value in _rates(total.astype(np.float64)).items()
    }
    reference, found_there, predicted, confirmed = map(int, total)
    return Detection(
        reference=reference,
        found=found_there,
        predicted=predicted,
        confirmed=confirmed,
        recall=rates["recall"],
        precision=rates["precision"],
        f1=rates["f1"],
        intervals=intervals,
    )


def _counted(lesions: Sequence[Lesion], size: _Size) -> tuple[int, int, int, int]:
    theirs = [lesion.matched for lesion in lesions if size.holds(lesion.reference_mm)]
    ours = [lesion.matched for lesion in lesions if size.holds(lesion.predicted_mm)]
    return len(theirs), sum(theirs), len(ours), sum(ours)


def _rates(counts: npt.NDArray[np.float64]) -> dict[str, Values]:
    """Recall, precision and F1 of (..., 4) counts; NaN where undefined."""
    reference, found, predicted, confirmed = np.moveaxis(counts, -1, 0)
    return {
        "recall": ratio(found, reference),
        "precision": ratio(confirmed, predicted),
        "f1": ratio(found + confirmed, reference + predicted),
    }


def _by_patient(cases: Sequence[Sequence[Lesion]], patients: Sequence[str]) -> PatientDetection:
    of: dict[str, list[Sequence[Lesion]]] = {}
    for lesions, patient in zip(cases, patients, strict=True):
        of.setdefault(patient, []).append(lesions)
    each = {patient: _patient(of[patient]) for patient in sorted(of)}
    ill = [patient for patient in each.values() if patient.reference]
    well = [patient for patient in each.values() if not patient.reference]
    return PatientDetection(
        with_lesions=len(ill),
        found=sum(bool(patient.found) for patient in ill),
        without_lesions=len(well),
        clear=sum(not patient.predicted for patient in well),
        patients=each,
    )


def _patient(cases: Sequence[Sequence[Lesion]]) -> PatientLesions:
    lesions = [lesion for case in cases for lesion in case]
    theirs = [lesion.reference_ml for lesion in lesions if lesion.reference is not None]
    ours = [lesion.predicted_ml for lesion in lesions if lesion.predicted is not None]
    matched = sum(lesion.matched for lesion in lesions)
    return PatientLesions(
        cases=len(cases),
        reference=len(theirs),
        predicted=len(ours),
        matched=matched,
        found=matched > 0 if theirs else None,
        reference_ml=_sum(theirs),
        predicted_ml=_sum(ours),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
