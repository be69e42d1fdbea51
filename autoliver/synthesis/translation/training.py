"""Learns to translate: two generators, two discriminators, and a network that finds the labels.

The losses are those of EssNet (Huo et al., SynSeg-Net, TMI 2019), or of CycleGAN (Zhu et al., ICCV
2017) without the segmentation network. Every step draws its patches and its pool from generators
that are seeded with its number, so that a resumed training goes on as if it had not stopped.
"""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoliver.artifacts import Record, write_bytes
from autoliver.errors import AutoliverError
from autoliver.networks.build import CONVOLUTIONS, build_network
from autoliver.networks.checkpoint import load_training_state, save_training_state
from autoliver.networks.translator import PatchDiscriminator
from autoliver.networks.translator_spec import TranslatorSpec
from autoliver.planning.plan import Configuration
from autoliver.synthesis.translation.domains import Domain
from autoliver.synthesis.translation.options import TranslationOptions
from autoliver.training.distributed import ALONE
from autoliver.training.objectives.choice import make_objective
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.cache import CacheKind
from autoliver.training.patches.stream import Patches, TrainingBatch

_STD = 0.02  # of initial weights
_BETAS = (0.5, 0.999)
_GENERATORS = ("there", "back", "segmentor")


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
    """

    title: str
    source: Domain
    target: Domain
    configuration: Configuration
    options: TranslationOptions
    device: torch.device
    cache: CacheKind
    folder: Path

    @property
    def resume(self) -> Path:
        """The state of the last finished epoch."""
        return self.folder / "resume.pt"

    @property
    def progress(self) -> Path:
        """One line of JSON per finished epoch."""
        return self.folder / "progress.jsonl"


def generator_spec(options: TranslationOptions) -> TranslatorSpec:
    """The network that translates images with one channel, in 2D."""
    return TranslatorSpec(
        in_channels=1,
        out_channels=1,
        features=options.features,
        blocks=options.blocks,
        strides=((2, 2), (2, 2)),
        outputs=(-1.0, 1.0),
    )


def segmentor_spec(options: TranslationOptions, classes: int) -> TranslatorSpec:
    """The network that finds labels in images: as a generator, with linear outputs."""
    return generator_spec(options).replace(out_channels=classes, outputs=None)


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
                self.images.append(image)
            elif self.size and rng.random() < 0.5:
                index = int(rng.integers(self.size))
                shown.append(self.images[index])
                self.images[index] = image
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
        options = task.options
        spec = generator_spec(options)
        generator = torch.Generator().manual_seed(options.seed)
        networks: dict[str, nn.Module] = {
            name: build_network(spec, deep_supervision=False) for name in ("there", "back")
        }
        if options.segments:
            network = build_network(task.configuration.network, deep_supervision=True)
            networks["segmentor"] = network
        for name in ("judge of source", "judge of target"):
            networks[name] = PatchDiscriminator(1, features=options.features, strides=((2, 2),) * 3)
        for network in networks.values():
            _initialise(network, generator)
        self.networks = nn.ModuleDict(networks).to(task.device)
        self.optimizers = {
            name: torch.optim.Adam(parameters, lr=options.lr, betas=_BETAS)
            for name, parameters in (
                ("generators", self._weights(_GENERATORS)),
                ("judges", self._weights(("judge of source", "judge of target"))),
            )
        }
        self.sides = [
            Patches(
                domain.stream(
                    task.configuration.drawn_shape,
                    batch_size=options.batch_size,
                    seed=(options.seed, index),
                ),
                task.cache,
                task.device,
            )
            for index, domain in enumerate((task.source, task.target))
        ]
        self.pools = {name: Pool(options.pool) for name in ("source", "target")}
        self.step = 0
        self.logs: list[TranslationLog] = []
        if task.resume.exists():
            self._restore(load_training_state(task.resume))

    @torch.no_grad()
    def samples(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The first patches of the source, and their translations: (b, *patch) from -1 to 1."""
        with closing(self.batches(range(1))) as pairs:
            source, _ = next(pairs)
        ours = self.task.source.range.squeezed(source.image)
        images = (ours, self.networks["there"](ours))
        before, after = (image[:, 0].float().cpu().numpy() for image in images)
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
            "pools": {n: pool.images for n, pool in self.pools.items()},
            "step": self.step,
            "logs": [msgspec.to_builtins(log) for log in self.logs],
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self.networks.load_state_dict(saved["networks"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        device = self.task.device
        for name, pool in self.pools.items():
            pool.images = [image.to(device) for image in saved["pools"][name]]
        self.step = saved["step"]
        self.logs = [msgspec.convert(log, TranslationLog) for log in saved["logs"]]


class _Learner:
    """Takes the steps of a translation."""

    def __init__(self, state: Translation) -> None:
        self.state = state
        self.task = state.task
        labels = self.task.source.labels
        options = TrainingOptions()
        self.objective = make_objective(labels, self.task.configuration, options)

    def take(self, source: TrainingBatch, target: TrainingBatch) -> dict[str, Tensor]:
        """Takes one step; returns the losses without their weights."""
        state, options = self.state, self.task.options
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = options.rate(state.step)
        ours = self.task.source.range.squeezed(source.image)
        theirs = self.task.target.range.squeezed(target.image)
        translated, losses = self._generators(ours, theirs, source)
        losses |= self._judges(ours, theirs, translated)
        state.step += 1
        return losses

    def _generators(
        self, ours: Tensor, theirs: Tensor, source: TrainingBatch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        networks, options = self.state.networks, self.task.options
        there, back = networks["there"], networks["back"]
        for name in ("judge of source", "judge of target"):
            networks[name].requires_grad_(False)
        translated = {"target": there(ours), "source": back(theirs)}
        losses = {
            "adversarial": _real(networks["judge of target"](translated["target"]))
            + _real(networks["judge of source"](translated["source"])),
            "cycle": functional.l1_loss(back(translated["target"]), ours)
            + functional.l1_loss(there(translated["source"]), theirs),
        }
        if options.identity:
            losses["identity"] = functional.l1_loss(there(theirs), theirs)
            losses["identity"] = losses["identity"] + functional.l1_loss(back(ours), ours)
        if options.segments:
            seen = self.task.target.range.normalised(translated["target"])
            losses["segmentation"], _ = self.objective.loss(
                networks["segmentor"](seen), source, ALONE
            )
        weights = {"adversarial": 1.0, "cycle": options.cycle, "identity": options.identity}
        weights["segmentation"] = options.segmentation
        optimizer = self.state.optimizers["generators"]
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return translated, {name: loss.detach() for name, loss in losses.items()}

    def _judges(
        self, ours: Tensor, theirs: Tensor, translated: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = self.state
        rng = np.random.default_rng([self.task.options.seed, 2, state.step])
        optimizer = state.optimizers["judges"]
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for name, real in (("target", theirs), ("source", ours)):
            judge = state.networks[f"judge of {name}"]
            judge.requires_grad_(True)
            shown = state.pools[name].exchange(translated[name], rng)
            loss = (_real(judge(real)) + judge(shown).square().mean()) / 2
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        return {"discrimination": torch.stack(losses).sum()}


def learn_translation(
    task: TranslationTask,
    *,
    stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[Translation], None] = lambda _: None,
) -> Translation:
    """Learns a translation; goes on after the last finished epoch.

    The state is saved after every epoch.

    Args:
        task: The translation.
        stop: Called after every step; once it returns True the training ends, and the next one
            begins with the epoch that was left.
        on_epoch: Called after every epoch.

    Raises:
        AutoliverError: Losses or weights are not finite; the last good state is kept.
        ModelError: The saved state is damaged.
    """
    state = Translation(task)
    learner = _Learner(state)
    options = task.options
    while state.step < options.steps:
        start, sums = time.monotonic(), []
        last = (state.step // options.iterations + 1) * options.iterations
        with closing(state.batches(range(state.step, last))) as pairs:
            for source, target in pairs:
                sums.append(learner.take(source, target))
                if state.step < last and stop():
                    return state
        means = {name: float(torch.stack([s[name] for s in sums]).mean()) for name in sums[0]}
        _check_finite(task, state, means)
        state.logs.append(
            TranslationLog(
                epoch=len(state.logs),
                learning_rate=options.rate(state.step - 1),
                losses=means,
                seconds=time.monotonic() - start,
            )
        )
        _save(task, state)
        on_epoch(state)
    return state


def _check_finite(task: TranslationTask, state: Translation, means: dict[str, float]) -> None:
    finite = np.isfinite(list(means.values())).all()
    if finite and all(bool(w.isfinite().all()) for w in state.networks.parameters()):
        return
    kept = f" The state of epoch {len(state.logs)} is kept." if state.logs else ""
    losses = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
    raise AutoliverError(
        f"{task.title}: epoch {len(state.logs) + 1}: the translation diverged ({losses}).{kept}",
        hint="Start over with a smaller learning rate, such as --lr "
        f"{task.options.lr / 4:.2g}, and --fresh.",
    )


def _save(task: TranslationTask, state: Translation) -> None:
    lines = b"".join(msgspec.json.encode(log) + b"\n" for log in state.logs)
    write_bytes(task.progress, lines)
    save_training_state(task.resume, state.snapshot())


def _real(judged: Tensor) -> Tensor:
    """The loss of least squares of patches that should seem real (Mao et al., ICCV 2017)."""
    return (judged - 1.0).square().mean()


@torch.no_grad()
def _initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draws the weights of convolutions from a narrow normal distribution, as CycleGAN does."""
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            nn.init.normal_(module.weight, std=_STD, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
