"""Slices, outlines, outliers and plots, each by itself."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from pages import Page as Read
from PIL import Image

from autoliver.datasets.cases import Labels
from autoliver.evaluation.report.outliers import by_dice, by_values
from autoliver.evaluation.report.page import (
    CaseView,
    Cell,
    Commands,
    Figure,
    Page,
    Section,
    Table,
    render,
)
from autoliver.evaluation.report.plots import Point, learning_curves, strips
from autoliver.evaluation.report.sprites import Cut, LabelMap, Sprite, make_sprite
from autoliver.evaluation.report.tables import lesion_parts
from autoliver.evaluation.results import CaseScores, MetricOptions, Score
from autoliver.evaluation.score import score_files
from autoliver.io.files import write_label
from autoliver.io.volume import Geometry

EVIL = "</script><script>alert('x')</script> \"q\" & <b>é\n\u202e"


def corners(path: str) -> np.ndarray:
    """The corners of the first outline of a path, in pixels (x, y)."""
    found = re.fullmatch(r"M(-?\d+) ?(-?\d+)l(.*?)z.*", path)
    assert found is not None
    steps = np.array(re.findall(r"-?\d+", found[3]), int).reshape(-1, 2)
    return np.vstack([[int(found[1]), int(found[2])], steps]).cumsum(axis=0) / 2


def sprite_of(
    label: np.ndarray,
    spacing: tuple[float, float, float],
    direction: tuple[float, ...] = (),
    **more: int,
) -> Sprite:
    shape = (label.shape[0], label.shape[1], label.shape[2])
    geometry = Geometry(shape_zyx=shape, spacing_mm=spacing)
    if direction:
        geometry = geometry.replace(direction=direction)
    maps = [LabelMap(title="reference", style="reference", array=label)]
    image = label.astype(np.float32) * 100
    cut = Cut.of(maps, geometry)
    return make_sprite(cut, cut.grey(image, is_ct=False), labels={"liver": (1,)}, **more)


@pytest.mark.parametrize(
    ("spacing", "view", "ratio"),
    [
        ((5.0, 1.0, 1.0), "axial", 40 / 60),
        ((5.0, 2.0, 1.0), "axial", 80 / 60),
        ((1.0, 4.0, 1.0), "coronal", 20 / 60),
        ((1.0, 1.0, 4.0), "sagittal", 20 / 40),
        ((1.0, 1.0, 1.0), "axial", 40 / 60),
    ],
)
def test_pixels_are_square_in_the_patient(
    spacing: tuple[float, float, float], view: str, ratio: float
) -> None:
    label = np.zeros((20, 40, 60), np.uint8)
    label[1:-1, 1:-1, 1:-1] = 1
    sprite = sprite_of(label, spacing)
    assert sprite.view == view
    assert sprite.tile[0] / sprite.tile[1] == pytest.approx(ratio, rel=0.03)
    assert max(sprite.tile) <= 256
    sheet = Image.open(io.BytesIO(sprite.image))
    rows = -(-len(sprite.slices) // sprite.columns)
    assert sheet.size == (sprite.columns * sprite.tile[1], rows * sprite.tile[0])


def test_an_outline_lies_on_the_edge_of_its_label() -> None:
    label = np.zeros((3, 40, 60), np.uint8)
    label[1, 10:20, 15:45] = 1
    sprite = sprite_of(label, (5.0, 2.0, 1.0))
    place = sprite.slices.index(2)
    found = corners(sprite.layers[0].paths[place][0])
    height, width = sprite.tile
    # What is labelled, with 12 % of the image on either side: 5 rows and 8 columns.
    assert found.min(axis=0) == pytest.approx([width * 8 / 46, height * 5 / 20], abs=1)
    assert found.max(axis=0) == pytest.approx([width * 38 / 46, height * 15 / 20], abs=1)
    assert len(found) <= 12
    sheet = np.asarray(Image.open(io.BytesIO(sprite.image)).convert("L"))
    y, x = divmod(place, sprite.columns)
    tile = sheet[y * height : (y + 1) * height, x * width : (x + 1) * width]
    assert tile[height // 2, width // 2] > 200
    assert tile[2, 2] < 50


def test_feet_come_first_and_the_right_side_is_left() -> None:
    label = np.zeros((4, 10, 10), np.uint8)
    label[0, 1:9, 1:4] = 1
    one = sprite_of(label, (5.0, 1.0, 1.0))
    # Stored from head to feet, and from left to right.
    turned = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    other = sprite_of(label[::-1, :, ::-1], (5.0, 1.0, 1.0), turned)
    assert other.layers == one.layers
    assert (one.slices, other.slices) == ((1, 2), (1, 2))


def test_many_slices_are_thinned_and_it_is_said() -> None:
    label = np.zeros((200, 8, 8), np.uint8)
    label[40:160, 2:6, 2:6] = 1
    sprite = sprite_of(label, (1.0, 1.0, 1.0), most_slices=48)
    assert len(sprite.slices) <= 48
    assert sprite.caption == "axial slices 40 to 160 of 200, every third"


def test_the_slice_that_differs_most_is_first() -> None:
    one, other = np.zeros((2, 9, 20, 20), np.uint8)
    one[1:8, 4:16, 4:16] = other[1:8, 4:16, 4:16] = 1
    other[5] = 0
    maps = [LabelMap(title=t, style="reference", array=a) for t, a in (("A", one), ("B", other))]
    geometry = Geometry(shape_zyx=(9, 20, 20), spacing_mm=(5.0, 1.0, 1.0))
    cut = Cut.of(maps, geometry)
    found = make_sprite(cut, cut.grey(one * 1.0, is_ct=None), labels={"liver": (1,)})
    assert found.slices[found.first] == 6


def cases(dice: list[float | None]) -> list[CaseScores]:
    return [
        CaseScores(name=f"c{n}", labels={"liver": Score(voxels=1, reference_voxels=1, dice=value)})
        for n, value in enumerate(dice)
    ]


@pytest.mark.parametrize(
    ("dice", "names"),
    [
        ([0.9, 0.91, 0.92, 0.93, 0.94, 0.2], ["c5", "c0", "c1"]),
        ([0.9, 0.8], ["c1", "c0"]),
        ([None, None], []),
        ([0.9, 0.91, 0.92, 0.93, 0.1, 0.2, 0.15, 0.3], ["c4", "c6", "c5"]),
    ],
)
def test_the_worst_cases_are_named_with_the_reason(
    dice: list[float | None], names: list[str]
) -> None:
    found = by_dice(cases(dice))
    assert [each.case for each in found] == names
    if names == ["c5", "c0", "c1"]:
        assert found[0].reasons == (
            "liver: Dice 0.200, while half of the cases have 0.903 to 0.927.",
        )


@pytest.mark.parametrize(
    ("dice", "names"),
    [
        ([1.0] * 7 + [0.99999], []),
        ([1.0] * 7 + [0.9], ["c7"]),
        ([0.9] * 7 + [0.89], ["c7", "c0", "c1"]),  # the lowest, but not unusual
        ([0.9] * 7 + [0.87], ["c7", "c0", "c1"]),
        ([1.0, 0.9996], []),
    ],
)
def test_perfect_and_nearly_equal_cases_are_not_unusual(
    dice: list[float | None], names: list[str]
) -> None:
    found = by_dice(cases(dice))
    assert [each.case for each in found] == names
    unusual = {each.case for each in found if not each.reasons[0].startswith("One of the lowest")}
    assert unusual == {"c7"} & set(names) - ({"c7"} if dice[-1] == 0.89 else set())


LIVER = [1500.0, 1510.0, 1490.0, 1500.0, 1505.0, 1500.0, 1495.0, 1500.0, 1500.0]


@pytest.mark.parametrize(
    ("volumes", "names"),
    [
        ([0.0] * 15 + [5.0, 6.0, 7.0, 8.0, 6.0], []),  # a tumour in five of twenty cases
        ([0.0] * 15 + [5.0, 6.0, 7.0, 8.0, 90.0], ["c19"]),
        ([*LIVER, 1400.0], []),  # within a tenth of the median
        ([*LIVER, 1200.0], ["c9"]),
        ([*LIVER, 0.0], ["c9"]),  # an organ that nearly all have
        ([*LIVER, 0.0, 0.0, 0.0], []),  # one that scans may end before
        ([0.0] * 10, []),
        ([100.0] * 8 + [100.1], []),
    ],
)
def test_volumes_are_compared_where_a_label_is(volumes: list[float], names: list[str]) -> None:
    values = {f"c{n}": {"x": volume} for n, volume in enumerate(volumes)}
    assert list(by_values(values, "v", unit="", decimals=1, where_present=True)) == names


def test_values_far_above_count_alone_if_low_ones_are_fine() -> None:
    values = {f"c{n}": {"x": v} for n, v in enumerate([5.0, 5.1, 5.2, 5.3, 0.1, 9.0])}
    assert list(by_values(values, "v", unit="", decimals=1)) == ["c4", "c5"]
    assert list(by_values(values, "v", unit="", decimals=1, low=False)) == ["c5"]


def test_every_text_of_a_page_is_escaped() -> None:
    row = (Cell(EVIL, link="case-0"), Cell(EVIL, 1.5))
    parts = (
        Table(caption=EVIL, head=(EVIL, "n"), rows=(row,)),
        Figure(svg=strips({EVIL: [Point(0.5)]}, groups=(), label=EVIL, title=EVIL), caption=EVIL),
        Figure(svg=learning_curves({EVIL: ()}, title=EVIL), caption=EVIL),
        Commands(lines=(EVIL,), caption=EVIL),
    )
    section = Section(anchor="a", title=EVIL, notes=(EVIL,), warnings=(EVIL,), parts=parts)
    label = np.ones((2, 4, 4), np.uint8)
    sprite = sprite_of(label, (2.0, 1.0, 1.0))
    cut = Cut.of(
        [LabelMap(title=EVIL, style="reference", array=label)],
        Geometry(shape_zyx=(2, 4, 4), spacing_mm=(2.0, 1.0, 1.0)),
    )
    evil = make_sprite(cut, cut.grey(label * 1.0, is_ct=False), labels={EVIL: (1,)})
    views = (
        CaseView(anchor="case-0", name=EVIL, of=EVIL, reasons=(EVIL,), sprite=evil),
        CaseView(anchor="case-1", name=EVIL, lacking=EVIL, table=parts[0]),
        CaseView(anchor="case-2", name="\ud800", sprite=sprite),
    )
    page = Page(title=EVIL, notes=(EVIL,), sections=(section,), cases=views)
    content = render(page)
    assert content == render(page)
    read = Read(content)
    assert [kind for kind, _ in read.scripts] == ["application/json", "application/json", ""]
    assert "b" not in read.tags
    assert read.text.count("alert('x')") >= 20
    assert read.numbers(EVIL)[EVIL]["n"] == 1.5
    assert b"http://" not in re.sub(rb"http://www\.w3\.org/\S+", b"", content)


def test_plots_are_in_the_colour_of_the_text_and_lead_to_cases() -> None:
    rows = {"liver": [Point(0.5, 0, "case-1"), Point(0.7, 1)], "empty": []}
    svg = strips(rows, groups=("fold 0", "fold 1"), label="Dice", title="Dice of a run")
    assert "currentColor" in svg
    assert "#000000" not in svg
    assert "<title>Dice of a run</title>" in svg
    assert re.findall(r'href="#(case[^"]*)"', svg) == ["case-1"]
    many = strips({"x": [Point(n / 2000) for n in range(2000)]}, groups=(), label="v", title="t")
    assert len(many) < 60_000


def test_lesions_are_told_as_the_scores_say(tmp_path: Path) -> None:
    grid = Geometry(shape_zyx=(6, 30, 30), spacing_mm=(2.0, 1.0, 1.0))
    pairs = {}
    for number in range(3):
        truth = np.ones(grid.shape_zyx, np.uint8)
        truth[1:4, 3:9, 3:9], truth[1:4, 15:21, 15:21] = 2, 3
        found = truth.copy()
        found[found == 3] = 2 if number else 1  # taken for the other class, or missed
        paths = (tmp_path / f"p{number}.nii.gz", tmp_path / f"r{number}.nii.gz")
        for path, array in zip(paths, (found, truth), strict=True):
            write_label(path, array, grid)
        pairs[f"c{number}"] = paths
    labels = Labels(values={"background": (0,), "liver": (1,), "hcc": (2,), "cyst": (3,)})
    options = MetricOptions(lesion_labels=("hcc", "cyst"))
    scores = score_files(pairs, labels=labels, options=options)
    assert scores.lesion_classes is not None
    tables = {
        part.caption: part for part in lesion_parts({"fold 0": scores}) if isinstance(part, Table)
    }
    found_there = tables["Lesions, matched one to one"]
    detection = scores.summary["hcc"].lesions
    assert detection is not None
    row = next(row for row in found_there.rows if row[0].text == "hcc")
    assert [cell.value for cell in row[2:6]] == [
        detection.detection.reference,
        detection.detection.predicted,
        detection.detection.recall,
        detection.detection.precision,
    ]
    confusion = tables["Confusion of classes (fold 0): a row for each class of the reference"]
    assert [[cell.value for cell in row[1:]] for row in confusion.rows[:2]] == [
        [*counts, missed]
        for counts, missed in zip(
            scores.lesion_classes.confusion, scores.lesion_classes.missed, strict=True
        )
    ]
    assert [[c.value for c in row[1:]] for row in confusion.rows[:2]] == [[3, 0, 0], [2, 0, 1]]
