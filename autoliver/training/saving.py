"""Writes files of a training in a thread, while the next steps are taken."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from autoliver.networks.checkpoint import save_training_state
from autoliver.training.fold import FoldTask
from autoliver.training.progress import draw_progress, write_progress
from autoliver.training.state import TrainingState


class Saver:
    """Writes one file after the other in a thread; its methods raise the errors of that.

    Of several processes that train together, only the lead writes.
    """

    def __init__(self, task: FoldTask, names: Sequence[str]) -> None:
        """Prepares to write.

        Args:
            task: The fold that is trained.
            names: Names of the foreground labels, for the picture.
        """
        self._task, self._names = task, names
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._begun: list[Future[None]] = []

    def save(self, state: TrainingState) -> None:
        """Copies a state and begins to write it, after the one before is written."""
        if not self._task.group.leads:
            return
        self.wait()
        files, logs = self._task.files, tuple(state.logs)
        snapshot, arrived = copied(state.snapshot())

        def write() -> None:
            # The log first: a log that is one epoch ahead is cut when the training is resumed.
            write_progress(files.progress, logs)
            arrived()
            save_training_state(files.resume, snapshot)

        self.begin(write)

    def draw(self, state: TrainingState) -> None:
        """Begins to draw the epochs of a state."""
        path, title, logs = self._task.files.picture, self._task.title, tuple(state.logs)
        if self._task.group.leads:
            self.begin(lambda: draw_progress(path, logs, title=title, names=self._names))

    def begin(self, work: Callable[[], None]) -> None:
        """Runs work in the thread after all that was begun before."""
        self._begun.append(self._thread.submit(work))

    def check(self) -> None:
        """Raises the error of work that has failed, if there is one; does not wait."""
        while self._begun and self._begun[0].done():
            self._begun.pop(0).result()

    def wait(self) -> None:
        """Waits until all work is done.

        Raises:
            AutoliverError: What the work has raised, e.g. because the disk is full.
        """
        while self._begun:
            self._begun.pop(0).result()

    def close(self) -> None:
        """Waits until all work is done and ends the thread.

        Errors are not raised: without an error of the training `wait` has raised them before.
        """
        self._thread.shutdown(wait=True)


def copied(value: Any) -> tuple[Any, Callable[[], None]]:
    """Copies tensors within dicts, lists and tuples to the CPU.

    The copies stay what they are when the originals change afterwards. From CUDA they are queued
    behind the steps that were begun, into pinned memory.

    Returns:
        The copy, and a function to call before it is read: it waits for the copies.
    """
    devices = set[torch.device]()
    found = _copied(value, devices)
    arrived = []
    for device in devices:
        if device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))  # which need not be the current device
            arrived.append(event)

    def wait() -> None:
        for event in arrived:
            event.synchronize()

    return found, wait


def _copied(value: Any, devices: set[torch.device]) -> Any:
    """Copies a value, and notes the devices that it lies on."""
    if isinstance(value, Tensor):
        devices.add(value.device)
        if value.device.type == "cpu":
            return value.detach().clone()
        return value.detach().to("cpu", non_blocking=value.device.type == "cuda")
    if isinstance(value, dict):
        return {name: _copied(each, devices) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each, devices) for each in value)
    return value
