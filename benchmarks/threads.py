"""Training steps with all cores, one thread, and what is chosen; alone, and beside other programs.

    python -m benchmarks.threads [--only 2d 3d] [--steps N] [--repeats N] [--output FILE.json]

"Beside others" is one process on each core that only counts. The ways take turns; each training
runs in a process of its own. Whatever else runs on the machine disturbs all of them: the table
gives the load that it had before.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_WAYS = ("all cores", "one thread", "chosen")
_SKIPPED = 2  # steps that also allocate memory


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=("2d", "3d"), default=["2d", "3d"])
    parser.add_argument("--steps", type=int, default=30, help="at most")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each training, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)  # of a process of ours
    arguments = parser.parse_args()
    # As Ctrl-C: the other programs are ended, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if arguments.way:
        limits = (arguments.steps, arguments.seconds)
        print(json.dumps(_train(arguments.only[0], arguments.way, *limits)))
        return 0
    cores = sorted(os.sched_getaffinity(0))
    print(f"{len(cores)} cores, load before: {os.getloadavg()[0]:.1f}")
    print("| training | beside others | way | threads | s per step | all cores / this |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for kind, busy in itertools.product(arguments.only, (False, True)):
        with _others(cores if busy else []):
            rows += _rows(kind, busy, arguments, len(cores))
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _rows(kind: str, busy: bool, arguments: argparse.Namespace, cores: int) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in _WAYS}
    for number in range(arguments.repeats):
        for way in _WAYS if number % 2 == 0 else reversed(_WAYS):
            words = ("-m", "benchmarks.threads", "--only", kind, "--way", way)
            limits = ("--steps", arguments.steps, "--seconds", arguments.seconds)
            settings = (f"PYTHONPATH={_ROOT}", f"OMP_NUM_THREADS={cores}")
            done = subprocess.run(
                ["env", *settings, sys.executable, *map(str, (*words, *limits))],
                capture_output=True,
                text=True,
                check=True,
            )
            found[way].append(json.loads(done.stdout))
    seconds = {way: statistics.median(r["seconds"] for r in some) for way, some in found.items()}
    rows = []
    for way in _WAYS:
        threads = sorted({run["threads"] for run in found[way]})
        ratio = seconds["all cores"] / seconds[way]
        shown = (kind, "yes" if busy else "no", way, ", ".join(map(str, threads)))
        print(f"| {' | '.join(shown)} | {seconds[way]:.3f} | {ratio:.2f}x |", flush=True)
        rows.append({"training": kind, "busy": busy, "way": way, "runs": found[way]})
    return rows


@contextlib.contextmanager
def _others(cores: list[int]) -> Iterator[None]:
    """Runs a process that only counts on each of these cores."""
    started = []
    try:
        for core in cores:
            started.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            os.sched_setaffinity(started[-1].pid, {core})
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _train(kind: str, way: str, steps: int, seconds: float) -> dict[str, Any]:
    import torch

    from autoliver.machine import Machine
    from autoliver.parallel import cores
    from autoliver.pipeline.run.threads import threads_for
    from autoliver.training.loop import train_fold
    from benchmarks.pretend_cuda import made_up_task

    asked = {"all cores": cores(), "one thread": 1, "chosen": None}[way]
    times: list[float] = []

    def stop() -> bool:
        times.append(time.perf_counter())
        timed = len(times) - _SKIPPED - 1
        return timed >= steps or (timed > 0 and times[-1] - times[_SKIPPED] > seconds)

    with tempfile.TemporaryDirectory() as folder:
        task = made_up_task(f"train {kind}", Path(folder), torch.device("cpu"))
        task = replace(task, machine=Machine(cache="ram", threads=asked))
        with threads_for(task, stop) as noted:
            train_fold(task, stop=noted)
            threads = torch.get_num_threads()
    each = [b - a for a, b in itertools.pairwise(times[_SKIPPED:])]
    return {"threads": threads, "seconds": statistics.mean(each)}


if __name__ == "__main__":
    sys.exit(main())
