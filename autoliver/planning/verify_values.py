"""Which intensities of an image file the pipeline cannot take as they are."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autoliver.planning.outliers import Mask, Padding, find_outliers, find_padding

# Severity, code, problem and hint of a finding.
Said = tuple[Literal["error", "warning", "note"], str, str, str]
Image = npt.NDArray[np.float32]

_EXACT = 1 << 24  # whole numbers up to this one are exact in float32
_LARGEST = float(np.finfo(np.float32).max)
# Below the -1024 HU of air with some room for noise, which reconstruction can extend.
_BELOW_AIR_HU = -1500.0
# Deviations by which padding may move an image's mean before it is worth a word.
_SHIFT = 0.1


def to_float32(stored: npt.NDArray[Any]) -> Image:
    """The voxels as the pipeline sees them."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(stored, dtype=np.float32)


def check_values(
    path: Path,
    stored: npt.NDArray[Any],
    array: Image,
    *,
    is_ct: bool,
    labelled: Callable[[], Mask | None],
) -> Iterator[Said]:
    """Findings about the values of one image file.

    Args:
        path: The file, for messages.
        stored: (c, z, y, x) in the file's own type.
        array: The same as `to_float32` makes it.
        is_ct: Whether intensities are HU.
        labelled: Reads where the case's label map has foreground, (z, y, x); None where it cannot.
    """
    if not np.isfinite(array).all():
        yield _not_finite(path, stored, array)
        return
    if array.min() == array.max():
        yield (
            "warning",
            "constant",
            f"{path}: every voxel is {array.flat[0]:g}.",
            "Look at the image; export it again, or take the case out of the dataset.",
        )
    yield from _rounded(path, stored, array)
    for index, channel in enumerate(array):
        where = f"{path}, channel {index}" if len(array) > 1 else str(path)
        outliers = find_outliers(channel)
        if outliers is not None:
            yield (
                "warning",
                "outliers",
                f"{where}: {outliers}.",
                "Replace them by the value of their surroundings, or export the image again: they "
                "spoil the mean and deviation that the image is normalised with.",
            )
            continue
        padding = find_padding(channel, below=_BELOW_AIR_HU if is_ct else None)
        if padding is not None:
            yield from _padding(where, padding, labelled=labelled if is_ct else None)


def _not_finite(path: Path, stored: npt.NDArray[Any], array: Image) -> Said:
    nan = int(np.isnan(array).sum())
    infinite = int(np.isinf(array).sum())
    problem = f"{path} holds {nan} NaN and {infinite} infinite voxels of {array.size}."
    hint = "Replace them by the value of air, or export the image again."
    beyond = np.isinf(array) & np.isfinite(stored)
    if beyond.any():
        problem += (
            f" Of these, {int(beyond.sum())} are stored as finite numbers that float32 cannot hold "
            f"(e.g. {stored[beyond][0]:g}; expected at most {_LARGEST:.3g})."
        )
        hint = "Divide the image by a constant, or replace these voxels by the value of air."
    return "error", "not_finite", problem, hint


def _rounded(path: Path, stored: npt.NDArray[Any], array: Image) -> Iterator[Said]:
    """Whole numbers that float32 rounds, and fractions that become 0 in it."""
    kind, problem = stored.dtype.kind, ""
    if kind in "iu" and stored.dtype.itemsize > 2 and np.abs(array).max() >= _EXACT:
        # Differences in long double are exact for every 64-bit number.
        lost = array.astype(np.longdouble) != stored
        if lost.any():
            example = int(stored[lost][0])
            problem = (
                f"{int(lost.sum())} of {stored.size} voxels hold whole numbers beyond 2^24 that "
                f"float32 rounds, e.g. {example} to {int(array[lost][0])}"
            )
    elif kind == "f" and stored.dtype.itemsize > 4:
        lost = (array == 0) & (stored != 0)
        if lost.any():
            problem = (
                f"{int(lost.sum())} of {stored.size} voxels are so small that they become 0 in "
                f"float32, e.g. {stored[lost][0]:g}"
            )
    if problem:
        hint = "Images are read as float32. Subtract an offset or scale the image if that matters."
        yield "warning", "precision", f"{path}: {problem}.", hint


def _padding(
    where: str, padding: Padding, *, labelled: Callable[[], Mask | None] | None
) -> Iterator[Said]:
    count, value = int(padding.where.sum()), f"{padding.value:g}"
    if labelled is None:
        if padding.shift > _SHIFT:
            yield (
                "warning",
                "padding",
                f"{where}: {count} of {padding.where.size} voxels hold {value}, far below all "
                f"others (from {padding.low:g}), which moves the mean by {padding.shift:.2g} "
                "deviations.",
                "If they are padding, replace them by the value of air.",
            )
        return
    foreground = labelled()
    inside = 0
    if foreground is not None and foreground.shape == padding.where.shape:
        inside = int((foreground & padding.where).sum())
    problem = f"{where}: {count} of {padding.where.size} voxels hold {value}, which is below air"
    if inside:
        yield (
            "warning",
            "padding",
            f"{problem}; {inside} of them are labelled and shift the foreground's statistics.",
            "Replace them by the value of air (-1024), or correct the label there.",
        )
    else:
        yield "note", "padding", f"{problem} (padding; normalisation clips it).", ""
