"""How a fold is trained, as a value: saved beside the run, compared when it is taken up again."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from autoliver.artifacts import Artifact, Record
from autoliver.errors import OptionError
from autoliver.planning.plan import Configuration
from autoliver.training.augment_choice import parse_augment

Schedule = Literal["auto", "nnunet", "short"]
Optimiser = Literal["sgd", "adamw"]
LossKind = Literal["dice-ce", "dice-topk", "dice-focal"]

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
        augment: Augmentations applied to training patches: "default", "none", or changes of
            appearance on top of the default (`training/augment_choice.py`).
        seed: Of weights, patches and augmentations.
        foreground: Share of the patches of a batch that must show foreground.
        loss: Dice with the mean cross-entropy, with that of the hardest tenth of the voxels, or
            with the focal loss.
        lr: Peak learning rate; None: the recipe's.
        optimiser: None: the recipe's. Another one comes with the rate and weight decay of the
            recipe that uses it.
        mirror: Whether patches are flipped; None: the recipe's.
        batch_size: Patches per step; None: the plan's.
        patch: Patch shape in the order of the plan's axes; None: the plan's.
        patience: Epochs without a better running mean (`training/course.py`) after which the rate
            falls to its end early; None: never.
        deterministic: Whether every operation gives the same bits again on the same machine.
        extensions: Epochs that were added after the end, one number for each time.
    """

    KIND: ClassVar[str] = "options"

    epochs: int = 1000
    iterations: int = 250
    hours: float | None = None
    schedule: Schedule = "auto"
    augment: str = "default"
    seed: int = 0
    foreground: float = 0.33
    loss: LossKind = "dice-ce"
    lr: float | None = None
    optimiser: Optimiser | None = None
    mirror: bool | None = None
    batch_size: int | None = None
    patch: tuple[int, ...] | None = None
    patience: int | None = None
    deterministic: bool = False
    extensions: tuple[int, ...] = ()

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

    optimizer: Optimiser
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
    """The recipe of `options.schedule` with what the options override; "auto" goes by the steps.

    Args:
        options: The training's options. With changes of appearance nothing is mirrored by default.
        steps: Steps that will be done, where a time budget allows fewer than `options.steps`.
    """
    name = options.schedule
    if name == "auto":
        planned = options.steps if steps is None else min(steps, options.steps)
        name = "short" if planned < SHORT_BELOW_STEPS else "nnunet"
    recipe = RECIPES[name]
    if options.optimiser is not None:
        # A rate for one optimiser is no rate for the other.
        like = next(r for r in RECIPES.values() if r.optimizer == options.optimiser)
        recipe = recipe.replace(
            optimizer=like.optimizer,
            learning_rate=like.learning_rate,
            weight_decay=like.weight_decay,
        )
    if options.lr is not None:
        recipe = recipe.replace(learning_rate=options.lr)
    if options.mirror is not None:
        recipe = recipe.replace(mirror=options.mirror)
    elif parse_augment(options.augment):
        # Where contrasts do not tell, left and right are what tells liver from spleen.
        recipe = recipe.replace(mirror=False)
    return recipe


def learning_rate(recipe: Recipe, done: float) -> float:
    """The rate when a share `done` (0 to 1) of the training is over."""
    if done < recipe.warmup:
        return recipe.learning_rate * max(done, 1e-3) / recipe.warmup
    rest = (done - recipe.warmup) / (1.0 - recipe.warmup)
    return float(recipe.learning_rate * (1.0 - min(rest, 1.0)) ** recipe.power)


def changed_configuration(configuration: Configuration, options: TrainingOptions) -> Configuration:
    """The configuration with the patch and batch that the options ask for, and the new reasons.

    Raises:
        OptionError: The network cannot take such patches; the nearest that it can are named.
    """
    changes: dict[str, object] = {}
    reasons = dict(configuration.reasons)
    if options.batch_size is not None:
        changes["batch_size"] = options.batch_size
        reasons["batch"] = f"{options.batch_size}, as --batch-size asked for."
    if options.patch is not None:
        _check_patch(options.patch, configuration)
        changes["patch_shape"] = options.patch
        reasons["patch"] = f"{_times(options.patch)} voxels, as --patch asked for."
    return configuration.replace(**changes, reasons=reasons) if changes else configuration


def _check_patch(patch: tuple[int, ...], configuration: Configuration) -> None:
    given = ",".join(str(n) for n in patch)
    if len(patch) != configuration.dimension:
        raise OptionError(
            f"--patch {given} has {len(patch)} sizes; the configuration has "
            f"{configuration.dimension} axes.",
            hint=f"The plan's patch is {','.join(str(n) for n in configuration.patch_shape)}.",
        )
    strides = configuration.network.total_stride
    nearest = [max(1, round(n / s)) for n, s in zip(patch, strides, strict=True)]
    # A single value at the bottleneck could not be normalised.
    nearest[-1] = max(nearest[-1], 2) if math.prod(nearest) == 1 else nearest[-1]
    fitting = tuple(n * s for n, s in zip(nearest, strides, strict=True))
    if patch != fitting:
        raise OptionError(
            f"--patch {given}: the network halves patches until they are {_times(strides)} times "
            "smaller; sizes must be multiples of that, and leave more than one voxel.",
            hint=f"The nearest is --patch {','.join(str(n) for n in fitting)}.",
        )


def _times(sizes: Sequence[int]) -> str:
    return "x".join(str(n) for n in sizes)


def flag_name(name: str) -> str:
    """The option of `train` that sets a field: batch-size."""
    return name.replace("_", "-")


def flag(name: str, value: object) -> str:
    """A field of the options as it is given to `train`: --batch-size 4, --no-mirror."""
    words = flag_name(name)
    if value is None:
        return f"the default --{words}"
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    if isinstance(value, tuple):
        value = ",".join(str(v) for v in value)
    return f"--{words} {value}"


def check_options(options: TrainingOptions) -> None:
    """Refuses options that cannot train.

    Raises:
        OptionError: Naming the option, its value and what it may be.
    """
    for name in ("epochs", "iterations", "batch_size", "patience"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise OptionError(f"--{flag_name(name)} is {value}; it must be at least 1.")
    for name in ("hours", "lr"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise OptionError(f"--{name} is {value}; it must be a number above 0.")
    if options.seed < 0:
        raise OptionError(f"--seed is {options.seed}; it must be at least 0.")
    _check_together(options)


def _check_together(options: TrainingOptions) -> None:
    """Refuses options that contradict each other."""
    parse_augment(options.augment)
    if options.mirror and options.augment == "none":
        raise OptionError(
            "--mirror asks for flipped patches, --augment none for none.",
            hint="Leave one of them out.",
        )
    if options.deterministic and options.hours is not None:
        raise OptionError(
            "--deterministic cannot be kept with --hours: the clock would decide on the rate.",
            hint="Give --epochs instead.",
        )
