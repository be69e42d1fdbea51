"""Compares two binary masks: overlap, surface distances, volumes.

Masks are boolean arrays (z, y, x) or (y, x). An undefined number is NaN; the distance to a surface
that does not exist is infinite. `score` decides what is reported in such cases.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from autoliver.io.volume import has_no_thickness
from autoliver.planning.nonzero import bounding_box

Mask = npt.NDArray[np.bool_]
Connectivity = Literal[6, 26]


@dataclass(frozen=True, kw_only=True, slots=True)
class SurfaceDistances:
    """Distances between two surfaces, measured between centres of border voxels.

    Attributes:
        to_reference_mm: For each border voxel of the prediction, the distance to the reference.
        to_prediction_mm: For each border voxel of the reference, the distance to the prediction.
    """

    to_reference_mm: npt.NDArray[np.float64]
    to_prediction_mm: npt.NDArray[np.float64]

    @property
    def both_ways_mm(self) -> npt.NDArray[np.float64]:
        """The distances of both directions, concatenated."""
        return np.concatenate([self.to_reference_mm, self.to_prediction_mm])


def dice(prediction: Mask, reference: Mask) -> float:
    """Returns twice the common voxels over the sum of both masks; NaN if both are empty."""
    both = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return 2 * np.count_nonzero(prediction & reference) / both if both else np.nan


def iou(prediction: Mask, reference: Mask) -> float:
    """Returns the voxels in both masks over those in either (Jaccard index); NaN if both empty."""
    union = np.count_nonzero(prediction | reference)
    return np.count_nonzero(prediction & reference) / union if union else np.nan


def recall(prediction: Mask, reference: Mask) -> float:
    """Returns the common voxels over those of the reference (sensitivity); NaN if it is empty."""
    volume = np.count_nonzero(reference)
    return np.count_nonzero(prediction & reference) / volume if volume else np.nan


def precision(prediction: Mask, reference: Mask) -> float:
    """Returns the common voxels over those of the prediction; NaN if it is empty."""
    return recall(reference, prediction)


def ravd_percent(prediction: Mask, reference: Mask) -> float:
    """Returns the absolute volume difference in percent of the reference; NaN if it is empty."""
    volume = np.count_nonzero(reference)
    return 100 * abs(np.count_nonzero(prediction) - volume) / volume if volume else np.nan


def volume_ml(mask: Mask, spacing_mm: tuple[float, ...]) -> float:
    """Returns a mask's volume in ml; NaN for an image from a 2D file, which has no thickness.

    Args:
        mask: (z, y, x), or (y, x) with the thickness of the slice as a third spacing.
        spacing_mm: Spacing (z, y, x).
    """
    if has_no_thickness(spacing_mm):
        return np.nan
    return float(np.count_nonzero(mask) * np.prod(spacing_mm)) / 1000


def surface_distances(
    prediction: Mask,
    reference: Mask,
    *,
    spacing_mm: tuple[float, ...],
    connectivity: Connectivity = 6,
) -> SurfaceDistances:
    """Measures the distances between both surfaces, the one expensive step of `assd` to `nsd`.

    A border voxel is one that an erosion removes. Everything beyond the edge of the image counts as
    inside, so the edge alone does not make a voxel a border voxel (CHAOS evaluation code, Kavur et
    al. 2021). A mask that fills the image has its border at the image's edge.

    Args:
        prediction: (z, y, x) or (y, x).
        reference: Of the same shape as the prediction.
        spacing_mm: Distance between voxel centres along each axis.
        connectivity: Neighbourhood of the erosion: 6 (faces; in 2D the 4 edges) or 26 (also edges
            and corners; in 2D all 8 neighbours).

    Returns:
        The distances; those towards an empty mask are infinite.
    """
    prediction, reference = crop_to_union(prediction, reference)
    ours, theirs = border(prediction, connectivity), border(reference, connectivity)
    return SurfaceDistances(
        to_reference_mm=_nearest(ours, theirs, spacing_mm),
        to_prediction_mm=_nearest(theirs, ours, spacing_mm),
    )


def assd(distances: SurfaceDistances) -> float:
    """Returns the average symmetric surface distance in mm, pooled over both surfaces' voxels.

    Infinite if one of the masks is empty, NaN if both are.
    """
    pooled = distances.both_ways_mm
    return float(pooled.mean()) if pooled.size else np.nan


def mad(distances: SurfaceDistances) -> float:
    """Returns the mean absolute distance of two contours in mm, the mean of both directed means.

    Unlike `assd`, both contours count alike, however long they are. Infinite if one of the masks is
    empty, NaN if both are.
    """
    directed = (distances.to_reference_mm, distances.to_prediction_mm)
    if not all(d.size for d in directed):
        return mssd(distances)  # infinite or NaN
    return float(sum(d.mean() for d in directed) / 2)


def mssd(distances: SurfaceDistances) -> float:
    """Returns the maximum symmetric surface distance (Hausdorff) in mm.

    Infinite if one of the masks is empty, NaN if both are.
    """
    pooled = distances.both_ways_mm
    return float(pooled.max()) if pooled.size else np.nan


def hd95(distances: SurfaceDistances) -> float:
    """Returns the larger of the two directed 95th percentiles, in mm.

    Infinite if one of the masks is empty, NaN if both are.
    Other tools differ: medpy, for example, pools both directions before taking the percentile.
    """
    directed = (distances.to_reference_mm, distances.to_prediction_mm)
    if not all(d.size for d in directed):
        return mssd(distances)  # infinite or NaN, over which percentiles cannot interpolate
    return max(float(np.percentile(d, 95)) for d in directed)


def nsd(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Returns the share of both surfaces within a tolerance of the other surface (surface Dice).

    It counts border voxels. The original definition (Nikolov et al. 2018) weights them by the area
    of surface elements, which gives slightly different numbers. 0 if one of the masks is empty, NaN
    if both are.
    """
    pooled = distances.both_ways_mm
    return float(np.mean(pooled <= tolerance_mm)) if pooled.size else np.nan


def crop_to_union(prediction: Mask, reference: Mask) -> tuple[Mask, Mask]:
    """Crops both masks to the box that holds both, with a margin of one voxel within the image.

    The margin keeps the border rule valid: a side of the box either is background or is an edge of
    the image.

    Returns:
        Views of both masks.
    """
    inner = bounding_box(prediction | reference)
    # An empty box gets no margin.
    box = tuple(slice(max(part.start - 1, 0), part.stop + (part.stop > 0)) for part in inner)
    return prediction[box], reference[box]


def border(mask: Mask, connectivity: Connectivity = 6) -> Mask:
    """Finds the voxels of a mask that an erosion removes; `surface_distances` states the rule."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        # Shifted views instead of scipy's binary_erosion: the same result in a fifth of the time.
        # The 26-neighbourhood is a cube, so it can be eroded axis by axis.
        source = mask if connectivity == 6 else inner.copy()
        before, after = np.moveaxis(source, axis, 0), np.moveaxis(inner, axis, 0)
        after[1:] &= before[:-1]
        after[:-1] &= before[1:]
    edge: Mask = mask ^ inner
    if not edge.any() and mask.any():
        return _faces(mask.shape)
    return edge


def _faces(shape: tuple[int, ...]) -> Mask:
    # An axis of one voxel has no interior; it adds no faces, unless all axes have one voxel.
    inside = tuple(slice(1, -1) if size > 1 else slice(None) for size in shape)
    faces = np.ones(shape, dtype=np.bool_)
    if max(shape) > 1:
        faces[inside] = False
    return faces


def _nearest(surface: Mask, target: Mask, spacing_mm: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """The distance of each voxel of a surface to the nearest voxel of another one."""
    points, targets = np.argwhere(surface), np.argwhere(target)
    if not len(points) or not len(targets):
        return np.full(len(points), np.inf)
    step = np.asarray(spacing_mm, dtype=np.float64)
    # Bit for bit equal to a distance transform, and 7 to 14 times as fast on pairs of liver masks,
    # since only surfaces are searched. On a grid, balancing the tree costs far more than it saves.
    tree = cKDTree(targets * step, balanced_tree=False, compact_nodes=False)
    found = np.zeros(len(points))
    apart = ~target[surface]  # in the order of `argwhere`; common voxels need no search
    found[apart] = tree.query(points[apart] * step)[0]
    return found
