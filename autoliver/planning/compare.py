"""Is a case unlike the others of its dataset? Spacing, size and intensities, compared.

Every check asks what most of the other cases agree on, says nothing where they do not agree, and
leaves wide margins: scanners and protocols differ, and a mixed but healthy dataset gives no
finding. What is found is a suspicion; only a case that would be a single voxel is certain.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from autoliver.datasets.cases import Modality
from autoliver.io.volume import has_no_thickness
from autoliver.planning.ranges import CaseRange, ChannelRange

# Fewer other cases cannot agree on anything; and so large a share of them must.
_LEAST_OTHERS = 2
_MOST = 0.6
# Spacings within this factor of their median are alike: 0.5 to 10 mm thick slices occur together.
_SPACINGS_ALIKE = 5.0
# Beyond the others' range by more: a wrong unit if all axes agree, an error along one axis.
_FAR_ALL_AXES = 8.0
_FAR_ONE_AXIS = 20.0
# No scan of a body, or of a part of it, is smaller or larger, and the case is unlike the others.
_BODY_MM = (20.0, 2500.0)
_UNLIKE_EXTENT = 4.0
# The longest axis of all cases together: below it the unit must be wrong, even of small animals.
_ANY_OBJECT_MM = 2.0
# After resampling: so few voxels along an axis, where the others have more by this factor.
_FEW_VOXELS = 3
_FEWER = 4.0
_EXTENTS_ALIKE = 8.0
# Hounsfield units: air, fat and lung are below zero, by a good share of what bone is above it.
_HU_LOW = -50.0
_HU_RATIO = 0.25
_CLEAR_HU_RATIO = 0.3
_NOISE_RATIO = 0.12
# No air or fat: above it, or above this share of the others' range below zero.
_NO_NEGATIVE = -5.0
_NO_NEGATIVE_SHARE = 0.02
# Scales of CT are alike within 3 and those of MR within 20; beyond this factor they are wrong.
_CT_SCALE = (3.0, 6.0)
_MR_SCALE = (20.0, 200.0)
# A second scale that so many other cases share is a second scanner's: real sets of MR have two that
# are 400 apart.
_SECOND_SCANNER = 3
# -1 and -3000 as unsigned numbers of 16 and 32 bits, and the highest signed number of 16 bits.
_WRAPPED = ((62536.0, 65535.0), (2.0**32 - 3000, 2.0**32))
_SIGNED_MAX = 33000.0
# What an offset of 1000 or 1024 moves air by, and bone, of which scans hold more or less.
_OFFSET_AIR = (900.0, 1100.0)
_OFFSET_BONE = (700.0, 1350.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One way in which a case differs from the others.

    Attributes:
        case: The case, None for all of them together.
        severity: An error where training would certainly be wrong; otherwise a suspicion.
        code: "spacing", "size" or "intensities".
        problem: What was found and what the others have.
        hint: What to do about it.
    """

    case: str | None
    severity: Literal["error", "warning"]
    code: Literal["spacing", "size", "intensities"]
    problem: str
    hint: str


class _Band(NamedTuple):
    """The range of the values that most others agree on."""

    low: float
    high: float

    def factor(self, value: float) -> float:
        """How many times above the band a value is; below it, less than one; inside, one."""
        return value / min(max(value, self.low), self.high)


def compare_cases(
    cases: Sequence[CaseRange], modalities: Mapping[str, Modality], channel_names: Sequence[str]
) -> list[Difference]:
    """The cases that are unlike the others, in their order; all cases together last.

    Args:
        cases: Those that could be read, in the order of their names.
        modalities: Case -> its modality; intensities are compared among cases of one modality.
        channel_names: Of the dataset, for messages.
    """
    found: list[Difference] = []
    for case in cases:
        others = [other for other in cases if other is not case]
        found += _grid(case, others)
        kind = modalities.get(case.name, "other")
        alike = [other for other in others if modalities.get(other.name, "other") == kind]
        found += _intensities(case, alike, kind, channel_names)
    return found + _all_grids(cases)


def _grid(case: CaseRange, others: Sequence[CaseRange]) -> list[Difference]:
    """At most one difference of spacing and size: the one cause is named once."""
    if len(others) < _LEAST_OTHERS:
        return []
    collapsed = _collapsed(case, others)
    after = _resampled(case, others)
    text = f"it would have {_times(after)} voxels at the others' spacing"
    spacing = _far_spacing(case, others)
    if spacing:
        problem, hint = spacing
        single = collapsed and max(after) == 1
        return [
            Difference(
                case=case.name,
                severity="error" if single else "warning",
                code="size" if single else "spacing",
                problem=f"{problem}; {text}.",
                hint=hint,
            )
        ]
    hint = "Look at its header and its voxels; export it again, or take the case out."
    if collapsed:
        typical = " x ".join(_ends(band, "{:.0f}") for band in _sizes(others))
        severity: Literal["error", "warning"] = "error" if max(after) == 1 else "warning"
        problem = (
            f"{_times(case.shape)} voxels of {_mm(case.spacing_mm)}: {text}, where they have "
            f"{typical}."
        )
        return [
            Difference(case=case.name, severity=severity, code="size", problem=problem, hint=hint)
        ]
    return _odd_extent(case, others, hint)


def _far_spacing(case: CaseRange, others: Sequence[CaseRange]) -> tuple[str, str] | None:
    """What is wrong with its spacing, and what to do; None: nothing."""
    bands = [_band([o.spacing_mm[axis] for o in others], _SPACINGS_ALIKE) for axis in range(3)]
    factors = [
        1.0 if band is None else band.factor(mm)
        for band, mm in zip(bands, case.spacing_mm, strict=True)
    ]
    far = [_away(factor) >= _FAR_ONE_AXIS for factor in factors]
    unit = all(f >= _FAR_ALL_AXES for f in factors) or all(f <= 1 / _FAR_ALL_AXES for f in factors)
    if unit:
        far = [True] * 3
    if not any(far):
        return None
    flat = has_no_thickness(case.spacing_mm)
    shown = list(zip("zyx", bands, far, strict=True))[flat and any(far[1:]) :]
    axes = ", ".join(name for name, _, is_far in shown if is_far)
    typical = "; ".join(
        f"{name} {_ends(band, '{:.3g}')}"
        for name, band, is_far in shown
        if is_far and band is not None
    )
    problem = (
        f"its spacing ({'y, x' if flat else 'z, y, x'}) is {_mm(case.spacing_mm)}, along {axes} "
        f"about {_ratio(factors[far.index(True)])} that of the other cases ({typical} mm)"
    )
    if flat and not any(far[1:]):
        problem = f"it is a 2D file without a spacing along z; the other cases have {typical} mm"
    return problem, f"{_unit(factors, far)}Correct the file's header, or take the case out."


def _unit(factors: Sequence[float], far: Sequence[bool]) -> str:
    if not all(far):
        return ""
    middle = math.exp(float(np.mean(np.log(factors))))
    units = {1e-3: "metres", 0.1: "centimetres", 1e3: "micrometres", 1e-6: "kilometres"}
    for size, name in units.items():
        if 1 / 3 < middle / size < 3:
            return f"It looks as if it were written in {name}; millimetres are expected. "
    return ""


def _resampled(case: CaseRange, others: Sequence[CaseRange]) -> tuple[int, int, int]:
    """Its size at the median spacing of the others."""
    z, y, x = (
        max(1, round(min(1e9, case.extent_mm[axis] / float(np.median(spacings)))))
        for axis in range(3)
        for spacings in [[other.spacing_mm[axis] for other in others]]
    )
    return z, y, x


def _sizes(others: Sequence[CaseRange]) -> list[_Band | None]:
    """Axis by axis, how many voxels the others have at their median spacing."""
    sizes = [_resampled(other, others) for other in others]
    return [_band([size[axis] for size in sizes], _EXTENTS_ALIKE) for axis in range(3)]


def _collapsed(case: CaseRange, others: Sequence[CaseRange]) -> bool:
    """Whether hardly a voxel or slice of it is left at the others' spacing."""
    return any(
        band is not None and size <= _FEW_VOXELS and band.low >= _FEWER * size
        for size, band in zip(_resampled(case, others), _sizes(others), strict=True)
    )


def _odd_extent(case: CaseRange, others: Sequence[CaseRange], hint: str) -> list[Difference]:
    if case.shape[0] == 1:  # photographs and slices: no body is measured
        return []
    least, most = _BODY_MM
    for axis, extent in enumerate(case.extent_mm):
        band = _band([other.extent_mm[axis] for other in others], _EXTENTS_ALIKE)
        if band is None or not least <= band.low <= band.high <= most:
            continue
        if not least <= extent <= most and _away(band.factor(extent)) >= _UNLIKE_EXTENT:
            problem = (
                f"it is {extent:.3g} mm long along {'zyx'[axis]} ({case.shape[axis]} voxels of "
                f"{case.spacing_mm[axis]:.3g} mm); the others are {_ends(band, '{:.3g}')} mm."
            )
            return [
                Difference(
                    case=case.name, severity="warning", code="size", problem=problem, hint=hint
                )
            ]
    return []


def _all_grids(cases: Sequence[CaseRange]) -> list[Difference]:
    """What all cases have in common and no body has."""
    volumes = [case for case in cases if case.shape[0] > 1]
    if not volumes:
        return []
    extent = float(np.median([max(case.extent_mm) for case in volumes]))
    if _ANY_OBJECT_MM <= extent <= _BODY_MM[1]:
        return []
    return [
        Difference(
            case=None,
            severity="warning",
            code="size",
            problem=f"the cases are {extent:.3g} mm long (median of their longest axes), e.g. "
            f"{volumes[0].name} with voxels of {_mm(volumes[0].spacing_mm)}.",
            hint="Spacing is expected in millimetres: correct the headers if they are in another "
            "unit.",
        )
    ]


def _intensities(
    case: CaseRange, others: Sequence[CaseRange], kind: Modality, names: Sequence[str]
) -> list[Difference]:
    found = []
    for index, channel in enumerate(case.channels):
        theirs = [
            o.channels[index]
            for o in others
            if index < len(o.channels) and not o.channels[index].constant
        ]
        if len(theirs) < _LEAST_OTHERS or channel.constant:
            continue
        what = _unlike(channel, theirs, kind)
        if what is None:
            continue
        low, high = _typical(theirs)
        of = f" of channel {names[index]}" if len(case.channels) > 1 else ""
        found.append(
            Difference(
                case=case.name,
                severity="warning",
                code="intensities",
                problem=f"its values{of} are {channel.percentile_00_5:.4g} to "
                f"{channel.percentile_99_5:.4g} (lowest {channel.min:.4g}, highest "
                f"{channel.max:.4g}), those of the others typically {low:.4g} to {high:.4g}: "
                f"{what}.",
                hint="Look at the image; export it again as the others were, or take the case out.",
            )
        )
    return found


def _unlike(c: ChannelRange, others: Sequence[ChannelRange], kind: Modality) -> str | None:
    """What a channel looks like, where it does not look like the others; None: it does."""
    most_negative = _share(others, _is_hounsfield) >= _MOST
    wrapped = any(low <= c.percentile_99_5 <= c.max <= high for low, high in _WRAPPED)
    if wrapped and _share(others, lambda o: o.max < _SIGNED_MAX) >= _MOST:
        return "as if values below zero had been stored as unsigned numbers"
    if kind != "MR" and most_negative:
        return _unlike_hounsfield(c, others)
    if kind == "CT":
        return _unlike_positive(c, others, _CT_SCALE)
    alike = sum(_away(o.span / c.span) <= _CT_SCALE[0] for o in others if c.span > 0)
    scale = (_MR_SCALE[0], math.inf) if alike >= _SECOND_SCANNER else _MR_SCALE
    return _unlike_positive(c, others, scale)


def _unlike_hounsfield(c: ChannelRange, others: Sequence[ChannelRange]) -> str | None:
    low, high = _typical(others)
    width = high - low
    unlike = abs(c.percentile_00_5 - low) + abs(c.percentile_99_5 - high)
    mirrored = abs(c.percentile_99_5 + low) + abs(c.percentile_00_5 + high)
    if mirrored <= 0.3 * width and mirrored < unlike / 2 and unlike > 0.12 * width:
        return "as if they were inverted"
    if c.percentile_00_5 >= min(_NO_NEGATIVE, -_NO_NEGATIVE_SHARE * width):
        scaled = _scaled(c, others, _CT_SCALE) if c.min < 0 else None
        return scaled or _without_negatives(c, low, high)
    if c.percentile_99_5 < 0 < high and high - c.percentile_99_5 >= _OFFSET_BONE[0]:
        return "as if an offset of about -1024 had been added"
    return _scaled(c, others, _CT_SCALE)


def _without_negatives(c: ChannelRange, low: float, high: float) -> str:
    """What a channel without air below zero may be, among Hounsfield units."""
    if c.max <= 1.5:
        return "as if they were scaled to 0 to 1"
    if c.max <= 255:
        return "as if they were windowed to 0 to 255"
    shifts = (c.percentile_00_5 - low, c.percentile_99_5 - high)
    ends = (_OFFSET_AIR, _OFFSET_BONE)
    if all(least <= shift <= most for shift, (least, most) in zip(shifts, ends, strict=True)):
        return "as CT stored with an offset of about 1024, or another modality such as MR"
    return "as of another modality such as MR, or inverted or scaled"


def _unlike_positive(
    c: ChannelRange, others: Sequence[ChannelRange], scale: tuple[float, float]
) -> str | None:
    positive = _share(others, lambda o: o.percentile_99_5 > 0) >= _MOST
    if positive and c.percentile_99_5 <= 0:
        return "as if they were inverted"
    calm = _share(others, lambda o: o.negative_ratio < _NOISE_RATIO) >= _MOST
    if calm and _is_hounsfield(c) and c.negative_ratio >= _CLEAR_HU_RATIO:
        return "as of CT in Hounsfield units"
    return _scaled(c, others, scale) or _turned(c, others)


def _scaled(
    c: ChannelRange, others: Sequence[ChannelRange], scale: tuple[float, float]
) -> str | None:
    alike, far = scale
    band = _band([o.span for o in others], alike)
    if band is None or c.span <= 0 or _away(band.factor(c.span)) < far:
        return None
    if c.min >= 0 and c.max <= 1:
        return "as if they were scaled to 0 to 1"
    return f"as if their scale were about {_ratio(band.factor(c.span))} the others'"


def _turned(c: ChannelRange, others: Sequence[ChannelRange]) -> str | None:
    """Most voxels are dark in the others and bright here, or the other way round."""
    middle = float(np.median([_place(o) for o in others]))
    agree = _share(others, lambda o: abs(_place(o) - middle) <= 0.15) >= _MOST
    extreme = abs(middle - 0.5) > 0.2
    if agree and extreme and abs(_place(c) - (1 - middle)) <= 0.1:
        return "as if they were inverted"
    return None


def _place(c: ChannelRange) -> float:
    """Where the median lies between the outer percentiles, 0 to 1."""
    return (c.median - c.percentile_00_5) / c.span if c.span else 0.5


def _is_hounsfield(c: ChannelRange) -> bool:
    return c.percentile_00_5 <= _HU_LOW and c.negative_ratio >= _HU_RATIO


def _typical(others: Sequence[ChannelRange]) -> tuple[float, float]:
    """The medians of both outer percentiles."""
    low = float(np.median([o.percentile_00_5 for o in others]))
    return low, float(np.median([o.percentile_99_5 for o in others]))


def _share(others: Sequence[ChannelRange], holds: Callable[[ChannelRange], bool]) -> float:
    return sum(map(holds, others)) / len(others)


def _band(values: Sequence[float], alike: float) -> _Band | None:
    """The range of most values, if they are within a factor of their middle one."""
    positive = [value for value in values if value > 0]
    if len(positive) < _LEAST_OTHERS:
        return None
    middle = math.exp(float(np.median(np.log(positive))))
    inside = [value for value in positive if 1 / alike <= value / middle <= alike]
    if len(inside) < max(_LEAST_OTHERS, _MOST * len(values)):
        return None
    return _Band(min(inside), max(inside))


def _away(factor: float) -> float:
    """A factor or its inverse, whichever is above one; nothing is infinitely far away."""
    return max(factor, 1 / factor) if factor > 0 else math.inf


def _ratio(factor: float) -> str:
    return f"{factor:.3g} times" if factor >= 1 else f"1/{1 / factor:.3g} of"


def _times(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


def _mm(values: Sequence[float]) -> str:
    """A spacing (z, y, x) as text; that of a 2D file without z."""
    return " x ".join(f"{mm:.3g}" for mm in values[has_no_thickness(values) :]) + " mm"


def _ends(band: _Band | None, form: str) -> str:
    if band is None:
        return "?"
    low, high = form.format(band.low), form.format(band.high)
    return low if low == high else f"{low} to {high}"
