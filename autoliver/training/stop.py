"""Stops a training on SIGTERM, which schedulers send before they kill a process."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from autoliver.errors import AutoliverError


class Stopped(AutoliverError):
    """SIGTERM was received: finished work is saved, and no further work may be started."""


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a flag while the block runs.

    Only the main thread can receive signals: in other threads the flag is never set.

    Yields:
        A function that returns whether SIGTERM was received.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
