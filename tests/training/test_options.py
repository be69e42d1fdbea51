from pathlib import Path
from typing import get_args

import pytest

from autoliver.errors import OptionError
from autoliver.networks.spec import UNetSpec
from autoliver.planning.fit import memory_gb
from autoliver.planning.plan import Configuration
from autoliver.training.course import Course
from autoliver.training.options import (
    Schedule,
    TrainingOptions,
    changed_configuration,
    check_options,
    choose_recipe,
    default_epochs,
    flag,
    why_schedule,
)
from autoliver.training.recipes import RECIPES, Optimiser, Recipe, learning_rate
from autoliver.transfer.table import IMAGENET
from autoliver.values import flag_of


def test_auto_goes_by_the_number_of_steps() -> None:
    assert choose_recipe(TrainingOptions()).optimizer == "sgd"
    assert choose_recipe(TrainingOptions(epochs=20, iterations=50)).optimizer == "adamw"
    assert choose_recipe(TrainingOptions(), steps=500).optimizer == "adamw"
    assert choose_recipe(TrainingOptions(epochs=20, schedule="nnunet")).optimizer == "sgd"


def test_nnunet_rate_is_the_poly_schedule() -> None:
    recipe = RECIPES["nnunet"]
    assert learning_rate(recipe, 0.0) == 1e-2
    assert learning_rate(recipe, 0.25) == pytest.approx(1e-2 * 0.75**0.9)
    assert learning_rate(recipe, 1.0) == 0.0


def test_warm_up_rises_to_the_peak_without_a_jump() -> None:
    recipe = RECIPES["short"].replace(warmup=0.1)
    rates = [learning_rate(recipe, i / 1000) for i in range(1001)]
    peak = max(range(1001), key=rates.__getitem__)
    assert peak == 100
    assert rates[peak] == pytest.approx(recipe.learning_rate)
    assert rates[50] == pytest.approx(recipe.learning_rate / 2)
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == 0.0


def test_options_override_the_recipe() -> None:
    short = RECIPES["short"]
    base = TrainingOptions(schedule="short")
    assert choose_recipe(base) == short
    changed = choose_recipe(base.replace(lr=1e-3, mirror=True))
    assert changed == short.replace(learning_rate=1e-3, mirror=True)
    assert choose_recipe(TrainingOptions(mirror=False)) == RECIPES["nnunet"].replace(mirror=False)


@pytest.mark.parametrize("schedule", ["nnunet", "finetune", "short", "adamw", "omnia"])
def test_a_running_mean_can_be_asked_of_every_schedule(schedule: Schedule) -> None:
    base = TrainingOptions(schedule=schedule)
    plain = choose_recipe(base)
    assert choose_recipe(base.replace(ema=0.999)) == plain.replace(average=0.999)
    assert choose_recipe(base.replace(ema=0.0)) == plain.replace(average=0.0)


@pytest.mark.parametrize(
    ("decay", "told"), [(1.0, "below 1"), (-0.1, "at least 0"), (float("nan"), "at least 0")]
)
def test_decays_that_keep_no_mean_are_refused(decay: float, told: str) -> None:
    with pytest.raises(OptionError, match=told) as caught:
        check_options(TrainingOptions(ema=decay))
    assert "--ema" in caught.value.problem


def test_another_optimiser_comes_with_its_own_rate_and_decay() -> None:
    recipe = choose_recipe(TrainingOptions(schedule="nnunet", optimiser="adamw"))
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adamw", 6e-3, 1e-2)
    assert (recipe.warmup, recipe.average) == (0.0, 0.0)
    recipe = choose_recipe(TrainingOptions(schedule="short", optimiser="sgd", lr=0.1))
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("sgd", 0.1, 3e-5)
    recipe = choose_recipe(TrainingOptions(schedule="omnia", optimiser="sgd"))
    assert (recipe.optimizer, recipe.learning_rate, recipe.epoch_factor) == ("sgd", 1e-2, 0.95)


@pytest.mark.parametrize("optimiser", get_args(Optimiser))
@pytest.mark.parametrize("schedule", list(RECIPES))
def test_every_schedule_takes_every_optimiser(schedule: Schedule, optimiser: Optimiser) -> None:
    recipe = choose_recipe(TrainingOptions(schedule=schedule, optimiser=optimiser))
    assert recipe.optimizer == optimiser
    rates = {r.learning_rate for r in RECIPES.values() if r.optimizer == optimiser}
    assert recipe.learning_rate in rates
    own = choose_recipe(TrainingOptions(schedule=schedule))
    course = ("warmup", "power", "epoch_factor", "per_step", "average", "mirror")
    assert [getattr(recipe, name) for name in course] == [getattr(own, name) for name in course]


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"iterations": -1},
        {"hours": 0.0},
        {"hours": float("nan")},
        {"seed": -1},
        {"foreground": -0.1},
        {"foreground": 1.5},
        {"foreground": float("nan")},
        {"lr": 0.0},
        {"lr": float("inf")},
        {"encoder_factor": 0.0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.1},
        {"layer_decay": float("nan")},
        {"batch_size": 0},
        {"patience": 0},
        {"mirror": True, "augment": "none"},
        {"deterministic": True, "hours": 1.0},
    ],
)
def test_options_that_cannot_train_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=flag_of(next(iter(wrong)))):
        check_options(TrainingOptions(**wrong))  # type: ignore[arg-type]


def test_flags_are_as_typed() -> None:
    assert flag("batch_size", 3) == "--batch-size 3"
    assert flag("mirror", False) == "--no-mirror"
    assert flag("patch", (64, 96)) == "--patch 64,96"
    assert flag("lr", None) == "the default --lr"
    assert flag("heads", "reset") == "--reset-heads"
    assert flag("freeze", "encoder:2") == "--freeze encoder:2"
    assert flag("freeze", None) == "nothing frozen"


def test_options_of_an_older_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text(
        '{"kind": "options", "schema": 1, "autoliver": "0.1.0", "made_from": {"plan": "0"},'
        '"epochs": 7, "iterations": 3, "hours": null, "schedule": "short", "augment": "none",'
        '"seed": 2, "foreground": 0.33}'
    )
    expected = TrainingOptions(
        made_from={"plan": "0"}, epochs=7, iterations=3, schedule="short", augment="none", seed=2
    )
    assert TrainingOptions.load(path) == expected


CONFIGURATION = Configuration(
    spacing_mm=(5.0, 1.0, 1.0),
    median_shape=(40.0, 200.0, 200.0),
    patch_shape=(16, 64, 64),
    batch_size=2,
    batch_dice=False,
    normalization=("ct",),
    mask_norm=(False,),
    network=UNetSpec(
        in_channels=1,
        out_channels=2,
        features=(4, 8, 16),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3),) * 3,
        blocks_encoder=(1, 1, 1),
        blocks_decoder=(1, 1),
    ),
    reasons={"patch": "As planned.", "batch": "As planned."},
)


def test_patch_and_batch_replace_those_of_the_plan() -> None:
    options = TrainingOptions(batch_size=5, patch=(8, 96, 64))
    changed = changed_configuration(CONFIGURATION, options)
    assert (changed.batch_size, changed.patch_shape) == (5, (8, 96, 64))
    assert "--patch" in changed.reasons["patch"]
    assert "--batch-size" in changed.reasons["batch"]
    same = changed.replace(batch_size=2, patch_shape=(16, 64, 64), reasons=CONFIGURATION.reasons)
    assert same == CONFIGURATION
    assert changed_configuration(CONFIGURATION, TrainingOptions()) is CONFIGURATION


@pytest.mark.parametrize(
    ("patch", "nearest"),
    [
        ((15, 64, 64), "16,64,64"),
        ((8, 66, 61), "8,64,60"),
        ((1, 3, 4), "2,4,8"),
        ((2, 4, 4), "2,4,8"),
        ((64, 64), "16,64,64"),
    ],
)
def test_patches_that_do_not_fit_the_network_are_refused(
    patch: tuple[int, ...], nearest: str
) -> None:
    with pytest.raises(OptionError, match="--patch") as caught:
        changed_configuration(CONFIGURATION, TrainingOptions(patch=patch))
    assert nearest in caught.value.hint


def test_memory_grows_with_patch_and_batch() -> None:
    planned = memory_gb(CONFIGURATION, "default")
    options = TrainingOptions(batch_size=4, patch=(16, 128, 64))
    assert memory_gb(changed_configuration(CONFIGURATION, options), "default") == pytest.approx(
        4 * planned
    )


def rates(options: TrainingOptions) -> list[float]:
    """The rate of every epoch."""
    recipe, course = choose_recipe(options), Course()
    steps = range(0, options.steps, options.iterations)
    return [course.rate(options, recipe, step=step, elapsed_s=0.0) for step in steps]


@pytest.mark.parametrize(
    ("schedule", "pretrained", "peak"),
    [
        ("finetune", None, 1e-2),
        ("finetune", "LiTS", 1e-3),
        ("finetune", "imagenet", 1e-2),  # the decoder is drawn at random
        ("adamw", None, 3e-4),
        ("adamw", "LiTS", 1e-4),
        ("adamw", "imagenet", 3e-4),
    ],
)
@pytest.mark.parametrize(("epochs", "warm"), [(1000, 50), (300, 30), (150, 15), (5, 0)])
def test_fine_tuning_warms_up_and_then_follows_the_poly_schedule(
    schedule: Schedule, pretrained: str | None, peak: float, epochs: int, warm: int
) -> None:
    options = TrainingOptions(epochs=epochs, schedule=schedule, pretrained=pretrained)
    expected = [peak * (e + 1) / warm for e in range(warm)]
    expected += [peak * (1 - (e - warm) / (epochs - warm)) ** 0.9 for e in range(warm, epochs)]
    assert rates(options) == pytest.approx(expected)


@pytest.mark.parametrize("pretrained", [None, "LiTS"])
@pytest.mark.parametrize("epochs", [3, 100])
def test_omnia_takes_five_percent_off_the_rate_each_epoch(
    pretrained: str | None, epochs: int
) -> None:
    options = TrainingOptions(epochs=epochs, schedule="omnia", pretrained=pretrained)
    assert rates(options)[:3] == pytest.approx([1e-3, 9.5e-4, 9.025e-4])
    assert rates(options) == pytest.approx([1e-3 * 0.95**e for e in range(epochs)])
    recipe = choose_recipe(options)
    assert (recipe.optimizer, recipe.weight_decay) == ("nadam", 0.0)
    limited = options.replace(hours=1.0)
    assert Course().rate(limited, recipe, step=500, elapsed_s=3500.0) == pytest.approx(9.025e-4)


def test_rates_of_a_hundred_epochs_by_hand() -> None:
    found = rates(TrainingOptions(epochs=100, schedule="finetune", pretrained="LiTS"))
    assert found[:3] == pytest.approx([1e-4, 2e-4, 3e-4])
    assert found[9] == found[10] == pytest.approx(1e-3)
    assert found[55] == pytest.approx(5.358867e-4)  # half of the rest: 0.5 ** 0.9
    assert found[99] == pytest.approx(1.742536e-5)  # (1 / 90) ** 0.9


def test_every_recipe_has_its_optimiser_and_its_share_of_the_rate() -> None:
    def chosen(schedule: Schedule, **changes: object) -> Recipe:
        return choose_recipe(TrainingOptions(schedule=schedule, **changes))  # type: ignore[arg-type]

    assert chosen("scratch") == chosen("nnunet") == RECIPES["nnunet"]
    assert chosen("nnunet", pretrained="LiTS").learning_rate == 1e-2
    assert chosen("short", pretrained="LiTS").learning_rate == pytest.approx(1.8e-3)
    assert chosen("finetune", pretrained="LiTS", lr=0.5).learning_rate == 0.5
    adamw = chosen("adamw")
    assert (adamw.optimizer, adamw.betas, adamw.weight_decay) == ("adamw", (0.9, 0.98), 5e-2)
    assert (adamw.clip, adamw.warmup) == (1.0, 0.05)
    finetune = chosen("finetune")
    assert (finetune.optimizer, finetune.weight_decay, finetune.clip) == ("sgd", 3e-5, 12.0)
    other = chosen("finetune", pretrained="LiTS", optimiser="adamw")
    assert (other.learning_rate, other.clip) == (pytest.approx(1e-4), 1.0)
    assert chosen("adamw", pretrained="LiTS", optimiser="sgd").learning_rate == pytest.approx(1e-3)


def test_a_pretrained_training_is_fine_tuned_unless_it_is_short() -> None:
    long = TrainingOptions(epochs=300, pretrained="LiTS")
    assert choose_recipe(long).learning_rate == pytest.approx(1e-3)
    assert choose_recipe(long.replace(epochs=20)).optimizer == "adamw"
    assert choose_recipe(long, steps=19_999).optimizer == "adamw"


def test_epochs_follow_the_cases_of_a_pretrained_training() -> None:
    assert [default_epochs(None, cases) for cases in (1, 500)] == [1000, 1000]
    assert [default_epochs("LiTS", cases) for cases in (1, 29, 30, 500)] == [150, 150, 300, 300]
    assert [default_epochs(name, 9, schedule="omnia") for name in (None, "LiTS")] == [100, 100]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["nnunet (as nnU-Net does)", "SGD", "0.01", "1,000 epochs of 250 steps"]),
        ({"epochs": 8}, ["short (a short training", "20,000 steps", "AdamW", "0.006", "8 epochs"]),
        ({"schedule": "adamw"}, ["adamw", "--schedule", "0.0003"]),
        ({"hours": 2.0}, ["--hours allows"]),
        ({"schedule": "omnia", "epochs": 100}, ["omnia: Nadam", "0.001", "100 epochs"]),
        ({"epochs": 1, "iterations": 1}, ["1 epoch of 1 step,"]),
        ({"pretrained": "LiTS", "epochs": 150}, ["finetune", "LiTS", "fewer than 30", "0.001"]),
        ({"pretrained": "LiTS", "epochs": 0}, ["LiTS", "as they are"]),
    ],
)
def test_the_choice_of_a_schedule_is_explained(
    changes: dict[str, object], words: list[str]
) -> None:
    told = why_schedule(TrainingOptions(**changes), cases=12)  # type: ignore[arg-type]
    assert [word for word in words if word not in told] == [], told


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("pretrained", [None, "LiTS", IMAGENET])
@pytest.mark.parametrize("cases", [12, 30])
def test_the_number_of_cases_is_told_only_where_it_decides(
    schedule: Schedule, pretrained: str | None, cases: int
) -> None:
    epochs = {
        count: default_epochs(pretrained, count, schedule=schedule) for count in (12, 30, cases)
    }
    options = TrainingOptions(pretrained=pretrained, schedule=schedule, epochs=epochs[cases])
    assert ("training cases" in why_schedule(options, cases)) == (epochs[12] != epochs[30])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"freeze": "encoder"}, "--freeze encoder"),
        ({"unfreeze": "encoder@3"}, "--unfreeze encoder@3"),
        ({"encoder_factor": 0.1}, "--encoder-factor 0.1"),
        ({"layer_decay": 0.8}, "--layer-decay 0.8"),
        ({"heads": "reset"}, "--reset-heads"),
        ({"inflate": "mean"}, "--inflate mean"),
    ],
)
def test_options_for_pretrained_weights_need_them(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(OptionError, match=f"^{named} is for weights of a trained") as caught:
        check_options(TrainingOptions(**wrong))  # type: ignore[arg-type]
    assert "--pretrained" in caught.value.hint
    frozen = {"freeze": "encoder"} if "unfreeze" in wrong else {}
    check_options(TrainingOptions(pretrained="LiTS", **wrong, **frozen))  # type: ignore[arg-type]


def test_no_epochs_are_for_pretrained_weights() -> None:
    check_options(TrainingOptions(epochs=0, pretrained="LiTS"))
    with pytest.raises(OptionError, match="--epochs is -1; it must be at least 0"):
        check_options(TrainingOptions(epochs=-1, pretrained="LiTS"))
