"""Which cases to look at first, and why."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoliver.evaluation.results import COLUMNS, CaseScores
from autoliver.values import first_few

MOST = 12
_LEAST = 3  # the worst ones that are named even if none is unusual
_ENOUGH = 5  # with fewer values nothing is unusual
_WHISKER = 1.5  # Tukey's fences: so many times the middle half beyond it


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

    Where fewer than three are, the cases of the lowest mean Dice are named as well.
    """
    dice = {case.name: _dice(case) for case in cases}
    found = _unusual_by_label(dice, "Dice", decimals=COLUMNS["dice"].decimals, high=False)
    means = {name: statistics.fmean(each.values()) for name, each in dice.items() if each}
    order = sorted(means, key=lambda name: (means[name], name))
    chosen = [name for name in order if name in found][:MOST]
    for name in order:
        if len(chosen) >= _LEAST:
            break
        if name not in chosen:
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
) -> dict[str, tuple[str, ...]]:
    """Returns the cases with an unusual value, each with the reasons.

    Args:
        values: Case -> label -> value.
        what: What the values are, such as "volume".
        unit: Unit behind each number; empty for none.
        decimals: Decimals of the numbers.
        low: Whether values below the others are unusual, and not only those above.
    """
    return _unusual_by_label(values, what, unit=unit, decimals=decimals, low=low)


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


def _unusual_by_label(
    values: Mapping[str, Mapping[str, float]],
    what: str,
    *,
    decimals: int,
    unit: str = "",
    low: bool = True,
    high: bool = True,
) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for label in dict.fromkeys(name for of in values.values() for name in of):
        known = {case: of[label] for case, of in values.items() if label in of}
        if len(known) < _ENOUGH:
            continue
        quarter, three = (float(q) for q in np.percentile(list(known.values()), (25, 75)))
        reach = _WHISKER * (three - quarter)
        for case, value in known.items():
            if (low and value < quarter - reach) or (high and value > three + reach):
                found.setdefault(case, []).append(
                    f"{label}: {what} {value:.{decimals}f}{unit}, while half of the cases have "
                    f"{quarter:.{decimals}f} to {three:.{decimals}f}{unit}."
                )
    return {case: tuple(reasons) for case, reasons in found.items()}
