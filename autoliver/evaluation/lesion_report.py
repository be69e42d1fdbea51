"""Lesions as tables: for a terminal of 80 characters, and as a CSV file of every lesion."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from autoliver.artifacts import csv_text, write_bytes
from autoliver.evaluation.bootstrap import Interval, Statistic
from autoliver.evaluation.classification import (
    MEASURES,
    Classification,
    ClassSummary,
    matched_probabilities,
)
from autoliver.evaluation.detection import Detection, LesionSummary
from autoliver.evaluation.lesions import Lesion
from autoliver.evaluation.picture import draw_reliability
from autoliver.evaluation.results import Scores
from autoliver.evaluation.tables import aligned
from autoliver.inference.lesions.calibration import reliability
from autoliver.values import counted, shortened

_ALL_CLASSES = "all classes"

_WIDTH = 80  # characters of a line
_LABEL = 20  # characters of a label
_INTERVAL = "  95 %"
_LEAST = 10  # characters that a label keeps in any case: those of a size class
_CLASSES = 60  # characters for the classes of a confusion matrix, with two blanks after each
_CLASS = (5, 9)  # characters of one of them at least and at most; JSON has matrices of any size
_HEADINGS = {"dice": "Dice", "recall": "recall", "precision": "precision"}  # of voxels
_RATES = ("recall", "precision", "f1")
_FIELDS = tuple(name for name in Lesion.__struct_fields__ if name not in ("reference", "predicted"))


def lesion_tables(scores: Scores) -> str:
    """Formats what is known of the lesions, for lines of 80 characters; empty if nothing is."""
    parts = [_detections(scores), _voxels(scores.lesions)]
    if scores.lesion_classes is not None:
        parts += [_classes(scores.lesion_classes), _confusion(scores.lesion_classes)]
    return "\n\n".join(part for part in parts if part)


def write_lesions(scores: Scores, path: Path) -> bool:
    """Writes a CSV file with one row per lesion and label; returns whether there were lesions.

    The rows of all classes together have an empty label. Undefined values are empty cells. A file
    of earlier scores is removed if there are no lesions now.
    """
    rows = [
        [case.name, case.patient, label, *_cells(lesion, scores)]
        for case in scores.cases
        for label, lesions in _listed(case.labels, case.lesions)
        for lesion in lesions
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return False
    fields = [name for name in _FIELDS if name != "probabilities"]
    classes = _class_names(scores)
    head = ("case", "patient", "label", "reference_lesion", "predicted_lesion", *fields)
    titles = [*head, *(f"probability_{name}" for name in classes)]
    write_bytes(path, csv_text([titles, *rows]).encode())
    return True


def draw_lesions(scores: Scores, path: Path) -> bool:
    """Draws how often the classes of lesions are right, as a PNG; returns whether that is known.

    A picture of earlier scores is removed if it is not known now.
    """
    found = scores.lesion_classes
    if found is None or found.calibration_error is None:
        path.unlink(missing_ok=True)
        return False
    lesions = [case.lesions or () for case in scores.cases]
    bins = reliability(*matched_probabilities(lesions, found.classes))
    title = f"{counted(found.auc_lesions, 'lesion')}, error {found.calibration_error:.3f}"
    draw_reliability(path, {title: bins})
    return True


def _listed(
    labels: Mapping[str, object], lesions: Sequence[Lesion] | None
) -> Iterator[tuple[str, Sequence[Lesion]]]:
    for label, score in labels.items():
        yield label, getattr(score, "lesion_list", None) or ()
    yield "", lesions or ()


def _class_names(scores: Scores) -> tuple[str, ...]:
    found = scores.lesion_classes
    return found.classes if found is not None and found.auc_lesions else ()


def _cells(lesion: Lesion, scores: Scores) -> list[object]:
    values = [getattr(lesion, name) for name in _FIELDS if name != "probabilities"]
    given = [lesion.probabilities.get(name) for name in _class_names(scores)]
    return [lesion.reference, lesion.predicted, *values, *given]


def _detections(scores: Scores) -> str:
    found = [(name, label.lesions) for name, label in scores.summary.items()]
    found.append((_ALL_CLASSES, scores.lesions))
    rows = [["lesions", "true", "pred.", "recall", "precision", "F1", "Dice", "error ml"]]
    for name, summary in found:
        if summary is not None and (summary.detection.reference or summary.detection.predicted):
            rows += _rows(name, summary)
    if len(rows) == 1:
        return ""
    notes = [
        f"{name}: lesions found in {each.found} of {counted(each.with_lesions, 'patient')} who "
        f"have some, predicted in {each.without_lesions - each.clear} of {each.without_lesions} "
        "who have none."
        for name, summary in found
        if summary is not None and (each := summary.by_patient) is not None
    ]
    return "\n".join(
        [aligned(rows, least=_LEAST), *(line for note in notes for line in _folded(note))]
    )


def _voxels(found: LesionSummary | None) -> str:
    """The table of voxels of all classes together."""
    if found is None or not found.voxels:
        return ""
    rows = [["voxels of lesions", *_HEADINGS.values()]]
    rows.append([_ALL_CLASSES, *(_mean(found.voxels.get(name), 3) for name in _HEADINGS)])
    spans = [_span(s.interval if (s := found.voxels.get(n)) else None, 2) for n in _HEADINGS]
    if any(each != "-" for each in spans):
        rows.append([_INTERVAL, *spans])
    return aligned(rows)


def _rows(name: str, summary: LesionSummary) -> list[list[str]]:
    detection = summary.detection
    means = [_mean(summary.dice, 3), _mean(summary.volume_error_ml, 2)]
    rows = [[shortened(name, _LABEL), *_rates(detection), *means]]
    if detection.intervals:
        intervals = [_span(detection.intervals.get(rate), 2) for rate in _RATES]
        spans = [
            _span(s.interval if s else None, d)
            for s, d in ((summary.dice, 2), (summary.volume_error_ml, 1))
        ]
        rows.append([_INTERVAL, "", "", *intervals, *spans])
    for size, each in summary.sizes.items():
        if each.reference or each.predicted:
            rows.append([f"  {size}", *_rates(each), "", ""])
    return rows


def _rates(found: Detection) -> list[str]:
    values = [getattr(found, rate) for rate in _RATES]
    return [str(found.reference), str(found.predicted), *(_number(v, 3) for v in values)]


def _classes(found: ClassSummary) -> str:
    rows = [["classes of lesions", "lesions", "accuracy", "balanced", "macro F1", "AUC"]]
    for name, each in (("in the reference", found.of_reference), ("found", found.of_detected)):
        detected = each is found.of_detected
        rows.append([name, str(each.lesions), *_measured(each)])
        rows[-1].append(_number(found.auc if detected else None, 3))
        if each.intervals:
            spans = [_span(each.intervals.get(measure), 2) for measure in MEASURES]
            last = _span(found.auc_interval if detected else None, 2)
            rows.append([_INTERVAL, "", *spans, last])
    if found.calibration_error is None:
        return aligned(rows)
    lesions = counted(found.auc_lesions, "found lesion")
    return (
        f"{aligned(rows)}\nCalibration error of the probabilities of {lesions}: "
        f"{found.calibration_error:.3f}"
    )


def _measured(found: Classification) -> list[str]:
    return [_number(getattr(found, measure), 3) for measure in MEASURES]


def _confusion(found: ClassSummary) -> str:
    width = min(_CLASSES // len(found.classes) - 2, _CLASS[1])
    if width < _CLASS[0]:
        return ""
    rows = [["reference", *(shortened(name, width) for name in found.classes), "missed"]]
    for name, counts, missed in zip(found.classes, found.confusion, found.missed, strict=True):
        rows.append([shortened(name, _LABEL), *map(str, counts), str(missed)])
    rows.append(["only predicted", *map(str, found.spurious), ""])
    return aligned(rows)


def _folded(text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > _WIDTH:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _mean(found: Statistic | None, decimals: int) -> str:
    return _number(None if found is None else found.mean, decimals)


def _span(found: Interval | None, decimals: int) -> str:
    # Numbers of lesions are not negative, so that a hyphen is clear, and shorter than a word.
    return "-" if found is None else "-".join(f"{value:.{decimals}f}" for value in found)
