"""Pictures that are drawn for people, which are told from images by a mark inside."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEY, _VALUE = "Software", "autoliver"
# How a PNG file holds the mark, and how far from its start.
_MARK = f"{_KEY}\0{_VALUE}".encode("latin-1")
_WITHIN = 256


def save_figure(figure: "Figure", path: Path, *, dpi: float | None = None) -> None:
    """Writes a figure as a PNG file with the mark; an earlier one is replaced as a whole.

    Args:
        figure: The figure.
        path: The file.
        dpi: Dots per inch; None for the figure's own.

    Raises:
        MachineError: The system refuses to write.
    """
    with replacing(path) as beside:
        figure.savefig(
            beside, format="png", dpi="figure" if dpi is None else dpi, metadata={_KEY: _VALUE}
        )


def is_drawn(path: Path) -> bool:
    """Whether a file is a picture that `save_figure` wrote; False if it cannot be read."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return _MARK in file.read(_WITHIN)
    return False
