"""Defines smooth solids in millimetres and paints them on any voxel grid.

Coordinates are (x, y, z) in mm; arrays are (z, y, x). Nothing here is random.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.float64]

# Voxels painted at a time, which bounds the memory whatever the size of the scan.
_CHUNK_VOXELS = 2_000_000

# Sharpness of a blob's lobe: at 4 the lobe has half its height 34 degrees off its axis.
_LOBE_SHARPNESS = 4.0


class Solid(Protocol):
    """A part of the patient, given by its bounds and a test whether points are inside."""

    def bounds_mm(self) -> tuple[Vector, Vector]:
        """Returns the lowest and highest x, y, z; infinite along axes where it is endless."""

    def contains(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tests which points are inside; coordinates are in mm, in arrays of one shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """A star-shaped smooth solid: an ellipsoid whose radius varies with the direction.

    Attributes:
        centre_mm: Centre (x, y, z).
        axes_mm: Half axes (x, y, z) before rotation.
        rotation: 3x3, from the blob's frame to the patient's.
        waves: (k, 3) frequencies of the cosines over the unit sphere that roughen the radius.
        phases: (k,) phases of these cosines.
        roughness: Standard deviation of the relative radius.
        lobe: Unit vector in the blob's frame towards a bulge.
        lobe_gain: Relative growth of the radius at the bulge.
    """

    centre_mm: Vector
    axes_mm: Vector
    rotation: Vector
    waves: Vector
    phases: Vector
    roughness: float
    lobe: Vector
    lobe_gain: float = 0.0

    def bounds_mm(self) -> tuple[Vector, Vector]:
        """Returns bounds as in `Solid.bounds_mm`, which may be larger than the solid."""
        # An ellipsoid's half extent along an axis is the norm of that row of rotation * axes.
        half = self._reach()[1] * np.linalg.norm(self.rotation * self.axes_mm, axis=1)
        return self.centre_mm - half, self.centre_mm + half

    def contains(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tests points as in `Solid.contains`."""
        to_local = self.rotation.T / self.axes_mm[:, None]
        offset = to_local @ self.centre_mm
        q = [
            np.float32(a) * x + np.float32(b) * y + np.float32(c) * z - np.float32(d)
            for (a, b, c), d in zip(to_local, offset, strict=True)
        ]
        norm = np.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2])
        lowest, highest = self._reach()
        inside: Bools = norm < lowest
        # The expensive cosines are needed only in the shell where the surface can be.
        unsure = ~inside & (norm < highest)
        units = np.stack([axis[unsure] for axis in q]) / norm[unsure]
        inside[unsure] = norm[unsure] < self.radius(units)
        return inside

    def radius(self, units: npt.NDArray[np.floating]) -> Floats:
        """Returns (n,) relative radii in directions `units`, (3, n) vectors in the blob's frame."""
        units = units.astype(np.float32)
        waves = self.waves.astype(np.float32) @ units + self.phases.astype(np.float32)[:, None]
        rough = math.sqrt(2 / len(self.phases)) * np.cos(waves).sum(axis=0)
        bulge = np.exp(
            np.float32(_LOBE_SHARPNESS) * (self.lobe.astype(np.float32) @ units - np.float32(1))
        )
        result: Floats = 1 + np.float32(self.roughness) * rough + np.float32(self.lobe_gain) * bulge
        return result

    def point(self, direction: Vector, fraction: float) -> Vector:
        """Returns the point at `fraction` of the way from the centre to the surface, in mm."""
        unit = direction / np.linalg.norm(direction)
        reach = float(self.radius(unit[:, None])[0]) * fraction
        result: Vector = self.centre_mm + self.rotation @ (self.axes_mm * unit * reach)
        return result

    def _reach(self) -> tuple[float, float]:
        most = self.roughness * math.sqrt(2 * len(self.phases))
        return 1 - most, 1 + most + self.lobe_gain


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """An endless elliptic column along z that sways sideways and changes its width a little.

    Attributes:
        centre_mm: Centre (x, y).
        radii_mm: Half axes (x, y).
        squareness: Shape of the cross-section, from 0 for an ellipse towards 1 for a rounded
            rectangle.
        sway_mm: Amplitude of the sideways sway along x.
        swell: Relative change of the radii along z.
        phase: Phase of sway, swell and gaps.
        gap_mm: Height of its gaps (the discs between vertebrae), one every 32 mm; 0 for none.
    """

    centre_mm: tuple[float, float]
    radii_mm: tuple[float, float]
    squareness: float = 0.0
    sway_mm: float = 0.0
    swell: float = 0.0
    phase: float = 0.0
    gap_mm: float = 0.0

    def bounds_mm(self) -> tuple[Vector, Vector]:
        """Returns bounds as in `Solid.bounds_mm`; infinite along z."""
        # Squareness moves corners outwards, but never beyond the half axes themselves.
        half = np.array([*self.radii_mm, math.inf]) * (1 + abs(self.swell))
        half[0] += abs(self.sway_mm)
        centre = np.array([*self.centre_mm, 0.0])
        return centre - half, centre + half

    def contains(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tests points as in `Solid.contains`."""
        wave = np.sin(z / np.float32(110) + np.float32(self.phase))
        size = 1 + np.float32(self.swell) * wave
        across = (x - self.centre_mm[0] - np.float32(self.sway_mm) * wave) / self.radii_mm[0] / size
        along = (y - self.centre_mm[1]) / self.radii_mm[1] / size
        # Clipped, since far outside the product term would dominate and count points as inside.
        xx, yy = np.minimum(across * across, 3), np.minimum(along * along, 3)
        inside: Bools = xx + yy - np.float32(self.squareness) * xx * yy < 1
        if self.gap_mm:
            inside &= np.mod(z + np.float32(10 * self.phase), np.float32(32)) > self.gap_mm
        return inside


@dataclass(frozen=True, kw_only=True, slots=True)
class Capsule:
    """A straight piece of a vessel between two points, with a radius at each end.

    Attributes:
        start_mm: First end point (x, y, z).
        end_mm: Second end point (x, y, z).
        radii_mm: Radii at the first and at the second end.
    """

    start_mm: Vector
    end_mm: Vector
    radii_mm: tuple[float, float]

    def bounds_mm(self) -> tuple[Vector, Vector]:
        """Returns bounds as in `Solid.bounds_mm`."""
        radius = max(self.radii_mm)
        ends = np.stack([self.start_mm, self.end_mm])
        return ends.min(axis=0) - radius, ends.max(axis=0) + radius

    def contains(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tests points as in `Solid.contains`."""
        axis = (self.end_mm - self.start_mm).astype(np.float32)
        start = self.start_mm.astype(np.float32)
        dx, dy, dz = x - start[0], y - start[1], z - start[2]
        along = (dx * axis[0] + dy * axis[1] + dz * axis[2]) / max(float(axis @ axis), 1e-6)
        along = np.clip(along, 0, 1)
        radius = self.radii_mm[0] + (self.radii_mm[1] - self.radii_mm[0]) * along
        gap = (dx - along * axis[0]) ** 2 + (dy - along * axis[1]) ** 2
        inside: Bools = gap + (dz - along * axis[2]) ** 2 < radius * radius
        return inside


@dataclass(frozen=True, kw_only=True, slots=True)
class Marbling:
    """The region where a sum of plane waves exceeds a threshold: fat between the bowels.

    Attributes:
        waves: (k, 3) wave vectors in radians per mm.
        phases: (k,) phases of the waves.
        threshold: The threshold in standard deviations of the sum.
    """

    waves: Vector
    phases: Vector
    threshold: float

    def bounds_mm(self) -> tuple[Vector, Vector]:
        """Returns bounds as in `Solid.bounds_mm`: infinite along all axes."""
        return np.full(3, -math.inf), np.full(3, math.inf)

    def contains(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Tests points as in `Solid.contains`."""
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
        for (a, b, c), phase in zip(self.waves.astype(np.float32), self.phases, strict=True):
            total += np.cos(a * x + b * y + c * z + np.float32(phase))
        high: Bools = total > self.threshold * math.sqrt(len(self.phases) / 2)
        return high


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One solid to paint.

    Attributes:
        solid: The solid.
        tissue: The tissue that its voxels get.
        label: The label that its voxels get; 0 for background.
        over: The tissues that it may replace.
    """

    solid: Solid
    tissue: int
    label: int = 0
    over: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The positions of voxels in the patient frame.

    Attributes:
        shape_zyx: Voxels per axis.
        matrix: 3x3, from index steps (z, y, x) to millimetres (x, y, z).
        origin_mm: The first voxel's centre (x, y, z).
    """

    shape_zyx: tuple[int, int, int]
    matrix: Vector
    origin_mm: Vector


def paint_layers(layers: Sequence[Layer], grid: Grid) -> tuple[Codes, Codes]:
    """Paints solids one over another on a grid that is filled with zeros at first.

    Args:
        layers: The solids in painting order.
        grid: The voxel grid in the patient frame.

    Returns:
        Tissue map and label map, both (z, y, x).
    """
    tissue = np.zeros(grid.shape_zyx, np.uint8)
    label = np.zeros(grid.shape_zyx, np.uint8)
    for layer in layers:
        replaceable = np.zeros(256, bool)
        replaceable[list(layer.over)] = True
        for box in _boxes(layer.solid, grid):
            mask = replaceable[tissue[box]]
            if mask.any():
                mask &= layer.solid.contains(*_coordinates(grid, box))
                tissue[box][mask] = layer.tissue
                label[box][mask] = layer.label
    return tissue, label


def _boxes(solid: Solid, grid: Grid) -> Iterator[tuple[slice, slice, slice]]:
    """Yields index boxes that together cover the solid, each with a bounded number of voxels."""
    shape = np.array(grid.shape_zyx)
    ends = np.stack(np.meshgrid(*([0, n - 1] for n in shape), indexing="ij"), -1).reshape(8, 3)
    seen = ends @ grid.matrix.T + grid.origin_mm
    low, high = solid.bounds_mm()
    # Endless solids are cut at the ends of the grid, with one millimetre added against rounding.
    low = np.maximum(low, seen.min(axis=0) - 1)
    high = np.minimum(high, seen.max(axis=0) + 1)
    if np.any(low > high):
        return
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(8, 3)
    index = (corners - grid.origin_mm) @ np.linalg.inv(grid.matrix).T
    first = np.clip(np.floor(index.min(axis=0)), 0, shape).astype(int)
    stop = np.clip(np.ceil(index.max(axis=0)) + 1, 0, shape).astype(int)
    plane = max(1, int((stop - first)[1:].prod()))
    step = max(1, _CHUNK_VOXELS // plane)
    for z in range(int(first[0]), int(stop[0]), step):
        yield (
            slice(z, min(z + step, int(stop[0]))),
            slice(int(first[1]), int(stop[1])),
            slice(int(first[2]), int(stop[2])),
        )


def _coordinates(grid: Grid, box: tuple[slice, slice, slice]) -> tuple[Floats, Floats, Floats]:
    """Returns x, y and z of the voxels of a box, in mm."""
    z, y, x = np.ogrid[box]
    result = [
        (a * z + origin).astype(np.float32)
        + (b * y).astype(np.float32)
        + (c * x).astype(np.float32)
        for (a, b, c), origin in zip(grid.matrix, grid.origin_mm, strict=True)
    ]
    return result[0], result[1], result[2]
