"""Divides patients into parts that are alike in the number of patients with each class."""

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

# Number of patients with the same classes, in each part: (kinds of patients, parts).
_Counts = npt.NDArray[np.int64]
# Kinds of patients -> the classes that they have, and 1 in the last column: (kinds, classes + 1).
_Having = npt.NDArray[np.int64]
# Number of patients with a class, and of all in the last row, in each part: (classes + 1, parts).
_Held = npt.NDArray[np.int64]

_TRIALS = 8


def stratified(held: Mapping[str, frozenset[str]], *, folds: int, seed: int) -> list[set[str]]:
    """Divides patients so that parts differ by at most one patient in each class, if they can.

    So each class is in as many parts as it can be. Patients with the same classes change places
    with each other for nothing, so that only their numbers in the parts are searched: the rarest
    class is dealt out first, and then patients are moved and exchanged as long as that helps.

    Args:
        held: Patient -> classes; those without a class are dealt out evenly as well.
        folds: Number of parts.
        seed: Decides between patients with the same classes, and between equal choices.

    Returns:
        The patients of each part.
    """
    kinds = sorted(set(held.values()), key=sorted)
    names = sorted(frozenset[str]().union(*kinds))
    having = np.array([[*(name in kind for name in names), True] for kind in kinds], dtype=np.int64)
    members = {kind: sorted(p for p, own in held.items() if own == kind) for kind in kinds}
    rng = np.random.RandomState(seed)
    sizes = [len(members[kind]) for kind in kinds]
    best = _improved(_dealt(having, sizes, folds, rng), having)
    for _ in range(_TRIALS):
        if _badness(having.T @ best)[0] == 0:
            break
        best = min(
            *(best, _improved(_dealt(having, sizes, folds, rng), having)),
            key=lambda counts: _badness(having.T @ counts),
        )
    parts: list[set[str]] = [set() for _ in range(folds)]
    for kind, numbers in zip(kinds, best, strict=True):
        rng.shuffle(members[kind])
        patients = iter(members[kind])
        for part, number in zip(parts, numbers, strict=True):
            part.update(itertools.islice(patients, int(number)))
    return parts


def _dealt(having: _Having, sizes: list[int], folds: int, rng: np.random.RandomState) -> _Counts:
    """Deals out patients one by one, those with the rarest class first."""
    left = np.array(sizes)
    counts = np.zeros((len(sizes), folds), dtype=np.int64)
    while left.any():
        remaining = left @ having
        open_classes = np.flatnonzero(remaining[:-1])
        rarest = open_classes[np.argmin(remaining[open_classes])] if len(open_classes) else -1
        # Of the patients with it, those with the most classes first: they are the hardest to place.
        able = np.flatnonzero((left > 0) & (having[:, rarest] > 0))
        kind = able[np.argmax(having[able].sum(1))]
        held = having.T @ counts
        own = held[having[kind, :-1].nonzero()[0]].sum(0)
        part = min(range(folds), key=lambda i: (held[rarest, i], own[i], held[-1, i], rng.rand()))
        counts[kind, part] += 1
        left[kind] -= 1
    return counts


def _badness(held: _Held) -> tuple[int, int, int]:
    """By how much parts differ beyond one patient: in classes, in all; and their sum of squares."""
    beyond = np.maximum(np.ptp(held, axis=1) - 1, 0)
    return int(beyond[:-1].sum()), int(beyond[-1]), int((held**2).sum())


def _improved(counts: _Counts, having: _Having) -> _Counts:
    """Moves a patient, or exchanges two, as long as that makes the parts more alike."""
    kinds, folds = counts.shape
    # What leaves a part for another one: a patient of one kind, for one of another or for none.
    one, other = (grid.ravel() for grid in np.mgrid[:kinds, : kinds + 1])
    moved = having[one] - np.vstack([having, np.zeros_like(having[:1])])[other]
    while True:
        held = having.T @ counts
        best, change = _badness(held), None
        for a, b in itertools.permutations(range(folds), 2):
            able = np.vstack([counts[:, b : b + 1], [[1]]])[other, 0] * counts[one, a] > 0
            tried = np.repeat(held[None], able.sum(), axis=0)
            tried[:, :, a] -= moved[able]
            tried[:, :, b] += moved[able]
            beyond = np.maximum(np.ptp(tried, axis=2) - 1, 0)
            squares = (tried**2).sum((1, 2))
            for found in np.lexsort((squares, beyond[:, -1], beyond[:, :-1].sum(1)))[:1]:
                key = _badness(tried[found])
                if key < best:
                    best, change = key, (a, b, int(np.flatnonzero(able)[found]))
        if change is None:
            return counts
        a, b, row = change
        counts = counts.copy()
        counts[one[row], (a, b)] += (-1, 1)
        if other[row] < kinds:
            counts[other[row], (a, b)] += (1, -1)
