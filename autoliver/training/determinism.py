"""The same bits again: switches that PyTorch keeps for the whole process."""

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """Has every operation of the block give the same result again, on the same machine.

    Slower on a GPU: cuDNN may not choose its algorithms by trying. What was set before is set again
    at the end.

    Args:
        wanted: False: nothing is changed.
    """
    if not wanted:
        yield
        return
    # Read by cuBLAS when it is first used; PyTorch refuses to multiply matrices without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # noqa: TID251
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = before[2:]
