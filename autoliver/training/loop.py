"""Trains one fold: from preprocessed cases to weights.

Every step draws its patches and augmentations from its own generator, seeded with (seed, step). A
training that was killed and is resumed therefore continues as if it had never stopped: there is no
random state to save, and `resume.pt` may hold any step.
"""

import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from autoliver.errors import AutoliverError
from autoliver.memory import out_of_memory, running_out
from autoliver.networks.checkpoint import load_training_state
from autoliver.parallel import bar_pace
from autoliver.training.augment.batch import augmentation
from autoliver.training.bar import TrainingBar, duration
from autoliver.training.board import Board
from autoliver.training.determinism import same_bits
from autoliver.training.epoch import HeldOut, epoch_log, score_held_out
from autoliver.training.finite import check_end, check_weights, diverged
from autoliver.training.fold import (
    FoldTask,
    TrainedFold,
    held_out_steps,
    open_patches,
    with_room,
)
from autoliver.training.objectives.choice import make_objective
from autoliver.training.objectives.objective import Tally
from autoliver.training.objectives.target import ignored_class
from autoliver.training.objectives.weights import class_weights, describe_weights
from autoliver.training.options import choose_recipe
from autoliver.training.patches.stream import Patches, TrainingBatch
from autoliver.training.progress import (
    add_to_log,
    epoch_line,
    read_progress,
)
from autoliver.training.recipes import Recipe
from autoliver.training.saving import Saver
from autoliver.training.state import (
    EpochSums,
    TrainingState,
    begun_again,
    new_state,
    saved_recipe,
)
from autoliver.training.step import Stepper
from autoliver.training.tasks import head_labels
from autoliver.values import counted, first_few

_SECONDS_BETWEEN_PICTURES = 30.0
_PROBE_STEPS = 3
_MOST_TIMED = 200  # steps that are timed
_TIMED_HELD_OUT = 2
_NAMED = 4  # held-out cases that an error names
_LONG_ON_CPU = 3600.0  # seconds from which a training on a CPU is announced as long
_HELD_OUT_TIME = 1.1  # held-out patches add about a tenth to the time of the steps

_log = logging.getLogger(__name__)


def train_fold(task: FoldTask, *, stop: Callable[[], bool] = lambda: False) -> TrainedFold:
    """Trains one fold; continues from `task.folder/resume.pt` if it exists.

    The state is saved after every epoch, and when `stop` ends the training. A thread writes it
    while the next steps are taken.

    Args:
        task: The fold to train.
        stop: Called after every step; once it returns True, the training saves and ends.

    Raises:
        AutoliverError: The loss is not finite for several batches in a row (the message names the
            cases) or on all held-out cases, weights are not finite, or the device has too little
            memory.
        ModelError: resume.pt is damaged or belongs to another network.
    """
    try:
        with same_bits(task.options.deterministic):
            return with_room(task, partial(_run, stop=stop, clock=Clock()))
    except RuntimeError as error:
        if out_of_memory(error) != "accelerator":
            raise
        raise AutoliverError(
            f"{task.title}: the GPU has too little memory for batches of "
            f"{counted(task.configuration.batch_size, 'patch', 'patches')} "
            f"{task.configuration.patch_shape}.",
            hint="Try --cache ram, a smaller --batch-size or --patch, or --device cpu. Or plan for "
            "less memory: autoliver plan DATASET --vram GB",
        ) from error


def _run(
    task: FoldTask,
    patches: tuple[Patches, Patches],
    *,
    stop: Callable[[], bool],
    clock: "Clock",
) -> TrainedFold:
    loop = _Loop(task, patches, clock)
    with closing(loop.board), closing(loop.saver):
        trained = loop.run(stop)
        while trained.finished and loop.begin_extension():
            trained = loop.run(stop)
    return trained


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """How long steps take.

    Attributes:
        train_s: Mean seconds of a training step, patches and augmentations included.
        held_out_s: The same of a step on held-out patches.
    """

    train_s: float
    held_out_s: float


def time_steps(task: FoldTask, *, seconds: float) -> StepTimes:
    """Times real training steps of a new network; nothing is saved.

    Args:
        task: The fold; it needs held-out cases.
        seconds: About how long the steps may take that are timed, at least one training step. The
            first step comes before them: there memory is allocated, the network is compiled if the
            training will be, and cuDNN chooses its algorithms.

    Raises:
        AutoliverError: As for `train_fold`.
    """
    with running_out(task.title), same_bits(task.options.deterministic):
        loop = _Loop(task)
        ends = (closing(loop.board), closing(loop.saver), closing(loop.batches(0, _MOST_TIMED)))
        with ends[0], ends[1], ends[2] as batches:
            for batch in batches:
                loop.stepper.take(batch)
                if batch.number == 0:
                    loop.stepper.settle()  # it has ended on the device, too
                    first = time.monotonic()
                elif time.monotonic() - first > seconds:
                    break
            loop.stepper.settle()
            train_s = (time.monotonic() - first) / batch.number
        begun = time.monotonic()
        loop.score_held_out(range(_TIMED_HELD_OUT))
        return StepTimes(train_s=train_s, held_out_s=(time.monotonic() - begun) / _TIMED_HELD_OUT)


class Clock:
    """The seconds that a training has taken in all its sessions, by the time of day.

    It outlives a run that is given up and begun again within a session.
    """

    def __init__(self) -> None:
        self._began: float | None = None

    def begin(self, elapsed: float, *, at: float) -> None:
        """Begins to count unless it does so already.

        Args:
            elapsed: Seconds that earlier sessions took.
            at: The reading of `time.monotonic` when this session began.
        """
        if self._began is None:
            self._began = at - elapsed

    @property
    def elapsed(self) -> float:
        """The seconds until now; 0 before it has begun."""
        return 0.0 if self._began is None else time.monotonic() - self._began


class _Loop:
    """A running training: its task, its batches and its objective, and the state that changes."""

    def __init__(
        self,
        task: FoldTask,
        patches: tuple[Patches, Patches] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.task = task
        self.learnt = head_labels(task.labels, task.configuration)
        self.weights = class_weights(task.options, self.learnt, task.train)
        options = task.options.replace(class_weights=self.weights)
        self.objective = make_objective(task.labels, task.configuration, options)
        self.board = Board(task.files.tensorboard, self.objective.names)
        self.saver = Saver(task, self.objective.names)
        self.group = task.group
        self.train, self.held_out = patches or open_patches(task)
        self.clock, since = clock or Clock(), time.monotonic()
        resumed = task.files.resume.exists()
        state = self._saved_state() if resumed else self._new_state(choose_recipe(task.options))
        self.clock.begin(state.elapsed, at=since)
        self.group.check_equal("a training after step", state.step)
        self.stepper = Stepper(task, self.objective, self.train, state, self.saver.wait)
        self._begin(state)
        if not resumed and task.options.hours is not None and task.options.steps:
            self._begin(self._as_long_as(task.options.hours))

    def _begin(self, state: TrainingState) -> None:
        """Continues from a state, with the augmentations of its recipe."""
        self.state = self.stepper.state = state
        self.spec = augmentation(
            self.task.configuration,
            self.task.options.augment,
            mirror=state.recipe.mirror,
            ignored=ignored_class(self.task.labels),
        )

    def begin_extension(self) -> bool:
        """Starts the next extension after the end; returns False if there is none."""
        state, iterations = self.state, self.task.options.iterations
        # A time budget may have ended an epoch early: the rest of its batches is skipped.
        step = -(-state.step // iterations) * iterations
        course = state.course.extended(self.task.options, state.recipe, step=step)
        if course is None:
            return False
        state.step, state.course = step, course
        return True

    def run(self, stop: Callable[[], bool]) -> TrainedFold:
        """Takes steps until the training is over or `stop` returns True."""
        options, drawn = self.task.options, time.monotonic()
        last = self.state.course.last_step(options)
        bar = TrainingBar(
            self.task.title,
            first=self.state.step,
            last=last,
            iterations=options.iterations,
            **bar_pace(),
        )
        bar.show(self.state.logs[-1] if self.state.logs else None)
        last = self.state.step if self._done() >= 1.0 else last
        self._tell(self._beginning())
        begun, first = time.monotonic(), self.state.step
        with bar, closing(self.batches(self.state.step, last)) as batches:
            for batch in batches:
                self.stepper.take(batch)
                self.saver.check()
                self._note_time()
                bar.tell_time(self.state.elapsed, options.hours)
                bar.update()
                if self.state.step == first + 1:  # not timed: the first step allocates memory
                    begun = time.monotonic()
                elif first == 0 and self.state.step == _PROBE_STEPS:
                    pace, left = (
                        (time.monotonic() - begun) / (_PROBE_STEPS - 1),
                        last - _PROBE_STEPS,
                    )
                    _warn_if_long(self.task, left, seconds=pace, epochs=self._epochs)
                # Asked only once per step: a later request is seen after the next step.
                stopping = self.group.any(stop())
                if self.state.step % options.iterations == 0 or self._done() >= 1.0:
                    self._finish_epoch()
                    bar.show(self.state.logs[-1])
                    if time.monotonic() - drawn > _SECONDS_BETWEEN_PICTURES:
                        self.saver.draw(self.state)
                        drawn = time.monotonic()
                elif stopping:
                    self.stepper.settle()
                    check_weights(self.task, self.state)
                    self.saver.save(self.state)
                if self._done() >= 1.0 or stopping:
                    break
        if self.state.logs:
            self.saver.draw(self.state)
        elif last == 0:
            check_weights(self.task, self.state)
            self.saver.save(
                self.state
            )  # without steps, the initial weights are the result; can be extended
        self.saver.wait()
        self.group.wait()  # torchrun could kill the others while they save once one has ended
        return self._trained()

    def _trained(self) -> TrainedFold:
        weights = {k: v.detach().cpu() for k, v in self.state.result.state_dict().items()}
        return TrainedFold(
            weights=weights,
            logs=tuple(self.state.logs),
            recipe=self.state.recipe,
            mirror_axes=() if self.spec is None else self.spec.axes_of(self.task.configuration),
            finished=self._done() >= 1.0,
        )

    def _note_time(self) -> None:
        # By the clock rather than a sum of timings: saving and drawing also count towards --hours.
        self.state.elapsed = self.clock.elapsed
        if self.task.options.hours is not None:  # the lead's clock decides for all processes
            self.state.elapsed = self.group.lead_does(lambda: self.state.elapsed)

    def _done(self) -> float:
        """The share of the training that is over, by steps or by time."""
        state = self.state
        return state.course.done(self.task.options, step=state.step, elapsed_s=state.elapsed)

    def batches(self, first: int, last: int) -> Generator[TrainingBatch, None, None]:
        """Yields the augmented batches of steps."""
        return self.train.batches(
            range(first, last),
            patch_shape=self.task.configuration.drawn_shape,
            spec=self.spec,
        )

    def _finish_epoch(self) -> None:
        self.stepper.settle()
        state, start, options = self.state, time.monotonic(), self.task.options
        held_out = self._held_out()
        self.saver.wait()
        self._check_finite(held_out)
        seconds = time.monotonic() - start
        self._note_time()
        log = epoch_log(
            state, self.objective, held_out, iterations=options.iterations, seconds=seconds
        )
        state.logs.append(log)
        state.course = state.course.after(log, options, state.recipe, elapsed_s=state.elapsed)
        state.sums = self._no_sums()
        self.saver.save(self.state)
        self._tell(epoch_line(log, self.objective.names, epochs=self._epochs))
        if self.task.machine.tensorboard and self.group.leads:
            self.board.add(state.logs[-1])

    def _check_finite(self, held_out: HeldOut | None) -> None:
        """Refuses an epoch after which the network is useless, before it replaces the last state.

        Raises:
            AutoliverError: Weights, all held-out losses or the last training losses are not finite.
        """
        check_weights(self.task, self.state)
        if held_out is not None and held_out.loss is None:
            cases = first_few(sorted(set(held_out.not_finite)), _NAMED)
            raise diverged(self.task, self.state, f"the loss of held-out {cases} is not finite")
        if self._done() >= 1.0:
            check_end(self.task, self.state, judged=held_out is not None)

    def _held_out(self) -> HeldOut | None:
        """Scores patches of the held-out cases, the same ones after every epoch.

        None if no cases are held out.
        """
        if not self.task.validation:
            return None
        # A time budget may have ended the first epoch long before its last step.
        steps = min(self.task.options.iterations, self.state.step)
        return self.score_held_out(range(held_out_steps(steps)))

    def score_held_out(self, numbers: range) -> HeldOut:
        """Scores batches of the held-out cases."""
        self.group.share_buffers(self.state.result)
        shape = self.task.configuration.drawn_shape
        batches = self.held_out.batches(numbers, patch_shape=shape, spec=None)
        return score_held_out(self.stepper, batches, self.held_out)

    def _no_sums(self) -> EpochSums:
        return EpochSums(tally=Tally.empty(self.objective.lengths))

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
        path = self.task.files.resume
        saved = load_training_state(path)
        state = self._new_state(saved_recipe(saved, where=str(path)))
        state.restore(saved, where=str(path))
        logs = read_progress(self.task.files.progress)
        state.logs = [log for log in logs if log.step <= state.step]
        return state

    def _as_long_as(self, hours: float) -> TrainingState:
        """The state before the first step of the recipe for a time budget.

        Steps are timed with the network itself, which then gets its initial weights back: another
        one would be compiled again.
        """
        network = self.state.network
        initial = {name: each.clone() for name, each in network.state_dict().items()}
        options, steps = self.task.options, self._affordable_steps(hours)
        network.load_state_dict(initial)
        spec, recipe = self.task.configuration.network, choose_recipe(options, steps=steps)
        return begun_again(self.state, spec, recipe, options=options, sums=self._no_sums())

    def _affordable_steps(self, hours: float) -> int:
        """Estimates the steps that fit into a time budget by timing a few."""
        start = time.monotonic()
        for batch in self.batches(0, _PROBE_STEPS):
            self.stepper.take(batch)
            self.stepper.settle()
            if batch.number == 0:  # not timed: the first step also allocates memory
                start = time.monotonic()
        seconds = self.group.lead_does(lambda: time.monotonic() - start) / (_PROBE_STEPS - 1)
        return int(hours * 3600.0 / seconds)

    @property
    def _epochs(self) -> int:
        """Number of epochs at the end, unless a time budget ends the training earlier."""
        return -(-self.state.course.last_step(self.task.options) // self.task.options.iterations)

    def _tell(self, text: str) -> None:
        """Writes a line to train.log, and to stderr where that has no bar."""
        if self.group.leads:
            stderr = None if sys.stderr.isatty() else sys.stderr
            add_to_log(self.task.files.log, text, also=stderr)

    def _beginning(self) -> str:
        if self.state.step == 0:
            length = counted(self._epochs, "epoch")
            begins = f"{self.task.title}: begins on {self.task.device}, {length}"
            return begins + describe_weights(self.weights, self.learnt)
        return f"{self.task.title}: goes on after epoch {len(self.state.logs)}/{self._epochs}"


def _warn_if_long(task: FoldTask, steps: int, *, seconds: float, epochs: int) -> None:
    """Says what the first fold of a run will take on a CPU and what to do, if that is hours.

    Args:
        task: The fold.
        steps: Number of steps that are left.
        seconds: Seconds per step.
        epochs: Number of epochs at the end.
    """
    left = seconds * _HELD_OUT_TIME * steps
    others = {*task.folder.parent.glob("fold_*/progress.jsonl")} - {task.files.progress}
    if task.device.type != "cpu" or task.options.hours or left < _LONG_ON_CPU or others:
        return
    if task.group.leads:
        with TrainingBar.external_write_mode(file=sys.stderr):
            _log.warning(
                "About %s on this CPU for %s of this fold. To wait less: stop with Ctrl-C and "
                "begin again with --fresh and fewer --epochs, or with --hours H.%s",
                *(duration(left), counted(epochs, "epoch")),
                f" Or plan a smaller network: {task.smaller}" if task.smaller else "",
            )
