"""Changes the appearance of samples of a batch; shapes and labels are not changed.

At most one change of `APPEARANCES` is applied to a sample. It is drawn from a CPU generator
together with a seed for its parameters, so that a sample changes in the same way on every device
and in every part of a batch (only white noise is drawn on the device). Afterwards each channel gets
the mean and standard deviation that it had before, or is normalised by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from autoliver.training.augment.appearance import APPEARANCES, ChosenSamples
from autoliver.training.augment.choice import AppearanceStep
from autoliver.training.augment.moments import normalise_inside, restore_moments

# Share of the changed patches that are normalised by themselves.
_NORMALISED_AFRESH = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """The change of appearance of one sample.

    Attributes:
        sample: Index of the sample in the batch.
        name: Name of the change in `APPEARANCES`.
        seed: Seed of its parameters.
        afresh: Whether the result is normalised by itself; False: it gets the mean and standard
            deviation that the image had before.
    """

    sample: int
    name: str
    seed: int
    afresh: bool = False


def sample_appearance(
    steps: Sequence[AppearanceStep], batch: int, generator: Generator
) -> tuple[Change, ...]:
    """Draws at most one change per sample; without steps nothing is drawn from the generator."""
    if not steps:
        return ()
    positions = torch.rand(batch, generator=generator, dtype=torch.float64).tolist()
    seeds = torch.randint(2**62, (batch,), generator=generator).tolist()
    afresh = (torch.rand(batch, generator=generator) < _NORMALISED_AFRESH).tolist()
    limits = np.cumsum([step.probability for step in steps])
    changes = []
    for sample, (position, seed, new) in enumerate(zip(positions, seeds, afresh, strict=True)):
        which = int(np.searchsorted(limits, position, side="right"))
        if which < len(steps):
            changes.append(Change(sample, steps[which].name, seed, new))
    return tuple(changes)


def apply_appearance(image: Tensor, label: Tensor, changes: Sequence[Change]) -> None:
    """Changes samples in place.

    Args:
        image: (b, c, *spatial), float32; for changes that make several views (views * b, c,
            *spatial): all first views, all second, ...
        label: (b, *spatial), classes; 0 is background, negative is outside the image.
        changes: The changes.
    """
    for name in dict.fromkeys(change.name for change in changes):
        own = [change for change in changes if change.name == name]
        samples = [change.sample for change in own]
        generators = tuple(Generator().manual_seed(change.seed) for change in own)
        # Sample by sample: indexing all samples at once takes five times as long on a CPU.
        images = torch.stack([image[sample] for sample in samples])
        chosen = ChosenSamples(images, label[samples], generators)
        changed = APPEARANCES[name].apply(chosen)
        for view, version in enumerate(torch.split(changed, len(own))):
            restore_moments(version, chosen.images)
            for change, result in zip(own, version, strict=True):
                if change.afresh:
                    normalise_inside(result, label[change.sample] >= 0)
                image[change.sample + view * len(label)] = result
