"""Reads the numbers of a step from the device without waiting for the steps that follow it."""

import struct

import torch
from torch import Tensor

from autoliver.training.objectives.objective import Counts, Tally


class Reading:
    """Loss, gradient norm and counts of a batch on their way from the device.

    They travel as one tensor. On CUDA the copy is queued behind the step, and reading it waits for
    this step alone: the GPU already works on the next one.
    """

    def __init__(self, loss: Tensor, norm: Tensor, counts: Tally | Counts) -> None:
        """Sends the numbers.

        Args:
            loss: The loss, a float32 scalar.
            norm: The norm of the gradients, a float32 scalar.
            counts: The counts of the batch.
        """
        self._counts = counts
        # The bits of the two floats as whole numbers, so that nothing is rounded.
        floats = torch.stack([loss.detach().float(), norm.detach().float()])
        parts = [floats.view(torch.int32).long()]
        if isinstance(counts, Counts):
            parts.append(counts.total)
        numbers = torch.cat(parts)
        self._arrived = None
        if numbers.device.type == "cuda":
            # The device need not be the current one.
            stream = torch.cuda.current_stream(numbers.device)
            numbers = numbers.to("cpu", non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(stream)
        self._numbers = numbers

    def values(self) -> tuple[float, float, Tally]:
        """Loss, gradient norm and counts; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        first, second, *counted = self._numbers.tolist()
        loss, norm = struct.unpack("=ff", struct.pack("=ii", first, second))
        counts = self._counts
        return loss, norm, counts.read(counted) if isinstance(counts, Counts) else counts
