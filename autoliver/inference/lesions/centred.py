"""Windows that are centred on given lesions, for networks that only tell the class of a patch."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

from autoliver.datasets.lesions import connected_lesions
from autoliver.inference.roi import Window
from autoliver.preprocessing.case import CaseProperties


def windows_on(
    lesions: npt.NDArray[np.bool_],
    properties: CaseProperties,
    patch_shape: tuple[int, ...],
    padded: Sequence[int],
) -> list[Window]:
    """Places windows on lesions: as few as cover each, with its middle in the middle of them.

    Args:
        lesions: (z, y, x) on the image's grid; what is outside of the case's crop is left out.
        properties: How the case lies on the network's grid.
        patch_shape: 2 or 3 values; with 2 every z slice of a lesion has windows of its own.
        padded: Shape (z, y, x) of the network's grid, padded where the patch is larger.

    Returns:
        Windows on the padded grid; empty without lesions.
    """
    turned = properties.reorientation.array(lesions).transpose(properties.transpose_forward)
    cropped = turned[tuple(slice(*ends) for ends in properties.box)]
    scales = np.array(properties.shape_zyx) / cropped.shape
    before = [(wide - size) // 2 for wide, size in zip(padded, properties.shape_zyx, strict=True)]
    found: dict[tuple[int, ...], Window] = {}
    for box in find_objects(connected_lesions(cropped)[0]):
        ends = [
            (part.start * scale + more, part.stop * scale + more)
            for part, scale, more in zip(box, scales, before, strict=True)
        ]
        axes = len(patch_shape)
        starts = [
            _starts(*each, patch, size)
            for each, patch, size in zip(ends[-axes:], patch_shape, padded[-axes:], strict=True)
        ]
        slices = [_slices(*ends[0], padded[0])] if axes == 2 else []
        for place in itertools.product(*slices, *starts):
            parts = zip(place[-axes:], patch_shape, strict=True)
            boxes = [slice(start, start + size) for start, size in parts]
            found[place] = (*place[:-axes], *boxes)
    return list(found.values())


def _slices(low: float, high: float, size: int) -> list[int]:
    """The slices that a lesion is in; at least one."""
    first = min(math.floor(low), size - 1)
    return list(range(first, max(first + 1, min(math.ceil(high), size))))


def _starts(low: float, high: float, patch: int, size: int) -> list[int]:
    """Where the windows of a lesion begin along an axis."""
    number = max(1, math.ceil((high - low) / patch))
    centres = [low + (high - low) * (2 * i + 1) / (2 * number) for i in range(number)]
    return [min(max(round(centre - patch / 2), 0), size - patch) for centre in centres]
