import pytest

from autoliver.errors import OptionError
from autoliver.training.augment.choice import AppearanceStep, parse_augment
from autoliver.training.options import TrainingOptions, check_options, choose_recipe


def step(name: str, probability: float) -> AppearanceStep:
    return AppearanceStep(name=name, probability=probability)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("default", ()),
        ("none", ()),
        ("gin", (step("gin", 1.0),)),
        ("gin-ipa", (step("gin-ipa", 1.0),)),
        ("bezier", (step("bezier", 1.0),)),
        ("inversion", (step("inversion", 0.5),)),
        ("randconv", (step("randconv", 0.8),)),
        ("synthseg", (step("synthseg", 0.5),)),
        ("gin:0.3", (step("gin", 0.3),)),
        (" gin : 0.5 , bezier:.25", (step("gin", 0.5), step("bezier", 0.25))),
        ("gin:0.1,bezier:0.2,inversion:0.7", None),  # adds up to 1 but for rounding
    ],
)
def test_what_is_said_is_what_happens(text, steps):
    found = parse_augment(text)
    assert sum(s.probability for s in found) <= 1.0 + 1e-9
    assert steps is None or found == steps


def test_across_modalities_is_what_was_best_on_real_images():
    assert parse_augment("cross-modality") == parse_augment("gin") == (step("gin", 1.0),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gni", "Did you mean gin?"),
        ("Gin_IPA", "Did you mean gin-ipa?"),
        ("crossmodality", "Did you mean cross-modality?"),
        ("zzz", "There are default, none, cross-modality, inversion, bezier, gin"),
        ("", "there is no ''"),
        ("gin:0.5,,bezier:0.2", "there is no ''"),
        ("gin:0.5,bezier", "bezier has none"),
        ("gin:much", "'much'"),
        ("gin:", "the share of gin is ''"),
        ("gin:0", "above 0"),
        ("gin:1.5", "at most 1"),
        ("gin:nan", "'nan'"),
        ("gin:0.7,bezier:0.7", "add up to 1.4"),
        ("gin:0.2,gin:0.3", "names gin twice"),
        ("gin-ipa:0.5,gin:0.5", "cannot be mixed"),
        ("default:0.5,gin:0.5", "stands alone"),
        ("none,gin:0.5", "stands alone"),
    ],
)
def test_what_cannot_be_is_refused_with_what_there_is(text, said):
    with pytest.raises(OptionError) as caught:
        check_options(TrainingOptions(made_from={}, augment=text))
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("augment", "mirror", "flips"),
    [
        ("default", None, True),
        ("gin", None, False),
        ("cross-modality", None, False),
        ("gin", True, True),
        ("default", False, False),
    ],
)
def test_across_modalities_nothing_is_flipped_unless_asked_for(augment, mirror, flips):
    options = TrainingOptions(made_from={}, augment=augment, mirror=mirror, schedule="nnunet")
    assert choose_recipe(options).mirror is flips
