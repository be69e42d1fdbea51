"""Maps label values of the store to classes of the network."""

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import Labels
from autoliver.training.objectives.segmentation import LossKind, LossOptions


def class_table(labels: Labels) -> npt.NDArray[np.int16]:
    """The class of each label value, indexed by value + 1 so that -1 can be looked up as well.

    Without regions, classes are consecutive in the order of `labels`, and the ignored value comes
    last; with regions, values are not changed. The value -1 (outside the image) stays -1.
    """
    table = np.zeros(max(labels.allowed) + 2, np.int16)
    table[0] = -1
    if labels.has_regions:
        table[1:] = np.arange(len(table) - 1)
        return table
    for number, values in enumerate(labels.values.values()):
        table[[value + 1 for value in values]] = number
    if labels.ignore is not None:
        table[labels.ignore + 1] = len(labels.values)
    return table


def needed_table(labels: Labels) -> npt.NDArray[np.int16] | None:
    """The `class_table` of labels; None if it changes no value.

    Most labels are consecutive already, and mapping a voxel takes longer than cutting it out.
    """
    table = class_table(labels)
    return None if np.array_equal(table, np.arange(-1, len(table) - 1)) else table


def ignored_class(labels: Labels) -> int | None:
    """The class that `class_table` maps the ignored value to; None if no value is ignored."""
    if labels.ignore is None or labels.has_regions:
        return labels.ignore
    return len(labels.values)


def previous_table(labels: Labels) -> npt.NDArray[np.int16]:
    """The channel for each label value that a first stage predicts, indexed by value + 1.

    Each foreground label has a channel of its own, numbered from 1. Other values map to 0, and -1
    stays -1.
    """
    table = np.zeros(max(labels.allowed) + 2, np.int16)
    table[0] = -1
    for channel, value in enumerate(labels.foreground_values, start=1):
        table[value + 1] = channel
    return table


def loss_options(labels: Labels, *, batch_dice: bool, kind: LossKind = "dice-ce") -> LossOptions:
    """The options of the loss for these labels, on targets mapped by `class_table`."""
    return LossOptions(
        batch_dice=batch_dice,
        kind=kind,
        regions=tuple(labels.foreground.values()) if labels.has_regions else None,
        ignore=ignored_class(labels),
    )
