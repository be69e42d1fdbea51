"""What becomes of scores that are there when `evaluate` is called again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.datasets.cases import Labels
from autoliver.errors import ArtifactError, DatasetError, OptionError
from autoliver.evaluation.results import Scores
from autoliver.evaluation.score import score_folder
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.workspace import Workspace

GEOMETRY = Geometry(shape_zyx=(4, 6, 8), spacing_mm=(3.0, 1.0, 1.0))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and references of two cases."""
    for place, shift in (("pred", 0), ("ref", 1)):
        for case in range(2):
            array = np.zeros(GEOMETRY.shape_zyx, np.uint8)
            array[1:3, 1:4, 1 + shift : 5] = 1
            array[1:3, 1:3, 2 + case] = 2
            write_label(tmp_path / place / f"case_{case}.nii.gz", array, GEOMETRY)
    return tmp_path / "pred", tmp_path / "ref"


def evaluate(folders: tuple[Path, Path], *more: object) -> dict[str, object]:
    return run("evaluate", "-p", folders[0], "-r", folders[1], "-w", folders[0].parent / "w", *more)


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("scores.json", "scores.csv")]


def test_the_same_again_is_rewritten(folders: tuple[Path, Path]) -> None:
    first = evaluate(folders, "--metrics", "dice")
    before = files(folders[0])
    assert evaluate(folders, "--metrics", "dice") == first
    assert files(folders[0]) == before


def test_scores_with_points_of_the_challenge_are_not_replaced_by_some_without(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset = tmp_path / "Named"
    shutil.copytree(folders[1], dataset / "labelsTr")
    for path in folders[1].iterdir():
        name = path.name.replace(".nii.gz", "_0000.nii.gz")
        write_image(dataset / "imagesTr" / name, np.ones((1, *GEOMETRY.shape_zyx)), GEOMETRY)
    labels = {"background": 0, "liver": 1, "tumour": 2}
    about = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2}
    (dataset / "dataset.json").write_text(json.dumps({**about, "file_ending": ".nii.gz"}))
    named = (folders[0], dataset)
    text = evaluate(named, "--chaos")
    assert set(text["chaos"]) == {"1, 2, 3"}
    for fewer in ((), ("--metrics", "dice")):
        with pytest.raises(OptionError, match=r"the metrics .*chaos"):
            evaluate(named, *fewer)
    evaluate(named, "--chaos")


def test_fuller_scores_replace_others_and_are_not_replaced_by_them(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    evaluate(folders, "--metrics", "dice")
    evaluate(folders)
    before = files(folders[0])
    for fewer in (("--metrics", "dice"), ("--metrics", "iou")):
        with pytest.raises(
            OptionError, match=r"contains the metrics .*hd95.*new scores would not"
        ) as e:
            evaluate(folders, *fewer)
        assert "--output" in e.value.hint
        assert "--overwrite" in e.value.hint
        assert files(folders[0]) == before
    evaluate(folders, "--metrics", "dice", "--output", tmp_path / "other")
    assert Scores.load(tmp_path / "other/scores.json").options.metrics == ("dice",)
    assert files(folders[0]) == before
    evaluate(folders, "--metrics", "dice", "--overwrite")
    assert Scores.load(folders[0] / "scores.json").options.metrics == ("dice",)
    assert "iou" in (folders[0] / "scores.csv").read_text().splitlines()[0]


def test_scores_of_more_cases_stay(folders: tuple[Path, Path]) -> None:
    evaluate(folders)
    one = (folders[0] / "case_1.nii.gz", folders[1] / "case_1.nii.gz")
    before = files(folders[0])
    evaluate(one)  # has files of its own
    assert files(folders[0]) == before
    with pytest.raises(OptionError, match="contains case_0, which"):
        evaluate(one, "--output", folders[0])
    (folders[1] / "case_0.nii.gz").unlink()
    with pytest.raises(OptionError, match="contains case_0, which"):
        evaluate(folders)
    assert files(folders[0]) == before


def test_scores_against_other_references_stay(folders: tuple[Path, Path], tmp_path: Path) -> None:
    evaluate(folders)
    second = tmp_path / "second"
    second.mkdir()
    for path in folders[1].iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    with pytest.raises(OptionError, match="the comparison with other reference files"):
        evaluate((folders[0], second))
    again = (folders[0], folders[1].parent / "second/../ref")  # the same ones
    evaluate(again)


def test_scores_by_the_names_of_labels_stay(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)})

    class Named:
        """A dataset that names the labels."""

        cases = ()
        lesion_class_names = None

    Named.labels = labels  # type: ignore[attr-defined]
    monkeypatch.setattr(Workspace, "read", lambda *_: Named)
    evaluate(folders)
    with pytest.raises(OptionError, match="the labels label_1, label_2"):
        evaluate(folders, "-d", "Toy")
    evaluate(folders, "-d", "Toy", "--overwrite")
    with pytest.raises(OptionError, match="the labels liver, tumour"):
        evaluate(folders)
    evaluate(folders, "-d", "Toy")


def test_damaged_scores_are_told_and_can_be_replaced(folders: tuple[Path, Path]) -> None:
    (folders[0] / "scores.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"scores\.json") as caught:
        evaluate(folders)
    assert "--overwrite" in caught.value.hint
    evaluate(folders, "--overwrite")
    assert json.loads(files(folders[0])[0])["kind"] == "scores"


def test_the_library_takes_the_same_options(folders: tuple[Path, Path], tmp_path: Path) -> None:
    autoliver.evaluate(*folders)
    with pytest.raises(OptionError, match="the metrics iou") as caught:
        autoliver.evaluate(*folders, metrics="dice")
    assert "overwrite" in caught.value.hint
    assert "--" not in caught.value.hint
    autoliver.evaluate(*folders, metrics="dice", output=tmp_path / "other")
    scores = autoliver.evaluate(*folders, metrics=["dice"], overwrite=True)
    assert scores.options.metrics == ("dice",)


def test_the_folder_of_the_scores_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one = (folders[0] / "case_0.nii.gz", folders[1] / "case_0.nii.gz")
    for given, more, expected in (
        (folders, (), folders[0] / "scores.json"),
        (one, (), folders[0] / "case_0_scores.json"),
        (one, ("--output", tmp_path / "elsewhere"), tmp_path / "elsewhere/scores.json"),
    ):
        words = ("evaluate", "-p", given[0], "-r", given[1], "-w", tmp_path / "w", *more)
        shown = CliRunner().invoke(app, [*map(str, words)]).stdout
        assert f"Written: {expected}\n" in shown
        assert expected.exists()
        assert expected.with_suffix(".csv").exists()


def test_a_subset_and_copies_are_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / "case_0.nii.gz").unlink()
    words = ["-p", folders[0], "-r", folders[1], "--subset", "-w", tmp_path / "w"]
    told = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert "Warning: 1 of 2 references without a prediction were left out: case_0." in told.stderr
    same = ["-p", folders[1], "-r", folders[1], "-o", tmp_path / "o", "-w", tmp_path / "w"]
    told = CliRunner().invoke(app, ["evaluate", *map(str, same)])
    assert "Warning: Prediction and reference are the same file (2)" in told.stderr


# --- what lies beside predictions, and what is none


def put(path: Path, values: np.ndarray) -> None:
    write_image(path, values.astype("float32")[None], GEOMETRY)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_maps_of_uncertainty_are_no_predictions_unless_a_case_has_the_name(
    real: bool, ending: str, folders: tuple[Path, Path]
) -> None:
    name = f"case_0_uncertainty{ending}"
    if real:
        array = np.zeros(GEOMETRY.shape_zyx, np.uint8)
        array[1:3, 1:4, 1:5] = 1
        for folder in folders:
            write_label(folder / name, array, GEOMETRY)
    else:
        put(folders[0] / name, np.random.default_rng(0).random(GEOMETRY.shape_zyx))
    found = evaluate(folders)
    cases = [case["name"] for case in found["cases"]]  # type: ignore[attr-defined]
    assert cases == (["case_0", "case_0_uncertainty", "case_1"] if real else ["case_0", "case_1"])
    assert not [each for each in found["warnings"] if "without a ref" in each]  # type: ignore


def test_an_uncertain_file_of_no_case_is_warned_of(folders: tuple[Path, Path]) -> None:
    shutil.copy(folders[0] / "case_1.nii.gz", folders[0] / "case_9_uncertainty.nii.gz")
    found = evaluate(folders)
    assert "without a reference were left out (1): case_9_uncertainty." in str(found["warnings"])


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("kind", ["CT", "MR", "noise"])
@pytest.mark.parametrize("named", [False, True])
def test_images_are_not_scored(
    side: int, kind: str, named: bool, folders: tuple[Path, Path]
) -> None:
    rng = np.random.default_rng(0)
    grid = Geometry(shape_zyx=(8, 20, 20), spacing_mm=(3.0, 1.0, 1.0))
    array = {
        "CT": rng.integers(-1000, 400, grid.shape_zyx),
        "MR": rng.integers(0, 900, grid.shape_zyx),
        "noise": rng.random(grid.shape_zyx),
    }[kind]
    for number, folder in enumerate(folders):
        for path in list(folder.iterdir()):
            path.unlink()
        if number == side:
            write_image(folder / "case_0.nii.gz", array.astype("float32")[None], grid)
        else:
            label = np.zeros(grid.shape_zyx, np.uint8)
            label[2:4, 3:7, 3:7] = 1
            write_label(folder / "case_0.nii.gz", label, grid)
    labels = Labels(values={"background": (0,), "liver": (1,)})
    words = {"CT": "not of the images", "MR": "it is an image, expected a label map"}.get(
        kind, "whole numbers|values"
    )
    with pytest.raises(DatasetError, match=words):
        score_folder(*folders, labels=labels if named else None)


@pytest.mark.parametrize(
    ("place", "marked", "refused"),
    [
        ("labelsTr", "imagesTr", True),
        ("labels", "images", True),
        ("imagesTr", "imagesTr", True),
        ("labelsTs", "dataset.json", True),
        ("predictions", "imagesTr", False),
        ("labels", "", False),  # not of a dataset
    ],
)
@pytest.mark.parametrize("how", ["-p", "-o", "one file"])
def test_scores_are_not_written_into_the_folders_of_a_dataset(
    place: str, marked: str, refused: bool, how: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset = tmp_path / "Dataset001_X"
    inside = dataset / place
    shutil.copytree(folders[0], inside)
    if marked == "dataset.json":
        (dataset / marked).write_text("{}")
    elif marked:
        (dataset / marked).mkdir(exist_ok=True)
    given = {
        "-p": ("-p", inside, "-r", folders[1]),
        "-o": ("-p", folders[0], "-r", folders[1], "-o", inside),
        "one file": ("-p", inside / "case_0.nii.gz", "-r", folders[1] / "case_0.nii.gz"),
    }[how]
    if not refused:
        run("evaluate", *given, "-w", tmp_path / "w")
        return
    with pytest.raises(OptionError, match=r"a folder of the dataset .*Dataset001_X") as caught:
        run("evaluate", *given, "-w", tmp_path / "w")
    assert "--output" in caught.value.hint
    assert not [path for path in inside.iterdir() if "scores" in path.name]
    run("evaluate", *given[:4], "-o", tmp_path / "scores", "-w", tmp_path / "w")
