"""Pictures of a translation that is being learnt: its losses, and some translated slices."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from autoliver.io.drawn import save_figure
from autoliver.synthesis.translation.state import Translation, TranslationLog

_SHOWN = 4  # pairs of slices


def draw_losses(path: Path, logs: Sequence[TranslationLog], *, title: str) -> None:
    """Plots the losses of all epochs, without their weights, and saves a PNG.

    Args:
        path: The PNG.
        logs: The epochs; at least one.
        title: Title of the picture.
    """
    figure, axes = _figure(1, 1, size=(8.0, 4.5))
    axis = axes[0, 0]
    epochs = [log.epoch + 1 for log in logs]
    for name in logs[-1].losses:
        axis.plot(epochs, [log.losses[name] for log in logs], label=name, marker=".")
    axis.set(xlabel="epoch", title=title)
    axis.legend()
    save_figure(figure, path, dpi=100)


def draw_samples(path: Path, state: Translation, *, title: str) -> None:
    """Translates the first patches of the source, and saves them beside what they were made of.

    Args:
        path: The PNG.
        state: The translation.
        title: Title of the picture.
    """
    before, after = state.samples()
    count = min(_SHOWN, len(before))
    figure, axes = _figure(2, count, size=(2.6 * count, 5.6))
    for row, (images, name) in enumerate(((before, "source"), (after, "translated"))):
        for axis, image in zip(axes[row], images, strict=False):
            axis.imshow(image, cmap="gray", vmin=-1, vmax=1)
            axis.set_axis_off()
        axes[row, 0].set_title(name, loc="left")
    figure.suptitle(title)
    save_figure(figure, path, dpi=100)


def _figure(
    rows: int, columns: int, *, size: tuple[float, float]
) -> tuple[Any, npt.NDArray[np.object_]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
