"""Stops a training on the signals that schedulers send before they kill a process."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from autoliver.errors import AutoliverError
from autoliver.system import STOP_SIGNALS, code_after, say_if_slow


class Stopped(AutoliverError):
    """A signal was received: finished work is saved, and no further work may be started.

    Args:
        problem: As for `AutoliverError`.
        number: The signal's number, which decides the exit code.
        hint: As for `AutoliverError`.
    """

    def __init__(
        self, problem: str, number: int = signal.SIGTERM, *, hint: str = "Run it again to continue."
    ) -> None:
        super().__init__(problem, hint=hint)
        self.exit_code = code_after(number)


class StopRequest:
    """Whether a signal has asked this process to stop, and which.

    Attributes:
        number: The number of the first signal that was received; 0 for none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._slow: threading.Timer | None = None

    def __call__(self) -> bool:
        """Whether a signal was received."""
        return self.number != 0

    def note(self, number: int, _: object = None) -> None:
        """Notes a signal; the first one counts."""
        if not self.number:
            self._slow = say_if_slow(f"{name_of(number)}: saving the state, then stopping ...")
        self.number = self.number or number

    def done(self) -> None:
        """Keeps it from saying that it is being saved, since it is."""
        if self._slow is not None:
            self._slow.cancel()


def name_of(number: int) -> str:
    """The name of a signal, such as SIGTERM."""
    return signal.Signals(number).name


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns what asks a process to end into a flag while the block runs (`STOP_SIGNALS`).

    Only the main thread can receive signals: in other threads the flag is never set.

    Yields:
        A function that returns whether a signal was received, and says which.
    """
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, asked.note)
    try:
        yield asked
    finally:
        asked.done()
        for number, handler in before.items():
            signal.signal(number, handler)
