"""Writes files of a training in a thread, while the next steps are taken."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class Saver:
    """Runs what writes files one after the other in a thread; errors are raised by its methods."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._begun: list[Future[None]] = []

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
    found = _copied(value)
    if not torch.cuda.is_available():
        return found, lambda: None
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return found, arrived.synchronize


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value.detach().clone()
        return value.detach().to("cpu", non_blocking=value.device.type == "cuda")
    if isinstance(value, dict):
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value
