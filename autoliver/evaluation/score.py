"""Scores predictions against references, given as arrays, files or folders."""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError, OptionError
from autoliver.evaluation import metrics
from autoliver.evaluation.chaos import POINTS, check_organs, organ_of, points
from autoliver.evaluation.lesions import Lesion, Overlaps, VoxelOverlap, commonest, list_lesions
from autoliver.evaluation.pairs import Pairs, find_pairs
from autoliver.evaluation.results import (
    COLUMNS,
    SURFACE_METRICS,
    CaseScores,
    MetricOptions,
    Score,
    Scores,
)
from autoliver.io.files import read_label
from autoliver.io.grids import compare_grids
from autoliver.io.volume import Geometry, Volume
from autoliver.parallel import CaseMapper
from autoliver.planning.nonzero import Box, bounding_box
from autoliver.values import counted, first_few

_MOST_VALUES = 200  # files with more values that no label has are hardly label maps
_SHOWN = 5  # names or values in one message
_MOST_SEARCHED = 65_535  # the search for values takes memory for each up to the highest


def score_case(
    prediction: Volume,
    reference: Volume,
    *,
    labels: Labels,
    options: MetricOptions,
    name: str,
    unscored: Collection[str] = (),
) -> CaseScores:
    """Scores the labels of one prediction except the background; a region is a union of values.

    Voxels where the reference has the ignore value count in neither mask.

    Args:
        prediction: (1, z, y, x) integers.
        reference: (1, z, y, x) integers on the same grid.
        labels: Names and values of the labels.
        options: The metrics to compute, and their settings.
        name: The case's name, for messages.
        unscored: Labels that are left out.

    Raises:
        DatasetError: The grids differ, or one of them is an image.
    """
    _check_grids(prediction.geometry, reference.geometry, name)
    predicted, actual = prediction.array[0], reference.array[0]
    unknown = {
        side: _values(array) - labels.allowed
        for side, array in (("prediction", predicted), ("reference", actual))
    }
    for side, odd in unknown.items():
        _refuse_image(odd, f"{name}: the {side}")
    pairs = _Pairs.of(predicted, actual, labels)
    scores = {}
    for label, values in labels.foreground.items():
        if label in unscored:
            continue
        scores[label] = _score(
            *pairs.masks(values), label=label, geometry=reference.geometry, options=options
        )
    warnings = [
        f"{name}: the {side} holds values that no label has: {first_few(sorted(odd), _SHOWN)}."
        for side, odd in unknown.items()
        if odd
    ]
    classes = options.lesion_classes(labels)
    lesions = voxels = None
    if classes and not classes.keys() & set(unscored):
        values, spacing_mm = _union(classes), reference.geometry.spacing_mm
        maps, pair = pairs.maps(values), pairs.masks(values)
        lesions = _named_lesions(maps, pair, classes, spacing_mm=spacing_mm, options=options)
        voxels = VoxelOverlap.of(*pair)
    return CaseScores(
        name=name,
        labels=scores,
        warnings=tuple(warnings),
        lesions=lesions,
        lesion_voxels=voxels,
    )


def score_folder(
    prediction_folder: Path,
    reference_folder: Path,
    *,
    labels: Labels | None = None,
    options: MetricOptions | None = None,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[CaseScores]], Iterable[CaseScores]] | None = None,
) -> Scores:
    """Scores a folder of predictions against a folder of references.

    Args:
        prediction_folder: A folder of files with the same names as the references, whose endings
            may differ; or a single file.
        reference_folder: The folder of label files; or a single file.
        labels: Names and values of the labels; None: "label_<value>" for each value that the
            references contain.
        options: The metrics to compute, and their settings; None: the default options.
        executor: Runs the scoring of cases; None: in this process, one after another.
        progress: Wraps the results as they arrive, e.g. tqdm; None: no progress.

    Raises:
        DatasetError: As in `find_pairs` and `score_case`, or a file cannot be read.
        OptionError: As in `score_files`.
    """
    pairs = find_pairs(prediction_folder, reference_folder)
    labels = labels or discover_labels(pairs.references, executor=executor)
    return score_pairs(pairs, labels=labels, options=options, executor=executor, progress=progress)


def score_pairs(
    pairs: Pairs,
    *,
    labels: Labels,
    options: MetricOptions | None = None,
    unscored: Mapping[str, Collection[str]] | None = None,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[CaseScores]], Iterable[CaseScores]] | None = None,
) -> Scores:
    """Scores pairs, and warns of those that were left out or compared with themselves.

    The arguments and errors are those of `score_files`.
    """
    scores = score_files(
        pairs.files,
        labels=labels,
        options=options,
        unscored=unscored,
        executor=executor,
        progress=progress,
    )
    return scores.replace(warnings=(*_notes(pairs, scores), *scores.warnings))


def _notes(pairs: Pairs, scores: Scores) -> Iterable[str]:
    files = pairs.files
    same = [name for name, (one, other) in files.items() if one.samefile(other)]
    equal = [case.name for case in scores.cases if case.name not in same and _perfect(case)]
    total = counted(len(files) + len(pairs.missing), "reference")
    for label in scores.labels.foreground:
        left = [case.name for case in scores.cases if label not in case.labels]
        if left:
            yield (
                f"{label} is not scored in {counted(len(left), 'case')}, where it is not annotated "
                f"or a pseudo-label: {first_few(left, _SHOWN)}."
            )
    for names, text in (
        (pairs.extra, f"Predictions without a reference were left out ({len(pairs.extra)})"),
        (pairs.missing, f"{len(pairs.missing)} of {total} without a prediction were left out"),
        (same, f"Prediction and reference are the same file ({len(same)})"),
        (equal, f"Prediction and reference are equal in every voxel, as copies are ({len(equal)})"),
    ):
        if names:
            yield f"{text}: {first_few(names, _SHOWN)}."


def _perfect(case: CaseScores) -> bool:
    """Whether a prediction equals its reference, as only a copy does, and is not empty."""
    found = [
        value
        for score in case.labels.values()
        if (value := score.dice if score.dice is not None else score.iou) is not None
    ]
    return bool(found) and all(value == 1.0 for value in found)


def score_files(
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    labels: Labels,
    options: MetricOptions | None = None,
    unscored: Mapping[str, Collection[str]] | None = None,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[CaseScores]], Iterable[CaseScores]] | None = None,
) -> Scores:
    """Scores pairs of label files.

    Args:
        pairs: Case name -> (prediction, reference).
        labels: Names and values of the labels.
        options: As in `score_folder`.
        unscored: Case name -> labels that are left out in it; None: all labels are scored.
        executor: As in `score_folder`.
        progress: As in `score_folder`.

    Raises:
        DatasetError: As in `score_case`, or a file cannot be read.
        OptionError: A label whose lesions should be counted does not exist; or no label is an organ
            that the CHAOS challenge scores.
    """
    options = options or MetricOptions()
    cases = score_each(
        pairs,
        labels=labels,
        options=options,
        unscored=unscored,
        executor=executor,
        progress=progress,
    )
    scores = Scores.of(cases, labels=labels, options=options)
    return scores.replace(warnings=tuple(text for case in cases for text in case.warnings))


def score_each(
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    labels: Labels,
    options: MetricOptions,
    unscored: Mapping[str, Collection[str]] | None = None,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[CaseScores]], Iterable[CaseScores]] | None = None,
) -> tuple[CaseScores, ...]:
    """Scores pairs of label files, each by itself.

    The arguments and errors are those of `score_files`.
    """
    unknown = sorted(set(options.lesion_labels or ()) - labels.foreground.keys())
    if unknown:
        raise OptionError(
            f"--lesion-labels: there is no label '{unknown[0]}'.",
            hint=f"Choose from {', '.join(labels.foreground)}.",
        )
    if options.chaos:
        check_organs(labels.foreground)
    work = functools.partial(_score_pair, labels=labels, options=options, unscored=unscored or {})
    results: Iterable[CaseScores] = (executor.map if executor else map)(work, sorted(pairs.items()))
    return tuple(progress(results) if progress else results)


def discover_labels(
    references: Sequence[Path],
    *,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[frozenset[int]]], Iterable[frozenset[int]]] | None = None,
) -> Labels:
    """Makes labels named "label_<value>" for the values that label files contain.

    Args:
        references: The label files.
        executor: Runs the reading of the files; None: in this process, one after another.
        progress: Wraps the values of each file as they arrive, e.g. tqdm; None: no progress.

    Raises:
        DatasetError: All files contain only background, one is an image, or cannot be read.
    """
    results: Iterable[frozenset[int]] = (executor.map if executor else map)(
        _values_of_file, references
    )
    found = list(progress(results) if progress else results)
    for path, each in zip(references, found, strict=True):
        _refuse_image(each, f"{path}: the reference")
    values = sorted(frozenset[int]().union(*found) - {0})
    if not values:
        raise DatasetError(
            f"{references[0].parent}: {counted(len(references), 'reference')} without any label.",
            hint="Name the dataset, so that its labels are known.",
        )
    return Labels(values={"background": (0,), **{f"label_{v}": (v,) for v in values}})


def _score_pair(
    item: tuple[str, tuple[Path, Path]],
    *,
    labels: Labels,
    options: MetricOptions,
    unscored: Mapping[str, Collection[str]],
) -> CaseScores:
    name, (prediction, reference) = item
    volumes = (read_label(prediction), read_label(reference))
    scores = score_case(
        *volumes, labels=labels, options=options, name=name, unscored=unscored.get(name, ())
    )
    return scores.replace(prediction=str(prediction), reference=str(reference))


def _score(
    prediction: metrics.Mask,
    reference: metrics.Mask,
    *,
    label: str,
    geometry: Geometry,
    options: MetricOptions,
) -> Score:
    wanted = options.wanted
    prediction, reference = metrics.crop_to_union(prediction, reference)
    found = _overlap_values(prediction, reference, geometry)
    if wanted.intersection(SURFACE_METRICS):
        found |= _surface_values(prediction, reference, geometry=geometry, options=options)
    if options.chaos and organ_of(label):
        found |= _chaos_points(found, prediction, reference)
    lesions = listed = None
    if "lesions" in wanted and options.counts_lesions(label):
        overlaps, least = Overlaps.of(prediction, reference), options.lesion_overlap
        lesions = overlaps.counts(min_overlap=least)
        listed = list_lesions(overlaps, spacing_mm=geometry.spacing_mm, min_overlap=least)
        found |= {"lesion_recall": lesions.recall, "lesion_precision": lesions.precision}
        found |= _matched_values(listed)
    values: dict[str, Any] = {
        field: _defined(value) for field, value in found.items() if COLUMNS[field].metric in wanted
    }
    return Score(
        voxels=int(np.count_nonzero(prediction)),
        reference_voxels=int(np.count_nonzero(reference)),
        lesions=lesions,
        lesion_list=listed,
        **values,
    )


def _chaos_points(
    found: Mapping[str, float], prediction: metrics.Mask, reference: metrics.Mask
) -> dict[str, float]:
    """The points of an organ; none if one side lacks it, nothing to score if both do."""
    here, there = prediction.any(), reference.any()
    if here and there:
        return points(found)
    return dict.fromkeys((*POINTS, "chaos"), 0.0 if here or there else math.nan)


def _matched_values(lesions: Sequence[Lesion]) -> dict[str, float]:
    dice = [lesion.dice for lesion in lesions if lesion.dice is not None]
    theirs = sum(lesion.reference is not None for lesion in lesions)
    ours = sum(lesion.predicted is not None for lesion in lesions)
    return {
        "matched_recall": len(dice) / theirs if theirs else math.nan,
        "matched_precision": len(dice) / ours if ours else math.nan,
        "matched_f1": 2 * len(dice) / (theirs + ours) if lesions else math.nan,
        "matched_dice": math.fsum(dice) / len(dice) if dice else math.nan,
    }


def _named_lesions(
    maps: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    lesions: Sequence[metrics.Mask],
    classes: Mapping[str, tuple[int, ...]],
    *,
    spacing_mm: tuple[float, ...],
    options: MetricOptions,
) -> tuple[Lesion, ...]:
    """Lists the lesions of all classes together, each with its commonest class.

    Args:
        maps: The predicted and the reference's label map (z, y, x).
        lesions: Where they have lesions.
        classes: Name -> values of each class.
        spacing_mm: Spacing (z, y, x).
        options: The metrics to compute, and their settings.
    """
    box = bounding_box(lesions[0] | lesions[1])
    masks, arrays = [mask[box] for mask in lesions], [array[box] for array in maps]
    overlaps = Overlaps.of(*masks)
    values = [array[mask] for array, mask in zip(arrays, masks, strict=True)]
    here, there = len(overlaps.predicted_voxels), len(overlaps.reference_voxels)
    predicted = commonest(overlaps.predicted, values[0], classes, count=here)
    actual = commonest(overlaps.reference, values[1], classes, count=there)
    return list_lesions(
        overlaps,
        spacing_mm=spacing_mm,
        min_overlap=options.lesion_overlap,
        classes=(actual, predicted),
    )


def _union(labels: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({value for values in labels.values() for value in values}))


def _overlap_values(
    prediction: metrics.Mask, reference: metrics.Mask, geometry: Geometry
) -> dict[str, float]:
    volumes = [metrics.volume_ml(mask, geometry.spacing_mm) for mask in (prediction, reference)]
    return {
        "dice": metrics.dice(prediction, reference),
        "iou": metrics.iou(prediction, reference),
        "recall": metrics.recall(prediction, reference),
        "precision": metrics.precision(prediction, reference),
        "ravd_percent": metrics.ravd_percent(prediction, reference),
        "volume_ml": volumes[0],
        "reference_volume_ml": volumes[1],
        "volume_difference_ml": volumes[0] - volumes[1],
    }


def _surface_values(
    prediction: metrics.Mask,
    reference: metrics.Mask,
    *,
    geometry: Geometry,
    options: MetricOptions,
) -> dict[str, float]:
    missed = reference.any() and not prediction.any()
    if missed and options.missing_distance == "diagonal":
        # Between voxel centres, like all distances here; an axis of one slice adds nothing.
        steps = np.subtract(geometry.shape_zyx, 1)
        diagonal = math.hypot(*np.multiply(steps, geometry.spacing_mm))
        fields = ("assd_mm", "mad_mm", "mssd_mm", "hd95_mm")
        return {**dict.fromkeys(fields, diagonal), "nsd": 0.0}
    distances = metrics.surface_distances(
        prediction,
        reference,
        spacing_mm=geometry.spacing_mm,
        connectivity=options.connectivity,
    )
    return {
        "assd_mm": metrics.assd(distances),
        "mad_mm": metrics.mad(distances),
        "mssd_mm": metrics.mssd(distances),
        "hd95_mm": metrics.hd95(distances),
        "nsd": metrics.nsd(distances, tolerance_mm=options.nsd_tolerance_mm),
    }


def _defined(value: float) -> float | None:
    # JSON has neither NaN nor infinity.
    return float(value) if math.isfinite(value) else None


def _check_grids(prediction: Geometry, reference: Geometry, name: str) -> None:
    for difference in compare_grids(prediction, reference):
        if not difference.rounding:
            first, second = difference.values()
            raise DatasetError(
                f"{name}: prediction and reference have different grids: {difference.what} "
                f"{first} in the prediction, {second} in the reference.",
                hint="Check that they belong together, or resample one to the other's grid.",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pairs:
    """Two label maps, of which each label is looked at where it is.

    Attributes:
        predicted: The predicted label map (z, y, x).
        actual: The reference's.
        boxes: Value -> the box around its voxels in both; a value that none of them has is missing.
        ignore: The value whose voxels in the reference do not count; None: all do.
    """

    predicted: npt.NDArray[Any]
    actual: npt.NDArray[Any]
    boxes: dict[int, Box]
    ignore: int | None

    @classmethod
    def of(cls, predicted: npt.NDArray[Any], actual: npt.NDArray[Any], labels: Labels) -> "_Pairs":
        """Finds all labels in one pass over each label map."""
        values = sorted({value for each in labels.foreground.values() for value in each})
        if values and 0 < values[0] <= values[-1] <= _MOST_SEARCHED:
            found = [
                ndimage.find_objects(each, max_label=values[-1]) for each in (predicted, actual)
            ]
            boxes = {v: [each[v - 1] for each in found if each[v - 1]] for v in values}
        else:
            boxes = {v: [tuple(slice(0, size) for size in actual.shape)] for v in values}
        joined = {value: _around(each) for value, each in boxes.items() if each}
        return cls(predicted=predicted, actual=actual, boxes=joined, ignore=labels.ignore)

    def maps(self, values: Iterable[int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Returns views of both label maps: the box of some values, and a margin in the image.

        By the margin, a side of the box that is no edge of the image shows background.
        """
        inner = [self.boxes[value] for value in values if value in self.boxes]
        if not inner:
            return self.predicted[:0], self.actual[:0]
        box = tuple(slice(max(each.start - 1, 0), each.stop + 1) for each in _around(inner))
        return self.predicted[box], self.actual[box]

    def masks(self, values: tuple[int, ...]) -> tuple[metrics.Mask, metrics.Mask]:
        """Returns where both label maps have one of some values, in the box of `maps`."""
        predicted, actual = self.maps(values)
        found = _mask(predicted, values), _mask(actual, values)
        if self.ignore is not None:
            counted = actual != self.ignore
            found = found[0] & counted, found[1] & counted
        return found


def _around(boxes: Sequence[Box]) -> Box:
    """The box around boxes; there is at least one."""
    z, y, x = (
        slice(min(each.start for each in axis), max(each.stop for each in axis))
        for axis in zip(*boxes, strict=True)
    )
    return z, y, x


def _mask(array: npt.NDArray[Any], values: tuple[int, ...]) -> metrics.Mask:
    mask: metrics.Mask = array == values[0]
    for value in values[1:]:
        mask |= array == value
    return mask


def _values(array: npt.NDArray[Any]) -> frozenset[int]:
    # Every value occurs at the start of a row or where a row changes. In a label map these are few
    # voxels, so this is ten times as fast as sorting all of them.
    changes = array[..., 1:][array[..., 1:] != array[..., :-1]]
    return frozenset(np.unique(np.concatenate([array[..., 0].ravel(), changes])).tolist())


def _refuse_image(values: frozenset[int], what: str) -> None:
    """Refuses what holds too many values for a label map.

    Args:
        values: Those that are not known to be labels.
        what: The file, as the beginning of a sentence.
    """
    if len(values) > _MOST_VALUES:
        raise DatasetError(
            f"{what} holds {len(values):,} values from {min(values)} to {max(values)}: it is an "
            "image, expected a label map.",
            hint="Give the folder of the label maps; those of a dataset are in labelsTr or labels.",
        )


def _values_of_file(path: Path) -> frozenset[int]:
    return _values(read_label(path).array)
