"""Options of `plan`: the stored ones with changes, and as the words of a command."""

from collections.abc import Mapping
from typing import Any

import msgspec

from autoliver.planning.plan import LikeOptions, Plan, PlanOptions
from autoliver.planning.presets import PRESETS
from autoliver.values import check_known


def asked_of(plan: Plan) -> PlanOptions:
    """The options that a plan was made with.

    A plan that does not say so, since it was made before options were kept, still says its preset
    and memory target.
    """
    if plan.asked is not None:
        return plan.asked
    own = PRESETS[plan.preset].vram_gb
    return PlanOptions(preset=plan.preset, vram_gb=None if plan.vram_gb == own else plan.vram_gb)


def changed_options(before: PlanOptions, changes: Mapping[str, object]) -> PlanOptions:
    """Options with some of them changed.

    Args:
        before: The options.
        changes: Name -> value; None as the value of an option that may be None resets it.

    Raises:
        OptionError: There is no such option, or its value cannot be.
    """
    check_known(changes, PlanOptions.__struct_fields__, of="plan")
    return PlanOptions(**{**_fields(before), **changes})


def changed_like_options(before: LikeOptions, changes: Mapping[str, object]) -> LikeOptions:
    """Options of a plan like another, with some of them changed.

    A spacing in mm alone is meant to be fixed, and one of the other choices takes the place of a
    fixed spacing.

    Args:
        before: The options.
        changes: Name -> value.

    Raises:
        OptionError: As `changed_options`.
    """
    check_known(changes, LikeOptions.__struct_fields__, of="plan")
    changes = dict(changes)
    if changes.get("spacing_mm") is not None:
        changes.setdefault("spacing", "fixed")
    elif changes.get("spacing", "fixed") != "fixed":
        changes.setdefault("spacing_mm", None)
    return LikeOptions(**{**_fields(before), **changes})


def option_words(options: PlanOptions | LikeOptions) -> tuple[str, ...]:
    """The options that are not at their default, as `autoliver plan` takes them."""
    if isinstance(options, LikeOptions):
        if options.spacing_mm is not None:
            return ("--spacing", *map(_number, options.spacing_mm))
        return () if options.spacing == "auto" else ("--like-spacing", options.spacing)
    words: list[str] = []
    if options.preset != "default":
        words += ["--preset", options.preset]
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


def _fields(options: PlanOptions | LikeOptions) -> dict[str, Any]:
    return msgspec.structs.asdict(options)


def _number(value: float) -> str:
    """All digits of a number, so that the same plan comes of it."""
    return repr(float(value)).removesuffix(".0")
