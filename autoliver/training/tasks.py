"""What a network learns of lesions with classes: the values of `--task`.

The four strategies are those of Heker and Greenspan, Joint Liver Lesion Segmentation and
Classification via Transfer Learning, MIDL 2020:

- segment: one label for lesions of all classes;
- classify: the class of the lesion in a patch, and no segmentation;
- ynet: both, with a head for the class on the deepest features;
- joint: each class is a label of the segmentation, and each connected lesion gets one class.
"""

from collections.abc import Collection
from typing import Protocol

from autoliver.artifacts import Record
from autoliver.datasets.cases import Labels
from autoliver.datasets.lesion_classes import class_rows, find_lesion_classes, with_one_lesion
from autoliver.errors import OptionError
from autoliver.networks.contract import ClassHead
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Configuration, Plan
from autoliver.training.recipes import Task


class Options(Protocol):
    """The part of the training's options that tasks use."""

    @property
    def task(self) -> Task | None:
        """The task; None for all labels as they are."""

    @property
    def lesion_classes(self) -> tuple[str, ...]:
        """The classes of lesions that were asked for; empty for those found by name."""


class Learnt(Record, frozen=True, kw_only=True):
    """What a training learns of the labels of a plan.

    Attributes:
        labels: The labels of the model.
        lesion_classes: Those that are classes of lesions, of which each lesion has one; empty if
            classes are not told apart.
    """

    labels: Labels
    lesion_classes: tuple[str, ...] = ()


def learnt(
    labels: Labels, options: Options, *, named: Collection[str] | None, where: str
) -> Learnt:
    """Decides what a training learns of the labels of a dataset.

    Args:
        labels: The labels of the dataset.
        options: The options of the training.
        named: The `lesion_class_names` of dataset.json; None if it has none.
        where: The dataset's name, for messages.

    Raises:
        OptionError: The dataset has no classes of lesions for the task.
    """
    if options.task is None:
        return Learnt(labels=labels)
    classes = find_lesion_classes(
        *(labels, options.lesion_classes),
        named=named,
        where=where,
        wanted_by=f"--task {options.task}",
    )
    if options.task == "segment":
        return Learnt(labels=with_one_lesion(labels, classes))
    return Learnt(labels=labels, lesion_classes=classes)


def plan_for(plan: Plan, name: ConfigurationName, found: Learnt, task: Task) -> Plan:
    """The plan with the labels of a task, and a network that has the outputs for it.

    Args:
        plan: The plan of a dataset.
        name: The configuration that is trained; the other ones are left out.
        found: What the task learns of its labels.
        task: The task.

    Raises:
        OptionError: The network cannot tell classes.
    """
    made = _configuration(plan.configurations[name], found, task)
    return plan.replace(labels=found.labels, configurations={name: made})


def _configuration(configuration: Configuration, found: Learnt, task: Task) -> Configuration:
    network = configuration.network.replace(out_channels=found.labels.out_channels)
    if configuration.previous_stage is not None and task != "joint":
        raise OptionError(
            f"--task {task} cannot be trained as a cascade: its first stage has other outputs.",
            hint="Train 3d_fullres or 2d, or use --task joint.",
        )
    if task in ("ynet", "classify"):
        if not network.TAKES_CLASS_HEAD:
            raise OptionError(
                f"--task {task}: {network.summary} has no deepest features that a head for the "
                "class could be put on.",
                hint="Plan a U-Net (autoliver plan DATASET --preset default), or use --task joint.",
            )
        rows = class_rows(found.labels, found.lesion_classes)
        network = network.replace(class_head=ClassHead(rows=rows, alone=task == "classify"))
    return configuration.replace(network=network)


def head_labels(labels: Labels, configuration: Configuration) -> Labels:
    """The labels that the rows of the segmentation heads of a network stand for."""
    head = configuration.network.classifier
    if head is None:
        return labels
    return with_one_lesion(labels, [labels.rows[row] for row in head.rows])
