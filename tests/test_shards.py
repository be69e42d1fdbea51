"""Shards of every command: any number at once, one killed, and the whole as if without shards."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import run
from test_killed import NAME, contents, finish, start, train_on_phantom
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.errors import AutoliverError, DatasetError, OptionError, WrongValue
from autoliver.locks import only_one
from autoliver.pipeline.folder_shards import claimed
from autoliver.pipeline.targets import Targets
from autoliver.planning import fingerprint, verify
from autoliver.shards import InTurn, KeptCases, KeptStage, Shard, ShardFolder
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills groups of processes")
N = 3


DATA = f"data/{NAME}"
UNLABELLED = "data/Dataset002_Unlabelled"
MR = PhantomOptions(contrast="T2", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
PREDICT = (
    *("predict", "-i", f"{DATA}/imagesTr", "-o", "out", "-m", NAME, "-w", "w"),
    *("--exact", "--no-mirror"),
)
FIT = (
    *("--features", "4", "--blocks", "1", "--epochs", "1", "--iterations", "1"),
    *("--batch-size", "2", "--patch", "32", "32"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, a workspace in which 2d is trained on it, label maps of it, and a translation."""
    place = train_on_phantom(tmp_path_factory.mktemp("shards"))
    images, work = place / DATA / "imagesTr", ("-w", place / "w")
    run("predict", "-i", images, "-o", place / "out", "-m", NAME, *work, "--no-mirror")
    scans = write_phantom_dataset(place / "mr", name="Dataset003_MR", cases=2, seed=2, options=MR)
    run("synthesize", "fit", "--from", NAME, "--to", scans / "imagesTr", "-o", "toy", *FIT, *work)
    data, new = place / DATA, place / UNLABELLED
    shutil.copytree(data / "imagesTr", new / "imagesTr")
    shutil.copyfile(data / "dataset.json", new / "dataset.json")
    (new / "labelsTr").mkdir()
    shutil.copy(next((data / "labelsTr").iterdir()), new / "labelsTr")
    return place


def test_a_shard_is_every_nth_of_the_sorted_names() -> None:
    names = [f"case_{number:02}" for number in range(10)]
    parts = [Shard.of(f"{i}/4").names(reversed(names)) for i in (1, 2, 3, 4)]
    assert parts[1] == ["case_01", "case_05", "case_09"]
    assert sorted(name for part in parts for name in part) == names
    assert Shard.of("12/12").names(names) == []


@pytest.mark.parametrize(
    "text", ["0/4", "5/4", "a/b", "4", "1/0", "-1/4", "1/4/2", "", "1.5/4", "٣/٤"]
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(WrongValue, match="expected I/N") as refused:
        Shard.of(text)
    assert text in refused.value.problem


def double(number: int) -> int:
    calls.append(number)
    return 2 * number


calls: list[int] = []


def stage() -> "KeptStage[int, int]":
    return KeptStage(name="numbers", case=str, plain=int, result=int)


def kept(folder: Path, way: str = "") -> KeptCases:
    return ShardFolder(path=folder).kept(stage(), InTurn(), way=way)


def test_kept_results_are_computed_once_and_again_if_they_were_made_otherwise(tmp_path) -> None:
    calls.clear()
    assert list(kept(tmp_path).map(double, [3, 1])) == [6, 2]
    assert list(kept(tmp_path).map(double, [1, 2, 3])) == [2, 4, 6]
    assert calls == [3, 1, 2]
    assert list(kept(tmp_path, way="another").map(double, [1])) == [2]
    assert calls == [3, 1, 2, 1]
    path = next((tmp_path / "numbers").iterdir())
    path.write_bytes(path.read_bytes()[:-20])  # cut short
    assert list(kept(tmp_path, way="another").map(double, [1, 2, 3])) == [2, 4, 6]


def test_shards_work_beside_each_other_and_the_whole_alone(tmp_path: Path) -> None:
    folder = ShardFolder(path=tmp_path / "shards/x")
    one, two = Shard.of("1/2"), Shard.of("2/2")
    with folder.doing(one), folder.doing(two):
        with pytest.raises(AutoliverError, match="a shard is being done"), folder.finishing():
            pass
        with pytest.raises(AutoliverError, match="shard 1/2 is being done"), folder.doing(one):
            pass
    list(folder.kept(stage(), InTurn()).map(double, [1]))
    with folder.finishing(), pytest.raises(AutoliverError, match="without --shard"):  # noqa: SIM117
        with folder.doing(one):
            pass
    assert not (tmp_path / "shards").exists()


def killed(command: Sequence[str], folder: Path, begun: Callable[[Path], bool]) -> None:
    """Runs a command, and kills it as soon as it has begun with its work."""
    process = start(list(command), folder)
    until = time.time() + 120
    while process.poll() is None and not begun(folder) and time.time() < until:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    process.wait()


def shards_at_once(command: Sequence[str], folder: Path) -> list[str]:
    """Runs all shards of a command at the same time; returns what each has printed."""
    every = [
        subprocess.Popen(
            [sys.executable, "-m", "autoliver", *command, "--shard", f"{i}/{N}"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(1, N + 1)
    ]
    said = [process.communicate() for process in every]
    assert [process.returncode for process in every] == [0] * N, said
    return [out for out, _ in said]


def files_in(*patterns: str) -> Callable[[Path], bool]:
    return lambda folder: any(any(folder.glob(pattern)) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """A command, the folders that it makes, and how it is seen that it has begun with a case."""

    words: tuple[str, ...]
    made: tuple[str, ...]
    begun: Callable[[Path], bool]


LABELLED = ("--min-confidence", "0", "--volume", "0.001", "9e9", "-m", NAME)
COMMANDS = {
    "plan": Sharded(
        words=("plan", DATA, "--preset", "tiny", "-w", "new"),
        made=("new",),
        begun=files_in("new/shards/*/*/*.json"),
    ),
    "preprocess": Sharded(
        words=("preprocess", NAME, "3d_fullres", "-w", "w"),
        made=("w",),
        begun=files_in("w/*/store/*/*.b2nd"),
    ),
    "evaluate": Sharded(
        words=("evaluate", "-p", "out", "-r", DATA, "-o", "scores", "-w", "w"),
        made=("scores", "w"),
        begun=files_in("w/shards/*/*/*.json"),
    ),
    "predict": Sharded(
        words=(*PREDICT, "-o", "new", "--probabilities", "--uncertainty"),
        made=("new",),
        begun=files_in("new/*.npz"),
    ),
    "pseudolabel": Sharded(
        words=("pseudolabel", UNLABELLED, "new", *LABELLED, "-w", "w"),
        made=("new", "w"),
        begun=files_in("new/labelsTr/*"),
    ),
    "synthesize apply": Sharded(
        words=(
            "synthesize",
            "apply",
            "toy",
            "new",
            "--qc-min-dice",
            "0",
            "-w",
            "w",
        ),
        made=("new", "w"),
        begun=files_in("w/shards/*/translated/*.json"),
    ),
}


def made_by(command: Sharded, folder: Path) -> dict[str, dict[str, str]]:
    """What a command has made; probabilities depend on timing, and times on the clock."""
    found = {each: contents(folder / each) for each in command.made}
    return {
        each: {name: one for name, one in of.items() if not name.startswith("predicted/")}
        for each, of in found.items()
    }


def alone_and_shared(command: Sharded, place: Path, folder: Path) -> dict[str, dict[str, str]]:
    """What a command makes without shards; then the folder is as it was before."""
    shutil.copytree(place, folder)
    finish(list(command.words), folder)
    alone = made_by(command, folder)
    shutil.rmtree(folder)
    shutil.copytree(place, folder)
    return alone


def check_whole(command: Sharded, folder: Path, alone: dict[str, dict[str, str]]) -> None:
    finish(list(command.words), folder)
    assert made_by(command, folder) == alone
    assert not list(folder.glob("**/.shard-*"))
    assert not list(folder.glob("*/shards"))


@pytest.mark.parametrize("name", COMMANDS)
def test_shards_one_after_another_give_what_one_process_gives(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = COMMANDS[name]
    alone = alone_and_shared(command, place, tmp_path / "x")
    monkeypatch.chdir(tmp_path / "x")
    before = {path for path in Path().rglob("*.json") if "shards" not in path.parts}
    for i in (3, 1):  # what the second one would have done is left to the whole
        done = run(*command.words, "--shard", f"{i}/{N}")
        assert done["new"] == len(done["cases"]) == done["cases_of_all_shards"] / N
        assert run(*command.words, "--shard", f"{i}/{N}")["new"] == 0
    new = {path.name for path in Path().rglob("*.json") if "shards" not in path.parts}
    new -= {path.name for path in before}
    assert not new & {"plan.json", "fingerprint.json", "scores.json", "predict.json"} - {
        *(["predict.json"] if name == "pseudolabel" else [])  # says what was asked for
    }
    check_whole(command, tmp_path / "x", alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_shards_at_once_one_of_them_killed_before_give_what_one_process_gives(
    name: str, place: Path, tmp_path: Path
) -> None:
    command, folder = COMMANDS[name], tmp_path / "x"
    alone = alone_and_shared(command, place, folder)
    killed([*command.words, "--shard", f"2/{N}"], folder, command.begun)
    for said in shards_at_once(command.words, folder):
        assert said.rstrip().endswith(f"have ended: {shlex.join(['autoliver', *command.words])}")
    check_whole(command, folder, alone)


@pytest.mark.slow
def test_equal_shards_of_preprocess_at_once_do_no_harm(place: Path, tmp_path: Path) -> None:
    """They take no lock: each writes every case, whole, and the last one stays."""
    command, folder = COMMANDS["preprocess"], tmp_path / "x"
    alone = alone_and_shared(command, place, folder)
    words = [*command.words, "--shard", f"1/{N}", "--workers", "1"]
    twins = [start(words, folder) for _ in range(2)]
    assert [twin.wait() for twin in twins] == [0, 0]
    check_whole(command, folder, alone)
    assert not list(folder.rglob("*.partial.*"))


def test_the_whole_computes_nothing_that_shards_have_done(place, tmp_path, monkeypatch) -> None:
    counted: list[str] = []
    for module, function in ((verify, "check_case"), (fingerprint, "_read_case")):
        real = getattr(module, function)

        def count(case, *, _real=real, **given):
            counted.append(case.name)
            return _real(case, **given)

        count.__module__, count.__qualname__ = real.__module__, real.__qualname__
        monkeypatch.setattr(module, function, count)
    words = ("plan", place / DATA, "--preset", "tiny", "-w", tmp_path / "w")
    for i in range(1, N + 1):
        done = run(*words, "--shard", f"{i}/{N}")
        assert (len(done["cases"]), done["new"], done["cases_of_all_shards"]) == (2, 2, 6)
    assert len(counted) == 12
    assert run(*words, "--shard", f"1/{N}")["new"] == 0
    run(*words)
    assert len(counted) == 12


def test_a_shard_without_cases_says_so_in_one_line(place, tmp_path) -> None:
    words = ("plan", str(place / DATA), "--preset", "tiny", "-w", str(tmp_path / "w"))
    result = CliRunner().invoke(app, [*words, "--shard=9/9"])
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith("Shard 9/9: it has no case, since of 6 cases no more than 6 ")
    assert result.stdout.rstrip().endswith(f"autoliver {' '.join(words)}")


def test_what_shards_cannot_do_is_refused(place, tmp_path) -> None:
    out, data = place / "out", place / DATA
    with pytest.raises(OptionError, match="which labels there are"):
        run("evaluate", "-p", out, "-r", data / "labelsTr", "-w", tmp_path, "--shard", "1/2")
    with pytest.raises(OptionError, match="two predictions"):
        run("evaluate", "-p", out, "-p", out, "-r", data, "--shard", "1/2")
    with pytest.raises(OptionError, match="--overwrite"):
        run(
            *PREDICT[:1],
            "-i",
            data / "imagesTr",
            "-o",
            tmp_path / "x",
            "-w",
            place / "w",
            "--overwrite",
            "--shard",
            "1/2",
        )
    with pytest.raises(DatasetError, match="no plan yet"):
        run("preprocess", data, "-w", tmp_path / "none", "--shard", "1/2")
    with pytest.raises(OptionError, match="takes a plan over"):
        run("plan", data, "--like", "x", "-w", tmp_path / "none", "--shard", "1/2")


def test_the_library_takes_shards(place, tmp_path) -> None:
    done = autoliver.plan(place / DATA, preset="tiny", workspace=tmp_path, shard="2/4")
    assert done.cases == ("PhantomCT_001", "PhantomCT_005")
    with pytest.raises(WrongValue, match="expected I/N"):
        autoliver.predict(place / DATA, tmp_path / "o", workspace=tmp_path, shard="3/2")


def test_locks_of_killed_shards_of_predict_go_with_the_whole(tmp_path: Path) -> None:
    stale = tmp_path / ".shard-1-of-2.lock"
    held = tmp_path / ".shard-2-of-2.lock"
    for path in (stale, tmp_path / f"{stale.name}.json"):
        path.write_text("")
    targets = Targets(jobs=[], record=tmp_path / "predict.json")
    now: Any = SimpleNamespace(way="a" * 12)
    with only_one(held, "it is predicted"), claimed(targets, now):
        assert held.exists()
        assert not stale.exists()
        assert not (tmp_path / f"{stale.name}.json").exists()
