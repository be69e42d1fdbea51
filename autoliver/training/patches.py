"""Batches as the network takes them: drawn, mapped to classes, on the device, augmented."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from autoliver.dataset import Labels
from autoliver.planning.plan import Configuration
from autoliver.training.augment import (
    AugmentSpec,
    augment_batch,
    default_augment_spec,
    initial_patch_shape,
)
from autoliver.training.options import Augmentation
from autoliver.training.sampling import Batch, PatchSampler, TrainingCase
from autoliver.training.target import class_table


def augmentation(
    configuration: Configuration, kind: Augmentation, *, mirror: bool
) -> AugmentSpec | None:
    """What may happen to training patches; None: nothing."""
    if kind == "none":
        return None
    return default_augment_spec(
        configuration.patch_shape,
        mirror=mirror,
        masked_channels=tuple(i for i, used in enumerate(configuration.mask_norm) if used),
    )


class Patches:
    """Where the batches of a set of cases come from."""

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        configuration: Configuration,
        labels: Labels,
        *,
        spec: AugmentSpec | None = None,
        foreground: float,
    ) -> None:
        """Draws from cases.

        Args:
            cases: What to draw from.
            configuration: Patch shape and batch size.
            labels: Values of the labels.
            spec: Augmentations; None: none.
            foreground: Share of a batch that must show foreground.
        """
        patch = configuration.patch_shape
        drawn = patch if spec is None else initial_patch_shape(patch, spec)
        self.patch_shape = patch
        self.spec = spec
        self.classes = class_table(labels)
        self.sampler = PatchSampler(
            cases=cases,
            patch_shape=drawn,
            margin=tuple(d - p for d, p in zip(drawn, patch, strict=True)),
            batch_size=configuration.batch_size,
            foreground=foreground,
        )

    def draw(self, rng: np.random.Generator) -> Batch:
        """One batch of label values, in memory."""
        return self.sampler.draw(rng)

    def on_device(
        self, batch: Batch, device: torch.device, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """A drawn batch as the network takes it.

        Args:
            batch: From `draw`.
            device: Where to augment it.
            generator: Of the augmentations, on the CPU.

        Returns:
            Image (b, c, *patch) float32 and target (b, 1, *patch) of classes, int16.
        """
        image = torch.from_numpy(batch.image).to(device, non_blocking=True)
        target = torch.from_numpy(self.classes[batch.label + 1]).to(device)
        if self.spec is None:
            return image, target.clamp_min(0)
        return augment_batch(
            image, target, patch_shape=self.patch_shape, spec=self.spec, generator=generator
        )
