"""`evaluate` of datasets with lesions: tables of hand-made label maps, classes and patients."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import DatasetError, OptionError
from autoliver.evaluation.results import Scores
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry

GRID = Geometry(shape_zyx=(6, 24, 24), spacing_mm=(5.0, 2.0, 2.0))
VOXEL_ML = 0.02
CLASSES = {"background": 0, "liver": 1, "cyst": 2, "hemangioma": 3, "metastasis": 4}
# Case -> corner and value of each lesion of 2 x 4 x 4 voxels in the reference and the prediction.
REFERENCE = {
    "a": [((1, 2, 2), 2), ((1, 2, 12), 3), ((1, 12, 2), 4)],
    "b": [((1, 2, 2), 4), ((3, 12, 12), 4)],
    "=c": [],
}
PREDICTION = {
    "a": [((1, 2, 3), 2), ((1, 3, 12), 4)],
    "b": [((1, 2, 2), 4), ((3, 11, 13), 3), ((1, 18, 2), 2)],
    "=c": [((1, 2, 2), 2)],
}


def label_map(lesions: list[tuple[tuple[int, int, int], int]]) -> np.ndarray:
    array = np.ones(GRID.shape_zyx, np.uint8)
    for (z, y, x), value in lesions:
        array[z : z + 2, y : y + 4, x : x + 4] = value
    return array


def write(folder: Path, cases: dict[str, list[tuple[tuple[int, int, int], int]]]) -> Path:
    for name, lesions in cases.items():
        write_label(folder / f"{name}.nii.gz", label_map(lesions), GRID)
    return folder


def dataset(folder: Path, **keys: object) -> Path:
    write(folder / "labelsTr", REFERENCE)
    for name in REFERENCE:
        image = np.zeros((1, *GRID.shape_zyx), np.float32)
        write_image(folder / f"imagesTr/{name}_0000.nii.gz", image, GRID)
    given = {"channel_names": {"0": "CT"}, "numTraining": 3, "file_ending": ".nii.gz", **keys}
    (folder / "dataset.json").write_text(json.dumps({"labels": CLASSES, **given}))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    dataset(tmp_path / "Dataset911_Les", patients={"a": "p1", "b": "p1"})
    write(tmp_path / "pred", PREDICTION)
    return tmp_path


def evaluate(place: Path, *more: object) -> Scores:
    given = ("-p", place / "pred", "-r", place / "Dataset911_Les", "-w", place / "ws")
    run("evaluate", *given, *more)
    return Scores.load(place / "pred/scores.json")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_lesions_count_as_found_whatever_they_are_called(place: Path) -> None:
    scores = evaluate(place)
    assert scores.lesions is not None
    found = scores.lesions.detection
    assert (found.reference, found.found, found.predicted, found.confirmed) == (5, 4, 6, 4)
    # By its label alone, one of three metastases is found.
    alone = scores.summary["metastasis"].lesions
    assert alone is not None
    assert (alone.detection.reference, alone.detection.found) == (3, 1)
    assert scores.summary["cyst"].lesions is None


def test_the_table_of_lesions_is_exact(place: Path) -> None:
    evaluate(place)
    table = [row for row in rows(place / "pred/lesion_scores.csv") if not row["label"]]
    names = ("case", "patient", "reference_lesion", "predicted_lesion")
    classes = ("reference_class", "predicted_class")
    assert [tuple(row[name] for name in (*names, *classes)) for row in table] == [
        ("'=c", "'=c", "", "1", "", "cyst"),
        ("a", "p1", "1", "1", "cyst", "cyst"),
        ("a", "p1", "2", "2", "hemangioma", "metastasis"),
        ("a", "p1", "3", "", "metastasis", ""),
        ("b", "p1", "1", "1", "metastasis", "metastasis"),
        ("b", "p1", "2", "3", "metastasis", "hemangioma"),
        ("b", "p1", "", "2", "", "cyst"),
    ]
    assert [row["dice"] for row in table] == ["", "0.75", "0.75", "", "1.0", "0.5625", ""]
    for row in table:
        for side in ("reference", "predicted"):
            expected = 32 * VOXEL_ML if row[f"{side}_lesion"] else None
            volume, diameter = row[f"{side}_ml"], row[f"{side}_mm"]
            assert (float(volume) if volume else None) == pytest.approx(expected)
            if expected:
                assert float(diameter) == pytest.approx((6 * 640 / np.pi) ** (1 / 3))
    assert {row["volume_difference_ml"] for row in table} == {"", "0.0"}


def test_classes_are_judged_over_all_and_over_found_lesions(place: Path) -> None:
    found = evaluate(place).lesion_classes
    assert found is not None
    assert found.classes == ("cyst", "hemangioma", "metastasis")
    assert found.confusion == ((1, 0, 0), (0, 0, 1), (0, 1, 1))
    assert (found.missed, found.spurious) == ((0, 0, 1), (2, 0, 0))
    assert found.of_reference.accuracy == pytest.approx(2 / 5)
    assert found.of_detected.accuracy == pytest.approx(2 / 4)
    assert found.auc is None


def test_voxels_of_all_classes_are_compared_with_the_rest(place: Path) -> None:
    scores = evaluate(place)
    assert scores.lesions is not None
    # a: 96 voxels, 64 predicted, 24 + 24 common; b: 64, 96, 32 + 18; =c: none, 32.
    counts = [case.lesion_voxels for case in scores.cases]
    assert [(c.reference, c.predicted, c.common) for c in counts if c] == [
        (0, 32, 0),
        (96, 64, 48),
        (64, 96, 50),
    ]
    found = {name: each.mean for name, each in scores.lesions.voxels.items()}
    assert found["dice"] == pytest.approx((0 + 96 / 160 + 100 / 160) / 3)
    assert found["recall"] == pytest.approx((48 / 96 + 50 / 64) / 2)
    assert found["precision"] == pytest.approx((0 + 48 / 64 + 50 / 96) / 3)
    # Of the single labels, as of all metrics.
    metastasis = {case.name: case.labels["metastasis"] for case in scores.cases}
    assert (metastasis["a"].recall, metastasis["a"].precision) == (0.0, 0.0)
    assert (metastasis["b"].recall, metastasis["b"].precision) == (0.5, 1.0)
    assert (metastasis["=c"].recall, metastasis["=c"].precision) == (None, None)


def test_patients_are_those_of_the_dataset(place: Path) -> None:
    scores = evaluate(place)
    assert [case.patient for case in scores.cases] == ["=c", "p1", "p1"]
    assert scores.lesions is not None
    patients = scores.lesions.by_patient
    assert patients is not None
    assert (patients.with_lesions, patients.found) == (1, 1)
    assert (patients.without_lesions, patients.clear) == (1, 0)
    assert patients.patients["p1"].reference_ml == pytest.approx(5 * 32 * VOXEL_ML)
    assert scores.summary["liver"].metrics["dice"].interval is not None


def test_probabilities_beside_the_label_maps_give_an_auc(place: Path) -> None:
    text = "case,lesion,class,probability_cyst,probability_hemangioma,probability_metastasis\n"
    text += "a,1,cyst,0.8,0.1,0.1\na,2,metastasis,0,0.3,0.7\n"
    text += "b,1,metastasis,0,0.2,0.8\nb,2,cyst,0.9,0,0.1\nb,3,hemangioma,0,0.6,0.4\n"
    (place / "pred/lesions.csv").write_text(f"{text}'=c,1,cyst,1,0,0\n")
    scores = evaluate(place)
    assert scores.lesion_classes is not None
    # hemangioma: 0.3 against 0.1, 0.2 and 0.6; metastasis: 0.8 and 0.4 against 0.1 and 0.7.
    expected = {"cyst": 1.0, "hemangioma": 2 / 3, "metastasis": 0.75}
    assert scores.lesion_classes.auc_by_class == pytest.approx(expected)
    assert scores.lesion_classes.auc_lesions == 4
    # Found lesions with 0.8 (right), 0.7 (wrong), 0.8 (right) and 0.6 (wrong).
    error = (2 * abs(0.8 - 1) + 0.7 + 0.6) / 4
    assert scores.lesion_classes.calibration_error == pytest.approx(error)
    assert (place / "pred/reliability.png").read_bytes()[:4] == b"\x89PNG"
    (place / "pred/lesions.csv").write_text(f"{text}'=c,1,cyst,1,0,0\na,3,cyst,1,0,0\n")
    scores = evaluate(place)
    assert "lesions.csv: its lesions are not those of the label maps" in scores.warnings[-1]
    assert scores.warnings[-1].endswith("left out (1): a.")
    (place / "pred/lesions.csv").unlink()
    scores = evaluate(place)
    assert scores.lesion_classes is not None
    assert scores.lesion_classes.calibration_error is None
    assert not (place / "pred/reliability.png").exists()


def test_a_damaged_table_is_refused_before_anything_is_scored(place: Path) -> None:
    names = ",".join(f"probability_{name}" for name in ("cyst", "hemangioma", "metastasis"))
    (place / "pred/lesions.csv").write_text(f"case,lesion,{names}\na,x,1,0,0\n")
    with pytest.raises(DatasetError, match="lesion is 'x'"):
        evaluate(place)
    assert not (place / "pred/scores.json").exists()
    evaluate(place, "--metrics", "dice")


def test_the_probabilities_of_other_classes_are_left_out(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "pred/lesions.csv").write_text("case,lesion,probability_cyst\na,1,1\n")
    assert evaluate(place).lesion_classes is not None
    assert "without a column probability_hemangioma" in caplog.text


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ((), 3),
        (("--lesion-labels", "cyst,metastasis"), 2),
        (("--lesion-labels", "cyst", "--lesion-labels", "liver"), 2),
        (("--lesion-labels", "metastasis"), 0),
        (("--metrics", "dice"), 0),
    ],
)
def test_classes_are_several_labels_of_lesions(
    options: tuple[str, ...], classes: int, place: Path
) -> None:
    scores = evaluate(place, *options)
    if not classes:
        assert (scores.lesions, scores.lesion_classes) == (None, None)
        assert {case.lesions for case in scores.cases} == {None}
        return
    assert scores.lesion_classes is not None
    assert len(scores.lesion_classes.classes) == classes


def test_regions_that_hold_other_lesions_are_no_classes(place: Path) -> None:
    labels = {"background": 0, "liver": [1, 2, 3, 4], "lesion": [2, 3, 4], **CLASSES}
    labels["liver"] = [1, 2, 3, 4]
    dataset(place / "Dataset911_Les", labels=labels, regions_class_order=[1, 2, 2, 3, 4])
    scores = evaluate(place)
    assert scores.lesion_classes is not None
    assert scores.lesion_classes.classes == ("cyst", "hemangioma", "metastasis")
    assert scores.summary["lesion"].lesions is not None
    assert scores.lesions is not None
    assert scores.summary["lesion"].lesions.detection == scores.lesions.detection


def test_one_label_of_lesions_has_no_classes(tmp_path: Path) -> None:
    labels = {"background": 0, "liver": [1, 2, 3, 4], "tumour": [2, 3, 4]}
    dataset(tmp_path / "Dataset911_Les", labels=labels, regions_class_order=[1, 2])
    write(tmp_path / "pred", PREDICTION)
    scores = evaluate(tmp_path)
    assert scores.lesion_classes is None
    found = scores.summary["tumour"].lesions
    assert found is not None
    assert (found.detection.reference, found.detection.found) == (5, 4)
    assert "reference_class" in rows(tmp_path / "pred/lesion_scores.csv")[0]


def test_cases_in_which_a_class_is_not_annotated_are_left_out(place: Path) -> None:
    dataset(place / "Dataset911_Les", annotated={"a": {"cyst": "none"}})
    scores = evaluate(place)
    assert scores.lesions is not None
    assert scores.lesions.detection.reference == 2
    assert [case.lesions is None for case in scores.cases] == [False, True, False]


def test_the_overlap_that_finds_a_lesion_can_be_chosen(place: Path) -> None:
    scores = evaluate(place, "--lesion-overlap", 0.6)
    assert scores.lesions is not None
    assert scores.lesions.detection.found == 3
    with pytest.raises(OptionError, match="--lesion-labels: there is no label 'tumour'"):
        evaluate(place, "--lesion-labels", "tumour", "--overwrite")


def test_what_is_shown_fits_80_columns(place: Path) -> None:
    given = ("-p", place / "pred", "-r", place / "Dataset911_Les", "-w", place / "ws")
    result = CliRunner().invoke(app, ["evaluate", *map(str, given)])
    shown = result.stdout.partition("Written: ")[0]
    assert max(map(len, shown.splitlines())) <= 80
    for words in (
        "all classes  5     6",
        "voxels of lesions  Dice",
        "lesions found in 1 of 1 patient",
        "hemangioma      0",
    ):
        assert words in shown, shown


def test_scores_of_earlier_versions_are_read(place: Path) -> None:
    evaluate(place)
    raw = json.loads((place / "pred/scores.json").read_text())
    for key in ("lesions", "lesion_classes"):
        del raw[key]
    for summary in raw["summary"].values():
        del summary["lesions"]
        for statistic in summary["metrics"].values():
            del statistic["interval"]
    for case in raw["cases"]:
        del case["patient"], case["lesions"], case["lesion_voxels"]
        for score in case["labels"].values():
            for key in ("recall", "precision", "f1", "dice"):
                del score[f"matched_{key}"]
            del score["lesion_list"], score["recall"], score["precision"]
    (place / "old.json").write_text(json.dumps(raw))
    assert Scores.load(place / "old.json").summary["liver"].metrics["dice"].interval is None


def test_a_list_of_lesions_does_not_outlive_its_scores(place: Path) -> None:
    evaluate(place)
    assert (place / "pred/lesion_scores.csv").exists()
    evaluate(place, "--metrics", "dice", "--overwrite")
    assert not (place / "pred/lesion_scores.csv").exists()
