"""Label maps whose values are not those of the labels: scaled, or said by the user."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.errors import DatasetError, OptionError
from autoliver.values import first_few

# Value in a file -> label; NaN is a value as well.
Values = tuple[tuple[float, int], ...]

# More values than these are those of an image or of an interpolation.
MOST_LEVELS = 256
# Largest distance of a scaled value from its place, as a share of the highest: 127 for 127.5.
_OFF = 0.004
_SHOWN = 5


def parse_values(texts: Sequence[str]) -> Values:
    """Reads what the user says of values, such as 7=0 or nan=0.

    Raises:
        OptionError: A text has another form, or a value is named twice.
    """
    found: list[tuple[float, int]] = []
    for text in texts:
        old, _, new = text.partition("=")
        try:
            pair = float(old), int(new)
        except ValueError:
            pair = math.inf, 0
        if math.isinf(pair[0]) or pair[1] < 0:
            raise OptionError(
                f"--value {text}: expected a value in the files and a label, such as 7=0.",
                hint="The second is a whole number that dataset.json knows.",
            )
        if any(_same(pair[0], value) for value, _ in found):
            raise OptionError(f"--value {old} is given twice.", hint="Give it once.")
        found.append(pair)
    return tuple(found)


def levels_of(array: npt.NDArray[Any]) -> tuple[float, ...]:
    """Returns the values in a label file; empty if there are too many."""
    levels = np.unique(array)
    return tuple(map(float, levels)) if len(levels) <= MOST_LEVELS else ()


def scaled_values(levels: Iterable[float], allowed: Iterable[int]) -> Values:
    """Returns which values are those of labels times a constant.

    Args:
        levels: The values of all files with wrong ones.
        allowed: The values of labels, 0 included.

    Returns:
        Value -> label; empty unless there are as many as labels, and at their places.
    """
    found, labels = sorted({0.0, *levels}), sorted({0, *allowed})
    if len(found) != len(labels) or found[0] < 0 or not math.isfinite(found[-1]):
        return ()
    step = found[-1] / labels[-1]
    near = all(
        abs(value - step * label) <= _OFF * found[-1]
        for value, label in zip(found, labels, strict=True)
    )
    return tuple(zip(found, labels, strict=True)) if near else ()


def with_values(
    array: npt.NDArray[Any], values: Values, allowed: Iterable[int]
) -> tuple[npt.NDArray[np.uint16], str]:
    """Gives a label map the values of labels.

    Args:
        array: The values in the file, (z, y, x).
        values: What values mean; those that are not named keep theirs.
        allowed: The values of labels.

    Returns:
        The label map, and in words what was done.

    Raises:
        DatasetError: Some values are those of no label.
    """
    known = set(allowed)
    result = np.zeros(array.shape, np.uint16)
    done: list[str] = []
    odd: list[str] = []
    levels, counts = np.unique(array, return_counts=True)
    named = [(value, new) for value, new in values if new in known]
    for level, count in zip(levels.tolist(), counts.tolist(), strict=True):
        new = next((label for value, label in named if _same(level, value)), level)
        if new not in known:
            odd.append(f"{level:g} ({count} voxels)")
            continue
        where = np.isnan(array) if level != level else array == level
        result[where] = int(new)
        if new != level:
            done.append(f"{level:g} to {new:g}")
    if odd:
        raise DatasetError(
            f"label map holds {first_few(odd, _SHOWN)}, and nothing says which labels these are",
            hint=f"Say which label each of them is: --value {odd[0].split()[0]}=LABEL, with the "
            "number of the label, or 0 for background.",
        )
    return result, f"values {first_few(done, _SHOWN)}"


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
