"""Several processes that train one fold together, as `torchrun` starts them.

Each holds the whole network, draws every batch and works on its part of it. What decides how a
training goes on (loss, time, the wish to stop) is agreed upon, so that all of them do the same; the
first one, the lead, alone writes files and speaks. Without torchrun there is one process, and
nothing here does anything.

torch is imported late: a command that finds no dataset need not wait for it.
"""

import contextlib
import itertools
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autoliver.errors import AutoliverError, OptionError
from autoliver.parallel import Limits, cores
from autoliver.training.share import Part

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

# While the lead preprocesses or predicts held-out cases, the others wait.
_LONGEST_WAIT = timedelta(days=30)
# As soon as one process has ended torchrun ends the others, even one that is telling the reason.
_SECONDS_TO_TELL = 2.0
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """The processes that train a fold, seen from one of them.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        local_rank: Number of this process on its machine, which is that of its GPU.
        local_size: How many there are on its machine.
        control: torch's process group for all but tensors of the device.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def part(self, batch_size: int) -> Part:
        """What this process makes of every batch; shares differ by one sample at most.

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
        """What this process may use of what its machine's processes share."""
        if self.local_size == 1:
            return limits
        return Limits(
            workers=max(1, (limits.workers or cores()) // self.local_size),
            memory_gb=limits.budget_gb / self.local_size,
        )

    def parallel(self, network: "nn.Module") -> "nn.Module":
        """The network with gradients that are means over the processes; it shares its weights.

        Every parameter that requires a gradient must get one in each backward pass.
        """
        if self.size == 1:
            return network
        from torch.nn.parallel import DistributedDataParallel

        # Said of 1x1 convolutions on the CPU, whose strides can be written in two ways.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        return DistributedDataParallel(network)

    def sum_(self, values: "Tensor") -> "Tensor":
        """Adds up a tensor of the training's device over all processes, in place."""
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
        dist.all_reduce(set_in, group=self.control)
        return bool(set_in > 0)

    def gather(self, items: Sequence[str]) -> list[str]:
        """The items of all processes, in their order."""
        if self.size == 1:
            return list(items)
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, list(items), group=self.control)
        return [item for theirs in found for item in theirs]

    def lead_does(self, work: Callable[[], T]) -> T:
        """What the lead's work comes to, in all processes; the others wait for it."""
        if self.size == 1:
            return work()
        import torch
        import torch.distributed as dist

        box: list[Any] = [work() if self.leads else None]
        dist.broadcast_object_list(box, src=0, group=self.control, device=torch.device("cpu"))
        result: T = box[0]
        return result

    def wait(self) -> None:
        """Waits until all processes have come here."""
        self.any(False)

    def check_equal(self, what: str, value: object) -> None:
        """Makes sure that all processes have found the same.

        Raises:
            AutoliverError: This one has not found what the lead has.
        """
        first = self.lead_does(lambda: value)
        if first != value:
            raise AutoliverError(
                f"Process {self.rank} has {what} {value}, process 0 has {first}.",
                hint="All processes need the same kind of device, and a workspace that all "
                "machines share.",
            )


# The only process there is.
ALONE = Group()


def launched() -> Group:
    """This process as torchrun has numbered it, before it joins the others.

    Raises:
        OptionError: The environment contradicts itself.
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
    """Joins the processes that torchrun has started, if it has, for the duration of the block.

    Of processes that fail, the first raises its error; the others, which fail because of it or for
    the same reason, end in silence with exit code 1.

    Raises:
        AutoliverError: A process was lost without a word.
    """
    place = launched()
    if place.size == 1:
        yield place
        return
    import torch.distributed as dist

    group, store = _join(place)
    try:
        with contextlib.nullcontext() if group.leads else _in_silence():
            yield group
            group.wait()
    except BaseException as error:
        if not _fails_first(store):
            time.sleep(_SECONDS_TO_TELL)
            raise SystemExit(1) from None
        if isinstance(error, RuntimeError) and _is_of_a_lost_process(error):
            raise AutoliverError(
                f"Another of the {group.size} processes was killed, most likely by the kernel for "
                "want of memory, or cannot be reached.",
                hint="Its last words are above, if it had any. The same command again goes on.",
            ) from error
        raise
    dist.destroy_process_group()


def _join(place: Group) -> tuple[Group, Any]:
    """Takes up connection to the others; returns torch's store, which outlives them as well."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise OptionError(
            f"Process {place.rank} of {place.size} does not reach the others: {error}",
            hint="Start them with torchrun; across machines, see its --rdzv-endpoint.",
        ) from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # What an earlier group of these processes has left in the store is not for this one.
    store = PrefixStore(f"autoliver {next(_numbers)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    control = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
    group = Group(
        rank=rank,
        size=size,
        local_rank=place.local_rank,
        local_size=place.local_size,
        control=control,
    )
    return group, store


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
    """No bars and no infos, which the lead shows already; warnings come through."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)
