"""Does a label map fit its image as it is, or only when it is turned over?

A label map that lies over the structure it was drawn on covers voxels of like intensities. One that
is upside down covers anything. This tells the order of slices where names leave it open.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Axes = tuple[int, ...]

# A turned label map is taken only if intensities vary much less within its labels.
_CLEARLY = 0.6
# Intensities beyond these percentiles count as these, so that metal or vessels do not decide.
_RANGE = (1.0, 99.0)
_NAMES = {0: "slices", 1: "rows", 2: "columns"}


def fitting_turn(image: Array, label: Array, turns: tuple[Axes, ...]) -> Axes:
    """Returns the axes along which a label map has to be reversed so that it fits its image.

    Args:
        image: (z, y, x).
        label: (z, y, x).
        turns: Axes that may be reversed together.

    Returns:
        One of the turns; empty unless one fits clearly better than the label map as it is.
    """
    if not label.any():
        return ()
    low, high = np.percentile(image, _RANGE)
    grey = np.clip(image, low, high).astype(np.float32)
    as_it_is = spread(grey, label)
    spreads = {axes: spread(grey, np.flip(label, axes)) for axes in turns}
    best = min(spreads, key=spreads.__getitem__)
    return best if spreads[best] < _CLEARLY * as_it_is else ()


def spread(image: Array, label: Array) -> float:
    """Returns the mean variance of intensities within labels, weighted by their voxels.

    Args:
        image: (z, y, x).
        label: (z, y, x), with some voxel that is not 0.
    """
    where = label > 0
    values, kinds = image[where], label[where]
    counts = np.bincount(kinds).astype(np.float64)
    used = counts > 0
    sums = np.bincount(kinds, weights=values)[used]
    squares = np.bincount(kinds, weights=values.astype(np.float64) ** 2)[used]
    return float((squares - sums**2 / counts[used]).sum() / counts.sum())


def in_words(axes: Axes) -> str:
    """Names axes of (z, y, x) for messages."""
    return " and ".join(_NAMES[axis] for axis in axes)
