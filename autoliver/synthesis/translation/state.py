"""The state of a translation that is being learnt: its networks, optimisers and epochs so far."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from autoliver.artifacts import Record
from autoliver.networks.checkpoint import check_fit, load_training_state
from autoliver.planning.plan import Configuration
from autoliver.synthesis.translation.domains import Domain
from autoliver.synthesis.translation.networks import GENERATORS, JUDGES, THERE, make_networks
from autoliver.synthesis.translation.options import TranslationOptions
from autoliver.training.patches.cache import CacheKind
from autoliver.training.patches.stream import Patches, TrainingBatch

_BETAS = (0.5, 0.999)


class TranslationLog(Record, frozen=True, kw_only=True):
    """One finished epoch of a translation.

    Attributes:
        epoch: Number of the epoch, from 0.
        learning_rate: Learning rate of its last step.
        losses: Name of a loss -> its mean over the steps, without its weight.
        seconds: Duration.
    """

    epoch: int
    learning_rate: float
    losses: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TranslationTask:
    """A translation to learn.

    Attributes:
        title: The name of the task, for messages.
        source: The domain with labels.
        target: The domain that images are translated into.
        configuration: The patches and the network of the segmentor.
        options: How it is learnt.
        device: The device.
        cache: Where the cases are kept.
        folder: The folder of its files.
        half: The type of numbers in which networks compute where that is safe; None: float32.
            Weights and losses are float32 anyway.
        again: The command that starts over, for messages.
    """

    title: str
    source: Domain
    target: Domain
    configuration: Configuration
    options: TranslationOptions
    device: torch.device
    cache: CacheKind
    folder: Path
    half: torch.dtype | None = None
    again: str = "autoliver synthesize fit --from SOURCE --to TARGET -o NAME --fresh"

    @property
    def resume(self) -> Path:
        """The state of the last finished epoch."""
        return self.folder / "resume.pt"

    @property
    def progress(self) -> Path:
        """One line of JSON per finished epoch."""
        return self.folder / "progress.jsonl"


@dataclass
class Pool:
    """Translated images that are shown to a discriminator again (Shrivastava et al., CVPR 2017).

    Attributes:
        size: Number of images; 0: only new ones are shown.
        images: The images so far, each (c, *patch).
    """

    size: int
    images: list[Tensor] = field(default_factory=list)

    def exchange(self, batch: Tensor, rng: np.random.Generator) -> Tensor:
        """Returns a batch in which about half of the images are earlier ones; keeps new ones."""
        shown = []
        for image in batch.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())  # not a part of the whole batch
            elif self.size and rng.random() < 0.5:
                index = int(rng.integers(self.size))
                shown.append(self.images[index])
                self.images[index] = image.clone()
                continue
            shown.append(image)
        return torch.stack(shown)


class Translation:
    """The networks of a translation, their optimisers and pools, and the epochs so far."""

    def __init__(self, task: TranslationTask) -> None:
        """Makes the state before the first step, or that of the last finished epoch.

        Raises:
            ModelError: The saved state is damaged or belongs to other networks.
        """
        self.task = task
        options, configuration = task.options, task.configuration
        networks = make_networks(options, configuration.spacing_mm, configuration.network)
        self.networks = networks.to(task.device)
        self.optimizers = {
            name: torch.optim.Adam(parameters, lr=options.lr, betas=_BETAS)
            for name, parameters in (
                ("generators", self._weights(GENERATORS)),
                ("judges", self._weights(tuple(JUDGES.values()))),
            )
        }
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=task.half == torch.float16)
        self.sides = [
            Patches(
                domain.stream(
                    configuration.drawn_shape,
                    batch_size=options.batch_size,
                    seed=(options.seed, index),
                ),
                task.cache,
                task.device,
            )
            for index, domain in enumerate((task.source, task.target))
        ]
        judged = [side for side, name in JUDGES.items() if name in self.networks]
        self.pools = {side: Pool(options.pool or 0) for side in judged}
        self.step = 0
        self.logs: list[TranslationLog] = []
        if task.resume.exists():
            hint = f"Start over with: {task.again}"
            self._restore(load_training_state(task.resume, hint=hint))

    @torch.no_grad()
    def samples(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The first patches of the source, and their translations: (b, y, x) from -1 to 1.

        Of patches in 3D it is the slice in the middle.
        """
        with closing(self.batches(range(1))) as pairs:
            source, _ = next(pairs)
        ours = self.task.source.range.squeezed(source.image)
        images = (ours, self.networks[THERE](ours))
        slices = (each[:, :, each.shape[2] // 2] if each.ndim == 5 else each for each in images)
        before, after = (image[:, 0].float().cpu().numpy() for image in slices)
        return before, after

    def batches(self, numbers: range) -> Generator[tuple[TrainingBatch, TrainingBatch], None, None]:
        """Yields batches of both domains, which are drawn independently of each other."""
        patch = self.task.configuration.drawn_shape
        ours, theirs = (s.batches(numbers, patch_shape=patch, spec=None) for s in self.sides)
        with closing(ours), closing(theirs):
            yield from zip(ours, theirs, strict=True)

    def _weights(self, names: tuple[str, ...]) -> list[nn.Parameter]:
        return [p for n in names if n in self.networks for p in self.networks[n].parameters()]

    def snapshot(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            "networks": self.networks.state_dict(),
            "optimizers": {n: each.state_dict() for n, each in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "pools": {n: pool.images for n, pool in self.pools.items()},
            "step": self.step,
            "logs": [msgspec.to_builtins(log) for log in self.logs],
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        check_fit(saved["networks"], self.networks, where=str(self.task.resume))
        self.networks.load_state_dict(saved["networks"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        if saved.get("scaler"):  # empty without loss scaling
            self.scaler.load_state_dict(saved["scaler"])
        device = self.task.device
        for name, pool in self.pools.items():
            pool.images = [image.to(device) for image in saved["pools"][name]]
        self.step = saved["step"]
        self.logs = [msgspec.convert(log, TranslationLog) for log in saved["logs"]]
