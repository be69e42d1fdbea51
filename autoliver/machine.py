"""The devices, processes and memory a stage may use; they affect its speed, never its result."""

import re
from collections.abc import Callable
from typing import Any, Literal

from autoliver.artifacts import Record
from autoliver.errors import WrongValue
from autoliver.parallel import NO_LIMITS, CasePool, Limits, Need, cores
from autoliver.values import check_types, check_whole, meant, natural, set_field

CacheChoice = Literal["auto", "gpu", "ram", "disk"]
CompileChoice = Literal["auto", "on", "off"]

# One core is left to the training itself; more workers than this have never been needed.
_MOST_LOADERS = 8
# Memory of such a worker before its first patch: Python, numpy, blosc2.
_LOADER_GB = 0.1
_LEAST_GB = 0.1
_KINDS = ("auto", "cpu", "cuda", "mps")


class Machine(Record, frozen=True, kw_only=True):
    """The devices, processes and memory that a command may use.

    Attributes:
        device: The device that networks run on: "auto", "cpu", "cuda", "cuda:1" or "mps".
        gpus: Numbers of the GPUs that train folds; each GPU takes the next fold when it becomes
            free. A GPU that is listed twice trains two folds at a time. Empty if not given.
        jobs: Number of folds that are trained at the same time without `gpus`, each in its own
            process; None if not given.
        cache: Where the training cases are kept while patches are drawn: "gpu", "ram" or "disk";
            "auto" takes the first of these that they fit into.
        limits: Limits on the worker processes and the memory of stages that map over cases.
        tensorboard: Whether each epoch is also logged for TensorBoard.
        sharing: Number of processes that train on `device` at the same time, this one included;
            set by `share`.
        threads: Threads of an operation on the CPU, in each process; None: chosen by timing where
            networks run, and the cores divided by the processes where cases are prepared. It
            changes the last bits of sums.
        compile: Whether the network that is trained is compiled: "on" or "off"; "auto" does so on
            CUDA.
    """

    device: str = "auto"
    gpus: tuple[int, ...] = ()
    jobs: int | None = None
    cache: CacheChoice = "auto"
    limits: Limits = NO_LIMITS
    tensorboard: bool = False
    sharing: int = 1
    threads: int | None = None
    compile: CompileChoice = "auto"

    def __post_init__(self) -> None:
        """Refuses invalid values, and converts GPUs that are given as text, e.g. "0,1".

        Raises:
            OptionError: A value is invalid; the error names the option and its value.
        """
        set_field(self, "gpus", gpu_numbers(self.gpus))
        check_device_name(self.device)
        check_types(self)
        if self.jobs is not None:
            check_whole("--jobs", self.jobs, least=1)
        if self.threads is not None:
            check_whole("--threads", self.threads, least=1)

    @property
    def loaders(self) -> int:
        """Number of worker processes that draw training patches from disk.

        There are no more than memory holds, however many are asked for.
        """
        asked = self.limits.workers
        if not asked:
            return max(1, min(_MOST_LOADERS, cores() - 1))
        return min(asked, max(_MOST_LOADERS, int(self.limits.budget_gb / _LOADER_GB)))

    def pool(self, what: str, *, need: Callable[[Any], Need], light: bool = False) -> CasePool:
        """Returns the pool of processes for a stage over cases.

        Args:
            what: The stage's name, for messages.
            need: Estimates the memory that an item takes.
            light: Whether the stage does little more than read its cases.
        """
        return CasePool(what=what, limits=self.limits, need=need, light=light, threads=self.threads)

    def share(self, number: int, *, device: str, sharing: int = 1) -> "Machine":
        """Returns the share of one of several processes that each train a fold at the same time.

        Args:
            number: The number of processes.
            device: The device that the process uses.
            sharing: How many of these processes use this device.
        """
        workers = self.limits.workers or min(self.loaders, max(1, cores() // number))
        memory_gb = max(_LEAST_GB, round(self.limits.budget_gb / number, 2))
        limits = Limits(workers=workers, memory_gb=memory_gb)
        return self.replace(device=device, gpus=(), jobs=None, limits=limits, sharing=sharing)


def check_device_name(name: object) -> str:
    """Checks that a value is a device name that is valid on some machine, and returns it.

    Raises:
        OptionError: The name is invalid; the error lists the valid ones.
    """
    if isinstance(name, str) and re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?|mps(:0)?", name):
        return name
    hint = meant(name, _KINDS) or "Use --device auto or cpu."
    raise WrongValue(
        f"--device {name}: it must be auto, cpu, cuda, cuda:1 (a GPU by its number) or mps.",
        hint=hint,
    )


def gpu_numbers(value: object) -> tuple[int, ...]:
    """Parses the numbers of the GPUs that `train` may use.

    Args:
        value: A number, a text such as "0,1", or several numbers; an empty text for no GPU.

    Raises:
        OptionError: The value is none of these.
    """
    if isinstance(value, str):
        parts: list[object] = [part.strip() for part in value.split(",")] if value else []
    else:
        parts = list(value) if isinstance(value, list | tuple) else [value]
    numbers = []
    for part in parts:
        number = natural(part)
        if number is None:
            raise WrongValue(
                f"--gpus: {value!r} is not a list of GPU numbers.", hint="Give it as --gpus 0,1."
            )
        numbers.append(number)
    return tuple(numbers)


# No restrictions: the default device, all cores and the free memory.
WHOLE_MACHINE = Machine()
