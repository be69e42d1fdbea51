"""Patches drawn from disk by worker processes; nothing here needs torch.

The processes are our own. Those of batchgenerators share its queues: where one is killed while it
writes a batch, as the kernel does, the training waits for the rest of it for ever (seen with 0.25.5
in every try), and the others outlive a training that is killed. Here each worker has a pipe whose
only writing end is its own, so that its death ends the pipe, wherever it was. A batch is a function
of its number, so a worker that died can be replaced and nothing changes.
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
from autoliver.parallel import cause_of_death
from autoliver.training.patches.sampling import Batch, PatchStream

_log = logging.getLogger(__name__)

_TRIES = 2
# For a process that has closed its pipe to be gone.
_PATIENCE_S = 5.0


class PatchLoader(SlimDataLoaderBase):  # type: ignore[misc]
    """The batches of a stream in the protocol of batchgenerators: dicts of arrays.

    Of several threads or processes, each draws every n-th batch.

    Args:
        stream: What is drawn.
        numbers: Which batches.
        threads: How many share the work.
    """

    def __init__(self, stream: PatchStream, numbers: range, *, threads: int = 1) -> None:
        super().__init__(stream, stream.sampler.batch_size, threads)
        self.numbers = numbers
        self.drawn = 0

    def generate_train_batch(self) -> dict[str, Any]:
        """The next batch of this thread: "data" (b, c, *patch), "target" (b, 1, *patch), "keys".

        Raises:
            StopIteration: There are no more.
        """
        mine = self.numbers[self.thread_id :: self.number_of_threads_in_multithreaded]
        if self.drawn == len(mine):
            raise StopIteration
        batch: Batch = self._data.draw(mine[self.drawn])
        self.drawn += 1
        return {"data": batch.image, "target": batch.label, "keys": batch.cases}


def drawn_by_workers(
    stream: PatchStream, numbers: range, workers: int
) -> Generator[Batch, None, None]:
    """Batches in the order of their numbers, each drawn ahead by one of several processes.

    Args:
        stream: What is drawn; can be pickled.
        numbers: Which batches.
        workers: How many processes.

    Yields:
        The batches.

    Raises:
        AutoliverError: A worker died, and so did the one that took its place.
    """
    crew = [_Worker(stream, numbers[index::workers]) for index in range(workers)]
    try:
        # All begin before the first is waited for.
        for worker in crew[: len(numbers)]:
            worker.start()
        for index in range(len(numbers)):
            yield crew[index % workers].receive()
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
        self.pipe, theirs = context.Pipe(duplex=False)
        loader = PatchLoader(self.stream, self.numbers)
        self.process = context.Process(target=_work, args=(loader, theirs), daemon=True)
        self.process.start()
        # Theirs is then the only end to write to, and closes with them.
        theirs.close()

    def receive(self) -> Batch:
        cause = ""
        for number in range(_TRIES):
            if number:
                _log.warning("%s while drawing patches; another one takes its place.", cause)
                self.start()
            found = self._read()
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

    def _read(self) -> Batch | Exception | None:
        """The next batch, or what went wrong with it; None where the process has died."""
        if self.pipe is None:
            return None
        try:
            found = self.pipe.recv()
            if isinstance(found, Exception):
                return found
            image, label = (np.empty(shape, kind) for shape, kind in found["arrays"])
            for array in (image, label):
                _read_into(array, self.pipe)
        except (EOFError, OSError):
            return None
        return Batch(image, label, found["cases"])

    def end(self, *, patience_s: float = 0.0) -> str:
        """Ends the process, if need be; returns what became of it, the first words of a message."""
        if self.process is None or self.pipe is None:
            return ""
        self.pipe.close()
        # Its own exit code counts, if it is ending by itself; it holds nothing that could be lost.
        self.process.join(patience_s)
        self.process.kill()
        self.process.join()
        code, self.process, self.pipe = self.process.exitcode, None, None
        return cause_of_death([code])


def _work(loader: PatchLoader, pipe: Connection) -> None:
    # Whoever stops the training stops this, too: it ends where nobody reads any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        try:
            batch: Any = next(loader)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - it is raised in the training instead
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
    arrays = [np.ascontiguousarray(batch[key]) for key in ("data", "target")]
    pipe.send({"arrays": [(a.shape, a.dtype) for a in arrays], "cases": batch["keys"]})
    for array in arrays:
        _write(array, pipe)


# Straight from array to array: send_bytes and recv_bytes_into take five times the CPU time of the
# training's process (190 ms against 36 ms for 100 MB).
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
