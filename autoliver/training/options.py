"""The training options as a value: saved with the run, and compared when the run is resumed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import msgspec
import numpy as np

from autoliver.artifacts import Artifact, Fault, Readable
from autoliver.datasets.folds import Fold
from autoliver.errors import OptionError, WrongValue
from autoliver.planning.plan import Configuration
from autoliver.training.augment.choice import as_stored, parse_augment
from autoliver.training.objectives.choice import (
    DEFAULT_OBJECTIVE,
    check_class_weights,
    check_objective,
    weights_of_classes,
)
from autoliver.training.recipes import RECIPES, Optimiser, Recipe, SamplerKind, Schedule, Task
from autoliver.transfer.table import IMAGENET, Heads, Inflation
from autoliver.values import (
    MOST,
    check_known,
    check_number,
    check_type,
    check_whole,
    counted,
    flag_of,
    natural,
    set_field,
)

# Below this number of steps, the adaptive recipe is better on real data (docs/RESULTS.md).
SHORT_BELOW_STEPS = 20_000
# A pretrained network needs fewer epochs, and few cases are soon memorised.
PRETRAINED_EPOCHS = 300
FEW_EPOCHS = 150
FEW_CASES = 30
# After 100 epochs the rate of "omnia" is at 0.6 % of its peak; the paper trained for fewer.
_OMNIA_EPOCHS = 100
# The largest seed that PyTorch's generators accept.
_MOST_SEED = 2**63 - 1
# Larger than what is between an organ and the end of most scans.
_MOST_MARGIN_MM = 200.0
_OPTIMISERS: dict[Optimiser, str] = {"sgd": "SGD", "adamw": "AdamW", "nadam": "Nadam"}


class TrainingOptions(Artifact, frozen=True, kw_only=True):
    """Everything besides the plan and the data that determines the result of a training.

    Attributes:
        epochs: Number of epochs, without extensions.
        iterations: Optimiser steps per epoch.
        hours: Time budget in hours; the training ends, and the learning rate reaches its end, as
            soon as either epochs or hours are used up. None: epochs alone decide.
        schedule: Name of a recipe of `training/recipes.py`; "scratch" is another name for "nnunet",
            and "auto" chooses by the number of steps and by the initial weights.
        augment: Augmentations of training patches: "default", "none", or changes of appearance
            besides the default ones (`training/augment/choice.py`).
        seed: Seed of initial weights, patches and augmentations.
        fold_seeds: Whether each fold has a seed of its own, made from `seed` (`of_fold`). Runs that
            earlier versions have begun share one seed, and so the initial weights.
        foreground: Share of the patches of a batch that must show foreground, 0 to 1.
        sampler: How cases of several sources or modalities are drawn for patches
            (`training/patches/sampling.py`).
        loss: Name of the objective (`training/objectives/choice.py`).
        task: What is learnt of lesions with classes (`training/tasks.py`); None: all labels as
            they are.
        lesion_classes: The labels that are classes of lesions; empty: those whose names say so.
        cls_weight: Weight of the class of lesions in the loss of the task "ynet".
        class_weights: Weight of each class in the cross-entropy, background first; "balanced": by
            how rare its voxels are in the training cases (`objectives/weights.py`); None: all
            alike.
        roi: The label on whose box patches lie (`patches/region.py`); None: anywhere.
        roi_from: The model that finds this label; None: `roi_truth`.
        roi_truth: Whether the boxes come from the reference labels instead.
        roi_margin_mm: By how much the boxes are grown on each side.
        pseudo_weight: Weight of pseudo-labels in the loss, 0 to 1; drawn labels have 1.
        outside_negative: Distance in mm from a label beyond which the labels that lie in it are
            learnt as absent where nobody has annotated them; None: they are not learnt there.
        lr: Peak learning rate; None: the recipe's.
        optimiser: "sgd", "adamw" or "nadam"; None: the recipe's. If it differs from the recipe's,
            learning rate and weight decay come from a recipe that uses it.
        mirror: Whether patches are flipped; None: the recipe decides.
        batch_size: Patches per step; None: the plan's.
        patch: Patch shape in the order of the plan's axes; None: the plan's.
        patience: Number of epochs without a better running mean (`training/course.py`) after which
            the training ends early; None: it never does.
        deterministic: Whether every operation is reproducible bit by bit on the same machine.
        extensions: Epochs added after the end, one number per extension.
        pretrained: Name of the model whose weights the training starts from; None: random
            initialisation.
        freeze: Parts of the network that keep the initial weights (`training/freezing.py`); None:
            no part does.
        unfreeze: Frozen parts with the epoch from which they are trained; None: all of them stay
            frozen.
        encoder_factor: Factor of the encoder's learning rate relative to the rest of the network.
        layer_decay: Factor of the learning rate of a part relative to the next one towards the
            output (`training/rates.py`), above 0 and at most 1.
        heads: "map": rows of the heads are taken from the source by label; "reset": they are
            initialised at random.
        inflate: How kernels of a source are carried between 2D and 3D (`transfer/inflate.py`);
            None: chosen by the spacing, or not needed.
        replay: The dataset whose cases are replayed; None: none is.
        replay_share: Share of the patches that are drawn from its cases, above 0 and below 1.
        replay_warmup: Number of epochs at the beginning in which all patches are drawn from them.
        keep_source: Share of the tuned weights in the final ones, 0 to 1; the rest is the source's.
            "auto" chooses it by the held-out cases; None: the final weights are the tuned ones.
        ema: Decay of the running mean of the weights, at least 0 and below 1; 0: no running mean;
            None: the recipe's.
    """

    KIND: ClassVar[str] = "options"

    epochs: int = 1000
    iterations: int = 250
    hours: float | None = None
    schedule: Schedule = "auto"
    augment: str = "default"
    seed: int = 0
    fold_seeds: bool = False
    foreground: float = 0.33
    sampler: SamplerKind = "proportional"
    loss: str = DEFAULT_OBJECTIVE
    task: Task | None = None
    lesion_classes: tuple[str, ...] = ()
    cls_weight: float = 0.5
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    roi: str | None = None
    roi_from: str | None = None
    roi_truth: bool = False
    roi_margin_mm: float = 10.0
    pseudo_weight: float = 0.5
    outside_negative: float | None = None
    lr: float | None = None
    optimiser: Optimiser | None = None
    mirror: bool | None = None
    batch_size: int | None = None
    patch: tuple[int, ...] | None = None
    patience: int | None = None
    deterministic: bool = False
    extensions: tuple[int, ...] = ()
    pretrained: str | None = None
    freeze: str | None = None
    unfreeze: str | None = None
    encoder_factor: float = 1.0
    layer_decay: float = 1.0
    heads: Heads = "map"
    inflate: Inflation | None = None
    replay: str | None = None
    replay_share: float = 0.5
    replay_warmup: int = 0
    keep_source: float | Literal["auto"] | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        set_field(self, "loss", check_objective(self.loss))

    @classmethod
    def load(cls, path: Readable, *, mend: str = "", hint: str = "") -> Self:
        """Reads the options of a run, as `Artifact.load`; words mean what they meant to it."""
        found = super().load(path, mend=mend, hint=hint)
        return found.replace(augment=as_stored(found.augment))

    def faults(self) -> Iterator[Fault]:
        """Yields the first option with which no training is possible."""
        try:
            check_options(self)
        except OptionError as error:
            yield "options", error.problem.removesuffix(".")

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training, without extensions."""
        return self.epochs * self.iterations

    def of_fold(self, fold: Fold) -> Self:
        """The options with the seed of a fold; fold 0 and fold `all` keep the seed as it is."""
        if not self.fold_seeds or fold == "all" or fold == 0:
            return self
        # The state has 64 bits; the largest seed has 63.
        (seed,) = np.random.SeedSequence((self.seed, fold)).generate_state(1, np.uint64)
        return self.replace(seed=int(seed) & _MOST_SEED)


# Recipe and another optimiser -> the recipe that provides the learning rate if --optimiser is
# given: a rate for one optimiser does not suit the other.
_LIKE: dict[tuple[str, Optimiser], str] = {
    ("nnunet", "adamw"): "short",
    ("short", "sgd"): "nnunet",
    ("finetune", "adamw"): "adamw",
    ("adamw", "sgd"): "finetune",
    ("omnia", "sgd"): "nnunet",
    ("omnia", "adamw"): "adamw",
    **{(name, "nadam"): "omnia" for name in ("nnunet", "short", "finetune", "adamw")},
}


def default_epochs(pretrained: str | None, cases: int, *, schedule: str = "auto") -> int:
    """The number of epochs of a training if none is given.

    Args:
        pretrained: Name of the pretrained model, as in `TrainingOptions`.
        cases: Number of training cases.
        schedule: Name of the schedule, as in `TrainingOptions`.
    """
    if schedule == "omnia":
        return _OMNIA_EPOCHS
    if pretrained is None:
        return TrainingOptions().epochs
    return FEW_EPOCHS if cases < FEW_CASES else PRETRAINED_EPOCHS


def choose_recipe(options: TrainingOptions, *, steps: int | None = None) -> Recipe:
    """The recipe of `options.schedule`, with the values that other options override.

    Args:
        options: The training's options. With changes of appearance, patches are not mirrored by
            default.
        steps: Steps that the time budget allows, if these are fewer than `options.steps`; None: no
            such limit.
    """
    planned = options.steps if steps is None else min(steps, options.steps)
    name = _recipe_name(options, planned)
    recipe = RECIPES[name]
    if options.optimiser is not None and options.optimiser != recipe.optimizer:
        like = RECIPES[_LIKE[name, options.optimiser]]
        recipe = recipe.replace(
            optimizer=like.optimizer,
            learning_rate=like.learning_rate,
            weight_decay=like.weight_decay,
            clip=like.clip,
            betas=like.betas,
            transfer_share=like.transfer_share,
        )
    if recipe.warmup_epochs is not None and planned:
        longest = recipe.warmup_epochs * options.iterations / planned
        recipe = recipe.replace(warmup=min(recipe.warmup, longest))
    if options.lr is not None:
        recipe = recipe.replace(learning_rate=options.lr)
    elif options.pretrained not in (None, IMAGENET):  # of that, the decoder is drawn at random
        recipe = recipe.replace(learning_rate=recipe.learning_rate * recipe.transfer_share)
    if options.ema is not None:
        recipe = recipe.replace(average=options.ema)
    if options.mirror is not None:
        recipe = recipe.replace(mirror=options.mirror)
    elif parse_augment(options.augment):
        # Without a known contrast, the side of the body is what distinguishes liver and spleen.
        recipe = recipe.replace(mirror=False)
    return recipe


def _recipe_name(options: TrainingOptions, steps: int) -> str:
    if options.schedule == "auto":
        if steps < SHORT_BELOW_STEPS:
            return "short"
        return "nnunet" if options.pretrained is None else "finetune"
    return "nnunet" if options.schedule == "scratch" else options.schedule


def why_schedule(options: TrainingOptions, cases: int) -> str:
    """Says in one sentence which recipe the training follows and why.

    Args:
        options: The training's options.
        cases: Number of training cases.
    """
    name, recipe = _recipe_name(options, options.steps), choose_recipe(options)
    if options.steps == 0:
        return f"No epochs: the model keeps the weights of {options.pretrained} as they are."
    if options.schedule == "auto" and options.hours is not None:
        return (
            "The schedule is chosen by the number of steps that --hours allows, once some of them "
            "have been timed."
        )
    why = ""
    if options.schedule == "auto" and name == "short":
        why = f" (a short training: nnU-Net's own needs {SHORT_BELOW_STEPS:,} steps)"
    elif options.schedule == "auto" and name == "nnunet":
        why = " (as nnU-Net does)"
    elif options.schedule == "auto":
        why = f" (fine-tuning of {options.pretrained})"
    length = f"{counted(options.epochs, 'epoch')} of {counted(options.iterations, 'step')}"
    few_default, many_default, own_default = (
        default_epochs(options.pretrained, count, schedule=options.schedule)
        for count in (FEW_CASES - 1, FEW_CASES, cases)
    )
    if few_default != many_default and options.epochs == own_default:
        few = "fewer than" if cases < FEW_CASES else "at least"
        length += f" for {counted(cases, 'training case')} ({few} {FEW_CASES})"
    return (
        f"Training for {length}, --schedule {name}{why}: {_OPTIMISERS[recipe.optimizer]}, highest "
        f"learning rate {recipe.learning_rate:.3g}."
    )


def changed_configuration(configuration: Configuration, options: TrainingOptions) -> Configuration:
    """The configuration with the patch and batch size of the options, and reasons for them.

    Raises:
        OptionError: The network cannot process patches of this shape; the hint names the nearest
            shape that it can.
    """
    changes: dict[str, object] = {}
    # The texts of the reasons count in the digest of the model's plan: they must stay as they are.
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
            f"--patch {given} has {counted(len(patch), 'size')}; the configuration has "
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
            f"--patch {given}: the network reduces the size of patches by a factor of "
            f"{_times(strides)}; sizes must be multiples of it, and leave more than one voxel.",
            hint=f"The nearest is --patch {','.join(str(n) for n in fitting)}.",
        )


def _times(sizes: Sequence[int]) -> str:
    return "x".join(str(n) for n in sizes)


_WITHOUT_FLAG: dict[str, dict[object, str]] = {
    "heads": {"map": "mapped heads", "reset": "--reset-heads"},
    "pretrained": {None: "weights drawn at random"},
    "freeze": {None: "nothing frozen"},
    "unfreeze": {None: "nothing to thaw"},
    "replay": {None: "no replayed cases"},
    "keep_source": {None: "the tuned weights alone"},
    "roi": {None: "whole scans"},
    "roi_from": {None: "no model that finds the region"},
    "roi_truth": {False: "regions that a model finds"},
}


def flag(name: str, value: object) -> str:
    """Writes a field and its value as given to `train`: --batch-size 4, --no-mirror.

    Some values cannot be given as an option: they are described in words.
    """
    option = flag_of(name)
    if value in _WITHOUT_FLAG.get(name, {}):
        return _WITHOUT_FLAG[name][value]
    if value is None:
        return f"the default {option}"
    if isinstance(value, bool):
        return option if value else f"--no-{option.removeprefix('--')}"
    if isinstance(value, tuple):
        value = ",".join(str(v) for v in value)
    return f"{option} {value}"


def patch_sizes(value: object) -> tuple[int, ...]:
    """Reads the sizes of a patch.

    Args:
        value: Text such as "96,160,160", or a list or tuple of whole numbers.

    Raises:
        OptionError: The value is neither.
    """
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    sizes = [natural(part) for part in parts] if isinstance(parts, list | tuple) else []
    known = tuple(size for size in sizes if size is not None)
    if not sizes or len(known) < len(sizes):
        raise WrongValue(
            f"--patch: {value!r} is not a list of sizes such as 96,160,160.",
            hint="Give one size for each axis of the plan.",
        )
    return known


def label_names(value: object) -> tuple[str, ...]:
    """Reads the names of labels.

    Args:
        value: Text such as "cyst,hemangioma", or a list or tuple of names.

    Raises:
        OptionError: The value is neither, or names a label twice.
    """
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    names = parts if isinstance(parts, list | tuple) else []
    known = tuple(name for name in names if isinstance(name, str) and name)
    if not known or len(set(known)) < len(names):
        raise WrongValue(
            f"--lesion-classes: {value!r} is not a list of different labels.",
            hint="Give their names with commas between them: cyst,hemangioma.",
        )
    return known


def given_options(given: Mapping[str, object]) -> TrainingOptions:
    """Makes options from some given fields; the other fields have their defaults.

    Args:
        given: As for `typed_options`.

    Raises:
        OptionError: As for `typed_options`.
    """
    return TrainingOptions(**typed_options(given))


def typed_options(given: Mapping[str, object]) -> dict[str, Any]:
    """Converts given fields of `TrainingOptions` to their types, and words to their spelling.

    Args:
        given: Field -> value, of any type.

    Raises:
        OptionError: An option does not exist, or its value has the wrong type; the message names
            the option, the value and what is allowed.
    """
    kinds = {field.name: field.type for field in msgspec.structs.fields(TrainingOptions)}
    check_known(given, kinds, of="train")
    read = {
        "patch": patch_sizes,
        "class_weights": weights_of_classes,
        "lesion_classes": label_names,
    }
    plain = {n: read[n](value) if value and n in read else value for n, value in given.items()}
    return {name: check_type(flag_of(name), value, kinds[name]) for name, value in plain.items()}


def check_options(options: TrainingOptions) -> None:
    """Refuses options with which no training is possible.

    Raises:
        OptionError: An option is invalid; the message names it, its value and what is allowed.
    """
    for name in ("epochs", "iterations", "batch_size", "patience"):
        value = getattr(options, name)
        if value is not None:
            least = 0 if name == "epochs" and options.pretrained is not None else 1
            check_whole(flag_of(name), value, least=least)
    for name in ("hours", "lr", "encoder_factor"):
        value = getattr(options, name)
        if value is not None:
            check_number(flag_of(name), value, above=0)
    check_number("--foreground", options.foreground, least=0, most=1)
    _check_ema(options.ema)
    check_number("--layer-decay", options.layer_decay, above=0, most=1)
    check_number("--pseudo-weight", options.pseudo_weight, least=0, most=1)
    _check_task(options)
    if options.outside_negative is not None:
        check_number("--outside-negative", options.outside_negative, least=0)
    check_whole("--seed", options.seed, least=0, most=_MOST_SEED)
    if options.patch is not None and not all(0 < size <= MOST for size in options.patch):
        given = ",".join(map(str, options.patch))
        raise WrongValue(
            f"--patch {given}: every size must be from 1 to {MOST}.",
            hint="Give sizes such as 96,160,160, or leave it out for those of the plan.",
        )
    _check_together(options)
    if options.pretrained is None:
        _check_from_scratch(options)


def _check_task(options: TrainingOptions) -> None:
    """Refuses options about classes of lesions that the task has no use for."""
    check_number("--cls-weight", options.cls_weight, above=0)
    default = TrainingOptions()
    if options.task is None and options.lesion_classes:
        raise OptionError(
            "--lesion-classes says which labels a --task tells apart, but no task is given.",
            hint="Add --task joint, or leave it out.",
        )
    if options.task == "classify" and options.keep_source == "auto":
        raise OptionError(
            "--keep-source auto chooses by the Dice of held-out cases, which means nothing for "
            "--task classify.",
            hint="Give a share such as --keep-source 0.7, or leave it out.",
        )
    if options.task == "classify" and options.loss != DEFAULT_OBJECTIVE:
        raise OptionError(
            f"--loss {options.loss} is one of segmentation, which --task classify does not learn.",
            hint="Leave it out: the class has the cross-entropy.",
        )
    if options.task == "classify" and options.class_weights is not None:
        raise OptionError(
            "--class-weights weighs the classes of voxels, which --task classify does not learn.",
            hint="Leave it out.",
        )
    if options.task != "ynet" and options.cls_weight != default.cls_weight:
        raise OptionError(
            "--cls-weight weighs the class against the segmentation, which --task ynet alone has.",
            hint="Leave it out.",
        )


def _check_ema(decay: float | None) -> None:
    """Refuses decays with which the mean would never move."""
    if decay is not None and check_number("--ema", decay, least=0) >= 1:
        raise WrongValue(
            f"--ema {decay:g} would keep the initial weights for ever; it must be below 1.",
            hint="0.999 is the mean of about the last 1000 steps; 0 keeps no mean.",
        )


def _check_from_scratch(options: TrainingOptions) -> None:
    """Refuses options that make sense only for the weights of a trained model."""
    default = TrainingOptions()
    for name in (
        *("freeze", "unfreeze", "encoder_factor", "layer_decay"),
        *("heads", "inflate", "keep_source"),
    ):
        value = getattr(options, name)
        if value != getattr(default, name):
            raise OptionError(
                f"{flag(name, value)} is for weights of a trained model; this training starts from "
                "random weights, which are not worth keeping.",
                hint="Name a model with --pretrained, or leave the option out.",
            )


def _check_roi(options: TrainingOptions) -> None:
    """Refuses a region of interest that nothing says how to find, and the reverse."""
    default = TrainingOptions()
    margin = check_number("--roi-margin-mm", options.roi_margin_mm, least=0)
    if margin > _MOST_MARGIN_MM:
        raise WrongValue(
            f"--roi-margin-mm {margin:g}: at most {_MOST_MARGIN_MM:g}, beyond which the region "
            "would be the whole scan.",
            hint="10 is usual; leave out --roi to train on whole scans.",
        )
    if options.roi is None:
        for name in ("roi_from", "roi_truth", "roi_margin_mm"):
            value = getattr(options, name)
            if value != getattr(default, name):
                raise OptionError(
                    f"{flag(name, value)} says where the region of --roi comes from or ends, but "
                    "--roi is not given.",
                    hint="Name the label with --roi, such as --roi liver, or leave it out.",
                )
    elif options.roi_from is None and not options.roi_truth:
        raise OptionError(
            f"--roi {options.roi} does not say what finds this label.",
            hint="Name a trained model with --roi-from MODEL, which later predictions need as "
            "well. --roi-truth takes the reference labels, which new cases do not have.",
        )
    elif options.roi_from is not None and options.roi_truth:
        raise OptionError(
            "--roi-from and --roi-truth contradict each other: a region comes from a model or from "
            "the reference labels.",
            hint="Leave one of them out.",
        )


def _check_together(options: TrainingOptions) -> None:
    """Refuses options that contradict each other."""
    parse_augment(options.augment)
    check_class_weights(options)
    _check_roi(options)
    share = options.replay_share
    if not 0 < share < 1:
        raise WrongValue(
            f"--replay-share {share:g}: expected a number above 0 and below 1.",
            hint="0.5 draws half of the patches from the replayed cases.",
        )
    if options.replay is None and share != TrainingOptions().replay_share:
        raise OptionError(
            f"--replay-share {share:g} is the share of the patches from replayed cases, but none "
            "are replayed.",
            hint="Name their dataset with --replay, or leave the option out.",
        )
    check_whole("--synthetic-warmup", options.replay_warmup, least=0)
    if options.replay is None and options.replay_warmup:
        raise OptionError(
            f"--synthetic-warmup {options.replay_warmup}: there are no synthetic cases to begin "
            "with.",
            hint="Name their dataset with --synthetic, or leave the option out.",
        )
    if options.keep_source not in (None, "auto"):
        check_number("--keep-source", options.keep_source, least=0, most=1)
    if options.mirror and options.augment == "none":
        raise OptionError(
            "--mirror asks for flipped patches, but --augment none allows no augmentation.",
            hint="Leave one of them out.",
        )
    if options.deterministic and options.hours is not None:
        raise OptionError(
            "--deterministic does not go with --hours: the rate would depend on the clock.",
            hint="Give --epochs instead.",
        )
