"""One training step: forward, loss, backward; batches that are not finite are skipped."""

import time
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from autoliver.errors import AutoliverError
from autoliver.training.finite import PATIENCE, diverged
from autoliver.training.fold import FoldTask
from autoliver.training.freezing import freezing, set_modes
from autoliver.training.objectives.objective import Objective, Tally
from autoliver.training.patches.stream import Patches, TrainingBatch
from autoliver.training.state import TrainingState, amp_dtype, memory_format

# An enabled scaler halves its scale until the gradients are finite. Below this scale they overflow
# by themselves.
_LEAST_SCALE = 1.0


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Stepper:
    """Takes training steps and updates the training state in place."""

    def __init__(
        self, task: FoldTask, objective: Objective, train: Patches, state: TrainingState
    ) -> None:
        """Prepares to continue a training from its state.

        Args:
            task: The fold to train.
            objective: What is minimised.
            train: Source of the batches; a batch that is not finite is drawn again to inspect it.
            state: State of the training before the next step; every step changes it.
        """
        self.task = task
        self.objective = objective
        self.train = train
        self.state = state
        self.amp_dtype = amp_dtype(task.device)
        self.layout = memory_format(task.configuration.network, task.device)
        self.freezing = freezing(task.options, task.configuration.network)
        epoch = state.step // task.options.iterations
        self.freezing.apply(state.network, epoch)
        self.still = self.freezing.still(state.network, epoch)
        self.parallel = task.group.parallel(state.network)

    def take(self, batch: TrainingBatch) -> None:
        """Takes one step; a batch whose loss or gradient is not finite is noted and skipped.

        Raises:
            AutoliverError: Several batches in a row were skipped, or the image of a skipped batch
                is not finite.
        """
        state, start = self.state, time.monotonic()
        self._thaw()
        rate = state.course.rate(
            self.task.options, state.recipe, step=state.step, elapsed_s=state.elapsed
        )
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        self._begin_step()
        loss, tally = self.loss(self.parallel, batch)
        # Loss and gradient norm are computed over the whole batch, so all processes agree.
        if bool(torch.isfinite(loss)) and self._update(loss):
            state.sums.losses.append(loss.item())
            state.sums.tally += tally
            state.failures = 0
        else:
            self._note_not_finite(batch)
        state.sums.seconds += time.monotonic() - start + batch.seconds
        state.sums.waited += batch.waited
        state.step += 1

    def loss(self, network: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tally]:
        """Runs a network on a batch and returns the objective's loss and counts."""
        with self._autocast():
            outputs = network(batch.image.contiguous(memory_format=self.layout))
        return self.objective.loss(outputs, batch, self.task.group)

    def _thaw(self) -> None:
        """Unfreezes, before the first step of an epoch, the parts that are trained from it on."""
        epoch, step = divmod(self.state.step, self.task.options.iterations)
        if step == 0 and self.freezing.apply(self.state.network, epoch):
            self.still = self.freezing.still(self.state.network, epoch)
            self.parallel = self.task.group.parallel(self.state.network)

    def _begin_step(self) -> None:
        """Sets what learns, and the random numbers of a network that draws some in training.

        They depend on seed, step and process alone, so that a resumed training draws the same.
        """
        state, options = self.state, self.task.options
        set_modes(state.network, self.still)
        torch.manual_seed(_mixed(options.seed, state.step, self.task.group.rank))

    def _update(self, loss: Tensor) -> bool:
        """Updates the weights; returns False, without an update, if a gradient is not finite.

        A single update with such a gradient would make all weights useless.
        """
        state = self.state
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), state.recipe.clip)
        # An enabled scaler skips such steps by itself: that is how it finds its scale.
        finite = bool(torch.isfinite(norm))
        if not state.scaler.is_enabled() and not finite:
            return False
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if not finite and state.scaler.get_scale() < _LEAST_SCALE:
            return False
        state.update_average()
        return True

    def _note_not_finite(self, batch: TrainingBatch) -> None:
        state = self.state
        state.failures += 1
        cases = self.cases_of(batch)
        state.sums.skipped.extend(cases)
        self.check_images(batch, self.train)
        if state.failures >= PATIENCE:
            raise diverged(
                self.task,
                state,
                f"loss or gradients were not finite for {state.failures} batches in a row, the "
                f"last one of {', '.join(cases)}",
            )

    def cases_of(self, batch: TrainingBatch) -> list[str]:
        """The names of the cases of a batch, of all processes."""
        return sorted(set(self.task.group.gather([case.name for case in batch.cases])))

    def check_images(self, batch: TrainingBatch, patches: Patches) -> None:
        """Checks the images of a batch whose loss is not finite.

        Args:
            batch: The batch.
            patches: Where it comes from; it is drawn again.

        Raises:
            AutoliverError: An image is not finite; the message names the case.
        """
        names = [case.name for case in batch.cases]
        images = patches.redraw(batch.number).image
        bad = [n for n, patch in zip(names, images, strict=True) if not np.isfinite(patch).all()]
        bad = self.task.group.gather(bad)
        if bad:
            raise AutoliverError(
                f"{bad[0]}: its preprocessed image holds values that are not finite.",
                hint="Check the image, then preprocess again: autoliver verify DATASET",
            )

    def _autocast(self) -> AbstractContextManager[object]:
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.task.device.type, dtype=self.amp_dtype)
