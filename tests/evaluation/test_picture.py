from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from autoliver.evaluation.picture import (
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    Panel,
    Row,
    draw_outlines,
    shown_window,
    slice_with_most,
)
from autoliver.preprocessing.normalize import SOFT_TISSUE_HU

Labels = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.float32]

GREY = 0.5


def box(y: slice, x: slice, value: int = 1) -> Labels:
    label = np.zeros((40, 60), np.uint8)
    label[y, x] = value
    return label


def panel(reference: Labels, prediction: Labels, **changes: object) -> Panel:
    fields = {"image": np.full(reference.shape, GREY), "spacing_mm": (1.0, 1.0)} | changes
    return Panel(reference=reference, prediction=prediction, **fields)  # type: ignore[arg-type]


def drawn(path: Path, *rows: Row) -> Pixels:
    draw_outlines(path, rows, outlined=((1, 2), (2,)), title="Toy")
    pixels: Pixels = imread(path)[..., :3]
    return pixels


def places(pixels: Pixels, colour: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows and columns of the pixels of a colour, without those of the legend."""
    found = np.abs(pixels - np.array(to_rgb(colour))).max(axis=2) < 0.1
    rows, columns = np.nonzero(found)
    above = rows < 0.93 * len(pixels)
    return rows[above], columns[above]


def frames(pixels: Pixels) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the grey slice, in pixels."""
    grey = np.abs(pixels - GREY).max(axis=2) < 0.01
    # The edges of letters are grey as well, but there are few of them in a line.
    lines = [np.nonzero(grey.sum(axis=axis) > 30)[0] for axis in (1, 0)]
    top, bottom, left, right = (int(each[end]) for each in lines for end in (0, -1))
    return top, bottom + 1, left, right + 1


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.5)])
def test_outlines_lie_where_reference_and_prediction_end(
    tmp_path: Path, spacing: tuple[float, float]
) -> None:
    reference, prediction = box(slice(4, 16), slice(6, 24)), box(slice(22, 36), slice(30, 54))
    path = tmp_path / "new" / "toy.png"
    row = Row(title="r", panels=(panel(reference, prediction, spacing_mm=spacing),), window=(0, 1))
    pixels = drawn(path, row)
    assert [each.name for each in path.parent.iterdir()] == ["toy.png"]
    top, bottom, left, right = frames(pixels)
    height, width = (bottom - top) / 40, (right - left) / 60
    assert height / width == pytest.approx(spacing[0] / spacing[1], rel=0.03)
    for colour, label in ((REFERENCE_COLOUR, reference), (PREDICTION_COLOUR, prediction)):
        y, x = np.nonzero(label)
        rows, columns = places(pixels, colour)
        # An outline lies half a voxel outside of the outermost voxel centres.
        expected = (y.min(), y.max() + 1, x.min(), x.max() + 1)
        found = (
            *((edge - top) / height for edge in (rows.min(), rows.max() + 1)),
            *((edge - left) / width for edge in (columns.min(), columns.max() + 1)),
        )
        assert found == pytest.approx(expected, abs=1.0)


def test_a_reference_is_solid_and_a_prediction_dashed(tmp_path: Path) -> None:
    label, none = box(slice(10, 30), slice(15, 45)), box(slice(0), slice(0))
    solid = drawn(tmp_path / "a.png", Row(title="r", panels=(panel(label, none),), window=(0, 1)))
    dashed = drawn(tmp_path / "b.png", Row(title="r", panels=(panel(none, label),), window=(0, 1)))
    lengths = {
        colour: len(places(pixels, colour)[0])
        for pixels, colour in ((solid, REFERENCE_COLOUR), (dashed, PREDICTION_COLOUR))
    }
    assert not len(places(solid, PREDICTION_COLOUR)[0])
    assert not len(places(dashed, REFERENCE_COLOUR)[0])
    assert 0 < lengths[PREDICTION_COLOUR] < 0.85 * lengths[REFERENCE_COLOUR]


def test_a_part_is_outlined_within_the_whole(tmp_path: Path) -> None:
    whole = box(slice(4, 36), slice(6, 54))
    both = whole.copy()
    both[16:24, 26:34] = 2
    rows = [Row(title="r", panels=(panel(label, whole),), window=(0, 1)) for label in (whole, both)]
    one, two = (drawn(tmp_path / f"{n}.png", row) for n, row in enumerate(rows))
    top, bottom, left, right = frames(two)

    def in_the_middle(pixels: Pixels) -> int:
        y, x = places(pixels, REFERENCE_COLOUR)
        inside = (abs(y - (top + bottom) / 2) < (bottom - top) / 4) & (
            abs(x - (left + right) / 2) < (right - left) / 4
        )
        return int(inside.sum())

    assert in_the_middle(one) == 0
    assert in_the_middle(two) > 0


TISSUE = np.linspace(100.0, 300.0, 1000)


@pytest.mark.parametrize(
    ("values", "is_ct", "window"),
    [
        (np.array([-1024.0, 40.0]), None, SOFT_TISSUE_HU),
        (np.array([-899.0, 40.0]), None, (-899.0, 40.0)),  # MR with ringing
        (np.array([0.0, 40.0]), True, SOFT_TISSUE_HU),
        (np.array([-1024.0, *TISSUE]), False, np.percentile(TISSUE, (0.5, 99.5))),
        (np.array([0.0] * 500 + [*TISSUE]), None, np.percentile(TISSUE, (0.5, 99.5))),
        (np.array([np.nan, 0.0, *TISSUE]), None, np.percentile(TISSUE, (0.5, 99.5))),
        (np.zeros(4), None, (0.0, 1.0)),
        (np.array([0, 5, 5], np.uint8), None, (0.0, 5.0)),
    ],
)
def test_every_picture_shows_the_same_grey_values(
    values: np.ndarray, is_ct: bool | None, window: tuple[float, float]
) -> None:
    assert shown_window(values, is_ct=is_ct) == pytest.approx(tuple(window))


def test_rows_of_different_length_and_empty_slices_are_drawn(tmp_path: Path) -> None:
    none = box(slice(0), slice(0))
    black = panel(none, none, image=np.zeros((40, 60)), caption="case")
    full = panel(np.ones_like(none), np.ones_like(none))
    pixels = drawn(
        tmp_path / "a.png",
        Row(title="one", panels=(black,)),
        Row(title="two", panels=(black, full), window=(0, 1)),
    )
    assert pixels.shape[:2] == (680, 680)


@pytest.mark.parametrize(
    ("counts", "wanted"), [({3: (2, 5), 1: (1, 30)}, 3), ({1: (1, 30), 2: (3, 4)}, 1), ({}, 0)]
)
def test_the_slice_has_most_of_a_label_or_else_most_foreground(
    counts: dict[int, tuple[int, int]], wanted: int
) -> None:
    label = np.zeros((5, 8, 8), np.uint8)
    for z, (value, count) in counts.items():
        label[z].flat[:count] = value
    assert slice_with_most(label, 2) == wanted
