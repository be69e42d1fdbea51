"""Trainings of GPUs that compute no bfloat16: float16 with a loss scale, pretended on the CPU."""

from pathlib import Path

import pytest
import torch
from small_trainings import make_task, stop_after

from autoliver.networks.checkpoint import load_training_state
from autoliver.training import state
from autoliver.training.loop import _Loop, train_fold

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "half_precision", lambda _, **__: torch.float16)


def test_a_training_scales_its_loss_and_goes_on_with_its_scale(tmp_path: Path) -> None:
    whole = train_fold(make_task(tmp_path / "whole", epochs=2, iterations=2))
    broken = make_task(tmp_path / "broken", epochs=2, iterations=2)
    loop = _Loop(broken)
    assert loop.state.scaler.is_enabled()
    loop.state.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=3)
    loop.run(stop_after(3))
    saved = load_training_state(broken.files.resume)["scaler"]
    assert saved["scale"] in (65536.0 / 2**n for n in range(-1, 9))
    again = _Loop(broken)
    assert again.state.scaler.is_enabled()
    assert again.state.scaler.state_dict() == saved
    rest = train_fold(broken)
    assert rest.finished
    assert whole.finished
    for weights in (*whole.weights.values(), *rest.weights.values()):
        assert bool(torch.isfinite(weights).all())


def test_scaled_steps_move_the_weights_as_unscaled_ones_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = train_fold(make_task(tmp_path / "half", epochs=1, iterations=3))
    monkeypatch.setattr(state, "half_precision", lambda _, **__: None)
    full = train_fold(make_task(tmp_path / "full", epochs=1, iterations=3))
    assert load_training_state(tmp_path / "full/resume.pt")["scaler"] == {}
    assert load_training_state(tmp_path / "half/resume.pt")["scaler"]["scale"] > 1
    assert [log.train_loss for log in half.logs] == pytest.approx(
        [log.train_loss for log in full.logs], rel=0.02
    )
    assert any(not torch.equal(half.weights[name], full.weights[name]) for name in full.weights)
