"""Draws patches from the store: chooses their positions and cuts out their voxels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import CaseFacts
from autoliver.planning.plan import neighbours
from autoliver.preprocessing.case import ANNOTATED
from autoliver.preprocessing.crop import OUTSIDE, Bounds
from autoliver.training.augment.placement import (
    SpatialSpec,
    TurnedGroup,
    first_draws,
    make_placements,
    turned_groups,
)
from autoliver.training.patches.region import PatchBox, inside, start_in
from autoliver.training.recipes import SamplerKind
from autoliver.training.share import Part

# Value of voxels outside the image: the mean of a normalised image.
IMAGE_PAD = 0.0

# Makes an array of a shape and a type, whose values do not matter.
Allocate = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]
Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int16]]


class Sliceable(Protocol):
    """An array that reads only what a slice touches (memory-mapped or in memory)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (c, z, y, x)."""

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        """The voxels of a box."""


class TrainingCase(Protocol):
    """A preprocessed case as the sampler needs it."""

    @property
    def facts(self) -> CaseFacts:
        """What is known about the case besides its voxels."""

    @property
    def image(self) -> Sliceable:
        """Image (c, z, y, x), float32."""

    @property
    def label(self) -> Sliceable | None:
        """Label values (1, z, y, x), int16; None for a case that cannot be trained on."""

    @property
    def previous(self) -> Sliceable | None:
        """Label values (1, z, y, x) predicted by the first stage of a cascade; None without one."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Spacing (z, y, x) of the arrays."""

    @property
    def locations(self) -> Mapping[int, npt.NDArray[np.int32]]:
        """Label value -> coordinates (n, 3) of voxels that have it."""


@dataclass(frozen=True, slots=True)
class PatchPlace:
    """The position of a patch.

    Attributes:
        case: Index of the case.
        start: First voxel (z, y, x) of the patch; may be outside the image.
    """

    case: int
    start: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchBoxes:
    """The boxes of voxels that the patches of a batch need.

    Attributes:
        shape: Shape (z, y, x) of a patch.
        whole: Place of each patch; None for those that are rotated or scaled.
        wide: The boxes of each group of these: their shape (z, y, x) and their places.
    """

    shape: tuple[int, int, int]
    whole: Sequence[PatchPlace | None]
    wide: Sequence[tuple[tuple[int, int, int], Sequence[PatchPlace]]] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches and the cases that they come from.

    Attributes:
        image: (b, c, *patch), float32.
        label: (b, 1, *patch), int16, label values or classes; -1 outside the image. For a cascade,
            a second channel holds the prediction of its first stage. The last channel is that of
            `PatchSampler.outside`, if there is one.
        cases: The case of each patch.
        wide: Image (n, c, *source) and label of each group of patches that will be rotated or
            scaled (`PatchStream.groups`). These have no values in `image` and `label`.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    cases: tuple[CaseFacts, ...]
    wide: tuple[Arrays, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PatchSampler:
    """Draws batches as nnU-Net does: cases uniformly, the last patches of a batch on foreground.

    A kind other than "proportional" draws a group of cases first, then one of its cases uniformly.

    Attributes:
        cases: Cases to draw from; those that are replayed from another dataset come last.
        patch_shape: 3 sizes, or 2 for slices along the first axis.
        margin: Per axis, how many voxels larger the patches are than the network's (the room that
            rotation needs); patches may extend that much further beyond the border.
        batch_size: Patches per batch.
        foreground: Share of a batch that must show foreground, 0 to 1.
        classes: Class of each label value, indexed by value + 1; None: values are kept.
        previous: The same table for the prediction of a cascade's first stage; None: no cascade.
        slices: Odd number of neighbouring slices in a 2D patch, which are cut out as a third axis;
            beyond the first and last slice of a case these are repeated.
        outside: For each case, where its unknown labels are known to be absent (`outside.py`):
            (1, z, y, x), 1 there and 0 elsewhere; None: nowhere.
        boxes: For each case, the box that its patches lie on; None: anywhere in the case.
        replayed: How many of the cases are replayed.
        kind: How the training's own cases are drawn: "proportional": uniformly, so that sources
            are drawn by their numbers of cases; "sqrt": sources by the square roots of these
            numbers; "balanced": sources alike; "modality-balanced": the patches of a batch show the
            modalities in turn, so that each batch has all of them if it is large enough.
        replay_share: Share of the patches that are drawn from them, 0 to 1. Every batch holds this
            share of its patches, rounded up or down at random so that the mean is exact.
        replay_first: Number of the first batch that is not drawn from them alone.
    """

    cases: Sequence[TrainingCase]
    patch_shape: tuple[int, ...]
    margin: tuple[int, ...]
    batch_size: int
    foreground: float
    classes: npt.NDArray[np.int16] | None = None
    previous: npt.NDArray[np.int16] | None = None
    slices: int = 1
    outside: Sequence[Sliceable] | None = None
    boxes: Sequence[PatchBox | None] | None = None
    replayed: int = 0
    replay_share: float = 0.0
    replay_first: int = 0
    kind: SamplerKind = "proportional"

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the training's own cases by source or by modality, in the order of names."""
        own = [case.facts for case in self.cases[: len(self.cases) - self.replayed]]
        by_modality = self.kind == "modality-balanced"
        found: dict[str, list[int]] = {}
        for index, facts in enumerate(own):
            found.setdefault(facts.modality if by_modality else facts.source, []).append(index)
        return tuple(tuple(found[name]) for name in sorted(found))

    @property
    def label_channels(self) -> int:
        """Number of label channels of a batch: one, and one each for `previous` and `outside`."""
        return 1 + (self.previous is not None) + (self.outside is not None)

    @property
    def inner_shape(self) -> tuple[int, ...]:
        """Shape of the network's patches: that of the patches without the margin."""
        return tuple(s - m for s, m in zip(self.patch_shape, self.margin, strict=True))

    @property
    def box_shape(self) -> tuple[int, int, int]:
        """Shape of a patch as a box (z, y, x)."""
        return self.as_box(self.patch_shape)

    def as_box(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """A shape of 2 or 3 sizes as one of a box (z, y, x), with all slices of a 2D patch."""
        z, y, x = (self.slices,) * (3 - len(shape)) + shape
        return z, y, x

    @property
    def flat(self) -> bool:
        """Whether patches are single slices, without a third axis."""
        return len(self.patch_shape) == 2 and self.slices == 1

    def draw(self, rng: np.random.Generator) -> Batch:
        """Draws one batch; equal generators give equal batches."""
        return self.cut(self.places(rng))

    def places(self, rng: np.random.Generator, number: int = 0) -> list[PatchPlace]:
        """Draws the places of the patches of one batch; equal arguments give equal places.

        Args:
            rng: The generator of the batch.
            number: The number of the batch, by which modalities take turns, and the first of which
                may show replayed cases alone.
        """
        first_forced = round(self.batch_size * (1.0 - self.foreground))
        own = len(self.cases) - self.replayed
        replays = self._replays(rng, number)
        places = []
        for index in range(self.batch_size):
            if index in replays:
                case = own + int(rng.integers(self.replayed))
            elif self.kind == "proportional":
                case = int(rng.integers(own))
            else:
                case = self._from_group(rng, number, index)
            start = self._start(case, rng, on_foreground=index >= first_forced)
            places.append(PatchPlace(case, start))
        return places

    def cut(self, places: Sequence[PatchPlace]) -> Batch:
        """Cuts out the patches at these places."""
        return self.cut_boxes(PatchBoxes(shape=self.box_shape, whole=places), places)

    def cut_boxes(
        self, boxes: PatchBoxes, places: Sequence[PatchPlace], allocate: Allocate = np.empty
    ) -> Batch:
        """Cuts out the boxes of a batch.

        Args:
            boxes: The boxes.
            places: The places of the patches, which tell the cases.
            allocate: Makes the arrays.
        """
        image, label = self._fill(boxes.whole, boxes.shape, allocate)
        wide = tuple(self._fill(own, shape, allocate) for shape, own in boxes.wide)
        return Batch(image, label, self.facts(places), wide)

    def _fill(
        self, places: Sequence[PatchPlace | None], shape: tuple[int, ...], allocate: Allocate
    ) -> Arrays:
        """Images and labels at some places; without a place an array keeps what it holds."""
        channels = self.cases[0].image.shape[0]
        images = allocate((len(places), channels, *shape), np.float32)
        targets = allocate((len(places), self.label_channels, *shape), np.int16)
        # Values that are still to be mapped reach 65,535; others are classes already.
        mapped = self.classes is not None or self.previous is not None
        values = np.empty(targets.shape[1:], np.int32) if mapped else None
        for place, image, target in zip(places, images, targets, strict=True):
            if place is None:
                continue
            image.fill(IMAGE_PAD)
            self.paste(self.cases[place.case].image, place.start, into=image)
            label = target if values is None else values
            label.fill(OUTSIDE)
            for channel, array in enumerate(self.label_arrays(place.case)):
                self.paste(array, place.start, into=label[channel : channel + 1])
            if values is not None:
                target[...] = self.to_classes(values)
        return (images[:, :, 0], targets[:, :, 0]) if self.flat else (images, targets)

    def paste(self, array: Any, start: Sequence[int], *, into: Any) -> None:
        """Copies the voxels of a patch, as `paste`; a 2D patch gets all of its slices.

        Args:
            array: (c, z, y, x), an array, a tensor or `Sliceable`.
            start: First voxel of the patch; in 2D that of its middle slice.
            into: The patch (c, z, y, x), an array or a tensor.
        """
        if self.slices == 1:
            paste(array, start, into=into)
            return
        for index, z in enumerate(neighbours(start[0], self.slices, array.shape[1])):
            paste(array, (z, *start[1:]), into=into[:, index : index + 1])

    def label_arrays(self, index: int) -> list[Sliceable]:
        """The arrays that form the label channels of a case.

        Args:
            index: Its place among the cases.

        Raises:
            ValueError: The case lacks one of them.
        """
        case = self.cases[index]
        arrays = [case.label] if self.previous is None else [case.label, case.previous]
        if self.outside is not None:
            arrays.append(self.outside[index])
        there = [array for array in arrays if array is not None]
        if len(there) != len(arrays):
            raise ValueError(f"{case.facts.name} has no label, or none of the first stage")
        return there

    def to_classes(self, labels: npt.NDArray[np.generic]) -> npt.NDArray[np.int16]:
        """Maps label values (..., label channels, z, y, x) to classes of the same shape."""
        if self.classes is None and self.previous is None:
            return labels.astype(np.int16, copy=False)
        found = np.empty(labels.shape, np.int16)
        previous = () if self.previous is None else (self.previous,)
        further = () if self.outside is None else (None,)
        for channel, table in enumerate((self.classes, *previous, *further)):
            values = labels[..., channel, :, :, :].astype(np.int32, copy=False)
            found[..., channel, :, :, :] = values if table is None else table[values + 1]
        return found

    def facts(self, places: Sequence[PatchPlace]) -> tuple[CaseFacts, ...]:
        """What is known about the case of each place."""
        return tuple(self.cases[place.case].facts for place in places)

    def _from_group(self, rng: np.random.Generator, number: int, index: int) -> int:
        """Draws one of the training's own cases for a patch of a batch."""
        groups, count = self.groups, len(self.groups)
        if self.kind == "modality-balanced":
            # The turns move on with each batch: else the patches on foreground, which are the last
            # ones, would always show the same modality.
            first = number
            if self.batch_size < count:
                first = number * self.batch_size + number * self.batch_size // count
            group = groups[(first + index) % count]
        else:
            power = 0.5 if self.kind == "sqrt" else 0.0
            shares = np.array([len(each) ** power for each in groups])
            group = groups[int(rng.choice(count, p=shares / shares.sum()))]
        return group[int(rng.integers(len(group)))]

    def _replays(self, rng: np.random.Generator, number: int) -> frozenset[int]:
        """Draws which patches of a batch show replayed cases."""
        if not self.replayed:
            return frozenset()
        if number < self.replay_first:
            return frozenset(range(self.batch_size))
        count = int(self.replay_share * self.batch_size + rng.random())
        return frozenset(rng.permutation(self.batch_size)[:count].tolist())

    def _start(
        self, index: int, rng: np.random.Generator, *, on_foreground: bool
    ) -> tuple[int, int, int]:
        """Draws the first voxel of a patch of a case; in 2D the first value is the slice."""
        case = self.cases[index]
        shape = case.image.shape[1:]
        box = None if self.boxes is None else self.boxes[index]
        if box is not None:
            bounds = box.drawn(rng, shape)
            voxel = _voxel_to_show(case, rng, on_foreground=on_foreground, bounds=bounds)
            return start_in(bounds, shape, self.patch_shape, self.margin, voxel, rng)
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
        if len(start) == 2:
            start.insert(0, int(rng.integers(shape[0])) if voxel is None else int(voxel[0]))
        z, y, x = start
        return z, y, x


@dataclass(frozen=True, kw_only=True)
class PatchStream:
    """Numbered batches, each of which is a function of the seed and its number alone.

    Attributes:
        sampler: The sampler that draws the batches.
        seed: Seed of this stream.
        part: The part of each batch that is made; None: the whole batch.
        spatial: How the patches will be rotated and scaled (`augment_seed` decides): no more than
            what that needs is cut out. None: all patches are cut out as large as the sampler has
            them.
    """

    sampler: PatchSampler
    seed: tuple[int, ...]
    part: Part | None = None
    spatial: SpatialSpec | None = None

    def rng(self, number: int) -> np.random.Generator:
        """The random generator of a batch."""
        return np.random.default_rng([*self.seed, number])

    def augment_seed(self, number: int) -> int:
        """The seed of the augmentations of a batch."""
        return int(self.rng(number).integers(2**62))

    def places(self, number: int) -> list[PatchPlace]:
        """The places of those patches of a batch that belong to this part."""
        places = self.sampler.places(self.rng(number), number)
        return places if self.part is None else places[self.part.start : self.part.stop]

    def groups(self, number: int) -> tuple[TurnedGroup, ...]:
        """The patches of this part that will be rotated or scaled, as is drawn first."""
        if self.spatial is None:
            return ()
        drawn = first_draws(self.augment_seed(number), self.sampler.batch_size, self.spatial)
        part = self.part or Part(start=0, stop=len(drawn), whole=len(drawn))
        placements = make_placements(drawn[part.start : part.stop], self.spatial)
        return turned_groups(placements, self.sampler.inner_shape, self.sampler.patch_shape)

    def boxes(self, number: int, places: Sequence[PatchPlace]) -> PatchBoxes:
        """The boxes that the patches of a batch need, all about the centres of their places."""
        sampler = self.sampler
        if self.spatial is None:
            return PatchBoxes(shape=sampler.box_shape, whole=places)
        source, patch, groups = sampler.patch_shape, sampler.inner_shape, self.groups(number)
        turned = {sample for group in groups for sample in group.samples}
        middle = [s // 2 - p // 2 for s, p in zip(source, patch, strict=True)]
        wide = []
        for group in groups:
            edge = [(s - w) // 2 for s, w in zip(source, group.shape, strict=True)]
            own = [_moved(places[sample], edge) for sample in group.samples]
            wide.append((sampler.as_box(group.shape), own))
        return PatchBoxes(
            shape=sampler.as_box(patch),
            whole=[
                None if sample in turned else _moved(place, middle)
                for sample, place in enumerate(places)
            ],
            wide=wide,
        )

    def draw(self, number: int, allocate: Allocate = np.empty) -> Batch:
        """Draws this part of a batch; `allocate` makes its arrays."""
        places = self.places(number)
        return self.sampler.cut_boxes(self.boxes(number, places), places, allocate)

    def draw_whole(self, number: int) -> Batch:
        """Draws this part of a batch with all patches as large as the sampler has them."""
        return self.sampler.cut(self.places(number))


def _moved(place: PatchPlace, by: Sequence[int]) -> PatchPlace:
    """The place of a box that begins further inside, by some voxels along the last axes."""
    z, y, x = (
        first + more for first, more in zip(place.start, (*[0] * (3 - len(by)), *by), strict=True)
    )
    return replace(place, start=(z, y, x))


def paste(array: Any, start: Sequence[int], *, into: Any) -> None:
    """Copies the part of an array that is inside a box; outside the array the box is unchanged.

    Args:
        array: (c, z, y, x), an array, a tensor or `Sliceable`.
        start: First voxel of the box; may be outside the array.
        into: The box (c, z, y, x), an array or a tensor.
    """
    here, there = [slice(None)], [slice(None)]
    for first, size, length in zip(start, array.shape[1:], into.shape[1:], strict=True):
        low = min(max(first, 0), size)
        high = max(low, min(first + length, size))
        there.append(slice(low, high))
        here.append(slice(low - first, high - first))
    into[tuple(here)] = array[tuple(there)]


def _range_of_starts(size: int, patch: int, margin: int) -> tuple[int, int]:
    """Lowest and highest first voxel of a patch along one axis (both inclusive)."""
    pad = max(margin, patch - size)
    return -((pad + 1) // 2), size + (pad + 1) // 2 - patch


def _voxel_to_show(
    case: TrainingCase,
    rng: np.random.Generator,
    *,
    on_foreground: bool,
    bounds: Bounds | None = None,
) -> npt.NDArray[np.int32] | None:
    """Draws a voxel that the patch must contain; None if any patch will do.

    With an ignore label, every patch must show an annotated voxel (locations of value -1). With
    bounds, only voxels within them are drawn.
    """
    locations = case.locations
    if bounds is not None:
        locations = {value: inside(voxels, bounds) for value, voxels in locations.items()}
    present = sorted(v for v, voxels in locations.items() if v > 0 and len(voxels))
    if on_foreground and present:
        voxels = locations[present[int(rng.integers(len(present)))]]
    else:
        voxels = locations.get(ANNOTATED, np.empty((0, 3), np.int32))
    return np.asarray(voxels[int(rng.integers(len(voxels)))]) if len(voxels) else None
