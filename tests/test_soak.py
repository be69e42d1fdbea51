"""Small jobs of every command, a few times in one workspace; the long run is benchmarks/soak.py."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import Held, growth, memory_slope_kb

ROOT = Path(__file__).parents[1]
HELD = Held(
    seconds=1.0,
    memory_kb=1000,
    open_files=["pipe"],
    threads=1,
    children=0,
    locks=0,
    files=["workspace/a"],
    temporary=[],
)


def test_rounds_leave_nothing_more_than_those_before(tmp_path: Path) -> None:
    """In a process of its own, since what this one has open belongs to other tests, too."""
    command = [sys.executable, "-m", "benchmarks.soak", str(tmp_path / "soak"), "--rounds", "3"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert "nothing else grew" in ended.stdout


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"files": ["workspace/a", "workspace/b"]}, "files: 1 -> 2, new: workspace/b"),
        ({"files": ["workspace/b"]}, "files: 1 -> 1, new: workspace/b"),
        ({"temporary": ["temporary/x"]}, "temporary: 0 -> 1, new: temporary/x"),
        ({"open_files": ["pipe", "pipe"]}, "open_files: 1 -> 2, new: "),
        ({"threads": 2}, "threads: 1 -> 2"),
        ({"children": 1}, "children: 0 -> 1"),
        ({"locks": 1}, "locks: 0 -> 1"),
        ({"memory_kb": 5000}, None),
    ],
)
def test_growth_is_told(change: dict[str, object], told: str | None) -> None:
    first = replace(HELD, files=[], threads=9)  # the first round counts for nothing
    changed = replace(HELD, **change)  # type: ignore[arg-type]
    assert growth([first, HELD, HELD, changed]) == ([] if told is None else [told])


def test_slope_of_memory_leaves_out_single_jumps() -> None:
    rounds = [replace(HELD, memory_kb=1000 * (n < 5) + 10 * n + 500 * (n == 9)) for n in range(20)]
    assert memory_slope_kb(rounds) == 10.0
