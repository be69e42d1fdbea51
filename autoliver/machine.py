"""What a stage may use of this machine; it decides how fast a result comes, never what it is."""

import re
from collections.abc import Callable
from typing import Any, Literal

from autoliver.artifacts import Record
from autoliver.errors import OptionError
from autoliver.parallel import NO_LIMITS, CasePool, Limits, Need, cores
from autoliver.values import check_types, check_whole, meant, natural, set_field

CacheChoice = Literal["auto", "gpu", "ram", "disk"]

# One core is left to the training, and more workers than these have never been needed.
_MOST_LOADERS = 8
_LEAST_GB = 0.1
_KINDS = ("auto", "cpu", "cuda", "mps")


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

    def __post_init__(self) -> None:
        """Refuses values that cannot be; GPUs may be given as a text, "0,1".

        Raises:
            OptionError: Naming the option and its value.
        """
        set_field(self, "gpus", gpu_numbers(self.gpus))
        check_device_name(self.device)
        check_types(self)
        if self.jobs is not None:
            check_whole("--jobs", self.jobs, least=1)

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


def check_device_name(name: object) -> str:
    """Refuses what cannot be the name of a device, on any machine.

    Raises:
        OptionError: Naming what there may be.
    """
    if isinstance(name, str) and re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?|mps(:0)?", name):
        return name
    hint = meant(name, _KINDS) or "Use --device auto or cpu."
    raise OptionError(
        f"--device {name}: it must be auto, cpu, cuda, cuda:1 (a GPU by its number) or mps.",
        hint=hint,
    )


def gpu_numbers(value: object) -> tuple[int, ...]:
    """The GPUs that `train` is asked to use, by number.

    Args:
        value: A number, "0,1", or several numbers; an empty text for none.

    Raises:
        OptionError: It is none of these.
    """
    if isinstance(value, str):
        parts: list[object] = [part.strip() for part in value.split(",")] if value else []
    else:
        parts = list(value) if isinstance(value, list | tuple) else [value]
    numbers = []
    for part in parts:
        number = natural(part)
        if number is None:
            raise OptionError(
                f"--gpus: {value!r} is no list of numbers as 0,1.", hint="Give it as --gpus 0,1."
            )
        numbers.append(number)
    return tuple(numbers)


# All that there is.
WHOLE_MACHINE = Machine()
