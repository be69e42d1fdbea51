import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from pages import Page

from autoliver.pipeline.demo import FULL_DEMO, DemoResult, run_demo

FEW = {"epochs": 1, "iterations": 2}
SHORT = FULL_DEMO.replace(
    ct_cases=2,
    mr_cases=2,
    test_cases=1,
    ct_training=FULL_DEMO.ct_training | FEW,
    mr_training=FULL_DEMO.mr_training | FEW,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, SHORT, notify=lambda _text: None)


def test_a_demo_scores_four_models(found: tuple[Path, DemoResult]) -> None:
    _folder, result = found
    assert [title.partition(",")[0] for title in result.dice] == ["CT", "MR", "MR", "MR"]
    for dice in result.dice.values():
        assert list(dice) == ["liver", "tumour", "spleen", "right_kidney", "left_kidney"]
        assert all(value is None or 0 <= value <= 1 for value in dice.values())
    # Four models or kinds of scans: no two rows can have the same numbers but by mistake.
    assert len({tuple(dice.values()) for dice in result.dice.values()}) == 4


def test_a_demo_draws_a_row_for_each_model(found: tuple[Path, DemoResult]) -> None:
    folder, result = found
    assert result.picture == folder / "outlines.png"
    height, width = imread(result.picture).shape[:2]
    assert height == 4 * width  # one unseen scan of each kind


def test_a_demo_ends_with_a_report_on_the_transfer(found: tuple[Path, DemoResult]) -> None:
    folder, result = found
    assert result.report == folder / "report.html"
    page = Page(result.report.read_bytes())
    differences = page.numbers("Dice of every case, B - A")
    titles = list(result.dice)
    for label in ("liver", "spleen"):
        dice = [result.dice[title][label] for title in titles[2:]]
        if None not in dice:
            (row,) = differences.values()  # of the only unseen scan
            assert row[label] == pytest.approx(dice[1] - dice[0], abs=1e-9)  # type: ignore[operator]
    assert "Every weight" in page.tables


def test_a_demo_again_keeps_what_is_there(found: tuple[Path, DemoResult]) -> None:
    folder, result = found
    weights = sorted(folder.rglob("weights.safetensors"))
    before = [file.stat().st_mtime_ns for file in weights]
    assert len(weights) == 3
    assert run_demo(folder, SHORT, notify=lambda _text: None).dice == result.dice
    assert [file.stat().st_mtime_ns for file in weights] == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `autoliver demo --json` prints."""
    folder = tmp_path_factory.mktemp("whole") / "demo"
    words = [sys.executable, "-m", "autoliver", "demo", "-o", str(folder), "--json"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.mark.slow
def test_the_whole_demo_finds_liver_and_tumours(whole: dict[str, Any]) -> None:
    ct, _never, _scratch, transferred = whole["dice"].values()
    assert ct["liver"] >= 0.90
    assert ct["tumour"] >= 0.6
    assert transferred["liver"] >= 0.85
    assert Path(whole["picture"]).exists()


@pytest.mark.slow
@pytest.mark.xfail(reason="false liver in slices of MR beyond all organs (docs/RESULTS.md)")
def test_the_whole_demo_finds_liver_in_mr_without_mr_labels(whole: dict[str, Any]) -> None:
    _ct, never, _scratch, _transferred = whole["dice"].values()
    assert never["liver"] >= 0.75
