"""Converts nnU-Net's plans.json and dataset.json to autoliver's plan of one configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from autoliver.artifacts import read_json
from autoliver.datasets.cases import Labels, Modality
from autoliver.datasets.description import Description, modality_of
from autoliver.errors import ArtifactError, ModelError
from autoliver.nnunet.network import spec_from_nnunet
from autoliver.planning.names import ConfigurationName, Preset
from autoliver.planning.plan import Configuration, IntensityStats, Normalization, Plan
from autoliver.planning.presets import PRESETS
from autoliver.values import counted, shortened

S = TypeVar("S", bound=msgspec.Struct)
# What no plan exceeds, so that a damaged number is refused before anything is built with it.
_Voxels = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Millimetres = Annotated[float, msgspec.Meta(gt=0, le=100_000)]
_Intensity = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]

NORMALIZATIONS: dict[str, Normalization] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale01",
    "RGBTo01Normalization": "rgb",
    "NoNormalization": "none",
}
RESAMPLING = "resample_data_or_seg_to_shape"
# The settings of nnU-Net's three resampling functions, which autoliver's resampling reproduces.
RESAMPLING_SETTINGS: dict[str, dict[str, Any]] = {
    "data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "seg": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "probabilities": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}
_THRESHOLD = {"separate_z_anisotropy_threshold": 3}
# The readers whose arrays equal autoliver's: the file's voxels in the file's order.
_READERS = ("SimpleITKIO", "NibabelIO")
_PRESETS: dict[str, Preset] = {
    "nnUNetPlannerResEncM": "M",
    "nnUNetPlannerResEncL": "L",
    "nnUNetPlannerResEncXL": "XL",
}
_UNCHANGED = "Take plans.json from the folder that nnU-Net trained into, unchanged."


class _Settings(msgspec.Struct, kw_only=True):
    """The keys of a configuration that affect prediction, except those of the network."""

    patch_size: tuple[_Voxels, ...]
    spacing: tuple[_Millimetres, ...]
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    median_image_size_in_voxels: tuple[float, ...] = ()
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    batch_dice: bool = False
    preprocessor_name: str = "DefaultPreprocessor"
    previous_stage: str | None = None


class _Plans(msgspec.Struct, kw_only=True):
    """The keys of plans.json outside the configurations."""

    dataset_name: str
    plans_name: str = "nnUNetPlans"
    image_reader_writer: str = "SimpleITKIO"
    label_manager: str = "LabelManager"
    experiment_planner_used: str = "ExperimentPlanner"
    transpose_forward: tuple[int, int, int]
    transpose_backward: tuple[int, int, int]
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, dict[str, _Intensity]] = {}
    # The name of the same key in nnU-Net 2.0.
    foreground_intensity_properties_by_modality: dict[str, dict[str, _Intensity]] = {}


def read_plans(path: Path) -> dict[str, Any]:
    """Reads the content of a plans.json.

    Raises:
        ModelError: The file is missing, not JSON or not a plans file of nnU-Net v2.
    """
    try:
        raw = read_json(path)
    except ArtifactError as error:
        raise ModelError(error.problem, hint=_UNCHANGED) from None
    if not isinstance(raw, dict) or "configurations" not in raw:
        raise ModelError(f"{path}: not a plans file of nnU-Net v2.", hint=_UNCHANGED)
    return raw


def plan_from_nnunet(
    raw: Mapping[str, Any], description: Description, *, configuration: str, where: str
) -> tuple[Plan, ConfigurationName]:
    """Converts one configuration of nnU-Net to an autoliver plan.

    Args:
        raw: The content of plans.json.
        description: The content of dataset.json beside it.
        configuration: nnU-Net's name of the configuration, e.g. "3d_cascade_fullres" or a name that
            the user chose.
        where: The file's name, for messages.

    Returns:
        The plan, and autoliver's name of the configuration.

    Raises:
        ModelError: A value is missing, damaged or not supported; the message names it.
    """
    plans = convert(dict(raw), _Plans, where)
    labels = _labels(description, where)
    _check_whole(plans, where)
    resolved = _resolved(plans.configurations, configuration, where)
    where = f"{where}: {configuration}"
    settings = convert(resolved, _Settings, where)
    _check_settings(settings, resolved, channels=len(description.channel_names), where=where)
    stats = _intensities(plans, len(description.channel_names), where)
    name = _our_name(configuration, resolved, settings)
    preset = _PRESETS.get(plans.experiment_planner_used, "default")
    plan = Plan(
        dataset=plans.dataset_name,
        preset=preset,
        vram_gb=float(PRESETS[preset].vram_gb),
        channel_names=description.channel_names,
        modality=_modality(description, settings, stats),
        labels=labels,
        codes=description.codes,
        file_ending=description.file_ending or ".nii.gz",
        transpose_forward=plans.transpose_forward,
        transpose_backward=plans.transpose_backward,
        intensities=stats,
        configurations={name: _configuration(resolved, settings, description, labels, where)},
        reasons={
            "origin": f"read from nnU-Net's {plans.plans_name}, configuration {configuration}, "
            f"made by {plans.experiment_planner_used}."
        },
    )
    for field, problem in plan.faults():
        raise ModelError(f"{where}: {field}: {problem}.", hint=_UNCHANGED)
    return plan, name


def refuse_gaps(labels: Labels, where: str) -> None:
    """Refuses plain labels that are not 0, 1, 2, ...: nnU-Net writes a class's index as its value.

    Args:
        labels: The labels; regions are not checked.
        where: The file or dataset, for messages.

    Raises:
        ModelError: The values have a gap.
    """
    values = sorted(value for group in labels.values.values() for value in group)
    if not labels.has_regions and values != list(range(len(values))):
        raise ModelError(
            f"{where}: the labels' values are {values}; nnU-Net supports only consecutive ones.",
            hint="Renumber the labels 0, 1, 2, ...",
        )


def _configuration(
    resolved: Mapping[str, Any],
    settings: _Settings,
    description: Description,
    labels: Labels,
    where: str,
) -> Configuration:
    further = len(labels.foreground_values) if settings.previous_stage else 0
    network = spec_from_nnunet(
        resolved,
        in_channels=len(description.channel_names) + further,
        out_channels=labels.out_channels,
        where=where,
    )
    strides = network.total_stride
    pairs = zip(settings.patch_size, strides, strict=True)
    if any(stride < 1 or size % stride for size, stride in pairs):
        raise ModelError(
            f"{where}: patch_size: found {settings.patch_size}, expected multiples of {strides}, "
            "the strides of the network.",
            hint=_UNCHANGED,
        )
    return Configuration(
        spacing_mm=settings.spacing,
        median_shape=settings.median_image_size_in_voxels or settings.patch_size,
        patch_shape=settings.patch_size,
        batch_size=settings.batch_size,
        batch_dice=settings.batch_dice,
        normalization=tuple(NORMALIZATIONS[name] for name in settings.normalization_schemes),
        mask_norm=settings.use_mask_for_norm,
        network=network,
        previous_stage="3d_lowres" if settings.previous_stage else None,
    )


def _our_name(
    configuration: str, resolved: Mapping[str, Any], settings: _Settings
) -> ConfigurationName:
    """Finds autoliver's name of a configuration from its content, since users may rename it."""
    if len(settings.patch_size) == 2:
        return "2d"
    if settings.previous_stage:
        return "3d_cascade"
    return "3d_lowres" if resolved.get("next_stage") or "lowres" in configuration else "3d_fullres"


def _resolved(
    configurations: Mapping[str, dict[str, Any]], name: str, where: str
) -> dict[str, Any]:
    """Returns a configuration together with all values that it inherits."""
    chain: list[dict[str, Any]] = []
    seen: list[str] = []
    following: Any = name
    while following is not None:
        if following in seen:
            raise ModelError(
                f"{where}: configurations inherit in a circle: {', '.join([*seen, following])}.",
                hint=_UNCHANGED,
            )
        if following not in configurations:
            raise ModelError(
                f"{where}: there is no configuration '{following}', only "
                f"{', '.join(configurations)}.",
                hint=_UNCHANGED,
            )
        seen.append(following)
        chain.append(configurations[following])
        following = chain[-1].get("inherits_from")
    return {key: value for each in reversed(chain) for key, value in each.items()}


def convert(fields: object, kind: type[S], where: str, *, hint: str = _UNCHANGED) -> S:
    """Converts plain values to a struct.

    Raises:
        ModelError: A value is missing or of the wrong type; the message names it.
    """
    try:
        return msgspec.convert(fields, kind, strict=False)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at ")
        place = place.strip("`").removeprefix("$.")
        raise ModelError(f"{where}: {f'{place}: ' if place else ''}{what}.", hint=hint) from None


def _labels(description: Description, where: str) -> Labels:
    if description.labels is None:
        raise ModelError(f"{where}: dataset.json names no labels.", hint=_UNCHANGED)
    labels = msgspec.convert(description.labels, Labels, from_attributes=True)
    refuse_gaps(labels, str(description.where))
    return labels


def _check_whole(plans: _Plans, where: str) -> None:
    forward, backward = plans.transpose_forward, plans.transpose_backward
    problem = ""
    if sorted(forward) != [0, 1, 2] or tuple(forward.index(axis) for axis in range(3)) != backward:
        problem = f"transpose_forward {forward} and transpose_backward {backward} do not match"
    elif plans.image_reader_writer not in _READERS:
        problem = (
            f"images are read by {plans.image_reader_writer}, which may reorient them; expected "
            f"{' or '.join(_READERS)}"
        )
    elif plans.label_manager != "LabelManager":
        problem = f"labels are handled by {plans.label_manager}, expected LabelManager"
    if problem:
        raise ModelError(f"{where}: {problem}.", hint="Predict with nnU-Net itself.")


def _check_settings(
    settings: _Settings, resolved: Mapping[str, Any], *, channels: int, where: str
) -> None:
    axes = len(settings.patch_size)
    problem = ""
    if axes not in (2, 3) or len(settings.spacing) != axes:
        problem = f"patch_size {settings.patch_size} and spacing {settings.spacing} do not match"
    elif {len(settings.normalization_schemes), len(settings.use_mask_for_norm)} != {channels}:
        problem = f"normalisation is not given for each of the {counted(channels, 'channel')}"
    elif unknown := [n for n in settings.normalization_schemes if n not in NORMALIZATIONS]:
        problem = (
            f"normalization_schemes: {unknown[0]}, expected one of {', '.join(NORMALIZATIONS)}"
        )
    elif settings.preprocessor_name != "DefaultPreprocessor":
        problem = f"preprocessor_name: {settings.preprocessor_name}, expected DefaultPreprocessor"
    else:
        problem = _resampling_problem(resolved)
    if problem:
        raise ModelError(f"{where}: {problem}.", hint="Predict with nnU-Net itself.")


def _resampling_problem(resolved: Mapping[str, Any]) -> str:
    for kind, expected in RESAMPLING_SETTINGS.items():
        key = f"resampling_fn_{kind}"
        function = resolved.get(key, RESAMPLING)
        if function != RESAMPLING:
            return f"{key}: {function}, expected {RESAMPLING}"
        found = resolved.get(f"{key}_kwargs", expected)
        if not isinstance(found, Mapping):
            return f"{key}_kwargs: {shortened(repr(found), 80)}, expected settings by name"
        for name, value in {**expected, **_THRESHOLD}.items():
            if found.get(name, value) != value:
                return f"{key}_kwargs: {name} is {found[name]}, expected {value}"
        if unknown := [name for name in found if name not in {**expected, **_THRESHOLD}]:
            return f"{key}_kwargs: unknown setting {unknown[0]}"
        # If these are missing, nnU-Net's function uses defaults that autoliver does not support.
        if missing := [
            name for name in ("is_seg", "order", "force_separate_z") if name not in found
        ]:
            return f"{key}_kwargs: {missing[0]} is missing, expected {expected[missing[0]]}"
    return ""


def _intensities(plans: _Plans, channels: int, where: str) -> tuple[IntensityStats, ...]:
    found = (
        plans.foreground_intensity_properties_per_channel
        or plans.foreground_intensity_properties_by_modality
    )
    names = IntensityStats.__struct_fields__
    stats = []
    for channel in range(channels):
        values = found.get(str(channel), {})
        if missing := [name for name in names if name not in values]:
            raise ModelError(
                f"{where}: the foreground intensities of channel {channel} lack {missing[0]}.",
                hint=_UNCHANGED,
            )
        stats.append(IntensityStats(**{name: values[name] for name in names}))
    return tuple(stats)


def _modality(
    description: Description, settings: _Settings, stats: tuple[IntensityStats, ...]
) -> Modality:
    """Derives the modality from channel names; CT only if the training intensities can be HU.

    CT that was shifted or scaled before training has no values below zero. As "CT", such images
    would be refused here, while nnU-Net would predict them.
    """
    named = modality_of(description.channel_names)
    if named == "CT" or "CTNormalization" in settings.normalization_schemes:
        return "CT" if stats[0].min < 0 else "other"
    return named
