"""Brings one case to the network's grid, and network outputs back to the input grid.

Forward: bring the axes to the plan's anatomical order, transpose, crop to the non-zero region,
normalise, resample. Normalisation comes before resampling, which would blur the edge of the mask it
needs. Backward: resample to the cropped grid, paste into the whole grid, undo the transpose, bring
the axes back to the input's own order.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.datasets.cases import Labels, Modality
from autoliver.errors import DatasetError
from autoliver.io.orientation import Reorientation, reorientation_to
from autoliver.io.volume import Geometry, Volume
from autoliver.memory import GB, check_room
from autoliver.planning.nonzero import Box
from autoliver.planning.outliers import without_impossible
from autoliver.planning.plan import Configuration, Plan
from autoliver.preprocessing.crop import Bounds, Cropped, crop_to_nonzero
from autoliver.preprocessing.normalize import normalize_case
from autoliver.preprocessing.resample import (
    Operators,
    Shape,
    apply_operators,
    cut_operators,
    linear_operators,
    resample_image,
    resample_labels,
    separate_axis,
)

T = TypeVar("T")
A = TypeVar("A", bound=np.generic)
L = TypeVar("L", bound=np.integer)
Spacing = tuple[float, float, float]

# nnU-Net's number: at least this share of a class's voxels is kept as locations.
_LEAST_COVERAGE = 0.01
# The key in class_locations for all voxels that are not ignored, in datasets with an ignore label.
ANNOTATED = -1

_FLOAT32 = 4
# What resampling takes at the least, in sizes of its result; measured: 3.8.
_RESAMPLING = 3.0
_COPY = 1.0  # without resampling: the squares of a deviation, or the copy of an image that is kept
# Label files of nnU-Net and of autoliver hold at most unsigned 16-bit values.
_LARGEST_LABEL = 65_535
# Voxels of the cropped grid decided at a time on the way back: 16 MB per class and buffer.
_SLAB_VOXELS = 1 << 22


class CaseProperties(Record, frozen=True, kw_only=True):
    """The facts about a case that are needed to map the network's grid back to the input grid.

    Attributes:
        name: The case's name.
        modality: The case's modality.
        geometry: The input grid.
        axis_codes: The anatomical order that the input's axes are brought to first; empty if they
            keep their own.
        transpose_forward: Order of those axes in all attributes below.
        box: First and last-plus-one voxel per transposed axis that the crop kept.
        shape_zyx: Size of the network's grid.
        spacing_mm: Spacing of the network's grid.
    """

    name: str
    modality: Modality
    geometry: Geometry
    transpose_forward: tuple[int, int, int]
    box: Bounds
    shape_zyx: Shape
    spacing_mm: Spacing
    axis_codes: str = ""

    @property
    def reorientation(self) -> Reorientation:
        """What brought the input's axes to the plan's order."""
        return reorientation_to(self.geometry, self.axis_codes)

    @property
    def transpose_backward(self) -> tuple[int, int, int]:
        """Order of the transposed axes that restores the order before."""
        z, y, x = (self.transpose_forward.index(axis) for axis in range(3))
        return z, y, x

    @property
    def oriented_shape(self) -> Shape:
        """The input's size in the plan's order of axes."""
        return self.reorientation.values(self.geometry.shape_zyx)

    @property
    def shape_before_crop(self) -> Shape:
        """Size of the whole input, transposed."""
        return _permute(self.oriented_shape, self.transpose_forward)

    @property
    def shape_after_crop(self) -> Shape:
        """Size of the cropped input, transposed."""
        z, y, x = (stop - start for start, stop in self.box)
        return z, y, x

    @property
    def input_spacing_mm(self) -> Spacing:
        """Spacing of the input, transposed."""
        oriented = self.reorientation.values(self.geometry.spacing_mm)
        return _permute(oriented, self.transpose_forward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessed:
    """A case on the network's grid.

    Attributes:
        image: (c, z, y, x), float32, normalised.
        label: (1, z, y, x), of `label_dtype`, -1 for background outside the non-zero region; None
            for a case without a label.
        properties: What is needed to map results back to the input grid.
    """

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.signedinteger] | None
    properties: CaseProperties


def forward(
    image: Volume,
    label: Volume | None,
    *,
    plan: Plan,
    configuration: Configuration,
    name: str,
    modality: Modality | None = None,
) -> Preprocessed:
    """Brings a case to the network's grid and normalises its intensities.

    Args:
        image: The case's channels; overwritten if they are spare.
        label: (1, z, y, x) on the same grid; None for a case without a label.
        plan: The plan, with transposition and foreground intensities.
        configuration: The configuration, with spacing and normalisation.
        name: The case's name, for messages and its properties.
        modality: The case's modality, which decides its normalisation; None: the plan's modality.

    Returns:
        The preprocessed arrays and the properties that lead back to the input grid.

    Raises:
        DatasetError: Image, label and plan do not fit one another.
    """
    _check(image, label, plan, name)
    axes, codes = plan.transpose_forward, plan.axis_codes if image.oriented else ""
    turn = reorientation_to(image.geometry, codes)
    order = (0, *(axis + 1 for axis in axes))
    cropped = crop_to_nonzero(
        turn.array(without_impossible(image.array, name=name)).transpose(order),
        None if label is None else turn.array(label.array).transpose(order),
        ignore=plan.labels.ignore,
        dtype=label_dtype(plan.labels),
    )
    cropped = dataclasses.replace(cropped, spare=image.spare)
    modality = modality or plan.modality
    spacing = _permute(turn.values(image.geometry.spacing_mm), axes)
    target_spacing = network_spacing(configuration, spacing)
    shape = resampled_shape(cropped.mask.shape, spacing, target_spacing)
    same = shape == cropped.mask.shape
    check_room(
        (_COPY if same else _RESAMPLING) * len(image.array) * math.prod(shape) * _FLOAT32 / GB,
        case=name,
        what=f"{'' if same else 'resampled '}it has {'x'.join(map(str, shape))} voxels",
    )
    separate = separate_axis(spacing, target_spacing)
    normal = normalize_case(
        _resampled(cropped, shape, separate, masked=configuration.mask_norm)
        if configuration.normalize_after_resampling
        else cropped,
        plan=plan,
        configuration=configuration,
        modality=modality,
        where=name,
    )
    properties = CaseProperties(
        name=name,
        modality=modality,
        geometry=image.geometry,
        axis_codes=codes,
        transpose_forward=axes,
        box=cropped.box,
        shape_zyx=shape,
        spacing_mm=target_spacing,
    )
    old = cropped.label
    del cropped  # with its mask
    found = resample_image(normal, shape, separate_axis=separate, spare=True)
    del normal
    new = None if old is None else resample_labels(old, shape, separate_axis=separate)
    return Preprocessed(image=found, label=new, properties=properties)


def forward_cascade(
    image: Volume,
    found: npt.NDArray[np.integer],
    *,
    plan: Plan,
    configuration: Configuration,
    name: str,
    modality: Modality | None = None,
) -> Preprocessed:
    """Runs `forward` and appends the first stage's label map as one channel per foreground value.

    Args:
        image: The case's channels.
        found: (z, y, x) label map of the first stage on the image's grid.
        plan: As in `forward`.
        configuration: The cascade's configuration.
        name: The case's name.
        modality: As in `forward`.

    Returns:
        The image (c + foreground values, z, y, x), without a label.
    """
    case = forward(
        image, None, plan=plan, configuration=configuration, name=name, modality=modality
    )
    further = one_hot(forward_labels(found, case.properties), plan.labels)
    return dataclasses.replace(case, image=np.concatenate([case.image, further]))


def forward_labels(labels: npt.NDArray[L], properties: CaseProperties) -> npt.NDArray[L]:
    """Resamples a label map to the network's grid of a case that is already preprocessed.

    Args:
        labels: (z, y, x) on the input grid.
        properties: The case's properties.

    Returns:
        (1, z, y, x), with the dtype of `labels`.
    """
    z, y, x = (slice(*ends) for ends in properties.box)
    return resample_labels(
        properties.reorientation.array(labels).transpose(properties.transpose_forward)[
            None, z, y, x
        ],
        properties.shape_zyx,
        separate_axis=separate_axis(properties.input_spacing_mm, properties.spacing_mm),
    )


def one_hot(label: npt.NDArray[np.integer], labels: Labels) -> npt.NDArray[np.float32]:
    """Encodes a (1, z, y, x) label map as (n, z, y, x): one channel per foreground value."""
    values = np.array(labels.foreground_values, dtype=label.dtype).reshape(-1, 1, 1, 1)
    channels: npt.NDArray[np.float32] = (label == values).astype(np.float32)
    return channels


def label_dtype(labels: Labels) -> "np.dtype[np.signedinteger]":
    """Returns the signed type that holds a dataset's label values and -1."""
    return np.dtype(np.int16 if max(labels.allowed) <= np.iinfo(np.int16).max else np.int32)


def network_spacing(configuration: Configuration, input_spacing_mm: Spacing) -> Spacing:
    """Returns the spacing of a case's network grid; in 2D the first axis keeps the input's spacing.

    Args:
        configuration: The configuration, with 2 or 3 target spacings.
        input_spacing_mm: The case's input spacing, transposed.

    Returns:
        Three spacings in mm, transposed.
    """
    target = configuration.spacing_mm
    z, y, x = target if len(target) == 3 else (input_spacing_mm[0], *target)
    return z, y, x


def resampled_shape(shape: tuple[int, ...], spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Returns the size that keeps the extent in mm, rounded as in nnU-Net; at least one voxel.

    Args:
        shape: (z, y, x) of the present grid.
        spacing_mm: Spacing of the present grid.
        target_mm: Spacing of the new grid.

    Returns:
        (z, y, x).
    """
    z, y, x = (
        max(1, round(before / after * size))
        for before, after, size in zip(spacing_mm, target_mm, shape, strict=True)
    )
    return z, y, x


@dataclass(frozen=True, kw_only=True, slots=True)
class WayBack:
    """How a box of the network's grid is resampled to the grid of the crop.

    Attributes:
        box: The box of the network's grid.
        operators: The linear resampling from the box, one matrix per axis.
        place: The box of the crop that depends on the box alone.
    """

    box: Box
    operators: Operators
    place: Box

    @property
    def shape(self) -> Shape:
        """Size of `place`."""
        z, y, x = (part.stop - part.start for part in self.place)
        return z, y, x

    @classmethod
    def of(cls, properties: CaseProperties, within: Box | None = None) -> "WayBack":
        """Returns the way back of a case; without a box, that of its whole network grid."""
        whole, shape = properties.shape_zyx, properties.shape_after_crop
        box = within or (slice(0, whole[0]), slice(0, whole[1]), slice(0, whole[2]))
        separate = _separate_backward(properties)
        operators, place = cut_operators(
            linear_operators(whole, shape, separate_axis=separate), box, shape
        )
        return cls(box=box, operators=operators, place=place)


def backward_logits(
    logits: npt.NDArray[np.floating],
    properties: CaseProperties,
    *,
    labels: Labels,
    within: Box | None = None,
) -> npt.NDArray[np.integer]:
    """Resamples the network's output to the input grid and decides the label of each voxel there.

    It works slab by slab and class by class, so that no class-by-voxel array of the whole scan is
    ever in memory.

    Args:
        logits: (k, z, y, x) on the network's grid, one row per class or region.
        properties: The case's properties.
        labels: The labels of the rows. Of classes, the largest logit wins. Regions with a
            probability above 0.5 are painted one over the other in `regions_class_order`.
        within: The box of the network's grid that the logits cover; None: the whole grid. Voxels
            that lie outside the box or are interpolated from outside become background.

    Returns:
        (z, y, x) on the input grid, in the smallest unsigned type that holds the labels.
    """
    back = WayBack.of(properties, within)
    _check_rows(logits, [part.stop - part.start for part in back.box], labels)
    written = written_values(labels)
    cropped = np.zeros((1, *properties.shape_after_crop), dtype=np.min_scalar_type(max(written)))
    inside = cropped[0][back.place]
    # A box smaller than a voxel of this grid leaves nothing to decide.
    for rows in slabs(inside.shape) if inside.size else ():
        columns, operators = slab_of(back.operators, rows)
        decide_slab(inside[rows], logits[:, columns], operators, labels=labels)
    return uncrop(cropped, properties).squeeze(0)


def slab_of(operators: Operators, rows: slice) -> tuple[slice, Operators]:
    """Returns which rows of the network's grid some rows of the crop need, and how they get there.

    Args:
        operators: The resampling of the whole grid, one matrix per axis.
        rows: A range of the first axis of the crop.
    """
    first = operators[0]
    if first is None:
        return rows, operators
    used = np.flatnonzero(first[rows].any(axis=0))
    columns = slice(int(used[0]), int(used[-1]) + 1)
    return columns, (first[rows, columns], operators[1], operators[2])


def decide_slab(
    target: npt.NDArray[np.integer],
    logits: npt.NDArray[np.floating],
    operators: Operators,
    *,
    labels: Labels,
) -> None:
    """Decides the label of each voxel of a slab of the crop.

    Args:
        target: (z, y, x), zeros, which take the labels.
        logits: (k, z, y, x), the rows of the network's grid that the slab depends on.
        operators: The resampling from these rows to the slab, one matrix per axis.
        labels: The labels of the k rows of the output.
    """
    # A region is painted where its logit is above 0, i.e. its probability above 0.5.
    best = np.zeros(target.shape, dtype=np.float32)
    for index, (row, value) in enumerate(zip(logits, written_values(labels), strict=True)):
        score = apply_operators(row, operators)
        if labels.has_regions:
            target[score > 0] = value
        elif index == 0:
            # A copy: on an unchanged grid the score is the caller's array.
            best = score.copy()
            target[:] = value
        else:
            np.copyto(target, value, where=score > best)
            np.maximum(best, score, out=best)


def backward_image(
    image: npt.NDArray[np.floating], properties: CaseProperties, *, fill: float
) -> npt.NDArray[np.float32]:
    """Brings an image from the network's grid to the input grid, by linear interpolation.

    Args:
        image: (c, z, y, x) on the network's grid.
        properties: The case's properties.
        fill: The value of voxels that were cropped away.

    Returns:
        (c, z, y, x) on the input grid.
    """
    _, *shape = image.shape
    separate = _separate_backward(properties)
    operators = linear_operators(shape, properties.shape_after_crop, separate_axis=separate)
    rows = slice(0, properties.shape_after_crop[0])
    cropped = [apply_operators(channel - fill, operators, rows=rows) for channel in image]
    return uncrop(np.stack(cropped).astype(np.float32), properties) + np.float32(fill)


def class_locations(
    label: npt.NDArray[np.integer],
    labels: Labels,
    *,
    rng: np.random.Generator,
    limit: int = 10_000,
) -> dict[int, npt.NDArray[np.int32]]:
    """Draws voxels of each foreground label, on which training patches can be centred.

    Args:
        label: (1, z, y, x) on the network's grid.
        labels: The dataset's labels.
        rng: Random generator; voxels are drawn without replacement.
        limit: Locations per label, or one in a hundred of its voxels where that is more.

    Returns:
        Value -> (n, 3) positions (z, y, x), empty for a label that is absent. With an ignore label
        also `ANNOTATED` -> positions of voxels that are not ignored.
    """
    flat = label.reshape(-1)
    present = np.flatnonzero(flat > 0)
    values = flat[present]
    order = np.argsort(values, kind="stable")
    values, present = values[order], present[order]
    wanted = {v for group in labels.foreground.values() for v in group} - {0, labels.ignore}
    pools: dict[int, npt.NDArray[np.intp]] = {}
    for value in sorted(wanted):
        start, stop = np.searchsorted(values, [value, value + 1])
        pools[value] = present[start:stop]
    if labels.ignore is not None:
        pools[ANNOTATED] = np.flatnonzero(flat != labels.ignore)
    locations = {}
    for value, pool in pools.items():
        count = max(min(limit, pool.size), int(np.ceil(pool.size * _LEAST_COVERAGE)))
        chosen = rng.choice(pool, count, replace=False, shuffle=False) if count else pool
        places = np.unravel_index(chosen, label.shape[1:])
        locations[value] = np.stack(places, axis=1).astype(np.int32)
    return locations


def _resampled(
    cropped: Cropped, shape: Shape, separate: int | None, *, masked: Sequence[bool]
) -> Cropped:
    """Brings image and mask, not the label, to the network's grid, as nnU-Net v1 does.

    The splines ring outside the mask, so channels that are normalised within it are 0 there.
    """
    mask = resample_labels(cropped.mask[None].astype(np.int8), shape, separate_axis=separate)[0] > 0
    image = resample_image(cropped.image.astype(np.float32), shape, separate_axis=separate)
    for channel, within in zip(image, masked, strict=True):
        if within:
            channel[~mask] = 0
    return dataclasses.replace(cropped, image=image, mask=mask)


def _check(image: Volume, label: Volume | None, plan: Plan, name: str) -> None:
    if len(image.array) != len(plan.channel_names):
        raise DatasetError(
            f"{name}: {len(image.array)} image channels; the plan expects "
            f"{len(plan.channel_names)} ({', '.join(plan.channel_names)}).",
            hint="Provide the channels that dataset.json names, in its order.",
        )
    if label is None:
        return
    if label.geometry.shape_zyx != image.geometry.shape_zyx:
        raise DatasetError(
            f"{name}: image and label differ in size: image {image.geometry.shape_zyx}, "
            f"label {label.geometry.shape_zyx} (z, y, x).",
            hint="Export the label on the image's grid, or leave the case out.",
        )
    highest = int(label.array.max())
    if highest > _LARGEST_LABEL:
        raise DatasetError(
            f"{name}: label value {highest}, expected at most {_LARGEST_LABEL}.",
            hint="Renumber the labels. The values of each case: autoliver verify DATASET",
        )


def _check_rows(logits: npt.NDArray[np.floating], shape_zyx: Sequence[int], labels: Labels) -> None:
    expected = (labels.out_channels, *shape_zyx)
    if logits.shape != expected:
        raise ValueError(f"expected logits of shape {expected}, got {logits.shape}")


def written_values(labels: Labels) -> tuple[int, ...]:
    """Returns the label value that each row of the network's output stands for."""
    if labels.has_regions:
        return labels.regions_class_order or ()
    return tuple(sorted(min(values) for values in labels.values.values()))


def _separate_backward(properties: CaseProperties) -> int | None:
    return separate_axis(properties.spacing_mm, properties.input_spacing_mm)


def slabs(shape_zyx: Shape) -> Iterator[slice]:
    """Yields ranges of the first axis that each hold a bounded number of voxels."""
    depth = max(1, _SLAB_VOXELS // (shape_zyx[1] * shape_zyx[2]))
    for start in range(0, shape_zyx[0], depth):
        yield slice(start, min(start + depth, shape_zyx[0]))


def uncrop(cropped: npt.NDArray[A], properties: CaseProperties) -> npt.NDArray[A]:
    """Pastes a cropped (k, z, y, x) array into zeros and brings it back to the input's order.

    Args:
        cropped: On the grid of the crop.
        properties: The case's properties.
    """
    whole = np.zeros((len(cropped), *properties.shape_before_crop), dtype=cropped.dtype)
    z, y, x = (slice(*ends) for ends in properties.box)
    whole[:, z, y, x] = cropped
    oriented = whole.transpose(0, *(axis + 1 for axis in properties.transpose_backward))
    back = properties.reorientation.inverse
    return oriented if back == Reorientation() else np.ascontiguousarray(back.array(oriented))


def _permute(values: tuple[T, T, T], axes: tuple[int, int, int]) -> tuple[T, T, T]:
    z, y, x = (values[axis] for axis in axes)
    return z, y, x
