"""Weights of classes in the cross-entropy: as given, or by how rare their voxels are."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Labels
from autoliver.training.objectives.target import class_table

if TYPE_CHECKING:
    from autoliver.training.options import TrainingOptions
    from autoliver.training.patches.sampling import TrainingCase

# A rarer class than this, relative to the most frequent one, counts no more than it: patches show
# foreground far more often than scans do, and a few voxels are not to decide the gradient.
MOST_RATIO = 100.0


def class_weights(
    options: "TrainingOptions", labels: Labels, cases: "Sequence[TrainingCase]"
) -> tuple[float, ...] | None:
    """The weight of each class, background first, with a mean of 1; None if all count alike.

    "balanced" weights are proportional to 1 / frequency among the voxels of the training cases,
    ignored ones aside; the largest is at most `MOST_RATIO` times the smallest.

    Args:
        options: The training's options.
        labels: The labels, which are not regions.
        cases: The training cases; they are read only for "balanced".
    """
    asked = options.class_weights
    if asked is None:
        return None
    weights = np.array(asked, float) if asked != "balanced" else _balanced(_count(labels, cases))
    return tuple((weights / weights.mean()).tolist())


def describe_weights(weights: Sequence[float] | None, labels: Labels) -> str:
    """Says in a further line how much each class counts; empty if all count alike."""
    if weights is None:
        return ""
    each = ", ".join(f"{n} {w:.3g}" for n, w in zip(labels.values, weights, strict=True))
    return f"\nWeights in the cross-entropy: {each}"


def _count(labels: Labels, cases: "Iterable[TrainingCase]") -> npt.NDArray[np.int64]:
    """The number of voxels of each class in all cases."""
    table, classes = class_table(labels), len(labels.values)
    counts = np.zeros(classes, np.int64)
    for case in cases:
        for z in range(0 if case.label is None else case.image.shape[1]):
            if case.label is not None:
                found = table[case.label[:, z : z + 1].astype(np.int32) + 1]
                inside = found[(found >= 0) & (found < classes)]
                counts += np.bincount(inside, minlength=classes)
    return counts


def _balanced(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    shares = counts / max(1, counts.max())
    weights: npt.NDArray[np.float64] = 1.0 / np.maximum(shares, 1.0 / MOST_RATIO)
    return weights
