"""Adapts the weights of one network to another with other channels, labels, levels or kernels.

Levels are numbered from full resolution downwards in both networks, so a weight keeps its name
however many there are. A weight without a counterpart in the source keeps its random initial value
(rules: METHODS A4; channels are summed as timm does for grey images, kernels 3 -> 1 are averaged as
nnU-Net does). Between 2D and 3D, `inflate.py` carries the kernels over, where both networks have
the same resolution in plane.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autoliver.datasets.cases import Labels
from autoliver.errors import ModelError
from autoliver.networks.spec import NetworkSpec
from autoliver.planning.plan import slices_of
from autoliver.transfer.inflate import merge_depth, share_levels, to_dimension
from autoliver.transfer.labels import RowMap, map_rows, match_labels
from autoliver.transfer.table import Action, Heads, Inflation, Transferred, TransferTable
from autoliver.values import counted

# Input channels unknown to the source start from this share of the mean over the known channels.
_UNKNOWN_CHANNEL = 0.1


@dataclass(frozen=True, kw_only=True)
class Side:
    """The network of one side of a transfer, and the meaning of its inputs and outputs.

    Attributes:
        spec: The network.
        channels: Names of its image channels.
        labels: The labels that the rows of its heads stand for.
        classes: The classes of lesions that it tells apart, if any.
        sees_labels: Whether it has further input channels with a first stage's label map, one per
            foreground value.
    """

    spec: NetworkSpec
    channels: tuple[str, ...]
    labels: Labels
    classes: tuple[str, ...] = ()
    sees_labels: bool = False

    @property
    def label_channels(self) -> tuple[str, ...]:
        """The label of each further channel; of regions that share a value, the last one."""
        if not self.sees_labels:
            return ()
        by_value = {v: name for name, values in self.labels.foreground.items() for v in values}
        return tuple(by_value[value] for value in self.labels.foreground_values)


def transfer_weights(
    state: Mapping[str, Tensor],
    source: Side,
    drawn: Mapping[str, Tensor],
    target: Side,
    *,
    heads: Heads = "map",
    inflate: Inflation = "mean",
) -> tuple[dict[str, Tensor], TransferTable]:
    """Adapts the source's weights to the shapes of the target.

    Args:
        state: The source's weights, under autoliver's names.
        source: The source's network, channels and labels.
        drawn: Random initial weights of the target, kept where the source has no counterpart.
        target: The target's network, channels and labels.
        heads: "map": rows of the heads are matched by the names of the labels; "reset": all rows
            keep their initial weights.
        inflate: How kernels are carried between networks of different dimensions.

    Returns:
        New weights for the target, and a table of what was done.

    Raises:
        ModelError: The networks differ in type, or no label has a counterpart.
    """
    _check(source, target)
    rows = map_rows(source.labels, target.labels, classes=_in_heads(target))
    if heads == "map" and not any(rows.names.values()):
        raise ModelError(
            f"No label of the target ({_list(target.labels)}) is one of the source's "
            f"({_list(source.labels)}).",
            hint="Initialise the heads at random with --reset-heads; all other weights are "
            "transferred.",
        )
    weights: dict[str, Tensor] = {}
    report = []
    for name, fresh in drawn.items():
        head = target.spec.role(name).head
        why = _nothing(name, state, source, target)
        if not why and head and heads == "reset":
            why = "as asked for"
        if why:
            weights[name], entry = fresh.clone(), _reset(name, fresh, why)
        elif head:
            weights[name], entry = _head(name, state[name], fresh, rows, inflate)
        else:
            weights[name], entry = _body(name, state[name], fresh, source, target, inflate)
        report.append(entry)
    names = rows.names if heads == "map" else dict.fromkeys(rows.names, "")
    table = TransferTable(
        weights=tuple(report),
        ignored=tuple(name for name in state if name not in drawn),
        labels=names,
    )
    return weights, table


def _in_heads(side: Side) -> list[str]:
    """The classes of lesions that have rows in the segmentation heads."""
    return [name for name in side.classes if name in side.labels.foreground]


def _check(source: Side, target: Side) -> None:
    if why := target.spec.unlike(source.spec):
        raise ModelError(why, hint="Plan the target like its source, or train from random weights.")


def _nothing(name: str, state: Mapping[str, Tensor], source: Side, target: Side) -> str:
    """Says why the source has nothing for a weight of the target; "" if it has."""
    if name not in state:
        return "the source has none"
    one, other = source.spec, target.spec
    if other.role(name).tells_classes and source.classes != target.classes:
        return "the source tells other classes apart"
    same = one.dimension == other.dimension
    if same or share_levels(one.strides_to(name), other.strides_to(name)):
        return ""
    return "the source has another resolution in plane there"


def _body(
    name: str, found: Tensor, fresh: Tensor, source: Side, target: Side, inflate: Inflation
) -> tuple[Tensor, Transferred]:
    role = target.spec.role(name)
    how = []
    if target.spec.sees_image(name) and found.ndim < fresh.ndim:
        found, source, stacked = _stacked(found, source, depth=fresh.shape[2])
        how += [stacked] if stacked else []
    found, inflated = to_dimension(found, fresh, inflate, transposed=role.transposed)
    how += [inflated] if inflated else []
    if role.merged is not None:
        strides = (side.spec.strides_to(name)[-1] for side in (source, target))
        found, merged = merge_depth(found, *strides, axis=role.merged)
        how += [merged] if merged else []
    if target.spec.sees_image(name):
        found, words = _first(found, source, target)
        how += [words] if words else []
    if found.ndim > 2 and found.shape[2:] != fresh.shape[2:]:
        how.append(f"kernel {_size(found.shape[2:])} -> {_size(fresh.shape[2:])}")
        found = adapt_kernel(found, fresh.shape[2:], repeat=role.transposed)
    taken = fresh.numel()
    if found.shape != fresh.shape:
        how.append(f"features {_size(found.shape[:2])} -> {_size(fresh.shape[:2])}")
        found, taken = adapt_features(found, fresh, halves=role.concatenated)
    action: Action = "adapted" if how else "loaded"
    entry = Transferred(
        name=name, action=action, parameters=fresh.numel(), taken=taken, how="; ".join(how)
    )
    return found.to(fresh.dtype).clone(), entry


def _stacked(weight: Tensor, source: Side, *, depth: int) -> tuple[Tensor, Side, str]:
    """Makes neighbouring slices, which a 2D network sees as channels, one channel of a volume.

    They become the planes of a kernel that has as many, so that its output for a volume is that of
    the 2D kernel for the neighbours of each slice. A kernel with fewer planes gets their sum, which
    is exact where slices are alike.

    Args:
        weight: The source's 2D weight, (features, inputs, height, width).
        source: The source.
        depth: The depth of the target's kernel.

    Returns:
        The weight, (features, channels, [slices,] height, width); the source as if it saw these
        channels; and what was done, in words; "" if nothing was.
    """
    groups = slices_of(source.channels)
    slices = len(source.channels) // len(groups)
    if slices == 1:
        return weight, source, ""
    seen = replace(source, channels=tuple(groups))
    planes = torch.stack([weight[:, indices] for indices in groups.values()], 1)
    if depth < slices:
        return planes.sum(2), seen, f"{slices} neighbouring slices summed"
    planes = adapt_kernel(planes, (depth, *planes.shape[3:]))
    return planes, seen, f"{slices} neighbouring slices as planes"


def _first(weight: Tensor, source: Side, target: Side) -> tuple[Tensor, str]:
    """Adapts the first convolution: image channels by name, label-map channels by label.

    A label that the source has no channel for starts at zero, so that the output of a source
    without a first stage does not change.
    """
    images = len(source.channels)
    image, how = adapt_channels(weight[:, :images], source.channels, target.channels)
    if (source.sees_labels, source.label_channels) == (target.sees_labels, target.label_channels):
        return torch.cat([image, weight[:, images:]], 1), how
    names = match_labels(source.labels, target.labels)
    there = {name: images + i for i, name in enumerate(source.label_channels)}
    columns = [there.get(names[name]) for name in target.label_channels]
    zero = torch.zeros_like(weight[:, 0])
    further = [zero if i is None else weight[:, i] for i in columns]
    known = sum(index is not None for index in columns)
    words = f"{known} of {counted(len(columns), 'channel')} of labels by label"
    return torch.stack([*image.unbind(1), *further], 1), "; ".join(filter(None, [how, words]))


def adapt_channels(
    weight: Tensor, source: Sequence[str], target: Sequence[str]
) -> tuple[Tensor, str]:
    """Adapts the weight of the first convolution to other input channels.

    Channels of the same name keep their weights; others start from a tenth of the mean of those.
    If no name matches: n -> 1 sums the channels (as if the image were repeated n times), 1 -> n
    divides by n, and n -> m repeats the channels cyclically and keeps the sum.

    Args:
        weight: (features, len(source), *kernel).
        source: Names of the source's channels.
        target: Names of the target's channels.

    Returns:
        The adapted weight, (features, len(target), *kernel), and what was done, in words; "" if the
        weight is unchanged.
    """
    known = {name.lower(): index for index, name in enumerate(source)}
    shared = [known.get(name.lower()) for name in target]
    if any(index is not None for index in shared):
        if shared == list(range(len(source))):
            return weight, ""
        mean = weight[:, [i for i in shared if i is not None]].mean(1) * _UNKNOWN_CHANNEL
        columns = [mean if i is None else weight[:, i] for i in shared]
        return torch.stack(columns, 1), "channels by name"
    before, after = len(source), len(target)
    if before == after:
        return weight, ""
    if after == 1:
        return weight.sum(1, keepdim=True), f"{counted(before, 'channel')} summed"
    repeated = weight[:, [i % before for i in range(after)]] * (before / after)
    return repeated, f"{counted(before, 'channel')} spread over {after}"


def adapt_kernel(weight: Tensor, kernel: Sequence[int], *, repeat: bool = False) -> Tensor:
    """Adapts the weight of a convolution to another kernel size, axis by axis.

    A kernel that grows is padded with zeros, which leaves the output unchanged. A kernel that
    shrinks is averaged along an axis that shrinks to 1, and cropped to its middle along others.

    Args:
        weight: (a, b, *old kernel).
        kernel: The new kernel sizes.
        repeat: Whether it is a transposed convolution whose kernel equals its stride. There, every
            output voxel sees one entry, so the new kernel repeats the mean of the entries.

    Returns:
        (a, b, *kernel).
    """
    for axis, size in enumerate(kernel, start=2):
        there = weight.shape[axis]
        if size == there:
            continue
        if repeat:
            mean = weight.mean(axis, keepdim=True)
            weight = mean.repeat_interleave(size, dim=axis)
        elif size == 1:
            weight = weight.mean(axis, keepdim=True)
        elif size < there:
            weight = weight.narrow(axis, (there - size) // 2, size)
        else:
            shape = [*weight.shape]
            shape[axis] = size
            larger = torch.zeros(shape, dtype=weight.dtype)
            larger.narrow(axis, (size - there) // 2, there).copy_(weight)
            weight = larger
    return weight


def adapt_features(found: Tensor, fresh: Tensor, *, halves: bool) -> tuple[Tensor, int]:
    """Takes the leading features from the source and keeps the initial weights of the rest.

    Args:
        found: The source's weight, with the target's kernel size.
        fresh: The target's initial weight.
        halves: Whether the input features are two concatenated groups (from the level below and
            from the skip connection), each of which takes its leading features.

    Returns:
        The target's weight, and how many of its numbers come from the source.
    """
    result = fresh.clone()
    if result.ndim == 1:
        count = min(len(found), len(result))
        result[:count] = found[:count]
        return result, count
    rows = min(found.shape[0], result.shape[0])
    groups = 2 if halves else 1
    there, here = found.shape[1] // groups, result.shape[1] // groups
    columns = min(there, here)
    for group in range(groups):
        piece = found[:rows, group * there : group * there + columns]
        result[:rows, group * here : group * here + columns] = piece
    return result, rows * columns * groups * result[0, 0].numel()


def _head(
    name: str, found: Tensor, fresh: Tensor, rows: RowMap, inflate: Inflation
) -> tuple[Tensor, Transferred]:
    """Adapts a head: rows are matched by label, features as for any other weight."""
    found, _ = to_dimension(found, fresh, inflate)
    if found.ndim == 1:
        columns = found
        taken = 1
    else:
        found = adapt_kernel(found, fresh.shape[2:])
        shape = (len(found), *fresh.shape[1:])
        columns, _ = adapt_features(found, fresh.new_zeros(shape), halves=False)
        taken = min(found.shape[1], fresh.shape[1])
    weight = rows.apply(columns, fresh)
    begun = sum(parts is not None for parts in rows.rows)
    same = weight.shape == found.shape and bool((weight == found).all())
    return weight, Transferred(
        name=name,
        action="loaded" if same else "adapted",
        parameters=fresh.numel(),
        taken=begun * taken,
        how="" if same else f"{begun} of {len(rows.rows)} rows by label",
    )


def _reset(name: str, fresh: Tensor, how: str) -> Transferred:
    return Transferred(name=name, action="reset", parameters=fresh.numel(), taken=0, how=how)


def _size(values: Sequence[int]) -> str:
    return "x".join(str(value) for value in values)


def _list(labels: Labels) -> str:
    return ", ".join(labels.foreground)
