"""How a fold is trained, as a value: saved beside the run, compared when it is taken up again."""

import math
from typing import ClassVar, Literal

from autoliver.artifacts import Artifact, Record
from autoliver.errors import OptionError

Schedule = Literal["auto", "nnunet", "short"]
Augmentation = Literal["default", "none"]

# Below this many steps the adaptive recipe wins on real data (docs/RESULTS.md).
SHORT_BELOW_STEPS = 20_000


class TrainingOptions(Artifact, frozen=True, kw_only=True):
    """Everything that decides what a training ends with, besides the plan and the data.

    Attributes:
        epochs: Number of epochs.
        iterations: Optimiser steps per epoch.
        hours: Time budget; the learning rate reaches its end when the first of epochs and hours
            does. None: epochs alone decide.
        schedule: "nnunet", "short", or "auto" (by the number of steps).
        augment: Augmentations applied to training patches.
        seed: Of weights, patches and augmentations.
        foreground: Share of the patches of a batch that must show foreground.
    """

    KIND: ClassVar[str] = "options"

    epochs: int = 1000
    iterations: int = 250
    hours: float | None = None
    schedule: Schedule = "auto"
    augment: Augmentation = "default"
    seed: int = 0
    foreground: float = 0.33

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.iterations


class Recipe(Record, frozen=True, kw_only=True):
    """An optimiser and its learning rate over the training.

    The rate rises linearly to `learning_rate` during the first `warmup` share of the training and
    then follows `learning_rate * (1 - t) ** power`, t being the share of the rest that is done.

    Attributes:
        optimizer: "sgd" (Nesterov, momentum 0.99) or "adamw".
        learning_rate: Peak rate.
        weight_decay: As the optimiser defines it.
        warmup: Share of the training, 0 to 1.
        power: Of the polynomial decay.
        per_step: Whether the rate changes every step rather than every epoch.
        average: Decay of the running mean of the weights that is kept as the result; 0: none.
        mirror: Whether patches are flipped along all axes. In a short training there is no time to
            learn mirrored anatomy as well (docs/RESULTS.md), and prediction need not average over
            flips: it takes an eighth of the time.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    warmup: float = 0.0
    power: float = 0.9
    per_step: bool = False
    average: float = 0.0
    mirror: bool = True


RECIPES: dict[str, Recipe] = {
    "nnunet": Recipe(optimizer="sgd", learning_rate=1e-2, weight_decay=3e-5),
    "short": Recipe(
        optimizer="adamw",
        learning_rate=6e-3,
        weight_decay=1e-2,
        warmup=0.1,
        per_step=True,
        average=0.99,
        mirror=False,
    ),
}


def choose_recipe(options: TrainingOptions, *, steps: int | None = None) -> Recipe:
    """The recipe of `options.schedule`; "auto" goes by the number of steps.

    Args:
        options: The training's options.
        steps: Steps that will be done, where a time budget allows fewer than `options.steps`.
    """
    if options.schedule != "auto":
        return RECIPES[options.schedule]
    planned = options.steps if steps is None else min(steps, options.steps)
    return RECIPES["short" if planned < SHORT_BELOW_STEPS else "nnunet"]


def learning_rate(recipe: Recipe, done: float) -> float:
    """The rate when a share `done` (0 to 1) of the training is over."""
    if done < recipe.warmup:
        return recipe.learning_rate * max(done, 1e-3) / recipe.warmup
    rest = (done - recipe.warmup) / (1.0 - recipe.warmup)
    return float(recipe.learning_rate * (1.0 - min(rest, 1.0)) ** recipe.power)


def check_options(options: TrainingOptions) -> None:
    """Refuses options that cannot train.

    Raises:
        OptionError: Naming the option, its value and what it may be.
    """
    for name, value in (("--epochs", options.epochs), ("--iterations", options.iterations)):
        if value < 1:
            raise OptionError(f"{name} is {value}; it must be at least 1.")
    if options.hours is not None and not 0 < options.hours < math.inf:
        raise OptionError(f"--hours is {options.hours}; it must be a number above 0.")
    if options.seed < 0:
        raise OptionError(f"--seed is {options.seed}; it must be at least 0.")
