"""Draws how the samples of a batch are rotated and scaled; without torch.

The processes that read patches need the draws before they read: a sample that is neither rotated
nor scaled needs no more than the patch, others the part of the source that they show. These
processes do without torch, so the first numbers of torch's generator are drawn with numpy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record

Floats = npt.NDArray[np.float64]

# More groups read less and launch more operations.
_MOST_GROUPS = 3
# Bits of a double's mantissa, all of which torch draws.
_BITS = 53
# Room beside the outermost position: rounding, and the second neighbour of a linear interpolation.
_MARGIN = 0.01


class SpatialSpec(Record, frozen=True, kw_only=True):
    """How samples are rotated and scaled.

    Attributes:
        dimension: Number of axes that are transformed, 2 or 3. With 2, arrays may have a third axis
            in front, whose slices are then all transformed in the same way.
        rotation_rad: Range of the angle about each axis, in radians.
        rotation_probability: Probability that a sample is rotated.
        scaling: Range of the factor, which is the same for all axes; above one, objects become
            smaller.
        scaling_probability: Probability that a sample is scaled.
    """

    dimension: int
    rotation_rad: tuple[float, float]
    rotation_probability: float = 0.2
    scaling: tuple[float, float] = (0.7, 1.4)
    scaling_probability: float = 0.2

    @property
    def draws(self) -> int:
        """Numbers that are drawn for a sample: two chances, the scale, and the angles."""
        return 3 + (1 if self.dimension == 2 else 3)


@dataclass(frozen=True, slots=True)
class Placement:
    """Rotation and scaling of one sample.

    Attributes:
        angles_rad: One angle in 2D; in 3D one about each array axis, applied from first to last.
            In radians.
        scale: Size of the patch in the source relative to its own size.
    """

    angles_rad: tuple[float, ...]
    scale: float

    def matrix(self) -> Floats:
        """The matrix (axes, axes) from patch to source, about the centres of both."""
        if len(self.angles_rad) == 1:
            return _rotation(2, 0, 1, self.angles_rad[0]) * self.scale
        first, second, third = self.angles_rad
        about_0 = _rotation(3, 1, 2, first)
        about_1 = _rotation(3, 2, 0, second)
        about_2 = _rotation(3, 0, 1, third)
        return about_2 @ about_1 @ about_0 * self.scale


def make_placements(drawn: Floats, spec: SpatialSpec) -> tuple[Placement | None, ...]:
    """Makes a placement per sample; None for a sample that is neither rotated nor scaled.

    Args:
        drawn: (b, `spec.draws`), uniform in 0 to 1.
        spec: Ranges and probabilities.
    """
    placements: list[Placement | None] = []
    for rotation, scaling, size, *turns in drawn.tolist():
        rotates = rotation < spec.rotation_probability
        scales = scaling < spec.scaling_probability
        if not rotates and not scales:
            placements.append(None)
            continue
        angles = [_between(spec.rotation_rad, u) if rotates else 0.0 for u in turns]
        scale = _between(spec.scaling, size) if scales else 1.0
        placements.append(Placement(tuple(angles), scale))
    return tuple(placements)


def first_draws(seed: int, batch: int, spec: SpatialSpec) -> Floats:
    """The first numbers that torch's CPU generator of a seed draws in float64, (b, `spec.draws`).

    Both use the Mersenne Twister of Matsumoto and Nishimura (1998), seeded with the lowest 32 bits.
    """
    count = batch * spec.draws
    generator = np.random.RandomState(seed & 0xFFFFFFFF)
    high, low = generator.randint(0, 2**32, (count, 2), np.uint32).astype(np.uint64).T
    bits = (high << np.uint64(32) | low) & np.uint64(2**_BITS - 1)
    drawn: Floats = bits.reshape(batch, spec.draws).astype(np.float64) * 2.0**-_BITS
    return drawn


def needed_shape(
    placements: Sequence[Placement], patch: Sequence[int], source: Sequence[int]
) -> tuple[int, ...]:
    """The shape of the part of the source that some samples show, about the same centre.

    Args:
        placements: Their rotation and scaling.
        patch: Shape of the patch.
        source: Shape of the largest part, which bounds the result; beyond it nothing is shown.
    """
    shape = list(source)
    matrices = np.array([placement.matrix() for placement in placements])
    count = matrices.shape[-1]
    half = (np.array(patch[-count:]) - 1) / 2
    reach = (np.abs(matrices) @ half).max(axis=0)
    for axis, far in enumerate(reach, start=len(shape) - count):
        whole = shape[axis]
        # As many voxels less on both sides, or the centre would move.
        shape[axis] = whole - 2 * max(0, math.floor((whole - 1) / 2 - far - 1 - _MARGIN))
    return tuple(shape)


@dataclass(frozen=True, slots=True)
class TurnedGroup:
    """Samples of a batch that are rotated or scaled, whose sources are of one shape.

    Attributes:
        samples: Their indices in the batch.
        placements: Their rotation and scaling.
        shape: Shape of each source.
    """

    samples: tuple[int, ...]
    placements: tuple[Placement, ...]
    shape: tuple[int, ...]


def turned_groups(
    placements: Sequence[Placement | None], patch: Sequence[int], source: Sequence[int]
) -> tuple[TurnedGroup, ...]:
    """Divides the samples that are rotated or scaled by how much of the source they show.

    Args:
        placements: Rotation and scaling of all samples.
        patch: Shape of the patch.
        source: Shape of the largest part of the source that is shown.
    """
    turned = [(sample, each) for sample, each in enumerate(placements) if each is not None]
    sizes = [math.prod(needed_shape([each], patch, source)) for _, each in turned]
    order = np.argsort(sizes, kind="stable")
    found = []
    for part in np.array_split(order, min(_MOST_GROUPS, len(turned)) or 1):
        own = [turned[index] for index in sorted(part.tolist())]
        if own:
            samples, each = zip(*own, strict=True)
            found.append(TurnedGroup(samples, each, needed_shape(each, patch, source)))
    return tuple(found)


def _rotation(size: int, row: int, column: int, angle_rad: float) -> Floats:
    matrix = np.eye(size)
    matrix[row, row] = matrix[column, column] = math.cos(angle_rad)
    matrix[row, column] = -math.sin(angle_rad)
    matrix[column, row] = math.sin(angle_rad)
    return matrix


def _between(limits: tuple[float, float], position: float) -> float:
    return limits[0] + position * (limits[1] - limits[0])
