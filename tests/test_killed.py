"""A command that was killed, and then given again, ends as if nothing had happened, bit by bit."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run

from autoliver.models.files import FoldModel
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME = "Dataset001_PhantomCT"
OPTIONS = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills groups of processes")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a workspace in which 2d is trained on it."""
    return train_on_phantom(tmp_path_factory.mktemp("place"))


def train_on_phantom(place: Path) -> Path:
    """Writes a dataset to `data`, and trains one fold of 2d on it in `w`."""
    write_phantom_dataset(place / "data", name=NAME, cases=6, seed=1, options=OPTIONS)
    run("plan", place / "data" / NAME, "--preset", "tiny", "-w", place / "w")
    short = ("--epochs", 1, "--iterations", 2, "--deterministic")
    run("train", NAME, "2d", "--fold", 0, *short, "-w", place / "w")
    return place


def contents(folder: Path) -> dict[str, str]:
    """Name -> checksum of every file that a command is meant to leave, wherever the folder is."""
    here = str(folder).encode()
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes().replace(here, b"")
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and "tensorboard" not in path.parts
    }


def start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / ".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "autoliver", *command],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(command: list[str], folder: Path) -> None:
    assert start(command, folder).wait() == 0, (folder / ".log").read_text()


def longer(model: Path) -> bool:
    """Whether the model was extended; its held-out cases are scored after that."""
    return FoldModel.load(model).extended == 1


COMMANDS: dict[str, tuple[list[str], Callable[[Path], list[Path]]]] = {
    "preprocess": (
        ["preprocess", NAME, "3d_fullres", "--workers", "2", "-w", "w"],
        lambda folder: list(folder.glob("w/*/store/*/*.json")),
    ),
    "predict": (
        [
            *("predict", "-i", f"data/{NAME}/imagesTr", "-o", "out", "-m", NAME, "-w", "w"),
            *("--exact", "--probabilities", "--uncertainty"),
        ],
        lambda folder: list(folder.glob("out/*.npz")),
    ),
    "extend": (
        ["train", NAME, "2d", "--fold", "0", "--extend", "3", "-w", "w"],
        lambda folder: [p for p in folder.glob("w/*/runs/2d/fold_0/model.json") if longer(p)],
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_that_is_given_again(name: str, place: Path, tmp_path: Path) -> None:
    command, made = COMMANDS[name]
    whole, killed = (shutil.copytree(place, tmp_path / part) for part in ("whole", "killed"))
    finish(command, whole)
    expected = contents(whole)
    assert expected != contents(place)

    there = len(made(killed))
    process = start(command, killed)
    until = time.monotonic() + 60
    while len(made(killed)) <= there and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it had ended before"
    assert contents(killed) != expected
    finish(command, killed)
    left = [path for path in killed.rglob(".*") if path.name != ".log"]
    assert not left, "neither half-written files nor locks"
    found = contents(killed)
    assert found.keys() == expected.keys()
    same = {name for name in expected if expected[name] == found[name]}
    # What holds times.
    clocks = {"progress.jsonl", "progress.png", "resume.pt", "predict.json", "train.log"}
    assert {Path(name).name for name in expected.keys() - same} <= clocks
