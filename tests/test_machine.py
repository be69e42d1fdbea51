"""The share of a machine that a process gets."""

from collections.abc import Callable

import msgspec
import pytest

from autoliver import machine as module
from autoliver.machine import Machine
from autoliver.parallel import CasePool, Limits, Need


@pytest.fixture
def with_cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda number: monkeypatch.setattr(module, "cores", lambda: number)


@pytest.mark.parametrize(
    ("cores", "workers", "loaders", "number", "shared"),
    [
        # One core stays with the training; eight workers at most.
        (1, 0, 1, 1, 1),
        (2, 0, 1, 2, 1),
        (8, 0, 7, 2, 4),
        (64, 0, 8, 2, 8),
        (64, 0, 8, 16, 4),
        # What was asked for is taken as it is, by every process.
        (2, 5, 5, 2, 5),
    ],
)
def test_workers_are_those_asked_for_or_what_the_cores_allow(
    with_cores: Callable[[int], None],
    cores: int,
    workers: int,
    loaders: int,
    number: int,
    shared: int,
) -> None:
    with_cores(cores)
    machine = Machine(limits=Limits(workers=workers, memory_gb=8.0))
    assert machine.loaders == loaders
    assert machine.share(number, device="cpu").limits.workers == shared


def test_memory_is_divided_and_never_nothing() -> None:
    machine = Machine(gpus=(0, 1, 2), jobs=None, limits=Limits(memory_gb=10.0))
    share = machine.share(3, device="cuda:2")
    assert (share.device, share.gpus, share.jobs) == ("cuda:2", (), None)
    assert share.limits.memory_gb == 3.33
    assert Machine(limits=Limits(memory_gb=0.1)).share(4, device="cpu").limits.memory_gb == 0.1


def test_a_machine_goes_through_json() -> None:
    machine = Machine(cache="disk", gpus=(1,), limits=Limits(workers=3, memory_gb=2.5))
    assert msgspec.json.decode(msgspec.json.encode(machine), type=Machine) == machine


def test_a_pool_keeps_the_limits() -> None:
    def need(item: object) -> Need:
        return Need(name=str(item), gb=0.1)

    limits = Limits(workers=2, memory_gb=1.0)
    pool = Machine(limits=limits).pool("stage", need=need, light=True)
    assert pool == CasePool(what="stage", limits=limits, need=need, light=True)
    assert list(pool.map(abs, [-1, 2])) == [1, 2]
