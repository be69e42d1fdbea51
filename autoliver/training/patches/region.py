"""Where patches lie that are to show an organ: on a box around it that is as wrong as on new cases.

In training each side of the box is moved at random, since a model that finds the organ in a new
case errs as well. The held-out patches are drawn on the box as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.preprocessing.crop import Bounds

# Each side is moved inwards or outwards by up to this share of the margin.
JITTER_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchBox:
    """The box of a case that patches are drawn on.

    Attributes:
        bounds: First and last-plus-one voxel (z, y, x) of the organ grown by the margin.
        jitter: Per axis, by how many voxels each of its sides is moved at most.
    """

    bounds: Bounds
    jitter: tuple[float, float, float]

    def drawn(self, rng: np.random.Generator, shape_zyx: Sequence[int]) -> Bounds:
        """Draws the box of one patch: within the image and at least one voxel long.

        Without jitter nothing is drawn.
        """
        if not any(self.jitter):
            return self.bounds
        moves = rng.uniform(-1.0, 1.0, (3, 2))
        found = []
        for (low, high), most, (first, last), size in zip(
            self.bounds, self.jitter, moves, shape_zyx, strict=True
        ):
            start = min(max(low + round(most * first), 0), size - 1)
            found.append((start, max(start + 1, min(high + round(most * last), size))))
        z, y, x = found
        return z, y, x


def start_in(
    bounds: Bounds,
    shape_zyx: Sequence[int],
    patch_shape: Sequence[int],
    margin: Sequence[int],
    voxel: npt.NDArray[np.int32] | None,
    rng: np.random.Generator,
) -> tuple[int, int, int]:
    """Draws the first voxel of a patch that lies on a box; in 2D the first value is the slice.

    Along each axis the network's patch is inside the box. A patch that is longer is centred on it,
    but does not leave the image for that: windows of a prediction do not leave it either.

    Args:
        bounds: The box.
        shape_zyx: Shape of the image.
        patch_shape: 2 or 3 sizes of the patch that is cut out.
        margin: How much larger than the network's patch it is.
        voxel: A voxel (z, y, x) of the box that the patch is centred on as far as the box allows;
            None: the place is drawn.
        rng: The generator of the batch.
    """
    start = []
    for axis in range(3 - len(patch_shape)):
        low, high = bounds[axis]
        start.append(int(rng.integers(low, high)) if voxel is None else int(voxel[axis]))
    for axis, (size, more) in enumerate(zip(patch_shape, margin, strict=True), start=len(start)):
        (low, high), patch = bounds[axis], size - more
        if patch >= high - low:
            room = shape_zyx[axis] - patch
            first = min(max((low + high - patch) // 2, min(0, room)), max(0, room))
        elif voxel is None:
            first = int(rng.integers(low, high - patch + 1))
        else:
            first = min(max(int(voxel[axis]) - patch // 2, low), high - patch)
        start.append(first - more // 2)
    z, y, x = start
    return z, y, x


def inside(voxels: npt.NDArray[np.int32], bounds: Bounds) -> npt.NDArray[np.int32]:
    """Returns those of some voxels (n, 3) that lie in a box."""
    low, high = np.array(bounds).T
    kept: npt.NDArray[np.int32] = voxels[((voxels >= low) & (voxels < high)).all(axis=1)]
    return kept
