"""Trainings that begin with given weights, parts of which may stay as they are."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from autoliver.dataset import Labels
from autoliver.errors import ModelError
from autoliver.networks.build import build_network
from autoliver.networks.checkpoint import load_training_state
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration
from autoliver.training.loop import train_fold
from autoliver.training.options import TrainingOptions
from autoliver.training.task import FoldTask, TrainedFold

SPEC = UNetSpec(
    kind="resenc",
    in_channels=1,
    out_channels=2,
    features=(4, 6, 8),
    strides=((1, 1), (2, 2), (2, 2)),
    kernels=((3, 3),) * 3,
    blocks_encoder=(1, 1, 1),
    blocks_decoder=(1, 1),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class ArrayCase:
    """A preprocessed case in memory: a bright square."""

    name: str
    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    previous: None = None

    @property
    def locations(self) -> dict[int, npt.NDArray[np.int32]]:
        return {1: np.argwhere(self.label[0] == 1).astype(np.int32)}


def make_case(number: int) -> ArrayCase:
    rng = np.random.default_rng(number)
    label = np.zeros((1, 3, 20, 20), np.int16)
    y, x = rng.integers(0, 12, 2)
    label[:, :, y : y + 8, x : x + 8] = 1
    image = (label + rng.normal(size=label.shape) * 0.3).astype(np.float32)
    return ArrayCase(f"case_{number}", image, label)


def start_weights() -> dict[str, Tensor]:
    """Other weights than a training of seed 0 would draw; no bias and no scale is 0."""
    generator = torch.Generator().manual_seed(99)
    network = build_network(SPEC, deep_supervision=True, generator=generator)
    return {
        name: weights + 0.01 * torch.randn(weights.shape, generator=generator)
        for name, weights in network.state_dict().items()
    }


def make_task(folder: Path, **options: object) -> FoldTask:
    """A training on three cases, from `start_weights`."""
    configuration = Configuration(
        spacing_mm=(1.0, 1.0),
        median_shape=(20.0, 20.0),
        patch_shape=(16, 16),
        batch_size=2,
        batch_dice=False,
        normalization=("zscore",),
        mask_norm=(False,),
        network=SPEC,
    )
    given = {"epochs": 2, "iterations": 2, "schedule": "finetune", "pretrained": "Source"}
    given |= {"augment": "none"} | options
    return FoldTask(
        configuration=configuration,
        labels=Labels(values={"background": (0,), "liver": (1,)}),
        train=[make_case(number) for number in range(3)],
        validation=[make_case(9)],
        options=TrainingOptions(**given),  # type: ignore[arg-type]
        folder=folder,
        device=torch.device("cpu"),
        title="Toy 2d fold 0",
        start=start_weights(),
    )


def stop_after(steps: int) -> Callable[[], bool]:
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def run(folder: Path, *, steps: int = 1_000_000, **options: object) -> TrainedFold:
    return train_fold(make_task(folder, **options), stop=stop_after(steps))


@pytest.mark.parametrize("schedule", ["auto", "finetune", "adamw", "short"])
def test_no_epochs_give_the_weights_to_start_with(schedule: str, tmp_path: Path) -> None:
    for hours in (None, 1.0):
        done = run(tmp_path / str(hours), epochs=0, schedule=schedule, hours=hours)
        assert_same(done.weights, start_weights())
        assert done.finished
        assert done.logs == ()
        assert not (tmp_path / str(hours) / "progress.png").exists()
        assert_same(run(tmp_path / str(hours), epochs=0, schedule=schedule).weights, done.weights)


def test_no_epochs_can_be_extended(tmp_path: Path) -> None:
    run(tmp_path, epochs=0, schedule="short")
    longer = run(tmp_path, epochs=0, schedule="short", extensions=(3,))
    # The warm-up is over: the rate starts at its peak, and falls by step.
    peak = 6e-3 * 0.3
    expected = [peak * (1 - step / 6) ** 0.9 for step in (1, 3, 5)]
    assert [log.learning_rate for log in longer.logs] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["finetune", "short"])
def test_network_and_running_mean_begin_with_the_weights(schedule: str, tmp_path: Path) -> None:
    task = make_task(tmp_path, schedule=schedule, lr=1e-12)
    train_fold(task, stop=stop_after(1))
    saved = load_training_state(task.resume_path)
    for network in (saved["network"], saved["averaged"]):
        for name, weights in (network or {}).items():
            assert torch.allclose(weights, start_weights()[name], atol=1e-9), name
    assert (saved["averaged"] is None) == (schedule == "finetune")
    assert_same(dict(task.start or {}), start_weights())


def test_a_saved_state_wins_over_the_weights_to_start_with(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    task = make_task(tmp_path / "broken")
    train_fold(task, stop=stop_after(3))
    assert_same(train_fold(task).weights, whole.weights)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    assert task.start is not None
    weights = dict(task.start)
    del weights["stem.conv.weight"]
    with pytest.raises(ModelError, match=r"The weights to start with: .*stem\.conv\.weight is mis"):
        train_fold(FoldTask(**{**vars(task), "start": weights}))
