"""Presets of the planner: which network, and how much memory it is fitted to."""

from dataclasses import dataclass

from autoliver.networks.spec import NetworkKind
from autoliver.planning.plan import Preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A preset.

    Attributes:
        kind: The network.
        vram_gb: The memory it is meant for.
        reference: Dimension -> feature map values of one patch that fill this memory with the
            reference batch.
    """

    kind: NetworkKind
    vram_gb: float
    reference: dict[int, int]


RECIPES: dict[Preset, Recipe] = {
    "default": Recipe(kind="unet", vram_gb=8, reference={2: 85_000_000, 3: 560_000_000}),
    "M": Recipe(kind="resenc", vram_gb=8, reference={2: 135_000_000, 3: 680_000_000}),
    "L": Recipe(kind="resenc", vram_gb=24, reference={2: 380_000_000, 3: 2_100_000_000}),
    "XL": Recipe(kind="resenc", vram_gb=40, reference={2: 560_000_000, 3: 3_600_000_000}),
    # Fitted as default, so that their patches agree; the planner then shrinks features and batch.
    "tiny": Recipe(kind="unet", vram_gb=8, reference={2: 85_000_000, 3: 560_000_000}),
}
