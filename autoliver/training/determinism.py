"""Bitwise reproducibility: sets the switches that PyTorch keeps for the whole process."""

import contextlib
import os
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def same_bits(wanted: bool) -> Iterator[None]:
    """Makes the operations within the block reproducible bit by bit on the same machine.

    This is slower on a GPU, because cuDNN may not choose its algorithms by timing them. The
    previous settings are restored at the end of the block.

    Args:
        wanted: Whether to do so; otherwise cuDNN chooses by timing, since all batches have one
            shape.
    """
    if not wanted:
        timed, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = timed
        return
    # cuBLAS reads it at its first use; without it PyTorch refuses to multiply matrices.
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
