"""Tracks how much of a training is done and derives the learning rate from it.

A training follows its recipe until it enters a `Stretch`, during which the learning rate falls to
zero with the recipe's power. There are two reasons for a stretch: there was no progress for
`patience` epochs, so that the training ends early but gradually; or a finished training is
extended.
"""

import logging
import math

from autoliver.artifacts import Record
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import EpochLog
from autoliver.training.recipes import Recipe, epoch_rate, learning_rate
from autoliver.values import counted

_log = logging.getLogger(__name__)

_MEAN_DECAY = 0.9  # decay of nnU-Net's running mean of the online Dice
# The final stretch of an early end takes this share of the epochs so far, but at least
# _COOL_EPOCHS epochs.
_COOL_SHARE = 0.1
_COOL_EPOCHS = 5


class Watch(Record, frozen=True, kw_only=True):
    """The running mean of the value that measures progress (`EpochLog.watched`).

    Attributes:
        mean: Current running mean; None before the first value.
        best: Highest running mean so far; None before the first value.
        waited: Epochs since the highest running mean.
    """

    mean: float | None = None
    best: float | None = None
    waited: int = 0

    def after(self, log: EpochLog) -> "Watch":
        """The watch after one more epoch; an epoch without a value counts as without progress."""
        value = log.watched
        if value is None:
            return self.replace(waited=self.waited + 1)
        mean = value if self.mean is None else _MEAN_DECAY * self.mean + (1 - _MEAN_DECAY) * value
        if self.best is None or mean > self.best:
            return Watch(mean=mean, best=mean)
        return self.replace(mean=mean, waited=self.waited + 1)


class Stretch(Record, frozen=True, kw_only=True):
    """A range of steps over which the learning rate falls to zero.

    Attributes:
        first_step: Number of the first step.
        steps: Number of steps.
        rate: Learning rate at the first step.
        extension: Number of the extension, from 1; 0 for the early end of a training that made no
            progress.
    """

    first_step: int
    steps: int
    rate: float
    extension: int = 0


class Course(Record, frozen=True, kw_only=True):
    """What determines end and learning rate besides the options, the recipe and the steps done.

    Attributes:
        watch: Progress of the training before any extension; extensions always run to their end.
        stretch: The current stretch; None while the training follows the recipe alone.
    """

    watch: Watch = Watch()
    stretch: Stretch | None = None

    @property
    def extensions(self) -> int:
        """Number of extensions that were started."""
        return 0 if self.stretch is None else self.stretch.extension

    def last_step(self, options: TrainingOptions) -> int:
        """The number of steps at the end, unless a time budget ends the training earlier."""
        if self.stretch is None:
            return options.steps
        return self.stretch.first_step + self.stretch.steps

    def done(self, options: TrainingOptions, *, step: int, elapsed_s: float) -> float:
        """The share of the training that is over, by steps or by time, whichever is larger.

        On a stretch it is the share of the stretch's own steps. An early end is also over when the
        time budget is; extensions have no time budget.

        Args:
            options: The options of the training.
            step: Steps done.
            elapsed_s: Seconds spent in all sessions.
        """
        stretch = self.stretch
        by_time = elapsed_s / (options.hours * 3600.0) if options.hours else 0.0
        if stretch is None:
            return max(step / options.steps, by_time) if options.steps else 1.0
        by_steps = (step - stretch.first_step) / stretch.steps
        if stretch.extension or by_time < 1.0:
            return by_steps
        return 1.0

    def rate(
        self, options: TrainingOptions, recipe: Recipe, *, step: int, elapsed_s: float
    ) -> float:
        """The learning rate of the next step; arguments as for `done`."""
        whole = step if recipe.per_step else step - step % options.iterations
        if self.stretch is not None:
            share = (whole - self.stretch.first_step) / self.stretch.steps
            return float(self.stretch.rate * (1.0 - min(share, 1.0)) ** recipe.power)
        if recipe.epoch_factor is None and (recipe.per_step or options.hours):
            return learning_rate(recipe, self.done(options, step=step, elapsed_s=elapsed_s))
        return epoch_rate(recipe, step // options.iterations, options.epochs)

    def after(
        self, log: EpochLog, options: TrainingOptions, recipe: Recipe, *, elapsed_s: float
    ) -> "Course":
        """The course after one more epoch; without progress it now leads to an early end."""
        if options.patience is None or self.stretch is not None:
            return self
        course = self.replace(watch=self.watch.after(log))
        epochs = log.step / options.iterations
        cool = max(math.ceil(_COOL_SHARE * epochs), _COOL_EPOCHS)
        done = course.done(options, step=log.step, elapsed_s=elapsed_s)
        ends_anyway = done * (1 + cool / epochs) >= 1.0
        if course.watch.waited < options.patience or ends_anyway:
            return course
        rate = course.rate(options, recipe, step=log.step, elapsed_s=elapsed_s)
        _log.info(
            "No progress for %s: the learning rate falls from %.3g to zero over %s.",
            *(counted(course.watch.waited, "epoch"), rate, counted(cool, "epoch")),
        )
        return course.replace(
            stretch=Stretch(first_step=log.step, steps=cool * options.iterations, rate=rate)
        )

    def extended(self, options: TrainingOptions, recipe: Recipe, *, step: int) -> "Course | None":
        """The course of the next extension of a finished training; None if there is no further one.

        The learning rate restarts at the value that a training planned for the total number of
        steps would have here, and falls to zero by the end of the extension. This is also the end
        of a rate that falls by a factor per epoch.

        Args:
            options: The options of the training.
            recipe: The recipe of the training.
            step: Steps done, a multiple of the steps per epoch.
        """
        if self.extensions >= len(options.extensions):
            return None
        epochs = options.extensions[self.extensions]
        steps = epochs * options.iterations
        if recipe.epoch_factor is not None:
            epoch = step // options.iterations
            rate = epoch_rate(recipe, epoch, epoch + epochs)
        else:
            # After few epochs or none, the rate must not restart within the warm-up.
            rate = learning_rate(recipe, max(step / (step + steps), recipe.warmup))
        _log.info(
            "Extending by %s, from a learning rate of %.3g: %.0f %% of the peak rate.",
            *(counted(epochs, "epoch"), rate, 100 * rate / recipe.learning_rate),
        )
        stretch = Stretch(first_step=step, steps=steps, rate=rate, extension=self.extensions + 1)
        return self.replace(stretch=stretch)
