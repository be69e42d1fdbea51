"""Asking a training to stop: SIGTERM is what schedulers send before they kill."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from autoliver.errors import AutoliverError


class Stopped(AutoliverError):
    """SIGTERM came; what was done is saved, and nothing more is to be begun."""


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a flag while the block runs; outside the main thread nothing ever stops.

    Yields:
        Whether SIGTERM was received.
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
