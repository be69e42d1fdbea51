"""Lines of messages: wrapped on a terminal, whole elsewhere, and never within what is pasted."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from autoliver.cli.output import wrapped

LONG = "the label map holds values that no label has, and a few more words to fill a line"


@pytest.mark.parametrize(
    "whole",
    [
        "autoliver train 'Dataset001 Liver' 3d_fullres --epochs 20 -w /data/my workspace",
        "rm -r '/data/my workspace/plan.json' && autoliver plan LiTS -w '/data/my workspace'",
        "'a quoted name with blanks'",
        "/data/My Scans/of March 2024/case_1.nii.gz",
    ],
)
@pytest.mark.parametrize("before", ["", "Hint: ", f"Error: {LONG}: "])
@pytest.mark.parametrize("width", [20, 40, 80])
def test_what_is_pasted_stays_whole(whole: str, before: str, width: int) -> None:
    text = f"{before}{whole} (or something else, {LONG})"
    shown = wrapped(text, width)
    assert whole in shown
    assert " ".join(shown.split("\n")) == text  # nothing but line breaks in place of blanks
    for line in shown.split("\n"):
        assert len(line) <= width or whole in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG, None),
        (f"Error: {LONG}", None),
        (f"/data/My Scans/a b.nii.gz: {LONG}", "/data/My Scans/a b.nii.gz:"),
        (f"Error: case_1: /data/My Scans/a b.nii.gz: {LONG}", "case_1: /data/My Scans/a b.nii.gz:"),
        (f"Written: /data/My Scans/{'x' * 60} y.json", f"/data/My Scans/{'x' * 60} y.json"),
        ("name  other" * 20, "name  other" * 20),
        (f"  {LONG} {LONG}", f"  {LONG} {LONG}"),
        (f"it's {LONG}, others' as well", None),
    ],
)
def test_lines_fit_the_terminal_but_for_tables_and_places(text: str, expected: str | None) -> None:
    shown = wrapped(text, 60)
    if expected is None:
        assert max(map(len, shown.split("\n"))) <= 60
    else:
        assert expected in shown
    assert wrapped(text, None) == text
    assert wrapped("short", 60) == "short"


def on_terminal(*arguments: str) -> str:
    """What a command prints on stderr where that is a terminal."""
    outer, inner = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "autoliver", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=inner,
    ):
        os.close(inner)
        shown = b""
        try:
            while chunk := os.read(outer, 4096):
                shown += chunk
        except OSError:  # the end, on Linux
            pass
    os.close(outer)
    return shown.decode().replace("\r\n", "\n")


def test_errors_are_wrapped_on_a_terminal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    words = ("plan", "LiTS", "-w", str(tmp_path / "a workspace"))
    piped = subprocess.run(
        [sys.executable, "-m", "autoliver", *words], capture_output=True, text=True, check=False
    ).stderr
    assert len(piped.splitlines()) == 2
    shown = on_terminal(*words)
    assert len(shown.splitlines()) > 2
    assert shown.replace("\n", " ") == piped.replace("\n", " ")
    command = piped.partition("folder: ")[2].strip()
    assert command.startswith("autoliver plan PATH -w ")
    assert command in shown.splitlines()
    prose = [line for line in shown.splitlines() if "/" not in line]
    assert prose
    assert max(map(len, prose)) <= 50
    usage = on_terminal("train", "LiTS", "2d", "--schedule", "x").splitlines()
    assert usage[-1].startswith("'")
    assert max(map(len, usage)) <= 50
