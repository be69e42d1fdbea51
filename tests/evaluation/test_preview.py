"""Previews of label maps: which slices, which side, how wide, and whatever is odd."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from autoliver.evaluation.preview import draw_preview
from autoliver.io.volume import FLAT_SPACING, Geometry, Volume

Pixels = npt.NDArray[np.float32]
ORANGE, SKY = "#e69f00", "#56b4e9"
SHAPE, SPACING = (12, 40, 60), (5.0, 1.0, 1.0)
# Axes (z, y, x) that grow the other way, as in files of other tools: RAI and a permuted one.
REVERSED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0)


def drawn(
    path: Path,
    label: npt.NDArray[np.uint8],
    *,
    image: npt.NDArray[np.float32] | None = None,
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    spacing: tuple[float, float, float] = SPACING,
    labels: dict[str, tuple[int, ...]] | None = None,
    oriented: bool = True,
) -> Pixels:
    z, y, x = label.shape
    grid = Geometry(shape_zyx=(z, y, x), spacing_mm=spacing, direction=direction)
    grey = np.full(label.shape, 0.5, np.float32) if image is None else image
    draw_preview(
        path / "p.png",
        Volume(array=grey[None], geometry=grid, oriented=oriented),
        Volume(array=label[None], geometry=grid),
        labels=labels or {"liver": (1,), "tumour": (2,)},
        title="case",
        window=(0.0, 1.0),
    )
    pixels: Pixels = imread(path / "p.png")[..., :3]
    return pixels


def centre(pixels: Pixels, colour: str, part: int, parts: int = 3) -> tuple[float, float, int]:
    """Mean row and column of a colour in one of the panels, and the number of its pixels."""
    width = pixels.shape[1] // parts
    inside = pixels[: int(0.8 * len(pixels)), part * width : (part + 1) * width]
    rows, columns = np.nonzero(np.abs(inside - np.array(to_rgb(colour))).max(axis=2) < 0.15)
    return (rows.mean(), columns.mean() / width, len(rows)) if len(rows) else (0.0, 0.0, 0)


def organ() -> npt.NDArray[np.uint8]:
    """A label on the patient's right, in front and above, largest in slice 8."""
    label = np.zeros(SHAPE, np.uint8)
    label[7:11, 4:16, 5:20] = 1
    label[8, 4:20, 5:25] = 1
    return label


@pytest.mark.parametrize("turned", [False, True])
def test_the_patients_right_is_on_the_left_however_the_file_is_stored(
    tmp_path: Path, turned: bool
) -> None:
    label = organ()[::-1, ::-1, ::-1].copy() if turned else organ()
    direction = REVERSED if turned else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    pixels = drawn(tmp_path, label, direction=direction)
    axial, coronal, sagittal = (centre(pixels, ORANGE, part) for part in range(3))
    assert axial[1] < 0.4  # right
    assert coronal[1] < 0.4  # right
    assert sagittal[1] < 0.45  # in front
    grey = np.nonzero(np.abs(pixels - 0.5).max(axis=2) < 0.01)
    third = pixels.shape[1] // 3
    for part, found in ((0, axial), (1, coronal), (2, sagittal)):
        rows = grey[0][(grey[1] >= part * third) & (grey[1] < (part + 1) * third)]
        assert found[0] < (rows.min() + rows.max()) / 2  # in front; above
    if turned:
        # The same patient gives the same picture.
        again = drawn(tmp_path, organ())
        assert np.array_equal(pixels, again)


def test_panels_are_as_wide_and_tall_as_the_patient(tmp_path: Path) -> None:
    pixels = drawn(tmp_path, np.zeros(SHAPE, np.uint8))
    third = pixels.shape[1] // 3
    # In mm: axial 40 x 60, coronal 60 x 60, sagittal 60 x 40.
    for part, wanted in enumerate((40 / 60, 60 / 60, 60 / 40)):
        panel = pixels[: int(0.85 * len(pixels)), part * third : (part + 1) * third]
        rows, columns = np.nonzero(np.abs(panel - 0.5).max(axis=2) < 0.01)
        counts = np.bincount(rows), np.bincount(columns)
        tall, wide = (np.count_nonzero(each > 30) for each in counts)
        assert tall / wide == pytest.approx(wanted, rel=0.05)


def test_slices_are_those_with_most_of_the_largest_label(tmp_path: Path) -> None:
    label, image = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    label[2, 10:30, 10:30] = label[5, 10:30, 10:30] = 1
    label[5, 12, 12:50] = 1
    label[9, 5:7, 5:7] = 2  # of less volume, elsewhere
    image[5] = 1.0
    pixels = drawn(tmp_path, label, image=image)
    axial = pixels[:, : pixels.shape[1] // 3]
    assert (axial > 0.99).all(axis=2).sum() > 40_000  # slice 5 is white, and so is the paper
    image[5] = 0.0
    again = drawn(tmp_path, label, image=image)[:, : pixels.shape[1] // 3]
    assert (axial > 0.99).all(axis=2).sum() > 1.5 * (again > 0.99).all(axis=2).sum()


def test_a_region_is_outlined_around_its_parts(tmp_path: Path) -> None:
    label = organ()
    label[8, 8:12, 10:14] = 2
    both = drawn(tmp_path, label, labels={"liver": (1, 2), "tumour": (2,)})
    assert centre(both, ORANGE, 0)[2] > 0
    assert centre(both, SKY, 0)[2] > 0
    alone = drawn(tmp_path, label, labels={"liver": (1, 2)})
    assert centre(alone, SKY, 0)[2] == 0


@pytest.mark.parametrize(
    ("shape", "spacing", "parts"),
    [
        ((1, 30, 40), (FLAT_SPACING, 1.0, 1.0), 1),  # a 2D file
        ((1, 30, 40), (5.0, 1.0, 1.0), 1),
        ((1, 1, 1), (1.0, 1.0, 1.0), 1),
        ((2, 2, 2), (1.0, 1.0, 1.0), 3),
        ((3, 1500, 1400), (9.0, 0.2, 0.2), 3),
    ],
)
@pytest.mark.parametrize("filled", [False, True])
def test_images_of_any_size_are_drawn(
    tmp_path: Path,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    parts: int,
    filled: bool,
) -> None:
    label = np.full(shape, int(filled), np.uint8)
    pixels = drawn(tmp_path, label, spacing=spacing)
    assert pixels.shape[1] == max(2, parts) * 360
    assert any(centre(pixels, ORANGE, part)[2] > 0 for part in range(3)) == filled


def test_nothing_found_and_an_unknown_orientation_are_said(tmp_path: Path) -> None:
    none = drawn(tmp_path, np.zeros(SHAPE, np.uint8))
    some = drawn(tmp_path, organ())
    widths = [np.ptp(np.nonzero((each[:18] < 0.5).any(axis=(0, 2)))[0]) for each in (none, some)]
    assert widths[0] > 3 * widths[1]  # "case: nothing was found"
    unknown = drawn(tmp_path, organ(), oriented=False)
    assert not np.array_equal(unknown, some)


def test_many_labels_with_any_name_are_listed(tmp_path: Path) -> None:
    names: dict[str, tuple[int, ...]] = {f"_l $x^{{{v}}}$ %": (v,) for v in range(1, 41)}
    label = np.arange(12 * 40 * 60, dtype=np.int64).reshape(SHAPE) % 41
    assert drawn(tmp_path, label.astype(np.uint8), labels=names).shape[1] == 1080
