"""Trains folds in separate processes: on several GPUs as they become free, or several at once.

Each process gets one JSON file, the request for its fold, and writes one JSON object to stdout. It
runs in its own session, so Ctrl-C reaches only the queue, which then asks every fold to save its
state. If the queue is killed, the standard input of the fold ends and the fold stops as well.
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
from functools import partial
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from autoliver.datasets.folds import Fold
from autoliver.errors import OptionError
from autoliver.machine import Machine
from autoliver.models.files import FoldFolder
from autoliver.pipeline.run.job import FoldResult, RunJob
from autoliver.pipeline.run.request import QueuedRequest, TrainRequest
from autoliver.system import STOP_SIGNALS
from autoliver.training.progress import FAILED, add_to_log, dice_of, read_progress
from autoliver.training.stop import Stopped, name_of, stop_on_signal

# The command that processes of the queue run; its argument is the path of a request.
COMMAND = "train-queued"

_SECONDS_BETWEEN_LOOKS = 0.5
# Time to finish a step, save the state and draw the curves. Then a fold is killed, which loses its
# current epoch.
_SECONDS_TO_STOP = 120.0


def queue_devices(machine: Machine, *, most: int) -> tuple[str, ...]:
    """Returns the devices that folds are trained on at the same time; none without a queue.

    Args:
        machine: The devices to use; its `gpus` or `jobs` request a queue.
        most: Number of folds to train; there are no more devices than that.

    Raises:
        OptionError: The options exclude each other, or a GPU does not exist.
    """
    gpus, jobs, device = machine.gpus, machine.jobs, machine.device
    if not gpus:
        return (device,) * min(jobs or 0, most)
    other = f"--jobs {jobs}" if jobs else "" if device == "auto" else f"--device {device}"
    given = ",".join(map(str, gpus))
    if other:
        raise OptionError(
            f"--gpus {given} and {other} exclude each other.",
            hint="Use --gpus alone; '--gpus 0,0' trains two folds at a time on GPU 0.",
        )
    from autoliver.networks.device import check_gpus

    check_gpus(gpus)
    return tuple(f"cuda:{number}" for number in gpus[:most])


def run_queue(
    job: RunJob,
    folds: Sequence[Fold],
    devices: Sequence[str],
    *,
    request: TrainRequest,
    workspace: Path,
) -> list[FoldResult]:
    """Trains folds, one on each device at a time; a failing fold does not stop the others.

    Args:
        job: The run, whose options must already be written.
        folds: The folds to train.
        devices: The devices to train on; a device may be named more than once.
        request: The request to `train`.
        workspace: The workspace's folder.

    Returns:
        The results of the folds that failed.

    Raises:
        Stopped: A signal was received. As after Ctrl-C, every running fold has saved its state.
    """
    queued = partial(
        QueuedRequest,
        workspace=str(workspace.resolve()),
        dataset=job.planned.dataset.folder,
        at_once=len(devices),
    )
    waiting, free = deque(folds), deque(enumerate(devices))
    running: list[_Child] = []
    failures = []
    with stop_on_signal() as stop:
        try:
            while waiting or running:
                while waiting and free:
                    fold, place = waiting.popleft(), free.popleft()
                    share = request.machine.share(
                        len(devices), device=place[1], sharing=devices.count(place[1])
                    )
                    asked = queued(request=request.for_fold(fold, share))
                    running.append(_start(job, fold, place, asked))
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                if stop():
                    number = stop.number
                    raise Stopped(
                        f"{job.run.name}: stopped by {name_of(number)}; the progress is saved.",
                        number,
                        hint="Run the same command again to continue.",
                    )
                for child in [c for c in running if c.ended()]:
                    running.remove(child)
                    free.appendleft(child.place)
                    failure = child.failure()
                    child.close(
                        f"failed: {failure.problem}" if failure else _finished(child.folder)
                    )
                    failures += [failure] if failure else []
        finally:
            _stop(running)
    return failures


def join_queue(number: int) -> None:
    """Sets up a process of the queue: limits its CPU threads, and stops it if the queue dies.

    Args:
        number: Number of folds that are trained at the same time.
    """
    threading.Thread(target=_end_with_the_queue, daemon=True).start()
    for other in STOP_SIGNALS:  # a scheduler may signal every process: the queue passes it on
        if other != signal.SIGTERM:
            signal.signal(other, signal.SIG_IGN)
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // number))


def _end_with_the_queue() -> None:
    # Nothing is ever written to stdin: reading it ends when the queue does, however that happens.
    # os.read is used since a thread waiting in sys.stdin would hold its lock at interpreter exit.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(kw_only=True)
class _Child:
    """A process that trains a fold, and its progress bar.

    Attributes:
        fold: The fold that it trains.
        folder: The fold's folder.
        place: Position of the bar on the screen, and the device.
        process: The process.
        answer: The file that its stdout is written to: one JSON object.
        bar: The progress bar, which counts epochs.
        begun: Start time, from `time.monotonic`, in seconds.
    """

    fold: Fold
    folder: FoldFolder
    place: tuple[int, str]
    process: subprocess.Popen[bytes]
    answer: IO[bytes]
    bar: Any
    begun: float = field(default_factory=time.monotonic)

    def ended(self) -> bool:
        """Whether the process has ended; if not, updates the progress bar."""
        if self.process.poll() is not None:
            return True
        if not self.bar.disable:
            self._move_bar()
        return False

    def failure(self) -> FoldResult | None:
        """Returns why the ended process failed to train its fold; None if it succeeded."""
        if self.process.returncode == 0:
            return None
        problem, hint = self._reason(self.process.returncode)
        if self.process.returncode < 0:  # it could not write that itself
            with contextlib.suppress(OSError):
                add_to_log(self.folder.log, f"{FAILED}{problem}")
        return FoldResult(fold=self.fold, folder=self.folder.path, problem=problem, hint=hint)

    def _reason(self, code: int) -> tuple[str, str]:
        """Returns the problem and the hint for a process with this exit code."""
        log = self.folder.log
        if code == -signal.SIGKILL:
            return (
                "its process was killed (SIGKILL), most likely by the kernel because memory ran "
                "out.",
                "Train fewer folds at once, or use a machine with more memory.",
            )
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}.", f"See {log}."
        reported = self._error()
        if reported is not None:
            return reported["error"], reported["hint"]
        lines = log.read_text(errors="replace").strip().splitlines()
        return (
            f"its process ended with exit code {code}: {lines[-1].strip()}",
            f"This is our bug: please report it with {log}.",
        )

    def close(self, what: str) -> None:
        """Prints the outcome of the fold and releases the process, its files and its bar."""
        if self.process.returncode < 0:  # its own workers may have outlived it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.bar.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.answer.close()
        took = tqdm.format_interval(time.monotonic() - self.begun)
        tqdm.write(f"fold {self.fold} ({self.place[1]}, {took}) {what}", file=sys.stderr)

    def _move_bar(self) -> None:
        logs = read_progress(self.folder.progress)
        if len(logs) != self.bar.n:
            self.bar.n = len(logs)
            self.bar.set_postfix_str(dice_of(logs[-1]) if logs else "", refresh=False)
        if self.folder.model.exists():
            self.bar.set_postfix_str("predicting held-out cases", refresh=False)
        self.bar.refresh()

    def _error(self) -> dict[str, str] | None:
        self.answer.seek(0)
        lines = self.answer.read().splitlines()
        with contextlib.suppress(ValueError):
            answer = json.loads(lines[-1]) if lines else None
            if isinstance(answer, dict) and "error" in answer:
                return answer
        return None


def _finished(folder: FoldFolder) -> str:
    from autoliver.evaluation.results import Scores

    if not folder.scores.exists():
        return "finished"
    dice = Scores.load(folder.scores).foreground_mean("dice")
    return "finished" if dice is None else f"finished, mean Dice {dice:.3f}"


def _start(job: RunJob, fold: Fold, place: tuple[int, str], asked: QueuedRequest) -> _Child:
    folder = job.folder(fold)
    asked.save(folder.request)
    command = [
        sys.executable,
        "-P",
        "-m",
        "autoliver",
        COMMAND,
        str(folder.request.resolve()),
        "--json",
    ]
    answer = tempfile.TemporaryFile()  # noqa: SIM115 - the child closes it
    with folder.log.open("ab") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=log,
            start_new_session=True,
        )
    position, device = place
    bar = tqdm(
        total=job.options.epochs + sum(job.options.extensions),
        initial=len(read_progress(folder.progress)),
        desc=f"fold {fold} ({device})",
        unit="epoch",
        bar_format="{desc}{postfix}, epoch {n_fmt}/{total_fmt} |{bar}| {remaining} left",
        dynamic_ncols=True,
        position=position,
        leave=False,
        disable=None,  # no bars if stderr is not a terminal; each fold has its train.log
    )
    return _Child(fold=fold, folder=folder, place=place, process=process, answer=answer, bar=bar)


def _stop(children: list[_Child]) -> None:
    """Asks processes to save their state and end, and waits; a second Ctrl-C kills them."""
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
