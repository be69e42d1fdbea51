"""Stages that map over cases: worker processes within a memory limit, and bars.

A worker that the kernel kills for want of memory takes its pool with it. Its cases, and those of
the workers beside it, are then tried again alone; only a case that fails alone stops the stage.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from autoliver.errors import AutoliverError
from autoliver.memory import default_memory_gb, free_gb
from autoliver.values import check_number, check_types, check_whole

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

_log = logging.getLogger(__name__)

# What a worker holds before its first case: Python, numpy, SimpleITK (measured: 0.17 GB).
_WORKER_GB = 0.2
# A light stage whose cases together need less is done within two seconds on one core, no longer
# than with workers to be started first (measured: 14 cases, 0.55 GB, 1.3 s here, 2.0 s with two).
_WORTH_STARTING_GB = 1.0
# What stages over cases read, compute and write with.
_PRELOADED = ["SimpleITK", "nibabel", "scipy.ndimage", "blosc2"]
_SHOWN = 4  # cases named in one message
_SECONDS_IN_FILES = 60.0  # between two drawings of a bar; a training of days stays below 1 MB


class CaseMapper(Protocol):
    """What stages map over cases with: a `CasePool`, or any concurrent.futures.Executor."""

    def map(self, function: Callable[[A], R], items: Iterable[A], /) -> Iterator[R]:
        """The function's result for each item, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What is known of a case before it is read.

    Attributes:
        name: The case's.
        gb: Estimated peak memory of a process for it, beyond what any process holds.
    """

    name: str
    gb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a stage may use.

    Attributes:
        workers: Processes; 0: one for each core this process may use.
        memory_gb: Memory of all processes together; None for what is free, less 2 GB.
    """

    workers: int = 0
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be.

        Raises:
            OptionError: Naming the option and its value.
        """
        check_types(self)
        check_whole("--workers", self.workers, least=0)
        if self.memory_gb is not None:
            check_number("--memory-gb", self.memory_gb, above=0)

    @property
    def budget_gb(self) -> float:
        """The memory there is to plan with."""
        return default_memory_gb() if self.memory_gb is None else self.memory_gb


# All cores, and the memory that is free.
NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True, slots=True)
class CasePool:
    """Runs a stage over cases in processes of this machine; see `map_cases`.

    Attributes:
        what: The stage, for messages.
        limits: How many processes, and how much memory.
        need: What an item will need.
        light: Whether it does little more than read its cases.
    """

    what: str
    limits: Limits
    need: Callable[[Any], Need]
    light: bool = False

    def map(self, function: Callable[[A], R], items: Iterable[A], /) -> Iterator[R]:
        """The function's result for each item, in their order."""
        every = list(items)
        return map_cases(function, every, needs=[self.need(item) for item in every], pool=self)


def map_cases(
    function: Callable[[A], R],
    items: Sequence[A],
    *,
    needs: Sequence[Need],
    pool: CasePool,
) -> Iterator[R]:
    """Applies a function to every case, in as many processes as pay and memory allows.

    Args:
        function: Takes one item. It, its items and its results can be pickled.
        items: The cases.
        needs: One for each item.
        pool: How many processes, and how much memory.

    Returns:
        The results in the order of the items, as they become known.

    Raises:
        AutoliverError: There is not enough memory for a case even where it runs alone.
    """
    number = _processes(needs, pool)
    work = _Work(function=function, items=items, needs=needs)
    return _in_order(work.here() if number == 0 else work.spread(number))


def _in_order(results: Iterable[tuple[int, R]]) -> Iterator[R]:
    held: dict[int, R] = {}
    following = 0
    for index, result in results:
        held[index] = result
        while following in held:
            yield held.pop(following)
            following += 1


def _processes(needs: Sequence[Need], pool: CasePool) -> int:
    """How many worker processes; 0: do it in this one."""
    limits = pool.limits
    wanted = min(limits.workers or cores(), len(needs))
    budget, planned, fit = limits.budget_gb, 0.0, 0
    largest = sorted(needs, key=lambda need: need.gb, reverse=True)
    for need in largest[:wanted]:
        planned += need.gb + _WORKER_GB
        fit += planned <= budget
    if fit < wanted:
        _log.warning(
            "%s: %d instead of %d processes: %s needs about %.1f GB, %.1f GB may be used "
            "(--memory-gb).",
            *(pool.what, max(fit, 1), wanted, largest[0].name, largest[0].gb, budget),
        )
        # A process of its own even for one: if it is killed, this one can report it.
        return max(fit, 1)
    quick = pool.light and sum(need.gb for need in needs) < _WORTH_STARTING_GB
    return 0 if wanted <= 1 or (quick and not limits.workers) else wanted


@dataclass(kw_only=True)
class _Work(Generic[A, R]):
    """One stage over all its cases; results come as pairs of index and result, in any order."""

    function: Callable[[A], R]
    items: Sequence[A]
    needs: Sequence[Need]

    def here(self) -> Iterator[tuple[int, R]]:
        for index, item in enumerate(self.items):
            try:
                result = self.function(item)
            except MemoryError as error:
                raise _too_large(self.needs[index], "memory ran out") from error
            yield index, result

    def spread(self, number: int) -> Iterator[tuple[int, R]]:
        waiting = deque(range(len(self.items)))
        while waiting:
            run = _PoolRun(work=self, number=number, waiting=waiting)
            yield from run.results()
            if not run.lost:
                return
            needs = [self.needs[index] for index in run.lost]
            _log.warning(
                "%s with %s in work (the largest needs about %.1f GB; %.1f GB are free). "
                "Trying again, one case at a time.",
                *(run.cause, _names(needs), max(need.gb for need in needs), free_gb()),
            )
            yield from self._alone(run.lost)
            number = max(1, number // 2)

    def _alone(self, indices: Iterable[int]) -> Iterator[tuple[int, R]]:
        run = _PoolRun(work=self, number=1, waiting=deque(indices))
        yield from run.results()
        if run.lost:
            raise _too_large(self.needs[run.lost[0]], run.cause)


@dataclass(kw_only=True)
class _PoolRun(Generic[A, R]):
    """One pool, until the cases are done or a worker dies.

    Attributes:
        work: The stage.
        number: Processes.
        waiting: Indices of the cases to do; those begun are taken out.
        lost: Indices of the cases that were in work when a worker died.
        cause: What became of the worker, the first words of a message.
    """

    work: _Work[A, R]
    number: int
    waiting: deque[int]
    lost: list[int] = field(default_factory=list)
    cause: str = ""

    def results(self) -> Iterator[tuple[int, R]]:
        # No more cases are handed over than there are workers, so that those in work are known.
        pool = ProcessPoolExecutor(self.number, mp_context=_fresh_processes())
        running: dict[Future[R], int] = {}
        workers: list[BaseProcess] = []
        try:
            while self.waiting or running:
                while self.waiting and len(running) < self.number:
                    future = pool.submit(self.work.function, self.work.items[self.waiting[0]])
                    running[future] = self.waiting.popleft()
                workers = workers or list(multiprocessing.active_children())
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result
        except (BrokenProcessPool, MemoryError) as error:
            pool.shutdown(wait=True, cancel_futures=True)
            self.cause = _cause(error, workers)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for future, index in running.items():
            if isinstance(future.exception(), BrokenProcessPool | MemoryError):
                self.lost.append(index)
            else:
                yield index, future.result()


def _fresh_processes() -> BaseContext:
    """How to start workers: not as copies of this one, which hang if torch's threads run in it."""
    if sys.platform != "linux":
        return get_context("spawn")
    # Copies of a fresh process that has loaded the libraries: a second of CPU time for all workers
    # together instead of one for each. Libraries that are missing are passed over.
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _cause(error: Exception, workers: Iterable[BaseProcess]) -> str:
    if isinstance(error, MemoryError):
        return "A worker process ran out of memory"
    # The pool itself ends the others with SIGTERM.
    return cause_of_death(w.exitcode for w in workers if w.exitcode != -signal.SIGTERM)


def cause_of_death(codes: Iterable[int | None]) -> str:
    """What became of worker processes with these exit codes; the first words of a message."""
    known = sorted({code for code in codes if code})
    if -signal.SIGKILL in known:
        return "A worker process was killed, most likely by the kernel for want of memory,"
    how = ", ".join(f"exit code {code}" for code in known) or "no exit code"
    return f"A worker process died ({how})"


def _too_large(need: Need, cause: str) -> AutoliverError:
    return AutoliverError(
        f"{need.name}: {cause[0].lower()}{cause[1:].rstrip(',')} although the case ran alone. It "
        f"needs about {need.gb:.1f} GB; {free_gb():.1f} GB are free.",
        hint="Close other programs, use a machine with more memory, or leave the case out.",
    )


def _names(needs: Sequence[Need]) -> str:
    more = f" and {len(needs) - _SHOWN} more" if len(needs) > _SHOWN else ""
    return ", ".join(need.name for need in needs[:_SHOWN]) + more


def cores() -> int:
    """How many cores this process may use."""
    # macOS and Windows cannot say which cores a process may use.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bar_pace() -> dict[str, Any]:
    """Arguments for tqdm: how often a bar is drawn; into a file seldom, since all of it stays."""
    seconds = 0.1 if sys.stderr.isatty() else _SECONDS_IN_FILES
    return {"mininterval": seconds, "maxinterval": max(seconds, 10.0)}


def case_bar(what: str, total: int) -> Callable[[Iterable[T]], Iterable[T]]:
    """Wraps the results of a stage in a bar on stderr; no bar for no cases."""

    def wrap(items: Iterable[T]) -> Iterable[T]:
        return tqdm(items, desc=what, total=total, unit="case", disable=total == 0, **bar_pace())

    return wrap


@contextlib.contextmanager
def window_bars(cases: int) -> Iterator[Callable[[str, int], Callable[[], object]]]:
    """One bar that starts anew with every case, counting windows.

    Yields:
        Called with a case and its number of windows; returns what is to be called after each.
    """
    with tqdm(unit="window", **bar_pace()) as bar:
        names: dict[str, None] = {}  # a case may come again, for another member of an ensemble

        def start(name: str, windows: int) -> Callable[[], object]:
            names[name] = None
            bar.reset(windows)
            bar.set_description(f"predict {name} ({len(names)}/{cases})")
            return bar.update

        yield start
