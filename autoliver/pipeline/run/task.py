"""The plan of a run with a task: other labels, and networks with the outputs for them."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from autoliver.datasets.lesion_classes import LESION
from autoliver.errors import DatasetError
from autoliver.pipeline.data import Planned
from autoliver.planning.names import ConfigurationName
from autoliver.preprocessing.store import StoredCase
from autoliver.training.options import TrainingOptions
from autoliver.training.recipes import Task
from autoliver.training.tasks import learnt, plan_for
from autoliver.values import counted

_log = logging.getLogger(__name__)


def describe_task(planned: Planned, task: Task) -> str:
    """Says in one sentence which labels a run takes for classes of a lesion.

    Args:
        planned: The dataset with the plan of the run.
        task: The task.
    """
    if task == "segment":
        values = planned.plan.labels.values[LESION]
        theirs = planned.dataset.labels.foreground
        names = [name for name, own in theirs.items() if set(own) <= set(values)]
        return f"--task {task}: {' and '.join(names)} are learnt as one label, {LESION}."
    return f"--task {task}: {', '.join(planned.lesion_classes)} are the classes of a lesion."


def for_task(planned: Planned, name: ConfigurationName, options: TrainingOptions) -> Planned:
    """A dataset with the plan of a run: its own, with the labels that the run's task learns.

    Args:
        planned: The dataset with its plan.
        name: The configuration that is trained.
        options: The options of the run.

    Raises:
        OptionError: The dataset has no classes of lesions, or a network cannot tell them.
    """
    if options.task is None:
        return planned
    dataset = planned.dataset
    found = learnt(
        planned.plan.labels, options, named=dataset.lesion_class_names, where=dataset.name
    )
    plan = plan_for(planned.plan, name, found, options.task)
    return replace(planned, plan=plan, lesion_classes=found.lesion_classes)


def check_lesions(planned: Planned, train: Sequence[StoredCase]) -> None:
    """Refuses to learn classes of lesions from cases without any; warns of missing classes.

    Args:
        planned: The dataset with the plan of the run.
        train: The training cases.

    Raises:
        DatasetError: No case has a lesion of any class.
    """
    labels, classes = planned.plan.labels.values, planned.lesion_classes
    held = {value for case in train for value, found in case.locations.items() if len(found)}
    missing = [name for name in classes if not held & set(labels[name])]
    if missing and len(missing) == len(classes):
        raise DatasetError(
            f"{planned.dataset.name}: none of the {counted(len(train), 'training case')} has a "
            f"lesion ({', '.join(missing)}).",
            hint="Leave out --task, or train on cases with lesions.",
        )
    if missing:
        _log.warning(
            "%s: no training case has a lesion of the class %s, so that it is not learnt.",
            *(planned.dataset.name, ", ".join(missing)),
        )
