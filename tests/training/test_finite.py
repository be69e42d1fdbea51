"""Trainings whose numbers are not finite end with an error, never with a model."""

from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainings import make_case, make_task, stop_after

from autoliver.errors import AutoliverError
from autoliver.networks.checkpoint import load_training_state, save_training_state
from autoliver.training.fold import FoldTask
from autoliver.training.loop import _Loop, train_fold

pytestmark = pytest.mark.usefixtures("one_thread")


def finite(saved: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(weight).all()) for weight in saved.values())


@pytest.mark.parametrize("held_out", [0, 1])
@pytest.mark.parametrize(
    ("epochs", "iterations"), [(1, 2), (1, 3), (1, 8), (2, 2), (3, 4), (2, 20), (9, 1)]
)
@pytest.mark.parametrize("schedule", ["short", "nnunet"])
def test_a_rate_that_is_too_high_ends_with_an_error(
    schedule: str, epochs: int, iterations: int, held_out: int, tmp_path: Path
) -> None:
    task = make_task(
        tmp_path,
        held_out=held_out,
        epochs=epochs,
        iterations=iterations,
        lr=1e30,
        schedule=schedule,
    )
    with pytest.raises(AutoliverError, match=r"epoch [1-6]: .* not finite") as caught:
        train_fold(task)
    assert "--fresh and --lr" in caught.value.hint
    assert "e+" not in caught.value.hint
    if task.files.resume.exists():
        assert finite(load_training_state(task.files.resume)["network"])
        assert str(task.files.resume) in caught.value.problem


def test_a_single_step_is_judged_by_the_held_out_cases(tmp_path: Path) -> None:
    task = make_task(tmp_path, epochs=1, iterations=1, lr=1e30)
    with pytest.raises(AutoliverError, match="epoch 1: the loss of held-out case_9 is not finite"):
        train_fold(task)


def huge_held_out(task: FoldTask, number: int) -> FoldTask:
    """Finite values whose squares are not, in so many of the held-out cases."""
    cases = [make_case(9 + i) for i in range(len(task.validation))]
    for case in cases[:number]:
        case.image[:] = 3e38
    return replace(task, validation=cases)


def test_only_the_held_out_loss_is_not_finite(tmp_path: Path) -> None:
    task = make_task(tmp_path, epochs=2, iterations=10, augment="none")
    with pytest.raises(AutoliverError, match="epoch 1: the loss of held-out case_9 is not finite"):
        train_fold(huge_held_out(task, 1))


def test_some_held_out_batches_are_left_out_and_named(tmp_path: Path) -> None:
    task = make_task(tmp_path, held_out=6, epochs=1, iterations=40, augment="none")
    (log,) = train_fold(huge_held_out(task, 1)).logs
    assert log.validation_loss is not None
    assert np.isfinite(log.validation_loss)
    assert "case_9" in log.skipped


def test_a_held_out_image_that_is_not_finite_is_named(tmp_path: Path) -> None:
    task = make_task(tmp_path, epochs=1, iterations=5, augment="none")
    case = make_case(9)
    case.image[:] = np.nan
    with pytest.raises(AutoliverError, match=r"^case_9: its preprocessed image"):
        train_fold(replace(task, validation=[case]))


@pytest.mark.parametrize("part", ["network", "averaged"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_replace_no_state(
    part: str, value: float, tmp_path: Path
) -> None:
    """Whether an epoch ends or a request to stop is followed."""
    task = make_task(tmp_path, held_out=0, epochs=4, iterations=2, schedule="short")
    train_fold(task, stop=stop_after(2))
    good = task.files.resume.read_bytes()
    loop = _Loop(task)
    network = getattr(loop.state, part)
    with torch.no_grad():
        next(network.parameters()).fill_(value)
    with pytest.raises(AutoliverError, match=r"epoch 2: .*weights are not finite"):
        loop.run(lambda: True)
    assert task.files.resume.read_bytes() == good
    assert finite(load_training_state(task.files.resume)[part])


def test_a_state_that_is_not_finite_is_not_gone_on_with(tmp_path: Path) -> None:
    """As earlier versions have saved it."""
    task = make_task(tmp_path, epochs=3, iterations=2)
    train_fold(task, stop=stop_after(2))
    saved = load_training_state(task.files.resume)
    for weights in saved["network"].values():
        weights.fill_(np.nan)
    save_training_state(task.files.resume, saved)
    with pytest.raises(AutoliverError, match="epoch 2: the weights are not finite"):
        train_fold(task)
    assert not task.files.model.exists()


@pytest.mark.parametrize(("scale", "ends"), [(65536.0, False), (2.0, True), (0.5, True)])
def test_gradients_that_overflow_with_any_loss_scale_end_the_training(
    scale: float, ends: bool, tmp_path: Path
) -> None:
    """With loss scaling, some steps without finite gradients are how the scale is found."""
    task = make_task(tmp_path, held_out=0, epochs=1, iterations=12)
    loop = _Loop(task)
    loop.state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    first = next(loop.state.network.parameters())
    first.register_hook(lambda gradient: gradient * np.nan)
    batches = loop.batches(0, 12)
    expected = pytest.raises(AutoliverError, match="gradients were not finite for 5 batches")
    with expected if ends else nullcontext():
        deque(map(loop.stepper.take, batches), maxlen=0)
    batches.close()
    assert finite(loop.state.network.state_dict())


def test_a_good_training_with_one_bad_last_batch_ends_as_it_did(tmp_path: Path) -> None:
    task = make_task(tmp_path, held_out=0, epochs=1, iterations=8)
    loop = _Loop(task)
    loop.state.failures = 1
    loop.state.step = 8
    loop._finish_epoch()
    loop.saver.wait()
    assert task.files.resume.exists()


def test_a_training_that_has_taken_no_step_is_none(tmp_path: Path) -> None:
    """The held-out loss of the initial weights is finite."""
    cases = [make_case(number) for number in range(2)]
    for case in cases:
        case.image[:] = 3e38
    task = make_task(tmp_path, epochs=1, iterations=3, augment="none")
    with pytest.raises(AutoliverError, match="not finite for the last 3 batches"):
        train_fold(replace(task, train=cases))
