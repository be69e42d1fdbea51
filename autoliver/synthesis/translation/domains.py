"""The two sides of a translation: preprocessed cases of one modality, and how their values lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autoliver.datasets.cases import Labels
from autoliver.errors import DatasetError
from autoliver.preprocessing.store import StoredCase
from autoliver.synthesis.translation.body import Slices
from autoliver.synthesis.translation.options import BEYOND, Range
from autoliver.training.objectives.target import needed_table
from autoliver.training.patches.region import PatchBox
from autoliver.training.patches.sampling import (
    PatchSampler,
    PatchStream,
)

# Values beyond these percentiles are cut off, so that a few bright voxels do not darken the rest.
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One side of a translation.

    Attributes:
        cases: Its preprocessed cases.
        labels: Its labels.
        range: How its values lie.
        shown: Name of a case without labels -> its slices that are learnt from.
    """

    cases: tuple[StoredCase, ...]
    labels: Labels
    range: Range
    shown: Mapping[str, Slices] = field(default_factory=dict)

    def slices(self, case: StoredCase) -> Slices:
        """The slices of a case that are learnt from: the first one, and the one behind the last."""
        ends = self.shown.get(case.facts.name) or labelled_slices(case, self.labels)
        return ends or (0, case.image.shape[1])

    def stream(
        self, patch: tuple[int, ...], *, batch_size: int, seed: tuple[int, ...]
    ) -> PatchStream:
        """Numbered batches of patches from the slices that show a label, and some around them.

        Slices far from these would teach a translation to draw or to erase organs, where only one
        of the domains has such slices.

        Args:
            patch: Size of the patches.
            batch_size: Patches per batch.
            seed: Seed of the stream.
        """
        sampler = PatchSampler(
            cases=self.cases,
            patch_shape=patch,
            margin=(0,) * len(patch),
            batch_size=batch_size,
            foreground=0.0,
            classes=needed_table(self.labels),
            boxes=[_box(case, self.slices(case)) for case in self.cases],
        )
        return PatchStream(sampler=sampler, seed=seed)


def range_of(cases: Sequence[StoredCase], *, where: str) -> Range:
    """Measures how the values of a domain lie: the mean of the cases' percentiles.

    Args:
        cases: The preprocessed cases, each with one channel.
        where: Name of the dataset, for messages.

    Raises:
        DatasetError: All images are constant.
    """
    found = np.mean([np.percentile(case.image[:, :, :, :], _PERCENTILES) for case in cases], axis=0)
    low, high = (float(value) for value in found)
    if not low < high:
        raise DatasetError(
            f"{where}: its images are constant, so that there is nothing to translate.",
            hint=f"Check them with: autoliver verify {where}",
        )
    return Range(low=low, high=high)


def labelled_slices(case: StoredCase, labels: Labels, *, beyond: float = BEYOND) -> Slices | None:
    """The slices that show a label of a case, and some around them; None without any.

    Args:
        case: The case.
        labels: Its labels.
        beyond: How many slices on either side count as well, as a share of those with a label.
    """
    values = {value for group in labels.foreground.values() for value in group}
    places = [case.locations[v] for v in values if len(case.locations.get(v, ()))]
    if not places:
        return None
    z = np.concatenate(places)[:, 0]
    more = round(beyond * (int(z.max()) + 1 - int(z.min())))
    return max(0, int(z.min()) - more), min(case.image.shape[1], int(z.max()) + 1 + more)


def _box(case: StoredCase, ends: Slices) -> PatchBox:
    _, height, width = case.image.shape[1:]
    return PatchBox(bounds=(ends, (0, height), (0, width)), jitter=(0.0, 0.0, 0.0))
