"""Matches the labels of two datasets by name and derives how the rows of a head are transferred."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoliver.datasets.cases import Labels
from autoliver.datasets.lesions import is_lesion

# Words that mean the same in the names of labels.
_SYNONYMS = {
    "tumor": "tumour",
    "tumors": "tumour",
    "tumours": "tumour",
    "lesion": "tumour",
    "lesions": "tumour",
    "cancer": "tumour",
    "mass": "tumour",
    "hepatic": "liver",
    "renal": "kidney",
    "kidneys": "kidney",
    "splenic": "spleen",
    "l": "left",
    "r": "right",
    "vessels": "vessel",
}
# Words that one name may have and the other leave out, since all labels here are about the liver.
_UNDERSTOOD = frozenset({"liver"})


@dataclass(frozen=True)
class RowMap:
    """How the rows of the target's heads are computed from the rows of the source's heads.

    Attributes:
        names: Target label (foreground) -> source label; "" if it has no counterpart.
        rows: For each target row, source row -> factor: the target row is the weighted sum. An
            empty mapping gives zeros; None keeps the initial weights.
        shares: Target row -> number of rows among which the source's probability is divided.
    """

    names: dict[str, str]
    rows: tuple[Mapping[int, float] | None, ...]
    shares: Mapping[int, int] = field(default_factory=dict)

    def apply(self, found: Tensor, drawn: Tensor) -> Tensor:
        """Computes the target's rows.

        Args:
            found: (source rows, ...) weight or bias.
            drawn: (target rows, ...) initial weight or bias; the other axes as in `found`.
        """
        result = drawn.clone()
        for row, parts in enumerate(self.rows):
            if parts is not None:
                zero = torch.zeros_like(result[row])
                result[row] = sum((found[i] * factor for i, factor in parts.items()), zero)
        if found.ndim == 1:  # the logits move with the bias
            for row, number in self.shares.items():
                result[row] -= math.log(number)
        return result


def map_rows(source: Labels, target: Labels, *, classes: Sequence[str] = ()) -> RowMap:
    """Matches labels by name and determines the initial value of each row of the target.

    Classes of lesions of which the source knows none begin as its lesion, if it has a single one,
    with equal shares of its probability. Their union is then labelled as the source labels it.

    Logits are converted between classes (softmax, with a row for the background) and regions
    (sigmoid, without one): a region's logit is the class's minus the background's, and a class's
    logit is the region's, with 0 for the background. With one label the conversion is exact.

    Args:
        source: The labels of the source's heads.
        target: The labels of the target's heads.
        classes: Labels of the target that are classes of a lesion.
    """
    names = match_labels(source, target)
    lesions = list(filter(is_lesion, source.foreground))
    known = any(names[name] for name in classes)
    new = list(classes) if len(lesions) == 1 and not known else []
    names |= dict.fromkeys(new, "".join(lesions))
    index = {name: i for i, name in enumerate(source.rows)}
    rows: list[Mapping[int, float] | None] = []
    for name in target.rows:
        if name not in names:  # the background of a softmax
            rows.append({} if source.has_regions else {0: 1.0})
        elif not names[name]:
            rows.append(None)
        elif target.has_regions and not source.has_regions:
            rows.append({index[names[name]]: 1.0, 0: -1.0})
        else:
            rows.append({index[names[name]]: 1.0})
    if not any(names.values()):
        rows = [None] * len(rows)
    shares = {i: len(new) for i, name in enumerate(target.rows) if name in new}
    return RowMap(names, tuple(rows), shares)


def match_labels(source: Labels, target: Labels) -> dict[str, str]:
    """Maps each foreground label of the target to the source's label of the same meaning, or "".

    Case, order of words, plural, spelling and synonyms (tumour, tumor, lesion) do not matter, nor
    whether a name contains the word "liver".
    """
    known = {_words(name): name for name in source.foreground}
    matched = {name: known.get(_words(name), "") for name in target.foreground}
    free = {words: name for words, name in known.items() if name not in matched.values()}
    for name, found in matched.items():
        rest = _words(name) - _UNDERSTOOD
        near = [other for words, other in free.items() if rest and words - _UNDERSTOOD == rest]
        if not found and len(near) == 1:
            matched[name] = near[0]
    return matched


def map_values(source: Labels, target: Labels) -> dict[int, int | None]:
    """Maps the values of the source's label maps to the target's, by the names of the labels.

    A value becomes the value of the target that says the same of every label that both have. If
    there is none, or there are several that differ in labels that the source lacks, the voxel may
    be more than one thing and does not count. Neither do labels that the target lacks. So the
    source's background counts only if the source has all labels of the target.

    Returns:
        Source value -> target value; None for voxels that do not count.
    """
    names = {name: found for name, found in match_labels(source, target).items() if found}
    meanings = {value: _holding(target, value) for value in sorted(target.allowed)}
    if target.ignore is not None:
        del meanings[target.ignore]
    found: dict[int, int | None] = {}
    for value in sorted(source.allowed):
        known = _known(value, names, source, target)
        alike = {v: held for v, held in meanings.items() if held & names.keys() == known}
        unknown = value == source.ignore or (value != 0 and not known)
        clear = not unknown and len(set(alike.values())) == 1
        found[value] = min(alike) if clear else None
    return found


def _holding(labels: Labels, value: int) -> frozenset[str]:
    """The foreground labels that hold a value."""
    return frozenset(name for name, values in labels.foreground.items() if value in values)


def _known(value: int, names: Mapping[str, str], source: Labels, target: Labels) -> frozenset[str]:
    """The target's labels that a voxel of the source has, by its value.

    Args:
        value: The source's value.
        names: Label of the target -> label of the source, of those that both have.
        source: The source's labels.
        target: The target's labels.
    """
    held = [name for name, found in names.items() if value in source.values[found]]
    if not held:
        return frozenset()
    if not target.has_regions:  # of nested regions, the smallest is the class
        return frozenset([min(held, key=lambda name: len(source.values[names[name]]))])
    inner = [set(target.values[name]) for name in held]  # e.g. a tumour is in the liver's region
    return frozenset(n for n in names if any(part <= set(target.values[n]) for part in inner))


def _words(name: str) -> frozenset[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    words = re.findall(r"[a-z]+|\d+", spaced.lower())
    return frozenset(_SYNONYMS.get(word, word) for word in words)
