"""Recipes: optimisers and the course of their learning rates over a training."""

from typing import Literal

from autoliver.artifacts import Record

Optimiser = Literal["sgd", "adamw", "nadam"]
# "scratch" is another name for "nnunet"; "auto" chooses a recipe by the number of steps and by
# whether the training starts from the weights of a model.
Schedule = Literal["auto", "nnunet", "scratch", "finetune", "short", "adamw", "omnia"]

# How the cases of patches are drawn (`patches/sampling.py`).
SamplerKind = Literal["proportional", "sqrt", "balanced", "modality-balanced"]
# What is learnt of lesions with classes (`training/tasks.py`).
Task = Literal["segment", "classify", "ynet", "joint"]


class Recipe(Record, frozen=True, kw_only=True):
    """An optimiser and its learning rate over the training.

    The rate rises linearly to `learning_rate` during the first `warmup` share of the training and
    then follows `learning_rate * (1 - t) ** power`, where t is the finished share of the rest. If
    the rate changes by epoch, the warm-up is a whole number of epochs. With an `epoch_factor` the
    rate is multiplied by it after each epoch instead, whatever the length of the training.

    Attributes:
        optimizer: "sgd" (Nesterov, momentum 0.99), "adamw" or "nadam".
        learning_rate: Peak learning rate.
        weight_decay: Weight decay as the optimiser defines it.
        warmup: Warm-up as a share of the training, 0 to 1.
        warmup_epochs: Maximum length of the warm-up in epochs; None: no maximum.
        power: Exponent of the polynomial decay.
        epoch_factor: Factor of the rate after each epoch of an exponential decay; None: the decay
            is polynomial.
        per_step: Whether the rate changes every step rather than every epoch.
        average: Decay of the running mean of the weights, which is kept as the result; 0: no
            running mean.
        mirror: Whether patches are flipped along all axes. In a short training there is no time to
            learn mirrored anatomy as well (docs/RESULTS.md). Without flips, prediction need not
            average over flips either, which takes an eighth of the time.
        clip: Maximum norm that the gradients are clipped to.
        betas: Decays of the running means of AdamW and Nadam.
        transfer_share: Factor of the peak rate for a training that starts from the weights of
            another model instead of from scratch.
    """

    optimizer: Optimiser
    learning_rate: float
    weight_decay: float
    warmup: float = 0.0
    power: float = 0.9
    epoch_factor: float | None = None
    per_step: bool = False
    average: float = 0.0
    mirror: bool = True
    warmup_epochs: int | None = None
    clip: float = 12.0
    betas: tuple[float, float] = (0.9, 0.999)
    transfer_share: float = 1.0


# "nnunet" is the recipe of nnU-Net, "finetune" that of its PretrainedTrainer, and "adamw" that of
# Primus (Wald et al., 2025). "omnia" is that of Messaoudi et al. (2023), whose initial rate is not
# published: 1e-3 is assumed. The transfer share of "short" was measured on phantoms: with a third
# of the rate the network was as good on the target and forgot less of the source.
RECIPES: dict[str, Recipe] = {
    "nnunet": Recipe(optimizer="sgd", learning_rate=1e-2, weight_decay=3e-5),
    "finetune": Recipe(
        optimizer="sgd",
        learning_rate=1e-2,
        weight_decay=3e-5,
        warmup=0.1,
        warmup_epochs=50,
        transfer_share=0.1,
    ),
    "short": Recipe(
        optimizer="adamw",
        learning_rate=6e-3,
        weight_decay=1e-2,
        warmup=0.1,
        per_step=True,
        average=0.99,
        mirror=False,
        transfer_share=0.3,
    ),
    "adamw": Recipe(
        optimizer="adamw",
        learning_rate=3e-4,
        weight_decay=5e-2,
        warmup=0.1,
        warmup_epochs=50,
        clip=1.0,
        betas=(0.9, 0.98),
        transfer_share=1 / 3,
    ),
    "omnia": Recipe(optimizer="nadam", learning_rate=1e-3, weight_decay=0.0, epoch_factor=0.95),
}


def learning_rate(recipe: Recipe, done: float) -> float:
    """The learning rate of a polynomial decay when a share `done` (0 to 1) of it is over."""
    if done < recipe.warmup:
        return recipe.learning_rate * max(done, 1e-3) / recipe.warmup
    rest = (done - recipe.warmup) / (1.0 - recipe.warmup)
    return float(recipe.learning_rate * (1.0 - min(rest, 1.0)) ** recipe.power)


def epoch_rate(recipe: Recipe, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch, counted from 0, for a rate that changes by epoch.

    The last epoch of the warm-up has the peak rate.
    """
    warm = round(recipe.warmup * epochs)
    if epoch < warm:
        return recipe.learning_rate * (epoch + 1) / warm
    if recipe.epoch_factor is not None:
        return float(recipe.learning_rate * recipe.epoch_factor ** (epoch - warm))
    rest = (epoch - warm) / (epochs - warm)
    return float(recipe.learning_rate * (1.0 - min(rest, 1.0)) ** recipe.power)
