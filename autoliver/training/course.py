"""How far a training is, and the learning rate that goes with it.

A training follows its recipe, unless one of two things puts it on a `Stretch`: no progress for
`patience` epochs, and it goes to its end early, gradually rather than at once; or a finished one is
extended. On a stretch the rate falls to zero from where it is, with the recipe's power.
"""

import logging
import math

from autoliver.artifacts import Record
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import EpochLog
from autoliver.training.recipes import Recipe, epoch_rate, learning_rate

_log = logging.getLogger(__name__)

_MEAN_DECAY = 0.9  # nnU-Net's, of its running mean of the online Dice
# The cool-down takes this share of the epochs so far, and no fewer than these.
_COOL_SHARE = 0.1
_COOL_EPOCHS = 5


class Watch(Record, frozen=True, kw_only=True):
    """The running mean of what should rise (`EpochLog.watched`).

    Attributes:
        mean: So far.
        best: Its highest value.
        waited: Epochs since.
    """

    mean: float | None = None
    best: float | None = None
    waited: int = 0

    def after(self, log: EpochLog) -> "Watch":
        """The watch with one more epoch; one that says nothing is an epoch without progress."""
        value = log.watched
        if value is None:
            return self.replace(waited=self.waited + 1)
        mean = value if self.mean is None else _MEAN_DECAY * self.mean + (1 - _MEAN_DECAY) * value
        if self.best is None or mean > self.best:
            return Watch(mean=mean, best=mean)
        return self.replace(mean=mean, waited=self.waited + 1)


class Stretch(Record, frozen=True, kw_only=True):
    """Steps over which the rate falls to zero.

    Attributes:
        first_step: Its first.
        steps: How many.
        rate: At the first.
        extension: Which extension this is, from 1; 0: the end of a training without progress.
    """

    first_step: int
    steps: int
    rate: float
    extension: int = 0


class Course(Record, frozen=True, kw_only=True):
    """What decides on end and rate, besides options, recipe and the steps done.

    Attributes:
        watch: Watches the training itself; extensions always run to their end.
        stretch: None: the recipe alone decides.
    """

    watch: Watch = Watch()
    stretch: Stretch | None = None

    @property
    def extensions(self) -> int:
        """How many extensions were begun."""
        return 0 if self.stretch is None else self.stretch.extension

    def last_step(self, options: TrainingOptions) -> int:
        """The number of steps at the end, if no time budget ends it before."""
        if self.stretch is None:
            return options.steps
        return self.stretch.first_step + self.stretch.steps

    def done(self, options: TrainingOptions, *, step: int, elapsed_s: float) -> float:
        """The share that is over, by steps or by time; of an extension, of it alone by steps."""
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
        """The learning rate of the next step."""
        whole = step if recipe.per_step else step - step % options.iterations
        if self.stretch is not None:
            share = (whole - self.stretch.first_step) / self.stretch.steps
            return float(self.stretch.rate * (1.0 - min(share, 1.0)) ** recipe.power)
        if recipe.per_step or options.hours:
            return learning_rate(recipe, self.done(options, step=step, elapsed_s=elapsed_s))
        return epoch_rate(recipe, step // options.iterations, options.epochs)

    def after(
        self, log: EpochLog, options: TrainingOptions, recipe: Recipe, *, elapsed_s: float
    ) -> "Course":
        """The course with one more epoch: perhaps towards an early end from here on."""
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
            "No progress for %d epochs: the rate falls from %.3g to its end over %d epochs.",
            *(course.watch.waited, rate, cool),
        )
        return course.replace(
            stretch=Stretch(first_step=log.step, steps=cool * options.iterations, rate=rate)
        )

    def extended(self, options: TrainingOptions, recipe: Recipe, *, step: int) -> "Course | None":
        """The course of the next extension of a finished training; None: there is none.

        The rate starts again where a training that had been planned for all of these steps would
        be, and takes its way to the end.

        Args:
            options: The options of the training.
            recipe: The recipe of the training.
            step: Steps done, a multiple of those of an epoch.
        """
        if self.extensions >= len(options.extensions):
            return None
        epochs = options.extensions[self.extensions]
        steps = epochs * options.iterations
        # Not within the warm-up again, after no epochs or few.
        rate = learning_rate(recipe, max(step / (step + steps), recipe.warmup))
        _log.info(
            "%d epochs more, from %.3g on: %.0f %% of the highest rate.",
            *(epochs, rate, 100 * rate / recipe.learning_rate),
        )
        stretch = Stretch(first_step=step, steps=steps, rate=rate, extension=self.extensions + 1)
        return self.replace(stretch=stretch)
