"""Cases of another dataset, shown to a training with the label values of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.preprocessing.case import ANNOTATED
from autoliver.preprocessing.crop import OUTSIDE
from autoliver.training.patches.sampling import Sliceable, TrainingCase


@dataclass(frozen=True, kw_only=True, slots=True)
class MappedLabel:
    """A label map whose values are mapped when they are read.

    Attributes:
        values: The label map (1, z, y, x) of the other dataset.
        table: The new value of each old one, indexed by value + 1, since `OUTSIDE` is -1.
    """

    values: Sliceable
    table: npt.NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (1, z, y, x)."""
        return self.values.shape

    def __getitem__(self, key: Any) -> npt.NDArray[np.int32]:
        """The mapped values of a box."""
        return self.table[self.values[key].astype(np.int32) + 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedCase:
    """A case with the label values of another dataset; see `TrainingCase`."""

    facts: CaseFacts
    image: Sliceable
    label: Sliceable
    spacing_mm: tuple[float, float, float]
    locations: Mapping[int, npt.NDArray[np.int32]]
    previous: None = None


def with_ignored(labels: Labels, values: Mapping[int, int | None]) -> Labels:
    """The labels of a training, with a value for voxels of replayed cases that do not count.

    Args:
        labels: The training's own labels.
        values: Value of the replayed cases -> value of the training; None: does not count.
    """
    if labels.ignore is not None or None not in values.values():
        return labels
    return labels.replace(ignore=max(labels.allowed) + 1)


def replayed_case(
    case: TrainingCase, values: Mapping[int, int | None], labels: Labels, *, name: str
) -> ReplayedCase | None:
    """A case whose label has the values of the training that replays it.

    Args:
        case: The case as its own dataset stores it; it has a label.
        values: Value of the case -> value of the training; None: does not count.
        labels: The training's labels, from `with_ignored`.
        name: The name of the case in messages.

    Returns:
        The case; None if none of its voxels counts.
    """
    table = np.full(max(values) + 2, labels.ignore or OUTSIDE, np.int32)
    table[0] = OUTSIDE
    for value, wanted in values.items():
        if wanted is not None:
            table[value + 1] = wanted
    places: dict[int, list[npt.NDArray[np.int32]]] = {}
    for value, voxels in case.locations.items():
        wanted = values.get(value)
        if wanted and len(voxels):
            places.setdefault(wanted, []).append(voxels)
    locations = {value: np.concatenate(found) for value, found in sorted(places.items())}
    if values[0] is None:
        # Elsewhere nothing is known, so that every patch is to show one of the labels.
        if not locations:
            return None
        locations[ANNOTATED] = np.concatenate(list(locations.values()))
    elif ANNOTATED in case.locations:
        locations[ANNOTATED] = case.locations[ANNOTATED]
    if case.label is None:
        raise ValueError(f"{name} has no label")
    return ReplayedCase(
        facts=case.facts.replace(name=name),
        image=case.image,
        label=MappedLabel(values=case.label, table=table),
        spacing_mm=case.spacing_mm,
        locations=locations,
    )
