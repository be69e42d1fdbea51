"""Which samples of a batch change their appearance, and how; shapes and labels stay.

Each sample takes at most one change of `APPEARANCES`, drawn with a seed from a CPU generator; the
parameters come from that seed, so that a sample changes alike on every device and in every part of
a batch (white noise is drawn on the device). Afterwards each channel has the mean and standard
deviation that it had before, or is normalised as an image of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from autoliver.training.augment.appearance import APPEARANCES, ChosenSamples
from autoliver.training.augment.choice import AppearanceStep
from autoliver.training.augment.moments import normalise_inside, restore_moments

# Share of the changed patches that are normalised as an image of their own.
_NORMALISED_AFRESH = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to a sample.

    Attributes:
        sample: Index in the batch.
        name: Of the change.
        seed: Of its parameters.
        afresh: Whether the result is normalised as an image of its own.
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
        image: (b, c, *spatial), float32; of changes that give several views (views * b, c,
            *spatial), the first views of all samples before the second ones.
        label: (b, *spatial), classes; 0 is background, negative is outside of the image.
        changes: What to do.
    """
    for name in dict.fromkeys(change.name for change in changes):
        own = [change for change in changes if change.name == name]
        samples = [change.sample for change in own]
        generators = tuple(Generator().manual_seed(change.seed) for change in own)
        # One by one: gathering and scattering at once take five times as long on a CPU.
        images = torch.stack([image[sample] for sample in samples])
        chosen = ChosenSamples(images, label[samples], generators)
        changed = APPEARANCES[name].apply(chosen)
        for view, version in enumerate(torch.split(changed, len(own))):
            restore_moments(version, chosen.images)
            for change, result in zip(own, version, strict=True):
                if change.afresh:
                    normalise_inside(result, label[change.sample] >= 0)
                image[change.sample + view * len(label)] = result
