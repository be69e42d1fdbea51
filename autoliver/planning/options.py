"""Options of `plan`: applies changes to stored options, and converts them to arguments."""

from collections.abc import Mapping
from typing import Any

import msgspec

from autoliver.planning.plan import LikeOptions, Plan, PlanOptions
from autoliver.planning.presets import preset_row
from autoliver.values import check_known

# Options whose values are names, and their spelling on the command line.
_NAMED = {
    "preset": "--preset",
    "arch": "--arch",
    "encoder": "--encoder",
    "z_strides": "--z-strides",
    "slices": "--slices",
}


def asked_of(plan: Plan) -> PlanOptions:
    """Returns the options that a plan was made with.

    For a plan without stored options, they are derived from its preset and memory target.
    """
    if plan.asked is not None:
        return plan.asked
    own = preset_row(plan.preset, plan.arch, plan.encoder).vram_gb
    return PlanOptions(
        preset=plan.preset,
        arch=plan.arch,
        encoder=plan.encoder,
        z_strides=plan.z_strides,
        vram_gb=None if plan.vram_gb == own else plan.vram_gb,
    )


def changed_options(before: PlanOptions, changes: Mapping[str, object]) -> PlanOptions:
    """Returns a copy of options with some of them changed.

    Args:
        before: The options.
        changes: Name -> value; None resets the option to its default.

    Raises:
        OptionError: An option does not exist, or its value is invalid.
    """
    check_known(changes, PlanOptions.__struct_fields__, of="plan")
    return PlanOptions(**{**_fields(before), **_with_defaults(changes, PlanOptions())})


def changed_like_options(before: LikeOptions, changes: Mapping[str, object]) -> LikeOptions:
    """Returns a copy of the options of a plan that follows another, with some of them changed.

    If only a spacing in mm is given, the choice of spacing becomes "fixed". If only another choice
    is given, a fixed spacing is removed.

    Args:
        before: The options.
        changes: Name -> value; None resets the option to its default.

    Raises:
        OptionError: An option does not exist, or its value is invalid.
    """
    check_known(changes, LikeOptions.__struct_fields__, of="plan")
    changes = dict(changes)
    if changes.get("spacing_mm") is not None:
        changes.setdefault("spacing", "fixed")
    elif changes.get("spacing", "fixed") != "fixed":
        changes.setdefault("spacing_mm", None)
    elif "spacing_mm" in changes and before.spacing == "fixed":
        changes.setdefault("spacing", None)
    return LikeOptions(**{**_fields(before), **_with_defaults(changes, LikeOptions())})


def option_words(options: PlanOptions | LikeOptions) -> tuple[str, ...]:
    """Returns the options that differ from their defaults, as arguments of `autoliver plan`."""
    if isinstance(options, LikeOptions):
        if options.spacing_mm is not None:
            return ("--spacing", *map(_number, options.spacing_mm))
        return () if options.spacing == "auto" else ("--like-spacing", options.spacing)
    words, defaults = list[str](), PlanOptions()
    for name, flag in _NAMED.items():
        value = getattr(options, name)
        if value != getattr(defaults, name):
            words += [flag, str(value)]
    if options.vram_gb is not None:
        words += ["--vram", _number(options.vram_gb)]
    if options.spacing_mm is not None:
        words += ["--spacing", *map(_number, options.spacing_mm)]
    if not options.batch_cap:
        words += ["--no-batch-cap"]
    if options.window_hu is not None:
        words += ["--window", *map(_number, options.window_hu)]
    if options.keep_axes:
        words += ["--keep-axes"]
    return tuple(words)


def _with_defaults(
    changes: Mapping[str, object], defaults: PlanOptions | LikeOptions
) -> dict[str, Any]:
    """Returns the changes with an option's default instead of None."""
    return {
        name: getattr(defaults, name) if value is None else value for name, value in changes.items()
    }


def _fields(options: PlanOptions | LikeOptions) -> dict[str, Any]:
    return msgspec.structs.asdict(options)


def _number(value: float) -> str:
    """Converts a number to text with all its digits, so that it results in the same plan."""
    return repr(float(value)).removesuffix(".0")
