"""Stages that map over cases show on stderr what they do and how much remains."""

import json
import re
from pathlib import Path

import pytest
from commands import told

from autoliver.evaluation.cleaning import LEAST_CASES
from autoliver.parallel import case_bar
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_Phantom"
CASES = LEAST_CASES + 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = PhantomOptions(contrast="CT", shape_zyx=(8, 32, 32), spacing_mm=(9.0, 6.0, 6.0))
    folder = tmp_path_factory.mktemp("data")
    made = write_phantom_dataset(folder, name=NAME, cases=CASES, seed=1, options=options)
    names = [path.name.removesuffix(".nii.gz") for path in sorted(made.glob("labelsTr/*"))]
    splits = [{"train": names[:1], "val": names[1:]}, {"train": names[1:], "val": names[:1]}]
    (made / "splits_final.json").write_text(json.dumps(splits))
    return made


def bars(text: str) -> dict[str, tuple[int, int]]:
    """What each bar says at its end: cases done, of how many."""
    found = re.findall(r"(?:^|[\r\n])([^\r\n:]+): +\d+%\|[^|]*\| (\d+)/(\d+) \[", text)
    return {what: (int(done), int(total)) for what, done, total in found}


def test_every_stage_over_cases_shows_its_bar(data: Path, tmp_path: Path) -> None:
    work = ("-w", tmp_path / "workspace")
    whole = (CASES, CASES)
    planned = bars(told("plan", data, "--preset", "tiny", *work))
    assert planned == {"verify": whole, "fingerprint": whole}
    assert bars(told("plan", data, *work)) == {}  # nothing is read again
    assert bars(told("preprocess", NAME, "2d", *work)) == {"preprocess 2d": whole}
    labels = data / "labelsTr"
    scored = bars(told("evaluate", "-p", labels, "-r", labels, "-d", NAME, *work))
    assert scored == {"evaluate": whole}
    scored = bars(told("evaluate", "-p", labels, "-r", labels, "--overwrite", *work))
    assert scored == {"read label values": whole, "evaluate": whole}


def test_training_and_selection_show_their_bars(data: Path, tmp_path: Path) -> None:
    work = ("-w", tmp_path / "workspace")
    held_out = (LEAST_CASES, LEAST_CASES)
    short = ("--fold", 0, "--epochs", 1, "--iterations", 2)
    told("plan", data, "--preset", "tiny", *work)
    for tag in ("a", "b"):
        trained = bars(told("train", NAME, "2d", *short, "--tag", tag, *work))
        assert trained[f"score 2d+{tag} fold 0"] == held_out
    selected = bars(told("select", NAME, *work))
    assert selected["score 2d+a + 2d+b fold 0"] == held_out
    assert selected["try cleaning rules"] == held_out


def test_no_cases_have_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(case_bar("nothing", 0)([])) == []
    assert list(case_bar("something", 2)([1, 2])) == [1, 2]
    assert bars(capsys.readouterr().err) == {"something": (2, 2)}
