"""Chooses the devices to compute on, and says what they can do and what memory they have left."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoliver.errors import OptionError
from autoliver.machine import check_device_name

if TYPE_CHECKING:
    import torch

# The first NVIDIA GPUs that compute bfloat16 themselves (Ampere). Older ones emulate it, slowly.
_BFLOAT16_CAPABILITY = (8, 0)

MORE_MEMORY = (
    "End what else runs there (nvidia-smi), use another GPU (--device cuda:1), or the processor: "
    "--device cpu."
)


def choose_device(name: str) -> "torch.device":
    """Returns the device of a name; "auto" prefers CUDA, then Apple's GPU, then the CPU.

    Raises:
        OptionError: The name is invalid, or the device cannot be used on this machine.
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


def check_gpus(numbers: Sequence[int]) -> None:
    """Refuses GPUs that do not exist.

    Args:
        numbers: CUDA's numbers of the GPUs, from 0.

    Raises:
        OptionError: A GPU does not exist. The error names the missing ones and lists the existing
            ones.
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
    """Returns the device of one of several processes that train together on a machine.

    Args:
        name: "auto", "cuda" or "cpu".
        number: The number of the process on its machine. With CUDA, each process takes the GPU of
            the same number.

    Raises:
        OptionError: There is no GPU of this number, or `name` is another device.
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
            f"Process {number} of this machine has no GPU of its own: there are {found} GPUs.",
            hint=f"Use torchrun --nproc-per-node {found}, or --device cpu.",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def on_gpu(device: "torch.device") -> bool:
    """Whether a device is an accelerator, with memory of its own."""
    return device.type != "cpu"


def half_precision(device: "torch.device", *, training: bool) -> "torch.dtype | None":
    """Returns the type in which networks are computed by autocast; None for float32.

    Args:
        device: The device that they run on, which need not be CUDA's current one.
        training: Whether gradients are computed. bfloat16 has the range of float32, so that they
            need no scaling; GPUs that do not compute it themselves train in float16, with a scaler.
            Prediction takes float16 on every GPU: it is more precise, and outputs that exceed its
            range are noticed.
    """
    import torch

    if device.type != "cuda":
        return None
    if training and torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY:
        return torch.bfloat16
    return torch.float16


def free_bytes(device: "torch.device") -> int:
    """Returns the memory of a CUDA device that this process can have now.

    That is what is free, and what PyTorch keeps of tensors that are gone.
    """
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
