"""Converts autoliver's plan of one configuration to nnU-Net's plans.json and dataset.json."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from autoliver.datasets.cases import describe_labels
from autoliver.errors import ModelError
from autoliver.nnunet.network import architecture_of
from autoliver.nnunet.plan import (
    NORMALIZATIONS,
    RESAMPLING,
    RESAMPLING_SETTINGS,
    refuse_gaps,
)
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Configuration, Plan
from autoliver.system import entries

PLANS_NAME = "nnUNetPlans"
NAMES: Mapping[ConfigurationName, str] = {
    "2d": "2d",
    "3d_lowres": "3d_lowres",
    "3d_fullres": "3d_fullres",
    "3d_cascade": "3d_cascade_fullres",
}
# nnU-Net reads three digits, whatever follows them.
_LAST = 999
_NUMBERED = re.compile(r"(?:Dataset|Task)([0-9]+)_(.+)")
_SCHEMES = {ours: theirs for theirs, ours in NORMALIZATIONS.items()}
_PLANNERS = {
    "M": "nnUNetPlannerResEncM",
    "L": "nnUNetPlannerResEncL",
    "XL": "nnUNetPlannerResEncXL",
}
# Volume formats only: for slices saved as pictures nnU-Net assumes another spacing than autoliver.
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".hdr")


def numbered(name: str) -> tuple[int | None, str]:
    """Splits DatasetNNN_Name or TaskNNN_Name into number and name; other names have no number."""
    match = _NUMBERED.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def nnunet_name(name: str, folder: Path, *, number: int | None = None) -> str:
    """Returns the name DatasetNNN_Name under which nnU-Net finds a dataset.

    Args:
        name: The dataset's name.
        folder: Where the dataset is written to, beside others.
        number: The number to use; None: that of the name. If it has none, or one that nnU-Net
            cannot use, the number that the dataset has in the folder, else the highest free one.

    Raises:
        ModelError: No number is free.
    """
    own, short = numbered(name)
    number = own if number is None else number
    if number is not None and number <= _LAST:
        return f"Dataset{number:03d}_{short}"
    there = {path.name for path in entries(folder)} if folder.is_dir() else set()
    taken = {other[:10] for other in there}
    free = None
    for head in (f"Dataset{n:03d}" for n in range(_LAST, 0, -1)):
        if f"{head}_{short}" in there:
            return f"{head}_{short}"
        free = free or (None if head in taken else head)
    if free is None:
        raise ModelError(
            f"{folder}: the numbers 1 to {_LAST} are all taken.", hint="Choose another folder."
        )
    return f"{free}_{short}"


def nnunet_plans(plan: Plan, name: ConfigurationName, *, dataset: str) -> dict[str, Any]:
    """Returns the content of plans.json for one configuration.

    Args:
        plan: The autoliver plan.
        name: The configuration's name.
        dataset: nnU-Net's name of the dataset, DatasetNNN_Name.

    Raises:
        ModelError: The model has a feature that nnU-Net does not support.
    """
    refuse_gaps(plan.labels, plan.dataset)
    configuration = plan.configurations[name]
    _check(plan, configuration)
    return {
        "dataset_name": dataset,
        "plans_name": PLANS_NAME,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(plan.transpose_forward),
        "transpose_backward": list(plan.transpose_backward),
        "configurations": {NAMES[name]: _configuration(configuration, NAMES[name])},
        "experiment_planner_used": _PLANNERS.get(plan.preset, "ExperimentPlanner"),
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): msgspec.to_builtins(stats)
            for channel, stats in enumerate(plan.intensities)
        },
    }


def nnunet_dataset(plan: Plan, *, cases: int) -> dict[str, Any]:
    """Returns the content of dataset.json for a model.

    Args:
        plan: The autoliver plan.
        cases: Number of training cases.
    """
    return {
        "channel_names": {str(i): name for i, name in enumerate(plan.channel_names)},
        **describe_labels(plan.labels, plan.codes),
        "numTraining": cases,
        "file_ending": plan.file_ending,
    }


def _configuration(configuration: Configuration, name: str) -> dict[str, Any]:
    resampling = {
        key: value
        for kind, settings in RESAMPLING_SETTINGS.items()
        for key, value in (
            (f"resampling_fn_{kind}", RESAMPLING),
            (f"resampling_fn_{kind}_kwargs", dict(settings)),
        )
    }
    return {
        "data_identifier": f"{PLANS_NAME}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_shape),
        "median_image_size_in_voxels": list(configuration.median_shape),
        "spacing": list(configuration.spacing_mm),
        "normalization_schemes": [_SCHEMES[scheme] for scheme in configuration.normalization],
        "use_mask_for_norm": list(configuration.mask_norm),
        **resampling,
        "architecture": architecture_of(configuration.network),
        "batch_dice": configuration.batch_dice,
        **({"previous_stage": "3d_lowres"} if configuration.previous_stage else {}),
    }


def _check(plan: Plan, configuration: Configuration) -> None:
    further = len(plan.labels.foreground_values) if configuration.previous_stage else 0
    expected = len(plan.channel_names) + further, plan.labels.out_channels
    network = configuration.network
    problem = ""
    if configuration.slices > 1:
        problem = (
            f"its network sees {configuration.slices} neighbouring slices as channels, which "
            "nnU-Net does not have"
        )
    elif network.classifier is not None:
        problem = "a head of its own tells the class of lesions, which nnU-Net does not have"
    elif plan.labels.exclusive:
        problem = (
            "one of its labels stands for several values (--task segment), which nnU-Net takes for "
            "regions"
        )
    elif (network.in_channels, network.out_channels) != expected:
        problem = (
            f"the network has {network.in_channels} input and {network.out_channels} output "
            f"channels; nnU-Net would build it with {expected[0]} and {expected[1]}"
        )
    elif plan.mixed:
        problem = "it normalises CT and MR in different ways; nnU-Net would treat all cases as CT"
    elif plan.labels.has_regions and not plan.labels.has_unions:
        problem = (
            "its labels are independent of each other, since not all of them are annotated in "
            "every case; nnU-Net would take labels of a single value for exclusive classes"
        )
    elif plan.file_ending not in _ENDINGS:
        problem = f"images end with {plan.file_ending}; expected one of {', '.join(_ENDINGS)}"
    elif (
        plan.labels.ignore is not None
        and plan.labels.ignore != max(plan.labels.allowed - {plan.labels.ignore}) + 1
    ):
        problem = f"the ignore value is {plan.labels.ignore}; nnU-Net needs the one after the last"
    if problem:
        raise ModelError(
            f"{plan.dataset}: cannot be exported as a model of nnU-Net: {problem}.",
            hint="Export it as a file of autoliver instead.",
        )
