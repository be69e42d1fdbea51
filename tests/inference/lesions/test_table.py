"""What the table says of hand-made lesions, on grids of all kinds."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest

from autoliver.datasets.cases import Labels
from autoliver.inference.lesions.measure import CaseLesions, Lesion, LesionLabels, measure
from autoliver.inference.lesions.table import LesionFiles, LesionTable
from autoliver.inference.lesions.vote import means_of
from autoliver.inference.record import RECORD_FILE
from autoliver.io.volume import FLAT_SPACING, Geometry

LABELS = Labels(values={"background": (0,), "liver": (1,), "cyst": (2,), "metastasis": (3,)})
BOTH = LesionLabels(labels=LABELS, names=("cyst", "metastasis"), voted=True)
GRID = Geometry(shape_zyx=(4, 6, 8), spacing_mm=(5.0, 1.0, 2.0), origin_xyz=(10.0, -20.0, 300.0))


def two_lesions() -> np.ndarray:
    """A metastasis of 2 x 2 x 3 voxels and a cyst of one, in a liver."""
    label_map = np.ones((4, 6, 8), np.uint8)
    label_map[1:3, 2:4, 1:4] = 3
    label_map[3, 5, 7] = 2
    return label_map


def chances(label_map: np.ndarray) -> np.ndarray:
    """Probabilities of 0.6 for the label and 0.3 for the other class of lesions."""
    found = np.zeros((4, *label_map.shape), np.float32)
    found[2] = np.where(label_map == 2, 0.6, 0.3)
    found[3] = np.where(label_map == 3, 0.6, 0.3)
    found[1] = 0.1
    return found


METASTASIS = Lesion(
    lesion=1,
    label="metastasis",
    probabilities={"cyst": 0.33333, "metastasis": 0.66667},
    volume_ml=0.12,  # 12 voxels of 10 cubic mm
    centroid_lps_mm=(14.0, -17.5, 307.5),  # index x 2, y 2.5, z 1.5
    longest_mm=6.325,  # 2 x 6 mm, from corner to corner
    perpendicular_mm=2.108,  # sqrt(40) * 2 / 6
    slice=1,
    slice_axis=2,
)
CYST = Lesion(
    lesion=2,
    label="cyst",
    probabilities={"cyst": 0.66667, "metastasis": 0.33333},
    volume_ml=0.01,
    centroid_lps_mm=(24.0, -15.0, 315.0),
    longest_mm=2.236,
    perpendicular_mm=1.118,
    slice=3,
    slice_axis=2,
)


def test_hand_made_lesions_measure_exactly_what_they_are() -> None:
    label_map = two_lesions()
    found = measure(label_map, GRID, BOTH, means_of(chances(label_map)))
    assert found == (METASTASIS, CYST)
    assert [lesion.probability for lesion in found] == [0.66667, 0.66667]


def test_without_voting_probabilities_are_those_of_the_network() -> None:
    label_map = two_lesions()
    which = LesionLabels(labels=LABELS, names=("cyst", "metastasis"))
    found = measure(label_map, GRID, which, means_of(chances(label_map)))
    assert found[0].probabilities == {"cyst": 0.3, "metastasis": 0.6}
    alone = LesionLabels(labels=LABELS, names=("metastasis",))
    (one,) = measure(label_map, GRID, alone, means_of(chances(label_map)))
    assert one == METASTASIS.replace(probabilities={"metastasis": 0.6})


def test_without_probabilities_all_else_is_measured() -> None:
    found = measure(two_lesions(), GRID, BOTH)
    assert found == tuple(each.replace(probabilities={}) for each in (METASTASIS, CYST))
    assert [lesion.probability for lesion in found] == [None, None]
    assert measure(np.ones((4, 6, 8), np.uint8), GRID, BOTH) == ()


def test_touching_lesions_of_different_labels_are_two_where_nothing_was_voted() -> None:
    label_map = np.ones((1, 1, 5), np.uint8)
    label_map[0, 0, 1:4] = [2, 2, 3]
    grid = GRID.replace(shape_zyx=(1, 1, 5))
    found = measure(label_map, grid, LesionLabels(labels=LABELS, names=BOTH.names))
    assert [(each.lesion, each.label, each.volume_ml) for each in found] == [
        (1, "cyst", 0.02),
        (2, "metastasis", 0.01),
    ]


TURN = math.cos(0.5), math.sin(0.5)


@pytest.mark.parametrize(
    ("direction", "centroid", "slice_axis"),
    [
        # The index is x 2, y 2.5, z 1.5: steps of 4, 2.5 and 7.5 mm from the origin.
        ((-1, 0, 0, 0, -1, 0, 0, 0, 1), (6.0, -22.5, 307.5), 2),
        ((1, 0, 0, 0, 0, 1, 0, -1, 0), (14.0, -12.5, 297.5), 1),
        ((0, 0, 1, 1, 0, 0, 0, -1, 0), (17.5, -16.0, 297.5), 1),
        (
            (TURN[0], -TURN[1], 0, TURN[1], TURN[0], 0, 0, 0, 1),
            (
                10 + 4 * TURN[0] - 2.5 * TURN[1],
                -20 + 4 * TURN[1] + 2.5 * TURN[0],
                307.5,
            ),
            2,
        ),
    ],
)
def test_places_follow_the_directions_of_the_file(direction, centroid, slice_axis) -> None:
    grid = GRID.replace(direction=tuple(map(float, direction)))
    found = measure(two_lesions(), grid, BOTH)[0]
    assert found.centroid_lps_mm == pytest.approx(centroid, abs=0.001)
    assert found.slice_axis == slice_axis
    if slice_axis == 1:  # 6 mm along x and 10 mm along z, in the third row of voxels
        assert found.longest_mm == pytest.approx(math.hypot(6, 10), abs=0.001)
        assert found.perpendicular_mm == pytest.approx(math.hypot(6, 10) * 6 / 10, abs=0.001)
        assert found.slice == 2


def test_a_2d_file_has_no_volume() -> None:
    grid = Geometry(shape_zyx=(1, 6, 8), spacing_mm=(FLAT_SPACING, 1.0, 1.0))
    found = measure(two_lesions()[1:2], grid, BOTH)
    assert [(lesion.volume_ml, lesion.centroid_lps_mm) for lesion in found] == [
        (None, (2.0, 2.5, 0.0))
    ]


def rows(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode())))


def table(**changes: object) -> LesionTable:
    return LesionTable(made_from={"prediction": "a"}, classes=BOTH.names, voted=True).replace(
        **changes
    )


def test_the_csv_has_a_row_for_each_lesion() -> None:
    cases = {
        "b": CaseLesions(lesions=(METASTASIS, CYST)),
        "a": CaseLesions(lesions=(CYST.replace(lesion=1, volume_ml=None, probabilities={}),)),
        "none": CaseLesions(removed_without_organ=1),
    }
    assert table(cases=cases).to_csv().decode() == (
        "case,lesion,class,probability,probability_cyst,probability_metastasis,volume_ml,"
        "centroid_x_lps_mm,centroid_y_lps_mm,centroid_z_lps_mm,longest_mm,perpendicular_mm,"
        "slice,slice_axis\n"
        "a,1,cyst,,,,,24.0,-15.0,315.0,2.236,1.118,3,2\n"
        "b,1,metastasis,0.66667,0.33333,0.66667,0.12,14.0,-17.5,307.5,6.325,2.108,1,2\n"
        "b,2,cyst,0.66667,0.66667,0.33333,0.01,24.0,-15.0,315.0,2.236,1.118,3,2\n"
    )
    single = table(classes=("cyst",), cases={"a": CaseLesions(lesions=(CYST,))})
    assert rows(single.to_csv())[0][:5] == ["case", "lesion", "class", "probability", "volume_ml"]


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "a\n=1"])
def test_names_that_a_spreadsheet_would_run_are_shown_as_text(name: str) -> None:
    lesion = CYST.replace(label=name, probabilities={name: 0.5})
    content = table(classes=(name, "cyst"), cases={name: CaseLesions(lesions=(lesion,))}).to_csv()
    head, row = rows(content)
    for cell in (*head, row[0], row[2]):
        assert not cell.startswith(("=", "+", "-", "@"))
        assert "\n" not in cell


def test_json_has_what_csv_has_and_is_read_back(tmp_path: Path) -> None:
    files = LesionFiles.beside(tmp_path / RECORD_FILE, RECORD_FILE)
    assert [files.json.name, files.csv.name] == ["lesions.json", "lesions.csv"]
    assert files.written() is None
    files.begin(table(), again=())
    files.add("b", CaseLesions(lesions=(METASTASIS, CYST)))
    files.add("a", CaseLesions())
    assert files.written() == files.csv
    found = LesionTable.load(files.json)
    assert found == table(cases={"b": CaseLesions(lesions=(METASTASIS, CYST)), "a": CaseLesions()})
    assert '"class": "metastasis"' in files.json.read_text()
    assert files.csv.read_bytes() == found.to_csv()


def test_a_table_is_continued_by_its_own_model_alone(tmp_path: Path) -> None:
    files = LesionFiles.beside(tmp_path / RECORD_FILE, RECORD_FILE)
    files.begin(table(), again=())
    for case in ("a", "b"):
        files.add(case, CaseLesions(lesions=(CYST,)))
    files.begin(table(), again={"b", "c"})
    assert set(LesionTable.load(files.json).cases) == {"a"}
    assert len(rows(files.csv.read_bytes())) == 2
    files.begin(table(made_from={"prediction": "b"}), again=())
    assert LesionTable.load(files.json).cases == {}


@pytest.mark.parametrize(
    ("put", "foreign"),
    [
        ({}, []),
        ({"lesions.csv": "mine"}, ["lesions.csv"]),
        ({"lesions.json": "{}"}, ["lesions.json"]),
        ({"lesions.json": "cut", "lesions.csv": "mine"}, ["lesions.json", "lesions.csv"]),
    ],
)
def test_files_of_somebody_else_are_told_from_tables(put, foreign, tmp_path: Path) -> None:
    for name, content in put.items():
        (tmp_path / name).write_text(content)
    files = LesionFiles.beside(tmp_path / RECORD_FILE, RECORD_FILE)
    assert [file.name for file in files.foreign()] == foreign
    assert files.written() is None


def test_a_single_label_map_has_a_table_of_its_own(tmp_path: Path) -> None:
    files = LesionFiles.beside(tmp_path / f"liver_{RECORD_FILE}", RECORD_FILE)
    assert [files.json.name, files.csv.name] == ["liver_lesions.json", "liver_lesions.csv"]
