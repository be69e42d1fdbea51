"""Patches drawn from the store: where they lie, and their voxels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from autoliver.preprocessing.case import ANNOTATED

# Voxels outside the image: 0 is the mean of a normalised image; -1 marks "no label here".
_IMAGE_PAD = 0.0
_LABEL_PAD = -1


class Readable(Protocol):
    """An array that reads only what a slice touches (memory-mapped or in memory)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, z, y, x)."""

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        """The voxels of a box."""


class TrainingCase(Protocol):
    """A preprocessed case as the sampler needs it."""

    @property
    def name(self) -> str:
        """The case's name."""

    @property
    def image(self) -> Readable:
        """(c, z, y, x) float32."""

    @property
    def label(self) -> Readable | None:
        """(1, z, y, x) int16; training needs one."""

    @property
    def locations(self) -> Mapping[int, npt.NDArray[np.int32]]:
        """Label value -> (n, 3) voxels that show it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches and what they come from.

    Attributes:
        image: (b, c, *patch) float32.
        label: (b, 1, *patch) int16, -1 outside the image.
        cases: The case of each patch.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    cases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PatchSampler:
    """Draws batches as nnU-Net does: cases uniformly, the last third of a batch on foreground.

    Attributes:
        cases: What is drawn from.
        patch_shape: 3 values, or 2 for slices of the first axis.
        margin: Per axis, by how much patches may be larger than the network's (the room that
            rotation needs); such patches may reach that much further over the border.
        batch_size: Patches per batch.
        foreground: Share of a batch that must show foreground.
    """

    cases: Sequence[TrainingCase]
    patch_shape: tuple[int, ...]
    margin: tuple[int, ...]
    batch_size: int
    foreground: float

    def draw(self, rng: np.random.Generator) -> Batch:
        """One batch; equal generators give equal batches."""
        first_forced = round(self.batch_size * (1.0 - self.foreground))
        images, labels, names = [], [], []
        for index in range(self.batch_size):
            case = self.cases[int(rng.integers(len(self.cases)))]
            start = self._place(case, rng, on_foreground=index >= first_forced)
            image, label = self._cut(case, start)
            images.append(image)
            labels.append(label)
            names.append(case.name)
        return Batch(np.stack(images), np.stack(labels), tuple(names))

    def _place(
        self, case: TrainingCase, rng: np.random.Generator, *, on_foreground: bool
    ) -> tuple[int, ...]:
        """First voxel of a patch (may be negative); in 2D the first value is the slice."""
        shape = case.image.shape[1:]
        voxel = _voxel_to_show(case, rng, on_foreground=on_foreground)
        plane = shape[3 - len(self.patch_shape) :]
        start = []
        for axis, (size, patch, margin) in enumerate(
            zip(plane, self.patch_shape, self.margin, strict=True)
        ):
            low, high = _range_of_starts(size, patch, margin)
            if voxel is None:
                start.append(int(rng.integers(low, high + 1)))
            else:
                start.append(max(low, int(voxel[axis + 3 - len(plane)]) - patch // 2))
        if len(self.patch_shape) == 3:
            return tuple(start)
        slice_index = int(rng.integers(shape[0])) if voxel is None else int(voxel[0])
        return (slice_index, *start)

    def _cut(
        self, case: TrainingCase, start: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16]]:
        shape = self.patch_shape if len(self.patch_shape) == 3 else (1, *self.patch_shape)
        if case.label is None:
            raise ValueError(f"{case.name} has no label")
        image = _crop_and_pad(case.image, start, shape, _IMAGE_PAD).astype(np.float32, copy=False)
        label = _crop_and_pad(case.label, start, shape, _LABEL_PAD).astype(np.int16, copy=False)
        if len(self.patch_shape) == 2:
            return image[:, 0], label[:, 0]
        return image, label


def _range_of_starts(size: int, patch: int, margin: int) -> tuple[int, int]:
    """Lowest and highest first voxel along one axis (inclusive)."""
    pad = max(margin, patch - size)
    return -((pad + 1) // 2), size + (pad + 1) // 2 - patch


def _voxel_to_show(
    case: TrainingCase, rng: np.random.Generator, *, on_foreground: bool
) -> npt.NDArray[np.int32] | None:
    """A voxel that the patch must hold; None where any patch will do.

    With an ignore label every patch must show something annotated (locations of value -1).
    """
    present = sorted(v for v, voxels in case.locations.items() if v > 0 and len(voxels))
    if on_foreground and present:
        voxels = case.locations[present[int(rng.integers(len(present)))]]
    else:
        voxels = case.locations.get(ANNOTATED, np.empty((0, 3), np.int32))
    return np.asarray(voxels[int(rng.integers(len(voxels)))]) if len(voxels) else None


def _crop_and_pad(
    array: Readable, start: Sequence[int], shape: Sequence[int], fill: float
) -> npt.NDArray[np.generic]:
    """The box [start, start + shape) of a (c, z, y, x) array, `fill` where it lies outside."""
    size = array.shape[1:]
    inside = [(max(s, 0), min(s + n, m)) for s, n, m in zip(start, shape, size, strict=True)]
    piece = np.asarray(array[(slice(None), *(slice(a, b) for a, b in inside))])
    if piece.shape[1:] == tuple(shape):
        return piece
    widths = [(a - s, s + n - b) for s, n, (a, b) in zip(start, shape, inside, strict=True)]
    return np.pad(piece, [(0, 0), *widths], constant_values=fill)
