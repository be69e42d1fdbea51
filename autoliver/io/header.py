"""Endings of image files, and the values in their headers."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.errors import DatasetError
from autoliver.io.volume import Geometry

# 3D Slicer's segmentations: label maps in NRRD files, which lie beside images but are none.
SEGMENTATION = ".seg.nrrd"
# Types of picture files. Their grey values have no scale, so that they tell no modality.
PICTURES = (".png", ".bmp", ".tiff", ".tif", ".jpeg", ".jpg")
# Types whose compression alters values, so that they cannot hold labels.
LOSSY = (".jpeg", ".jpg")
# Where one ending is the end of another, the longer one comes first.
ENDINGS: tuple[str, ...] = (
    *(".nii.gz", ".nii", SEGMENTATION, ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".hdr"),
    *PICTURES,
)
# Image ending -> ending for predictions, for folders of slices (which have none), and for image
# types that keep their voxels in a second file, change their values, or do not hold what a label
# map needs: BMP no value above 255, GIPL no directions of axes.
_LABEL_ENDINGS = {
    **{"": ".nii.gz", ".nhdr": ".nrrd", ".mhd": ".mha", ".hdr": ".nii.gz", ".gipl": ".nii.gz"},
    **{**dict.fromkeys(LOSSY, ".png"), ".bmp": ".png", SEGMENTATION: ".nrrd"},
}


class UnreadableImage(DatasetError):
    """An image file is damaged, or of a type that cannot be read."""


class Header(Record, frozen=True, kw_only=True):
    """The header of an image file.

    Attributes:
        geometry: The grid of one channel.
        channels: Number of channels: the size of the 4th dimension or the components of a pixel.
        pixel_type: ITK's name of the type, e.g. "16-bit signed integer".
        integer: Whether the voxels are of an integer type.
        note: What had to be corrected in the header to read it, and which of its values contradict
            each other; empty for nothing.
        doubtful: Whether the note is about more than rounding, so that a person should see it.
    """

    geometry: Geometry
    channels: int
    pixel_type: str
    integer: bool
    note: str = ""
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """An image file whose header has been read, but not its voxels.

    Attributes:
        header: The file's header.
        voxels: Reads the voxels (c, z, y, x) in the file's data type; raises DatasetError if the
            file is damaged or cut short.
        parts: Yields the same voxels in the same order part by part, (n,), with the same errors;
            None: such a file is read as a whole.
    """

    header: Header
    voxels: Callable[[], npt.NDArray[Any]]
    parts: Callable[[], Iterator[npt.NDArray[Any]]] | None = None

    def fill(self, array_czyx: npt.NDArray[Any]) -> None:
        """Reads the voxels into a contiguous array of any type, with little memory besides."""
        if self.parts is None:
            array_czyx[...] = self.voxels()
            return
        flat, at = array_czyx.reshape(-1), 0
        for part in self.parts():
            flat[at : at + part.size] = part
            at += part.size
        if at < flat.size:
            raise ValueError(f"found {at} voxels, expected {flat.size}")


def split_ending(name: str) -> tuple[str, str]:
    """Splits a file name into its stem and ending; the ending is empty if it is not in ENDINGS."""
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return name, ""


def file_type(path: Path) -> str:
    """Returns the ending, in small letters, that says how a file is read; empty if it has none."""
    ending = split_ending(path.name)[1].lower()
    return ".nrrd" if ending == SEGMENTATION else ending


def label_ending(ending: str) -> str:
    """Returns the ending for label maps of images with this ending: a single lossless file.

    It is in small letters, since SimpleITK does not write files whose ending is in capitals.
    """
    return _LABEL_ENDINGS.get(ending.lower(), ending.lower())


def fraction_ending(ending: str) -> str:
    """Returns the ending for maps of fractions beside label maps with this ending.

    A PNG file holds whole numbers alone, so a TIFF file stands in for it.
    """
    return ".tif" if ending.lower() == ".png" else ending


def label_name(case: str, image: str | Path) -> str:
    """Returns the file name of a case's label map, given one of its images."""
    return f"{case}{label_ending(split_ending(Path(image).name)[1])}"


def unreadable(path: Path, found: str) -> DatasetError:
    """Returns the error for a file that is not an image or is damaged."""
    ending = split_ending(path.name)[1].lower()
    expected = f"a whole {ending} file" if ending else f"an image ({', '.join(ENDINGS)})"
    return UnreadableImage(
        f"{path}: cannot be read: {found}; expected {expected}.",
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
