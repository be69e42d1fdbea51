"""Which labels are lesions and which are classes of lesions; connected lesions in a label map."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

# Tumours, whose pieces are counted one by one. Cysts and benign lesions are not among them.
_TUMOUR = r"tumou?r|lesion|cancer|metasta"
# Diagnoses. A label with another name may be a part of a lesion, such as "enhancing tumour".
_SHORT = r"(?<![a-z])(?:cysts?|icc|fnh|bclm|crlm)(?![a-z])"
_DIAGNOSIS = rf"metasta|hcc|ha?emangioma|carcinoma|adenoma|abscess|nodular hyperplasia|{_SHORT}"
_TUMOURS = re.compile(_TUMOUR, re.IGNORECASE)
_DIAGNOSES = re.compile(_DIAGNOSIS, re.IGNORECASE)
_LESIONS = re.compile(f"{_TUMOUR}|{_DIAGNOSIS}", re.IGNORECASE)


def is_tumour(label: str) -> bool:
    """Whether the pieces of a label are tumours that a score counts: tumour, lesion, cancer, ..."""
    return _TUMOURS.search(label) is not None


def is_lesion(label: str) -> bool:
    """Whether a label lies inside an organ: a tumour, or a cyst, HCC, haemangioma, ..."""
    return _LESIONS.search(label) is not None


def lesion_classes(
    labels: Mapping[str, Sequence[int]], names: Collection[str] | None
) -> dict[str, int]:
    """Returns the labels that are classes of lesions, of which each lesion has one.

    Args:
        labels: Name -> values of the foreground labels.
        names: The `lesion_class_names` of dataset.json; None if it has none. Without them, labels
            of a single value are classes if their names are those of lesions, and at least two of
            these are diagnoses (cyst, HCC, metastasis, ...): "tumour" beside "cyst" is none, and
            neither are the parts of a tumour.

    Returns:
        Name -> value; empty if there are fewer than two, since then there is nothing to tell apart.
    """
    single = {name: values[0] for name, values in labels.items() if len(values) == 1}
    if names is not None:
        found = {name: value for name, value in single.items() if name in names}
        return found if len(found) > 1 else {}
    if sum(_DIAGNOSES.search(name) is not None for name in single) < 2:
        return {}
    return {name: value for name, value in single.items() if is_lesion(name)}


def connected_lesions(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    """Numbers the connected lesions of a mask; voxels are neighbours across corners as well.

    Args:
        mask: Where there are lesions, (z, y, x) or (y, x).

    Returns:
        The number of the lesion in each voxel, from 1 in the order of the array, 0 outside, and the
        number of lesions.
    """
    neighbours = np.ones((3,) * mask.ndim)
    numbers, count = ndimage.label(mask, structure=neighbours, output=np.int32)
    return numbers, int(count)


class MixedLesion(NamedTuple):
    """A connected lesion with voxels of several classes.

    Attributes:
        number: Its number among the connected lesions.
        voxels: Value of a class -> its voxels in the lesion.
        centre: Voxel in its middle, (z, y, x).
    """

    number: int
    voxels: dict[int, int]
    centre: tuple[int, int, int]


def mixed_lesions(array: npt.NDArray[Any], values: Collection[int]) -> list[MixedLesion]:
    """Finds the connected lesions that have voxels of several classes.

    Args:
        array: A label map (z, y, x).
        values: The values of the classes.
    """
    mask = np.isin(array, list(values))
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return []
    # Most of an abdomen is no lesion.
    box = boxes[0]
    inside = array[box]
    numbers, count = connected_lesions(mask[box])
    held = {value: np.bincount(numbers[inside == value], minlength=count + 1) for value in values}
    found = []
    for number in range(1, count + 1):
        voxels = {int(value): int(n[number]) for value, n in held.items() if n[number]}
        if len(voxels) > 1:
            centre = np.argwhere(numbers == number).mean(0)
            z, y, x = (round(c) + part.start for c, part in zip(centre, box, strict=True))
            found.append(MixedLesion(number, voxels, (z, y, x)))
    return found
