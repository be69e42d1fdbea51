"""Averages the outputs of several members, each on its own grid, on the grid of the case.

The work is done slab by slab. A class-by-voxel array of the whole scan is only made if it is
requested.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Labels
from autoliver.inference.clean import Components
from autoliver.inference.lesions.union import with_union
from autoliver.io.orientation import Reorientation
from autoliver.planning.nonzero import Box
from autoliver.planning.plan import Average
from autoliver.preprocessing.case import (
    CaseProperties,
    slabs,
    written_values,
)
from autoliver.preprocessing.resample import (
    Operators,
    apply_operators,
    linear_operators,
    separate_axis,
)

Array = npt.NDArray[np.float32]
A = TypeVar("A", bound=np.generic)

# The logit of background in places where no network was run. It is larger than the logits of
# networks, and does no harm when it is interpolated with them.
SURE = 30.0


@dataclass(frozen=True, kw_only=True)
class Output:
    """The output of one member for a case.

    Attributes:
        logits: (k, z, y, x) on the member's network grid; probabilities if `average` says so.
        properties: Describes how to get from the network grid back to the input's grid.
        spread: (k, z, y, x) probabilities, averaged over the member's folds; None unless the
            uncertainty was requested.
        within: The box of the network grid that `logits` and `spread` cover; everything outside it
            is background. None if they cover the whole grid.
        average: What `logits` holds, averaged over windows, flips and folds.
        label_map: The label map (z, y, x) on the input's grid, if it was decided on the GPU;
            `logits` then have no voxels.
    """

    logits: Array
    properties: CaseProperties
    spread: Array | None = None
    within: Box | None = None
    average: Average = "logits"
    label_map: npt.NDArray[np.integer] | None = None


def mean_labels(
    outputs: Sequence[Output], *, labels: Labels, classes: Sequence[int] = ()
) -> npt.NDArray[np.integer]:
    """Computes the label map of the mean probabilities.

    Args:
        outputs: The members' outputs for one case; at least one.
        labels: The labels that the k rows stand for. Among classes the most probable one wins.
            Regions with a probability above 0.5 are painted one over the other in
            `regions_class_order`.
        classes: The rows that are classes of lesions, if any: a voxel is a lesion where their sum
            is the most probable.

    Returns:
        The label map (z, y, x) on the input's grid, in the smallest unsigned integer type that
        holds the labels.
    """
    return group_labels(outputs, [range(len(outputs))], labels=labels, classes=[classes])[0]


def group_labels(
    outputs: Sequence[Output],
    groups: Sequence[Sequence[int]],
    *,
    labels: Labels,
    classes: Sequence[Sequence[int]] = (),
) -> list[npt.NDArray[np.integer]]:
    """Computes one label map per group of members, as `mean_labels` does for a single group.

    Each member is resampled only once.

    Args:
        outputs: The members' outputs for one case.
        groups: Each group is a list of indices into `outputs`.
        labels: As in `mean_labels`.
        classes: For each group as in `mean_labels`; empty: no group has any.
    """
    values = written_values(labels)
    parts = [_Part.of(output, regions=labels.has_regions) for output in outputs]
    box, pieces = _mean_probabilities(parts, groups, regions=labels.has_regions)
    dtype = np.min_scalar_type(max(values))
    wholes: list[npt.NDArray[np.integer]] = [np.zeros(_shape(outputs), dtype) for _ in groups]
    for rows, means in pieces:
        for whole, mean, shared in zip(wholes, means, classes or [()] * len(groups), strict=True):
            target = whole[box][rows]
            if labels.has_regions:
                for probability, value in zip(mean, values, strict=True):
                    target[probability > 0.5] = value
            else:
                if shared:
                    mean[list(shared)] = with_union(mean, shared, logits=False)
                target[:] = np.asarray(values, dtype)[mean.argmax(axis=0)]
    return [_back(whole, outputs) for whole in wholes]


def mean_probabilities(outputs: Sequence[Output], *, labels: Labels) -> Array:
    """Computes the mean probabilities of the whole case in one array.

    Returns:
        (k, z, y, x) on the input's grid; outside the crop everything is background.
    """
    parts = [_Part.of(output, regions=labels.has_regions) for output in outputs]
    box, pieces = _mean_probabilities(parts, [range(len(parts))], regions=labels.has_regions)
    whole = np.zeros((len(outputs[0].logits), *_shape(outputs)), dtype=np.float32)
    if not labels.has_regions:
        whole[0] = 1
    target = whole[(slice(None), *box)]
    for rows, (mean,) in pieces:
        target[:, rows] = mean
    return _back(whole, outputs)


def uncertainty(outputs: Sequence[Output], *, labels: Labels) -> Array:
    """Computes the entropy of the probabilities averaged over all networks.

    It ranges from 0 (certain) to 1 (all labels equally likely). With regions it is the largest of
    the regions' own entropies.

    Args:
        outputs: The members' outputs for one case, with their `spread`.
        labels: The labels that the k rows stand for.

    Returns:
        (z, y, x) on the input's grid; 0 outside the crop.
    """
    spreads = []
    for each in outputs:
        if each.spread is None:
            raise ValueError("an output has no spread: uncertainty was not requested")
        own = replace(each, logits=each.spread, average="probabilities")
        spreads.append(_Part.of(own, regions=labels.has_regions))
    box, pieces = _mean_probabilities(spreads, [range(len(spreads))], regions=labels.has_regions)
    whole = np.zeros(_shape(outputs), dtype=np.float32)
    for rows, (mean,) in pieces:
        whole[box][rows] = _entropy(mean, regions=labels.has_regions)
    return _back(whole, outputs)


def component_means(
    outputs: Sequence[Output], found: Components, *, labels: Labels
) -> npt.NDArray[np.float64]:
    """Computes the mean probabilities over each component of a mask on the input's grid.

    Only the box of the components is resampled.

    Args:
        outputs: The members' outputs for one case.
        found: The components. What lies outside of the crop, where given lesions may, counts as
            certain background.
        labels: The labels that the k rows stand for.

    Returns:
        (components, k), in the order of their numbers.
    """
    count, regions = len(found.voxels), labels.has_regions
    totals = np.zeros((len(outputs[0].logits), count))
    if count == 1:
        return totals.T[1:]
    properties = outputs[0].properties
    turn = properties.reorientation
    z, y, x = ((part.start, part.stop) for part in found.box)
    bounds = turn.bounds((z, y, x), turn.inverse.values(_shape(outputs)))
    numbers = turn.array(found.numbers)
    for part in (_Part.of(output, regions=regions) for output in outputs):
        whole = _Ordered.of(part.array, part.properties, turn)
        kept = [
            (max(low, crop.start), min(high, crop.stop))
            for (low, high), crop in zip(bounds, whole.box, strict=True)
        ]
        if any(low >= high for low, high in kept):
            continue
        member = whole.within(kept)
        cut = numbers[
            tuple(
                slice(low - start, high - start)
                for (low, high), (start, _) in zip(kept, bounds, strict=True)
            )
        ]
        for rows in slabs(cut.shape):
            inside = cut[rows] > 0
            values = member.rows(rows)[:, inside]
            if part.average == "logits":
                probabilities(values, regions=regions)
            for total, row in zip(totals, values, strict=True):
                total += np.bincount(cut[rows][inside], weights=row, minlength=count)
    return totals.T[1:] / (len(outputs) * found.voxels[1:, None])


def probabilities(logits: Array, *, regions: bool) -> Array:
    """Converts logits to probabilities in place.

    Args:
        logits: (k, ...); overwritten and returned.
        regions: Whether the rows are regions. Regions get a sigmoid each, classes a softmax over
            all rows.
    """
    if regions:
        # The sigmoid is written with tanh because that does not overflow.
        logits *= 0.5
        np.tanh(logits, out=logits)
        logits += 1
        logits *= 0.5
    else:
        logits -= logits.max(axis=0)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=0)
    return logits


def certain_background(average: Average, *, regions: bool) -> tuple[float, float]:
    """Returns the values of row 0 and of the other rows in places where no network was run."""
    if average == "probabilities":
        return 0.0 if regions else 1.0, 0.0
    return -SURE if regions else SURE, -SURE


@dataclass(frozen=True)
class _Part:
    """A member's array (k, z, y, x) on its whole network grid, and what it holds."""

    array: Array
    properties: CaseProperties
    average: Average

    @classmethod
    def of(cls, output: Output, *, regions: bool) -> "_Part":
        """Pastes the output of a box into a whole grid filled with background."""
        whole = output.logits
        if output.within is not None:
            background, others = certain_background(output.average, regions=regions)
            shape = len(whole), *output.properties.shape_zyx
            whole = np.full(shape, others, dtype=np.float32)
            whole[0] = background
            whole[:, *output.within] = output.logits
        return cls(whole, output.properties, output.average)


def _entropy(mean: Array, *, regions: bool) -> Array:
    mean = np.clip(mean, 1e-7, 1.0)
    if regions:
        rest = np.clip(1.0 - mean, 1e-7, 1.0)
        each = -(mean * np.log(mean) + rest * np.log(rest)) / np.log(2.0)
        highest: Array = each.max(axis=0).astype(np.float32)
        return highest
    total: Array = (-(mean * np.log(mean)).sum(axis=0) / np.log(len(mean))).astype(np.float32)
    return total


def _mean_probabilities(
    parts: Sequence[_Part], groups: Sequence[Sequence[int]], *, regions: bool
) -> tuple[Box, Iterator[tuple[slice, list[Array]]]]:
    """Averages the members of each group, slab by slab.

    The axes are in the anatomical order of the first member's plan, whatever the order in each
    plan is.

    Args:
        parts: The array of each member.
        groups: Each group is a list of indices into `parts`.
        regions: Whether the rows are regions.

    Returns:
        The box of the crop, and an iterator that yields for each slab its rows and the mean
        probabilities (k, rows, y, x) of each group.
    """
    first = parts[0].properties.reorientation
    members = [_Ordered.of(part.array, part.properties, first) for part in parts]
    box = members[0].box
    if any(member.box != box for member in members):
        raise ValueError("members crop the case differently")
    z, y, x = (part.stop - part.start for part in box)

    def pieces() -> Iterator[tuple[slice, list[Array]]]:
        for rows in slabs((z, y, x)):
            shape = (len(parts[0].array), rows.stop - rows.start, y, x)
            totals = [np.zeros(shape, np.float32) for _ in groups]
            for index, member in enumerate(members):
                values = member.rows(rows)
                if parts[index].average == "logits":
                    probabilities(values, regions=regions)
                for total, group in zip(totals, groups, strict=True):
                    if index in group:
                        total += values
            for total, group in zip(totals, groups, strict=True):
                total /= len(group)
            yield rows, totals

    return box, pieces()


@dataclass(frozen=True)
class _Ordered:
    """A member's array in the order of axes of all, and its resampling to the crop's grid.

    Attributes:
        array: (k, z, y, x) on the network grid.
        operators: The linear resampling to the crop's grid.
        box: The box of the crop on that grid.
    """

    array: Array
    operators: Operators
    box: Box

    @classmethod
    def of(cls, array: Array, properties: CaseProperties, first: Reorientation) -> "_Ordered":
        back = Reorientation(axes=properties.transpose_backward)
        # To this member's own order of axes, and from there to that of all.
        inverse = back.then(properties.reorientation.inverse).then(first)
        separate = separate_axis(properties.spacing_mm, properties.input_spacing_mm)
        bounds = inverse.bounds(properties.box, properties.shape_before_crop)
        z, y, x = (slice(*ends) for ends in bounds)
        shape = [part.stop - part.start for part in (z, y, x)]
        ordered = inverse.array(array)
        operators = linear_operators(
            ordered.shape[1:],
            shape,
            separate_axis=None if separate is None else inverse.axes.index(separate),
        )
        return cls(ordered, operators, (z, y, x))

    def within(self, bounds: Sequence[tuple[int, int]]) -> "_Ordered":
        """Returns the same for a box inside the crop, given by its voxels on the whole grid."""
        parts = [
            slice(start - whole.start, stop - whole.start)
            for (start, stop), whole in zip(bounds, self.box, strict=True)
        ]
        first, second, third = (
            None if matrix is None else matrix[part]
            for matrix, part in zip(self.operators, parts, strict=True)
        )
        # Axes without a matrix are on the crop's grid already.
        kept = (
            part if matrix is None else slice(None)
            for matrix, part in zip(self.operators, parts, strict=True)
        )
        z, y, x = (slice(*ends) for ends in bounds)
        return _Ordered(self.array[:, *kept], (first, second, third), (z, y, x))

    def rows(self, rows: slice) -> Array:
        """Returns these rows of the crop's grid, (k, rows, y, x), as a new array."""
        # np.stack copies: where the grid is unchanged, apply_operators returns the array itself.
        return np.stack([apply_operators(row, self.operators, rows=rows) for row in self.array])


def _shape(outputs: Sequence[Output]) -> tuple[int, int, int]:
    """The size of the case in the order of axes in which all are brought together."""
    return outputs[0].properties.oriented_shape


def _back(whole: npt.NDArray[A], outputs: Sequence[Output]) -> npt.NDArray[A]:
    """(..., z, y, x) in the order of axes of the input."""
    inverse = outputs[0].properties.reorientation.inverse
    return whole if inverse == Reorientation() else np.ascontiguousarray(inverse.array(whole))
