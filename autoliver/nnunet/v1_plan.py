"""Says in the terms of nnU-Net v2 what the plans of nnU-Net v1 (plans.pkl) decide."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from autoliver.artifacts import read_json
from autoliver.datasets.description import Description, LabelValues
from autoliver.errors import ArtifactError, ModelError
from autoliver.models.selection import CleaningRule
from autoliver.nnunet.folder import CLEANING_FILE
from autoliver.nnunet.plan import convert
from autoliver.planning.plan import Plan

_UNCHANGED = "Take plans.pkl from the folder that nnU-Net v1 trained into, unchanged."
# v1 takes every other name for z-score; the two here are all that its planner writes.
_NORMALIZATIONS = {
    "CT": "CTNormalization",
    "nonCT": "ZScoreNormalization",
    "noNorm": "NoNormalization",
}
# By the number of axes; the default where plans name none.
_PREPROCESSORS = {2: "PreprocessorFor2D", 3: "GenericPreprocessor"}
_EXPORT = {"force_separate_z": None, "interpolation_order": 1, "interpolation_order_z": 0}
_STATS = {
    **{"mean": "mean", "median": "median", "std": "sd", "min": "mn", "max": "mx"},
    **{name: name for name in ("percentile_00_5", "percentile_99_5")},
}
# The labels 1, 2, ... of the public liver models, whose zips hold no names (docs/weights.md).
_PUBLIC_LABELS: dict[str, tuple[str, ...]] = {
    "Task003_Liver": ("liver", "cancer"),
    "Task029_LITS": ("liver", "tumour"),
}
# Features double from stage to stage up to these numbers, by the number of axes.
_MOST_FEATURES = {2: 480, 3: 320}
_DEFAULT_FEATURES = 30
# Words in names of trainers of v1 whose networks compute something else with the same weights, and
# of those that train without flips.
_OTHER_NETWORK = re.compile(
    r"_(ReLU|[lL]ReLU_(conv|slope)|GeLU|Mish|GN|FRN|NoNormalization)(?![a-z])|Regions|resample33"
)
_NO_FLIPS = re.compile(r"no_?Mirroring|NoDA|noDA|noDataAugmentation")


# What no plan exceeds.
_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class _Stage(msgspec.Struct, kw_only=True):
    """The keys of a stage that affect prediction or training."""

    batch_size: int
    patch_size: list[int]
    current_spacing: list[float]
    num_pool_per_axis: list[Annotated[int, msgspec.Meta(ge=0, le=20)]]
    median_patient_size_in_voxels: list[float] = []
    pool_op_kernel_sizes: list[list[int]] | None = None
    conv_kernel_sizes: list[list[int]] | None = None


class _Plans(msgspec.Struct, kw_only=True):
    """The keys of plans.pkl outside the stages."""

    num_modalities: _Count
    modalities: dict[int, str]
    num_classes: _Count
    all_classes: list[int]
    normalization_schemes: dict[int, str]
    use_mask_for_norm: dict[int, bool | None]
    base_num_features: _Count = _DEFAULT_FEATURES
    conv_per_stage: Annotated[int, msgspec.Meta(ge=1, le=100)] = 2
    transpose_forward: list[int] | None = None
    transpose_backward: list[int] | None = None
    preprocessor_name: str | None = None
    segmentation_export_params: dict[str, Any] = msgspec.field(default_factory=dict)
    dataset_properties: dict[str, Any] = msgspec.field(default_factory=dict)
    plans_per_stage: dict[int, dict[str, Any]]


def v2_plans(
    raw: Mapping[str, Any], *, stage: int | None, trainer: str, dataset: str, where: str
) -> dict[str, Any]:
    """Converts one stage to the content of a plans.json of nnU-Net v2 with one configuration.

    Args:
        raw: The content of plans.pkl.
        stage: The stage that was trained; None if there is only one.
        trainer: Class name of the trainer.
        dataset: Name of the dataset.
        where: The file's name, for messages.

    Raises:
        ModelError: A value is missing, damaged or not supported; the message names it.
    """
    plans = convert(dict(raw), _Plans, where, hint=_UNCHANGED)
    number, chosen = _stage(plans, stage, where)
    _check(plans, trainer, where, axes=len(chosen.patch_size))
    channels = range(plans.num_modalities)
    axes = len(chosen.patch_size)
    cascade = axes == 3 and "Cascade" in trainer
    if axes == 2:
        name = "2d"
    elif cascade:
        name = "3d_cascade_fullres"
    else:
        name = "3d_lowres" if number < max(plans.plans_per_stage) else "3d_fullres"
    configuration = {
        "patch_size": chosen.patch_size,
        "spacing": chosen.current_spacing[-axes:],
        "batch_size": chosen.batch_size,
        "median_image_size_in_voxels": chosen.median_patient_size_in_voxels[-axes:],
        "normalization_schemes": [
            _NORMALIZATIONS[plans.normalization_schemes[channel]] for channel in channels
        ],
        "use_mask_for_norm": [bool(plans.use_mask_for_norm[channel]) for channel in channels],
        **_network(plans, chosen, where),
        **({"previous_stage": "3d_lowres"} if cascade else {}),
    }
    return {
        "dataset_name": dataset,
        "plans_name": "plans.pkl (nnU-Net v1)",
        "experiment_planner_used": "nnU-Net v1",
        "transpose_forward": plans.transpose_forward or [0, 1, 2],
        "transpose_backward": plans.transpose_backward or [0, 1, 2],
        "configurations": {name: configuration},
        "foreground_intensity_properties_per_channel": {
            str(channel): _intensities(plans, channel, where) for channel in channels
        },
    }


def in_the_order_of_v1(plan: Plan) -> Plan:
    """Says what a plan of nnU-Net v1 need not say: when it normalises, and what it averages."""
    return plan.replace(
        configurations={
            name: each.replace(normalize_after_resampling=True, average="probabilities")
            for name, each in plan.configurations.items()
        }
    )


def mirror_axes(trainer: str, *, axes: int) -> tuple[int, ...]:
    """Returns the patch axes along which a trainer of nnU-Net v1 flips: all, but for its variants.

    Args:
        trainer: Class name of the trainer.
        axes: Number of patch axes.
    """
    return () if _NO_FLIPS.search(trainer) else tuple(range(axes))


def plain_description(raw: Mapping[str, Any], *, task: str, where: Path) -> Description:
    """Describes channels and labels as far as they are known: plans.pkl has no names of labels.

    Args:
        raw: The content of plans.pkl.
        task: Name of the task; the labels of the public liver models are known by it.
        where: The path of the dataset.json that is missing, for messages.

    Raises:
        ModelError: The file is none of nnU-Net v1.
    """
    plans = convert(dict(raw), _Plans, str(where.with_name("plans.pkl")), hint=_UNCHANGED)
    numbers = sorted(plans.all_classes)
    names = _PUBLIC_LABELS.get(task, ())
    if len(names) != len(numbers):
        names = tuple(f"label_{value}" for value in numbers)
    values: dict[str, tuple[int, ...]] = {"background": (0,)}
    values |= {name: (value,) for name, value in zip(names, numbers, strict=True)}
    return Description(
        where=where,
        layout="msd",
        channel_names=tuple(name for _, name in sorted(plans.modalities.items())),
        labels=LabelValues(values=values),
    )


def check_description(description: Description, raw: Mapping[str, Any], *, where: str) -> None:
    """Refuses a dataset.json that does not belong to the plans beside it.

    Raises:
        ModelError: Labels or number of channels differ.
    """
    plans = convert(dict(raw), _Plans, where, hint=_UNCHANGED)
    labels = description.labels
    found = sorted({v for group in labels.values.values() for v in group} - {0}) if labels else []
    expected = sorted(plans.all_classes)
    what = ""
    if found != expected:
        what = f"its labels are {found}, those of {where} {expected}"
    elif len(description.channel_names) != plans.num_modalities:
        what = (
            f"it names {len(description.channel_names)} channels, {where} has "
            f"{plans.num_modalities}"
        )
    if what:
        raise ModelError(
            f"{description.where}: {what}.",
            hint="Take dataset.json of the dataset that the model was trained on, or remove it: "
            "without it labels are called label_1, label_2, ...",
        )


def read_cleaning(folder: Path, names: Mapping[str, Sequence[int]]) -> tuple[CleaningRule, ...]:
    """Reads the rules of postprocessing.json: of which labels only the largest component is kept.

    Args:
        folder: The folder of the run.
        names: Label name -> values.

    Returns:
        The rules in the order of the file; () if there is no such file.

    Raises:
        ModelError: The file is damaged, names unknown labels, or keeps components by their size,
            for which there is no such rule.
    """
    path = folder / CLEANING_FILE
    if not path.is_file():
        return ()
    by_value = {value: name for name, group in names.items() for value in group}
    try:
        raw = read_json(path)
        sizes = str(raw.get("min_valid_object_sizes"))
        rules = []
        for group in raw["for_which_classes"] or ():
            values = [int(value) for value in (group if isinstance(group, list) else [group])]
            labels = tuple(by_value[value] for value in values)
            rules.append(CleaningRule(labels=labels, keep="largest", by_faces=True))
    except (ArtifactError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{path}: not a postprocessing.json of nnU-Net v1: {error}.",
            hint="Copy it from where the model was trained, or remove it to import the model "
            "without cleaning rules.",
        ) from None
    if rules and sizes not in ("None", "{}"):
        raise ModelError(
            f"{path}: components are kept by their size ({sizes}); expected None, that only the "
            "largest one is kept.",
            hint="Remove the file to import the model without cleaning rules.",
        )
    return tuple(rules)


def _check(plans: _Plans, trainer: str, where: str, *, axes: int) -> None:
    channels = list(range(plans.num_modalities))
    schemes = plans.normalization_schemes
    problem = ""
    if found := _OTHER_NETWORK.search(trainer):
        problem = f"trained by {trainer}, whose network is not the plain one: {found[0].strip('_')}"
    elif sorted(plans.all_classes) != list(range(1, plans.num_classes + 1)):
        problem = f"all_classes are {plans.all_classes}, expected 1 to {plans.num_classes}"
    elif not all(set(channels) <= set(f) for f in (schemes, plans.use_mask_for_norm)):
        problem = f"normalisation is not given for each of the {len(channels)} channels"
    elif unknown := [schemes[c] for c in channels if schemes[c] not in _NORMALIZATIONS]:
        problem = (
            f"normalization_schemes: {unknown[0]}, expected one of {', '.join(_NORMALIZATIONS)}"
        )
    elif any(schemes[c] == "CT" and plans.use_mask_for_norm[c] for c in channels):
        problem = "use_mask_for_norm: CT that is normalised within a mask, expected the whole image"
    elif plans.preprocessor_name not in (None, _PREPROCESSORS[axes]):
        problem = f"preprocessor_name: {plans.preprocessor_name}, expected {_PREPROCESSORS[axes]}"
    elif other := {
        key: value
        for key, value in plans.segmentation_export_params.items()
        if value != _EXPORT.get(key)
    }:
        problem = f"segmentation_export_params: {other}, expected {_EXPORT}"
    if problem:
        raise ModelError(f"{where}: {problem}.", hint="Predict with nnU-Net v1 itself.")


def _stage(plans: _Plans, stage: int | None, where: str) -> tuple[int, _Stage]:
    there = sorted(plans.plans_per_stage)
    number = there[0] if stage is None and len(there) == 1 else stage
    if number is None or number not in there:
        raise ModelError(
            f"{where}: it has the stages {there}, the model was trained as stage {stage}.",
            hint="Take plans.pkl and the folds from one training.",
        )
    fields = plans.plans_per_stage[number]
    found = convert(fields, _Stage, f"{where}: stage {number}", hint=_UNCHANGED)
    if len(found.patch_size) not in (2, 3):
        raise ModelError(
            f"{where}: stage {number}: patch_size: found {found.patch_size}, expected 2 or 3 axes.",
            hint=_UNCHANGED,
        )
    return number, found


def _network(plans: _Plans, stage: _Stage, where: str) -> dict[str, Any]:
    """The keys of the network, as nnU-Net 2.0 writes them.

    v1 takes the kernels of the next deeper stage for the decoder. A kernel surrounded by zeros
    computes the same, so a stage gets the larger of both; `weights_from_v1` adds the zeros.
    """
    axes, pools = len(stage.patch_size), max(stage.num_pool_per_axis, default=0)
    strides = stage.pool_op_kernel_sizes
    if strides is None:  # plans before they were written down: the coarse axes are pooled last
        strides = [
            [2 if pools - number <= level else 1 for number in stage.num_pool_per_axis]
            for level in range(pools)
        ]
    kernels = stage.conv_kernel_sizes
    if kernels is None:
        kernels = [[3] * axes] * (len(strides) + 1)
    if len(kernels) != len(strides) + 1 or any(len(each) != axes for each in (*strides, *kernels)):
        raise ModelError(
            f"{where}: {len(strides)} pool_op_kernel_sizes and {len(kernels)} conv_kernel_sizes do "
            f"not describe a network of {axes} axes.",
            hint=_UNCHANGED,
        )
    if not {size for kernel in kernels for size in kernel} <= {1, 3}:
        raise ModelError(
            f"{where}: conv_kernel_sizes: found {kernels}, expected only 1 and 3.",
            hint="Predict with nnU-Net v1 itself.",
        )
    deeper = [*kernels[1:], kernels[-1]]
    return {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": plans.base_num_features,
        "unet_max_num_features": _MOST_FEATURES[axes],
        "n_conv_per_stage_encoder": [plans.conv_per_stage] * len(kernels),
        "n_conv_per_stage_decoder": [plans.conv_per_stage] * len(strides),
        "pool_op_kernel_sizes": [[1] * axes, *strides],
        "conv_kernel_sizes": [
            [max(sizes) for sizes in zip(*pair, strict=True)]
            for pair in zip(kernels, deeper, strict=True)
        ],
    }


def _intensities(plans: _Plans, channel: int, where: str) -> dict[str, float]:
    """Statistics of the foreground, which v1 measures only if the dataset has CT; else zeros."""
    measured = plans.dataset_properties.get("intensityproperties") or {}
    try:
        if plans.normalization_schemes[channel] != "CT" and channel not in measured:
            return dict.fromkeys(_STATS, 0.0)
        found = measured.get(channel) or {}
        return {ours: float(found[theirs]) for ours, theirs in _STATS.items()}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"{where}: the foreground intensities of channel {channel} lack {error}.",
            hint=_UNCHANGED,
        ) from None
