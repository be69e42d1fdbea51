"""Lesions as connected components: which are covered, and which belong together one to one.

Lesions are connected through faces, edges and corners (26 neighbours; in 2D 8) and numbered from 1
in the order of their first voxels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from autoliver.artifacts import Record
from autoliver.datasets.lesions import connected_lesions
from autoliver.evaluation.metrics import Mask, crop_to_union
from autoliver.io.volume import has_no_thickness

Counts = npt.NDArray[np.int64]


class LesionCounts(Record, frozen=True, kw_only=True):
    """Numbers of lesions in the reference and in the prediction.

    Attributes:
        reference: Lesions of the reference.
        detected: Lesions of the reference that the prediction covers.
        predicted: Lesions of the prediction.
        confirmed: Lesions of the prediction that the reference covers.
    """

    reference: int
    detected: int
    predicted: int
    confirmed: int

    @property
    def recall(self) -> float:
        """Share of the reference's lesions that were detected; NaN if it has none."""
        return self.detected / self.reference if self.reference else np.nan

    @property
    def precision(self) -> float:
        """Share of the predicted lesions that are confirmed; NaN if none was predicted."""
        return self.confirmed / self.predicted if self.predicted else np.nan


class VoxelOverlap(Record, frozen=True, kw_only=True):
    """Numbers of voxels of lesions, whatever their class.

    Attributes:
        reference: Voxels of the reference.
        predicted: Voxels of the prediction.
        common: Voxels of both.
    """

    reference: int
    predicted: int
    common: int

    @classmethod
    def of(cls, prediction: Mask, reference: Mask) -> "VoxelOverlap":
        """Counts the voxels of two masks of one shape."""
        counts = (np.count_nonzero(m) for m in (reference, prediction, prediction & reference))
        theirs, ours, common = map(int, counts)
        return cls(reference=theirs, predicted=ours, common=common)

    def rates(self) -> dict[str, float]:
        """Returns the Dice, recall and precision that are defined."""
        shares = {
            "dice": (2 * self.common, self.predicted + self.reference),
            "recall": (self.common, self.reference),
            "precision": (self.common, self.predicted),
        }
        return {name: part / whole for name, (part, whole) in shares.items() if whole}


class Lesion(Record, frozen=True, kw_only=True):
    """One lesion: of the reference, with the predicted one that is matched to it, or of one alone.

    Attributes:
        reference: Number of the lesion in the reference; None if it was only predicted.
        predicted: Number of the lesion in the prediction; None if it was missed.
        reference_ml: Its volume in the reference; None in a 2D file as well.
        predicted_ml: Its volume in the prediction; None in a 2D file as well.
        reference_mm: Diameter of the sphere that has its volume in the reference; in a 2D file, of
            the disc that has its area.
        predicted_mm: The same of the predicted lesion.
        dice: Dice of the matched pair.
        volume_difference_ml: Volume of the predicted lesion minus that of the reference.
        volume_difference_percent: The same in percent of the reference; of the areas in a 2D file.
        reference_class: The label that most of its voxels have in the reference; empty if lesions
            have no classes.
        predicted_class: The same in the prediction.
        probabilities: Class -> probability of the predicted lesion, where they are known.
    """

    reference: int | None = None
    predicted: int | None = None
    reference_ml: float | None = None
    predicted_ml: float | None = None
    reference_mm: float | None = None
    predicted_mm: float | None = None
    dice: float | None = None
    volume_difference_ml: float | None = None
    volume_difference_percent: float | None = None
    reference_class: str = ""
    predicted_class: str = ""
    probabilities: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def matched(self) -> bool:
        """Whether the lesion is in the reference and in the prediction."""
        return self.reference is not None and self.predicted is not None


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """The lesions of two masks, and the voxels that they have in common.

    Attributes:
        reference: The number of the lesion of each voxel of the reference's mask, in the order of
            these voxels.
        predicted: The same of the prediction.
        reference_voxels: Voxels of each lesion of the reference, the first one at index 0.
        predicted_voxels: The same of the prediction.
        pairs: (n, 2): for each pair of lesions with common voxels, the index of the one in the
            reference and of the one in the prediction.
        common: Number of common voxels of each pair.
    """

    reference: npt.NDArray[np.int32]
    predicted: npt.NDArray[np.int32]
    reference_voxels: Counts
    predicted_voxels: Counts
    pairs: Counts
    common: Counts

    @classmethod
    def of(cls, prediction: Mask, reference: Mask) -> "Overlaps":
        """Finds the lesions of two masks of one shape, (z, y, x) or (y, x)."""
        theirs, there = _components(reference)
        ours, here = _components(prediction)
        first = theirs[prediction[reference]].astype(np.int64) - 1
        second = ours[reference[prediction]] - 1
        keys, common = np.unique(first * max(len(here), 1) + second, return_counts=True)
        return cls(
            reference=theirs,
            predicted=ours,
            reference_voxels=there,
            predicted_voxels=here,
            pairs=np.stack(np.divmod(keys, max(len(here), 1)), axis=1),
            common=common,
        )

    def counts(self, *, min_overlap: float = 0.0) -> LesionCounts:
        """Counts the lesions of each mask that the other covers, however many lesions do so.

        Args:
            min_overlap: A lesion counts as covered if more than this share of its voxels is.
        """
        covered = []
        for side, voxels in enumerate((self.reference_voxels, self.predicted_voxels)):
            found = np.bincount(self.pairs[:, side], weights=self.common, minlength=len(voxels))
            covered.append(int(np.count_nonzero(found > min_overlap * voxels)))
        return LesionCounts(
            reference=len(self.reference_voxels),
            detected=covered[0],
            predicted=len(self.predicted_voxels),
            confirmed=covered[1],
        )

    def matches(self, *, min_overlap: float = 0.0) -> dict[int, tuple[int, int]]:
        """Matches lesions one to one, so that the matched ones have the most voxels in common.

        Of several ways with equally many common voxels, one with the most matches is taken.

        Args:
            min_overlap: Two lesions can match if more than this share of the voxels of each is
                common.

        Returns:
            Index of the lesion in the reference -> that in the prediction, and their common voxels.
        """
        sizes = np.stack(
            [self.reference_voxels[self.pairs[:, 0]], self.predicted_voxels[self.pairs[:, 1]]]
        )
        able = np.flatnonzero((self.common > min_overlap * sizes).all(axis=0))
        found = {}
        for group in _groups(self.pairs[able]):
            for edge in able[group][_assigned(self.pairs[able[group]], self.common[able[group]])]:
                theirs, ours = (int(index) for index in self.pairs[edge])
                found[theirs] = (ours, int(self.common[edge]))
        return found


def match_lesions(prediction: Mask, reference: Mask, *, min_overlap: float = 0.0) -> LesionCounts:
    """Counts the lesions of each mask that the other covers, as `Overlaps.counts` does."""
    return Overlaps.of(*crop_to_union(prediction, reference)).counts(min_overlap=min_overlap)


def list_lesions(
    overlaps: Overlaps,
    *,
    spacing_mm: tuple[float, ...],
    min_overlap: float = 0.0,
    classes: tuple[Sequence[str], Sequence[str]] | None = None,
) -> tuple[Lesion, ...]:
    """Lists all lesions: those of the reference by number, then those that were only predicted.

    Args:
        overlaps: The lesions.
        spacing_mm: Spacing (z, y, x).
        min_overlap: As for `Overlaps.matches`.
        classes: The classes of the lesions of the reference and of those of the prediction; None
            if they have none.
    """
    matches = overlaps.matches(min_overlap=min_overlap)
    pairs: list[tuple[int | None, int | None, int]] = [
        (theirs, *matches.get(theirs, (None, 0)))
        for theirs in range(len(overlaps.reference_voxels))
    ]
    taken = {ours for ours, _ in matches.values()}
    pairs += [(None, i, 0) for i in range(len(overlaps.predicted_voxels)) if i not in taken]
    there, here = classes or ((), ())
    return tuple(
        Lesion(
            **_side(theirs, overlaps.reference_voxels, spacing_mm, side="reference"),
            **_side(ours, overlaps.predicted_voxels, spacing_mm, side="predicted"),
            **_compared(overlaps, theirs, ours, common=common, spacing_mm=spacing_mm),
            reference_class="" if theirs is None or not there else there[theirs],
            predicted_class="" if ours is None or not here else here[ours],
        )
        for theirs, ours, common in pairs
    )


def commonest(
    numbers: npt.NDArray[np.int32],
    values: npt.NDArray[np.integer],
    classes: Mapping[str, Sequence[int]],
    *,
    count: int,
) -> tuple[str, ...]:
    """Returns the class that most voxels of each lesion have; of equally many, the first class.

    Args:
        numbers: (n,): the number of each voxel's lesion, as in `Overlaps`.
        values: (n,): the value of each of these voxels in the label map.
        classes: Class -> its values.
        count: Number of lesions.
    """
    names = tuple(classes)
    voted = [numbers[np.isin(values, classes[name])] for name in names]
    votes = np.stack([np.bincount(each, minlength=count + 1)[1:] for each in voted])
    return tuple(names[int(best)] for best in votes.argmax(axis=0))


def diameter_mm(voxels: int, spacing_mm: tuple[float, ...]) -> float:
    """Returns the diameter of the sphere of a lesion's volume; in a 2D file of its area's disc."""
    if has_no_thickness(spacing_mm):
        return 2 * math.sqrt(voxels * math.prod(spacing_mm[1:]) / math.pi)
    return math.cbrt(6 * voxels * math.prod(spacing_mm) / math.pi)


def _components(mask: Mask) -> tuple[npt.NDArray[np.int32], Counts]:
    # Only the numbers of the mask's voxels are kept, since those of the whole image are large.
    image, count = connected_lesions(mask)
    numbers = image[mask]
    return numbers, np.bincount(numbers, minlength=count + 1)[1:]


def _groups(pairs: Counts) -> list[npt.NDArray[np.intp]]:
    """Splits pairs into groups without a common lesion; returns the indices of each group."""
    if not len(pairs):
        return []
    theirs, ours = pairs.T
    size = int(theirs.max()) + int(ours.max()) + 2
    edges = (np.ones(len(pairs)), (theirs, ours + int(theirs.max()) + 1))
    group = connected_components(coo_array(edges, shape=(size, size)), directed=False)[1][theirs]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _assigned(pairs: Counts, common: Counts) -> npt.NDArray[np.intp]:
    """Returns the indices of the pairs that the best assignment within a group keeps."""
    if len(pairs) == 1:
        return np.zeros(1, np.intp)
    rows, columns = (np.unique(side, return_inverse=True)[1] for side in pairs.T)
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    gain = np.zeros(shape)
    # One voxel more counts more than all matches together, so these decide only between equals.
    gain[rows, columns] = common * (min(shape) + 1.0) + 1.0
    place = np.full(shape, -1)
    place[rows, columns] = np.arange(len(pairs))
    chosen: npt.NDArray[np.intp] = place[linear_sum_assignment(gain, maximize=True)]
    return chosen[chosen >= 0]


def _side(
    index: int | None, voxels: Counts, spacing_mm: tuple[float, ...], *, side: str
) -> dict[str, Any]:
    if index is None:
        return {}
    size = int(voxels[index])
    flat = has_no_thickness(spacing_mm)
    return {
        side: index + 1,
        f"{side}_ml": None if flat else size * math.prod(spacing_mm) / 1000,
        f"{side}_mm": diameter_mm(size, spacing_mm),
    }


def _compared(
    overlaps: Overlaps,
    theirs: int | None,
    ours: int | None,
    *,
    common: int,
    spacing_mm: tuple[float, ...],
) -> dict[str, Any]:
    if theirs is None or ours is None:
        return {}
    there, here = int(overlaps.reference_voxels[theirs]), int(overlaps.predicted_voxels[ours])
    flat = has_no_thickness(spacing_mm)
    return {
        "dice": 2 * common / (there + here),
        "volume_difference_ml": None if flat else (here - there) * math.prod(spacing_mm) / 1000,
        "volume_difference_percent": 100 * (here - there) / there,
    }
