"""Learns from out-of-fold predictions and labels which component-removal rules raise the Dice."""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoliver.artifacts import Record
from autoliver.datasets.cases import Labels
from autoliver.inference.clean import Components, clean, components, kept, mask_of
from autoliver.io.files import read_label
from autoliver.models.selection import CleaningRule
from autoliver.parallel import CaseMapper
from autoliver.planning.nonzero import bounding_box

# With fewer cases the choice of rules would be left to chance.
LEAST_CASES = 3
# The limits, in ml, that are tried for the smallest component.
SMALL_ML = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0)

_LEAST_GAIN = 1e-4

Dice = dict[str, float | None]
LabelMap = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.intp]


class Trial(Record, frozen=True, kw_only=True):
    """The result of trying a cleaning rule.

    Attributes:
        rule: The rule.
        before: Label -> mean Dice without the rule, for the labels it affects; rules kept before it
            are applied.
        after: Label -> mean Dice with the rule applied as well.
        kept: Whether the rule helps and is kept.
    """

    rule: CleaningRule
    before: dict[str, float]
    after: dict[str, float]
    kept: bool

    @property
    def dice_before(self) -> float | None:
        """Mean Dice of the affected labels before the rule; None if no case defines a Dice."""
        return statistics.fmean(self.before.values()) if self.before else None

    @property
    def dice_after(self) -> float | None:
        """Mean Dice of the affected labels after the rule; None if no case defines a Dice."""
        return statistics.fmean(self.after.values()) if self.after else None

    @property
    def gain(self) -> float:
        """By how much the mean Dice of the affected labels rises."""
        return (self.dice_after or 0.0) - (self.dice_before or 0.0)

    def __str__(self) -> str:
        """Describes the trial and its outcome in one sentence."""
        if not self.before:
            return f"{self.rule}: not kept, since no case defines its Dice."
        verdict = "kept" if self.kept else "not kept"
        return f"{self.rule}: {verdict}, Dice {self.dice_before:.4f} -> {self.dice_after:.4f}."


@dataclass(frozen=True)
class Tried:
    """Dice of one case before and after each of several rules, each applied alone.

    Attributes:
        before: Label -> Dice without any of the rules, for all labels that they affect.
        after: For each rule, label -> Dice with this rule alone, for the labels it affects.
    """

    before: Dice
    after: tuple[Dice, ...]


def learn_rules(
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    labels: Labels,
    unscored: Mapping[str, Collection[str]] | None = None,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[Tried]], Iterable[Tried]] | None = None,
) -> tuple[Trial, ...]:
    """Tries rules one after another, each on top of those that were kept.

    The first rule keeps the largest component of all foreground, the next ones that of each label
    (both as in nnU-Net: Isensee et al., Nat Methods 2021). Then several limits for the smallest
    component of each label are tried, of which only the best is reported.

    Args:
        pairs: Case name -> (predicted label map, true label map); the networks that predicted a
            case were not trained on it.
        labels: Names and values of the labels.
        unscored: Case name -> labels that are left out in it; None: all labels are scored.
        executor: Runs the work on the cases; None: in this process, one after another.
        progress: Wraps the results of each round over the cases, e.g. tqdm; None: no progress.

    Returns:
        The trials in order; empty for fewer than `LEAST_CASES` cases.
    """
    trials: list[Trial] = []
    for alternatives in rounds(labels) if len(pairs) >= LEAST_CASES else ():
        work = functools.partial(
            _try_files,
            labels=labels,
            unscored=unscored or {},
            good=[trial.rule for trial in trials if trial.kept],
            rules=[rule for choices in alternatives for rule in choices],
        )
        found = (executor.map if executor else map)(work, sorted(pairs.items()))
        cases = list(progress(found) if progress else found)
        column = 0
        for choices in alternatives:
            judged = []
            for rule in choices:
                judged.append(judge(rule, [(case.before, case.after[column]) for case in cases]))
                column += 1
            trials.append(max(judged, key=lambda trial: (trial.kept, trial.gain)))
    return tuple(trials)


def rounds(labels: Labels) -> list[list[tuple[CleaningRule, ...]]]:
    """Groups the rules into rounds, so that the rules of a round can be tried in one pass.

    Returns:
        For each round, one tuple of alternative rules per label. Rules in different tuples of a
        round affect no common label.
    """
    names = tuple(labels.foreground)
    whole = values_of(names, labels)
    parts = [name for name in names if values_of([name], labels) != whole]
    found: list[list[tuple[CleaningRule, ...]]] = [[(_largest(names),)]]
    for apart in _apart(parts, labels):
        found.append([(_largest((name,)),) for name in apart])
    for apart in _apart(names, labels):
        found.append([_limits(name) for name in apart])
    return found


def _largest(names: tuple[str, ...]) -> CleaningRule:
    return CleaningRule(labels=names, keep="largest")


def _limits(name: str) -> tuple[CleaningRule, ...]:
    return tuple(CleaningRule(labels=(name,), keep="least", least_ml=ml) for ml in SMALL_ML)


def values_of(names: Iterable[str], labels: Labels) -> list[int]:
    """Returns the sorted values of several labels, without duplicates."""
    return sorted({value for name in names for value in labels.values[name]})


def touched(rule: CleaningRule, labels: Labels) -> tuple[str, ...]:
    """Names the labels that a rule affects: those that share a value with the labels it cleans."""
    values = set(values_of(rule.labels, labels))
    return tuple(name for name, own in labels.foreground.items() if values.intersection(own))


def judge(rule: CleaningRule, cases: Sequence[tuple[Dice, Dice]]) -> Trial:
    """Judges a rule: it helps if the mean Dice of its labels rises and that of no label falls.

    Args:
        rule: The rule.
        cases: For each case, label -> Dice before and after, for at least the labels that the rule
            affects; None where undefined.
    """
    before, after = {}, {}
    for name in cases[0][1]:
        # If all false positives of a case are removed, its Dice becomes undefined and is left out.
        old = [dice for case, _ in cases if (dice := case[name]) is not None]
        new = [dice for _, case in cases if (dice := case[name]) is not None]
        if old and new:
            before[name], after[name] = statistics.fmean(old), statistics.fmean(new)
    trial = Trial(rule=rule, before=before, after=after, kept=False)
    falls = any(after[name] < before[name] for name in before)
    return trial.replace(kept=trial.gain > _LEAST_GAIN and not falls)


def try_rules(
    prediction: LabelMap,
    reference: LabelMap,
    rules: Sequence[CleaningRule],
    *,
    labels: Labels,
    spacing_mm: Sequence[float],
) -> Tried:
    """Computes the Dice of one case before and after each rule, each applied alone.

    Args:
        prediction: (z, y, x) label map.
        reference: (z, y, x) label map; voxels with the ignore value do not count.
        rules: The rules to try; rules with the same labels must be adjacent.
        labels: Names and values of the labels.
        spacing_mm: Three spacings in mm, in the order of the array axes.
    """
    # A single slice has no volume, so no component of it counts as small.
    voxel_ml = math.prod(spacing_mm) / 1000.0 if len(prediction) > 1 else math.inf
    box = bounding_box((prediction > 0) | (reference > 0))
    prediction, reference = prediction[box], reference[box]
    counted = reference != (-1 if labels.ignore is None else labels.ignore)
    before: Dice = {}
    after: list[Dice] = []
    # The voxels of each label in each component are counted once for all rules with these labels.
    for names, group in itertools.groupby(rules, key=lambda rule: rule.labels):
        found = components(mask_of(prediction, values_of(names, labels)))
        same = list(group)
        gone = [~kept(rule, found.voxels, voxel_ml=voxel_ml) for rule in same]
        results: list[Dice] = [{} for _ in same]
        for name in touched(same[0], labels):
            predicted, actual = (
                mask_of(array, labels.values[name]) & counted for array in (prediction, reference)
            )
            overlap, held = _Overlap.of(predicted, actual), _held(found, predicted, actual)
            before[name] = overlap.dice
            for result, removed in zip(results, gone, strict=True):
                result[name] = overlap.without(held, removed)
        after += results
    return Tried(before=before, after=tuple(after))


@dataclass(frozen=True)
class _Overlap:
    """Numbers of voxels of a label in the prediction, in the reference and in both."""

    predicted: int
    actual: int
    common: int

    @classmethod
    def of(cls, predicted: Mask, actual: Mask) -> "_Overlap":
        masks = (predicted, actual, predicted & actual)
        return cls(*(int(np.count_nonzero(mask)) for mask in masks))

    @property
    def dice(self) -> float | None:
        both = self.predicted + self.actual
        return 2 * self.common / both if both else None

    def without(self, held: tuple[Counts, Counts], gone: Mask) -> float | None:
        """Returns the Dice after removing the components `gone`, whose voxels are in `held`."""
        # Index 0 stands for the background, not for a component.
        predicted, common = (int(voxels[1:][gone[1:]].sum()) for voxels in held)
        return _Overlap(self.predicted - predicted, self.actual, self.common - common).dice


def _held(found: Components, predicted: Mask, actual: Mask) -> tuple[Counts, Counts]:
    """Counts a label's predicted and common voxels in each component, indexed by its number."""
    predicted, actual = predicted[found.box], actual[found.box]
    every, common = (
        np.bincount(found.numbers[mask], minlength=len(found.voxels))
        for mask in (predicted, predicted & actual)
    )
    return every, common


def _try_files(
    item: tuple[str, tuple[Path, Path]],
    *,
    labels: Labels,
    unscored: Mapping[str, Collection[str]],
    good: Sequence[CleaningRule],
    rules: Sequence[CleaningRule],
) -> Tried:
    name, (prediction, reference) = item
    found = read_label(prediction)
    spacing_mm = found.geometry.spacing_mm
    cleaned = clean(found.array[0], good, values=labels.values, spacing_mm=spacing_mm)
    actual = read_label(reference).array[0]
    tried = try_rules(cleaned, actual, rules, labels=labels, spacing_mm=spacing_mm)
    left_out = unscored.get(name, ())
    return Tried(
        before=_without(tried.before, left_out),
        after=tuple(_without(each, left_out) for each in tried.after),
    )


def _without(dice: Dice, left_out: Collection[str]) -> Dice:
    return {name: None if name in left_out else value for name, value in dice.items()}


def _apart(names: Iterable[str], labels: Labels) -> list[list[str]]:
    """Groups labels whose rules affect no common label; without regions there is one group."""
    groups: list[tuple[list[str], set[str]]] = []
    for name in names:
        near = set(touched(_largest((name,)), labels))
        for group, taken in groups:
            if not near & taken:
                group.append(name)
                taken |= near
                break
        else:
            groups.append(([name], near))
    return [group for group, _ in groups]
