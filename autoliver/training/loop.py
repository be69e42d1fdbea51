"""Training of one fold: from preprocessed cases to weights.

Every step draws its patches and augmentations from a generator of its own, made from (seed, step).
So a training that is killed and taken up again goes on as if nothing had happened: there is no
random state to save, and `resume.pt` may hold any step.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autoliver.errors import AutoliverError
from autoliver.networks.checkpoint import load_training_state, save_training_state
from autoliver.parallel import bar_pace
from autoliver.training.augment.batch import augmentation
from autoliver.training.board import Board
from autoliver.training.determinism import same_bits
from autoliver.training.fold import FoldTask, TrainedFold, open_patches
from autoliver.training.freezing import freezing
from autoliver.training.objectives.segmentation import (
    CONSISTENCY_WEIGHT,
    consistency_loss,
    hard_dice_counts,
    segmentation_loss,
)
from autoliver.training.objectives.target import loss_options
from autoliver.training.options import choose_recipe
from autoliver.training.patches.stream import TrainingBatch
from autoliver.training.progress import (
    EpochLog,
    draw_progress,
    read_progress,
    summarise,
    write_progress,
)
from autoliver.training.recipes import Recipe
from autoliver.training.state import (
    EpochSums,
    TrainingState,
    amp_dtype,
    memory_format,
    new_state,
    saved_recipe,
)

_VALIDATION_SHARE = 5  # one validation batch for so many training batches, as nnU-Net's 50 for 250
_PATIENCE_NOT_FINITE = 5  # batches in a row without a finite loss before giving up
_SECONDS_BETWEEN_PICTURES = 30.0
_PROBE_STEPS = 3


def train_fold(task: FoldTask, *, stop: Callable[[], bool] = lambda: False) -> TrainedFold:
    """Trains one fold, going on from `task.folder/resume.pt` where there is one.

    The state is saved after every epoch, and when `stop` says so.

    Raises:
        AutoliverError: The loss is not finite for several batches in a row (the message names the
            cases), or the device has too little memory.
        ModelError: resume.pt is damaged or of another network.
    """
    try:
        with same_bits(task.options.deterministic):
            loop = _Loop(task)
            with closing(loop.board):
                trained = loop.run(stop)
                while trained.finished and loop.begin_extension():
                    trained = loop.run(stop)
            return trained
    except torch.cuda.OutOfMemoryError as error:
        raise AutoliverError(
            f"{task.title}: the GPU has too little memory for batches of "
            f"{task.configuration.batch_size} patches {task.configuration.patch_shape}.",
            hint="Try --cache ram or a smaller --batch-size or --patch, plan for less with "
            "'autoliver plan DATASET --vram GB', or use --device cpu.",
        ) from error


class _Loop:
    """One training: what stays the same (task, spec, recipe) and the state that changes."""

    def __init__(self, task: FoldTask) -> None:
        configuration = task.configuration
        self.task = task
        self.freezing = freezing(task.options, configuration.network)
        self.board = Board(task.folder / "tensorboard", tuple(task.labels.foreground))
        self.group = task.group
        self.train, self.held_out = open_patches(task)
        self.loss = loss_options(
            task.labels, batch_dice=configuration.batch_dice, kind=task.options.loss
        )
        self.amp_dtype = amp_dtype(task.device)
        self.layout = memory_format(configuration.network, task.device)
        self.since = time.monotonic()
        if task.resume_path.exists():
            self._begin(self._saved_state())
            return
        self._begin(self._new_state(choose_recipe(task.options)))
        if task.options.hours is not None and task.options.steps:
            affordable = self._affordable_steps(task.options.hours)
            self._begin(self._new_state(choose_recipe(task.options, steps=affordable)))

    def _begin(self, state: TrainingState) -> None:
        """Takes a state to go on from, with the augmentations of its recipe."""
        self.group.check_equal("a training after step", state.step)
        self.state = state
        self.freezing.apply(state.network, state.step // self.task.options.iterations)
        self.parallel = self.group.parallel(state.network)
        options = self.task.options
        self.spec = augmentation(
            self.task.configuration,
            options.augment,
            mirror=state.recipe.mirror,
            ignored=self.loss.ignore,
        )

    def begin_extension(self) -> bool:
        """Goes from the end to the next extension; False: there is none."""
        state, iterations = self.state, self.task.options.iterations
        # A time budget may have ended an epoch early: the rest of its batches is left out.
        step = -(-state.step // iterations) * iterations
        course = state.course.extended(self.task.options, state.recipe, step=step)
        if course is None:
            return False
        state.step, state.course = step, course
        return True

    def run(self, stop: Callable[[], bool]) -> TrainedFold:
        """Steps until the training is over or `stop` says so."""
        options, drawn = self.task.options, time.monotonic()
        last = self.state.course.last_step(options)
        bar = tqdm(
            total=last,
            initial=self.state.step,
            desc=self.task.title,
            **bar_pace(),
            unit="step",
            smoothing=0.1,
        )
        last = self.state.step if self._done() >= 1.0 else last
        with bar, closing(self._batches(self.state.step, last)) as batches:
            for batch in batches:
                self._one_step(batch)
                self._note_time()
                bar.update()
                # Once: what is asked for later is seen after the next step.
                stopping = self.group.any(stop())
                if self.state.step % options.iterations == 0 or self._done() >= 1.0:
                    self._finish_epoch()
                    bar.set_postfix_str(summarise(self.state.logs[-1]))
                    if time.monotonic() - drawn > _SECONDS_BETWEEN_PICTURES:
                        self._draw()
                        drawn = time.monotonic()
                elif stopping:
                    self._save()
                if self._done() >= 1.0 or stopping:
                    break
        if self.state.logs:
            self._draw()
        elif last == 0:
            self._save()  # the weights to start with are the result, and can be extended
        self.group.wait()  # the first to end could have the others killed while they save
        weights = {k: v.detach().cpu() for k, v in self.state.result.state_dict().items()}
        return TrainedFold(
            weights=weights,
            logs=tuple(self.state.logs),
            recipe=self.state.recipe,
            mirror_axes=self.spec.mirror_axes if self.spec is not None else (),
            finished=self._done() >= 1.0,
        )

    def _note_time(self) -> None:
        # By the clock, not by what was timed: saving and drawing count towards --hours, too.
        now = time.monotonic()
        self.state.elapsed += now - self.since
        self.since = now
        if self.task.options.hours is not None:  # one clock decides
            self.state.elapsed = self.group.lead_does(lambda: self.state.elapsed)

    def _done(self) -> float:
        """The share of the training that is over, by steps or by time."""
        state = self.state
        return state.course.done(self.task.options, step=state.step, elapsed_s=state.elapsed)

    def _batches(self, first: int, last: int) -> Generator[TrainingBatch, None, None]:
        return self.train.batches(
            range(first, last),
            patch_shape=self.task.configuration.patch_shape,
            spec=self.spec,
        )

    def _thaw(self) -> None:
        """Before the first step of an epoch: has the parts learn whose time has come."""
        epoch, step = divmod(self.state.step, self.task.options.iterations)
        if step == 0 and self.freezing.apply(self.state.network, epoch):
            self.parallel = self.group.parallel(self.state.network)

    def _one_step(self, batch: TrainingBatch) -> None:
        state, start = self.state, time.monotonic()
        self._thaw()
        rate = state.course.rate(
            self.task.options, state.recipe, step=state.step, elapsed_s=state.elapsed
        )
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        state.network.train()
        loss, counts = self._loss(self.parallel, batch.image, batch.target)
        # Loss and norm of the gradients are those of the whole batch, so all processes agree.
        if bool(torch.isfinite(loss)) and self._update(loss):
            state.sums.losses.append(loss.item())
            state.sums.counts += counts
            state.failures = 0
        else:
            self._note_not_finite(batch)
        state.sums.seconds += time.monotonic() - start + batch.seconds
        state.sums.waited += batch.waited
        state.step += 1

    def _loss(
        self, network: nn.Module, image: Tensor, target: Tensor
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        with self._autocast():
            outputs = network(image.contiguous(memory_format=self.layout))
        # Patches may be shown in several views: the first are segmented, the others shall agree.
        first = [output[: len(target)] for output in outputs]
        loss = segmentation_loss(first, target, options=self.loss, group=self.group)
        views = len(image) // len(target)
        if views > 1:
            disagreement = consistency_loss(outputs[0], views, options=self.loss, group=self.group)
            loss = loss + CONSISTENCY_WEIGHT * disagreement
        with torch.no_grad():
            counts = torch.stack(hard_dice_counts(first[0], target, options=self.loss))
        return loss, self.group.sum_(counts).cpu().numpy()

    def _update(self, loss: Tensor) -> bool:
        """Takes a step, unless the gradients are not finite: one such step ends a training."""
        state = self.state
        state.optimizer.zero_grad(set_to_none=True)
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), state.recipe.clip)
        # The scaler leaves such steps out by itself, as the way to find its scale.
        if not state.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            return False
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.update_average()
        return True

    def _note_not_finite(self, batch: TrainingBatch) -> None:
        state = self.state
        state.failures += 1
        cases = sorted(set(self.group.gather([case.name for case in batch.cases])))
        state.sums.skipped.extend(cases)
        bad = [
            case.name
            for case, patch in zip(batch.cases, self.train.redraw(batch.number).image, strict=True)
            if not np.isfinite(patch).all()
        ]
        bad = self.group.gather(bad)
        if bad:
            raise AutoliverError(
                f"{bad[0]}: its preprocessed image holds values that are not finite.",
                hint="Check the image with 'autoliver verify', then preprocess again.",
            )
        if state.failures >= _PATIENCE_NOT_FINITE:
            raise AutoliverError(
                f"{self.task.title}: loss or gradients were not finite for {state.failures} "
                f"batches in a row, the last one of {', '.join(cases)}.",
                hint="Look at these cases with 'autoliver verify'; if they are sound, start over "
                "with --fresh and another --seed.",
            )

    def _finish_epoch(self) -> None:
        state, start = self.state, time.monotonic()
        validation_loss, validation_dice = self._validate()
        seconds = time.monotonic() - start
        self._note_time()
        sums = state.sums
        total = sums.seconds + seconds
        state.logs.append(
            EpochLog(
                epoch=(state.step - 1) // self.task.options.iterations,
                step=state.step,
                learning_rate=state.optimizer.param_groups[0]["lr"],
                train_loss=_mean(sums.losses),
                train_dice=_mean([d for d in _dice(sums.counts) if d is not None]),
                validation_loss=validation_loss,
                validation_dice=validation_dice,
                seconds=round(total, 3),
                data_wait=round(sums.waited / max(total, 1e-9), 4),
                skipped=tuple(sums.skipped),
            )
        )
        state.course = state.course.after(
            state.logs[-1], self.task.options, state.recipe, elapsed_s=state.elapsed
        )
        state.sums = self._no_sums()
        self._save()
        if self.task.tensorboard and self.group.leads:
            self.board.add(state.logs[-1])

    def _validate(self) -> tuple[float | None, tuple[float | None, ...] | None]:
        """Loss and Dice on patches of the held-out cases, the same ones after every epoch."""
        if not self.task.validation:
            return None, None
        sums = self._no_sums()
        network = self.state.result.eval()
        batches = max(1, self.task.options.iterations // _VALIDATION_SHARE)
        shape = self.task.configuration.patch_shape
        with torch.no_grad():
            for batch in self.held_out.batches(range(batches), patch_shape=shape, spec=None):
                loss, counts = self._loss(network, batch.image, batch.target)
                sums.losses.append(loss.item())
                sums.counts += counts
                self.state.sums.waited += batch.waited
        return _mean(sums.losses), _dice(sums.counts)

    def _autocast(self) -> Any:
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.task.device.type, dtype=self.amp_dtype)

    def _no_sums(self) -> EpochSums:
        rows = self.task.configuration.network.out_channels
        rows -= 0 if self.task.labels.has_regions else 1
        return EpochSums(counts=np.zeros((3, rows), np.int64))

    def _new_state(self, recipe: Recipe) -> TrainingState:
        task = self.task
        return new_state(
            task.configuration.network,
            recipe,
            options=task.options,
            device=task.device,
            sums=self._no_sums(),
            start=task.start,
        )

    def _saved_state(self) -> TrainingState:
        path = self.task.resume_path
        saved = load_training_state(path)
        state = self._new_state(saved_recipe(saved, where=str(path)))
        state.restore(saved, where=str(path))
        logs = read_progress(self.task.progress_path)
        state.logs = [log for log in logs if log.step <= state.step]
        return state

    def _affordable_steps(self, hours: float) -> int:
        """Steps that fit into the time budget, by timing a few on the fresh network."""
        start = time.monotonic()
        for batch in self._batches(0, _PROBE_STEPS):
            self._one_step(batch)
            if batch.number == 0:  # the first one pays for allocations
                start = time.monotonic()
        seconds = self.group.lead_does(lambda: time.monotonic() - start) / (_PROBE_STEPS - 1)
        return int(hours * 3600.0 / seconds)

    def _save(self) -> None:
        if not self.group.leads:
            return
        # The log first: a log that is one epoch ahead is cut when the training is taken up again.
        write_progress(self.task.progress_path, self.state.logs)
        save_training_state(self.task.resume_path, self.state.snapshot())

    def _draw(self) -> None:
        if self.group.leads:
            draw_progress(self.task.folder / "progress.png", self.state.logs, title=self.task.title)


def _dice(counts: npt.NDArray[np.int64]) -> tuple[float | None, ...]:
    """Dice per class from (true positive, false positive, false negative) counts."""
    return tuple(
        float(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else None for tp, fp, fn in counts.T
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
