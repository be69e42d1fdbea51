"""Which rules for removing components help out of fold: learnt from predictions and labels."""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
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

# On fewer cases a rule would follow chance.
LEAST_CASES = 3
# Limits for small objects that are tried.
SMALL_ML = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0)

_LEAST_GAIN = 1e-4

Dice = dict[str, float | None]
LabelMap = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.intp]


class Trial(Record, frozen=True, kw_only=True):
    """A rule that was tried.

    Attributes:
        rule: The rule.
        before: Mean Dice of each label it touches, with the rules that were kept before it.
        after: The same with this rule.
        kept: Whether the rule helps.
    """

    rule: CleaningRule
    before: dict[str, float]
    after: dict[str, float]
    kept: bool

    @property
    def dice_before(self) -> float | None:
        """Mean of the touched labels; None where no case defines one."""
        return statistics.fmean(self.before.values()) if self.before else None

    @property
    def dice_after(self) -> float | None:
        """As `dice_before`."""
        return statistics.fmean(self.after.values()) if self.after else None

    @property
    def gain(self) -> float:
        """By how much the mean of the touched labels rises."""
        return (self.dice_after or 0.0) - (self.dice_before or 0.0)

    def __str__(self) -> str:
        """In words."""
        if not self.before:
            return f"{self.rule}: not kept, since no case defines its Dice."
        verdict = "kept" if self.kept else "not kept"
        return f"{self.rule}: {verdict}, Dice {self.dice_before:.4f} -> {self.dice_after:.4f}."


@dataclass(frozen=True)
class Tried:
    """Dice of one case: of all touched labels before, and of those of each rule after it alone."""

    before: Dice
    after: tuple[Dice, ...]


def learn_rules(
    pairs: Mapping[str, tuple[Path, Path]],
    *,
    labels: Labels,
    executor: CaseMapper | None = None,
    progress: Callable[[Iterable[Tried]], Iterable[Tried]] | None = None,
) -> tuple[Trial, ...]:
    """Tries rules one after the other, each on top of those that were kept.

    First the largest component of all foreground, then of each label (both as nnU-Net does: Isensee
    et al., Nat Methods 2021), then limits for the smallest component of each label, of which the
    best is told.

    Args:
        pairs: Case name -> label map predicted by networks that did not see it, true label map.
        labels: Names and values.
        executor: Where cases are read; None: here, one after another.
        progress: Wraps the results of each round over the cases.

    Returns:
        What was tried, in order; nothing for fewer than `LEAST_CASES` cases.
    """
    trials: list[Trial] = []
    for alternatives in rounds(labels) if len(pairs) >= LEAST_CASES else ():
        work = functools.partial(
            _try_files,
            labels=labels,
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
    """Rules to try in one go: alternatives for each of some labels that touch no common label."""
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
    """All values of some labels."""
    return sorted({value for name in names for value in labels.values[name]})


def touched(rule: CleaningRule, labels: Labels) -> tuple[str, ...]:
    """Names of the labels that share a value with what the rule cleans."""
    values = set(values_of(rule.labels, labels))
    return tuple(name for name, own in labels.foreground.items() if values.intersection(own))


def judge(rule: CleaningRule, cases: Sequence[tuple[Dice, Dice]]) -> Trial:
    """Whether a rule helps: the mean over the labels it touches rises, and that of none falls.

    Args:
        rule: The rule.
        cases: Per case, Dice of (at least) the touched labels before and after; None: undefined.
    """
    before, after = {}, {}
    for name in cases[0][1]:
        # A case whose false positives are all removed has no Dice any more, and drags none down.
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
    """Dice of one case before and after each rule alone, of the labels they touch.

    Args:
        prediction: (z, y, x).
        reference: As the prediction; where it holds the ignore value nothing counts.
        rules: To try; those about the same labels beside one another.
        labels: Names and values.
        spacing_mm: Three spacings.
    """
    # A single slice has no volume that would be small.
    voxel_ml = math.prod(spacing_mm) / 1000.0 if len(prediction) > 1 else math.inf
    box = bounding_box((prediction > 0) | (reference > 0))
    prediction, reference = prediction[box], reference[box]
    counted = reference != (-1 if labels.ignore is None else labels.ignore)
    before: Dice = {}
    after: list[Dice] = []
    # What the components hold of each label is counted once for all rules about them.
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
    """Voxels of a label in the prediction, in the reference and in both."""

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
        """Dice with some components removed, of which `held` has the voxels (predicted, common)."""
        # Number 0 is no component.
        predicted, common = (int(voxels[1:][gone[1:]].sum()) for voxels in held)
        return _Overlap(self.predicted - predicted, self.actual, self.common - common).dice


def _held(found: Components, predicted: Mask, actual: Mask) -> tuple[Counts, Counts]:
    """Voxels of a label in each component, predicted and common, by the component's number."""
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
    good: Sequence[CleaningRule],
    rules: Sequence[CleaningRule],
) -> Tried:
    _, (prediction, reference) = item
    found = read_label(prediction)
    spacing_mm = found.geometry.spacing_mm
    cleaned = clean(found.array[0], good, values=labels.values, spacing_mm=spacing_mm)
    actual = read_label(reference).array[0]
    return try_rules(cleaned, actual, rules, labels=labels, spacing_mm=spacing_mm)


def _apart(names: Iterable[str], labels: Labels) -> list[list[str]]:
    """Labels in groups of which no two touch a common one: a single group without regions."""
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
