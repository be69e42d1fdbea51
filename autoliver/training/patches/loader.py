"""Draws patches from disk in worker processes, without torch.

The worker processes of batchgenerators are not used because they share queues. If one of them is
killed while it writes a batch (for example by the kernel), the training waits forever for the rest
of the batch: with version 0.25.5 this happened in every attempt. If the training is killed, the
other workers stay alive. Here each worker holds the only writing end of its own pipe, so that its
death closes the pipe at any point. A batch is a function of its number, so a worker that died can
be replaced without changing the batches.
"""

import logging
import os
import signal
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import numpy.typing as npt
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase

from autoliver.errors import AutoliverError
from autoliver.parallel import cause_of_death, end_with_parent, without_main
from autoliver.training.patches.sampling import Allocate, Batch, PatchStream

_log = logging.getLogger(__name__)

_TRIES = 2
# How long to wait for the end of a process that has closed its pipe.
_PATIENCE_S = 5.0


class PatchLoader(SlimDataLoaderBase):  # type: ignore[misc]
    """The batches of a stream in the protocol of batchgenerators: dicts of arrays.

    If n threads or processes share the work, each of them draws every n-th batch.

    Args:
        stream: The stream to draw from.
        numbers: Numbers of the batches.
        threads: Number of threads or processes that share the work.
    """

    def __init__(self, stream: PatchStream, numbers: range, *, threads: int = 1) -> None:
        super().__init__(stream, stream.sampler.batch_size, threads)
        self.numbers = numbers
        self.drawn = 0

    def generate_train_batch(self) -> dict[str, Any]:
        """The next batch of this thread: "data" (b, c, *patch), "target" (b, 1, *patch), "keys".

        If the stream is told how patches will be rotated, there is also "wide" (`Batch.wide`).

        Raises:
            StopIteration: There are no more batches.
        """
        mine = self.numbers[self.thread_id :: self.number_of_threads_in_multithreaded]
        if self.drawn == len(mine):
            raise StopIteration
        batch: Batch = self._data.draw(mine[self.drawn])
        self.drawn += 1
        found = {"data": batch.image, "target": batch.label, "keys": batch.cases}
        return {**found, "wide": batch.wide} if batch.wide else found


def drawn_by_workers(
    stream: PatchStream, numbers: range, workers: int, allocate: Allocate = np.empty
) -> Generator[Batch, None, None]:
    """Yields batches in the order of their numbers; worker processes draw them ahead.

    Args:
        stream: The stream to draw from, which must be picklable.
        numbers: Numbers of the batches.
        workers: Number of processes; no more than there are batches are started.
        allocate: Makes the arrays of the batches.

    Yields:
        The batches.

    Raises:
        AutoliverError: A worker died, and so did its replacement.
    """
    workers = min(workers, max(1, len(numbers)))
    crew = [_Worker(stream, numbers[index::workers]) for index in range(workers)]
    try:
        # All workers start before the first batch is waited for.
        try:
            for worker in crew[: len(numbers)]:
                worker.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            _log.warning("Worker processes cannot be started here (%s): drawing patches", error)
            yield from (stream.draw(number, allocate) for number in numbers)
            return
        for index in range(len(numbers)):
            yield crew[index % workers].receive(allocate)
    finally:
        for worker in crew:
            worker.end()


@dataclass
class _Worker:
    """One process and the batches it still has to deliver."""

    stream: PatchStream
    numbers: range
    process: BaseProcess | None = None
    pipe: Connection | None = None

    def start(self) -> None:
        # spawn: forking a process that runs torch's threads can hang.
        context = get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        loader = PatchLoader(self.stream, self.numbers)
        process = context.Process(target=_work, args=(loader, theirs), daemon=True)
        try:
            with without_main():
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            # The worker then holds the only writing end, which closes when the worker ends.
            theirs.close()
        self.process, self.pipe = process, ours

    def receive(self, allocate: Allocate) -> Batch:
        cause = ""
        for number in range(_TRIES):
            if number:
                _log.warning("%s while drawing patches; another worker replaces it.", cause)
                self.start()
            found = self._read(allocate)
            if isinstance(found, Exception):
                raise found
            if found is not None:
                self.numbers = self.numbers[1:]
                return found
            cause = self.end(patience_s=_PATIENCE_S)
        facts = self.stream.sampler.facts(self.stream.places(self.numbers[0]))
        cases = sorted({case.name for case in facts})
        raise AutoliverError(
            f"{cause} while drawing patches of {', '.join(cases)}, {_TRIES} times in a row.",
            hint="Use fewer processes with --workers 1, or none with --cache ram.",
        )

    def _read(self, allocate: Allocate) -> Batch | Exception | None:
        """The next batch, or the exception that it raised; None if the process has died."""
        if self.pipe is None:
            return None
        try:
            found = self.pipe.recv()
            if isinstance(found, Exception):
                return found
            arrays = [allocate(shape, kind) for shape, kind in found["arrays"]]
            for array in arrays:
                _read_into(array, self.pipe)
        except (EOFError, OSError):
            return None
        image, label, *wide = arrays
        return Batch(image, label, found["cases"], tuple(zip(wide[::2], wide[1::2], strict=True)))

    def end(self, *, patience_s: float = 0.0) -> str:
        """Ends the process if it still runs; returns the cause as the first words of a message."""
        if self.process is None or self.pipe is None:
            return ""
        self.pipe.close()
        # The process may be ending by itself: then its own exit code is the one to report. Killing
        # it loses nothing.
        self.process.join(patience_s)
        self.process.kill()
        self.process.join()
        code, self.process, self.pipe = self.process.exitcode, None, None
        return cause_of_death([code])


def _work(loader: PatchLoader, pipe: Connection) -> None:
    # Signals are left to the training: when it stops, nobody reads the pipe and the worker ends.
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            batch: Any = next(loader)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - it is raised in the training's process instead
            error.add_note(traceback.format_exc())
            batch = error
        try:
            _send(batch, pipe)
        except (BrokenPipeError, ConnectionResetError):
            return
        if isinstance(batch, Exception):
            return


def _send(batch: dict[str, Any] | Exception, pipe: Connection) -> None:
    if isinstance(batch, Exception):
        pipe.send(batch)
        return
    wide = [array for pair in batch.get("wide", ()) for array in pair]
    sent = (batch["data"], batch["target"], *wide)
    arrays = [np.ascontiguousarray(array) for array in sent]
    pipe.send({"arrays": [(a.shape, a.dtype) for a in arrays], "cases": batch["keys"]})
    for array in arrays:
        _write(array, pipe)


# Data is copied directly between the arrays: with send_bytes and recv_bytes_into, the training's
# process needs five times the CPU time (190 ms instead of 36 ms for 100 MB).
_DIRECT = hasattr(os, "readv")


def _write(array: npt.NDArray[np.generic], pipe: Connection) -> None:
    left = array.reshape(-1).view(np.uint8).data
    if not _DIRECT:
        pipe.send_bytes(left)
        return
    while left:
        left = left[os.write(pipe.fileno(), left) :]


def _read_into(array: npt.NDArray[np.generic], pipe: Connection) -> None:
    left = array.reshape(-1).view(np.uint8).data
    if not _DIRECT:
        pipe.recv_bytes_into(left)
        return
    while left:
        count = os.readv(pipe.fileno(), [left])
        if count == 0:
            raise EOFError
        left = left[count:]
