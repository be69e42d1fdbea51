import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

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


def test_a_demo_again_keeps_what_is_there(found: tuple[Path, DemoResult]) -> None:
    folder, result = found
    weights = sorted(folder.rglob("weights.safetensors"))
    before = [file.stat().st_mtime_ns for file in weights]
    assert len(weights) == 3
    assert run_demo(folder, SHORT, notify=lambda _text: None).dice == result.dice
    assert [file.stat().st_mtime_ns for file in weights] == before


@pytest.mark.slow
def test_the_whole_demo_finds_liver_and_tumours(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "autoliver", "demo", "-o", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    ct, never, _scratch, transferred = result["dice"].values()
    assert ct["liver"] >= 0.90
    assert ct["tumour"] >= 0.6
    assert never["liver"] >= 0.75
    assert transferred["liver"] >= 0.85
    assert Path(result["picture"]).exists()
