"""Several processes, started by `torchrun`, that train one fold together.

Each process holds the whole network and works on its part of every batch. Whatever decides how the
training continues (loss, time, a request to stop) is exchanged, so that all processes do the same.
Only the first process, the lead, writes files and reports progress. Without torchrun there is a
single process, and the functions here do nothing.

torch is imported late, so that a command that finds no dataset does not wait for it.
"""

import contextlib
import itertools
import logging
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autoliver.errors import AutoliverError, OptionError
from autoliver.parallel import Limits, cores
from autoliver.system import stop_with_parent
from autoliver.training.share import Part
from autoliver.training.stop import Stopped

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

# While the lead preprocesses or predicts held-out cases, the others wait.
_LONGEST_WAIT = timedelta(days=30)
# When one process has ended, torchrun ends the others, even one that is still printing its error.
_SECONDS_TO_REPORT = 2.0
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The processes that train a fold together, seen from one of them.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process on its machine, which is also the number of its GPU.
        local_size: Number of processes on its machine.
        control: Gives torch's process group for everything except tensors on the device, which
            lives until the block of `join_group` ends; None for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: Callable[[], Any] = lambda: None

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def part(self, batch_size: int) -> Part:
        """The part of every batch that this process makes; parts differ by one sample at most.

        Args:
            batch_size: Number of samples of the whole batch.

        Raises:
            OptionError: There are more processes than samples.
        """
        if batch_size < self.size:
            raise OptionError(
                f"{self.size} processes cannot share batches of {batch_size}: each needs a sample.",
                hint=f"Start no more than {batch_size} (torchrun --nproc-per-node), or plan for "
                "larger batches.",
            )
        start, stop = (batch_size * rank // self.size for rank in (self.rank, self.rank + 1))
        return Part(start=start, stop=stop, whole=batch_size)

    def own_limits(self, limits: Limits) -> Limits:
        """This process's share of the limits for all processes of its machine."""
        if self.local_size == 1:
            return limits
        return Limits(
            workers=max(1, (limits.workers or cores()) // self.local_size),
            memory_gb=limits.budget_gb / self.local_size,
        )

    def parallel(self, network: "nn.Module") -> "nn.Module":
        """Wraps the network so that gradients are averaged over the processes.

        The wrapper shares the network's weights. Every parameter that requires a gradient must get
        one in each backward pass.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        # The warning concerns 1x1 convolutions on the CPU, for which two sets of strides are valid.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        return DistributedDataParallel(network)

    def share_buffers(self, network: "nn.Module") -> None:
        """Gives all processes the lead's buffers, such as the running statistics of norms.

        Every process has seen other samples of a batch; the lead's are those that are saved.
        """
        if self.size > 1:
            import torch.distributed as dist

            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)

    def sum_(self, values: "Tensor") -> "Tensor":
        """Sums a tensor on the training's device over all processes, in place."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        set_in = torch.tensor(int(flag))
        dist.all_reduce(set_in, group=self.control())
        return bool(set_in > 0)

    def gather(self, items: Sequence[str]) -> list[str]:
        """The items of all processes, in the order of the processes."""
        if self.size == 1:
            return list(items)
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, list(items), group=self.control())
        return [item for theirs in found for item in theirs]

    def lead_does(self, work: Callable[[], T]) -> T:
        """Runs `work` in the lead only; all processes wait for its result and return it."""
        if self.size == 1:
            return work()
        import torch
        import torch.distributed as dist

        box: list[Any] = [work() if self.leads else None]
        control = self.control()
        dist.broadcast_object_list(box, src=0, group=control, device=torch.device("cpu"))
        result: T = box[0]
        return result

    def wait(self) -> None:
        """Waits until all processes have reached this call."""
        self.any(False)

    def check_equal(self, what: str, value: object) -> None:
        """Checks that all processes have the same value.

        Args:
            what: Name of the value, for messages.
            value: The value of this process.

        Raises:
            AutoliverError: The value of this process differs from that of the lead.
        """
        first = self.lead_does(lambda: value)
        if first != value:
            raise AutoliverError(
                f"Process {self.rank} has {what} {value}, process 0 has {first}.",
                hint="All processes need the same kind of device, and a workspace that all "
                "machines share.",
            )


# A single process.
ALONE = Group()


def launched() -> Group:
    """This process as torchrun has numbered it, before it joins the other processes.

    Raises:
        OptionError: The environment names several processes without a valid number for this one.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    # The only settings from the environment: torchrun has no other way to pass them.
    given = {name: os.environ[name] for name in names if name in os.environ}  # noqa: TID251
    if given.get("WORLD_SIZE", "1") == "1":
        return ALONE
    try:
        rank, size, local_rank = (int(given[name]) for name in names[:3])
        local_size = int(given.get("LOCAL_WORLD_SIZE", size))
    except (KeyError, ValueError) as error:
        raise OptionError(
            f"The environment names several processes, but not which this is: {given}.",
            hint="Start them with torchrun, or unset WORLD_SIZE.",
        ) from error
    return Group(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


@contextlib.contextmanager
def join_group() -> Iterator[Group]:
    """Joins the processes that torchrun has started, if any, for the duration of the block.

    The first process that fails raises its error. The others fail because of it or for the same
    reason; they end with exit code 1 and without a message. If the processes are asked to stop, all
    end with the code for that, and the lead says so. If torchrun itself is killed, each process is
    asked to stop by SIGTERM (on Linux).

    Raises:
        Stopped: A signal was received.
        AutoliverError: Another process was lost without reporting an error.
        OptionError: The processes do not reach each other, or the environment is invalid.
    """
    place = launched()
    if place.size == 1:
        yield place
        return
    import torch.distributed as dist

    stop_with_parent()
    group, store, control = _join(place)
    try:
        with contextlib.nullcontext() if group.leads else _in_silence():
            yield group
            group.wait()
    except Stopped as error:
        if group.leads:
            raise
        time.sleep(_SECONDS_TO_REPORT)
        raise SystemExit(error.exit_code) from None
    except BaseException as error:
        if not _fails_first(store):
            time.sleep(_SECONDS_TO_REPORT)
            raise SystemExit(1) from None
        if isinstance(error, RuntimeError) and _is_of_a_lost_process(error):
            raise AutoliverError(
                f"Another of the {group.size} processes was killed, most likely by the kernel for "
                "lack of memory, or cannot be reached.",
                hint="Its last messages, if any, are above. Run the same command again to resume.",
            ) from error
        raise
    dist.destroy_process_group()
    # Its threads end with the last reference. One that still let go of a tensor while the
    # interpreter ends would abort the process.
    del control


def _join(place: Group) -> tuple[Group, Any, Any]:
    """Connects to the other processes.

    Returns:
        The group; torch's store, which outlives the group; and the only lasting reference to the
        process group that `Group.control` gives.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise OptionError(
            f"Process {place.rank} of {place.size} cannot reach the others: {error}",
            hint="Start them with torchrun; across machines, see its --rdzv-endpoint.",
        ) from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # The prefix hides what an earlier group of these processes has left in the store.
    store = PrefixStore(f"autoliver {next(_numbers)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    control = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    group = Group(
        rank=rank,
        size=size,
        local_rank=place.local_rank,
        local_size=place.local_size,
        control=weakref.ref(control),
    )
    return group, store, control


def _fails_first(store: Any) -> bool:
    try:
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:  # the process that holds it is gone
        return False


def _is_of_a_lost_process(error: RuntimeError) -> bool:
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Hides progress bars and log messages below warnings; the lead shows them already."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
