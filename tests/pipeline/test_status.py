"""What `status` says of runs: of all states, while they run, after a kill, and of damaged files."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.locks import Holder, only_one
from autoliver.models.files import FoldFolder
from autoliver.pipeline.status import FoldStatus, read_status
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.workspace import RunFolder, Workspace

NAME = "Dataset001_CT"
HERE = socket.gethostname()


def line(epoch: int, dice: float | None, *, seconds: float = 10.0) -> str:
    return json.dumps(
        {
            "epoch": epoch,
            "seconds": seconds,
            "train_dice": 0.5,
            "validation_dice": [dice, None],
            "of_a_later_version": 1,
        }
    )


@pytest.fixture
def place(tmp_path: Path) -> RunFolder:
    """A run of ten epochs with one fold that has done two of them."""
    folder = RunFolder(tmp_path / "w" / NAME / "runs" / "2d+t")
    FoldFolder(folder.fold(0)).path.mkdir(parents=True)
    (tmp_path / "w" / NAME / "dataset.json").write_text("{}")
    folder.options.write_text(json.dumps({"epochs": 10, "extensions": []}))
    files = FoldFolder(folder.fold(0))
    files.progress.write_text(f"{line(0, 0.6)}\n{line(1, 0.4, seconds=20.0)}\n")
    return folder


def read(folder: RunFolder) -> FoldStatus:
    (found,) = read_status(Workspace(folder.path.parents[2])).folds
    return found


def holder(process: int, *, host: str = HERE, parts: tuple[str, ...] = ()) -> Holder:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Holder(host=host, process=process, since=since, parts=parts)


@contextlib.contextmanager
def ended() -> Iterator[int]:
    """The number of a process that has ended, which its parent has not noticed."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child.pid
    child.wait()


def test_epochs_dice_rate_and_time_left(place: RunFolder) -> None:
    with only_one(place.lock(0), "x"):
        found = read(place)
    assert (found.state, found.epoch, found.epochs) == ("training", 2, 10)
    assert (found.dice, found.best, found.seconds_per_epoch) == (0.4, 0.6, 15.0)
    assert found.holder is not None
    assert found.holder.process == os.getpid()
    assert found.seconds_left == pytest.approx(8 * 15.0, abs=5.0)
    assert found.command == ""


def test_a_time_budget_ends_the_training_earlier(place: RunFolder) -> None:
    place.options.write_text(json.dumps({"epochs": 1000, "hours": 0.02, "extensions": []}))
    with only_one(place.lock(0), "x"):
        assert read(place).seconds_left == pytest.approx(72.0 - 30.0, abs=5.0)


def test_a_killed_training_is_interrupted_and_the_command_goes_on(place: RunFolder) -> None:
    with ended() as process:
        place.lock(0).touch()
        holder(process).save(place.lock(0).with_name(".fold_0.lock.json"))
        found = read(place)
    assert (found.state, found.holder, found.seconds_left) == ("interrupted", None, None)
    where = place.path.parents[2]
    assert found.command == f"autoliver train {NAME} 2d --fold 0 --tag t -w {where}"
    assert place.lock(0).exists()  # nothing is tidied up


def test_a_process_of_the_same_number_that_is_younger_is_another_one(place: RunFolder) -> None:
    Holder(host=HERE, process=os.getpid(), since="2001-01-01 00:00:00").save(
        place.lock(0).with_name(".fold_0.lock.json")
    )
    assert read(place).state == "interrupted"


@pytest.mark.parametrize(("hours", "state"), [(0, "training"), (30, "interrupted")])
def test_a_process_on_another_machine_is_believed_while_it_writes(
    hours: float, state: str, place: RunFolder
) -> None:
    then = time.time() - 3600 * hours
    os.utime(FoldFolder(place.fold(0)).progress, (then, then))
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then))
    Holder(host="elsewhere", process=1, since=since).save(
        place.lock(0).with_name(".fold_0.lock.json")
    )
    assert read(place).state == state


def test_failed_says_why_until_it_is_begun_again(place: RunFolder) -> None:
    files = FoldFolder(place.fold(0))
    files.log.write_text("2026-11-26 10:00:00 failed: the disk is full.\nHint: free some\n")
    found = read(place)
    assert (found.state, found.problem) == ("failed", "the disk is full.")
    assert found.command.startswith("autoliver train")
    with files.log.open("a") as log:
        log.write("2026-11-26 11:00:00 goes on after epoch 2/10\n")
    assert read(place).state == "interrupted"


def test_queued_folds_are_those_on_the_list_of_a_living_process(place: RunFolder) -> None:
    with only_one(place.user("here-1"), "x", parts=("0", "1")), only_one(place.lock(0), "x"):
        first, second = read_status(Workspace(place.path.parents[2])).folds
        assert (first.fold, first.state) == ("0", "training")
        assert (second.fold, second.state, second.epoch) == ("1", "queued", 0)
    with ended() as process:
        holder(process, parts=("0", "1")).save(place.user("here-1").with_name("x.lock.json"))
        assert read(place).state == "interrupted"


def test_validating_and_finished(place: RunFolder) -> None:
    files = FoldFolder(place.fold(0))
    files.model.write_text(json.dumps({"extended": 0}))
    with only_one(place.lock(0), "x"):
        assert read(place).state == "validating"
    assert read(place).state == "interrupted"  # its held-out cases are not scored
    files.progress.write_text(json.dumps({"epoch": 0, "train_dice": 0.7}) + "\n")  # fold all
    assert (read(place).state, read(place).dice) == ("finished", 0.7)
    files.validation.mkdir()
    files.scores.write_text(json.dumps({"mean": {"dice": 0.8}}))
    assert read(place).held_out_dice == 0.8
    place.options.write_text(json.dumps({"epochs": 10, "extensions": [5]}))
    assert (read(place).state, read(place).epochs) == ("interrupted", 15)


def test_damaged_files_are_named_and_the_rest_is_shown(place: RunFolder) -> None:
    files = FoldFolder(place.fold(0))
    files.progress.write_text(f"{line(0, 0.6)}\nnonsense\n{line(1, 0.4)}\n" + line(2, 0.7)[:20])
    place.options.write_text("{")
    found = read_status(Workspace(place.path.parents[2]))
    assert (found.folds[0].epoch, found.folds[0].epochs) == (2, None)
    first, second = found.damaged  # a line that is being written is not damaged
    assert str(place.options) in first
    assert second == f"{files.progress}: 1 line cannot be read."


@pytest.mark.parametrize(
    ("run_name", "pretrained", "words"),
    [
        ("3d_fullres", None, []),
        ("3d_fullres@CT", "CT/3d_fullres/fold_0", ["--pretrained", "CT/3d_fullres/fold_0"]),
        ("3d_fullres@CT", None, ["--like", "CT"]),
        ("3d_fullres", "CT", ["--pretrained", "CT", "--own-plan"]),
        ("3d_fullres", "imagenet", ["--pretrained", "imagenet"]),
    ],
)
def test_the_command_names_the_source(
    run_name: str, pretrained: str | None, words: list[str], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "w" / NAME / "runs" / run_name)
    folder.fold("all").mkdir(parents=True)
    (tmp_path / "w" / NAME / "dataset.json").write_text("{}")
    folder.options.write_text(json.dumps({"epochs": 10, "pretrained": pretrained}))
    expected = ["autoliver", "train", NAME, "3d_fullres", "--fold", "all", *words]
    assert read(folder).command.split() == [*expected, "-w", str(tmp_path / "w")]


def test_an_empty_workspace_says_what_to_do(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["status", "-w", str(tmp_path)])
    assert "There are no runs" in shown.stdout
    assert "Next: autoliver plan" in shown.stdout
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "dataset.json").write_text("{}")
    assert (
        run("status", "-w", tmp_path)["next"] == f"autoliver train {NAME} 3d_fullres -w {tmp_path}"
    )


@pytest.mark.parametrize("command", ["status", "clean", "doctor"])
def test_a_folder_that_was_not_planned_is_told(command: str, place: RunFolder) -> None:
    other = place.path.parents[3] / "Dataset002_Other"
    other.mkdir()
    words = [command, str(other), "-w", str(place.path.parents[2])]
    done = CliRunner().invoke(app, words)
    assert f"{other} has not been planned" in str(done.exception)
    assert f"autoliver plan {other}" in str(done.exception)


def test_rows_fit_eighty_columns_and_long_names_keep_their_end(place: RunFolder) -> None:
    longer = place.path.with_name("3d_fullres@AnotherDataset+a-rather-long-tag")
    place.path.rename(longer)
    shown = CliRunner().invoke(app, ["status", "-w", str(longer.parents[2])]).stdout
    _, header, rule, row, _, note = shown.splitlines()
    assert max(map(len, (header, rule, row))) <= 80
    assert "..." in row
    assert "long-tag" in row
    assert longer.name in note


@pytest.mark.parametrize("words", [["--watch"], ["--watch", "0.1"], ["--watch=0.1"]])
def test_watching_ends_by_itself_when_nothing_runs(words: list[str], place: RunFolder) -> None:
    root = str(place.path.parents[2])
    shown = CliRunner().invoke(app, ["status", NAME, "-w", root, *words])
    assert (shown.exit_code, shown.stdout.count("\n")) == (0, 1)
    assert "interrupted, epoch 2/10, Dice 0.400, best 0.600" in shown.stdout


def test_watching_more_often_than_can_be_is_refused(place: RunFolder) -> None:
    done = CliRunner().invoke(app, ["status", "--watch", "0", "-w", str(place.path.parents[2])])
    assert "--watch 0: expected a number of seconds" in str(done.exception)


def test_status_loads_no_torch(place: RunFolder) -> None:
    files = FoldFolder(place.fold(0))
    files.model.write_text("{}")
    files.validation.mkdir()
    files.scores.write_text(json.dumps({"mean": {"dice": 0.8}}))
    heavy = ("torch", "SimpleITK", "scipy", "matplotlib", "skimage", "blosc2")
    script = (
        "import sys; from pathlib import Path; from autoliver.cli.status import status\n"
        f"status(None, workspace=Path({str(place.path.parents[2])!r}))\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_running_training_is_watched_until_it_is_killed(tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(tmp_path, name=NAME, cases=5, seed=1, options=options)
    work = tmp_path / "w"
    run("plan", tmp_path / NAME, "--preset", "tiny", "-w", work)
    words = ["train", NAME, "2d", "--fold", "0,1", "--epochs", "1000", "--iterations", "2"]
    program = [sys.executable, "-m", "autoliver"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*program, *words, "-w", str(work)], **quiet) as training:
        until = time.monotonic() + 100
        while time.monotonic() < until:
            folds = read_status(Workspace(work)).folds
            if folds and folds[0].epoch:
                break
            time.sleep(0.2)
        assert [fold.state for fold in folds] == ["training", "queued"]
        assert folds[0].holder is not None
        assert folds[0].holder.process == training.pid
        assert folds[0].seconds_left
        watching = subprocess.Popen(
            [*program, "status", "--watch", "0.2", "-w", str(work)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        assert re.search(r"2d fold 0: training, epoch \d+/1000, Dice ", watching.stdout.readline())
        training.kill()
        training.wait()
        out, _ = watching.communicate(timeout=30)
    assert watching.returncode == 0
    assert "interrupted" in out.splitlines()[-1]
    assert f"goes on with: autoliver train {NAME} 2d --fold 0 -w {work}" in out
    # Ctrl-C while something runs; the lock is not in the way of the training that goes on.
    with only_one(RunFolder(work / NAME / "runs" / "2d").lock(0), "x"):
        watching = subprocess.Popen(
            ["env", "--default-signal=INT", *program, "status", "--watch", "-w", str(work)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        assert "training" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=30)
    assert (watching.returncode, told.strip()) == (0, "Not watching any more; what runs goes on.")


def test_a_training_that_fails_leaves_the_reason(tmp_path: Path) -> None:
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(tmp_path, name=NAME, cases=5, seed=1, options=options)
    work = tmp_path / "w"
    short = ("--epochs", 1, "--iterations", 2)
    run("plan", tmp_path / NAME, "--preset", "tiny", "-w", work)
    run("train", NAME, "2d", "--fold", 0, *short, "-w", work)
    (found,) = read_status(Workspace(work)).folds
    assert (found.state, found.epoch, found.epochs, found.command) == ("finished", 1, 1, "")
    assert found.held_out_dice is not None
    # Without its weights, the held-out cases cannot be predicted again.
    files = FoldFolder(RunFolder(work / NAME / "runs" / "2d").fold(0))
    shutil.rmtree(files.validation)
    files.weights.unlink()
    done = CliRunner().invoke(app, ["train", NAME, "2d", "--fold", "0", "-w", str(work)])
    assert done.exception is not None
    (found,) = read_status(Workspace(work)).folds
    assert found.state == "failed"
    assert str(files.weights) in found.problem
