"""Is an image CT or MR by its values, and what are all images of a dataset?"""

from collections import Counter
from collections.abc import Sequence

from autoliver.artifacts import Record
from autoliver.datasets.cases import Modality
from autoliver.planning.ranges import CaseRange, ChannelRange
from autoliver.values import counted

# CT of the body contains air, and air has about -1000 HU. MR with noise around zero never reaches
# this value.
AIR_HU = -900.0
# If HU were clipped at the lower end of a window (the highest one in use is -17), air and fat have
# that value: more than half of the voxels of abdominal scans. In MR less than one voxel in a
# hundred is that low: usually none, or only ringing from resampling.
NEGATIVE_SHARE = 0.01
# Of the brightest voxels, how far noise reaches below zero; CT's fat and air reach further.
_MOST_NOISE = 0.2
# Cases whose values tell nothing are taken for what the others are, if there are not more of them.
_TELLING_SHARE = 0.5
_SHOWN = 3


class Judgement(Record, frozen=True, kw_only=True):
    """What the images of a dataset are taken for.

    Attributes:
        modality: The modality; None if the values do not show it.
        why: The reason in words.
        mixed: Whether some images look like CT and others like MR.
    """

    modality: Modality | None
    why: str
    mixed: bool = False


def looks_like(channels: Sequence[ChannelRange]) -> tuple[Modality | None, str]:
    """Guesses the modality of an image by its values: CT has voxels far below zero, MR has none.

    Args:
        channels: The channels that count; companions of CT such as PET have no negative values.

    Returns:
        The modality, or None if the values do not show it; and the reason in words.
    """
    if empty := emptiness(channels):
        return None, empty
    channels = [channel for channel in channels if not channel.constant]
    low = min(channel.min for channel in channels)
    high = max(channel.max for channel in channels)
    if low >= 0:
        return "MR", f"no negative values, {low:g} to {high:g}"
    why = f"lowest value {low:g}"
    if low <= AIR_HU:
        return "CT", why
    below = max(channel.share_negative for channel in channels)
    if below < NEGATIVE_SHARE or all(map(is_noise, channels)):
        return None, f"{why}, which is not conclusive"
    return "CT", why


def emptiness(channels: Sequence[ChannelRange]) -> str:
    """Says that an image is empty, so that it has no modality; "" if it is not.

    Args:
        channels: The channels that count.
    """
    if not all(channel.constant for channel in channels):
        return ""
    values = ", ".join(dict.fromkeys(f"{channel.min:g}" for channel in channels))
    return f"every voxel is {values}: an empty image has no modality"


def is_noise(channel: ChannelRange) -> bool:
    """Whether what is below zero looks like noise around zero, and not like the air of CT."""
    clipped = channel.percentile_00_5 <= channel.min
    return not clipped and channel.min > AIR_HU and channel.negative_ratio <= _MOST_NOISE


def judge(cases: Sequence[CaseRange], *, named: Modality) -> Judgement:
    """Decides the modality of a dataset by the values of all its images.

    Args:
        cases: All cases that could be read; at least one.
        named: What the name of the dataset's folder says; it decides only where values do not, and
            where it contradicts values that are not conclusive, nothing is decided.
    """
    found = {case.name: looks_like(case.channels)[0] for case in cases}
    kinds = Counter(kind for kind in found.values() if kind is not None)
    empty = [case for case in cases if emptiness(case.channels)]
    parts = [_group(kind, cases, found) for kind in ("CT", "MR", None)]
    parts.append(_empty(empty, of=len(cases)))
    why = "; ".join(part for part in parts if part)
    says = f", and the folder's name says {named}"
    if len(kinds) == 1 and kinds.total() >= _TELLING_SHARE * (len(cases) - len(empty)):
        (kind,) = kinds
        if named in ("other", kind):
            return Judgement(modality=kind, why=why)
        # MR never looks like CT, but CT that was stored with an offset or a window looks like MR.
        seen = kind if kind == "CT" else None
        return Judgement(modality=seen, why=f"{why}, although the folder's name says {named}")
    if not kinds and named != "other":
        return Judgement(modality=named, why=why + says)
    return Judgement(
        modality=None, why=why + (says if named != "other" else ""), mixed=len(kinds) > 1
    )


def _group(
    kind: Modality | None, cases: Sequence[CaseRange], found: dict[str, Modality | None]
) -> str:
    """Describes the cases that look like one modality, or like none; empty if there are none."""
    group = [c for c in cases if found[c.name] == kind and not emptiness(c.channels)]
    if not group:
        return ""
    channels = [channel for case in group for channel in case.channels]
    low, high = min(c.min for c in channels), max(c.max for c in channels)
    if kind is None:
        evidence = "which is neither CT with air nor MR without negative values"
    elif kind == "MR":
        evidence = "none below zero"
    elif max(min(c.min for c in case.channels) for case in group) <= AIR_HU:
        evidence = "and all have the values of air (about -1000)"
    else:
        most = max(channel.share_negative for channel in channels)
        evidence = f"up to {most:.0%} of the voxels far below zero"
    verb = "looks" if len(group) == 1 else "look"
    what = kind or "neither CT nor MR"
    return (
        f"{_named(group, of=len(cases))} {verb} like {what}: values from {low:g} to {high:g}, "
        f"{evidence}"
    )


def _empty(group: Sequence[CaseRange], *, of: int) -> str:
    """Describes the cases that are empty; "" if there are none."""
    verb = "is" if len(group) == 1 else "are"
    said = f"{_named(group, of=of)} {verb} empty: every voxel has the same value"
    return said if group else ""


def _named(group: Sequence[CaseRange], *, of: int) -> str:
    """The number of the cases of a group; where the cases differ, the first ones are named."""
    number = f"{len(group)} of {counted(of, 'case')}"
    names = [case.name for case in group[:_SHOWN]] if len(group) < of else []
    return (
        f"{number} ({', '.join(names)}{', ...' if len(group) > _SHOWN else ''})"
        if names
        else number
    )
