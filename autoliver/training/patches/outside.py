"""Where voxels are too far from an organ to belong to a lesion of it.

Distances are measured once per case, on the whole case as the network sees it before augmentation,
and never within a patch: an organ may lie just beyond its border.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from autoliver.datasets.cases import Labels, known_around
from autoliver.training.patches.sampling import Sliceable, TrainingCase, paste

_Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class OutsideMap:
    """A map (1, z, y, x) that is 1 outside of an organ and its surroundings, and 0 elsewhere.

    It is made when a part of it is first read, which takes up to 49 bytes per voxel of the
    surroundings, and kept in memory as one bit of each. Pickling keeps what is made.

    Attributes:
        label: The label map (1, z, y, x) of the case.
        values: The values of the organ, and those of voxels that may belong to it; None: nothing
            is outside.
        spacing_mm: Spacing (z, y, x) of the label map.
        distance_mm: Voxels further than this from the organ are outside.
    """

    label: Sliceable
    values: Collection[int] | None
    spacing_mm: Sequence[float]
    distance_mm: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (1, z, y, x)."""
        return self.label.shape

    def __getitem__(self, key: Any) -> npt.NDArray[np.int16]:
        """The values of a box."""
        ranges = [slice_.indices(n) for slice_, n in zip(key, self.shape, strict=True)]
        size = [stop - start for start, stop, _ in ranges]
        if self.values is None:
            return np.zeros(size, np.int16)
        found = np.ones(size, np.int16)
        if self._near is not None:
            start = [
                own[0] - low for own, (low, _) in zip(ranges[1:], self._near.bounds, strict=True)
            ]
            near = np.zeros(size, np.uint8)
            paste(self._near, start, into=near)
            found[near > 0] = 0
        return found

    @cached_property
    def _near(self) -> "_Bits | None":
        """The organ and its surroundings; None if the case does not show the organ."""
        from scipy import ndimage

        label = self.label[(slice(None),) * 4][0]
        organ = np.isin(label, list(self.values or ()))
        box = ndimage.find_objects(organ.view(np.uint8))
        if not box:
            return None
        # No voxel within the distance is beyond this box, so that nothing is cut off.
        reach = [int(self.distance_mm / mm) + 1 for mm in self.spacing_mm]
        bounds = tuple(
            (max(0, part.start - more), min(size, part.stop + more))
            for part, more, size in zip(box[0], reach, organ.shape, strict=True)
        )
        inside = organ[tuple(slice(*pair) for pair in bounds)]
        distance = ndimage.distance_transform_edt(~inside, sampling=self.spacing_mm)
        return _Bits(np.packbits(distance <= self.distance_mm, axis=-1), bounds)


@dataclass(frozen=True)
class _Bits:
    """A mask of a part of a case, one bit per voxel, that is read like an array (1, z, y, x)."""

    packed: npt.NDArray[np.uint8]
    bounds: _Bounds

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *(stop - start for start, stop in self.bounds))

    def __getitem__(self, key: Any) -> npt.NDArray[np.uint8]:
        _, z, y, x = key
        rows = np.unpackbits(self.packed[z, y], axis=-1, count=self.shape[-1])
        return rows[None, ..., x]


def outside_map(case: TrainingCase, labels: Labels, distance_mm: float) -> OutsideMap:
    """Returns where the unknown labels of a case are known to be absent.

    That is further than a distance from the known labels that they lie in, as a tumour lies in the
    liver. Voxels that are ignored may belong to these labels, and count like them. If the case does
    not show these labels at all, all of it is outside.

    Args:
        case: The case; it has a label map.
        labels: The labels of the training.
        distance_mm: The distance.
    """
    if case.label is None:
        raise ValueError(f"{case.facts.name} has no label")
    organs = set(known_around(labels.foreground, case.facts).values())
    values = {value for name in organs for value in labels.values[name]}
    if labels.ignore is not None:
        values.add(labels.ignore)
    return OutsideMap(
        label=case.label,
        values=frozenset(values) if organs else None,
        spacing_mm=case.spacing_mm,
        distance_mm=distance_mm,
    )


def measure_all(maps: Sequence[Sliceable]) -> None:
    """Makes the maps here, one after the other, and shows a progress bar.

    Otherwise each process that draws patches makes those that it reads, all of them at once.
    """
    for each in tqdm(maps, desc="distances to organs", unit="case", disable=None):
        each[(slice(0, 1),) * len(each.shape)]
