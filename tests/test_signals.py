"""What stops a command stops all its processes, at once, with one line and a code of its own.

The table holds every command that has worker processes. Each is asked to stop in the middle of its
work by each signal: as by a scheduler that signals every process, and as by `kill` of one.
"""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import run

from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset

NAME, MR = "Dataset001_Signals", "Dataset004_MR"
PACKAGE = Path(__file__).parents[1] / "autoliver"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
LINE = "Stopped. Run the same command again to continue."
# What a stop may cost all processes of a command together, the interpreters' ends included.
MOST_CPU_S = 2.0
# The same of trainings, which save and draw their curves.
MOST_CPU_OF_TRAININGS_S = 8.0
CODES = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
    signal.SIGUSR1: 75,
    signal.SIGKILL: -9,
}


@dataclass(frozen=True)
class Member:
    """A command that has processes of its own.

    Attributes:
        words: The command.
        busy: Whether it is in the middle of its work.
        line: Part of what it says when it was stopped by a signal that can be caught.
    """

    words: tuple[object, ...]
    busy: Callable[[Path, int], bool] = lambda _, workers: workers >= 1
    line: str = LINE


def files(pattern: str, count: int = 1) -> Callable[[Path, int], bool]:
    return lambda folder, _: len(list(folder.glob(pattern))) >= count


DATA = f"data/{NAME}"
LONG = ("--tag", "long", "--epochs", 5000, "--iterations", 2, "-w", "w")
MEMBERS = {
    "verify": Member(("verify", DATA, "--workers", 2, "-w", "new")),
    "plan": Member(("plan", DATA, "--workers", 2, "-w", "new")),
    "preprocess": Member(("preprocess", NAME, "3d_fullres", "--workers", 2, "-w", "w")),
    "evaluate": Member(
        (
            *("evaluate", "-p", f"{DATA}/labelsTr", "-r", f"{DATA}/labelsTr", "-d", NAME),
            *("--workers", 2, "-w", "w", "-o", "out"),
        )
    ),
    "pool": Member(
        (
            *("pool", "both/Dataset009_Both", "--add", NAME, "--add", "Dataset002_More"),
            *("--workers", 2, "-w", "w"),
        ),
    ),
    "train": Member(
        ("train", NAME, "2d", "--fold", 1, "--cache", "disk", "--workers", 2, *LONG),
        files("w/*/runs/2d+long/fold_1/progress.jsonl"),
        "the state is saved",
    ),
    "queue": Member(
        ("train", NAME, "2d", "--fold", "1,2", "--jobs", 2, "--workers", 2, *LONG),
        files("w/*/runs/2d+long/fold_*/resume.pt", 2),
        "the progress is saved",
    ),
    "predict": Member(
        ("predict", "-i", f"{DATA}/imagesTr", "-o", "out", "-m", NAME, "-w", "w", "--exact"),
        files("out/*.nii.gz"),
    ),
    "adopt": Member(
        (
            *("adopt", "out/Dataset009_Corrected", "-i", f"{DATA}/imagesTr"),
            *("-p", f"{DATA}/labelsTr", "--like", DATA, "--workers", 2, "-w", "w"),
        )
    ),
    "pseudolabel": Member(
        (
            *("pseudolabel", "data/Dataset003_Unlabelled", "out/Dataset009_Labelled", "-w", "w"),
            *("-m", NAME, "--min-confidence", 0, "--volume", 0, 100000),
        ),
        files("out/**/*.nii.gz"),
    ),
    "fit": Member(
        (
            *("synthesize", "fit", "--from", NAME, "--to", MR, "-o", "long"),
            *("--features", 4, "--blocks", 1, "--patch", 32, 32, "--iterations", 1),
            *("--epochs", 5000, "-w", "w"),
        ),
        files("w/synthesis/long/resume.pt"),
        "the state is saved",
    ),
    "apply": Member(
        (
            *("synthesize", "apply", "labels", "out/Dataset009_Synthetic"),
            *("--judge", MR, "-w", "w"),
        ),
        files("out/**/*.nii.gz"),
    ),
}
QUICK = {("preprocess", signal.SIGUSR1, True)}


def test_no_other_processes_are_started_than_those_of_the_table() -> None:
    starts = {"ProcessPoolExecutor", "Popen", "Process", "fork", "posix_spawn"}
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in starts
    }
    assert found == {
        "parallel.py",  # verify to pool: `map_cases`
        "training/patches/loader.py",  # train
        "pipeline/run/fold_queue.py",  # queue
        "cli/cluster.py",  # by workers of a cluster: test_cluster.py
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets, which are planned."""
    place = tmp_path_factory.mktemp("place")
    for name, seed, contrast in ((NAME, 1, "CT"), ("Dataset002_More", 2, "CT"), (MR, 3, "T2")):
        options = PhantomOptions(
            contrast=contrast, shape_zyx=(32, 96, 96), spacing_mm=(6.0, 4.0, 4.0)
        )
        write_phantom_dataset(place / "data", name=name, cases=10, seed=seed, options=options)
        run("plan", place / "data" / name, "--preset", "tiny", "-w", place / "w")
    return place


@pytest.fixture(scope="module")
def trained(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """They with a model of CT, one of MR, and a translation."""
    place = Path(shutil.copytree(place, tmp_path_factory.mktemp("trained") / "place"))
    short = ("--epochs", 1, "--iterations", 1)
    for name in (NAME, MR):
        run("train", name, "2d", "--fold", 0, *short, "-w", place / "w")
    labels = ("--from", NAME, "--to", MR, "-o", "labels", "--model", "labels")
    run("synthesize", "fit", *labels, "-w", place / "w")
    unlabelled = place / "data/Dataset003_Unlabelled"
    shutil.copytree(place / DATA, unlabelled)
    shutil.rmtree(unlabelled / "labelsTr")
    return place


def processes(mark: str) -> dict[int, tuple[int, float]]:
    """Processor time in seconds and parent of each process whose environment has the mark."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() not in (folder / "environ").read_bytes():
                    continue
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                ticks = int(fields[11]) + int(fields[12])
                found[int(folder.name)] = (int(fields[1]), ticks / os.sysconf("SC_CLK_TCK"))
    return found


def wait_for(what: Callable[[], bool], problem: str, seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, problem
        time.sleep(0.02)


def workers_of(process: int, mark: str) -> int:
    """Number of the processes that a process of its own has forked."""
    there = processes(mark)
    return sum(there.get(parent, (0, 0.0))[0] == process for parent, _ in there.values())


@pytest.mark.parametrize(
    ("name", "number", "every"),
    [
        pytest.param(
            *(name, number, every),
            marks=() if (name, number, every) in QUICK else pytest.mark.slow,
            id=f"{name}-{number.name}-{'every' if every else 'one'}",
        )
        for name in MEMBERS
        for number in CODES
        for every in (True, False)
        if not (every and number == signal.SIGKILL)
    ],
)
def test_a_stop_ends_all_processes(
    name: str,
    number: signal.Signals,
    every: bool,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    member, here = MEMBERS[name], tmp_path / "here"
    fixture = "trained" if name in ("predict", "pseudolabel", "apply") else "place"
    shutil.copytree(request.getfixturevalue(fixture), here)
    mark = f"AUTOLIVER_TEST_{time.monotonic_ns()}"
    with (tmp_path / "err").open("wb") as told:
        process = subprocess.Popen(
            # A test may itself run in the background, where Ctrl-C is ignored.
            ["env", "--default-signal", f"{mark}=1", sys.executable, "-m", "autoliver"]
            + [str(word) for word in member.words],
            cwd=here,
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,
        )

    def busy() -> bool:
        assert process.poll() is None, (tmp_path / "err").read_text()
        return member.busy(here, workers_of(process.pid, mark))

    try:
        wait_for(busy, "it did not begin")
        before = processes(mark)
        (os.killpg if every else os.kill)(process.pid, number)
        last: dict[int, tuple[int, float]] = {}

        def gone() -> bool:
            there = processes(mark)
            last.update(there)
            return process.poll() is not None and not there

        wait_for(gone, "a process outlives the command", seconds=60.0)
        assert process.returncode == CODES[number]
        spent_s = sum(cpu - before.get(pid, (0, 0.0))[1] for pid, (_, cpu) in last.items())
        trains = "saved" in member.line
        assert spent_s < (MOST_CPU_OF_TRAININGS_S if trains else MOST_CPU_S)
    finally:
        for pid in processes(mark):
            os.kill(pid, signal.SIGKILL)
    lines = (tmp_path / "err").read_text().replace("\r", "\n").splitlines()
    if number != signal.SIGKILL:
        line = LINE if number == signal.SIGINT else member.line
        assert sum(line in said for said in lines) == 1, lines
        assert not any("Traceback" in said for said in lines), "\n".join(lines)


# In a file of its own, since worker processes import it. The expression has an exponential number
# of ways to match, and no other thread of the process runs meanwhile.
STUBBORN = """
import re
from pathlib import Path

def work(folder):
    Path(folder, "begun").touch()
    re.match("(a+)+b", "a" * 40)

if __name__ == "__main__":
    import sys
    from autoliver.parallel import CasePool, Limits, Need
    import stubborn
    pool = CasePool(
        what="stage", limits=Limits(workers=1, memory_gb=0.2), need=lambda _: Need(name="x", gb=0.1)
    )
    list(pool.map(stubborn.work, sys.argv[1:]))
"""


def test_a_worker_ends_with_its_parent_whatever_it_computes(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    mark = f"AUTOLIVER_TEST_{time.monotonic_ns()}"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", tmp_path / "stubborn.py", tmp_path],
        env={**os.environ, mark: "1"},  # noqa: TID251
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for((tmp_path / "begun").exists, "it did not begin", seconds=60)
        assert len(processes(mark)) > 1
        process.kill()
        process.wait()
        wait_for(lambda: not processes(mark), "the worker goes on", seconds=15)
    finally:
        for pid in processes(mark):
            os.kill(pid, signal.SIGKILL)
