"""A change of appearance is added by one row of `APPEARANCES`: this file is all that is added."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainings import PATCH, make_task, timeless
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import OptionError
from autoliver.training.augment.appearance import APPEARANCES, Appearance, ChosenSamples
from autoliver.training.augment.batch import augmentation
from autoliver.training.augment.choice import AppearanceStep, parse_augment
from autoliver.training.fold import open_patches
from autoliver.training.loop import train_fold
from autoliver.training.options import TrainingOptions, check_options, choose_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 8


def ramp(chosen: ChosenSamples) -> torch.Tensor:
    """Each image becomes a ramp along its last axis, up or down."""
    changed = torch.empty_like(chosen.images)
    for sample, generator in enumerate(chosen.generators):
        sign = 1.0 if float(torch.rand((), generator=generator)) < 0.5 else -1.0
        changed[sample] = sign * torch.arange(changed.shape[-1])
    return changed


def ramps_twice(chosen: ChosenSamples) -> torch.Tensor:
    return torch.cat([ramp(chosen), ramp(chosen)])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(APPEARANCES, "toy", Appearance(apply=ramp, share=0.25))


def is_ramp(image: np.ndarray) -> bool:
    """Whether all rows are the same straight line, but for the zeros around an image."""
    inside = (image[:, 1:] != 0) & (image[:, :-1] != 0)
    slope = np.diff(image, axis=-1)[inside]
    return bool(np.ptp(slope) < 1e-4 and abs(slope[0]) > 1e-3)


@pytest.mark.usefixtures("toy")
def test_it_is_applied_to_its_share_of_the_patches(tmp_path: Path) -> None:
    task = make_task(tmp_path, epochs=2, iterations=STEPS, augment="toy:0.5")
    recipe = choose_recipe(task.options)
    assert not recipe.mirror
    spec = augmentation(task.configuration, task.options.augment, mirror=recipe.mirror)
    assert spec is not None
    assert spec.views == 1
    # Without changes of intensity the ramps can be told from images.
    bare = spec.replace(intensity=())
    batches = open_patches(task)[0].batches(range(60), patch_shape=PATCH, spec=bare)
    images = torch.cat([batch.image for batch in batches])[:, 0].numpy()
    share = np.mean([is_ramp(image) for image in images])
    assert 0.35 < share < 0.65


@pytest.mark.usefixtures("toy")
def test_a_training_with_it_is_another_one(tmp_path: Path) -> None:
    logs = {}
    for augment in ("toy:0.5", "default"):
        settings = {"epochs": 2, "iterations": STEPS, "mirror": False, "augment": augment}
        trained = train_fold(make_task(tmp_path / augment.partition(":")[0], **settings))
        assert trained.finished
        logs[augment] = timeless(trained.logs)
    assert [log.step for log in logs["toy:0.5"]] == [STEPS, 2 * STEPS]
    for one, other in zip(*logs.values(), strict=True):
        assert one.train_loss is not None
        assert np.isfinite(one.train_loss)
        assert one.train_loss != other.train_loss


@pytest.mark.usefixtures("toy")
def test_options_and_messages_know_it() -> None:
    assert parse_augment("toy") == (AppearanceStep(name="toy", probability=0.25),)
    assert [step.name for step in parse_augment("gin:0.5,toy:0.5")] == ["gin", "toy"]
    for text, said in (("tyo", "Did you mean toy?"), ("zzz", "palette, toy, and mixtures")):
        with pytest.raises(OptionError) as caught:
            check_options(TrainingOptions(augment=text))
        assert said in caught.value.hint
    with pytest.raises(OptionError, match="toy has none"):
        parse_augment("gin:0.5,toy")
    with pytest.raises(OptionError, match=r"add up to 1\.2"):
        parse_augment("gin:0.5,toy:0.7")


def test_without_its_row_there_is_none() -> None:
    with pytest.raises(OptionError, match="there is no 'toy'"):
        parse_augment("toy")


def test_one_of_several_views_is_not_mixed_and_is_shown_that_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Appearance(apply=ramps_twice, share=1.0, views=2)
    monkeypatch.setitem(APPEARANCES, "twice", row)
    with pytest.raises(OptionError, match=r"twice shows .* 2 times and cannot be mixed"):
        parse_augment("gin:0.5,twice:0.5")
    task = make_task(tmp_path, epochs=1, iterations=2, augment="twice")
    spec = augmentation(task.configuration, "twice", mirror=False)
    (batch,) = open_patches(task)[0].batches(range(1), patch_shape=PATCH, spec=spec)
    assert batch.image.shape == (4, 1, *PATCH)
    assert batch.target.shape == (2, 1, *PATCH)
    assert train_fold(task).finished


def test_the_help_names_every_row() -> None:
    text = CliRunner().invoke(app, ["train", "--help"]).stdout
    words = text.partition("--augment KIND")[2].partition("--mirror")[0].replace(",", " ").split()
    assert set(APPEARANCES) <= set(words)
