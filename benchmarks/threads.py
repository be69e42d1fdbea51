"""Training steps with all cores, one thread, and what is chosen; alone, and beside other programs.

    python -m benchmarks.threads [--only 2d 3d] [--steps N] [--turns N] [--output FILE.json]

"Beside others" is one process on each core that only counts. The ways take turns within one
training, each for some steps, of which the first does not count; the number is chosen anew in each
turn. Whatever else runs on the machine disturbs all of them: the load before is printed.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WAYS = ("all cores", "one thread", "chosen")
_SKIPPED = 2  # steps that also allocate memory


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=("2d", "3d"), default=["2d", "3d"])
    parser.add_argument("--steps", type=int, default=6, help="of each way in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # As Ctrl-C: the other programs are ended, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    cores = sorted(os.sched_getaffinity(0))
    print(f"{len(cores)} cores, load before: {os.getloadavg()[0]:.1f}")
    print("| training | beside others | way | threads | s per step | all cores / this |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for kind, busy in itertools.product(arguments.only, (False, True)):
        with _others(cores if busy else []):
            found = _train(kind, arguments.steps, arguments.turns, len(cores))
        for way, row in found.items():
            threads = ", ".join(map(str, sorted(set(row["threads"]))))
            ratio = found["all cores"]["seconds"] / row["seconds"]
            shown = (kind, "yes" if busy else "no", way, threads, f"{row['seconds']:.3f}")
            print(f"| {' | '.join(shown)} | {ratio:.2f}x |", flush=True)
            rows.append({"training": kind, "busy": busy, "way": way, **row})
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


@contextlib.contextmanager
def _others(cores: list[int]) -> Iterator[None]:
    """Runs a process that only counts on each of these cores."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for core in cores:
            started.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            os.sched_setaffinity(started[-1].pid, {core})
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _train(kind: str, steps: int, turns: int, cores: int) -> dict[str, dict[str, Any]]:
    """Seconds per step and threads of each way: the median of all its steps, those of each turn."""
    import torch

    from autoliver.networks.threads import Threads, convolution
    from autoliver.training.loop import train_fold
    from benchmarks.pretend_cuda import made_up_task

    order = [way for turn in range(turns) for way in (_WAYS if turn % 2 == 0 else _WAYS[::-1])]
    times: dict[str, list[float]] = {way: [] for way in _WAYS}
    threads: dict[str, list[int]] = {way: [] for way in _WAYS}
    taken, last = 0, 0.0

    def stop() -> bool:
        nonlocal taken, last
        taken += 1
        turn, step = divmod(taken - _SKIPPED, steps)
        if taken > _SKIPPED and step != 1:  # the first step of a turn begins with new threads
            times[order[turn if step else turn - 1]].append(time.perf_counter() - last)
        if taken >= _SKIPPED and step == 0:
            if turn == len(order):
                return True
            way = order[turn]
            torch.set_num_threads(1 if way == "one thread" else cores)
            if way == "chosen":
                Threads(cores, convolution(), say=lambda _: None)
            threads[way].append(torch.get_num_threads())
        last = time.perf_counter()
        return False

    with tempfile.TemporaryDirectory() as folder:
        train_fold(made_up_task(f"train {kind}", Path(folder), torch.device("cpu")), stop=stop)
    return {
        way: {"seconds": statistics.median(times[way]), "steps": times[way], "threads": chosen}
        for way, chosen in threads.items()
    }


if __name__ == "__main__":
    sys.exit(main())
