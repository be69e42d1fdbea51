"""One training step: forward, loss, backward; batches that are not finite are skipped."""

import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autoliver.datasets.cases import CaseFacts
from autoliver.errors import AutoliverError, MachineError
from autoliver.training.bar import TrainingBar
from autoliver.training.compiled import (
    compiled_network,
    compiled_objective,
    compiles,
    may_go_on,
)
from autoliver.training.finite import PATIENCE, diverged
from autoliver.training.fold import FoldTask
from autoliver.training.freezing import freezing, set_modes
from autoliver.training.objectives.objective import Counts, Objective, Tally
from autoliver.training.patches.stream import Patches, TrainingBatch
from autoliver.training.reading import Reading
from autoliver.training.state import TrainingState, amp_dtype, memory_format
from autoliver.values import shortened

# An enabled scaler halves its scale until the gradients are finite. Below this scale they overflow
# by themselves.
_LEAST_SCALE = 1.0
_REASON = 200  # characters of the reason why a network cannot be compiled

_log = logging.getLogger(__name__)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@dataclass(frozen=True, slots=True)
class _Taken:
    """A step that was taken: its numbers, and what its batch was made of."""

    reading: Reading
    number: int
    cases: tuple[CaseFacts, ...]


class Stepper:
    """Takes training steps and updates the training state in place."""

    def __init__(
        self,
        task: FoldTask,
        objective: Objective,
        train: Patches,
        state: TrainingState,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepares to continue a training from its state.

        Args:
            task: The fold to train.
            objective: What is minimised.
            train: Source of the batches; a batch that is not finite is drawn again to inspect it.
            state: State of the training before the next step; every step changes it.
            written: Waits until the state that was saved last is written; errors name its file.
        """
        self.task = task
        self.objective = objective
        self.compiles, self._proven = compiles(task), False
        self._compute = compiled_objective(objective, task) if self.compiles else objective
        self.train = train
        self.state = state
        self.written = written
        self.amp_dtype = amp_dtype(task.device)
        self.layout = memory_format(task.configuration.network, task.device)
        self.freezing = freezing(task.options, task.configuration.network)
        epoch = state.step // task.options.iterations
        self.freezing.apply(state.network, epoch)
        self._freeze(epoch)
        self._open: _Taken | None = None

    def take(self, batch: TrainingBatch) -> None:
        """Takes one step; a batch whose loss or gradient is not finite is noted and skipped.

        Where the optimiser can skip a step by itself, its numbers are read one step late, so that
        the device never waits for Python: `settle` reads those of the last step.

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
        loss, counts, norm = self._computed(batch)
        taken = _Taken(Reading(loss, norm, counts), batch.number, batch.cases)
        if state.skips_by_itself:
            state.update_if_finite(torch.stack([loss.detach(), norm]))
            self.settle()
            self._open = taken
        else:
            found, length, tally = taken.reading.values()
            self._note(taken, found if self._update(found, length) else math.nan, tally)
        state.sums.seconds += time.monotonic() - start + batch.seconds
        state.sums.waited += batch.waited
        state.step += 1

    def settle(self) -> None:
        """Reads the numbers of the last step if they were not read yet; before the state is used.

        Raises:
            AutoliverError: As for `take`.
        """
        taken, self._open = self._open, None
        if taken is not None:
            loss, norm, tally = taken.reading.values()
            self._note(taken, loss if math.isfinite(norm) else math.nan, tally)

    def _note(self, taken: "_Taken", loss: float, tally: Tally) -> None:
        """Adds the numbers of a step to those of its epoch; a skipped one has no finite loss."""
        state = self.state
        if math.isfinite(loss):
            state.sums.losses.append(loss)
            state.sums.tally += tally
            state.failures = 0
        else:
            self._note_not_finite(taken)

    def loss(self, network: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tally | Counts]:
        """Runs a network on a batch and returns the objective's loss and counts."""
        return self._loss(network, batch, self.objective)

    def _loss(
        self, network: nn.Module, batch: TrainingBatch, objective: Objective
    ) -> tuple[Tensor, Tally | Counts]:
        with self._autocast():
            outputs = network(batch.image.contiguous(memory_format=self.layout))
        return objective.loss(outputs, batch, self.task.group)

    def _computed(self, batch: TrainingBatch) -> tuple[Tensor, Tally | Counts, Tensor]:
        """Loss, counts and gradient norm of a batch; without compilation if that fails."""
        buffers = [] if self._proven else [b.clone() for b in self.state.network.buffers()]
        try:
            loss, counts = self._loss(self.parallel, batch, self._compute)
            norm = self._backward(loss)
            self._proven = True
            return loss, counts, norm
        except Exception as error:
            if not self.compiles or not may_go_on(error, proven=self._proven):
                raise
            self._give_up_compiling(error)
        # Outside of the block, whose error keeps the feature maps of the failed step.
        for buffer, before in zip(self.state.network.buffers(), buffers, strict=False):
            buffer.copy_(before)
        self._begin_step()
        return self._computed(batch)

    def _give_up_compiling(self, error: Exception) -> None:
        """Goes on without compilation, and says so.

        Raises:
            MachineError: Several processes train together: the others wait for this one.
        """
        reason = shortened(" ".join(str(error).split()), _REASON)
        if self.task.group.size > 1:
            raise MachineError(
                f"{self.task.title}: the network cannot be compiled in process "
                f"{self.task.group.rank} ({reason}).",
                hint="Give the same command with --compile off.",
            ) from error
        self.compiles, self._compute = False, self.objective
        self.parallel = self.task.group.parallel(self.state.network)
        if self.task.group.leads:
            with TrainingBar.external_write_mode(file=sys.stderr):
                _log.warning(
                    "%s: cannot be compiled here and goes on without, more slowly (%s). "
                    "With --compile off it is not tried.",
                    *(self.task.title, reason),
                )

    def _thaw(self) -> None:
        """Unfreezes, before the first step of an epoch, the parts that are trained from it on."""
        epoch, step = divmod(self.state.step, self.task.options.iterations)
        if step == 0 and self.freezing.apply(self.state.network, epoch):
            self._freeze(epoch)

    def _freeze(self, epoch: int) -> None:
        """Prepares what depends on the parts that are frozen in an epoch."""
        network = self.state.network
        self.still = self.freezing.still(network, epoch)
        self.parallel = self.task.group.parallel(
            compiled_network(network) if self.compiles else network
        )
        self._proven = self._proven and not self.compiles  # it is compiled anew
        set_modes(network, self.still)

    def _begin_step(self) -> None:
        """Sets what learns, and the random numbers of a network that draws some in training.

        They depend on seed, step and process alone, so that a resumed training draws the same.
        """
        state, options = self.state, self.task.options
        if not state.network.training:  # at the start and after held-out cases; it takes a while
            set_modes(state.network, self.still)
        torch.manual_seed(_mixed(options.seed, state.step, self.task.group.rank))

    def _backward(self, loss: Tensor) -> Tensor:
        """Computes the gradients and clips them; returns their norm before that."""
        state = self.state
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.unscale_(state.optimizer)
        return nn.utils.clip_grad_norm_(state.weights, state.recipe.clip)

    def _update(self, loss: float, norm: float) -> bool:
        """Updates the weights; returns False, without an update, if a number is not finite.

        A single update with such a gradient would make all weights useless.

        Args:
            loss: The loss; that of the whole batch, so that all processes agree.
            norm: The norm of the gradients.
        """
        state = self.state
        if not math.isfinite(loss):
            if state.scaler.is_enabled():
                state.scaler.update()
            return False
        # An enabled scaler skips such steps by itself: that is how it finds its scale.
        finite = math.isfinite(norm)
        if not state.scaler.is_enabled() and not finite:
            return False
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if not finite and state.scaler.get_scale() < _LEAST_SCALE:
            return False
        state.update_average()
        return True

    def _note_not_finite(self, taken: "_Taken") -> None:
        state = self.state
        state.failures += 1
        cases = self.cases_of(taken)
        state.sums.skipped.extend(cases)
        self.check_images(taken, self.train)
        if state.failures >= PATIENCE:
            self.written()
            raise diverged(
                self.task,
                state,
                f"loss or gradients were not finite for {state.failures} batches in a row, the "
                f"last one of {', '.join(cases)}",
            )

    def cases_of(self, batch: "TrainingBatch | _Taken") -> list[str]:
        """The names of the cases of a batch, of all processes."""
        return sorted(set(self.task.group.gather([case.name for case in batch.cases])))

    def check_images(self, batch: "TrainingBatch | _Taken", patches: Patches) -> None:
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
