"""Stops a training on SIGTERM, which schedulers send before they kill a process."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from autoliver.errors import AutoliverError
from autoliver.system import STOP_SIGNALS


class Stopped(AutoliverError):
    """SIGTERM was received: finished work is saved, and no further work may be started."""


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM, and the loss of the terminal, into a flag while the block runs.

    Only the main thread can receive signals: in other threads the flag is never set.

    Yields:
        A function that returns whether a signal was received.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
