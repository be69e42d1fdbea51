"""Folds in processes of their own: over GPUs as they become free, or so many at a time.

A fold is an ordinary `autoliver train ... --fold K --device D`, which can be run by hand as well.
It has a session of its own, so that Ctrl-C reaches the queue alone; the queue then asks every fold
to save its state. A fold whose queue is killed notices by its standard input, and stops as well.
"""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from autoliver.datasets.folds import Fold
from autoliver.errors import OptionError
from autoliver.training.progress import read_progress, summarise
from autoliver.training.stop import Stopped, stop_on_sigterm
from autoliver.values import check_whole

LOG_FILE = "train.log"

_SECONDS_BETWEEN_LOOKS = 0.5
# For a step, the state and the picture; then a fold is killed, and loses its running epoch.
_SECONDS_TO_STOP = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedFold:
    """A fold to train.

    Attributes:
        fold: Which.
        folder: Where its state and its log are.
        command: Arguments of `autoliver` that train it, but for the device.
    """

    fold: Fold
    folder: Path
    command: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a fold was not finished, and what to do about it."""

    fold: Fold
    problem: str
    hint: str


def queue_devices(gpus: Sequence[int], jobs: int | None, *, device: str) -> tuple[str, ...]:
    """The devices that folds are trained on at the same time; none where no queue is asked for.

    Args:
        gpus: Their numbers; one that is named twice takes two folds at a time.
        jobs: How many folds at a time, on `device`.
        device: As asked for.

    Raises:
        OptionError: The options exclude one another, or a GPU is not there.
    """
    if jobs is not None:
        check_whole("--jobs", jobs, least=1)
    if not gpus:
        return (device,) * (jobs or 0)
    other = f"--jobs {jobs}" if jobs else "" if device == "auto" else f"--device {device}"
    given = ",".join(map(str, gpus))
    if other:
        raise OptionError(
            f"--gpus {given} and {other} exclude each other.",
            hint="Use --gpus alone; '--gpus 0,0' trains two folds at a time on GPU 0.",
        )
    from autoliver.networks.device import check_gpus

    check_gpus(gpus)
    return tuple(f"cuda:{number}" for number in gpus)


def run_queue(
    folds: Sequence[QueuedFold], devices: Sequence[str], *, title: str, epochs: int
) -> list[Failure]:
    """Trains folds, one on each device at a time; one that fails does not stop the others.

    Args:
        folds: What to train.
        devices: Where; a device may be named more than once.
        title: Of the run, for messages.
        epochs: Of each fold, for its bar.

    Returns:
        The folds that failed.

    Raises:
        Stopped: SIGTERM came. As with Ctrl-C, every running fold has saved its state.
    """
    waiting, free = deque(folds), deque(enumerate(devices))
    running: list[_Child] = []
    failures = []
    with stop_on_sigterm() as stop:
        try:
            while waiting or running:
                while waiting and free:
                    running.append(
                        _start(waiting.popleft(), free.popleft(), of=len(devices), epochs=epochs)
                    )
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                if stop():
                    raise Stopped(
                        f"{title}: stopped by SIGTERM; what was done is saved.",
                        hint="Run the same command again to go on.",
                    )
                for child in [c for c in running if c.ended()]:
                    running.remove(child)
                    free.appendleft(child.place)
                    failure = child.failure()
                    child.close(f"failed: {failure.problem}" if failure else _finished(child.fold))
                    failures += [failure] if failure else []
        finally:
            _stop(running)
    return failures


def join_queue(number: int) -> None:
    """What a process of a queue does first: take its share of the cores, and mind the queue.

    Args:
        number: How many folds are trained at the same time.
    """
    threading.Thread(target=_end_with_the_queue, daemon=True).start()
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // number))


def _end_with_the_queue() -> None:
    # Nothing is ever written there: it ends when the queue does, however that comes. os.read, since
    # a thread that waits in sys.stdin would hold its lock when the interpreter ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(kw_only=True)
class _Child:
    """A process that trains a fold, and its bar.

    Attributes:
        fold: What it trains.
        place: Number of the bar, and device.
        process: The process.
        told: What it writes to stdout: one JSON object.
        bar: Counts epochs.
    """

    fold: QueuedFold
    place: tuple[int, str]
    process: subprocess.Popen[bytes]
    told: IO[bytes]
    bar: Any
    begun: float = field(default_factory=time.monotonic)

    def ended(self) -> bool:
        """Whether the process is over; moves the bar on."""
        if self.process.poll() is not None:
            return True
        if not self.bar.disable:
            self._move_bar()
        return False

    def failure(self) -> Failure | None:
        """Why the process, which is over, did not finish its fold."""
        code = self.process.returncode
        if code == 0:
            return None
        log = self.fold.folder / LOG_FILE
        fold = self.fold.fold
        if code == -signal.SIGKILL:
            return Failure(
                fold=fold,
                problem="its process was killed (SIGKILL), most likely by the kernel for want of "
                "memory.",
                hint="Let fewer folds run at once, or use a machine with more memory.",
            )
        if code < 0:
            name = signal.Signals(-code).name
            return Failure(
                fold=fold, problem=f"its process was ended by {name}.", hint=f"See {log}."
            )
        told = self._error()
        if told is not None:
            return Failure(fold=fold, problem=told["error"], hint=told["hint"])
        lines = log.read_text(errors="replace").strip().splitlines()
        return Failure(
            fold=fold,
            problem=f"its process ended with exit code {code}: {lines[-1].strip()}",
            hint=f"This is our bug: please report it with {log}.",
        )

    def close(self, what: str) -> None:
        """Says what became of the fold, and lets go of everything."""
        if self.process.returncode < 0:  # its own workers may have outlived it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.bar.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.told.close()
        took = tqdm.format_interval(time.monotonic() - self.begun)
        tqdm.write(f"fold {self.fold.fold} ({self.place[1]}, {took}) {what}", file=sys.stderr)

    def _move_bar(self) -> None:
        logs = read_progress(self.fold.folder / "progress.jsonl")
        if len(logs) != self.bar.n:
            self.bar.n = len(logs)
            self.bar.set_postfix_str(summarise(logs[-1]) if logs else "", refresh=False)
        if (self.fold.folder / "model.json").exists():
            self.bar.set_postfix_str("held-out cases are predicted", refresh=False)
        self.bar.refresh()

    def _error(self) -> dict[str, str] | None:
        self.told.seek(0)
        lines = self.told.read().splitlines()
        with contextlib.suppress(ValueError):
            told = json.loads(lines[-1]) if lines else None
            if isinstance(told, dict) and "error" in told:
                return told
        return None


def _finished(fold: QueuedFold) -> str:
    from autoliver.evaluation.results import Scores

    path = fold.folder / "validation" / "scores.json"
    dice = Scores.load(path).foreground_mean("dice") if path.exists() else None
    return "finished" if dice is None else f"finished, mean Dice {dice:.3f}"


def _start(fold: QueuedFold, place: tuple[int, str], *, of: int, epochs: int) -> _Child:
    position, device = place
    command = [sys.executable, "-m", "autoliver", *fold.command, "--device", device]
    fold.folder.mkdir(parents=True, exist_ok=True)
    told = tempfile.TemporaryFile()  # noqa: SIM115 - the child closes it
    with (fold.folder / LOG_FILE).open("ab") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [*command, "--one-of", str(of), "--json"],
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=log,
            start_new_session=True,
        )
    done = len(read_progress(fold.folder / "progress.jsonl"))
    bar = tqdm(
        total=epochs,
        initial=done,
        desc=f"fold {fold.fold} ({device})",
        unit="epoch",
        position=position,
        leave=False,
        disable=None,  # bars above one another make no sense in a file; train.log has one for each
    )
    return _Child(fold=fold, place=place, process=process, told=told, bar=bar)


def _stop(children: list[_Child]) -> None:
    """Asks children to save their state and end, and waits for it; a second Ctrl-C kills them."""
    for child in children:
        child.process.terminate()
    until = time.monotonic() + _SECONDS_TO_STOP
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            for child in children:
                child.process.wait(max(0.0, until - time.monotonic()))
    finally:
        for child in children:
            child.process.kill()
            child.process.wait()
            child.close("stopped")
