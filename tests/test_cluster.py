"""--dask: shards of a command on the workers of a real cluster of several processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import run
from typer.testing import CliRunner

from autoliver.cli.cluster import _PROGRAM, Job, _ended, run_shard
from autoliver.cli.main import app
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

distributed = pytest.importorskip("distributed")

NAME = "Dataset001_Phantom"
CASES = 10


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    options = PhantomOptions(contrast="CT", shape_zyx=(16, 32, 32), spacing_mm=(8.0, 6.0, 6.0))
    write_phantom_dataset(folder / "data", name=NAME, cases=CASES, seed=0, options=options)
    run("plan", folder / "data" / NAME, "--preset", "tiny", "-w", folder / "workspace")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two workers, each a process of its own with a nanny that replaces it."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as made:
        yield made


@pytest.fixture
def place(first: Path, tmp_path: Path) -> Path:
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    return tmp_path


def stored(workspace: Path) -> dict[str, bytes]:
    """The arrays and notes of all cases of the stores."""
    folder = workspace / NAME / "store"
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def is_at_work(process: int) -> bool:
    """Whether a process runs; what nobody has asked for its end stays in the table as a zombie."""
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
@pytest.mark.parametrize(("alive", "code"), [(True, 0), (False, -signal.SIGKILL)])
def test_a_shard_whose_worker_died_while_it_was_imported(alive: bool, code: int) -> None:
    worker = os.getpid() if alive else 2**22 + 1  # no process has a number beyond 2**22
    command = [sys.executable, "-c", _PROGRAM.format(worker), "--version"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == code


def test_a_worker_that_is_killed_loses_nothing(place: Path, cluster: Any, first: Path) -> None:
    """The whole is that of a run without a cluster, byte by byte."""
    alone = place / "alone"
    shutil.copytree(first / "workspace", alone)
    run("preprocess", NAME, "2d", "-w", alone)
    killed: list[int] = []

    def kill() -> None:
        """Kills a worker that runs a shard, as soon as there is one."""
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            for worker in cluster.workers.values():
                shards = [
                    child
                    for child in psutil.Process(worker.pid).children()
                    if "--shard" in " ".join(child.cmdline())
                ]
                if shards:
                    killed.extend(child.pid for child in shards)
                    os.kill(worker.pid, signal.SIGKILL)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    done = invoke(
        *("preprocess", NAME, "2d", "-w", place / "workspace"),
        *("--dask", cluster.scheduler_address),
    )
    thread.join()
    assert done.exit_code == 0, done.output
    assert killed
    until = time.monotonic() + 30
    while any(map(is_at_work, killed)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_at_work, killed)), "its shard went on without it"
    assert f"{CASES} cases on the cluster" in done.stderr
    assert re.search(r"Shard \d+/8 was begun again, since its worker was lost\.", done.stderr)
    assert not list((place / "workspace").glob(".dask-*"))
    assert stored(place / "workspace") == stored(alone)


def test_predictions_are_those_of_one_process(place: Path, cluster: Any) -> None:
    work, images = ("-w", place / "workspace"), place / "data" / NAME / "imagesTr"
    run("train", NAME, "2d", "--fold", "all", "--epochs", 1, "--iterations", 1, *work)
    common = ("predict", "-i", images, "--exact", *work, "-m", f"{NAME}/2d", "--threads", 1)
    run(*common, "-o", place / "alone")
    done = invoke(*common, "-o", place / "spread", "--dask", cluster.scheduler_address)
    assert done.exit_code == 0, done.output
    assert f"{CASES} cases on the cluster" in done.stderr
    names = sorted(path.name for path in (place / "alone").glob("*.nii.gz"))
    assert len(names) == CASES
    for name in names:
        assert (place / "spread" / name).read_bytes() == (place / "alone" / name).read_bytes()


def test_a_cluster_and_a_shard_exclude_each_other(place: Path) -> None:
    done = invoke("plan", place / "data" / NAME, "--dask", "tcp://x:1", "--shard", "1/2")
    assert "exclude each other" in str(done.exception)


def test_an_address_that_does_not_answer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoliver.cli.cluster._WAIT", "1s")
    words = ("preprocess", NAME, "-w", place / "workspace", "--dask", "tcp://127.0.0.1:9")
    done = invoke(*words)
    assert str(done.exception).startswith("--dask tcp://127.0.0.1:9: the scheduler does not answer")
    assert not list((place / "workspace").glob(".dask-*"))


def test_what_a_shard_says_is_told(place: Path, cluster: Any) -> None:
    done = invoke(
        *("preprocess", "Nothing", "-w", place / "workspace"),
        *("--dask", cluster.scheduler_address),
    )
    assert "8 shards failed; the first one: There is no folder" in done.stderr
    assert str(done.exception).startswith("There is no folder")


def test_a_case_that_fails_is_told_by_the_whole(place: Path, cluster: Any) -> None:
    work, images = ("-w", place / "workspace"), place / "data" / NAME / "imagesTr"
    run("train", NAME, "2d", "--fold", "all", "--epochs", 1, "--iterations", 1, *work)
    bad = sorted(images.iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:300])
    done = invoke(
        *("predict", "-i", images, "-o", place / "out", "-m", f"{NAME}/2d", *work),
        *("--dask", cluster.scheduler_address),
    )
    assert "1 shard failed; the first one: Phantom_003: " in done.stderr
    assert "Phantom_003: " in str(done.exception)
    assert len(list((place / "out").glob("*.nii.gz"))) == CASES - 1
    assert (place / "out/predict.json").exists()


def test_a_shard_ends_with_the_command_that_waits_for_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoliver.cli.cluster._LOOK_S", 0.1)
    token = place / "workspace/.dask-x"  # gone: the command has been stopped
    job = Job(
        words=(
            "preprocess",
            NAME,
            "2d",
            "--",
        ),
        folder=str(place),
        shard="1/2",
        token=str(token),
        version="1",
    )
    monkeypatch.setattr("autoliver.cli.cluster._PROGRAM", "import time; time.sleep(60)")
    begun = time.monotonic()
    code, _, _ = _ended(job)
    assert code == -signal.SIGTERM
    assert time.monotonic() - begun < 30


def test_words_behind_the_options_stay_there(place: Path) -> None:
    """The workspace is that of the command, whatever says where it is."""
    token = place / "workspace/.dask-x"
    token.touch()
    job = Job(
        words=("preprocess", "--", NAME, "2d"),
        folder=str(place),
        shard="1/2",
        token=str(token),
        version=version("autoliver"),
    )
    assert run_shard(job) == {"cases": CASES // 2, "new": CASES // 2, "warnings": []}


def test_workers_that_see_other_files_are_refused(tmp_path: Path) -> None:
    """Else all cases would be done again by who gave the command, who finds none finished."""
    job = Job(
        words=("preprocess",),
        folder=str(tmp_path),
        shard="1/2",
        token=str(tmp_path / "ws/.dask-x"),
        version=version("autoliver"),
    )
    assert run_shard(job) == {"error": f"it does not see {tmp_path / 'ws'} or {tmp_path}"}
    other = Job(**{**job.__dict__, "version": "0"})
    assert "expected 0" in run_shard(other)["error"]


def test_json_is_one_object(place: Path, cluster: Any) -> None:
    done = invoke(
        *("preprocess", NAME, "2d", "-w", place / "workspace", "--json"),
        *("--dask", cluster.scheduler_address),
    )
    assert json.loads(done.stdout)
