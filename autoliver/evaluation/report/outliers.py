"""Which cases to look at first, and why."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoliver.evaluation.results import COLUMNS, CaseScores, by_mean_dice
from autoliver.values import first_few

MOST = 12
_LEAST = 3  # the worst ones that are named even if none is unusual
_ENOUGH = 5  # with fewer values nothing is unusual
_WHISKER = 1.5  # Tukey's fences: so many times the middle half beyond it
# But at least so far, lest a middle half of nearly equal values makes all others unusual.
_LEAST_DICE = 0.02
_LEAST_SHARE = 0.1  # of the median
# Cases without a label are unusual only if fewer than this share of all cases are without it.
_FEW_ABSENT = 0.25
_PERFECT = 0.9995  # the mean Dice that is shown as 1.000


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlier:
    """A case that deserves a look.

    Attributes:
        case: Its name.
        reasons: What is unusual about it, one sentence each.
    """

    case: str
    reasons: tuple[str, ...]


def by_dice(cases: Sequence[CaseScores]) -> tuple[Outlier, ...]:
    """Returns the cases whose Dice is far below that of the others, the lowest mean Dice first.

    Where fewer than three are, the cases of the lowest mean Dice are named as well, unless they are
    perfect.
    """
    dice = {case.name: _dice(case) for case in cases}
    found: dict[str, list[str]] = {}
    for label, known in _by_label(dice).items():
        fence = _Fence.of(known.values(), least=_LEAST_DICE)
        if fence is not None:
            for case in (case for case, value in known.items() if value < fence.low):
                text = fence.told(label, "Dice", known[case], decimals=COLUMNS["dice"].decimals)
                found.setdefault(case, []).append(text)
    means = {c.name: c.mean_dice for c in by_mean_dice(cases) if c.mean_dice is not None}
    order = list(means)
    chosen = [name for name in order if name in found][:MOST]
    for name in order:
        if len(chosen) >= _LEAST:
            break
        if name not in chosen and means[name] < _PERFECT:
            chosen.append(name)
    missed = {case.name: _missed(case) for case in cases}
    return tuple(
        Outlier(
            case=name,
            reasons=(
                *(found.get(name) or (f"One of the lowest mean Dice: {means[name]:.3f}.",)),
                *missed[name],
            ),
        )
        for name in sorted(chosen, key=order.index)
    )


def by_values(
    values: Mapping[str, Mapping[str, float]],
    what: str,
    *,
    unit: str,
    decimals: int,
    low: bool = True,
    where_present: bool = False,
) -> dict[str, tuple[str, ...]]:
    """Returns the cases with an unusual value, each with the reasons.

    Args:
        values: Case -> label -> value.
        what: What the values are, such as "volume".
        unit: Unit behind each number; empty for none.
        decimals: Decimals of the numbers.
        low: Whether values below the others are unusual, and not only those above.
        where_present: Whether 0 means that a label is absent. What is usual is then taken from the
            cases that have it, and its absence is unusual only if most cases have it.
    """
    found: dict[str, list[str]] = {}
    for label, known in _by_label(values).items():
        held = {case: value for case, value in known.items() if value or not where_present}
        median = statistics.median(held.values()) if held else 0.0
        fence = _Fence.of(held.values(), least=_LEAST_SHARE * abs(median))
        if fence is None:
            continue
        judged = known if len(known) - len(held) < _FEW_ABSENT * len(known) else held
        for case, value in judged.items():
            if (low and value < fence.low) or value > fence.high:
                text = fence.told(label, what, value, decimals=decimals, unit=unit)
                found.setdefault(case, []).append(text)
    return {case: tuple(reasons) for case, reasons in found.items()}


def by_difference(
    differences: Mapping[str, Mapping[str, float]], *, decimals: int = 3
) -> tuple[Outlier, ...]:
    """Returns the cases in which two predictions differ most, by the largest difference of a label.

    Args:
        differences: Case -> label -> difference.
        decimals: Decimals of the numbers.
    """
    largest = {
        case: max(of.items(), key=lambda item: (abs(item[1]), item[0]))
        for case, of in differences.items()
        if of
    }
    order = sorted(largest, key=lambda case: (-abs(largest[case][1]), case))
    return tuple(
        Outlier(
            case=case,
            reasons=(f"{largest[case][0]}: B - A is {largest[case][1]:+.{decimals}f}.",),
        )
        for case in order[: max(_LEAST, min(MOST, len(order) // 10))]
        if largest[case][1]
    )


def _dice(case: CaseScores) -> dict[str, float]:
    return {name: s.dice for name, s in case.labels.items() if s.dice is not None}


def _missed(case: CaseScores) -> tuple[str, ...]:
    names = [n for n, s in case.labels.items() if s.reference_voxels and not s.voxels]
    return (f"Missed: {first_few(names, _LEAST)}.",) if names else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fence:
    """Between which values all is usual.

    Attributes:
        middle: The ends of the middle half of the values.
        reach: How far beyond it values are still usual.
    """

    middle: tuple[float, float]
    reach: float

    @classmethod
    def of(cls, values: Collection[float], *, least: float) -> "_Fence | None":
        """Tukey's fence with a least reach; None for too few values."""
        if len(values) < _ENOUGH:
            return None
        quarter, three = (float(q) for q in np.percentile(list(values), (25, 75)))
        return cls(middle=(quarter, three), reach=max(_WHISKER * (three - quarter), least))

    @property
    def low(self) -> float:
        return self.middle[0] - self.reach

    @property
    def high(self) -> float:
        return self.middle[1] + self.reach

    def told(self, label: str, what: str, value: float, *, decimals: int, unit: str = "") -> str:
        """Says that a value is unusual, and what is usual."""
        quarter, three = self.middle
        return (
            f"{label}: {what} {value:.{decimals}f}{unit}, while half of the cases have "
            f"{quarter:.{decimals}f} to {three:.{decimals}f}{unit}."
        )


def _by_label(values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Label -> case -> value, of the cases that have one."""
    names = dict.fromkeys(name for of in values.values() for name in of)
    return {name: {case: of[name] for case, of in values.items() if name in of} for name in names}
