"""synthesize fit and apply, killed at some moment and given again, end as if nothing had been."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run
from ct_and_mr import CT, MR, write_ct_and_mr
from test_killed import contents, finish, start

from autoliver.artifacts import PARTIAL

FIT = (
    *("synthesize", "fit", "--from", "CT", "--to", "scans", "-o", "toy", "--features", "4"),
    *("--blocks", "1", "--epochs", "6", "--iterations", "3", "--batch-size", "2"),
    *("--patch", "32", "32", "-w", "w"),
)
APPLY = ("synthesize", "apply", "toy", "out", "--qc-min-dice", "0", "-w", "w")
# What holds times.
CLOCKS = {"progress.jsonl", "resume.pt", "train.log"}
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills groups of processes")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned CT phantom, and images of an MR phantom."""
    place = tmp_path_factory.mktemp("killed")
    write_ct_and_mr(place, cases=5)
    run("plan", place / CT, "--preset", "tiny", "-w", place / "w")
    (place / MR / "imagesTr").rename(place / "scans")
    shutil.rmtree(place / MR)
    return place


@pytest.fixture(scope="module")
def learnt(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a translation."""
    folder = shutil.copytree(place, tmp_path_factory.mktemp("learnt") / "whole")
    finish(list(FIT), folder)
    return folder


def epochs(folder: Path) -> int:
    progress = folder / "w/synthesis/toy/progress.jsonl"
    return progress.read_bytes().count(b"\n") if progress.exists() else 0


def images(folder: Path) -> int:
    return len(list(folder.glob(".*.partial.*/imagesTr/*.nii.gz")))


def kill(command: list[str], folder: Path, begun: Callable[[Path], int], seed: int) -> None:
    """Kills a command at a random moment after it has begun with its work."""
    before = begun(folder)
    process = start(command, folder)
    until = time.monotonic() + 60
    while begun(folder) <= before and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(0.15 * random.Random(seed).random())
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended before"


def same(found: dict[str, str], expected: dict[str, str]) -> None:
    assert found.keys() == expected.keys()
    other = {name for name in expected if found[name] != expected[name]}
    assert {Path(name).name for name in other} <= CLOCKS


def test_a_killed_fit_that_is_given_again(place: Path, learnt: Path, tmp_path: Path) -> None:
    killed = shutil.copytree(place, tmp_path / "killed")
    for seed in range(2):
        kill(list(FIT), killed, epochs, seed)
        assert 0 < epochs(killed) < 6
        (killed / "w/synthesis/toy/.0123abcd.partial.pt").write_bytes(b"half")
        assert not list(killed.glob("w/synthesis/toy/segmentor/2d/*/model.json"))
    finish(list(FIT), killed)
    same(contents(killed), contents(learnt))
    assert not [p for p in killed.rglob("*") if PARTIAL.fullmatch(p.name) or ".lock" in p.name]


def test_a_killed_apply_that_is_given_again(learnt: Path, tmp_path: Path) -> None:
    whole, killed = (shutil.copytree(learnt, tmp_path / part) for part in ("whole", "killed"))
    finish(list(APPLY), whole)
    for seed in range(2):
        kill(list(APPLY), killed, images, seed)
        assert not (killed / "out").exists()
        assert len([p for p in killed.iterdir() if PARTIAL.fullmatch(p.name)]) == 1
        for path in killed.glob(".*.partial.*/imagesTr/*.nii.gz"):
            path.unlink()  # so that the next one is seen to begin
    finish(list(APPLY), killed)
    same(contents(killed), contents(whole))
    assert not [p for p in killed.rglob("*") if PARTIAL.fullmatch(p.name) or ".lock" in p.name]
