"""Stages that map over cases: worker processes, and bars that say how far they are."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

from autoliver.errors import AutoliverError

T = TypeVar("T")


@contextlib.contextmanager
def case_workers(wanted: int, cases: int) -> Iterator[Executor | None]:
    """Worker processes for a stage over cases; None where one process would do.

    Args:
        wanted: How many; 0: one for each core this process may use.
        cases: More workers than cases would idle.

    Raises:
        AutoliverError: The kernel killed a worker.
    """
    number = min(wanted or _cores(), cases)
    if number <= 1:
        yield None
        return
    # spawn: forking a process that runs torch's threads can hang
    with ProcessPoolExecutor(number, mp_context=get_context("spawn")) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise AutoliverError(
                "A worker process was killed, most likely for want of memory.",
                hint=f"Run the same command with fewer processes: --workers {max(1, number // 2)}. "
                "Finished cases are kept.",
            ) from error


def _cores() -> int:
    # macOS and Windows cannot say which cores a process may use.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def case_bar(what: str, total: int) -> Callable[[Iterable[T]], Iterable[T]]:
    """Wraps the results of a stage in a bar on stderr; no bar for no cases."""

    def wrap(items: Iterable[T]) -> Iterable[T]:
        return tqdm(items, desc=what, total=total, unit="case", disable=total == 0)

    return wrap


@contextlib.contextmanager
def window_bars(cases: int) -> Iterator[Callable[[str, int], Callable[[], object]]]:
    """One bar that starts anew with every case, counting windows.

    Yields:
        Called with a case and its number of windows; returns what is to be called after each.
    """
    with tqdm(unit="window") as bar:
        number = 0

        def start(name: str, windows: int) -> Callable[[], object]:
            nonlocal number
            number += 1
            bar.reset(windows)
            bar.set_description(f"predict {name} ({number}/{cases})")
            return bar.update

        yield start
