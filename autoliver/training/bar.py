"""The progress bar of a training: a line that fits the width, what matters most first."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from autoliver.training.progress import EpochLog, dice_of

_WIDTH_OF_FILES = 120  # where the width of the terminal is unknown
_ALWAYS = 3  # facts that are worth more than the beginning of the training's name


class TrainingBar(tqdm):  # type: ignore[type-arg]
    """A bar over the steps of a training that says as much as fits the width, in whole facts.

    The order is: Dice, epoch, time (left, or used of `--hours`), losses, speed, wait for data.
    """

    def __init__(self, title: str, *, first: int, last: int, iterations: int, **pace: Any) -> None:
        """Shows the bar.

        Args:
            title: Name of the training.
            first: Steps done before.
            last: Steps at the end.
            iterations: Steps per epoch.
            pace: Further arguments of tqdm.
        """
        self.title, self.iterations = title, iterations
        self.log: EpochLog | None = None
        self.clock = ""
        super().__init__(
            total=last,
            initial=first,
            unit="step",
            # Without a terminal there is no bar: the epochs are written as lines instead.
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
            **pace,
        )

    def show(self, log: EpochLog | None) -> None:
        """Shows the last finished epoch; None before the first."""
        self.log = log
        self.refresh()

    def tell_time(self, used_s: float, hours: float | None) -> None:
        """Sets the clock of a training with `--hours`; others say the time left."""
        self.clock = f"{_clock(used_s)} of {_clock(hours * 3600)} h" if hours else ""

    def __str__(self) -> str:
        """The line, at most as wide as the terminal."""
        state = self.format_dict
        width = (state["ncols"] or _WIDTH_OF_FILES) - 1
        facts = self._facts(state)
        room = width - len(": ") - len(", ".join(facts[:_ALWAYS]))
        return fitting(f"{_short(self.title, room)}: ", facts, width)

    def _facts(self, state: Mapping[str, Any]) -> list[str]:
        done, last = state["n"], state["total"]
        epoch = min(done // self.iterations + 1, -(-last // self.iterations))
        own = done - state["initial"]
        facts = [f"epoch {epoch}/{-(-last // self.iterations)}"]
        if self.clock:
            facts.append(self.clock)
        elif own and last > done:
            facts.append(f"{duration(state['elapsed'] / own * (last - done))} left")
        log = self.log
        if log is None:
            return [*facts, f"step {done}/{last}"]
        facts.insert(0, dice_of(log))
        if log.train_loss is not None:
            facts.append(f"loss {log.train_loss:.3f}")
        if log.validation_loss is not None:
            facts.append(f"held-out loss {log.validation_loss:.3f}")
        if own and state["elapsed"]:
            facts.append(f"{own / state['elapsed']:.3g} steps/s")
        return [*facts, f"{100 * log.data_wait:.0f} % waiting for data"]


def _short(title: str, room: int) -> str:
    """As many last words of a title as have room, but always the last two: "fold 0"."""
    words = title.split(" ")
    while len(words) > 2 and len(" ".join(words)) > room:
        words = words[1:]
    return " ".join(words)


def fitting(start: str, facts: Sequence[str], width: int) -> str:
    """Joins as many facts as fit the width; none is cut, and later ones are left out first."""
    line = start
    for number, fact in enumerate(facts):
        longer = f"{line}{', ' if number else ''}{fact}"
        if len(longer) > width:
            break
        line = longer
    return line[:width]


def duration(seconds: float) -> str:
    """A time span in one unit that people think in: "40 s", "12 min", "31 h", "12 days"."""
    for unit, length, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 100)):
        if seconds < limit * length:
            amount = seconds / length
            return f"{amount:.1f} {unit}" if unit == "h" and amount < 10 else f"{amount:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _clock(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes // 60}:{minutes % 60:02d}"
