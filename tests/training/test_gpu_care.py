"""What a training does on GPUs and beside them, as far as a machine without one can tell."""

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from small_trainings import make_task, stop_after
from torch import Tensor

from autoliver.errors import MachineError, ModelError
from autoliver.inference.sums import Pinned
from autoliver.training import compiled, fold, loop
from autoliver.training import state as states
from autoliver.training.distributed import Group
from autoliver.training.fold import FoldTask, open_patches, patch_stream, with_room
from autoliver.training.loop import Clock, _Loop, time_steps, train_fold
from autoliver.training.objectives.objective import Tally
from autoliver.training.patches import ahead
from autoliver.training.patches.sampling import Batch, PatchStream
from autoliver.training.patches.stream import Patches
from autoliver.training.reading import Reading
from autoliver.training.saving import copied
from autoliver.training.step import Stepper

pytestmark = pytest.mark.usefixtures("one_thread")

SECOND = torch.device("cuda", 1)
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class OnSecondGpu(Tensor):
    """A tensor that says it is on cuda:1, which is not the current device."""

    device = property(lambda _: SECOND)  # type: ignore[assignment]

    def to(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The streams on which events were recorded, each named by its device."""
    found: list[Any] = []

    class Event:
        def __init__(self, **_: Any) -> None:
            pass

        def record(self, stream: Any = "that of the current device") -> None:
            found.append(stream)

        def synchronize(self) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: device)
    return found


def on_second(value: float) -> Tensor:
    return torch.tensor(value).as_subclass(OnSecondGpu)


def test_numbers_are_read_behind_the_work_of_their_own_gpu(streams: list[Any]) -> None:
    reading = Reading(on_second(0.5), on_second(2.0), Tally.empty({}))
    assert reading.values()[:2] == (0.5, 2.0)
    assert streams == [SECOND]


def test_states_are_copied_behind_the_work_of_their_own_gpu(streams: list[Any]) -> None:
    found, wait = copied({"weights": [on_second(3.0)]})
    wait()
    assert found["weights"][0].item() == 3.0
    assert streams == [SECOND]


def test_each_gpu_has_one_side_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    ahead._side_stream.cache_clear()
    one, again, other = (ahead._side_stream(torch.device("cuda", n)) for n in (0, 0, 1))
    ahead._side_stream.cache_clear()
    assert one is again
    assert (one.device.index, other.device.index) == (0, 1)


@pytest.fixture
def no_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty

    def refused(*args: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return real(*args, **options)

    monkeypatch.setattr(torch, "empty", refused)


@pytest.mark.usefixtures("no_pinned_memory")
def test_where_no_page_locked_memory_is_granted_batches_are_sent_from_other_memory() -> None:
    buffers = ahead.SendBuffers()
    buffers.begin()
    array = buffers.allocate((2, 3), np.float32)
    array[:] = 7
    assert (array.shape, array.sum()) == ((2, 3), 42)


@pytest.mark.usefixtures("no_pinned_memory")
def test_where_no_page_locked_memory_is_granted_results_are_copied_plainly() -> None:
    assert Pinned().copy(on_second(5.0)).item() == 5.0


def test_a_skipped_step_leaves_weights_and_their_running_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "FUSED_ON", frozenset({"cpu"}))
    state = _Loop(make_task(tmp_path, schedule="short", ema=0.99)).state
    assert state.averaged is not None
    for weight, mean in zip(state.weights, state.averaged.parameters(), strict=True):
        weight.grad = torch.ones_like(weight)
        mean.data += 1.0
    before = [m.clone() for m in state.averaged.parameters()]
    state.update_if_finite(torch.tensor([1.0, float("nan")]))
    for mean, old in zip(state.averaged.parameters(), before, strict=True):
        assert torch.equal(mean, old)
    state.step = 100
    state.update_if_finite(torch.tensor([1.0, 2.0]))
    share = 1 - 101 / 110
    for mean, old, new in zip(state.averaged.parameters(), before, state.weights, strict=True):
        torch.testing.assert_close(mean, old + share * (new - old))


def test_an_optimiser_of_other_weights_is_refused_by_file_and_numbers(tmp_path: Path) -> None:
    state = _Loop(make_task(tmp_path)).state
    saved = state.snapshot()
    number = len(state.weights)
    group = saved["optimizer"]["param_groups"][0]
    saved["optimizer"]["param_groups"] = [
        {**group, "params": group["params"][:3]},
        {**group, "params": group["params"][3:]},
    ]
    with pytest.raises(ModelError, match=rf"^here/resume.pt: .* 3 and {number - 3} .* {number} "):
        state.restore(saved, where="here/resume.pt")


def test_of_several_processes_one_that_is_full_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(make_task(tmp_path), group=cast(Group, SimpleNamespace(size=2, rank=1)))
    on_gpu = cast(Any, (SimpleNamespace(cache="gpu"), None))
    monkeypatch.setattr(fold, "open_patches", lambda _: on_gpu)

    def full(*_: Any) -> None:
        raise FULL

    with pytest.raises(MachineError, match="fold 0: the GPU of process 1 has too little") as e:
        with_room(task, full)
    assert "--cache ram" in e.value.hint


def test_the_time_of_a_run_that_was_given_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = Clock()
    clock.begin(50.0, at=now[0])  # an earlier session took 50 s
    now[0] += 30  # of which 10 s were taken before the last state was saved
    clock.begin(60.0, at=now[0])
    now[0] += 5
    assert clock.elapsed == 85.0


def test_both_runs_of_a_training_have_one_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = []

    def twice(task: FoldTask, run: Any) -> Any:
        for _ in range(2):
            clocks.append(_seen_clock(run, task, monkeypatch))
        return None

    monkeypatch.setattr(loop, "with_room", twice)
    train_fold(make_task(tmp_path))
    assert clocks[0] is clocks[1]


def _seen_clock(run: Any, task: FoldTask, monkeypatch: pytest.MonkeyPatch) -> Any:
    seen: list[Any] = []
    monkeypatch.setattr(loop, "_Loop", lambda _task, _patches, clock: seen.append(clock) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(task, None)
    return seen[0]


def test_hours_compile_the_network_and_the_loss_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    made: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda each, **_: made.append(each) or each)
    options = {"epochs": 30_000, "iterations": 1, "hours": 1.0, "schedule": "auto"}
    task = make_task(tmp_path / "hours", **options)
    found = _Loop(replace(task, machine=task.machine.replace(compile="on")))
    assert len(made) == 2
    assert found.stepper.state is found.state
    # The steps that were timed have left nothing behind.
    fresh = _Loop(make_task(tmp_path / "fresh", epochs=1, iterations=1)).state
    assert found.state.step == 0
    assert not found.state.optimizer.state or found.state.recipe.optimizer == "sgd"
    for name, weight in fresh.network.state_dict().items():
        assert torch.equal(weight, found.state.network.state_dict()[name]), name
        if found.state.averaged is not None:
            assert torch.equal(weight, found.state.averaged.state_dict()[name]), name


@pytest.mark.parametrize("deterministic", [True, False])
def test_steps_are_timed_under_the_switches_of_a_training(
    deterministic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], Stepper.take

    def take(self: Stepper, batch: Any) -> None:
        seen.append(torch.backends.cudnn.benchmark)
        real(self, batch)

    monkeypatch.setattr(Stepper, "take", take)
    time_steps(make_task(tmp_path, deterministic=deterministic), seconds=0.0)
    assert seen == [not deterministic] * 2


def disk_patches(folder: Path, *, keep_gb: float = 0.0) -> Patches:
    task = make_task(folder)
    stream = patch_stream(task, task.train, None, number=1)
    return Patches(stream, "disk", torch.device("cuda"), keep_gb=keep_gb)


def test_batches_that_are_kept_are_sent_from_memory_that_is_used_again(tmp_path: Path) -> None:
    patches, buffers = disk_patches(tmp_path, keep_gb=1.0), ahead.SendBuffers(pinned=False)
    for _ in range(2):
        sent = [batch for batch, _ in patches._source(range(4), buffers)]
        owned = {part.data_ptr() for some in buffers._sets for part in some}
        assert {batch.image.data_ptr() for batch in sent} <= owned
    # The ring has two sets, so that the last batches are still there.
    for number in (2, 3):
        assert np.array_equal(sent[number].image.numpy(), patches.stream.draw(number).image)
    assert sorted(patches._kept) == [0, 1, 2, 3]
    assert not {id(each.image) for each in patches._kept.values()} & owned


def test_a_batch_is_not_drawn_again_while_a_thread_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches, inside, go_on = disk_patches(tmp_path), threading.Event(), threading.Event()
    order: list[str] = []
    draw, whole = PatchStream.draw, PatchStream.draw_whole

    def slow(self: PatchStream, number: int, *rest: Any) -> Batch:
        inside.set()
        go_on.wait(10)
        order.append("drawn")
        return draw(self, number, *rest)

    def noted(self: PatchStream, number: int) -> Batch:
        order.append("again")
        return whole(self, number)

    monkeypatch.setattr(PatchStream, "draw", slow)
    monkeypatch.setattr(PatchStream, "draw_whole", noted)
    drawing = threading.Thread(target=lambda: patches._here(0, np.empty))
    again = threading.Thread(target=lambda: patches.redraw(0))
    drawing.start()
    inside.wait(10)
    again.start()
    again.join(0.2)
    go_on.set()
    drawing.join()
    again.join()
    assert order == ["drawn", "again"]


def test_what_makes_items_is_closed_after_the_item_that_is_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    making, go_on, notes = threading.Event(), threading.Event(), list[str]()

    def items() -> Iterator[int]:
        try:
            yield 0
            making.set()
            go_on.wait(10)
            notes.append("made")
            yield 1
        finally:
            notes.append("closed")

    # Ctrl-C while the training waits for the thread.
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    source = items()
    coming = ahead.ahead(source)
    assert next(coming) == 0
    making.wait(10)
    real = ahead.ThreadPoolExecutor.shutdown
    monkeypatch.setattr(ahead.ThreadPoolExecutor, "shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt), closing(coming):
        pass
    monkeypatch.setattr(ahead.ThreadPoolExecutor, "shutdown", real)
    assert notes == []
    go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(10)
    assert notes == ["made", "closed"]


def test_a_training_that_stops_in_the_middle_closes_its_threads(tmp_path: Path) -> None:
    assert not train_fold(make_task(tmp_path), stop=stop_after(1)).finished
    names = [each.name for each in threading.enumerate()]
    assert not [name for name in names if name.startswith(("ThreadPool", "saver"))]


def compiling(
    folder: Path, monkeypatch: pytest.MonkeyPatch, broken: Any, **options: Any
) -> Stepper:
    """A stepper whose compiled network is a function."""
    monkeypatch.setattr(torch, "compile", lambda each, **_: broken(each))
    task = make_task(folder, **options)
    task = replace(task, machine=task.machine.replace(compile="on"))
    return _Loop(task, open_patches(task)).stepper


def test_several_processes_do_not_go_on_without_compilation_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = compiling(tmp_path, monkeypatch, lambda each: each)
    stepper.task = replace(stepper.task, group=cast(Group, SimpleNamespace(size=2, rank=1)))
    with pytest.raises(MachineError, match=r"compiled in process 1 \(no nvcc\)") as caught:
        stepper._give_up_compiling(RuntimeError("no nvcc"))
    assert "--compile off" in caught.value.hint


def test_a_step_without_compilation_has_the_memory_of_the_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def broken(each: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            found = each(*args, **options)
            features = torch.zeros(1000)
            held.append(weakref.ref(features))
            raise RuntimeError("a kernel cannot be launched")
            return found

        return run if isinstance(each, torch.nn.Module) else each

    stepper = compiling(tmp_path, monkeypatch, broken)
    plain = Stepper._begin_step

    def noted(self: Stepper) -> None:
        gc.collect()
        alive.append(sum(ref() is not None for ref in held))
        plain(self)

    monkeypatch.setattr(Stepper, "_begin_step", noted)
    (batch,) = (
        stepper.train.batches(
            range(1), patch_shape=stepper.task.configuration.drawn_shape, spec=None
        )
        if stepper.train.stream.spatial is None
        else [_whole(stepper)]
    )
    stepper.take(batch)
    assert len(held) == 1
    assert alive == [0, 0]
    assert not stepper.compiles


def _whole(stepper: Stepper) -> Any:
    from autoliver.training.patches.stream import TrainingBatch

    drawn = stepper.train.redraw(0)
    return TrainingBatch(
        0,
        torch.from_numpy(drawn.image)[..., :16, :16].contiguous(),
        torch.from_numpy(drawn.label)[..., :16, :16].clamp_min(0).contiguous(),
        drawn.cases,
    )


def test_what_is_unfrozen_is_compiled_anew_and_may_fail_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    stepper = compiling(tmp_path, monkeypatch, lambda each: made.append(each) or each)
    number = len(made)
    stepper._proven = True
    stepper._freeze(1)
    assert len(made) == number + 1
    assert not stepper._proven
