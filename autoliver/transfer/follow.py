"""Plans a target dataset like its source, so that the source's weights fit (rules: METHODS A3)."""

from collections.abc import Sequence

from msgspec import UNSET

from autoliver.artifacts import digest
from autoliver.commands import command
from autoliver.errors import OptionError
from autoliver.io.orientation import reorientation
from autoliver.planning.names import ConfigurationName
from autoliver.planning.plan import Configuration, IntensityStats, LikeOptions, Plan
from autoliver.transfer.deepen import fit_deepened

# If spacings differ by more than this factor along an axis, organs look different to a network.
_FAR = 2.0
# A source's slice axis matters if its spacing exceeds that of other axes by more than this factor.
_ANISOTROPIC = 1.5


def plan_like(own: Plan, source: Plan, options: LikeOptions, *, deepen: bool = False) -> Plan:
    """Makes a target's plan with the source's networks, patches, batches and (by default) spacing.

    Normalisation, channels and labels are the target's own. Only CT keeps the source's window and
    scale, so that tissues have the values that the network knows; nnU-Net applies them to MR as
    well.

    Args:
        own: The target's plan, made from its own fingerprint.
        source: The source's plan.
        options: The choice of spacing.
        deepen: Whether 3d_fullres follows the source's 2D network in plane, if the source has only
            that one, the target has volumes, and the weights of the two correspond.

    Returns:
        The target's plan with the source's configurations.

    Raises:
        OptionError: The slice axes differ, or a spacing is invalid.
    """
    own = _in_order(own, source.axis_codes)
    _check_axes(own, source)
    order = source.transpose_forward
    deepest = max(configuration.dimension for configuration in own.configurations.values())
    configurations = {
        name: _configuration(own, source, name, options)
        for name, theirs in source.configurations.items()
        if theirs.dimension <= deepest  # images of one slice have no volumes
    }
    if deepen and {*source.configurations} == {"2d"} and "3d_fullres" in own.configurations:
        made = _deepened(own, source, options)
        if not made.network.unlike(source.configurations["2d"].network):
            configurations["3d_fullres"] = made
    return own.replace(
        preset=source.preset,
        arch=source.arch,
        encoder=source.encoder,
        z_strides=source.z_strides,
        vram_gb=source.vram_gb,
        transpose_forward=order,
        transpose_backward=source.transpose_backward,
        intensities=_intensities(own, source),
        source_intensities=_source_intensities(own, source),
        like=options,
        asked=None,
        configurations=configurations,
        reasons={
            **{what: _as(source, why) for what, why in source.reasons.items()},
            "like": f"Planned like {source.dataset}: weights trained there fit.",
        },
    )


def like_digest(source: Plan, name: ConfigurationName) -> str:
    """Returns a digest (twelve hex digits) of what a target takes from a source's configuration.

    A 3D configuration that the source lacks takes from its 2D network.
    """
    configuration = source.configurations[name if name in source.configurations else "2d"]
    network = configuration.network.replace(class_head=UNSET)
    if source.labels.exclusive:  # as it is without the task that made one label of several
        values = sum(len(group) for group in source.labels.values.values())
        network = network.replace(out_channels=values)
    return digest(
        {
            "transpose": source.transpose_forward,
            **({"axis_codes": source.axis_codes} if source.axis_codes else {}),
            "spacing_mm": configuration.spacing_mm,
            "network": network,
            "window": source.intensities if source.modality == "CT" else None,
        }
    )


def far_axes(plan: Plan, own: Plan) -> list[str]:
    """Describes, one sentence each, where a plan's spacing is far from the target's own spacing."""
    findings = []
    own = _in_order(own, plan.axis_codes)
    for name, configuration in plan.configurations.items():
        native = _native(own, name)
        axes = plan.transpose_forward[-len(configuration.spacing_mm) :]
        for axis, planned in sorted(zip(axes, configuration.spacing_mm, strict=True)):
            ratio = planned / native.get(axis, planned)
            if ratio > _FAR or ratio < 1 / _FAR:
                findings.append(
                    f"{name}: along {'zyx'[axis]} the plan has {planned:.3g} mm, the images "
                    f"{native[axis]:.3g} mm: "
                    + ("detail is lost." if ratio > 1 else "most of it is interpolated.")
                )
    return findings


def _in_order(own: Plan, codes: str) -> Plan:
    """The target's plan with its axes named in another anatomical order, where both are known."""
    turn = reorientation(own.axis_codes, codes)
    if not (own.axis_codes and codes):
        return own
    z, y, x = (turn.axes.index(axis) for axis in own.transpose_forward)
    back = (z, y, x)
    return own.replace(
        axis_codes=codes,
        transpose_forward=back,
        transpose_backward=(back.index(0), back.index(1), back.index(2)),
    )


def _check_axes(own: Plan, source: Plan) -> None:
    """Refuses a source whose networks treat another axis as the slice axis."""
    if own.transpose_forward[0] == source.transpose_forward[0]:
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
    if theirs.slices > 1 and {*own.configurations} == {"2d"}:
        raise OptionError(
            f"The {name} network of {source.dataset} sees {theirs.slices} neighbouring slices, "
            f"which the images of {own.dataset} do not have: they are one slice deep.",
            hint="Plan the source without --slices, or train from scratch.",
        )
    # Channels and their normalisation are the same in all configurations of a plan.
    ours = own.configurations.get(name) or next(iter(own.configurations.values()))
    cascade = theirs.previous_stage is not None
    further = len(own.labels.foreground_values) if cascade else 0
    spacing, why = _spacing(own, source, name, options)
    return theirs.replace(
        spacing_mm=spacing,
        median_shape=_median_shape(own, source, spacing),
        normalization=ours.normalization,
        mask_norm=ours.mask_norm,
        average=ours.average,
        network=theirs.network.replace(
            in_channels=len(own.channel_names) * theirs.slices + further,
            out_channels=own.labels.out_channels,
            class_head=UNSET,
        ),
        reasons={
            **{what: _as(source, why) for what, why in theirs.reasons.items()},
            "normalization": ours.reasons.get("normalization", ""),
            "spacing": why,
        },
    )


def _deepened(own: Plan, source: Plan, options: LikeOptions) -> Configuration:
    """Makes a 3D configuration that follows the source's 2D network in plane.

    The spacing in plane is chosen as for 2D; that between slices is the target's own.

    Raises:
        OptionError: The slices of the two lie along different axes.
    """
    ours, theirs = own.configurations["3d_fullres"], source.configurations["2d"]
    order = source.transpose_forward
    if own.transpose_forward[0] != order[0]:
        there, here = ("zyx"[plan.transpose_forward[0]] for plan in (source, own))
        again = command(
            *("train", own.dataset, "3d_fullres"),
            options=["--pretrained", source.dataset, "--own-plan"],
        )
        raise OptionError(
            f"{source.dataset} has its slices along {there}, {own.dataset} along {here}: no 3D "
            "network can follow its 2D network.",
            hint=f"Keep the dataset's own plan: {again}",
        )
    plane, why = _spacing(own, source, "2d", options)
    asked = options.spacing_mm
    deep = ours.spacing_mm[0] if asked is None else asked[order[0]]
    spacing = (deep, *plane)
    median = _median_shape(own, source, spacing)
    fit = fit_deepened(theirs.network, source, ours, spacing_mm=spacing, median_shape=median)
    patch, axes = fit.topology.patch_shape, "".join("zyx"[i] for i in order)
    size = " x ".join(map(str, patch))
    return ours.replace(
        spacing_mm=spacing,
        median_shape=median,
        patch_shape=patch,
        batch_size=fit.batch_size,
        network=fit.network,
        normalize_after_resampling=theirs.normalize_after_resampling,
        reasons={
            **ours.reasons,
            "spacing": f"In plane: {why} Between slices: the median of {own.dataset} itself."
            if asked is None
            else why,
            "patch": f"{size} voxels: the largest that fits into {source.vram_gb:g} GB.",
            "batch": f"{fit.batch_size} patches: as many as fit, and no more than planned for "
            f"{own.dataset} itself.",
            "topology": f"In plane as the 2D network of {source.dataset}, so that its weights fit; "
            f"along {axes[0]} as planned. {fit.network.describe(patch, axes=axes)}",
        },
    )


def _as(source: Plan, why: str) -> str:
    """Marks the reason of a decision as one that was made for the source."""
    return why if why.startswith("As ") else f"As {source.dataset}: {why}"


def _spacing(
    own: Plan, source: Plan, name: ConfigurationName, options: LikeOptions
) -> tuple[tuple[float, ...], str]:
    """Chooses the spacing in the source's order of axes, and gives the reason."""
    theirs = source.configurations[name].spacing_mm
    order = source.transpose_forward[-len(theirs) :]
    if options.spacing_mm is not None:
        return tuple(options.spacing_mm[axis] for axis in order), "As asked for."
    known = _native(own, name)
    native = tuple(known.get(axis, mm) for axis, mm in zip(order, theirs, strict=True))
    if options.spacing == "target":
        return native, f"The median of {own.dataset} itself."
    why = f"As {source.dataset}: organs keep the size in voxels that its network has learnt"
    coarse = [mine > _FAR * his for mine, his in zip(native, theirs, strict=True)]
    if options.spacing == "source" or not any(coarse):
        return theirs, f"{why}."
    mixed = zip(native, theirs, coarse, strict=True)
    axes = ", ".join("zyx"[axis] for axis, far in zip(order, coarse, strict=True) if far)
    return (
        tuple(mine if far else his for mine, his, far in mixed),
        f"{why}; but along {axes}, where the images of {own.dataset} are more than {_FAR:g} times "
        "coarser, their own: most slices would be interpolated.",
    )


def _native(own: Plan, name: ConfigurationName) -> dict[int, float]:
    """Maps input axes to the target's own spacing; full resolution if `name` is not planned."""
    found: dict[int, float] = {}
    for each in ("2d", "3d_fullres", name):
        if each in own.configurations:
            spacing = own.configurations[each].spacing_mm
            found |= dict(zip(own.transpose_forward[-len(spacing) :], spacing, strict=True))
    return found


def _median_shape(own: Plan, source: Plan, spacing: Sequence[float]) -> tuple[float, ...]:
    """Returns the target's median size at another spacing, in the source's order of axes."""
    full = own.configurations.get("3d_fullres")
    if full is None:  # images of one slice: only the size within the slice is known
        slices = own.configurations["2d"]
        size = [n * mm for n, mm in zip(slices.median_shape, slices.spacing_mm, strict=True)]
        return tuple(max(1.0, float(round(s / mm))) for s, mm in zip(size, spacing, strict=True))
    size = [n * mm for n, mm in zip(full.median_shape, full.spacing_mm, strict=True)]
    zyx = _in_input_order(size, own)
    ordered = [zyx[axis] for axis in source.transpose_forward][-len(spacing) :]
    return tuple(max(1.0, float(round(s / mm))) for s, mm in zip(ordered, spacing, strict=True))


def _in_input_order(values: Sequence[float], plan: Plan) -> tuple[float, ...]:
    return tuple(values[axis] for axis in plan.transpose_backward)


def _intensities(own: Plan, source: Plan) -> tuple[IntensityStats, ...]:
    """Returns the source's window and scale if both are CT, and the target's own otherwise."""
    if own.modality != "CT" or source.modality != "CT":
        return own.intensities
    known = dict(zip(source.channel_names, source.intensities, strict=True))
    return tuple(
        known.get(name, stats)
        for name, stats in zip(own.channel_names, own.intensities, strict=True)
    )


def _source_intensities(own: Plan, source: Plan) -> tuple[IntensityStats, ...]:
    """Returns the CT scale that the network learnt, for CT cases of a target that is not CT."""
    if own.modality == "CT" or len(own.channel_names) != len(source.channel_names):
        return ()
    return source.intensities if source.modality == "CT" else source.source_intensities
