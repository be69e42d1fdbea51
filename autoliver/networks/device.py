"""Which device to compute on."""

from collections.abc import Sequence

import torch

from autoliver.errors import OptionError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's GPU, then the CPU.

    Raises:
        OptionError: There is no such device here.
    """
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


def check_gpus(numbers: Sequence[int]) -> None:
    """Refuses GPUs that are not there.

    Args:
        numbers: As CUDA counts the GPUs it may use, from 0.

    Raises:
        OptionError: Naming the missing ones and listing what there is.
    """
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
