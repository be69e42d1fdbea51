"""Optimisers and their learning rates over a training."""

from typing import Literal

from autoliver.artifacts import Record

Optimiser = Literal["sgd", "adamw"]
# "scratch" is another name of "nnunet"; "auto" decides by the number of steps and the weights.
Schedule = Literal["auto", "nnunet", "scratch", "finetune", "short", "adamw"]


class Recipe(Record, frozen=True, kw_only=True):
    """An optimiser and its learning rate over the training.

    The rate rises linearly to `learning_rate` during the first `warmup` share of the training and
    then follows `learning_rate * (1 - t) ** power`, t being the share of the rest that is done.
    Where it changes by epoch, the warm-up is a whole number of epochs.

    Attributes:
        optimizer: "sgd" (Nesterov, momentum 0.99) or "adamw".
        learning_rate: Peak rate.
        weight_decay: As the optimiser defines it.
        warmup: Share of the training, 0 to 1.
        warmup_epochs: Its length at most; None: as long as its share.
        power: Of the polynomial decay.
        per_step: Whether the rate changes every step rather than every epoch.
        average: Decay of the running mean of the weights that is kept as the result; 0: none.
        mirror: Whether patches are flipped along all axes. In a short training there is no time to
            learn mirrored anatomy as well (docs/RESULTS.md), and prediction need not average over
            flips: it takes an eighth of the time.
        clip: Norm that the gradients are cut to.
        betas: Decays of AdamW's running means.
        transfer_share: What the peak rate of a training that starts with another's weights is of
            that of one from scratch.
    """

    optimizer: Optimiser
    learning_rate: float
    weight_decay: float
    warmup: float = 0.0
    power: float = 0.9
    per_step: bool = False
    average: float = 0.0
    mirror: bool = True
    warmup_epochs: int | None = None
    clip: float = 12.0
    betas: tuple[float, float] = (0.9, 0.999)
    transfer_share: float = 1.0


# "nnunet" is nnU-Net's; "finetune" is that of its PretrainedTrainer, "adamw" that of Primus (Wald
# et al., 2025). The share of "short" is from phantoms: with a third of the rate nothing was lost on
# the target, and less forgotten of the source.
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
}


def learning_rate(recipe: Recipe, done: float) -> float:
    """The rate when a share `done` (0 to 1) of the training is over."""
    if done < recipe.warmup:
        return recipe.learning_rate * max(done, 1e-3) / recipe.warmup
    rest = (done - recipe.warmup) / (1.0 - recipe.warmup)
    return float(recipe.learning_rate * (1.0 - min(rest, 1.0)) ** recipe.power)


def epoch_rate(recipe: Recipe, epoch: int, epochs: int) -> float:
    """The rate of an epoch, counted from 0, where it changes by epoch; its warm-up ends on top."""
    warm = round(recipe.warmup * epochs)
    if epoch < warm:
        return recipe.learning_rate * (epoch + 1) / warm
    rest = (epoch - warm) / (epochs - warm)
    return float(recipe.learning_rate * (1.0 - min(rest, 1.0)) ** recipe.power)
