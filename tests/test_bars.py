"""Stages that map over cases show on stderr what they do and how much remains."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest
from commands import told

from autoliver.evaluation.cleaning import LEAST_CASES
from autoliver.parallel import case_bar, window_bars
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
    work = ("-o", str(tmp_path / "scores"), *work)
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


PREDICT = """
from autoliver.parallel import window_bars
with window_bars({cases}, parts=2) as bar:
    for case in range({cases}):
        if case == 1:
            bar.drop("case_1")
            continue
        for part in range(2):
            tick = bar.start(f"case_{{case}}", 1048)
            for _ in range(1048):
                tick()
                bar.bar.refresh()
"""


def on_a_terminal(columns: int, code: str) -> list[str]:
    """The lines that a program shows on a terminal of this width."""
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    with contextlib.suppress(OSError):  # how Linux ends what a terminal shows
        while found := os.read(terminal, 1 << 16):
            shown += found
    os.waitpid(process, 0)
    os.close(terminal)
    return [line for line in re.split(r"[\r\n]+", shown.decode()) if line.strip()]


@pytest.mark.parametrize("columns", [60, 80])
def test_the_bar_of_a_prediction_shows_whole_numbers(columns: int) -> None:
    lines = on_a_terminal(columns, PREDICT.format(cases=12))
    assert max(map(len, lines)) < columns
    number = r"predict +(\d+)/12 cases \|[^|]*\| (?:\d\d:\d\d|\?) left"
    found = [re.fullmatch(number + r"(?:, window (\d+)/1048)?", line.rstrip()) for line in lines]
    assert all(found)
    counts = [int(match[1]) for match in found if match]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 12)


def test_the_bar_of_a_prediction_of_one_case(capsys: pytest.CaptureFixture[str]) -> None:
    with window_bars(1, parts=1) as bar:
        tick = bar.start("case", 4)
        for _ in range(4):
            tick()
    lines = re.split(r"[\r\n]+", capsys.readouterr().err.strip())
    assert lines[0].startswith("predict 0/1 case |")
    assert lines[-1].startswith("predict 1/1 case |")
    assert len(lines) == 2  # one line a minute where it is no terminal
