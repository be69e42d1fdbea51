"""One step of a translation: the losses of generators, then those of discriminators.

EssNet (Huo et al., SynSeg-Net, TMI 2019) is CycleGAN (Zhu et al., ICCV 2017) with a network that
must find the labels. CUT (Park et al., ECCV 2020) has no way back: a place of a translated image
must resemble the same place of its source more than it resembles other places of it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autoliver.networks.translator import Translator
from autoliver.synthesis.translation.networks import BACK, HEADS, JUDGES, SEGMENTOR, THERE
from autoliver.synthesis.translation.state import Translation
from autoliver.training.distributed import ALONE
from autoliver.training.objectives.choice import make_objective
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.stream import TrainingBatch

# Of contrastive translation: places that are compared in an image, and the temperature.
_PLACES, _TEMPERATURE = 256, 0.07
# What random numbers of a step are for, besides patches of the two sides (0 and 1).
_SHOWN_AGAIN, _COMPARED = 2, 3

_Named = dict[str, Tensor]


class Learner:
    """Takes the steps of a translation."""

    def __init__(self, state: Translation) -> None:
        """Prepares to go on from a state, which every step changes."""
        self.state = state
        self.task = state.task
        labels = self.task.source.labels
        self.objective = make_objective(labels, self.task.configuration, TrainingOptions())

    def take(self, source: TrainingBatch, target: TrainingBatch) -> _Named:
        """Takes one step; returns the losses without their weights."""
        state, options = self.state, self.task.options
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = options.rate(state.step)
        ours = self.task.source.range.squeezed(source.image)
        theirs = self.task.target.range.squeezed(target.image)
        translated, losses = self._generators(ours, theirs, source)
        losses |= self._judges({"source": ours, "target": theirs}, translated)
        state.scaler.update()
        state.step += 1
        return losses

    def _generators(
        self, ours: Tensor, theirs: Tensor, source: TrainingBatch
    ) -> tuple[_Named, _Named]:
        state, options = self.state, self.task.options
        for name in JUDGES.values():
            if name in state.networks:
                state.networks[name].requires_grad_(False)
        translated = {"target": self._image_by(THERE)(ours)}
        if BACK in state.networks:
            translated["source"] = self._image_by(BACK)(theirs)
        real = [self._seems_real(side, image) for side, image in translated.items()]
        losses = {"adversarial": torch.stack(real).sum()}
        kept = self._contrasts if options.model == "cut" else self._cycles
        losses |= kept(ours, theirs, translated)
        if options.segments:
            seen = self.task.target.range.normalised(translated["target"])
            with self._autocast():
                found = state.networks[SEGMENTOR](seen)
            losses["segmentation"], _ = self.objective.loss(found, source, ALONE)
        weights = {"adversarial": 1.0, "cycle": options.cycle, "contrast": options.contrast}
        weights |= {"identity": options.identity or 0.0}
        weights |= {"segmentation": options.segmentation or 0.0}
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        optimizer = state.optimizers["generators"]
        optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        state.scaler.step(optimizer)
        return translated, {name: loss.detach() for name, loss in losses.items()}

    def _cycles(self, ours: Tensor, theirs: Tensor, translated: _Named) -> _Named:
        """The losses of the way there and back, and of images of the own kind."""
        there, back = self._image_by(THERE), self._image_by(BACK)
        losses = {
            "cycle": functional.l1_loss(back(translated["target"]), ours)
            + functional.l1_loss(there(translated["source"]), theirs)
        }
        if self.task.options.identity:
            losses["identity"] = functional.l1_loss(there(theirs), theirs)
            losses["identity"] = losses["identity"] + functional.l1_loss(back(ours), ours)
        return losses

    def _contrasts(self, ours: Tensor, theirs: Tensor, translated: _Named) -> _Named:
        """The losses of places that must resemble those of their source."""
        rng = np.random.default_rng([self.task.options.seed, _COMPARED, self.state.step])
        losses = {"contrast": self._contrast(ours, translated["target"], rng)}
        if self.task.options.identity:
            made = self._image_by(THERE)(theirs)
            losses["identity"] = self._contrast(theirs, made, rng)
        return losses

    def _contrast(self, image: Tensor, made: Tensor, rng: np.random.Generator) -> Tensor:
        generator, heads = self.state.networks[THERE], self.state.networks[HEADS]
        if not isinstance(generator, Translator):
            raise TypeError(f"{type(generator).__name__} has no features to compare")
        # Each in its own: older versions keep weights that were cast without a gradient.
        with torch.no_grad(), self._autocast():
            before = generator.features(image)
        with self._autocast():
            after = generator.features(made)
        places = [_places(layer, rng) for layer in before]
        with torch.no_grad():
            keys = heads([_at(layer, p) for layer, p in zip(before, places, strict=True)])
        queries = heads([_at(layer, p) for layer, p in zip(after, places, strict=True)])
        losses = [contrastive_loss(q, k) for q, k in zip(queries, keys, strict=True)]
        return torch.stack(losses).mean()

    def _judges(self, real: _Named, translated: _Named) -> _Named:
        state = self.state
        rng = np.random.default_rng([self.task.options.seed, _SHOWN_AGAIN, state.step])
        optimizer = state.optimizers["judges"]
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for side, image in translated.items():
            state.networks[JUDGES[side]].requires_grad_(True)
            shown = state.pools[side].exchange(image, rng)
            loss = self._seems_real(side, real[side]) + self._judged(side, shown).square().mean()
            state.scaler.scale(loss / 2).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach() / 2)
        state.scaler.step(optimizer)
        return {"discrimination": torch.stack(losses).sum()}

    def _seems_real(self, side: str, image: Tensor) -> Tensor:
        """The loss of least squares of patches that should seem real (Mao et al., ICCV 2017)."""
        return (self._judged(side, image) - 1.0).square().mean()

    def _judged(self, side: str, image: Tensor) -> Tensor:
        return self._image_by(JUDGES[side])(image)

    def _image_by(self, name: str) -> Callable[[Tensor], Tensor]:
        """A network that computes in half precision, if wanted, and returns float32."""

        def computed(image: Tensor) -> Tensor:
            with self._autocast():
                made: Tensor = self.state.networks[name](image)
            return made.float()

        return computed

    def _autocast(self) -> AbstractContextManager[object]:
        if self.task.half is None:
            return nullcontext()
        return torch.autocast(self.task.device.type, dtype=self.task.half)


def contrastive_loss(queries: Tensor, keys: Tensor) -> Tensor:
    """How much less a place of an image resembles its own source than other places of it (InfoNCE).

    It is the cross-entropy of telling, by the cosines between vectors, which of the keys of an
    image belongs to a query (Oord et al. 2018; Park et al., ECCV 2020).

    Args:
        queries: Vectors of length 1 of the places of translated images, (b, places, n).
        keys: The same for the source.
    """
    alike = torch.bmm(queries, keys.transpose(1, 2)) / _TEMPERATURE
    own = torch.arange(alike.shape[1], device=alike.device).expand(len(alike), -1)
    return functional.cross_entropy(alike.flatten(0, 1), own.flatten())


def _places(layer: Tensor, rng: np.random.Generator) -> Tensor:
    """Draws places of a layer (b, c, *shape), the same for all images of a batch."""
    number = layer[0, 0].numel()
    drawn = rng.choice(number, min(_PLACES, number), replace=False)
    return torch.from_numpy(drawn).to(layer.device)


def _at(layer: Tensor, places: Tensor) -> Tensor:
    """The features (b, places, c) of a layer at some places."""
    return layer.flatten(2)[:, :, places].transpose(1, 2).float()
