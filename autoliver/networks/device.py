"""Which device to compute on."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoliver.errors import OptionError
from autoliver.values import meant, natural

if TYPE_CHECKING:
    import torch

_KINDS = ("auto", "cpu", "cuda", "mps")


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


def choose_device(name: str) -> "torch.device":
    """The device of that name; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        OptionError: There is no such device here.
    """
    import torch

    check_device_name(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"--device {name}: cannot be used here: {reason}", hint="Use --device auto or cpu."
        ) from error
    return device


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


def check_gpus(numbers: Sequence[int]) -> None:
    """Refuses GPUs that are not there.

    Args:
        numbers: As CUDA counts the GPUs it may use, from 0.

    Raises:
        OptionError: Naming the missing ones and listing what there is.
    """
    import torch

    count = torch.cuda.device_count()
    missing = sorted({number for number in numbers if not 0 <= number < count})
    if not missing:
        return
    given = ",".join(map(str, numbers))
    if count == 0:
        raise OptionError(
            f"--gpus {given}: there is no CUDA GPU here that PyTorch {torch.__version__} can use.",
            hint="Use --jobs N to train N folds at a time on the CPU.",
        )
    there = ", ".join(f"{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
    raise OptionError(
        f"--gpus {given}: there is no GPU {', '.join(map(str, missing))}; there is {there}.",
        hint=f"Use --gpus {','.join(map(str, range(count)))}.",
    )


def own_device(name: str, number: int) -> "torch.device":
    """The device of one of several processes that train together on a machine.

    Args:
        name: "auto", "cuda" or "cpu".
        number: Of the process on its machine; with CUDA each takes the GPU of its number.

    Raises:
        OptionError: There is no GPU of that number, or another device is asked for.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cuda", "cpu"):
        raise OptionError(
            f"--device {name}: processes that train together take a GPU each, or the CPU.",
            hint="Use --device cuda or cpu.",
        )
    device = choose_device(name)
    if device.type == "cpu":
        return device
    found = torch.cuda.device_count()
    if number >= found:
        raise OptionError(
            f"Process {number} of this machine has no GPU of its own: there are {found}.",
            hint=f"Use torchrun --nproc-per-node {found}, or --device cpu.",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
