"""Objectives: the loss that a training minimises, the counts of batches, and scores from counts.

An objective provides three things: the loss of a batch, the counts of that batch, and the scores of
counts that were summed over an epoch. The training loop itself counts nothing: it sums the tallies,
keeps them in resume.pt, and writes the scores into its log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Whole numbers that are summed over batches, such as voxels found and voxels missed.

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
        """The sum of two tallies with the same names and lengths."""
        pairs = ((name, own, other.counts[name]) for name, own in self.counts.items())
        sums = {n: tuple(a + b for a, b in zip(x, y, strict=True)) for n, x, y in pairs}
        return Tally(counts=sums)

    def saved(self) -> dict[str, list[int]]:
        """The form in which a tally is saved in resume.pt."""
        return {name: list(numbers) for name, numbers in self.counts.items()}

    def restored(self, saved: "Mapping[str, Sequence[int]] | Tensor", *, where: str) -> "Tally":
        """Restores a saved tally that has the names and lengths of this one.

        Args:
            saved: The result of `saved`; version 0.1 wrote one tensor with a row for each name.
            where: The file, for messages.

        Raises:
            ModelError: The saved tally has other names or lengths.
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


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """The counts of a batch that still lie on the device, where reading them would wait.

    Attributes:
        total: The numbers of all names in their order, (n,), int64.
        lengths: Name -> how many of these numbers are its own.
    """

    total: "Tensor"
    lengths: Mapping[str, int]

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """Name -> numbers, as in `Tally`; waits for the device."""
        return self.read(self.total.tolist()).counts

    def __eq__(self, other: object) -> bool:
        """Whether other counts have the same names and numbers."""
        return isinstance(other, Counts | Tally) and self.counts == other.counts

    __hash__ = None  # type: ignore[assignment]

    def read(self, numbers: Sequence[int]) -> Tally:
        """The tally of the numbers in `total`, which were read before."""
        found, start = {}, 0
        for name, length in self.lengths.items():
            found[name] = tuple(numbers[start : start + length])
            start += length
        return Tally(counts=found)

    def beside(self, other: "Counts") -> "Counts":
        """These counts followed by others of other names."""
        import torch

        lengths = {**self.lengths, **other.lengths}
        return Counts(torch.cat([self.total, other.total]), lengths)


class Scores(Record, frozen=True, kw_only=True):
    """The scores computed from a tally.

    Attributes:
        labels: Dice of each foreground label; None for a label that is absent. Empty for an
            objective that has no Dice.
        further: Name -> value of the other scores; None where there is nothing to score.
    """

    labels: tuple[float | None, ...] = ()
    further: dict[str, float | None] = msgspec.field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The mean Dice of the labels that occur; None if there are none."""
        known = [dice for dice in self.labels if dice is not None]
        return float(np.mean(known)) if known else None


class Shown(Protocol):
    """A batch that was given to a network."""

    @property
    def image(self) -> "Tensor":
        """Image (b, c, *patch), or (views * b, c, *patch): all first views, all second, ..."""

    @property
    def target(self) -> "Tensor":
        """Classes (b, 1, *patch), int16."""

    @property
    def cases(self) -> tuple[CaseFacts, ...]:
        """The case of each of the b patches."""

    @property
    def outside(self) -> "Tensor | None":
        """Where labels that are unknown in a case are known to be absent: (b, 1, *patch), bool.

        None: nowhere.
        """


class Objective(Protocol):
    """What a training minimises and counts."""

    @property
    def names(self) -> tuple[str, ...]:
        """The labels that `Scores.labels` are the Dice of."""

    @property
    def lengths(self) -> Mapping[str, int]:
        """Name of each count -> how many numbers it has."""

    @property
    def watched(self) -> str | None:
        """Name of the score whose rise on held-out patches is progress; None: the mean Dice.

        The name is a key of `Scores.further`.
        """

    def loss(
        self, outputs: "list[Tensor]", batch: Shown, group: Group
    ) -> "tuple[Tensor, Tally | Counts]":
        """The loss of a batch and its counts, both over all processes.

        Args:
            outputs: Logits (views * b, rows, *shape) for `batch.image`, full resolution first; a
                single tensor without deep supervision. They may be in half precision.
            batch: The batch that the network was given.
            group: Processes that each hold a part of the batch.

        Returns:
            The loss, a float32 scalar, and the counts, which carry no gradient. As long as they
            are tensors (`counts_of`), no step waits for them.
        """

    def scores(self, tally: Tally) -> Scores:
        """Computes the scores from counts."""


def counts_of(counts: "Mapping[str, Tensor]", group: Group) -> Counts:
    """The counts of a whole batch: summed over the processes, and not read yet.

    Args:
        counts: Name -> counts (n,) of this process's part, int64, on the training's device.
        group: Processes that each hold a part of the batch.
    """
    import torch

    lengths = {name: len(numbers) for name, numbers in counts.items()}
    return Counts(group.sum_(torch.cat(list(counts.values()))), lengths)


def _lengths(counts: Mapping[str, Sequence[int]]) -> dict[str, int]:
    return {name: len(numbers) for name, numbers in counts.items()}
