"""The values of a label map: which there are, and whether they can be those of labels."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.errors import DatasetError
from autoliver.values import first_few

Array = npt.NDArray[Any]

_SHOWN = 5
# In label maps hardly any voxel has another value than the one before it in its row; in noise and
# in images with few grey values, most have. A new network may find noise of a few labels.
_SOME_VALUES, _RESTLESS = 20, 0.5


def values_of(array: Array) -> frozenset[int]:
    """Returns the values of a label map (.., x).

    Every value occurs at the start of a row or where a row changes. In a label map these are few
    voxels, so this is ten times as fast as sorting all of them.
    """
    changes = array[..., 1:][array[..., 1:] != array[..., :-1]]
    return frozenset(np.unique(np.concatenate([array[..., 0].ravel(), changes])).tolist())


def refuse_image(array: Array, values: Collection[int], what: str, *, most: int) -> None:
    """Refuses an image, or noise, in the place of a label map.

    Args:
        array: The voxels (.., x).
        values: Those of its values that are not known to be labels.
        what: The file, as the beginning of a sentence.
        most: How many of these values a label map may have.

    Raises:
        DatasetError: It has a value that no label can have, or more values than that; or more than
            20, and half of the voxels have another value than the one before them.
    """
    if values and min(values) < 0:
        raise DatasetError(
            f"{what} holds the value {min(values)}, expected label numbers from 0.",
            hint="Correct the label map; give the folder of the label maps, not of the images.",
        )
    several = len(values) > _SOME_VALUES
    if len(values) <= most and not (several and _restlessness(array) > _RESTLESS):
        return
    raise DatasetError(
        f"{what} holds {len(values):,} values from {min(values)} to {max(values)}: it is an image, "
        "expected a label map.",
        hint="Give the folder of the label maps; those of a dataset are in labelsTr or labels.",
    )


def _restlessness(array: Array) -> float:
    """The part of voxels whose value differs from the one before it in the row."""
    return float((array[..., 1:] != array[..., :-1]).mean()) if array.shape[-1] > 1 else 0.0


def refuse_other_values(array: Array, allowed: Collection[int], path: str | Path) -> None:
    """Refuses a label map of which a value belongs to no label.

    Args:
        array: Its voxels (.., x).
        allowed: The values of all labels.
        path: Its file, for the message.

    Raises:
        DatasetError: There is such a value.
    """
    if odd := sorted(values_of(array) - set(allowed)):
        known = ", ".join(map(str, sorted(allowed)))
        raise DatasetError(
            f"{path} holds {first_few(odd, _SHOWN)}, expected values of labels: {known}.",
            hint="Correct the label map, or add the value to the labels in dataset.json.",
        )
