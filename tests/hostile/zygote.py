"""Runs commands in forks of one process that has imported everything, and measures them.

Reads a JSON object per line, {"arguments", "output", "folder", "seconds", "most_kb"}, and answers:
{"code", "signal", "peak_kb", "seconds" (of a core), "ended": "by itself" | "late" | "large"}.
"""

import contextlib
import json
import os
import pkgutil
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import forked

# The heaviest libraries of the commands, so that each run does not load them.
_LOADED = (
    "SimpleITK",
    "nibabel",
    "pydicom",
    "scipy.ndimage",
    "PIL.Image",
    "torch",
    "blosc2",
    "cc3d",
)
_LOOK_S = 0.02
_MOST_WAITED = 6
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
_ADDRESSES = 10 << 30  # bytes; an accident must not take the machine's memory


def main() -> None:
    import autoliver

    package = pkgutil.walk_packages(autoliver.__path__, "autoliver.")
    for name in (*_LOADED, *(module.name for module in package)):
        if not name.endswith("__main__"):
            __import__(name)
    print(f"ready {_kb(os.getpid())}", flush=True)  # noqa: T201
    for line in sys.stdin:
        print(json.dumps(_measured(json.loads(line))), flush=True)  # noqa: T201


def _measured(asked: dict[str, Any]) -> dict[str, Any]:
    start = time.monotonic()
    process = os.fork()
    if not process:
        _be(asked)
    ended = "by itself"
    while True:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            break
        # Other programs may keep the machine busy; what waits for ever takes no time of its cores.
        late = _core_seconds(process) > asked["seconds"]
        late = late or time.monotonic() - start > _MOST_WAITED * asked["seconds"]
        if ended == "by itself" and (late or _kb(process) > asked["most_kb"]):
            ended = "late" if late else "large"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        time.sleep(_LOOK_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it may have left behind
    return {
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "peak_kb": usage.ru_maxrss,
        "seconds": usage.ru_utime + usage.ru_stime,
        "ended": ended,
    }


def _core_seconds(process: int) -> float:
    """How long the process has kept a core busy."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, IndexError):
        return 0.0


def _kb(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_KB
    except (OSError, IndexError):
        return 0


def _be(asked: dict[str, Any]) -> None:
    """Becomes the program with these arguments."""

    def program() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from autoliver.cli.main import run

        run()

    forked.become(
        asked["arguments"], output=asked["output"], folder=asked["folder"], program=program
    )


if __name__ == "__main__":
    main()
