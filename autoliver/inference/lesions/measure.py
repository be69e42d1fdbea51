"""What the lesions of a case measure, each one as a record."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.datasets.cases import Labels
from autoliver.inference.clean import Components, components, mask_of
from autoliver.inference.lesions.calibration import calibrated
from autoliver.inference.lesions.diameters import axial_axis, diameters
from autoliver.inference.lesions.vote import Array, LabelArray, MeansOf, normalised
from autoliver.io.volume import Geometry, is_flat

# Decimals that are kept: a thousandth of a mm, of a cubic mm, and of a percent.
_MM, _ML, _SHARE = 3, 6, 5


class Lesion(Record, frozen=True, kw_only=True):
    """One lesion.

    Attributes:
        lesion: Its number in the case, from 1 in the order of first voxels.
        label: Its class, the name of a label.
        probabilities: Class -> mean probability over the lesion's voxels; empty if it is unknown.
            They add up to 1 if the classes were voted on.
        volume_ml: Its volume; None for 2D files, which have no thickness.
        centroid_lps_mm: Mean position of its voxels, x (to the left), y (to the back), z (upwards),
            as in DICOM and ITK; NIfTI has the opposite signs of x and y. In 2D files they count
            from the first pixel, and z is 0.
        longest_mm: Longest diameter in an axial slice.
        perpendicular_mm: Longest diameter perpendicular to it in the same slice.
        slice: Index of that slice in the file, from 0.
        slice_axis: The axis of the file along which axial slices follow one another: 0 for i, 1 for
            j, 2 for k.
    """

    lesion: int
    label: str = msgspec.field(name="class")
    probabilities: dict[str, float]
    volume_ml: float | None
    centroid_lps_mm: tuple[float, float, float]
    longest_mm: float
    perpendicular_mm: float
    slice: int
    slice_axis: int

    @property
    def probability(self) -> float | None:
        """That of its own class."""
        return self.probabilities.get(self.label)


class CaseLesions(Record, frozen=True, kw_only=True):
    """The lesions of a case.

    Attributes:
        lesions: The lesions.
        removed_without_organ: Number of lesions that were removed because the organ that they lie
            in was not found.
    """

    lesions: tuple[Lesion, ...] = ()
    removed_without_organ: int = 0


@dataclass(frozen=True, kw_only=True)
class LesionLabels:
    """Which labels are lesions.

    Attributes:
        labels: All labels of the label map.
        names: Those that are lesions.
        voted: Whether each lesion has one class of these, so that their probabilities add up to 1.
        temperature: Temperature that is applied to these probabilities.
    """

    labels: Labels
    names: tuple[str, ...]
    voted: bool = False
    temperature: float = 1.0


def measure(
    segmentation: LabelArray,
    geometry: Geometry,
    which: LesionLabels,
    means: MeansOf | None = None,
) -> tuple[Lesion, ...]:
    """Measures the lesions of a label map: the connected components of each label.

    They are connected through faces, edges and corners.

    Args:
        segmentation: Label map (z, y, x).
        geometry: Its grid.
        which: The labels that are lesions.
        means: Computes the mean probabilities of components; None: they are not known.

    Returns:
        The lesions, numbered from 1 in the order of their first voxels in the label map.
    """
    found = []
    for name in which.names:
        mask = mask_of(segmentation, which.labels.values[name])
        every = components(mask)
        if len(every.voxels) == 1:
            continue
        chances = None if means is None else _chances(means(every), which)
        found += _measured(every, geometry, name, [] if chances is None else which.names, chances)
    found.sort(key=lambda item: item[0])
    return tuple(lesion.replace(lesion=number) for number, (_, lesion) in enumerate(found, start=1))


def _chances(means: Array, which: LesionLabels) -> Array:
    """The probabilities (lesions, classes) of the classes alone."""
    own = means[:, [which.labels.rows.index(name) for name in which.names]]
    return calibrated(normalised(own), which.temperature) if which.voted else own


def _measured(
    every: Components,
    geometry: Geometry,
    name: str,
    classes: Sequence[str],
    chances: Array | None,
) -> list[tuple[tuple[int, ...], Lesion]]:
    """Measures components; returns each with its first voxel (z, y, x)."""
    from scipy.ndimage import find_objects

    axis, flat = axial_axis(geometry), is_flat(geometry)
    voxel_ml = math.prod(geometry.spacing_mm) / 1000.0
    starts = np.array([part.start for part in every.box])
    found = []
    for number, box in enumerate(find_objects(every.numbers), start=1):
        mask = every.numbers[box] == number
        first = starts + [part.start for part in box]
        size = diameters(mask, geometry.spacing_mm, axis=axis)
        voxels, places = int(every.voxels[number]), np.argwhere(mask) + first
        rows = () if chances is None else chances[number - 1]
        lesion = Lesion(
            lesion=number,
            label=name,
            probabilities={
                each: round(float(row), _SHARE) for each, row in zip(classes, rows, strict=True)
            },
            volume_ml=None if flat else round(voxels * voxel_ml, _ML),
            centroid_lps_mm=_place(places.mean(axis=0), geometry),
            longest_mm=round(size.longest_mm, _MM),
            perpendicular_mm=round(size.perpendicular_mm, _MM),
            slice=int(first[axis]) + size.slice,
            slice_axis=2 - axis,
        )
        found.append((tuple(map(int, places[0])), lesion))
    return found


def _place(index_zyx: npt.NDArray[np.float64], geometry: Geometry) -> tuple[float, float, float]:
    """The position (x, y, z) in LPS of an index (z, y, x), in mm."""
    steps = (index_zyx * geometry.spacing_mm)[::-1]
    place = geometry.origin_xyz + np.array(geometry.direction).reshape(3, 3) @ steps
    x, y, z = (round(float(value), _MM) + 0.0 for value in place)  # no -0.0
    return x, y, z
