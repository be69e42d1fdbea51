"""The bar of a training, in a pseudo-terminal of several widths."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest
from small_trainings import make_task

from autoliver.training.bar import duration, fitting
from autoliver.training.loop import train_fold

TESTS = Path(__file__).parents[1]
SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
from small_trainings import make_task
from autoliver.training.loop import train_fold
options = {"epochs": 3, "iterations": 4}
if sys.argv[2]:
    options["hours"] = float(sys.argv[2])
train_fold(make_task(Path(sys.argv[1]), **options))
"""


# A training with a long name.
LONG_NAME = """
task = replace(make_task(Path(sys.argv[1]), **options), title="LiTS 3d_fullres@LiTS+tag fold 0")
train_fold(task)
"""


def shown(folder: Path, *, columns: int, hours: str = "", script: str = SCRIPT) -> list[str]:
    """The states of the line in a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder), hours], cwd=TESTS, stderr=theirs
    )
    os.close(theirs)
    found = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not read:
            break
        found += read
    os.close(ours)
    assert process.wait() == 0, found.decode()
    return [line.rstrip() for line in re.split(r"[\r\n]+", found.decode()) if line.strip()]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_bar_fits_and_begins_with_the_dice(tmp_path: Path, columns: int) -> None:
    lines = shown(tmp_path / "fold_0", columns=columns)
    assert max(map(len, lines)) < columns
    assert re.match(r"Toy 2d fold 0: Dice 0\.\d{3}, epoch 3/3", lines[-1])
    assert re.search(r"(/3|\d left|\.\d{3}|steps/s|for data)$", lines[-1]), lines[-1]  # not cut
    assert ("steps/s" in lines[-1]) == (columns == 120)
    log = (tmp_path / "fold_0/train.log").read_text()
    assert "\r" not in log
    assert [line.split()[3] for line in log.splitlines() if " epoch " in line] == [
        *("1/3;", "2/3;", "3/3;")
    ]


def test_the_bar_has_the_clock_of_hours(tmp_path: Path) -> None:
    lines = shown(tmp_path / "fold_0", columns=60, hours="1.5")
    assert "0:00 of 1:30 h" in lines[-1]


def test_a_resumed_training_adds_to_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "fold_0"
    taken = iter(range(100))
    task = make_task(folder, epochs=3, iterations=2)
    train_fold(task, stop=lambda: next(taken) >= 3)
    train_fold(task)
    words = [line.split(maxsplit=2)[2] for line in (folder / "train.log").read_text().splitlines()]
    assert [word.partition(";")[0] for word in words] == [
        "Toy 2d fold 0: begins on cpu, 3 epochs",
        *("epoch 1/3", "epoch 2/3"),
        "Toy 2d fold 0: goes on after epoch 2/3",
        "epoch 3/3",
    ]


def test_without_a_terminal_the_epochs_are_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_fold(make_task(tmp_path / "fold_0", epochs=2, iterations=2))
    told = capsys.readouterr().err
    assert told == (tmp_path / "fold_0/train.log").read_text()


def test_hours_on_a_cpu_are_announced_once_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, steps in ((0, 4), (1, 4), (2, 100)):
        asked = iter(range(200))
        task = make_task(tmp_path / f"fold_{number}", epochs=10**7, iterations=2)
        task = replace(task, smaller="autoliver plan Toy")
        train_fold(task, stop=lambda asked=asked, steps=steps: next(asked) >= steps)
    (warning,) = caplog.messages
    assert re.match(r"About \d+ (h|days) on this CPU for 10,000,000 epochs of this fold\.", warning)
    assert warning.endswith("with --hours H. Or plan a smaller network: autoliver plan Toy")
    assert "--epochs" in warning
    caplog.clear()
    task = make_task(tmp_path / "smallest", epochs=10**7, iterations=2)
    asked = iter(range(200))
    train_fold(task, stop=lambda: next(asked) >= 4)
    assert "plan a smaller network" not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h"), (111600, "31 h"), (9e5, "10 days")],
)
def test_time_is_in_one_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_long_name_makes_room_for_dice_epoch_and_clock(tmp_path: Path) -> None:
    script = SCRIPT.replace("train_fold(make_task(Path(sys.argv[1]), **options))", LONG_NAME)
    for columns, begin in ((60, "fold 0: "), (80, "LiTS 3d_fullres@LiTS+tag fold 0: ")):
        lines = shown(tmp_path / str(columns), columns=columns, hours="10", script=script)
        assert lines[-1].startswith(f"{begin}Dice 0.")
        assert lines[-1].count(", epoch 3/3, 0:00 of 10:00 h") == 1


def test_facts_are_left_out_whole() -> None:
    facts = ["one", "second", "3"]
    assert [fitting("a: ", facts, width) for width in (18, 17, 14, 7, 2)] == [
        *("a: one, second, 3", "a: one, second, 3", "a: one, second", "a: one", "a:")
    ]
