"""Trainings of a small network on cases in memory, for tests of what can be added to a training."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration
from autoliver.training.fold import FoldTask
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import EpochLog

LABELS = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})
PATCH = (16, 16)


@dataclass
class ArrayCase:
    """A preprocessed case in memory."""

    facts: CaseFacts
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    previous: None = None
    values: tuple[int, ...] = (1, 2)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def locations(self) -> dict[int, npt.NDArray[np.int32]]:
        return {v: np.argwhere(self.label[0] == v).astype(np.int32) for v in self.values}


def make_case(number: int) -> ArrayCase:
    """Blobs that are brighter the higher their label."""
    rng = np.random.default_rng(number)
    field = gaussian_filter(rng.normal(size=(6, 20, 24)), 2.0)
    label = np.digitize(field, np.quantile(field, [0.6, 0.85])).astype(np.int16)
    image = (label - 0.5 + rng.normal(size=label.shape) * 0.3).astype(np.float32)
    return ArrayCase(CaseFacts.named(f"case_{number}"), image[None], label[None])


def make_task(folder: Path, *, held_out: int = 1, **options: object) -> FoldTask:
    """A training in 2D on four cases."""
    network = UNetSpec(
        in_channels=1,
        out_channels=LABELS.out_channels,
        features=(4, 8),
        strides=((1, 1), (2, 2)),
        kernels=((3, 3), (3, 3)),
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
    )
    return FoldTask(
        configuration=Configuration(
            spacing_mm=(1.0, 1.0),
            median_shape=(20.0, 24.0),
            patch_shape=PATCH,
            batch_size=2,
            batch_dice=False,
            normalization=("zscore",),
            mask_norm=(True,),
            network=network,
        ),
        labels=LABELS,
        train=[make_case(number) for number in range(4)],
        validation=[make_case(9 + number) for number in range(held_out)],
        options=TrainingOptions(**options),  # type: ignore[arg-type]
        folder=folder,
        device=torch.device("cpu"),
        title="Toy 2d fold 0",
    )


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks to stop after so many steps; the loop asks once a step."""
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def timeless(logs: tuple[EpochLog, ...]) -> list[EpochLog]:
    return [log.replace(seconds=0.0, data_wait=0.0) for log in logs]
