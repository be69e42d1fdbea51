"""A target planned like its source, so that the source's weights fit (rules: METHODS A3)."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

from autoliver.artifacts import Record
from autoliver.errors import OptionError
from autoliver.planning.plan import Configuration, ConfigurationName, IntensityStats, Plan

SpacingMode = Literal["source", "target"]
SPACING_MODES: tuple[SpacingMode, ...] = get_args(SpacingMode)

# Spacings that differ by more than this along an axis make organs look different to a network.
_FAR = 2.0
# A source's slice axis matters where it is coarser than the others by more than this.
_ANISOTROPIC = 1.5


class LikeOptions(Record, frozen=True, kw_only=True):
    """How a target is planned like a source.

    Attributes:
        spacing: "source": images are brought to the source's spacing, where organs have the size
            in voxels that its network knows; "target": to the target's own median.
        spacing_mm: Instead: three spacings (z, y, x).
    """

    spacing: SpacingMode = "source"
    spacing_mm: tuple[float, float, float] | None = None


def plan_like(own: Plan, source: Plan, options: LikeOptions) -> Plan:
    """The target's plan with the source's networks, patches, batches and (by default) spacing.

    Normalisation, channels and labels are the target's own. Only CT keeps the source's window and
    scale, so that tissues have the values that the network knows; nnU-Net moves them onto MR too.

    Args:
        own: The target's plan, made from its own fingerprint.
        source: The source's plan.
        options: The choice of spacing.

    Returns:
        A plan with the source's configurations.

    Raises:
        OptionError: The slice axes differ, or a spacing cannot be.
    """
    _check_axes(own, source)
    order = source.transpose_forward
    configurations = {
        name: _configuration(own, source, name, options) for name in source.configurations
    }
    return own.replace(
        preset=source.preset,
        vram_gb=source.vram_gb,
        transpose_forward=order,
        transpose_backward=source.transpose_backward,
        intensities=_intensities(own, source),
        configurations=configurations,
        reasons={**own.reasons, "like": f"Planned like {source.dataset}."},
    )


def far_axes(plan: Plan, own: Plan) -> list[str]:
    """What a user should know about a plan's spacing against the target's own, in sentences."""
    findings = []
    for name, configuration in plan.configurations.items():
        if name not in own.configurations or configuration.dimension != 3:
            continue
        here = _in_input_order(configuration.spacing_mm, plan)
        there = _in_input_order(own.configurations[name].spacing_mm, own)
        for axis, planned, native in zip("zyx", here, there, strict=True):
            ratio = planned / native
            if ratio > _FAR or ratio < 1 / _FAR:
                findings.append(
                    f"{name}: along {axis} the plan has {planned:.3g} mm, the images "
                    f"{native:.3g} mm: "
                    + ("detail is lost." if ratio > 1 else "slices are mostly interpolated.")
                )
    return findings


def _check_axes(own: Plan, source: Plan) -> None:
    """The axis that the networks treat as slices must be the same."""
    if own.transpose_forward == source.transpose_forward:
        return
    for configuration in source.configurations.values():
        spacing = configuration.spacing_mm
        if len(spacing) == 3 and max(spacing) > _ANISOTROPIC * min(spacing):
            axes = ["zyx"[plan.transpose_forward[0]] for plan in (source, own)]
            raise OptionError(
                f"{source.dataset} has its slices along {axes[0]}, {own.dataset} along {axes[1]}.",
                hint="Choose a source with the same slice axis, or train from scratch.",
            )


def _configuration(
    own: Plan, source: Plan, name: ConfigurationName, options: LikeOptions
) -> Configuration:
    theirs = source.configurations[name]
    # Channels and their normalisation are the same in all configurations of a plan.
    ours = own.configurations.get(name) or next(iter(own.configurations.values()))
    further = theirs.network.in_channels - len(source.channel_names)
    if theirs.previous_stage is not None:
        further = len(own.labels.foreground_values)
    spacing, why = _spacing(own, source, name, options)
    return theirs.replace(
        spacing_mm=spacing,
        median_shape=_median_shape(own, source, spacing),
        normalization=ours.normalization,
        mask_norm=ours.mask_norm,
        network=theirs.network.replace(
            in_channels=len(own.channel_names) + further, out_channels=own.labels.out_channels
        ),
        reasons={
            **theirs.reasons,
            "normalization": ours.reasons.get("normalization", ""),
            "spacing": why,
        },
    )


def _spacing(
    own: Plan, source: Plan, name: ConfigurationName, options: LikeOptions
) -> tuple[tuple[float, ...], str]:
    theirs = source.configurations[name].spacing_mm
    if options.spacing_mm is not None:
        if not all(0 < mm < math.inf for mm in options.spacing_mm):
            raise OptionError(
                f"--spacing {' '.join(map(str, options.spacing_mm))}: expected lengths above zero.",
                hint="Give the spacing as Z Y X, e.g. --spacing 2.5 0.8 0.8.",
            )
        ordered = tuple(options.spacing_mm[axis] for axis in source.transpose_forward)
        return ordered[-len(theirs) :], "As asked for."
    if options.spacing == "target" and name in own.configurations:
        native = own.configurations[name].spacing_mm
        if len(native) == 3:
            zyx = _in_input_order(native, own)
            native = tuple(zyx[axis] for axis in source.transpose_forward)
        return native, f"The median of {own.dataset} itself."
    return theirs, (
        f"As {source.dataset}: organs keep the size in voxels that its network has learnt."
    )


def _median_shape(own: Plan, source: Plan, spacing: Sequence[float]) -> tuple[float, ...]:
    """The median size at another spacing, in the source's order of axes."""
    full = own.configurations.get("3d_fullres")
    if full is None:  # one slice deep: only the plane is known
        slices = own.configurations["2d"]
        size = [n * mm for n, mm in zip(slices.median_shape, slices.spacing_mm, strict=True)]
        return tuple(max(1.0, float(round(s / mm))) for s, mm in zip(size, spacing, strict=False))
    size = [n * mm for n, mm in zip(full.median_shape, full.spacing_mm, strict=True)]
    zyx = _in_input_order(size, own)
    ordered = [zyx[axis] for axis in source.transpose_forward][-len(spacing) :]
    return tuple(max(1.0, float(round(s / mm))) for s, mm in zip(ordered, spacing, strict=True))


def _in_input_order(values: Sequence[float], plan: Plan) -> tuple[float, ...]:
    return tuple(values[axis] for axis in plan.transpose_backward)


def _intensities(own: Plan, source: Plan) -> tuple[IntensityStats, ...]:
    """CT to CT: the source's window and scale; everything else: the target's own."""
    if own.modality != "CT" or source.modality != "CT":
        return own.intensities
    known = dict(zip(source.channel_names, source.intensities, strict=True))
    return tuple(
        known.get(name, stats)
        for name, stats in zip(own.channel_names, own.intensities, strict=True)
    )
