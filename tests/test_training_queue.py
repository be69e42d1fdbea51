"""Folds in processes of their own, through the command a user types."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import run
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.machine import Machine
from autoliver.networks.checkpoint import load_training_state
from autoliver.parallel import Limits, cores
from autoliver.pipeline.run import fold_queue
from autoliver.pipeline.run.fold_queue import queue_devices
from autoliver.pipeline.run.request import QueuedRequest, TrainRequest
from autoliver.pipeline.run.train import FoldsFailed
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.progress import read_progress

NAME = "Dataset001_Queue"
CASES = [f"Queue_{number:03}" for number in range(4)]
# Case 3 is needed by fold 1 alone.
SPLITS = [
    {"train": CASES[:2], "val": CASES[2:3]},
    {"train": CASES[3:], "val": CASES[2:3]},
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset `data/NAME` and its workspace `w`, preprocessed."""
    folder = tmp_path_factory.mktemp("queue")
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(6.0, 5.0, 5.0))
    source = write_phantom_dataset(
        folder / "data", name=NAME, cases=4, seed=1, options=options, test_cases=0
    )
    assert [p.name.split(".")[0] for p in sorted((source / "labelsTr").iterdir())] == CASES
    (source / "splits_final.json").write_text(json.dumps(SPLITS))
    run("plan", source, "--preset", "tiny", "-w", folder / "w")
    run("preprocess", NAME, "2d", "-w", folder / "w")
    return folder


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared / "w", tmp_path / "w"))


def fold(workspace: Path, number: int) -> Path:
    return workspace / NAME / "runs/2d" / f"fold_{number}"


def train(workspace: Path, epochs: int) -> "subprocess.Popen[str]":
    """`autoliver train` with two folds at a time, once both have finished an epoch."""
    options = ["--epochs", str(epochs), "--iterations", "2", "--jobs", "2", "-w", str(workspace)]
    process = subprocess.Popen(
        [sys.executable, "-m", "autoliver", "train", NAME, "2d", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not all(read_progress(fold(workspace, n) / "progress.jsonl") for n in (0, 1)):
        assert time.monotonic() < until, "the trainings did not get going"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def processes(workspace: Path) -> dict[int, list[str]]:
    """Process id -> command line of what works on a workspace."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:  # it ended just now
            continue
        if any(word.startswith(str(workspace)) for word in words):
            found[int(path.parent.name)] = words
    return found


def one_fold(workspace: Path, number: int) -> int:
    request = str(fold(workspace, number) / "request.json")
    return next(pid for pid, words in processes(workspace).items() if request in words)


def test_a_fold_that_fails_does_not_stop_the_others(workspace: Path) -> None:
    located = next((workspace / NAME / "store").glob(f"*/{CASES[3]}.npz"))
    sound = located.read_bytes()
    located.write_bytes(b"\0" * len(sound))
    losses = []
    for how in ((), ("--jobs", "2")):
        tag = f"jobs{len(how)}"
        arguments = ("train", NAME, "2d", "--epochs", 1, "--iterations", 3, "--tag", tag)
        with pytest.raises(FoldsFailed, match=r"1 of 2 folds failed\. Fold 1: .*Queue_003") as got:
            run(*arguments, *how, "-w", workspace)
        assert "The same command again" in got.value.hint
        assert [r.fold for r in got.value.results] == [0]
        first = workspace / NAME / "runs" / f"2d+{tag}" / "fold_0"
        assert (first / "validation/scores.json").exists()
        losses.append([log.train_loss for log in read_progress(first / "progress.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    written = (first / "model.json").stat().st_mtime_ns
    located.write_bytes(sound)
    # One fold is left: it needs no process of its own.
    done = run(*arguments, *how, "-w", workspace)
    assert [f["fold"] for f in done["folds"]] == [0, 1]  # type: ignore[attr-defined]
    assert (first / "model.json").stat().st_mtime_ns == written


def test_several_folds_train_in_processes_of_their_own(workspace: Path) -> None:
    process = train(workspace, epochs=15)
    there = processes(workspace)
    children = {one_fold(workspace, number) for number in (0, 1)}
    assert len(children) == 2
    assert process.pid in set(there) - children
    # The kernel takes one of them.
    os.kill(one_fold(workspace, 1), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "1 of 2 folds failed. Fold 1: its process was killed (SIGKILL)" in err
    assert "because memory ran out" in err
    assert re.search(r"^Dice +fold 0 +mean of 1$", out, re.M)
    assert (fold(workspace, 0) / "validation/scores.json").exists()
    assert not (fold(workspace, 1) / "model.json").exists()
    assert " train-queued " in (fold(workspace, 1) / "train.log").read_text()
    log = (fold(workspace, 0) / "train.log").read_text()
    assert "\r" not in log
    epochs = re.findall(r" epoch (\d+)/15; .*pseudo Dice liver ", log)
    assert epochs == [str(number) for number in range(1, 16)]


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (signal.SIGTERM, 143, "2d: stopped by SIGTERM; the progress is saved."),
        pytest.param(
            *(signal.SIGUSR1, 75, "2d: stopped by SIGUSR1; the progress is saved."),
            marks=pytest.mark.slow,
        ),
        pytest.param(signal.SIGINT, 130, "Run the same command again", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, "", marks=pytest.mark.slow),
    ],
)
def test_what_ends_the_queue_lets_every_fold_save_its_state(
    workspace: Path, asked: int, code: int, words: str
) -> None:
    process = train(workspace, epochs=5000)
    there = processes(workspace)
    before = time.time()
    process.send_signal(asked)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert words in err
    until = time.monotonic() + (60 if asked == signal.SIGKILL else 1)
    while set(there) & set(processes(workspace)):
        assert time.monotonic() < until, "a process is left behind"
        time.sleep(0.05)
    for number in (0, 1):
        state = fold(workspace, number) / "resume.pt"
        assert state.stat().st_mtime > before - 0.05
        saved = load_training_state(state)
        logs = read_progress(state.parent / "progress.jsonl")
        assert logs[-1].step <= saved["step"] < logs[-1].step + 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--jobs", "0"), "--jobs is 0"),
        (("--gpus", "0", "--jobs", "2"), "--gpus 0 and --jobs 2 exclude each other"),
        (("--gpus", "0", "--device", "cpu"), "--gpus 0 and --device cpu exclude each other"),
        (("--gpus", "0,97"), "--gpus 0,97: there is no"),
    ],
)
def test_devices_that_cannot_be_are_refused_before_anything_is_made(
    prepared: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        run("train", prepared / "data" / NAME, "2d", *options, "-w", tmp_path / "new")
    assert caught.value.hint or "jobs is 0" in words
    assert not (tmp_path / "new").exists()


def test_a_request_reaches_the_process_of_a_fold_whole(tmp_path: Path) -> None:
    machine = Machine(
        device="auto",
        gpus=(0, 1),
        cache="disk",
        limits=Limits(workers=0, memory_gb=3.0),
        tensorboard=True,
        compile="off",
    )
    asked = TrainRequest(
        configuration="3d_cascade",
        folds=(1, "all"),
        changes={"epochs": 3, "patch": (8, 16, 16), "lr": None},
        tag="t",
        fresh=True,
        extend=5,
        preset="M",
        pretrained="LiTS/2d",
        encoder_weights="lite0.pth",
        like="X",
        own_plan=True,
        twin=True,
        accept_changes=True,
        machine=machine,
    )
    default = TrainRequest(configuration="2d")
    given = {name for name in asked.__struct_fields__ if name != "changes"}
    assert all(getattr(asked, name) != getattr(default, name) for name in given)
    one = asked.for_fold("all", machine.share(2, device="cuda:1"))
    queued = QueuedRequest(workspace="/w", dataset="/d", request=one, at_once=2)
    queued.save(tmp_path / "request.json")
    there = QueuedRequest.load(tmp_path / "request.json")
    assert there == queued
    # What is decided once per run is in options.json; a fold begins where it stopped.
    once = {"folds": ("all",), "changes": {}, "fresh": False, "extend": None}
    share = Limits(workers=there.request.machine.limits.workers, memory_gb=1.5)
    own = machine.replace(device="cuda:1", gpus=(), limits=share)
    assert there.request == asked.replace(**once, machine=own)
    assert 1 <= share.workers <= max(1, cores() // 2)


def test_gpus_are_numbers() -> None:
    result = CliRunner().invoke(app, ["train", NAME, "2d", "--gpus", "0,x"])
    assert result.exit_code == 2
    assert "'0,x' is not a list of GPU numbers" in result.stderr


def test_as_many_places_as_jobs() -> None:
    assert queue_devices(Machine(jobs=3, device="cpu"), most=5) == ("cpu", "cpu", "cpu")
    # as many as there are folds, however many are asked for
    assert queue_devices(Machine(jobs=2**31 - 1, device="cpu"), most=2) == ("cpu", "cpu")
    assert queue_devices(Machine(device="cpu"), most=5) == ()


@pytest.mark.gpu
def test_a_gpu_named_twice_takes_two_folds() -> None:
    assert queue_devices(Machine(gpus=(0, 0)), most=5) == ("cuda:0", "cuda:0")


class Ended:
    """A fold that has been trained at once."""

    def __init__(self, place: tuple[int, str]) -> None:
        self.place, self.folder = place, None

    def ended(self) -> bool:
        return True

    def failure(self) -> None:
        return None

    def close(self, line: str) -> None:
        assert line


def test_a_process_knows_how_many_others_use_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Machine] = []

    def start(_job: object, _fold: object, place: tuple[int, str], queued: QueuedRequest) -> Ended:
        asked.append(queued.request.machine)
        return Ended(place)

    monkeypatch.setattr(fold_queue, "_start", start)
    monkeypatch.setattr(fold_queue, "_finished", lambda _: "finished")
    monkeypatch.setattr(fold_queue, "_SECONDS_BETWEEN_LOOKS", 0.0)
    job = SimpleNamespace(planned=SimpleNamespace(dataset=SimpleNamespace(folder="/d")))
    request = TrainRequest(configuration="2d", machine=Machine(gpus=(0, 0, 1)))
    devices = ("cuda:0", "cuda:0", "cuda:1")
    fold_queue.run_queue(job, (0, 1, 2), devices, request=request, workspace=tmp_path)
    assert [(machine.device, machine.sharing) for machine in asked] == [
        ("cuda:0", 2),
        ("cuda:0", 2),
        ("cuda:1", 1),
    ]


def test_own_splits_that_cannot_be_are_told(prepared: Path, tmp_path: Path) -> None:
    source = tmp_path / NAME
    shutil.copytree(prepared / "data" / NAME, source)
    for splits, words in (
        ([{"train": ["Queue_009"], "val": []}], "fold 0: unknown case Queue_009"),
        ([SPLITS[0], {"train": [], "val": CASES[:1]}], "fold 1: no training cases"),
        ([{"train": CASES, "val": CASES[:1]}], "fold 0: Queue_000 is on both sides"),
    ):
        (source / "splits_final.json").write_text(json.dumps(splits))
        with pytest.raises(DatasetError, match=words):
            run("train", source, "2d", "-w", tmp_path / "w")
    (source / "splits_final.json").unlink()
    with pytest.raises(AutoliverError, match="no fold 4: 4 labelled cases make 4 folds"):
        run("train", source, "2d", "--fold", 4, "-w", tmp_path / "w")
