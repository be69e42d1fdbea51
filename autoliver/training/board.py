"""Writes the epochs of a training for TensorBoard, if it is installed."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import UNSET

from autoliver.errors import OptionError
from autoliver.training.progress import EpochLog


def check_tensorboard() -> None:
    """Checks that TensorBoard is installed.

    Raises:
        OptionError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise OptionError(
            "--tensorboard: TensorBoard is not installed.",
            hint="Install it with: pip install 'autoliver[tensorboard]' - progress.png and "
            "progress.jsonl are written in any case.",
        )


class Board:
    """Writes epochs into a folder, which is created with the first epoch."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Keeps the folder and the labels; nothing is written yet.

        Args:
            folder: Folder of the event files; each time a training is resumed, a file is added.
            names: Names of the foreground labels.
        """
        self.folder = folder
        self.names = tuple(names)
        self._writer: Any = None

    def add(self, log: EpochLog) -> None:
        """Writes one epoch.

        The first one written hides what a killed process had written of it and of later epochs.
        """
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=log.epoch)
        for name, value in _scalars(log, self.names):
            if value is not None:
                self._writer.add_scalar(name, value, log.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file, if one was opened."""
        if self._writer is not None:
            self._writer.close()


def _scalars(log: EpochLog, names: Sequence[str]) -> Iterator[tuple[str, float | None]]:
    yield "loss/training", log.train_loss
    yield "loss/held_out_patches", log.validation_loss
    yield "dice/training", log.train_dice
    yield "dice/held_out_patches", log.mean_validation_dice
    for name, dice in zip(names, log.validation_dice or (), strict=False):
        yield f"dice_of_held_out_patches/{name}", dice
    if log.scores is not UNSET:
        for name, value in log.scores.train.items():
            yield f"{name}/training", value
        for name, value in (log.scores.validation or {}).items():
            yield f"{name}/held_out_patches", value
    yield "learning_rate", log.learning_rate
    yield "seconds", log.seconds
    yield "data_wait", log.data_wait
