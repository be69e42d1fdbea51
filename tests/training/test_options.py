import pytest

from autoliver.errors import OptionError
from autoliver.training.options import (
    RECIPES,
    TrainingOptions,
    check_options,
    choose_recipe,
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


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"iterations": -1}, {"hours": 0.0}, {"hours": float("nan")}, {"seed": -1}],
)
def test_options_that_cannot_train_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"--{next(iter(wrong))}"):
        check_options(TrainingOptions(**wrong))  # type: ignore[arg-type]
