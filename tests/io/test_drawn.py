"""Pictures that were drawn for people are no images, wherever they lie."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from autoliver.datasets.layouts import PREVIEW, RELIABILITY_FILE, VOLUMES_FILE, label_files
from autoliver.io.drawn import is_drawn, save_figure

PACKAGE = Path(__file__).parents[2] / "autoliver"


def drawn(path: Path) -> None:
    save_figure(Figure(), path)


def image(path: Path) -> None:
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(path)


def by_matplotlib(path: Path) -> None:
    """As people convert images, too."""
    Figure().savefig(path)


@pytest.mark.parametrize("name", [f"x{PREVIEW}", RELIABILITY_FILE, VOLUMES_FILE, "x_volumes.png"])
@pytest.mark.parametrize(
    ("write", "beside", "is_image"),
    [
        (drawn, (), False),  # what it was drawn from was removed
        (image, (), True),
        (by_matplotlib, (), True),
        # Drawn by a version that left no mark.
        (image, ("predict.json", "scores.json", "x_scores.json"), False),
    ],
)
def test_what_was_drawn_is_no_case(name, write, beside, is_image, tmp_path):
    write(tmp_path / name)
    for each in beside:
        (tmp_path / each).touch()
    assert [path.name for path in label_files(tmp_path)] == [name] * is_image


def test_a_name_alone_hides_nothing(tmp_path):
    drawn(tmp_path / "case_0000.png")
    assert [path.name for path in label_files(tmp_path)] == ["case_0000.png"]


def test_what_cannot_be_read_is_not_drawn(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "nothing")
    assert not any(map(is_drawn, [*tmp_path.iterdir(), tmp_path / "none.png"]))


def test_every_picture_gets_the_mark():
    """`plots` makes SVG for a page."""
    savers = {path.name for path in PACKAGE.rglob("*.py") if "savefig(" in path.read_text()}
    assert savers == {"drawn.py", "plots.py"}
