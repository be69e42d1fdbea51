"""One measurement: a command in a process of its own, its time and the memory of its whole tree."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.clock import high_water_mb

# Short commands are watched closely, for their time; long ones rarely, not to disturb them.
_CLOSELY_SECONDS, _RARELY_SECONDS, _SHORT_SECONDS = 0.002, 0.05, 1.0
# How long processes that outlive their command may take to end.
_PATIENCE_SECONDS = 10.0
_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
# Of one core, for looking at memory.
_SHARE_OF_TIME = 0.03


class MeasureError(Exception):
    """A measured command failed.

    Attributes:
        measured: What it took until then.
    """

    def __init__(self, message: str, measured: "Measured") -> None:
        super().__init__(message)
        self.measured = measured


@dataclass(frozen=True, kw_only=True)
class Call:
    """A command to measure.

    Attributes:
        command: Program and arguments.
        settings: Environment variables.
        log: Where its output goes.
        result: The file in which it reports its own times; None: the whole process is timed.
        remove: Files and folders to remove before it runs.
        most_mb: It is ended if its processes hold more.
    """

    command: tuple[str, ...]
    settings: Mapping[str, str]
    log: Path
    result: Path | None = None
    remove: tuple[Path, ...] = ()
    most_mb: float = float("inf")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run took.

    Attributes:
        seconds: Wall clock.
        cpu_seconds: User and system time of all its processes.
        peak_mb: Most memory its processes held at once, shared pages counted once.
        others: Cores that other processes kept busy meanwhile: how noisy the run is.
        values: What else it reported.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    others: float
    values: dict[str, Any] = field(default_factory=dict)


def run(call: Call) -> Measured:
    """Runs a command to its end.

    Raises:
        MeasureError: It failed; the message ends with its last lines.
    """
    for path in call.remove:
        _remove(path)
    _adopt_orphans()
    settings = [f"{name}={value}" for name, value in call.settings.items()]
    call.log.parent.mkdir(parents=True, exist_ok=True)
    with call.log.open("wb") as log:
        start, busy = time.perf_counter(), _busy_seconds()
        process = subprocess.Popen(
            ["env", *settings, *call.command], stdout=log, stderr=log, start_new_session=True
        )
        try:
            usage, peak_mb = _watch(process, start, call.most_mb)
        except BaseException:
            # With its workers: they would go on, and write into a folder that is removed.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        seconds, busy = time.perf_counter() - start, _busy_seconds() - busy
    cpu_seconds = usage.ru_utime + usage.ru_stime + _orphans_seconds(process.pid)
    if process.returncode:
        taken = Measured(seconds=seconds, cpu_seconds=cpu_seconds, peak_mb=peak_mb, others=0.0)
        last = " | ".join(call.log.read_text(errors="replace").splitlines()[-4:])
        raise MeasureError(f"{' '.join(call.command)}: exit {process.returncode}: {last}", taken)
    values = json.loads(call.result.read_text()) if call.result else {}
    return Measured(
        seconds=values.pop("seconds", seconds),
        cpu_seconds=values.pop("cpu_seconds", cpu_seconds),
        peak_mb=max(peak_mb, values.pop("peak_mb", 0.0)),
        others=max(0.0, busy - cpu_seconds) / seconds,
        values=values,
    )


def alternate(calls: Mapping[str, Call], repeats: int) -> dict[str, list[Measured]]:
    """Runs the sides by turns, each round in the other order than the one before."""
    found: dict[str, list[Measured]] = {side: [] for side in calls}
    for number in range(repeats):
        for side in sorted(calls, reverse=bool(number % 2)):
            found[side].append(run(calls[side]))
    return found


def median(runs: list[Measured]) -> Measured:
    """The medians of several runs, with the values of the last; memory: the most of any."""
    return Measured(
        seconds=statistics.median(r.seconds for r in runs),
        cpu_seconds=statistics.median(r.cpu_seconds for r in runs),
        peak_mb=max(r.peak_mb for r in runs),
        others=statistics.median(r.others for r in runs),
        values=runs[-1].values,
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _adopt_orphans() -> None:
    """Makes this process the parent of those whose own parent ended, so that their time is known.

    Where workers are forked from a server, they are its children, and it ends after the command.
    """
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _orphans_seconds(group: int) -> float:
    """CPU time of what a command that ended left behind; what does not end soon is ended."""
    seconds, deadline = 0.0, time.perf_counter() + _PATIENCE_SECONDS
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _, usage = os.wait4(-group, os.WNOHANG)
            seconds += usage.ru_utime + usage.ru_stime
            if not pid and time.perf_counter() > deadline:
                os.killpg(group, signal.SIGKILL)
                deadline = float("inf")
            elif not pid:
                time.sleep(_RARELY_SECONDS)
    return seconds


def _watch(process: "subprocess.Popen[bytes]", start: float, most_mb: float) -> tuple[Any, float]:
    """Waits for the end; returns the resources used and the peak of the process tree in MB."""
    peak_mb, looked, pause = 0.0, start, 0.0
    while True:
        begun = time.perf_counter()
        if begun - looked >= pause:
            peak_mb = max(peak_mb, _tree_mb(process.pid))
            if peak_mb > most_mb:
                os.killpg(process.pid, signal.SIGKILL)
            looked = time.perf_counter()
            pause = max(_RARELY_SECONDS, (looked - begun) / _SHARE_OF_TIME)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage, peak_mb
        short = looked - start < _SHORT_SECONDS
        time.sleep(_CLOSELY_SECONDS if short else _RARELY_SECONDS)


def _busy_seconds() -> float:
    """CPU time of everything on this machine so far, without idling and waiting for disks."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _tree_mb(pid: int) -> float:
    """Memory of a process tree now; of a process on its own, the most it ever held."""
    tree = list(_tree(pid))
    if len(tree) == 1:
        return high_water_mb(pid)
    # Between two looks, one of them may have held more than all do now.
    return max(sum(map(_proportional_mb, tree)), *map(high_water_mb, tree))


def _proportional_mb(pid: int) -> float:
    """A process's pages, each divided by the number of processes that share it."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in children.read_text().split():
                yield from _tree(int(child))
