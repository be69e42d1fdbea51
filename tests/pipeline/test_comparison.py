"""`evaluate` with two predictions."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.errors import DatasetError, OptionError
from autoliver.evaluation.comparison import Comparison
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry

GRID = Geometry(shape_zyx=(3, 10, 20), spacing_mm=(3.0, 1.0, 1.0))


def write(folder: Path, shift: int, cases: int = 7) -> Path:
    """Label maps whose liver is moved by the shift and, in the last cases, by one less."""
    for case in range(cases):
        array = np.zeros(GRID.shape_zyx, np.uint8)
        moved = max(shift - (case > 4), 0)
        array[1, 2:6, 2 + moved : 12 + moved] = 1
        write_label(folder / f"c{case}.nii.gz", array, GRID)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, shift in (("ref", 0), ("a", 3), ("b", 1)):
        write(tmp_path / name, shift)
    return tmp_path


def compare(place: Path, *more: object, reference: str = "ref") -> Comparison:
    given = ("-p", place / "a", "-p", place / "b", "-r", place / reference, "-w", place / "ws")
    run("evaluate", *given, "-o", place / "out", "--workers", 1, *more)
    return Comparison.load(place / "out/comparison.json")


def test_two_folders_are_compared_by_the_dice_of_each_case(place: Path) -> None:
    found = compare(place)
    assert found.predictions == (str(place / "a"), str(place / "b"))
    assert list(found.summary) == ["label_1"]
    each = found.summary["label_1"]["dice"]
    assert (each.cases, each.a_better, each.b_better, each.equal) == (7, 0, 7, 0)
    assert each.mean_a == pytest.approx((5 * 0.7 + 2 * 0.8) / 7)
    assert each.mean_b == pytest.approx((5 * 0.9 + 2 * 1.0) / 7)
    assert each.mean == pytest.approx(0.2)
    assert each.interval == pytest.approx((0.2, 0.2))
    assert each.p == pytest.approx(2 / 2**7)
    with (place / "out/comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["metric"], row["difference"]) for row in rows] == [
        (f"c{i}", "dice", "0.2") for i in range(7)
    ]
    assert not list(place.glob("[ab]/scores*"))


def test_every_metric_that_is_asked_for_is_compared(place: Path) -> None:
    found = compare(place, "--metrics", "dice,hd,volume")
    assert list(found.summary["label_1"]) == ["dice", "mssd_mm", "volume_difference_ml"]
    assert found.summary["label_1"]["mssd_mm"].b_better == 7
    assert found.summary["label_1"]["volume_difference_ml"].equal == 7
    assert found.summary["label_1"]["volume_difference_ml"].p == 1.0


def test_patients_of_the_dataset_are_resampled_and_tested(place: Path) -> None:
    folder = place / "Dataset912_P"
    write(folder / "labelsTr", 0)
    for case in range(7):
        image = np.zeros((1, *GRID.shape_zyx), np.float32)
        write_image(folder / f"imagesTr/c{case}_0000.nii.gz", image, GRID)
    keys = {"channel_names": {"0": "CT"}, "numTraining": 7, "file_ending": ".nii.gz"}
    patients = {f"c{case}": f"p{case // 2}" for case in range(7)}
    labels = {"background": 0, "liver": 1}
    (folder / "dataset.json").write_text(
        json.dumps({**keys, "labels": labels, "patients": patients})
    )
    each = compare(place, reference=folder.name).summary["liver"]["dice"]
    assert (each.cases, each.patients, each.p) == (7, 4, None)


def test_what_is_shown_fits_80_columns(place: Path) -> None:
    given = ("-p", place / "a", "-p", place / "b", "-r", place / "ref", "-o", place / "out")
    more = ("-w", str(place / "ws"), "--metrics", "dice,hd95,volume")
    result = CliRunner().invoke(app, ["evaluate", *map(str, given), *more])
    table = result.stdout.partition("\n\n")[2].partition("Written: ")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "0:7" in table


def test_a_case_that_one_of_them_lacks_is_named(place: Path) -> None:
    (place / "a/c1.nii.gz").unlink()
    (place / "b/c5.nii.gz").unlink()
    (place / "a/c6.nii.gz").unlink()
    (place / "b/c6.nii.gz").unlink()
    with pytest.raises(DatasetError, match="only in") as caught:
        compare(place)
    for words in (f"1 case only in {place / 'a'}: c5", f"1 case only in {place / 'b'}: c1"):
        assert words in str(caught.value)
    assert "1 reference without a prediction in both: c6" in str(caught.value)
    assert "--subset" in caught.value.hint
    found = compare(place, "--subset")
    assert found.summary["label_1"]["dice"].cases == 4
    assert "only in" in found.warnings[0]


def test_predictions_of_different_cases_cannot_be_compared(place: Path) -> None:
    for case in range(7):
        (place / ("a" if case < 3 else "b") / f"c{case}.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"4 cases .*3 cases only in") as caught:
        compare(place, "--subset")
    assert "same cases" in caught.value.hint


def test_single_files_can_be_compared(place: Path) -> None:
    files = (place / f"{name}/c0.nii.gz" for name in ("a", "b", "ref"))
    first, second, reference = files
    given = ("-p", first, "-p", second, "-r", reference, "-w", place / "ws")
    run("evaluate", *given, "-o", place / "out")
    each = Comparison.load(place / "out/comparison.json").summary["label_1"]["dice"]
    assert (each.cases, each.interval, each.p) == (1, None, None)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (("a", "a"), "are the same predictions"),
        (("a", "../{}/a"), "are the same predictions"),
        (("a", "b", "ref"), "given 3 times; it must be given once or twice"),
    ],
)
def test_what_is_no_pair_is_refused(given: tuple[str, ...], problem: str, place: Path) -> None:
    paths = [place / each.format(place.name) for each in given]
    options = [word for path in paths for word in ("-p", path)]
    with pytest.raises(OptionError, match=problem) as caught:
        run("evaluate", *options, "-r", place / "ref", "-o", place / "out", "-w", place / "ws")
    assert caught.value.hint
    assert not (place / "out").exists()


def test_a_comparison_needs_a_place(place: Path) -> None:
    given = ("-p", place / "a", "-p", place / "b", "-r", place / "ref", "-w", place / "ws")
    with pytest.raises(OptionError, match="--output is missing") as caught:
        run("evaluate", *given)
    assert "comparison.csv" in caught.value.hint


def test_a_comparison_is_not_replaced_by_less(place: Path) -> None:
    compare(place, "--metrics", "dice,iou")
    with pytest.raises(OptionError, match="contains the iou of label_1 in c0") as caught:
        compare(place)
    assert "--overwrite" in caught.value.hint
    compare(place, "--overwrite")
    compare(place, "--metrics", "dice,iou")
    write(place / "other", 2)
    given = ("-p", place / "other", "-p", place / "b", "-r", place / "ref", "-w", place / "ws")
    with pytest.raises(OptionError, match="contains a comparison of"):
        run("evaluate", *given, "-o", place / "out", "--metrics", "dice,iou")


def test_the_library_compares_two_as_well(place: Path) -> None:
    folders, more = (place / "a", place / "b"), {"workspace": place / "ws", "workers": 1}
    found = autoliver.evaluate(folders, place / "ref", output=place / "out", **more)
    assert found == Comparison.load(place / "out/comparison.json")
    with pytest.raises(OptionError, match="output is missing"):
        autoliver.evaluate(folders, place / "ref", **more)


@pytest.mark.parametrize("names", [("cyst", "hcc"), ("one", "two")])
def test_classes_of_lesions_are_compared_by_patient(place: Path, names: tuple[str, str]) -> None:
    """Each case has a cyst and an HCC; A misses the HCC in three cases, B names all right."""
    dataset = place / "data"
    for case in range(7):
        array = np.zeros(GRID.shape_zyx, np.uint8)
        array[1, 2:4, 2:4], array[1, 6:8, 10:14] = 1, 2
        write_label(dataset / f"labelsTr/c{case}.nii.gz", array, GRID)
        write_label(place / f"b/c{case}.nii.gz", array, GRID)
        array[1, 6:8, 10:14] = 0 if case < 3 else 2
        write_label(place / f"a/c{case}.nii.gz", array, GRID)
        write_image(dataset / f"imagesTr/c{case}_0000.nii.gz", np.ones((1, 3, 10, 20)), GRID)
    labels = {"background": 0, **{name: value for value, name in enumerate(names, 1)}}
    about = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 7}
    (dataset / "dataset.json").write_text(json.dumps({**about, "file_ending": ".nii.gz"}))
    more = ("--lesion-labels", "one,two") if names == ("one", "two") else ()
    found = compare(place, *more, reference="data")
    assert set(found.summary) == {*names, "all classes"}
    each = found.summary["all classes"]["class_accuracy"]
    assert (each.cases, each.patients, each.a_better, each.b_better) == (7, 7, 0, 3)
    assert (each.mean_a, each.mean_b) == (pytest.approx((3 * 0.5 + 4) / 7), 1.0)
    assert all(set(fields) == {"dice"} for label, fields in found.summary.items() if label in names)
    with (place / "out/comparison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "all classes"]
    assert [row["difference"] for row in rows] == ["0.5"] * 3 + ["0.0"] * 4
