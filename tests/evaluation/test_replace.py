"""What becomes of scores that are there when `evaluate` is called again."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.datasets.cases import Labels
from autoliver.errors import ArtifactError, OptionError
from autoliver.evaluation.results import Scores
from autoliver.io.files import write_label
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


def test_fuller_scores_replace_others_and_are_not_replaced_by_them(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    evaluate(folders, "--metrics", "dice")
    evaluate(folders)
    before = files(folders[0])
    for fewer in (("--metrics", "dice"), ("--metrics", "iou", "--chaos")):
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
    evaluate(folders, "--chaos")
    with pytest.raises(OptionError, match="the metrics chaos"):
        evaluate(folders)
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
