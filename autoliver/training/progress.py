"""The log of a training: one JSON line per epoch, and a plot of the epochs."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, UnsetType

from autoliver.artifacts import Record, json_line, write_bytes
from autoliver.errors import AutoliverError
from autoliver.io.drawn import save_figure
from autoliver.training.objectives.objective import Scores
from autoliver.values import shortened

# Begins the line of train.log that says why the training failed.
FAILED = "failed: "

_SMOOTHED = 20  # a thick line is the mean over this part of the epochs
_MARKED = 20  # with fewer epochs than this, each is marked by a point
_LEGEND = 24  # characters of a label's name in the legend


class FurtherScores(Record, frozen=True, kw_only=True):
    """Scores besides Dice, for objectives that have some.

    Attributes:
        train: Name -> value, over all training patches of the epoch; a value is None where there
            is nothing to score.
        validation: The same on patches of the held-out cases; None where no cases are held out.
        watched: Name of the score whose rise on held-out patches counts as progress; None: the
            mean Dice.
    """

    train: dict[str, float | None]
    validation: dict[str, float | None] | None = None
    watched: str | None = None


class EpochLog(Record, frozen=True, kw_only=True):
    """One finished epoch.

    Attributes:
        epoch: Number of the epoch, from 0.
        step: Optimiser steps done at the end of the epoch.
        learning_rate: Learning rate of the last step.
        train_loss: Mean loss over the epoch's steps; None if every step was skipped.
        train_dice: Mean foreground Dice over all training patches of the epoch; None if no label
            occurs in them.
        validation_loss: Mean loss on patches of the held-out cases; None where no cases are held
            out.
        validation_dice: Dice per foreground label on the same patches; None for a label that is
            absent, and None as a whole where no cases are held out.
        seconds: Duration including validation, in seconds.
        data_wait: Share of the duration that was spent waiting for augmented patches, 0 to 1.
        skipped: Cases of batches whose loss was not finite; their steps were not taken, and
            held-out ones do not count in `validation_loss`.
        scores: Scores besides Dice; left out of the file where the objective has none.
    """

    epoch: int
    step: int
    learning_rate: float
    train_loss: float | None
    train_dice: float | None
    validation_loss: float | None = None
    validation_dice: tuple[float | None, ...] | None = None
    seconds: float
    data_wait: float
    skipped: tuple[str, ...] = ()
    scores: FurtherScores | UnsetType = UNSET

    @property
    def mean_validation_dice(self) -> float | None:
        """Mean validation Dice of the labels that occur; None if there are none."""
        return Scores(labels=self.validation_dice or ()).mean

    @property
    def watched(self) -> float | None:
        """The value whose rise counts as progress; None if the epoch has no such value.

        It is the watched score on held-out patches or, where no cases are held out, minus the
        training loss.
        """
        if self.validation_dice is None:
            return None if self.train_loss is None else -self.train_loss
        if self.scores is UNSET or self.scores.watched is None:
            return self.mean_validation_dice
        return (self.scores.validation or {})[self.scores.watched]


def dice_of(log: EpochLog) -> str:
    """The Dice of an epoch in words: of held-out patches, or of training patches without these."""
    if log.validation_dice is not None:
        return f"Dice {_number(log.mean_validation_dice)}"
    return f"training Dice {_number(log.train_dice)}"


def epoch_line(log: EpochLog, names: Sequence[str], *, epochs: int) -> str:
    """An epoch as one line of a log, without a time stamp.

    Args:
        log: The epoch.
        names: Names of the foreground labels.
        epochs: Number of epochs at the end of the training.
    """
    parts = [
        f"epoch {log.epoch + 1}/{epochs}",
        f"training loss {_number(log.train_loss, 4)}",
    ]
    further = log.scores if isinstance(log.scores, FurtherScores) else None
    if names:
        parts.append(f"training Dice {_number(log.train_dice)}")
    if further is not None:
        parts += [f"training {name} {_number(value)}" for name, value in further.train.items()]
    if log.validation_dice is not None and not names:
        parts.append(f"held-out loss {_number(log.validation_loss, 4)}")
    elif log.validation_dice is not None:
        labels = (
            f"{' '.join(name.split())} {_number(dice)}"
            for name, dice in zip(names, log.validation_dice, strict=False)
        )
        parts.append(f"held-out loss {_number(log.validation_loss, 4)}")
        parts.append(f"pseudo Dice {', '.join(labels)}")
    if further is not None and further.validation is not None:
        parts += [f"held-out {name} {_number(v)}" for name, v in further.validation.items()]
    parts.append(f"learning rate {log.learning_rate:.3g}")
    parts.append(f"{log.seconds:.1f} s")
    return "; ".join(parts)


def failure_line(error: AutoliverError) -> str:
    """The line of a log that says why a training failed, and whether it must start over.

    Where the hint has a smaller learning rate or `--fresh`, the same command would fail again; so
    these options are kept beside the problem.
    """
    if "--fresh" not in error.hint:
        return f"{FAILED}{error.problem}"
    rate = re.search(r"--lr ([\d.e+-]*\d)", error.hint)
    return f"{FAILED}{error.problem} [start over: --fresh{f' --lr {rate[1]}' if rate else ''}]"


def failure_of(line: str) -> tuple[str, tuple[str, ...]]:
    """Reads a line of `failure_line`: the problem, and the options of the command that helps.

    The problem is empty for any other line.
    """
    if not line.startswith(FAILED):
        return "", ()
    found = re.fullmatch(r"(.*) \[start over: (--fresh(?: --lr \S+)?)\]", line)
    problem = (found[1] if found else line).removeprefix(FAILED)
    return problem, tuple(found[2].split(" ")) if found else ()


def add_to_log(path: Path, text: str, *, also: TextIO | None = None) -> None:
    """Appends a line with a time stamp to a log file.

    Args:
        path: The log file.
        text: The line.
        also: A stream that gets the line as well unless it is that file; None: no stream.
    """
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        log.write(line)
        if also is not None and not _is_file(also, log.fileno()):
            also.write(line)


def _is_file(stream: TextIO, number: int) -> bool:
    """Whether a stream writes into the file of this number."""
    try:
        return os.path.sameopenfile(stream.fileno(), number)
    except (OSError, ValueError):  # a stream without a file
        return False


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def read_progress(path: Path) -> list[EpochLog]:
    """Reads the epochs of `progress.jsonl`, without lines that cannot be read.

    A killed process may have left one of these. Without the file there are no epochs.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    logs = (json_line(line, EpochLog) for line in lines)
    return [log for log in logs if log is not None]


def write_progress(path: Path, logs: Sequence[EpochLog]) -> None:
    """Writes all epochs, one JSON object per line, atomically."""
    write_bytes(path, b"".join(msgspec.json.encode(log) + b"\n" for log in logs))


def draw_progress(
    path: Path, logs: Sequence[EpochLog], *, title: str, names: Sequence[str] = ()
) -> None:
    """Plots Dice per label, losses and learning rate over the epochs and saves the plot as a PNG.

    Args:
        path: The PNG.
        logs: The epochs; at least one.
        title: Title of the plot.
        names: Names of the foreground labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 10), layout="constrained")
    FigureCanvasAgg(figure)
    dice, loss, rate = figure.subplots(3, 1, sharex=True, height_ratios=(4, 3, 1.5))
    epochs = [log.epoch + 1 for log in logs]

    def draw(axis: Any, values: Sequence[float | None], label: str, colour: str) -> None:
        """Draws the values thin and their smoothed course thick."""
        if all(value is None for value in values):
            return
        plain = np.array([np.nan if value is None else value for value in values])
        # A single epoch would be a line without length.
        mark = "." if len(epochs) < _MARKED else ""
        axis.plot(epochs, plain, color=colour, alpha=0.3, linewidth=1)
        axis.plot(epochs, _smoothed(plain), color=colour, linewidth=2, label=label, marker=mark)

    draw(dice, [log.train_dice for log in logs], "mean, training patches", "0.6")
    for number, name in enumerate(names):
        values = [_at(log.validation_dice, number) for log in logs]
        draw(dice, values, _short(name), f"C{number % 10}")
    draw(dice, [log.mean_validation_dice for log in logs], "mean, held-out patches", "black")
    draw(loss, [log.train_loss for log in logs], "training", "0.6")
    draw(loss, [log.validation_loss for log in logs], "held-out patches", "black")
    rate.plot(epochs, [log.learning_rate for log in logs], color="black")
    dice.set(ylabel="Dice of patches", ylim=(0, 1), title=title.replace("$", r"\$"))
    loss.set(ylabel="loss")
    rate.set(ylabel="learning rate", xlabel="epoch (thin: each epoch, thick: smoothed)")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(epochs) == 1:
        rate.set_xlim(epochs[0] - 1, epochs[0] + 1)
    for axis in (axis for axis in (dice, loss) if axis.get_legend_handles_labels()[0]):
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    for axis in (dice, loss, rate):
        axis.grid(alpha=0.3)
    save_figure(figure, path, dpi=100)


def _smoothed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean over the epochs around each one, a twentieth of all; missing values do not count."""
    half = len(values) // (2 * _SMOOTHED)
    known = ~np.isnan(values)
    window = np.ones(2 * half + 1)
    number = np.convolve(known, window, mode="full")[half : half + len(values)]
    total = np.convolve(np.where(known, values, 0.0), window, mode="full")
    total = total[half : half + len(values)]
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _at(values: Sequence[float | None] | None, number: int) -> float | None:
    return values[number] if values is not None and number < len(values) else None


def _short(name: str) -> str:
    """A label's name for the legend; matplotlib reads $ as mathematics and hides a leading _."""
    return shortened(name, _LEGEND).replace("$", r"\$").removeprefix("_") or name
