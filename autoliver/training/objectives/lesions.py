"""The objective of networks with a head that tells the class of the lesion in a patch.

It is the segmentation loss of lesions of all classes as one label plus a weight times the
cross-entropy of the class (Y-Net); of a classifier alone, the cross-entropy. The class of a patch
is the one with most of its voxels; patches without a lesion have none and do not count.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autoliver.datasets.cases import CaseFacts
from autoliver.training.distributed import Group
from autoliver.training.objectives.objective import (
    Counts,
    Objective,
    Scores,
    Shown,
    Tally,
    counts_of,
)
from autoliver.training.objectives.segmentation import mean_of

ACCURACY = "lesion class accuracy"
_COUNTS = ("classes_right", "classes_told")
_NO_CLASS = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Relabelled:
    """A batch whose target has lesions of all classes as one class.

    Attributes:
        image: As in `Shown`.
        target: As in `Shown`, with other classes.
        cases: As in `Shown`.
        outside: As in `Shown`.
    """

    image: Tensor
    target: Tensor
    cases: tuple[CaseFacts, ...]
    outside: Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionObjective:
    """Segmentation and class of lesions, or the class alone.

    Attributes:
        segmentation: The objective of the segmentation heads; None for a classifier alone.
        rows: The class of the target that each class of lesions is, in the order of the classes.
        merged: Class of the target -> class of the segmentation.
        weight: Weight of the cross-entropy of the class.
    """

    segmentation: Objective | None
    rows: tuple[int, ...]
    merged: tuple[int, ...]
    weight: float

    @property
    def names(self) -> tuple[str, ...]:
        """The labels of the segmentation; empty for a classifier alone."""
        return () if self.segmentation is None else self.segmentation.names

    @property
    def lengths(self) -> Mapping[str, int]:
        """The counts of the segmentation, and how many patches have a class and were told right."""
        own = {} if self.segmentation is None else self.segmentation.lengths
        return {**own, **dict.fromkeys(_COUNTS, 1)}

    @property
    def watched(self) -> str | None:
        """The accuracy of a classifier alone; otherwise None, for the mean Dice."""
        return ACCURACY if self.segmentation is None else None

    def loss(
        self, outputs: list[Tensor], batch: Shown, group: Group
    ) -> tuple[Tensor, Tally | Counts]:
        """The loss of segmentation and class, and their counts.

        Args:
            outputs: Logits (views * b, rows, *shape) of the segmentation heads, full resolution
                first, if any; then those of the classes (views * b, classes).
            batch: The batch that the network was given.
            group: Processes that each hold a part of the batch.

        Returns:
            The loss, a float32 scalar, and the counts of the first views.
        """
        *maps, every = outputs
        classes = every[: len(batch.target)].float()
        wanted = patch_classes(batch.target, self.rows)
        total = F.cross_entropy(classes, wanted, ignore_index=_NO_CLASS, reduction="sum")
        known = wanted != _NO_CLASS
        loss = self.weight * mean_of(total, known.sum(), group)
        right = known & (classes.detach().argmax(dim=1) == wanted)
        counts = dict(zip(_COUNTS, (right.sum()[None], known.sum()[None]), strict=True))
        told = counts_of(counts, group)
        if self.segmentation is None:
            return loss, told
        own, found = self.segmentation.loss(maps, self._relabelled(batch), group)
        if isinstance(found, Tally):
            return own + loss, Tally(counts={**found.counts, **told.counts})
        return own + loss, found.beside(told)

    def scores(self, tally: Tally) -> Scores:
        """The Dice of the segmentation, and the share of patches whose class was told right."""
        (right,), (told,) = (tally.counts[name] for name in _COUNTS)
        accuracy = {ACCURACY: right / told if told else None}
        if self.segmentation is None:
            return Scores(further=accuracy)
        names = self.segmentation.lengths
        found = self.segmentation.scores(Tally(counts={n: tally.counts[n] for n in names}))
        return found.replace(further={**found.further, **accuracy})

    def _relabelled(self, batch: Shown) -> Relabelled:
        table = torch.tensor(self.merged, dtype=torch.int16, device=batch.target.device)
        return Relabelled(
            image=batch.image,
            target=table[batch.target.long()],
            cases=batch.cases,
            outside=batch.outside,
        )


def patch_classes(target: Tensor, rows: tuple[int, ...]) -> Tensor:
    """The class of lesions with most voxels in each patch; of equals, the first.

    Args:
        target: Classes (b, 1, *patch).
        rows: The class of the target that each class of lesions is.

    Returns:
        (b,), int64: an index into `rows`, or -1 for patches without a lesion.
    """
    voxels = torch.stack([(target == row).flatten(1).sum(dim=1) for row in rows], dim=1)
    return torch.where(voxels.sum(dim=1) > 0, voxels.argmax(dim=1), _NO_CLASS)
