"""Which intensities of an image file the pipeline cannot take as they are."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from autoliver.io.files import StoredImage
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


def is_finite(array: Image) -> bool:
    """Whether no voxel is NaN or infinite."""
    return all(np.isfinite([array.min(), array.max()]))  # NaN spreads to both


def check_values(
    path: Path,
    image: StoredImage,
    *,
    is_ct: bool,
    labelled: Callable[[], Mask | None],
) -> Iterator[Said]:
    """Findings about the values of one image file.

    Args:
        path: The file, for messages.
        image: Its voxels.
        is_ct: Whether intensities are HU.
        labelled: Reads where the case's label map has foreground, (z, y, x); None where it cannot.
    """
    array = image.array
    if not is_finite(array):
        yield _not_finite(path, image)
        return
    if array.min() == array.max():
        yield (
            "warning",
            "constant",
            f"{path}: every voxel is {array.flat[0]:g}.",
            "Look at the image; export it again, or take the case out of the dataset.",
        )
    yield from _rounded(path, image)
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


def _not_finite(path: Path, image: StoredImage) -> Said:
    array = image.array
    nan, infinite = (
        sum(int(test(plane).sum()) for channel in array for plane in channel)
        for test in (np.isnan, np.isinf)
    )
    problem = f"{path} holds {nan} NaN and {infinite} infinite voxels of {array.size}."
    hint = "Replace them by the value of air, or export the image again."
    beyond = _Lost.among(image, lambda seen, stored: np.isinf(seen) & np.isfinite(stored))
    if beyond.number:
        problem += (
            f" Of these, {beyond.number} are stored as finite numbers that float32 cannot hold "
            f"(e.g. {beyond.stored:g}; expected at most {_LARGEST:.3g})."
        )
        hint = "Divide the image by a constant, or replace these voxels by the value of air."
    return "error", "not_finite", problem, hint


class _Lost(NamedTuple):
    """Voxels that float32 alters: their number, what is stored of the first, and what is seen."""

    number: int
    stored: Any
    seen: Any

    @classmethod
    def among(cls, image: StoredImage, lost: Callable[[Any, Any], Mask]) -> "_Lost":
        """Counts the voxels for which `lost`, of what is seen and what is stored, is true."""
        number, first, at = 0, (0, 0), 0
        flat = image.array.reshape(-1)
        for stored in image.parts() if image.parts else ():
            seen = flat[at : at + stored.size]
            at += stored.size
            found = lost(seen, stored)
            if not number and found.any():
                first = stored[found][0], seen[found][0]
            number += int(found.sum())
        return cls(number, *first)


def _rounded(path: Path, image: StoredImage) -> Iterator[Said]:
    """Whole numbers that float32 rounds, and fractions that become 0 in it."""
    if image.parts is None:
        return
    array, kind, problem = image.array, next(image.parts()).dtype, ""
    if kind.kind in "iu" and max(-float(array.min()), float(array.max())) >= _EXACT:
        # Differences in long double are exact for every 64-bit number.
        lost = _Lost.among(image, lambda seen, stored: seen.astype(np.longdouble) != stored)
        if lost.number:
            problem = (
                f"{lost.number} of {array.size} voxels hold whole numbers beyond 2^24 that "
                f"float32 rounds, e.g. {int(lost.stored)} to {int(lost.seen)}"
            )
    elif kind.kind == "f":
        lost = _Lost.among(image, lambda seen, stored: (seen == 0) & (stored != 0))
        if lost.number:
            problem = (
                f"{lost.number} of {array.size} voxels are so small that they become 0 in "
                f"float32, e.g. {lost.stored:g}"
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
