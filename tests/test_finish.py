"""Folds that several machines train: begun at once, brought together, nothing trained."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run
from test_killed import NAME, OPTIONS

import autoliver
from autoliver.errors import ModelError, OptionError
from autoliver.locks import only_one
from autoliver.synthesis.phantom import write_phantom_dataset
from autoliver.training.options import TrainingOptions
from autoliver.workspace import RunFolder

SHORT = ("--epochs", "1", "--iterations", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with two splits that is planned and not preprocessed."""
    place = tmp_path_factory.mktemp("finish")
    data = write_phantom_dataset(place / "data", name=NAME, cases=4, seed=1, options=OPTIONS)
    names = sorted(path.name.split(".")[0] for path in (data / "labelsTr").iterdir())
    splits = [{"train": names[1:], "val": names[:1]}, {"train": names[:3], "val": names[3:]}]
    (data / "splits_final.json").write_text(json.dumps(splits))
    run("plan", data, "--preset", "tiny", "-w", place / "w")
    return place


def at_once(place: Path, *commands: tuple[str, ...]) -> list[tuple[int, str]]:
    """Runs commands at the same moment; returns how each has ended, and what it has said."""
    every = [
        subprocess.Popen(
            [sys.executable, "-m", "autoliver", *words],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in commands
    ]
    said = [process.communicate()[1] for process in every]
    return [(process.returncode, text) for process, text in zip(every, said, strict=True)]


def test_two_begin_one_run_and_finish_brings_their_folds_together(place: Path) -> None:
    train = ("train", NAME, "2d", "-w", "w", *SHORT)
    both = at_once(place, (*train, "--fold", "0"), (*train, "--fold", "1"))
    assert [code for code, _ in both] == [0, 0], both
    run_ = RunFolder(place / "w" / NAME / "runs/2d")
    assert run_.finished_names == ("0", "1")
    weights = {path: (path / "weights.safetensors").read_bytes() for path in run_.finished}
    scores = json.loads((run_.fold(0) / "validation/scores.json").read_text())
    (run_.fold(1) / "validation/scores.json").unlink()  # as if its machine had died then
    done = run("finish", NAME, "2d", "-w", place / "w")
    assert [fold["fold"] for fold in done["folds"]] == [0, 1]
    assert done["folds"][0]["dice"] == pytest.approx(scores["mean"]["dice"])
    assert (run_.fold(1) / "validation/scores.json").exists()
    assert json.loads((place / "w" / NAME / "model.json").read_text())["members"][0]["run"] == "2d"
    assert {path: (path / "weights.safetensors").read_bytes() for path in run_.finished} == weights


def test_of_two_that_begin_a_run_otherwise_one_is_refused(place: Path) -> None:
    train = ("train", NAME, "2d", "-w", "w", "--tag", "race", "--iterations", "2")
    both = at_once(
        place, (*train, "--fold", "0", "--epochs", "1"), (*train, "--fold", "1", "--epochs", "2")
    )
    assert sorted(code for code, _ in both) == [0, 1], both
    winner = [code for code, _ in both].index(0)
    run_ = RunFolder(place / "w" / NAME / "runs/2d+race")
    assert TrainingOptions.load(run_.options).epochs == winner + 1
    assert run_.finished_names == (str(winner),)
    assert "was started with --epochs" in both[1 - winner][1]


def test_missing_folds_are_named_with_the_commands_that_train_them(place: Path) -> None:
    words = ("train", NAME, "2d", "--tag", "part", "--fold", "0", *SHORT, "-w", place / "w")
    run(*words)
    run_ = RunFolder(place / "w" / NAME / "runs/2d+part")
    with pytest.raises(ModelError, match="of 2 folds, not trained yet: 1") as refused:
        run("finish", NAME, "2d+part", "-w", place / "w")
    again = shlex.split(refused.value.hint.splitlines()[1])
    assert again[:6] == ["autoliver", "train", NAME, "2d", "--fold", "1"]
    assert again[6:8] == ["--tag", "part"]
    with pytest.raises(ModelError) as refused:
        run("finish", NAME, "2d+part", "--accept-changes", "-w", place / "w")
    commands = [line for line in refused.value.hint.splitlines() if "autoliver" in line]
    assert [each.split()[1] for each in commands] == ["train", "finish"]
    assert all("--accept-changes" in each for each in commands)
    alone = only_one(run_.lock(1), "fold 1 is being trained")
    with alone, pytest.raises(ModelError, match="being trained: 1"):
        autoliver.finish(NAME, "2d+part", workspace=place / "w")
    assert not (run_.path / "fold_1").exists()


def test_folds_of_a_run_without_a_step_are_named_with_its_options(place: Path) -> None:
    """As after the first epoch of all folds has diverged."""
    run("train", NAME, "2d", "--tag", "none", "--fold", "0", *SHORT, "-w", place / "w")
    run_ = RunFolder(place / "w" / NAME / "runs/2d+none")
    shutil.rmtree(run_.fold(0))
    with pytest.raises(ModelError) as refused:
        run("finish", NAME, "2d+none", "-w", place / "w")
    commands = [shlex.split(line) for line in refused.value.hint.splitlines() if "train " in line]
    assert [each[5] for each in commands] == ["0", "1"]
    assert all(" ".join(map(str, SHORT)) in " ".join(each) for each in commands)


def test_a_run_that_does_not_exist_is_refused(place: Path) -> None:
    with pytest.raises(OptionError, match="no run '3d_fullress'"):
        run("finish", NAME, "3d_fullress", "-w", place / "w")
