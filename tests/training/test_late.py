"""Steps whose numbers are read one step late, as on CUDA: the CPU has fused optimisers, too."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainings import make_case, make_task, stop_after, timeless
from torch.utils._python_dispatch import TorchDispatchMode

from autoliver.errors import AutoliverError
from autoliver.networks.checkpoint import load_training_state
from autoliver.training import state as states
from autoliver.training.fold import FoldTask, TrainedFold
from autoliver.training.loop import _Loop, train_fold
from autoliver.training.reading import Reading

pytestmark = pytest.mark.usefixtures("one_thread")
SCHEDULES = ["short", "nnunet"]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "FUSED_ON", frozenset({"cpu"}))


def huge() -> Any:
    """Finite values whose squares are not."""
    case = make_case(8)
    case.image[:] = 3e38
    return replace(case, facts=case.facts.named("huge"))


def with_huge(task: FoldTask) -> FoldTask:
    """In a quarter of the batches of two patches."""
    return replace(task, train=[*map(make_case, range(7)), huge()])


def assert_equal(one: TrainedFold, other: TrainedFold, **tolerance: float) -> None:
    """Equal bit by bit, or about equal apart from biases that a norm takes away again."""
    for name, weights in one.weights.items():
        if not tolerance:
            assert torch.equal(weights, other.weights[name]), name
        elif not name.endswith("conv.bias"):  # their gradient is rounding
            torch.testing.assert_close(weights, other.weights[name], **tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_they_are_the_steps_that_are_read_at_once(
    schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With batches that are skipped."""

    def trained(folder: str) -> TrainedFold:
        options = {"epochs": 2, "iterations": 8, "augment": "none", "ema": 0.0}
        task = with_huge(make_task(tmp_path / folder, schedule=schedule, **options))
        return train_fold(task)

    now = trained("now")
    monkeypatch.setattr(states, "FUSED_ON", frozenset({"cpu"}))
    late = trained("late")
    assert load_training_state(tmp_path / "late" / "resume.pt")["optimizer"]["param_groups"][0][
        "fused"
    ]
    assert [log.skipped for log in late.logs] == [log.skipped for log in now.logs]
    assert sum(len(log.skipped) for log in late.logs) > 0
    for one, other in zip(late.logs, now.logs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-5)
    assert_equal(late, now, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.usefixtures("fused")
def test_resumed_after_every_step_they_are_the_uninterrupted_ones(
    schedule: str, tmp_path: Path
) -> None:
    options = {"epochs": 2, "iterations": 3, "schedule": schedule, "augment": "none"}
    whole = train_fold(with_huge(make_task(tmp_path / "whole", **options)))
    broken = with_huge(make_task(tmp_path / "broken", **options))
    for step in range(1, 6):
        assert not train_fold(broken, stop=stop_after(1)).finished
        assert load_training_state(broken.files.resume)["step"] == step
    rest = train_fold(broken)
    assert timeless(rest.logs) == timeless(whole.logs)
    assert_equal(rest, whole)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("order", [("cpu", ""), ("", "cpu")], ids=["from", "to"])
def test_a_training_moves_between_devices(
    schedule: str, order: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 2, "iterations": 3, "schedule": schedule}
    whole = train_fold(make_task(tmp_path / "whole", **options))
    task = make_task(tmp_path / "moved", **options)
    for device, steps in zip(order, (2, 9), strict=True):
        monkeypatch.setattr(states, "FUSED_ON", frozenset({device}))
        moved = train_fold(task, stop=stop_after(steps))
    assert moved.finished
    for one, other in zip(moved.logs, whole.logs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-3)
        assert one.validation_loss == pytest.approx(other.validation_loss, abs=1e-3)


@pytest.mark.usefixtures("fused")
def test_many_batches_without_a_finite_loss_end_the_training_and_spare_the_weights(
    tmp_path: Path,
) -> None:
    task = make_task(tmp_path, held_out=0, epochs=1, iterations=20, augment="none")
    loop = _Loop(replace(task, train=[huge()]))
    before = {n: w.clone() for n, w in loop.state.network.state_dict().items()}
    batches = loop.batches(0, 20)
    with pytest.raises(AutoliverError, match=r"not finite for 5 batches in a row.* huge\."):
        deque(map(loop.stepper.take, batches), maxlen=0)
    batches.close()
    assert loop.state.step == 5  # the sixth step was begun
    for name, weights in loop.state.network.state_dict().items():
        assert torch.equal(weights, before[name])
    assert all(float(s["step"]) == 0 for s in loop.state.optimizer.state.values())


@pytest.mark.usefixtures("fused")
def test_a_bad_last_batch_of_an_epoch_is_noticed_in_it(tmp_path: Path) -> None:
    task = make_task(tmp_path, held_out=0, epochs=1, iterations=1, augment="none")
    with pytest.raises(AutoliverError, match="epoch 1: loss or gradients were not finite"):
        train_fold(replace(task, train=[huge()]))
    assert not task.files.resume.exists()


@pytest.mark.usefixtures("fused")
def test_an_image_that_is_not_finite_is_named(tmp_path: Path) -> None:
    task = make_task(tmp_path, held_out=0, epochs=1, iterations=9, augment="none")
    task.train[2].image[:] = np.nan
    with pytest.raises(AutoliverError, match=r"^case_2: .*not finite"):
        train_fold(task)


class Waits(TorchDispatchMode):
    """Counts the operations that bring a number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The readings in the order in which they were made, by number."""
    made, found = [], []
    real_init, real_values = Reading.__init__, Reading.values

    def init(self: Reading, *numbers: Any) -> None:
        made.append(self)
        real_init(self, *numbers)

    def values(self: Reading) -> Any:
        found.append(made.index(self))
        return real_values(self)

    monkeypatch.setattr(Reading, "__init__", init)
    monkeypatch.setattr(Reading, "values", values)
    return found


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_waits_once_and_for_the_one_before(
    schedule: str, read: list[int], tmp_path: Path
) -> None:
    loop = _Loop(make_task(tmp_path, epochs=1, iterations=9, schedule=schedule, augment="none"))
    batches = list(loop.batches(0, 4))
    with Waits() as waits:
        for number, batch in enumerate(batches):
            loop.stepper.take(batch)
            assert read == list(range(number))
    assert waits.count == 0
    loop.stepper.settle()
    assert read == [0, 1, 2, 3]
    assert len(loop.state.sums.losses) == 4


def test_what_is_read_is_what_was_sent() -> None:
    from autoliver.training.objectives.objective import Counts, Tally

    loss, norm = torch.tensor(-0.1), torch.tensor(float("inf"))
    counts = Counts(torch.tensor([1, 2**40, 3]), {"a": 1, "b": 2})
    found = Reading(loss, norm, counts).values()
    tally = Tally(counts={"a": (1,), "b": (2**40, 3)})
    assert found == (loss.item(), float("inf"), tally)
    assert Reading(loss, norm, tally).values() == found
    assert counts == tally
    assert counts.beside(Counts(torch.tensor([7]), {"c": 1})).counts == {**tally.counts, "c": (7,)}
