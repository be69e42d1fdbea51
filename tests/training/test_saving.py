"""The state and the picture of a training are written by a thread."""

import errno
import threading
import time
from pathlib import Path

import pytest
import torch
from small_trainings import make_task, stop_after

from autoliver.errors import AutoliverError
from autoliver.networks.checkpoint import load_training_state, save_training_state
from autoliver.training import saving
from autoliver.training.loop import train_fold
from autoliver.training.saving import Saver, copied

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_copy_stays_what_it_was() -> None:
    weight, losses = torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), [0.5]
    value = {"network": {"w": weight}, "losses": losses, "betas": (0.9, weight), "none": None}
    copy, arrived = copied(value)
    weight.zero_()
    losses.append(0.25)
    arrived()
    assert copy["losses"] == [0.5]
    assert copy["none"] is None
    assert copy["betas"][0] == 0.9
    for found in (copy["network"]["w"], copy["betas"][1]):
        assert torch.equal(found, torch.ones(2, 3, 4, 4))
        assert found.stride() == weight.stride()


def test_work_is_done_in_order_and_one_at_a_time(tmp_path: Path) -> None:
    saver, done, running = Saver(make_task(tmp_path), ()), [], []

    def work(number: int) -> None:
        running.append(number)
        time.sleep(0.01)
        assert running == [number]
        running.clear()
        done.append(number)

    for number in range(4):
        saver.begin(lambda number=number: work(number))
    saver.wait()
    saver.close()
    assert done == [0, 1, 2, 3]


def refused(*_: object, **__: object) -> None:
    raise AutoliverError("resume.pt: cannot be written: no space left", hint="Free some space.")


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_state_that_cannot_be_written_ends_the_training(
    epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "save_training_state", refused)
    with pytest.raises(AutoliverError, match="no space left") as caught:
        train_fold(make_task(tmp_path, epochs=epochs, iterations=2))
    assert caught.value.hint == "Free some space."
    assert not [t for t in threading.enumerate() if t.name.startswith("saver")]


def test_a_full_disk_is_told_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if path.name.endswith(".pt"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    task = make_task(tmp_path, epochs=2, iterations=2)
    with pytest.raises(AutoliverError) as found:
        train_fold(task)
    with pytest.raises(AutoliverError) as expected:
        save_training_state(task.files.resume, {})
    assert str(found.value) == str(expected.value)
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".pt"]


def test_steps_are_taken_while_a_slow_disk_writes_and_a_good_state_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second write begins only when the first one has ended."""
    events: list[str] = []
    stepped = threading.Event()

    def slow(path: Path, state: dict[str, object]) -> None:
        events.append("begins")
        assert stepped.wait(20)
        save_training_state(path, state)
        events.append("ends")

    def stop() -> bool:
        if events:
            stepped.set()  # a step was taken while the first state is still being written
        return False

    monkeypatch.setattr(saving, "save_training_state", slow)
    task = make_task(tmp_path, held_out=0, epochs=3, iterations=2)
    trained = train_fold(task, stop=stop)
    assert trained.finished
    assert events == ["begins", "ends"] * 3
    saved = load_training_state(task.files.resume)
    assert saved["step"] == 6
    for name, weights in saved["network"].items():
        assert torch.isfinite(weights).all(), name


def test_what_is_saved_is_the_state_at_the_end_of_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late it is written."""
    reference = make_task(tmp_path / "one", epochs=2, iterations=2)
    train_fold(reference, stop=stop_after(2))
    first: list[dict[str, torch.Tensor]] = []
    stepped = threading.Event()
    asked = []

    def slow(path: Path, state: dict[str, object]) -> None:
        stepped.wait(20)
        first.append(state["network"])  # type: ignore[arg-type]
        save_training_state(path, state)

    def stop() -> bool:
        asked.append(1)
        if len(asked) == 3:
            stepped.set()
        return False

    monkeypatch.setattr(saving, "save_training_state", slow)
    train_fold(make_task(tmp_path / "two", epochs=2, iterations=2), stop=stop)
    expected = load_training_state(reference.files.resume)["network"]
    for name, weights in expected.items():
        assert torch.equal(weights, first[0][name]), name
