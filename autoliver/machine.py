"""What a stage may use of this machine; it decides how fast a result comes, never what it is."""

from collections.abc import Callable
from typing import Any, Literal

from autoliver.artifacts import Record
from autoliver.parallel import NO_LIMITS, CasePool, Limits, Need, cores

CacheChoice = Literal["auto", "gpu", "ram", "disk"]

# One core is left to the training, and more workers than these have never been needed.
_MOST_LOADERS = 8
_LEAST_GB = 0.1


class Machine(Record, frozen=True, kw_only=True):
    """The devices, processes and memory that a command may use.

    Attributes:
        device: Where networks run: "auto", "cpu", "cuda", "cuda:1" or "mps".
        gpus: Numbers of the GPUs that take folds as they become free; a number given twice takes
            two folds at a time.
        jobs: How many folds are trained at a time without `gpus`, each in a process of its own.
        cache: Where the training cases lie while patches are drawn; "auto" takes the first place
            that they fit into.
        limits: Worker processes and memory of stages that map over cases.
        tensorboard: Whether each epoch is also written for TensorBoard.
    """

    device: str = "auto"
    gpus: tuple[int, ...] = ()
    jobs: int | None = None
    cache: CacheChoice = "auto"
    limits: Limits = NO_LIMITS
    tensorboard: bool = False

    @property
    def loaders(self) -> int:
        """How many worker processes draw training patches from disk."""
        return self.limits.workers or max(1, min(_MOST_LOADERS, cores() - 1))

    def pool(self, what: str, *, need: Callable[[Any], Need], light: bool = False) -> CasePool:
        """The processes that a stage over cases runs in.

        Args:
            what: Names the stage in messages.
            need: Estimates the memory that an item takes.
            light: Whether the stage does little more than read its cases.
        """
        return CasePool(what=what, limits=self.limits, need=need, light=light)

    def share(self, number: int, *, device: str) -> "Machine":
        """What one of several processes may use that train a fold each at the same time.

        Args:
            number: How many there are.
            device: The device of this one.
        """
        workers = self.limits.workers or min(self.loaders, max(1, cores() // number))
        memory_gb = max(_LEAST_GB, round(self.limits.budget_gb / number, 2))
        limits = Limits(workers=workers, memory_gb=memory_gb)
        return self.replace(device=device, gpus=(), jobs=None, limits=limits)


# All that there is.
WHOLE_MACHINE = Machine()
