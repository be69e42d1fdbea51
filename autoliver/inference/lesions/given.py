"""Lesions that are given by a label map, so that only their class is predicted."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoliver.errors import OptionError
from autoliver.inference.clean import mask_of
from autoliver.inference.lesions.vote import LabelArray, VoteOptions
from autoliver.io.files import read_label
from autoliver.io.grids import refuse_other_grid
from autoliver.io.volume import Geometry

Mask = npt.NDArray[np.bool_]

_log = logging.getLogger(__name__)
_SHOWN = 6  # values that are listed in a message


def given_lesions(path: Path, image: Geometry, classes: Mapping[str, int]) -> Mask:
    """Reads where the lesions of a case are.

    Args:
        path: A label map; lesions are the voxels with the value of any class.
        image: The grid of the case's image.
        classes: Class -> value.

    Returns:
        A mask (z, y, x).

    Raises:
        DatasetError: The file cannot be read or lies on another grid.
    """
    found = read_label(path)
    refuse_other_grid(found.geometry, image, what=f"{path} with the lesions", of="the image")
    mask = mask_of(found.array[0], list(classes.values()))
    if not mask.any() and found.array.any():
        held = ", ".join(str(value) for value in np.unique(found.array)[:_SHOWN])
        wanted = ", ".join(f"{value} ({name})" for name, value in classes.items())
        _log.warning(
            "%s: it holds no lesion: its values are %s, those of lesions %s.", path, held, wanted
        )
    return mask


def without_lesions(model: str) -> OptionError:
    """Returns the error of a classifier that is not told where lesions are."""
    return OptionError(
        f"{model} only tells the class of lesions (--task classify): it has to be told where they "
        "are.",
        hint="Give a folder with a label map of each case: "
        "autoliver predict -i IN -o OUT --lesions FOLDER",
    )


def only_given(segmentation: LabelArray, given: Mask, options: VoteOptions) -> LabelArray:
    """The label map with lesions where they are given, and nowhere else.

    Voxels of lesions that are not given become background; given ones get the first class, until
    the vote decides.

    Args:
        segmentation: (z, y, x); it is not changed.
        given: Where lesions are.
        options: The classes of lesions.
    """
    values = list(options.classes.values())
    result = np.where(mask_of(segmentation, values), 0, segmentation).astype(segmentation.dtype)
    result[given] = values[0]
    return result
