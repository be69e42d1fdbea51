"""Where a coarse model saw foreground, and which windows and voxels of a finer grid lie near it.

Lengths are shares of the image's axes, so that grids of any spacing over one image can be asked.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoliver.io.orientation import Reorientation
from autoliver.planning.nonzero import Box

Window = tuple[slice | int, ...]

# A coarse grid misses an organ's rim by a voxel or two, and small parts of it by more.
MARGIN_MM = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Foreground of a coarse grid, grown by a margin along each axis.

    Attributes:
        counts: (z + 1, y + 1, x + 1), how many foreground voxels lie before each corner.
        reach: The margin as a share of each axis.
    """

    counts: npt.NDArray[np.int64]
    reach: tuple[float, float, float]

    @property
    def share(self) -> float:
        """How much of the coarse grid is foreground."""
        return float(self.counts[-1, -1, -1] / math.prod(size - 1 for size in self.counts.shape))

    def transposed(self, axes: Sequence[int]) -> "Region":
        """The region with its axes in another order."""
        z, y, x = (self.reach[axis] for axis in axes)
        return Region(counts=self.counts.transpose(axes), reach=(z, y, x))

    def turned(self, turn: Reorientation) -> "Region":
        """The region on a grid whose axes are in another anatomical order."""
        counts = self.counts
        for axis in range(3):
            if turn.flips[turn.axes.index(axis)]:
                # Of each corner, how many lie beyond it along the axis.
                counts = counts.take([-1], axis=axis) - np.flip(counts, axis)
        counts = counts.transpose(turn.axes)
        return Region(counts=counts, reach=turn.values(self.reach))

    def touches(self, shares: Sequence[tuple[float, float]]) -> bool:
        """Whether a box holds foreground or is within the margin of some.

        Args:
            shares: First and last point along each axis, from 0 to 1.
        """
        ends = []
        for (low, high), reach, corners in zip(shares, self.reach, self.counts.shape, strict=True):
            size = corners - 1
            start = min(max(math.floor((low - reach) * size), 0), size)
            ends.append((start, max(start, min(math.ceil((high + reach) * size), size))))
        inside = 0
        for corner in itertools.product((0, 1), repeat=len(ends)):
            sign = -1 if (len(ends) - sum(corner)) % 2 else 1
            at = tuple(end[side] for end, side in zip(ends, corner, strict=True))
            inside += sign * int(self.counts[at])
        return inside > 0


def find_region(
    mask: npt.NDArray[np.bool_], spacing_mm: Sequence[float], *, margin_mm: float = MARGIN_MM
) -> Region | None:
    """The region around a mask.

    Args:
        mask: (z, y, x), the foreground on a grid that spans the image.
        spacing_mm: Of that grid, (z, y, x).
        margin_mm: By how much to grow it.

    Returns:
        The region; None where the mask is empty.
    """
    if not mask.any():
        return None
    counts = np.zeros([size + 1 for size in mask.shape], dtype=np.int64)
    counts[1:, 1:, 1:] = mask
    for axis in range(3):
        np.cumsum(counts, axis=axis, out=counts)
    z, y, x = (margin_mm / (n * mm) for n, mm in zip(mask.shape, spacing_mm, strict=True))
    return Region(counts=counts, reach=(z, y, x))


def near_windows(
    windows: Iterable[Window], shape_zyx: Sequence[int], region: Region, *, step: float
) -> list[Window]:
    """The windows whose middle touches the region.

    The middles of all windows together cover the image: a window's middle half, where windows lie
    half a patch apart, reaching to the image's edge in the outermost ones. So every voxel of the
    region is seen by the window it is most central in. What is left out are windows that see the
    foreground with their rim alone, from the margin and a quarter of the patch away: their Gaussian
    weight there is about 1e-2 where a quarter of the patch is twice the margin, else less.

    Args:
        windows: On the image's grid, padded where the patch is larger.
        shape_zyx: Of that grid, padded.
        region: Where to look, over the same image.
        step: Distance of neighbouring windows as a share of the patch.
    """
    found = []
    for window in windows:
        middle = [_middle(w, size, step) for w, size in zip(window, shape_zyx, strict=True)]
        if region.touches(middle):
            found.append(window)
    return found


def spanned_box(windows: Sequence[Window]) -> Box:
    """The smallest box around at least one window."""
    z, y, x = (
        slice(
            min(w if isinstance(w, int) else w.start for w in along),
            max(w + 1 if isinstance(w, int) else w.stop for w in along),
        )
        for along in zip(*windows, strict=True)
    )
    return z, y, x


def _middle(window: slice | int, size: int, step: float) -> tuple[float, float]:
    if isinstance(window, int):
        return window / size, (window + 1) / size
    patch = window.stop - window.start
    rim = patch * (1 - max(step, 0.5)) / 2
    low = 0.0 if window.start == 0 else (window.start + rim) / size
    high = 1.0 if window.stop == size else (window.stop - rim) / size
    return low, high
