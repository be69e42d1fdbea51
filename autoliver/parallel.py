"""Runs stages over cases in worker processes within a memory limit, with progress bars.

When the kernel kills a worker because memory is short, the whole pool breaks. The cases of all its
workers are then tried again one at a time. The stage stops only if a case fails on its own.
"""

import contextlib
import errno
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from threading import Lock
from types import ModuleType
from typing import Any, Generic, Protocol, TextIO, TypeVar

from tqdm import tqdm

from autoliver.errors import AutoliverError, OptionError
from autoliver.memory import default_memory_gb, free_gb
from autoliver.system import stops_later
from autoliver.values import check_number, check_types, check_whole, counted, first_few

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")

_log = logging.getLogger(__name__)

# Memory of a worker before its first case: Python, numpy, SimpleITK (measured: 0.17 GB).
_WORKER_GB = 0.2
# A light stage whose cases together need less memory than this takes less than two seconds on one
# core, no longer than with workers, which have to be started first (measured with 14 cases, 0.55
# GB: 1.3 s in this process, 2.0 s with two workers).
_WORTH_STARTING_GB = 1.0
# Without --memory-gb, a case is refused if it needs more than so many times what is free.
_OVER_FREE = 8.0
# The libraries that stages over cases use to read, compute and write.
_PRELOADED = ["SimpleITK", "nibabel", "scipy.ndimage", "blosc2"]
# errno values of limits on processes and open files.
_OF_LIMITS = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Seconds between two looks whether a pool still works.
_LOOK_S = 2.0
# The bar takes the room that the numbers leave.
_OF_CASES = "{desc} |{bar}| {remaining} left{postfix}"
_ROUNDING = 1e-9  # of thirds and the like that are added up
_SHOWN = 4  # cases named in one message
# Seconds between two updates of a bar that is written to a file, so that the log of a training that
# takes days stays below 1 MB.
_SECONDS_IN_FILES = 60.0


class CaseMapper(Protocol):
    """Maps a function over cases: a `CasePool`, or any concurrent.futures.Executor."""

    def map(self, function: Callable[[A], R], items: Iterable[A], /) -> Iterator[R]:
        """Yields the function's result for each item, in the order of the items."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """The estimated memory of a case, known before it is read.

    Attributes:
        name: The case's name.
        gb: Estimated peak memory in GB that a process takes for this case, without the memory that
            every worker process takes.
    """

    name: str
    gb: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits on the processes and the memory of a stage.

    Attributes:
        workers: Number of worker processes; 0 for one per core that this process may use.
        memory_gb: Memory of all processes together, in GB; None for the free memory minus 2 GB.
    """

    workers: int = 0
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        """Refuses invalid numbers.

        Raises:
            OptionError: A number is invalid; the error names the option and its value.
        """
        check_types(self)
        check_whole("--workers", self.workers, least=0)
        if self.memory_gb is not None:
            check_number("--memory-gb", self.memory_gb, above=0)

    @property
    def budget_gb(self) -> float:
        """Memory in GB that the stage may use: the limit, or by default the free memory."""
        return default_memory_gb() if self.memory_gb is None else self.memory_gb


# All cores and the free memory.
NO_LIMITS = Limits()


@dataclass(frozen=True, kw_only=True, slots=True)
class CasePool:
    """Runs a stage over cases in processes of this machine; see `map_cases`.

    Attributes:
        what: The stage's name, for messages.
        limits: Limits on the processes and the memory.
        need: Estimates the memory that an item takes.
        light: Whether the stage does little more than read its cases.
        threads: Threads of BLAS in each process; None: the cores divided by the processes.
    """

    what: str
    limits: Limits
    need: Callable[[Any], Need]
    light: bool = False
    threads: int | None = None

    def map(self, function: Callable[[A], R], items: Iterable[A], /) -> Iterator[R]:
        """Yields the function's result for each item, in the order of the items.

        Raises:
            OptionError: An item needs more memory than may be used; nothing has been begun.
        """
        every = list(items)
        needs = [self.need(item) for item in every]
        refuse_over_budget(needs, self.limits, self.what)
        return map_cases(function, every, needs=needs, pool=self)


def over_budget(
    needs: Sequence[Need], limits: Limits, what: str, *, instead: Sequence[str] = ()
) -> dict[str, OptionError]:
    """Finds the cases that need more memory than may be used.

    What --memory-gb says is kept. What is free is not known for long, and the estimates are rounded
    up and know nothing of cropping, so that without --memory-gb only a case that needs a multiple
    of it is refused, which would be killed.

    Args:
        needs: One for each case, each alone.
        limits: The memory that may be used.
        what: The stage, for the message.
        instead: What may be done to need less, for the hint.

    Returns:
        Case -> what to tell of it, the largest case first.
    """
    budget, asked = limits.budget_gb, limits.memory_gb is not None
    most = budget if asked else budget * _OVER_FREE
    over = sorted((need for need in needs if need.gb > most), key=lambda need: -need.gb)
    allowed = f"--memory-gb allows {_gb(budget)}" if asked else f"{_gb(budget)} may be used"
    return {
        need.name: OptionError(
            f"{need.name}: to {what} it needs about {_gb(need.gb)}, {allowed}.",
            hint=", ".join(
                [
                    "Allow more with --memory-gb" if asked else "Use a machine with more memory",
                    *instead,
                    "leave the case out",
                    "or correct its spacing if that is wrong (autoliver verify).",
                ]
            ),
        )
        for need in over
    }


def refuse_over_budget(needs: Sequence[Need], limits: Limits, what: str) -> None:
    """Refuses the work if a case is `over_budget`, before it is begun.

    Raises:
        OptionError: Naming the largest case and the numbers.
    """
    for error in over_budget(needs, limits, what).values():
        raise error


def _gb(size: float) -> str:
    return f"{size:.1f} GB" if size >= 0.1 else f"{size:.2g} GB"


def map_cases(
    function: Callable[[A], R],
    items: Sequence[A],
    *,
    needs: Sequence[Need],
    pool: CasePool,
) -> Iterator[R]:
    """Applies a function to every case, in as many processes as are useful and fit into memory.

    Args:
        function: Takes one item. The function, the items and the results must be picklable.
        items: The cases.
        needs: The estimated memory of each item.
        pool: The stage with its limits on processes and memory.

    Returns:
        An iterator of the results in the order of the items; each is yielded as soon as it and all
        results before it are there.

    Raises:
        AutoliverError: There is not enough memory for a case even when it runs alone.
    """
    number = _processes(needs, pool)
    threads = pool.threads or max(1, cores() // max(1, number))
    work = _Work(function=function, items=items, needs=needs, threads=threads)
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
    """Returns the number of worker processes; 0 to run the cases in this process."""
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
        # Even a single worker gets its own process, so that this one can report if it is killed.
        return max(fit, 1)
    quick = pool.light and sum(need.gb for need in needs) < _WORTH_STARTING_GB
    return 0 if wanted <= 1 or (quick and not limits.workers) else wanted


@dataclass(kw_only=True)
class _Work(Generic[A, R]):
    """One stage over all its cases; its methods yield pairs of index and result, in any order."""

    function: Callable[[A], R]
    items: Sequence[A]
    needs: Sequence[Need]
    threads: int

    def here(self, indices: Iterable[int] | None = None) -> Iterator[tuple[int, R]]:
        for index in range(len(self.items)) if indices is None else indices:
            try:
                result = self.function(self.items[index])
            except MemoryError as error:
                raise _too_large(self.needs[index], "memory ran out") from error
            yield index, result

    def spread(self, number: int) -> Iterator[tuple[int, R]]:
        waiting = deque(range(len(self.items)))
        while waiting:
            run = _PoolRun(work=self, number=number, waiting=waiting)
            yield from run.results()
            if run.refusal is not None:
                _log.warning(
                    "Worker processes cannot be started here (%s%s). "
                    "The rest runs in this process.",
                    *(run.refusal.strerror or run.refusal, run.refusal_hint),
                )
                yield from self.here([*run.lost, *waiting])
                return
            if not run.lost:
                return
            needs = [self.needs[index] for index in run.lost]
            _log.warning(
                "%s while working on %s (the largest needs about %.1f GB; %.1f GB are free). "
                "Trying again, one case at a time.",
                *(run.cause, _names(needs), max(need.gb for need in needs), free_gb()),
            )
            yield from self._alone(run.lost)
            number = max(1, number // 2)

    def _alone(self, indices: Iterable[int]) -> Iterator[tuple[int, R]]:
        run = _PoolRun(work=self, number=1, waiting=deque(indices))
        yield from run.results()
        if run.refusal is not None:
            raise run.refusal
        if run.lost:
            raise _too_large(self.needs[run.lost[0]], run.cause)


@dataclass(kw_only=True)
class _PoolRun(Generic[A, R]):
    """One pool of worker processes, used until all cases are done or a worker dies.

    Attributes:
        work: The stage.
        number: Number of worker processes.
        waiting: Indices of the cases that have not been started.
        lost: Indices of the cases that workers were processing when one of them died.
        cause: How the worker died, as the first words of a message; empty if none died.
        refusal: Why the system starts no worker, e.g. because /dev/shm, which the queues between
            processes need, cannot be used; None if it did start one.
    """

    work: _Work[A, R]
    number: int
    waiting: deque[int]
    lost: list[int] = field(default_factory=list)
    cause: str = ""
    refusal: OSError | None = None

    @property
    def refusal_hint(self) -> str:
        """What may be done about the refusal, as the rest of a sentence."""
        of_memory = self.refusal is not None and self.refusal.errno not in (*_OF_LIMITS, None)
        return "; they need a /dev/shm that can be written to" if of_memory else ""

    def results(self) -> Iterator[tuple[int, R]]:
        # Never submits more cases than there are workers, so that the unfinished ones are known.
        pool = self._pool()
        if pool is None:
            return
        running: dict[Future[R], int] = {}
        workers: list[BaseProcess] = []
        others = multiprocessing.active_children()

        def started() -> list[BaseProcess]:
            return [each for each in multiprocessing.active_children() if each not in others]

        try:
            while self.waiting or running:
                self._submit(pool, running)
                if not running:
                    return
                workers = workers or started()
                for future in _first_done(pool, running):
                    result = future.result()
                    yield running.pop(future), result
        except (BrokenProcessPool, MemoryError) as error:
            pool.shutdown(wait=True, cancel_futures=True)
            self.cause = _cause(error, workers)
        except (KeyboardInterrupt, SystemExit):
            _kill(started())  # the pool may have started some since it was asked
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for future, index in running.items():
            if isinstance(future.exception(), BrokenProcessPool | MemoryError):
                self.lost.append(index)
            else:
                yield index, future.result()

    def _pool(self) -> ProcessPoolExecutor | None:
        """Returns a pool without workers yet; None if the system does not allow one."""
        try:
            with without_main():  # the process that keeps account of the locks may be started here
                return ProcessPoolExecutor(
                    self.number,
                    mp_context=_fresh_processes(),
                    initializer=_begin_worker,
                    initargs=(self.work.threads,),
                )
        except (OSError, ImportError, NotImplementedError) as error:
            self.refusal = error if isinstance(error, OSError) else OSError(str(error))
            return None

    def _submit(self, pool: ProcessPoolExecutor, running: dict[Future[R], int]) -> None:
        """Gives every idle worker a case; starts workers unless the system has refused one."""
        while self.waiting and len(running) < self.number and self.refusal is None:
            index = self.waiting[0]
            try:
                with without_main():  # a process may be started here
                    future = pool.submit(self.work.function, self.work.items[index])
                running[future] = index
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
                self.refusal = error if isinstance(error, OSError) else OSError(str(error))
            else:
                self.waiting.popleft()


def _first_done(pool: ProcessPoolExecutor, running: Collection[Future[R]]) -> set[Future[R]]:
    """Waits for a case; raises if the pool's own thread has died, which would wait forever."""
    while True:
        done = wait(running, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done
        if done:
            return done
        thread = getattr(pool, "_executor_manager_thread", None)
        if thread is not None and not thread.is_alive():
            raise BrokenProcessPool("the thread that serves the workers has died")


def _kill(workers: Iterable[BaseProcess]) -> None:
    """Ends workers at once: after Ctrl-C or SIGTERM nobody waits for what they still do."""
    for worker in workers:
        worker.kill()


def _begin_worker(threads: int) -> None:
    """Ends this worker with its parent, and keeps the threads of its numerical libraries few.

    Otherwise each worker has as many of them as there are cores.
    """
    from threadpoolctl import threadpool_limits

    end_with_parent()
    threadpool_limits(limits=threads, user_api="blas")


def end_with_parent() -> None:
    """Ends this worker as soon as the process that started it has died, however that was.

    The system does so where it can, whatever this worker computes. Elsewhere a thread does, which
    has to wait for computations that do not let other threads run.
    """
    parent = multiprocessing.parent_process()
    if parent is not None and sys.platform == "linux":
        import fcntl

        # The parent holds the other end of a pipe. Its end raises SIGIO, and with it this process.
        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
    # Without it, where no thread can be started, the worker ends with the pool's pipes.
    with contextlib.suppress(RuntimeError):
        if parent is None:
            return
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


_main_hidden = Lock()


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes that start in the block do not run the program's main module again.

    Nor do they, or theirs, hear what is sent to every process of a group: Ctrl-C, the loss of the
    terminal and SIGUSR1. This process answers for them.

    multiprocessing would run it to find functions that it defines. Those of this package are never
    there; but a script without `if __name__ == "__main__"` would do all its work again in each
    process, and a program read from stdin has no file to run.
    """
    with _main_hidden:
        main = sys.modules["__main__"]
        stand_in = ModuleType("__main__")
        # Without a file and a spec, it cannot be run; what it defines can still be looked up.
        vars(stand_in).update(dict(vars(main)), __spec__=None)
        vars(stand_in).pop("__file__", None)
        sys.modules["__main__"] = stand_in
        try:
            with stops_later(), _unheard():
                yield
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Blocks signals to this thread and, which inherit that, to processes that start meanwhile."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Not SIGTERM: with that the pool ends its workers.
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    )
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fresh_processes() -> BaseContext:
    """Returns how to start workers; a fork of this process may hang because of torch's threads."""
    if sys.platform != "linux":
        return get_context("spawn")
    # Workers are forks of a fresh process that has loaded the libraries. This costs a second of CPU
    # time once instead of once per worker. Missing libraries are ignored.
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _cause(error: Exception, workers: Iterable[BaseProcess]) -> str:
    if isinstance(error, MemoryError):
        return "A worker process ran out of memory"
    # The pool itself ends the other workers with SIGTERM.
    return cause_of_death(w.exitcode for w in workers if w.exitcode != -signal.SIGTERM)


def cause_of_death(codes: Iterable[int | None]) -> str:
    """Says how workers with these exit codes died, as the first words of a message."""
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
    return first_few([need.name for need in needs], _SHOWN)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    # macOS and Windows do not report which cores a process may use.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def bar_pace() -> dict[str, Any]:
    """Returns tqdm's update intervals and stream; a bar in a file is a line now and then."""
    seconds, stream = 0.1, sys.stderr
    if not sys.stderr.isatty():
        seconds, stream = _SECONDS_IN_FILES, _Lines(sys.stderr)
    return {"mininterval": seconds, "maxinterval": max(seconds, 10.0), "file": stream}


class _Lines:
    """A stream that turns what tqdm redraws into lines, since a file keeps carriage returns."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


def case_bar(what: str, total: int) -> Callable[[Iterable[T]], Iterable[T]]:
    """Returns a function that shows a bar on stderr for the results of a stage.

    Args:
        what: The stage's name.
        total: The number of cases; no bar is shown for 0.
    """

    def wrap(items: Iterable[T]) -> Iterable[T]:
        return tqdm(items, desc=what, total=total, unit="case", disable=total == 0, **bar_pace())

    return wrap


@dataclass(kw_only=True)
class WindowBar:
    """One bar for the prediction of several cases: cases done, windows of the current one.

    Attributes:
        bar: The bar, in units of cases.
        cases: Number of cases.
        parts: Number of networks in a row that go through each case.
    """

    bar: "tqdm[Any]"
    cases: int
    parts: int
    _begun: dict[str, None] = field(default_factory=dict)
    _part: int = 0

    def start(self, name: str, windows: int) -> Callable[[], object]:
        """Begins a case, or its next part; returns the function to call after each window."""
        self._part = self._part + 1 if name in self._begun else 0
        self._begun[name] = None
        done = 0

        def move() -> None:
            nonlocal done
            done += 1
            self.bar.set_postfix_str(f"window {done}/{windows}", refresh=False)
            self._show(len(self._begun) - 1 + min((self._part + done / windows) / self.parts, 1.0))

        return move

    def drop(self, name: str) -> None:
        """Counts a case that failed, whether it was begun or not."""
        self._begun[name] = None
        self._show(len(self._begun))

    def end(self) -> None:
        """Shows that all cases are done."""
        self.bar.set_postfix_str("", refresh=False)
        self._show(self.cases)

    def _show(self, done: float) -> None:
        self.bar.set_description_str(_of_cases(done, self.cases), refresh=False)
        self.bar.update(max(0.0, done - self.bar.n))


def _of_cases(done: float, total: int) -> str:
    return f"predict {int(done + _ROUNDING):>{len(str(total))}}/{counted(total, 'case')}"


@contextlib.contextmanager
def window_bars(cases: int, *, parts: int) -> Iterator[WindowBar]:
    """Shows one bar for the prediction of several cases.

    Args:
        cases: Number of cases.
        parts: Number of networks in a row that go through each case, such as the members of an
            ensemble.
    """
    pace = {**bar_pace(), "smoothing": 0, "miniters": 0}  # time left by the mean of all cases
    with tqdm(desc=_of_cases(0, cases), total=cases, bar_format=_OF_CASES, **pace) as bar:
        shown = WindowBar(bar=bar, cases=cases, parts=parts)
        yield shown
        shown.end()
