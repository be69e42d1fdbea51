"""Pictures that are drawn for people, which lie beside images and label maps and are neither."""

from pathlib import Path
from typing import TYPE_CHECKING

from autoliver.artifacts import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the PNG says in its text "Software". It lies before the pixels, in the first bytes.
_DRAWN_BY = "autoliver"
_HEAD = 4096


def save_drawn(figure: "Figure", path: Path, *, dpi: float | None = None) -> None:
    """Writes a figure as a PNG, atomically, that `is_drawn` knows again.

    Args:
        figure: The figure.
        path: The PNG.
        dpi: Dots per inch; None for the figure's own.

    Raises:
        MachineError: The system refuses to write.
    """
    dots = "figure" if dpi is None else dpi
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=dots, metadata={"Software": _DRAWN_BY})


def is_drawn(path: Path) -> bool:
    """Whether a file is a picture of `save_drawn`; not if it cannot be read."""
    try:
        with path.open("rb") as file:
            return f"tEXtSoftware\0{_DRAWN_BY}".encode() in file.read(_HEAD)
    except OSError:
        return False
