"""How a measured process times itself. Only the standard library: nnU-Net's Python runs it too."""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Clock:
    """Times what happens inside `with clock:`; several such blocks add up.

    Attributes:
        seconds: Wall clock.
        cpu_seconds: Of this process's threads and of the children that ended meanwhile.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.used = False

    def __enter__(self) -> "Clock":
        self.used = True
        self._cpu, self._wall = _cpu_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._wall
        self.cpu_seconds += _cpu_seconds() - self._cpu


def serve(functions: Mapping[str, Callable[..., dict[str, Any] | None]]) -> None:
    """Runs one function as the command line says: NAME ARGUMENTS.json RESULT.json.

    Args:
        functions: Name -> function, called with a clock and the arguments by keyword; returns
            further values to report.
    """
    name, arguments, result = sys.argv[1:]
    clock = Clock()
    report = functions[name](clock, **json.loads(Path(arguments).read_text())) or {}
    report["peak_mb"] = high_water_mb()
    if clock.used:
        report |= {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
    Path(result).write_text(json.dumps(report))


def high_water_mb(pid: int | str = "self") -> float:
    """Most memory a process held so far, in MB; 0 where it is gone.

    Not `ru_maxrss`: that begins with what the process held from which it was forked.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _cpu_seconds() -> float:
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)
