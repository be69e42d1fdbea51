"""Chooses how many threads an operation on the CPU uses.

Threads of an operation wait for one another, spinning. Where other programs have the cores, that
makes a training several times slower than a single thread. So the number is chosen by timing a
little work with each.
"""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from autoliver.values import counted

if TYPE_CHECKING:
    import torch

# Fewer threads are taken only where they are faster by this factor: on a quiet machine the number
# stays what it was, and with it the last bit of sums.
_CLEARLY = 1.3
_ROUNDS = 5
# A probe ends after so many seconds, and with at least two rounds.
_MOST_S = 1.0
_LEAST_ROUNDS = 2
# The work: a convolution forward and backward, with channels and voxels of a small patch.
_CHANNELS, _SIDE = 16, 20
# The rate is the median of so many steps.
_STEPS = 8
_FALLEN = 2.0
# After this time the number is chosen again, since a load may have ended.
_AGAIN_S = 1800.0

Times = Callable[[int], float]
"""Seconds that the work takes with a number of threads."""


def numbers_of(most: int) -> tuple[int, ...]:
    """The numbers of threads to try: the largest, its half, its quarter, ... and one."""
    numbers = [max(1, most)]
    while numbers[-1] > 1:
        numbers.append(numbers[-1] // 2)
    return tuple(numbers)


def fastest(most: int, times: Times) -> int:
    """Finds the number of threads with which work is clearly fastest.

    Args:
        most: The number to stay with unless fewer are clearly faster.
        times: Times the work once; numbers take turns, so that a load disturbs all of them.
    """
    numbers = numbers_of(most)
    if len(numbers) == 1:
        return most
    found: dict[int, list[float]] = {number: [] for number in numbers}
    begun = time.monotonic()
    for round_ in range(_ROUNDS):
        if round_ >= _LEAST_ROUNDS and time.monotonic() - begun > _MOST_S:
            break
        for number in numbers:
            found[number].append(times(number))
    medians = {number: statistics.median(some) for number, some in found.items()}
    best = min(numbers, key=lambda number: medians[number])
    return best if medians[best] * _CLEARLY < medians[most] else most


class Threads:
    """The number of threads of a stage, which may be chosen again while it runs."""

    def __init__(self, most: int, times: Times, *, say: Callable[[str], object]) -> None:
        """Chooses a number for the first time.

        Args:
            most: The largest number, which is taken unless fewer are clearly faster.
            times: See `fastest`.
            say: Is told in one line what was chosen.
        """
        self.most = most
        self.number = most
        self._times = times
        self._say = say
        self._recent: deque[float] = deque(maxlen=_STEPS)
        self._best_s = float("inf")
        self._last = self._chosen = time.monotonic()
        self._choose("")

    def step(self) -> None:
        """Notes that a step has ended; chooses again where steps take twice as long as they did."""
        now = time.monotonic()
        self._recent.append(now - self._last)
        self._last = now
        if len(self._recent) < _STEPS:
            return
        middle = statistics.median(self._recent)
        self._best_s = min(self._best_s, middle)
        if middle > _FALLEN * self._best_s:
            self._choose(f"steps take {middle / self._best_s:.1f} times as long as before: ")
        elif now - self._chosen > _AGAIN_S:
            self._choose("")

    def _choose(self, why: str) -> None:
        before = self.number
        self.number = fastest(self.most, self._times)
        use_threads(self.number)
        self._recent.clear()
        self._best_s = float("inf")
        self._last = self._chosen = time.monotonic()
        if self.number != before or why:
            others = "" if self.number == self.most else f" of {self.most}, which is faster now"
            self._say(f"{why}{counted(self.number, 'thread')}{others} (--threads decides)")


def use_threads(number: int) -> None:
    """Sets the threads of an operation of PyTorch in this process."""
    import torch

    torch.set_num_threads(number)


@contextlib.contextmanager
def threads_of(
    asked: int | None,
    device: "torch.device",
    *,
    timed: bool,
    say: Callable[[str], object],
) -> Iterator[Threads | None]:
    """Sets the number of threads within the block, for PyTorch and numpy's BLAS together.

    Args:
        asked: The number; None: it is chosen by timing if `timed`, else it stays what it is.
        device: The device that networks run on; threads are only timed for the CPU.
        timed: Whether the number may depend on timing. It changes the last bits of sums.
        say: Is told in one line what was chosen, if that is not what it was before.

    Yields:
        What chooses the number again; None if it is not chosen.
    """
    import torch

    before = torch.get_num_threads()
    # BLAS has threads of its own, which would come on top.
    with threadpool_limits(limits=asked or before, user_api="blas"):
        try:
            if asked is not None:
                use_threads(asked)
                yield None
            elif timed and device.type == "cpu" and before > 1:
                yield Threads(before, convolution(), say=say)
            else:
                yield None
        finally:
            use_threads(before)


def convolution() -> Times:
    """Returns what times a convolution, forward and backward, as a training step has many of."""
    import torch

    side = (_SIDE,) * 3
    # No random numbers: their state belongs to the training.
    image = torch.linspace(-1, 1, _CHANNELS * _SIDE**3).reshape(1, _CHANNELS, *side)
    weight = torch.linspace(-1, 1, _CHANNELS**2 * 27).reshape(_CHANNELS, _CHANNELS, 3, 3, 3)
    image = image.to(memory_format=torch.channels_last_3d)

    def times(number: int) -> float:
        use_threads(number)
        own = weight.clone().requires_grad_()
        begun = time.perf_counter()
        with torch.enable_grad():
            found = torch.nn.functional.conv3d(image, own, padding=1)
            torch.nn.functional.leaky_relu(found).mean().backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - begun

    times(1)  # the first call also makes kernels and memory
    return times
