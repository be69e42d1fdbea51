"""Limits prediction to the windows that are near the foreground of a coarse model, or in a box.

Positions and lengths are shares of the image's axes, so they apply to any grid over the image.
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

# A coarse grid misses the rim of an organ by a voxel or two, and small parts of it by more.
MARGIN_MM = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """The foreground of a coarse grid, grown by a margin along each axis.

    Attributes:
        counts: (z + 1, y + 1, x + 1), the number of foreground voxels before each corner along all
            three axes (a summed-area table).
        reach: The margin along each axis, as a share of the axis.
    """

    counts: npt.NDArray[np.int64]
    reach: tuple[float, float, float]

    @property
    def share(self) -> float:
        """The share of the coarse grid that is foreground, without the margin."""
        return float(self.counts[-1, -1, -1] / math.prod(size - 1 for size in self.counts.shape))

    def transposed(self, axes: Sequence[int]) -> "Region":
        """Returns the region with its axes in another order."""
        z, y, x = (self.reach[axis] for axis in axes)
        return Region(counts=self.counts.transpose(axes), reach=(z, y, x))

    def turned(self, turn: Reorientation) -> "Region":
        """Returns the region on a grid whose axes are in another anatomical order."""
        counts = self.counts
        for axis in range(3):
            if turn.flips[turn.axes.index(axis)]:
                # Of each corner, how many lie beyond it along the axis.
                counts = counts.take([-1], axis=axis) - np.flip(counts, axis)
        counts = counts.transpose(turn.axes)
        return Region(counts=counts, reach=turn.values(self.reach))

    def touches(self, shares: Sequence[tuple[float, float]]) -> bool:
        """Whether a box contains foreground or is within the margin of some.

        Args:
            shares: The box: first and last point along each axis, from 0 to 1.
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


@dataclass(frozen=True, slots=True)
class BoxRegion:
    """A box as a region.

    Attributes:
        ends: Its first and last point along each axis, as shares of the axis.
    """

    ends: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, box: Box, shape_zyx: Sequence[int], *, before: Sequence[int]) -> "BoxRegion":
        """Makes the region of a box of an image on the padded grid of its windows.

        Args:
            box: The box of the image.
            shape_zyx: Shape of the padded grid.
            before: How many voxels are padded before the image, per axis.
        """
        return cls(
            [
                ((part.start + more) / size, (part.stop + more) / size)
                for part, size, more in zip(box, shape_zyx, before, strict=True)
            ]
        )

    def touches(self, shares: Sequence[tuple[float, float]]) -> bool:
        """Whether another box, given as in `Region.touches`, shares a part with this one."""
        return all(
            low < stop and high > start
            for (low, high), (start, stop) in zip(shares, self.ends, strict=True)
        )


def find_region(
    mask: npt.NDArray[np.bool_], spacing_mm: Sequence[float], *, margin_mm: float = MARGIN_MM
) -> Region | None:
    """Makes the region around a mask.

    Args:
        mask: (z, y, x), the foreground on a grid that spans the image.
        spacing_mm: Spacing of that grid, (z, y, x).
        margin_mm: The margin around the foreground.

    Returns:
        The region; None if the mask is empty.
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
    windows: Iterable[Window],
    shape_zyx: Sequence[int],
    region: Region | BoxRegion,
    *,
    step: float,
) -> list[Window]:
    """Returns the windows whose middle touches the region.

    The middles of all windows together cover the image. With windows half a patch apart, the middle
    is the middle half of a window; in the outermost windows it reaches to the edge of the image. So
    every voxel of the region is predicted by the window in which it is most central. The windows
    left out see the foreground only at their rim, at a distance of the margin plus a quarter of the
    patch. Their Gaussian weight there is about 1e-2 where a quarter of the patch is twice the
    margin, and less elsewhere.

    Args:
        windows: Windows on the image's grid, padded where the patch is larger.
        shape_zyx: Shape of that padded grid.
        region: The region over the same image.
        step: Distance between neighbouring windows as a share of the patch.
    """
    found = []
    for window in windows:
        middle = [_middle(w, size, step) for w, size in zip(window, shape_zyx, strict=True)]
        if region.touches(middle):
            found.append(window)
    return found


def spanned_box(windows: Sequence[Window]) -> Box:
    """Returns the smallest box around windows, of which there must be at least one."""
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
