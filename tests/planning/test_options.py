"""The options of `plan`: stored, changed, and as words that the command takes."""

import pytest
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.datasets.cases import Labels
from autoliver.errors import OptionError
from autoliver.planning.options import (
    asked_of,
    changed_like_options,
    changed_options,
    option_words,
)
from autoliver.planning.plan import LikeOptions, Plan, PlanOptions

PLAN = Plan(
    dataset="D",
    preset="L",
    vram_gb=24.0,
    channel_names=("CT",),
    modality="CT",
    labels=Labels(values={"background": (0,), "liver": (1,)}),
    file_ending=".nii.gz",
    transpose_forward=(0, 1, 2),
    transpose_backward=(0, 1, 2),
    intensities=(),
    configurations={},
)


def test_what_a_plan_was_asked_is_no_decision():
    asked = PLAN.replace(asked=PlanOptions(preset="L"))
    assert asked != PLAN
    # The digest that version 0.1.0 gave this plan, before plans kept their options.
    assert asked.digest() == PLAN.digest() == "df89af40cefa"
    assert PLAN.replace(preset="M").digest() != PLAN.digest()


def test_a_plan_of_before_says_its_preset_and_memory():
    assert asked_of(PLAN) == PlanOptions(preset="L")
    assert asked_of(PLAN.replace(vram_gb=11.0)) == PlanOptions(preset="L", vram_gb=11.0)
    options = PlanOptions(preset="tiny", batch_cap=False)
    assert asked_of(PLAN.replace(asked=options)) == options


def test_an_option_that_is_given_changes_that_one():
    before = PlanOptions(preset="M", vram_gb=11.0, window_hu=(-150.0, 250.0))
    assert changed_options(before, {}) == before
    assert changed_options(before, {"preset": "default"}) == before.replace(preset="default")
    assert changed_options(before, {"vram_gb": None}) == before.replace(vram_gb=None)
    with pytest.raises(OptionError, match="presett"):
        changed_options(before, {"presett": "M"})
    with pytest.raises(OptionError, match="preset"):
        changed_options(before, {"preset": "huge"})


@pytest.mark.parametrize(
    ("before", "changes", "now"),
    [
        ({}, {}, {}),
        ({}, {"spacing": "target"}, {"spacing": "target"}),
        ({"spacing": "target"}, {}, {"spacing": "target"}),
        (
            {"spacing": "target"},
            {"spacing_mm": (3.0, 1.0, 1.0)},
            {"spacing": "fixed", "spacing_mm": (3.0, 1.0, 1.0)},
        ),
        ({"spacing": "fixed", "spacing_mm": (3.0, 1.0, 1.0)}, {"spacing": "auto"}, {}),
        (
            {"spacing": "fixed", "spacing_mm": (3.0, 1.0, 1.0)},
            {"spacing": "fixed"},
            {"spacing": "fixed", "spacing_mm": (3.0, 1.0, 1.0)},
        ),
    ],
)
def test_the_spacing_of_a_plan_like_another_is_one_choice(before, changes, now):
    assert changed_like_options(LikeOptions(**before), changes) == LikeOptions(**now)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (PlanOptions(), ""),
        (PlanOptions(preset="M", vram_gb=11.5), "--preset M --vram 11.5"),
        (PlanOptions(preset="tiny", arch="medformer"), "--preset tiny --arch medformer"),
        (
            PlanOptions(arch="dxnet", encoder="resnet18", z_strides="all"),
            "--arch dxnet --encoder resnet18 --z-strides all",
        ),
        (PlanOptions(spacing_mm=(2.5, 0.7421875, 0.7421875)), "--spacing 2.5 0.7421875 0.7421875"),
        (PlanOptions(spacing_mm=(1.0, 1e-05, 2 / 3)), "--spacing 1 1e-05 0.6666666666666666"),
        (
            PlanOptions(preset="XL", batch_cap=False, window_hu=(-150.0, 250.0)),
            "--preset XL --no-batch-cap --window -150 250",
        ),
        (LikeOptions(), ""),
        (LikeOptions(spacing="target"), "--like-spacing target"),
        (LikeOptions(spacing="fixed", spacing_mm=(3.0, 1.0, 0.5)), "--spacing 3 1 0.5"),
    ],
)
def test_the_words_of_options(options, words):
    assert " ".join(option_words(options)) == words


@pytest.mark.parametrize(
    "options",
    [
        PlanOptions(
            preset="M",
            vram_gb=11.5,
            spacing_mm=(2.5, 0.1 + 0.2, 1e-05),
            batch_cap=False,
            window_hu=(-150.5, -1e-07),
            slices=5,
        ),
        LikeOptions(spacing="source"),
        LikeOptions(spacing="fixed", spacing_mm=(3.0, 1 / 3, 1.0)),
    ],
)
def test_the_command_makes_of_the_words_what_they_were_made_of(options, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "autoliver.pipeline.replan.replan", lambda *arguments: asked.append(arguments) or 1 / 0
    )
    like = ["--like", "X"] if isinstance(options, LikeOptions) else []
    result = CliRunner().invoke(app, ["plan", "D", *like, *option_words(options)])
    assert isinstance(result.exception, ZeroDivisionError), result.output
    request = asked[0][2]
    change = changed_like_options if like else changed_options
    assert change(type(options)(), request.changes) == options
    assert request.like == (like[-1] if like else None)


@pytest.mark.parametrize("name", PlanOptions.__struct_fields__)
def test_none_resets_any_option(name):
    set_before = PlanOptions(
        preset="tiny",
        vram_gb=11.5,
        spacing_mm=(2.0, 1.0, 1.0),
        batch_cap=False,
        window_hu=(-150.0, 250.0),
        keep_axes=True,
        arch="omnia",
        encoder="resnet18",
        z_strides="all",
        slices=3,
    )
    default = getattr(PlanOptions(), name)
    assert getattr(set_before, name) != default
    assert changed_options(set_before, {name: None}) == set_before.replace(**{name: default})


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        (LikeOptions(spacing="target"), {"spacing": None}),
        (LikeOptions(spacing="fixed", spacing_mm=(3.0, 1.0, 1.0)), {"spacing_mm": None}),
        (LikeOptions(spacing="fixed", spacing_mm=(3.0, 1.0, 1.0)), {"spacing": None}),
    ],
)
def test_none_resets_the_spacing_of_a_plan_like_another(before, changes):
    assert changed_like_options(before, changes) == LikeOptions()
