from pathlib import Path

import pytest

from autoliver.errors import OptionError
from autoliver.networks.spec import UNetSpec
from autoliver.planning.fit import memory_gb
from autoliver.planning.plan import Configuration
from autoliver.training.options import (
    RECIPES,
    TrainingOptions,
    changed_configuration,
    check_options,
    choose_recipe,
    flag,
    flag_name,
    learning_rate,
)


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


def test_another_optimiser_comes_with_its_own_rate_and_decay() -> None:
    recipe = choose_recipe(TrainingOptions(schedule="nnunet", optimiser="adamw"))
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adamw", 6e-3, 1e-2)
    assert (recipe.warmup, recipe.average) == (0.0, 0.0)
    recipe = choose_recipe(TrainingOptions(schedule="short", optimiser="sgd", lr=0.1))
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("sgd", 0.1, 3e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"iterations": -1},
        {"hours": 0.0},
        {"hours": float("nan")},
        {"seed": -1},
        {"lr": 0.0},
        {"lr": float("inf")},
        {"batch_size": 0},
        {"patience": 0},
        {"mirror": True, "augment": "none"},
        {"deterministic": True, "hours": 1.0},
    ],
)
def test_options_that_cannot_train_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"--{flag_name(next(iter(wrong)))}"):
        check_options(TrainingOptions(**wrong))  # type: ignore[arg-type]


def test_flags_are_as_typed() -> None:
    assert flag("batch_size", 3) == "--batch-size 3"
    assert flag("mirror", False) == "--no-mirror"
    assert flag("patch", (64, 96)) == "--patch 64,96"
    assert flag("lr", None) == "the default --lr"


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
