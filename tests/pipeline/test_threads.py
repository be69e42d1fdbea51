"""The threads of a training: asked for, kept where the same bits are promised, told in its log."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_trainings import make_task, stop_after

from autoliver.errors import OptionError
from autoliver.machine import Machine
from autoliver.networks import threads as networks
from autoliver.pipeline.run.threads import ThreadsUsed, threads_for
from autoliver.training.fold import FoldTask
from autoliver.training.loop import train_fold


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def task(folder: Path, threads: int | None = None, *, deterministic: bool = False) -> FoldTask:
    made = make_task(folder, epochs=1, iterations=4, deterministic=deterministic)
    return replace(made, machine=Machine(cache="ram", threads=threads))


def train(what: FoldTask, steps: int) -> int:
    """Trains up to a step; returns the threads that it used."""
    seen = []
    last = stop_after(steps)

    def stop() -> bool:
        seen.append(torch.get_num_threads())
        return last()

    with threads_for(what, stop) as asked:
        train_fold(what, stop=asked)
    (used,) = set(seen)
    return used


def test_a_deterministic_training_goes_on_with_the_threads_it_began_with(tmp_path: Path) -> None:
    assert train(task(tmp_path, 1, deterministic=True), 2) == 1
    assert ThreadsUsed.load(tmp_path / "threads.json").threads == 1
    # Two are the default here, and neither the load nor anything else is asked.
    assert train(task(tmp_path, deterministic=True), 1) == 1
    assert torch.get_num_threads() == 2


def test_another_number_than_it_began_with_is_refused(tmp_path: Path) -> None:
    assert train(task(tmp_path, deterministic=True), 2) == 2
    with pytest.raises(OptionError, match=r"--threads 1.*began with 2") as caught:
        train(task(tmp_path, 1, deterministic=True), 1)
    assert "--fresh" in caught.value.hint


def test_a_training_that_begins_again_may_have_another_number(tmp_path: Path) -> None:
    ThreadsUsed(threads=7).save(tmp_path / "threads.json")  # without a state that goes on
    assert train(task(tmp_path, 1, deterministic=True), 1) == 1


def test_what_is_asked_for_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "fastest", lambda *_: pytest.fail("timed"))
    assert train(task(tmp_path, 3), 1) == 3
    assert not (tmp_path / "threads.json").exists()


def test_what_is_chosen_by_timing_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "fastest", lambda most, _: most - 1)
    assert train(task(tmp_path), 1) == 1
    log = (tmp_path / "train.log").read_text()
    assert "1 thread of 2, which is faster now (--threads decides)" in log
