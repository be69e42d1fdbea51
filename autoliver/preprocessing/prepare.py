"""Preprocesses one case from its files into the store; worker processes run this."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoliver.datasets.cases import Case
from autoliver.io.files import read_image, read_label
from autoliver.planning.plan import Configuration, Plan
from autoliver.preprocessing.case import class_locations, forward
from autoliver.preprocessing.store import is_finished, write_case

_SEED = 1234  # nnU-Net's, for the voxels kept per label


@dataclass(frozen=True, kw_only=True)
class PrepareTask:
    """A case to preprocess.

    Attributes:
        case: The case and its files.
        plan: The plan.
        configuration: The configuration of the plan to prepare the case for.
        folder: The store that the case is written to.
    """

    case: Case
    plan: Plan
    configuration: Configuration
    folder: Path


def prepare_case(task: PrepareTask) -> str:
    """Reads, preprocesses and stores one case.

    Returns:
        The case's name.

    Raises:
        DatasetError: A file cannot be read.
        AutoliverError: The disk is full; the case is then left out of the store.
    """
    case = task.case
    image = read_image([Path(path) for path in case.images])
    label = read_label(Path(case.label)) if case.label else None
    done = forward(
        image,
        label,
        plan=task.plan,
        configuration=task.configuration,
        name=case.name,
        modality=case.modality,
    )
    locations = {}
    if done.label is not None:
        rng = np.random.default_rng(_SEED)
        locations = class_locations(done.label, task.plan.labels, rng=rng)
    if is_finished(task.folder, case.name, case.files):
        return case.name  # by another process meanwhile, which may be reading it already
    write_case(
        task.folder,
        done,
        locations,
        patch_shape=task.configuration.patch_shape,
        files=case.files,
    )
    return case.name
