"""What a command leaves that dies while it writes, and that the same command removes."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from abdomen_trees import write_lits
from commands import run
from test_killed import NAME, OPTIONS, train_on_phantom

from autoliver.artifacts import PARTIAL
from autoliver.io.files import read_label, write_label
from autoliver.synthesis.phantom import write_phantom_dataset

# Dies when all is written beside the output, before it is moved to its place.
DIES = """
import os, sys
from pathlib import Path
from autoliver import artifacts
parent = Path(sys.argv[1]).absolute().parent
def flush(path):
    if path.absolute().parent == parent and ".lock" not in path.name:
        os._exit(9)
artifacts._flush = flush
sys.argv = ["autoliver", *sys.argv[2:]]
from autoliver.__main__ import main
main()
"""
IMAGES, LABELS = f"data/{NAME}/imagesTr", f"data/{NAME}/labelsTr"
COMMANDS = {
    "pool": ("out", ["pool", "out", "--add", f"data/{NAME}", "--add", "other", "-w", "w"]),
    "fix": ("out", ["verify", "broken", "--fix", "out", "--value", "7=0"]),
    "convert": ("out", ["convert", "lits", "lits", "out"]),
    "adopt": (
        "data/out",
        ["adopt", "-i", IMAGES, "-p", LABELS, "--like", NAME, "data/out", "-w", "w"],
    ),
    "export": ("out.autoliver", ["export", NAME, "out.autoliver", "-w", "w"]),
    "export for nnU-Net": (
        f"out/{NAME}/nnUNetTrainer__nnUNetPlans__2d",
        ["export", NAME, "out", "--format", "nnunet", "-w", "w"],
    ),
    "import": ("w/models/Other", ["import", "a.autoliver", "--name", "Other", "-w", "w"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets, one of them broken, a workspace with a model, and this model in a file."""
    place = train_on_phantom(tmp_path_factory.mktemp("place"))
    run("export", NAME, place / "a.autoliver", "-w", place / "w")
    write_lits(place / "lits")
    shutil.copytree(place / "data" / NAME, place / "broken")
    write_phantom_dataset(place, name="other", cases=2, seed=9, options=OPTIONS)
    path = min((place / "broken" / "labelsTr").iterdir())
    label = read_label(path)
    write_label(path, np.where(label.array == 0, 7, label.array)[0], label.geometry)
    return place


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_dead_command_left_is_removed(name: str, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    shutil.copytree(place, folder)
    output, command = COMMANDS[name]
    before = files(folder)
    died = subprocess.run(
        [sys.executable, "-c", DIES, output, *command], cwd=folder, capture_output=True, text=True
    )
    assert died.returncode == 9, died.stderr
    assert not (folder / output).exists()
    assert any(PARTIAL.fullmatch(path.name) for path in (folder / output).parent.iterdir())

    done = subprocess.run(
        [sys.executable, "-m", "autoliver", *command], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (folder / output).exists()
    new = files(folder) - before
    assert not [path for path in new if PARTIAL.fullmatch(path.name) or ".lock" in path.name]


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))
