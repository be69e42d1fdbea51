"""The log of a training: one JSON line per epoch, and a plot of the epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from autoliver.artifacts import Record, replacing, write_bytes
from autoliver.training.objectives.objective import Scores


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
        data_wait: Share of the duration that was spent waiting for patches, 0 to 1.
        skipped: Cases of batches whose loss was not finite; their steps were not taken.
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


def summarise(log: EpochLog) -> str:
    """Summarises an epoch in a few words for the progress bar."""
    parts = [f"epoch {log.epoch + 1}"]
    if log.train_loss is not None:
        parts.append(f"loss {log.train_loss:.3f}")
    if log.train_dice is not None:
        parts.append(f"Dice {log.train_dice:.3f}")
    if log.mean_validation_dice is not None:
        parts.append(f"held out {log.mean_validation_dice:.3f}")
    parts.append(f"data wait {100 * log.data_wait:.1f} %")
    return " ".join(parts)


def read_progress(path: Path) -> list[EpochLog]:
    """Reads the epochs of `progress.jsonl`, up to a line that a killed process left incomplete.

    Without the file there are no epochs.
    """
    logs = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            logs.append(msgspec.json.decode(line, type=EpochLog))
        except msgspec.DecodeError:
            break
    return logs


def write_progress(path: Path, logs: Sequence[EpochLog]) -> None:
    """Writes all epochs, one JSON object per line, atomically."""
    write_bytes(path, b"".join(msgspec.json.encode(log) + b"\n" for log in logs))


def draw_progress(path: Path, logs: Sequence[EpochLog], *, title: str) -> None:
    """Plots losses, Dice and learning rate over the epochs and saves the plot as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    dice = loss.twinx()
    epochs = [log.epoch + 1 for log in logs]

    def draw(axis: Any, values: Sequence[float | None], label: str, style: str) -> None:
        if any(v is not None for v in values):
            axis.plot(epochs, [np.nan if v is None else v for v in values], style, label=label)

    draw(loss, [log.train_loss for log in logs], "training loss", "C0-")
    draw(loss, [log.validation_loss for log in logs], "validation loss", "C1-")
    draw(dice, [log.train_dice for log in logs], "training Dice", "C0:")
    draw(dice, [log.mean_validation_dice for log in logs], "validation Dice (patches)", "C1:")
    rate.plot(epochs, [log.learning_rate for log in logs], "C2-")
    loss.set(ylabel="loss", title=title)
    dice.set(ylabel="Dice", ylim=(0, 1))
    rate.set(ylabel="learning rate", xlabel="epoch")
    handles = [*loss.get_legend_handles_labels()[0], *dice.get_legend_handles_labels()[0]]
    loss.legend(handles=handles, loc="center right")
    with replacing(path) as beside:
        figure.savefig(beside, dpi=100)
