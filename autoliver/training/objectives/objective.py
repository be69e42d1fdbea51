"""What a training minimises, what it counts meanwhile, and the scores that follow from the counts.

An objective is asked for three things: the loss of a batch, the counts of that batch, and the
scores of counts that were added up over an epoch. The training itself counts nothing: it adds
tallies up, keeps them in resume.pt, and writes the scores into its log.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np

from autoliver.artifacts import Record
from autoliver.datasets.cases import CaseFacts
from autoliver.errors import ModelError
from autoliver.training.distributed import Group

if TYPE_CHECKING:
    from torch import Tensor


class Tally(Record, frozen=True, kw_only=True):
    """Whole numbers that are added up over batches: voxels found, voxels missed, and the like.

    Attributes:
        counts: Name -> numbers, for example one per label.
    """

    counts: dict[str, tuple[int, ...]]

    @classmethod
    def empty(cls, lengths: Mapping[str, int]) -> "Tally":
        """The tally of no batches.

        Args:
            lengths: Name -> how many numbers it has (`Objective.lengths`).
        """
        return cls(counts={name: (0,) * length for name, length in lengths.items()})

    def __add__(self, other: "Tally") -> "Tally":
        """Both together; they have the same names."""
        pairs = ((name, own, other.counts[name]) for name, own in self.counts.items())
        sums = {n: tuple(a + b for a, b in zip(x, y, strict=True)) for n, x, y in pairs}
        return Tally(counts=sums)

    def saved(self) -> dict[str, list[int]]:
        """Its form in resume.pt."""
        return {name: list(numbers) for name, numbers in self.counts.items()}

    def restored(self, saved: "Mapping[str, Sequence[int]] | Tensor", *, where: str) -> "Tally":
        """What was saved of a tally with the names and lengths of this one.

        Args:
            saved: Of `saved`; version 0.1 wrote one tensor, a row for each name.
            where: The file, for messages.

        Raises:
            ModelError: The names or lengths are others.
        """
        if isinstance(saved, Mapping):
            found = {name: tuple(numbers) for name, numbers in saved.items()}
        else:
            found = dict(zip(self.counts, map(tuple, saved.tolist()), strict=False))
        lengths, wanted = _lengths(found), _lengths(self.counts)
        if lengths != wanted:
            raise ModelError(
                f"{where}: the training counted {lengths}; its loss counts {wanted}.",
                hint="Start this fold over with: autoliver train DATASET CONFIG --fold N --fresh",
            )
        return Tally(counts=found)


class Scores(Record, frozen=True, kw_only=True):
    """What a tally comes to.

    Attributes:
        labels: Per foreground label its Dice; None where the label is absent.
        further: Name -> value of scores besides these; None where there is nothing to score.
    """

    labels: tuple[float | None, ...] = ()
    further: dict[str, float | None] = msgspec.field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The mean Dice of the labels that occur."""
        known = [dice for dice in self.labels if dice is not None]
        return float(np.mean(known)) if known else None


class Shown(Protocol):
    """The batch that a network was shown."""

    @property
    def image(self) -> "Tensor":
        """(b, c, *patch), or (views * b, c, *patch): all first views, all second, ..."""

    @property
    def target(self) -> "Tensor":
        """(b, 1, *patch) of classes, int16."""

    @property
    def cases(self) -> tuple[CaseFacts, ...]:
        """The case of each of the b patches."""


class Objective(Protocol):
    """What a training minimises and counts."""

    @property
    def lengths(self) -> Mapping[str, int]:
        """The names of its counts -> how many numbers each has."""

    @property
    def watched(self) -> str | None:
        """The further score whose rise on held-out patches is progress; None: the mean Dice."""

    def loss(self, outputs: "list[Tensor]", batch: Shown, group: Group) -> "tuple[Tensor, Tally]":
        """The loss of a batch and its counts, both over all processes.

        Args:
            outputs: Logits (views * b, rows, *shape) for `batch.image`, full resolution first; a
                single one without deep supervision. They may be in half precision.
            batch: What the network was shown.
            group: Processes that each hold a part of the batch.

        Returns:
            A scalar, float32, and the counts, which carry no gradient.
        """

    def scores(self, tally: Tally) -> Scores:
        """What counts come to."""


def tally_of(counts: "Mapping[str, Tensor]", group: Group) -> Tally:
    """The tally of a batch from the counts of each process's part.

    Args:
        counts: Name -> (n,) int64 on the training's device.
        group: The processes.
    """
    import torch

    total = group.sum_(torch.cat(list(counts.values()))).tolist()
    found, start = {}, 0
    for name, numbers in counts.items():
        found[name] = tuple(total[start : start + len(numbers)])
        start += len(numbers)
    return Tally(counts=found)


def _lengths(counts: Mapping[str, Sequence[int]]) -> dict[str, int]:
    return {name: len(numbers) for name, numbers in counts.items()}
