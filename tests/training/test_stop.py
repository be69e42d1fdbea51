import contextlib
import os
import signal
import threading

import pytest

from autoliver.training.stop import Stopped, stop_on_signal


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 75)])
def test_a_signal_sets_the_flag_and_decides_the_exit_code(name: str, code: int) -> None:
    number = signal.Signals[name]
    signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup, which is heeded
    with stop_on_signal() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        os.kill(os.getpid(), signal.SIGTERM)  # the first one counts
        assert stop()
        assert stop.number == number
    assert Stopped("stopped", stop.number).exit_code == code


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handler_before_comes_back_even_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(ValueError), stop_on_signal():
        assert signal.getsignal(signal.SIGTERM) != before
        raise ValueError
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with stop_on_signal() as stop:
            seen.extend([stop(), signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, before]
