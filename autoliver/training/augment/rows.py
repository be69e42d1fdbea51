"""Changes some rows of a batch together: few large operations in place of many small ones.

A GPU waits for the launches of small operations, and a CPU core for Python. On a CPU only as many
rows are taken at once as its cache holds; on other devices a limit bounds the memory.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Voxels that are changed at once. On a CPU core 2^16 to 2^18 take the same time (slices of 56 x 40
# to 128 x 128), larger groups more.
_AT_ONCE_CPU, _AT_ONCE = 2**17, 2**21


def rows_at_once(size: int, device: torch.device) -> int:
    """Returns how many rows of so many voxels are changed together; at least one."""
    most = _AT_ONCE_CPU if device.type == "cpu" else _AT_ONCE
    return max(1, most // max(size, 1))


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Copies a small array to a device; the CPU does not wait for the copy."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def change_rows(
    batch: Tensor, rows: Sequence[int], change: Callable[[Tensor, slice], Tensor]
) -> None:
    """Changes some rows of a batch in place.

    Args:
        batch: (n, *shape).
        rows: Their indices, all different.
        change: Returns a group of rows (k, *shape) changed, in place or not; it is also told which
            of `rows` they are.
    """
    together = rows_at_once(batch[0].numel() if len(batch) else 0, batch.device)
    for start in range(0, len(rows), together):
        part = slice(start, start + together)
        chosen = rows[part]
        if len(chosen) == 1:
            picked = batch[chosen[0] : chosen[0] + 1]
            changed = change(picked, part)
            if changed is not picked:
                picked.copy_(changed)
            continue
        index = to_device(np.array(chosen), batch.device)
        batch.index_copy_(0, index, change(batch.index_select(0, index), part))
