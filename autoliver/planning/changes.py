"""Describes the differences between two plans of a dataset as readable text."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from autoliver.planning.names import CONFIGURATION_NAMES
from autoliver.planning.plan import Configuration, IntensityStats, Plan

_STATISTICS = ("mean", "median", "std", "min", "max")
_WINDOW = ("percentile_00_5", "percentile_99_5")
_FEWEST_DIGITS = 4  # of numbers that are shown exactly where rounding would hide a difference


class Decision(NamedTuple):
    """A decision of a plan.

    Attributes:
        what: What is decided, in one or two words.
        text: The decision as readable text; empty if there is nothing to decide.
        value: The decision as a value, which is compared.
        reason: The key of its reason in the configuration's `reasons`; empty if it has none.
    """

    what: str
    text: str
    value: object
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A decision that differs between two plans.

    Attributes:
        configuration: The configuration; empty for a decision about the plan as a whole.
        decision: What is decided.
        before: The decision of the earlier plan; empty if it has none.
        now: The decision of the later plan; empty if it has none.
    """

    configuration: str
    decision: str
    before: str
    now: str


def decisions(configuration: Configuration) -> tuple[Decision, ...]:
    """Returns all decisions of a configuration, in the order in which they are made."""
    c = configuration
    dice = "batch" if c.batch_dice else "patch"
    masked = _join(["yes" if masked else "no" for masked in c.mask_norm], ", ")
    schemes = _join(c.normalization, ", ")
    if c.normalize_after_resampling:
        schemes += ", after resampling"
    normalized = (c.normalization, c.normalize_after_resampling)
    average = "" if c.average == "logits" else c.average
    return (
        Decision("spacing", _join(c.spacing_mm, " x ", "{:.3g}") + " mm", c.spacing_mm, "spacing"),
        Decision("median size", _join(c.median_shape, " x ", "{:g}"), c.median_shape),
        Decision("patch", _join(c.patch_shape, " x "), c.patch_shape, "patch"),
        Decision("batch", str(c.batch_size), c.batch_size, "batch"),
        Decision("network", c.network.summary, c.network, "topology"),
        Decision("intensities", schemes, normalized, "normalization"),
        Decision("masked statistics", masked, c.mask_norm),
        Decision("Dice over", dice, c.batch_dice, "batch_dice"),
        Decision("input", c.previous_stage or "", c.previous_stage, "previous_stage"),
        Decision("slices", "" if c.slices == 1 else str(c.slices), c.slices, "slices"),
        Decision("averages", average, c.average),
    )


def plan_changes(before: Plan, now: Plan) -> tuple[Change, ...]:
    """Returns the decisions that differ between two plans of a dataset.

    Args:
        before: The earlier plan.
        now: The later plan.

    Returns:
        The changes, those of the plan as a whole first; empty if both plans have the same digest.
        If only the wording of their reasons differs, a single change says so.
    """
    if before.digest() == now.digest():
        return ()
    found = _changes("", _shared_decisions(before), _shared_decisions(now))
    for name in CONFIGURATION_NAMES:
        old, new = before.configurations.get(name), now.configurations.get(name)
        if old is not None and new is not None:
            found += _changes(name, decisions(old), decisions(new))
        elif old is not new:
            states = ["" if one is None else "planned" for one in (old, new)]
            found.append(_change(name, "configuration", *states))
    return tuple(found) or (_change("", "reasons", "worded otherwise", "of the same decisions"),)


def _shared_decisions(plan: Plan) -> tuple[Decision, ...]:
    """Returns the decisions that all configurations of a plan share."""
    ct = {index: plan.intensities[index] for index in plan.ct_channels}
    windows = {plan.channel_names[index]: _picked(stats, _WINDOW) for index, stats in ct.items()}
    statistics = {
        name: _picked(stats, _STATISTICS if index in ct else (*_STATISTICS, *_WINDOW))
        for index, (name, stats) in enumerate(
            zip(plan.channel_names, plan.intensities, strict=True)
        )
    }
    labels = [f"{name} {_join(values, '+')}" for name, values in plan.labels.values.items()]
    if plan.labels.has_regions and not plan.labels.has_unions:
        labels.append("independent of each other")
    like = "" if plan.like is None else plan.like.spacing
    order = ["zyx"[axis] for axis in plan.transpose_forward]
    return (
        Decision("preset", plan.preset, plan.preset),
        Decision("architecture", plan.arch, plan.arch),
        Decision("encoder", plan.encoder or "", plan.encoder),
        Decision("strides of the depth", plan.z_strides, plan.z_strides),
        Decision("GPU memory", f"{plan.vram_gb:g} GB", plan.vram_gb),
        Decision(
            "modality",
            "CT and MR" if plan.mixed else plan.modality,
            (plan.modality, plan.mixed),
        ),
        Decision("channels", ", ".join(plan.channel_names), plan.channel_names),
        Decision("labels", ", ".join(labels), plan.labels),
        Decision("file ending", plan.file_ending, plan.file_ending),
        Decision("axes in the patient", plan.axis_codes, plan.axis_codes),
        Decision("order of axes", _join(order, ", "), plan.transpose_forward),
        Decision("CT window", _named(windows, "{:.4g} to {:.4g}"), windows),
        Decision("intensity statistics", _named(statistics, "mean {:.4g}"), statistics),
        Decision("source's statistics", "", plan.source_intensities),
        Decision("spacing as", like, plan.like),
    )


def _changes(where: str, before: Sequence[Decision], now: Sequence[Decision]) -> list[Change]:
    found = []
    for old, new in zip(before, now, strict=True):
        if old.value != new.value:
            same = old.text == new.text
            texts = _exactly(old.value, new.value) if same else (old.text, new.text)
            found.append(_change(where, old.what, *texts))
    return found


def _change(where: str, what: str, before: str, now: str) -> Change:
    return Change(configuration=where, decision=what, before=before, now=now)


def _exactly(before: object, now: object) -> tuple[str, str]:
    """Returns the differing parts of two values as text, for values whose usual text is equal."""
    one, other = msgspec.to_builtins(before), msgspec.to_builtins(now)
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return _told_apart(one, other)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    pairs = [_told_apart(one.get(key), other.get(key)) for key in keys]
    old, new = (
        "; ".join(map(" ".join, zip(keys, s, strict=True))) for s in zip(*pairs, strict=True)
    )
    return old, new


def _told_apart(one: object, other: object) -> tuple[str, str]:
    """Returns two differing values as text, rounded to the fewest digits that show it."""
    for digits in range(_FEWEST_DIGITS, sys.float_info.dig + 2):
        texts = _plain(one, digits), _plain(other, digits)
        if texts[0] != texts[1]:
            break
    return texts


def _plain(value: object, digits: int) -> str:
    """Returns a value as text whose numbers have so many significant digits."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_plain(item, digits) for item in value)}]"
    if isinstance(value, dict):
        items = (f"{key} {_plain(item, digits)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _picked(stats: IntensityStats, fields: Sequence[str]) -> list[float]:
    return [getattr(stats, field) for field in fields]


def _named(values: dict[str, list[float]], form: str) -> str:
    return ", ".join(f"{name} {form.format(*numbers)}" for name, numbers in values.items())


def _join(values: Sequence[object], between: str, form: str = "{}") -> str:
    return between.join(form.format(value) for value in values)
