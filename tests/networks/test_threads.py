"""How many threads are chosen, by made-up times; and that they are set and restored."""

from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_info

from autoliver.networks import threads as module
from autoliver.networks.threads import Threads, fastest, numbers_of, threads_of

CPU = torch.device("cpu")


@pytest.fixture
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_each_number_is_half_the_one_before() -> None:
    assert numbers_of(12) == (12, 6, 3, 1)
    assert numbers_of(1) == (1,)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({4: 1.0, 2: 2.0, 1: 4.0}, 4),  # a quiet machine
        ({4: 1.0, 2: 0.9, 1: 1.1}, 4),  # not clearly faster: sums stay as they were
        ({4: 13.0, 2: 5.0, 1: 1.0}, 1),  # threads that wait for each other
        ({4: 3.0, 2: 1.0, 1: 2.0}, 2),
    ],
)
def test_fewer_threads_are_taken_where_they_are_clearly_faster(
    seconds: dict[int, float], expected: int
) -> None:
    assert fastest(4, seconds.__getitem__) == expected


def test_numbers_take_turns_and_a_single_slow_time_decides_nothing() -> None:
    asked: list[int] = []

    def times(number: int) -> float:
        asked.append(number)
        return 100.0 if len(asked) == 1 else float(3 - number)

    assert fastest(2, times) == 2
    assert asked[:4] == [2, 1, 2, 1]


def test_one_thread_is_not_timed() -> None:
    assert fastest(1, lambda _: pytest.fail("timed")) == 1


@pytest.mark.usefixtures("restored")
def test_a_rate_that_falls_by_half_is_a_reason_to_choose_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, loaded, said = [0.0], [False], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def times(number: int) -> float:
        return float(number) if loaded[0] else 1.0 / number

    threads = Threads(2, times, say=said.append)
    assert (threads.number, said) == (2, [])

    def steps(seconds: float) -> None:
        for _ in range(8):
            clock[0] += seconds
            threads.step()

    steps(1.0)
    loaded[0] = True
    steps(1.9)  # slower, but not by half
    assert threads.number == 2
    steps(2.5)  # the middle one of eight: 2.2
    assert threads.number == 1
    assert torch.get_num_threads() == 1
    assert said == [
        "steps take 2.2 times as long as before: 1 thread of 2, which is faster now "
        "(--threads decides)"
    ]
    loaded[0] = False
    clock[0] += module._AGAIN_S
    steps(1.0)  # after half an hour, the load has gone
    assert threads.number == 2


def _blas() -> set[int]:
    return {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}


def test_the_number_that_is_asked_for_is_set_and_restored() -> None:
    before, blas = torch.get_num_threads(), _blas()
    with threads_of(3, CPU, timed=True, say=pytest.fail) as chosen:
        assert chosen is None
        assert torch.get_num_threads() == 3
        assert _blas() <= {3}
    assert (torch.get_num_threads(), _blas()) == (before, blas)


def test_nothing_is_timed_where_the_same_bits_are_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(module, "convolution", lambda: pytest.fail("timed"))
    with threads_of(None, CPU, timed=False, say=pytest.fail) as chosen:
        assert chosen is None


def test_the_probe_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    assert module.convolution()(1) > 0
    assert torch.equal(torch.get_rng_state(), state)
