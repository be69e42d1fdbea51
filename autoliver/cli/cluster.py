"""Shards of a command on a dask cluster: --dask ADDRESS.

Workers run the same command with --shard, in a process of its own, on folders that all machines
share. So only the command's words go to a worker, and only one line comes back: images and label
maps never travel. A worker that is killed takes one process with it; the shard begins again
elsewhere and skips the cases that are finished.
"""

import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from autoliver.artifacts import json_value
from autoliver.cli.help import words_without
from autoliver.cli.options import WORKSPACE_VARIABLE
from autoliver.cli.output import say
from autoliver.errors import ArtifactError, AutoliverError, MachineError, OptionError
from autoliver.parallel import bar_pace
from autoliver.system import TRY_AGAIN, in_words, stop_with_parent
from autoliver.values import counted

# Shards for each task that the cluster can run at a time: the last ones end at about the same time.
_SHARDS_EACH = 4
# Tasks that are given to the cluster at a time, for each that it can run.
_WINDOW = 2
# How often a shard is given to the cluster if its command was ended from outside.
_TRIES = 3
_SHOWN_LINES = 3  # of what a shard has said
_WARNINGS = ("Warning: ", "WARNING ")
_LOOK_S = 2.0  # how often a worker looks whether the command still waits
_WAIT = "30s"
_PROGRAM = "from autoliver.cli.cluster import run_with_parent; run_with_parent({})"
# Exit codes of a command that was ended by a signal, or asks to be started again.
_AGAIN = frozenset({TRY_AGAIN, *(128 + number for number in (signal.SIGKILL, signal.SIGTERM))})


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs to run one shard.

    Attributes:
        words: The words of the command line, without the name of the program and --shard.
        folder: The folder in which the command was given.
        shard: The shard, such as "3/8".
        token: A file that the worker must see, on the folders that all machines share.
        version: The version that gave the command.
    """

    words: tuple[str, ...]
    folder: str
    shard: str
    token: str
    version: str


def spread(address: str, workspace: Path) -> None:
    """Runs all shards of the command line that is being run on the workers of a dask cluster.

    Afterwards the caller goes on as without --dask, and finds all cases finished.

    Args:
        address: Address of the scheduler, such as tcp://node1:8786, or its scheduler file.
        workspace: The workspace, in which workers are shown that they see the same files.

    Raises:
        OptionError: dask is not installed.
        MachineError: The scheduler cannot be reached, has no workers, or they see other files.
        AutoliverError: Workers cannot do shards; the message holds what the first one said.
    """
    say(f"Waiting for the scheduler at {address}")
    client = _client(address)
    try:
        with _token(workspace) as token, client.as_current():
            _run_all(client, address, token)
    finally:
        client.close()


def run_shard(job: Job) -> dict[str, Any]:
    """Runs one shard; this is what a worker does.

    Returns:
        "cases" and "new", the numbers of cases of the shard and of those worked on now, and its
        "warnings"; "again", if it was begun before, on a worker that was lost or whose
        command was ended from outside; "failed": what the command said that could not do it; or
        "error": why this worker can do no shard.

    Raises:
        RuntimeError: The command was ended from outside, and may be tried again.
    """
    if version("autoliver") != job.version:
        return {"error": f"it has autoliver {version('autoliver')}, expected {job.version}"}
    if not Path(job.token).is_file() or not Path(job.folder).is_dir():
        return {"error": f"it does not see {Path(job.token).parent} or {job.folder}"}
    began = Path(f"{job.token}.{job.shard.replace('/', '-')}")
    more = {"again": True} if began.exists() else {}
    if Path(job.token).is_file():
        began.touch()
    code, output, errors = _ended(job)
    if code < 0 or code in _AGAIN:
        raise RuntimeError(f"shard {job.shard} was ended from outside ({code})")
    try:
        told = json_value(output.encode(), where=f"shard {job.shard}")
    except ArtifactError:
        told = {}
    if code and "cases" not in told:
        last = "\n".join(errors.strip().splitlines()[-_SHOWN_LINES:])
        return {"failed": told.get("error") or last or f"exit code {code}", **more}
    warnings = [line for line in errors.splitlines() if line.startswith(_WARNINGS)]
    found = {"cases": len(told["cases"]), "new": told["new"], "warnings": warnings}
    return {**found, **more}


def _distributed() -> Any:
    """The package distributed, which has types in part."""
    import distributed

    return distributed


def _client(address: str) -> Any:
    try:
        distributed = _distributed()
    except ImportError:
        raise OptionError(
            "--dask needs the package distributed, which is not installed.",
            hint="Install it here and where the workers run: pip install 'autoliver[dask]'",
        ) from None
    # What it tells of connections that close, with tracebacks, is no fault of a command.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    where = "scheduler_file" if Path(address).is_file() else "address"
    try:
        return distributed.Client(**{where: address}, timeout=_WAIT, set_as_default=False)
    except (OSError, ValueError) as error:  # a TimeoutError is an OSError
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MachineError(
            f"--dask {address}: the scheduler does not answer: {reason}.",
            hint="Start one with `dask scheduler`, and workers with `dask worker ADDRESS`; it "
            "prints the address, such as tcp://192.168.0.2:8786.",
        ) from None


@contextlib.contextmanager
def _token(workspace: Path) -> Iterator[Path]:
    """A file in the workspace while the block runs, which workers on the same files see."""
    path = workspace.absolute() / f".dask-{secrets.token_hex(8)}"
    with in_words(path, verb="written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        yield path
    finally:
        for mark in (path, *path.parent.glob(f"{path.name}.*")):
            mark.unlink(missing_ok=True)


def _run_all(client: Any, address: str, token: Path) -> None:
    from tqdm import tqdm

    slots = sum(client.nthreads().values())
    if not slots:
        raise MachineError(
            f"--dask {address}: this cluster has no workers.",
            hint=f"Start some, where autoliver is installed: dask worker {address}",
        )
    count = slots * _SHARDS_EACH

    shards: dict[str, str] = {}

    def submit(job: Job) -> Any:
        # A worker that dies is replaced by dask, which does not count as a try.
        future = client.submit(run_shard, job, pure=False, retries=_TRIES - 1)
        shards[future.key] = job.shard
        return future

    jobs = _jobs(count, token)
    running = _distributed().as_completed(map(submit, islice(jobs, slots * _WINDOW)))
    problems: list[str] = []
    failed: list[str] = []
    warnings: dict[str, None] = {}
    cases = new = 0
    say(f"{counted(count, 'shard')} on {counted(slots, 'worker thread')}")
    with tqdm(total=count, desc="shards", unit="shard", **bar_pace()) as bar:
        for future in running:
            told = _told(future, shards[future.key])
            if "error" in told:
                problems.append(told["error"])
            elif "failed" in told:
                failed.append(told["failed"])
            else:
                cases, new = cases + told["cases"], new + told["new"]
                warnings.update(dict.fromkeys(told["warnings"]))
            bar.update()
            following = next(jobs, None)
            if following is not None:
                running.add(submit(following))
    for warning in warnings:
        say(warning)
    if problems:
        raise AutoliverError(
            f"--dask {address}: {counted(len(problems), 'shard')} failed; the first one: "
            f"{problems[0]}",
            hint="What is finished is kept: mend the problem and give the same command again.",
        )
    if failed:  # the command that makes the whole meets the same, and says what is to be done
        say(f"Warning: {counted(len(failed), 'shard')} failed; the first one: {failed[0]}")
    say(f"{counted(cases, 'case')} on the cluster, {cases - new} of them finished before")


def _jobs(count: int, token: Path) -> Iterator[Job]:
    words = tuple(word for word in words_without("--dask") if word != "--json")
    folder, own = str(Path.cwd()), version("autoliver")
    for number in range(1, count + 1):
        shard = f"{number}/{count}"
        yield Job(words=words, folder=folder, shard=shard, token=str(token), version=own)


def _told(future: Any, shard: str) -> dict[str, Any]:
    """What the task of a shard has returned, or why it came to nothing; says if it began again."""
    try:
        result: dict[str, Any] = future.result()
    except Exception as error:  # noqa: BLE001
        # dask's own errors among them: its text is what can be told.
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    if result.get("again"):
        say(f"Shard {shard} was begun again, since its worker was lost.")
    return result


def _ended(job: Job) -> tuple[int, str, str]:
    """Runs the command of a shard: its exit code, and what it wrote on stdout and stderr.

    It is ended when the token is gone, and with it the command that waits for the shard.
    """
    at = job.words.index("--") if "--" in job.words else len(job.words)
    words = [*job.words[:at], "--shard", job.shard, "--json", *job.words[at:]]
    where = {**os.environ, WORKSPACE_VARIABLE: str(Path(job.token).parent)}  # noqa: TID251 - passed on
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM.format(os.getpid()), *words],
        cwd=job.folder,
        env=where,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        while True:
            try:
                output, errors = child.communicate(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                if not Path(job.token).is_file():
                    child.terminate()
            else:
                return child.returncode, output, errors


def run_with_parent(parent: int) -> None:
    """Runs the command line of this process, which ends when its parent ends.

    A worker that is killed cannot end its children itself.

    Args:
        parent: Number of the worker's process.
    """
    from autoliver.__main__ import main

    stop_with_parent(signal.SIGKILL, parent=parent)  # another worker is about to take its shard
    main()
