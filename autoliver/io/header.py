"""Endings of image files, and what a file says of itself without its voxels."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.errors import DatasetError
from autoliver.io.volume import Geometry

# Longest first where one ends with another.
ENDINGS: tuple[str, ...] = (
    *(".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".hdr"),
    *(".png", ".bmp", ".tiff", ".tif", ".jpeg", ".jpg"),
)
# What a prediction is written as where its image's own type keeps voxels in a second file or
# alters them.
_LABEL_ENDINGS = {
    **{".nhdr": ".nrrd", ".mhd": ".mha", ".hdr": ".nii.gz"},
    **{".jpg": ".png", ".jpeg": ".png"},
}


class Header(Record, frozen=True, kw_only=True):
    """What a file says of itself without its voxels.

    Attributes:
        geometry: The grid of one channel.
        channels: Channels in the file: its 4th dimension or the components of a pixel.
        pixel_type: In ITK's words, e.g. "16-bit signed integer".
        integer: Whether voxels are whole numbers by type.
        note: What had to be mended to read it, or contradicts itself, "" for nothing.
        doubtful: Whether the note says more than that numbers were rounded, and deserves a look.
    """

    geometry: Geometry
    channels: int
    pixel_type: str
    integer: bool
    note: str = ""
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file whose header is read, and its voxels not yet.

    Attributes:
        header: What it says of itself.
        voxels: Reads the voxels in the file's own type, (c, z, y, x); raises DatasetError where the
            file is damaged or cut short.
    """

    header: Header
    voxels: Callable[[], npt.NDArray[Any]]


def split_ending(name: str) -> tuple[str, str]:
    """A file name's stem and its ending ("" where it is none of ours)."""
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def label_ending(ending: str) -> str:
    """The ending to write labels with, for images of this ending: one file, nothing lost."""
    return _LABEL_ENDINGS.get(ending.lower(), ending)


def label_name(case: str, image: str | Path) -> str:
    """The file name of a case's label map, given one of its images."""
    return f"{case}{label_ending(split_ending(Path(image).name)[1])}"


def unreadable(path: Path, found: str) -> DatasetError:
    """The error for a file that is not, or no longer, an image."""
    return DatasetError(
        f"{path}: cannot be read: {found}; expected a whole image file ({', '.join(ENDINGS)}).",
        hint="Copy or export the file again; if it opens elsewhere, save it there as .nii.gz.",
    )


def bad_numbers(path: Path, field: str, found: str, expected: str) -> DatasetError:
    """The error for a header whose numbers cannot be used.

    Args:
        path: The file.
        field: The field, as the file's type calls it.
        found: Its values.
        expected: What they should be.
    """
    return DatasetError(
        f"{path}: {field} is {found}; expected {expected}.",
        hint=f"Export the file again, or correct {field} in its header.",
    )


def numbers(values: Iterable[float]) -> str:
    """Numbers of a header for people."""
    return f"({', '.join(f'{value:.6g}' for value in values)})"
