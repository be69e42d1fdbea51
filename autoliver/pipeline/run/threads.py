"""The threads of a training: chosen by timing, or kept where the same bits are promised."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

from autoliver.artifacts import Artifact
from autoliver.errors import OptionError
from autoliver.training.progress import add_to_log

if TYPE_CHECKING:
    from autoliver.training.fold import FoldTask

Stop = Callable[[], bool]


class ThreadsUsed(Artifact, frozen=True, kw_only=True):
    """How many threads a training with `--deterministic` uses on the CPU.

    Attributes:
        threads: Threads of an operation.
    """

    KIND: ClassVar[str] = "threads"

    threads: int


@contextlib.contextmanager
def threads_for(task: "FoldTask", stop: Stop) -> Iterator[Stop]:
    """Sets the number of threads while a fold is trained.

    With `--deterministic` nothing is timed: a resumed training has the threads that it began with,
    since sums differ in their last bits with another number.

    Args:
        task: The fold; its log is told what was chosen.
        stop: Asked after every step whether the training is to stop.

    Yields:
        What to ask instead of `stop`: it also notes that a step has ended.

    Raises:
        OptionError: `--threads` differs from what a run with `--deterministic` began with.
    """
    from autoliver.networks.threads import threads_of

    asked, exact = task.machine.threads, task.options.deterministic
    if exact and task.device.type == "cpu":
        asked = _kept(task)

    def say(text: str) -> None:
        stderr = None if sys.stderr.isatty() else sys.stderr
        if task.group.leads:
            add_to_log(task.files.log, f"{task.title}: {text}", also=stderr)

    timed = not exact and task.group.size == 1
    with threads_of(asked, task.device, timed=timed, say=say) as threads:

        def noted() -> bool:
            if threads is not None:
                threads.step()
            return stop()

        yield noted


def _kept(task: "FoldTask") -> int:
    """The number that the training began with, or begins with now and keeps."""
    import torch

    asked, path = task.machine.threads, task.files.threads
    if not (task.files.resume.exists() and path.exists()):
        now = asked or torch.get_num_threads()
        if task.group.leads:
            ThreadsUsed(threads=now).save(path)
        return now
    before = ThreadsUsed.load(path, hint=f"Remove it, and give --threads {asked or 1}.").threads
    if asked not in (None, before):
        raise OptionError(
            f"--threads {asked}: {task.title} began with {before} and --deterministic; with "
            "another number of threads, sums would differ in their last bits.",
            hint="Leave --threads out, or begin again with --fresh.",
        )
    return before
