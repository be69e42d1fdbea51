"""Work that only one process may do at a time, such as training one fold.

The lock ends with the process that holds it, however that ends. Beside it lies who holds it, for
the message to another process.
"""

import contextlib
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import ClassVar

import filelock

from autoliver.artifacts import Artifact, machine_key, replacing
from autoliver.errors import AutoliverError, Taken
from autoliver.system import entries, in_words

# How long a lock is tried for that nobody seems to hold or whose folder comes and goes, and how
# often.
_PATIENCE_S, _LOOK_S = 1.0, 0.02
# No work that is done in turn takes as long.
_TURN_S = 1800.0
_TIME = "%Y-%m-%d %H:%M:%S"
_PROC = Path("/proc")
# Fields of /proc/PID/stat behind the name of the program: its state, and when it began.
_STATE, _BEGUN = 0, 19
# By so much the clock may have been set since.
_CLOCK_SECONDS = 60.0
_KINDS = re.compile(r"\.(?P<name>.+)\.(?P<kind>[^.]+)\.[^.]+\.lock")


class Holder(Artifact, frozen=True, kw_only=True):
    """Who holds a lock.

    Attributes:
        host: Name of the machine.
        process: Number of the process there.
        since: When it began, local time.
        parts: What it will do one after another, such as the folds of a run.
        machine: What tells machines of one name apart, and containers on one machine; empty if
            that is not known.
        begun: When the process began, in the system's ticks since it was started; None if that is
            not known. Unlike `since`, it does not depend on a clock that may be set.
    """

    KIND: ClassVar[str] = "lock"

    host: str
    process: int
    since: str
    parts: tuple[str, ...] = ()
    machine: str = ""
    begun: int | None = None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"

    def is_alive(self, proc: Path = _PROC) -> bool | None:
        """Whether its process still runs; None if that cannot be told from here.

        Nothing is touched, so unlike `is_held` it cannot get into the way of a process that is
        about to take the lock.

        Args:
            proc: Where the system shows its processes.
        """
        if self.host != socket.gethostname() or sys.platform == "win32":
            return None
        if self.machine not in ("", machine_key()):
            return None
        try:
            # Without /proc, as on macOS: signal 0 is not sent, only asked for.
            if not (proc / "self").exists():
                os.kill(self.process, 0)
                return True
            fields = _fields(proc, self.process)
            boot = re.search(r"^btime (\d+)", (proc / "stat").read_text(), re.MULTILINE)
        except PermissionError:  # it is another user's
            return True
        except OSError:
            return False
        if fields[_STATE] in ("Z", "X"):  # it has ended, and its parent has not noticed yet
            return False
        if self.begun is not None:
            return self.begun == int(fields[_BEGUN])
        if boot is None:
            return True
        begun = int(boot[1]) + int(fields[_BEGUN]) / os.sysconf("SC_CLK_TCK")
        # A younger process has got the number of one that has ended.
        return begun < time.mktime(time.strptime(self.since, _TIME)) + _CLOCK_SECONDS


def _fields(proc: Path, process: int) -> list[str]:
    """What the system's table says of a process, behind the name of its program."""
    return (proc / str(process) / "stat").read_text().rpartition(")")[2].split()


def _begun() -> int | None:
    """When this process began, in ticks since the system was started; None if it does not tell."""
    try:
        return int(_fields(_PROC, os.getpid())[_BEGUN])
    except OSError:
        return None


@contextlib.contextmanager
def only_one(path: Path, what: str, *, parts: Collection[str] = ()) -> Iterator[None]:
    """Holds a lock while the block runs.

    Args:
        path: The lock's file; its folder is created if it is missing.
        what: What is done by whoever holds the lock, for the message: "fold 0 is being trained".
        parts: As in `Holder`.

    Raises:
        AutoliverError: Another process holds the lock; the message says which.
        MachineError: The folder cannot be written.
    """
    new = not path.parent.exists()
    with in_words(path, verb="written"):
        lock = _acquired(path, what)
    try:
        Holder(
            host=socket.gethostname(),
            process=os.getpid(),
            since=time.strftime(_TIME),
            parts=tuple(parts),
            machine=machine_key(),
            begun=_begun(),
        ).save(_holder(path))
        yield
    finally:
        with contextlib.suppress(OSError):
            _holder(path).unlink(missing_ok=True)
            # While it is still held: nobody waits for it, and the next one makes a new file.
            path.unlink(missing_ok=True)
        lock.release()
        if new:  # what was refused leaves nothing behind
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _acquired(path: Path, what: str) -> filelock.BaseFileLock:
    """Takes a lock, or raises who has it.

    It may be given back or be looked at in this moment, or its holder may just be written, so that
    it is tried for a while unless a living process is known to hold it.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return _held(path, timeout=0)
        except filelock.Timeout:
            holder = holder_of(path)
        if time.monotonic() > until or (holder is not None and holder.is_alive()):
            raise _taken(path, what)
        time.sleep(_LOOK_S)


def _held(path: Path, *, timeout: float) -> filelock.BaseFileLock:
    """Takes a lock whose file and folder other processes may make and remove at any moment.

    Args:
        path: The lock's file; its folder is created if it is missing.
        timeout: How long to wait for whoever holds the lock, in seconds.

    Raises:
        filelock.Timeout: It is held for longer.
        OSError: The folder cannot be made.
    """
    until = None
    while True:
        lock = filelock.FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout)
        # Another process has removed the folder between two steps. mkdir says that something is in
        # the way if the folder was there when it began, and is gone when it looks.
        except (FileNotFoundError, FileExistsError):
            until = until or time.monotonic() + _PATIENCE_S
            if time.monotonic() > until:
                raise
            time.sleep(_LOOK_S)
            continue
        if path.exists():
            return lock
        lock.release()  # of a file that another process has just removed


@contextlib.contextmanager
def in_turn(path: Path, what: str) -> Iterator[None]:
    """Waits until no other process is in such a block for the same lock, on any machine.

    Args:
        path: The lock's file; its folder is created if it is missing.
        what: As for `only_one`.

    Raises:
        AutoliverError: Another process has held the lock for half an hour.
        MachineError: The folder cannot be written.
    """
    with in_words(path, verb="written"):
        try:
            lock = _held(path, timeout=_TURN_S)
        except filelock.Timeout:
            raise _taken(path, what) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: those who wait make a new file
        lock.release()


@contextlib.contextmanager
def only_writing(path: Path) -> Iterator[Path]:
    """Replaces a file or folder like `artifacts.replacing`, one process at a time.

    What an earlier process has left that was killed meanwhile is removed.

    Yields:
        The temporary path.

    Raises:
        AutoliverError: Another process writes it; the message says which.
        MachineError: The system refuses to write.
    """
    lock = path.with_name(f".{path.name}.lock")
    with only_one(lock, f"{path.name} is being written"), replacing(path, alone=True) as beside:
        yield beside


@contextlib.contextmanager
def only_one_kind(
    folder: Path, name: str, kind: str, what: str, *, beside: Collection[str] = ()
) -> Iterator[None]:
    """Holds a folder for work of one kind while the block runs; others may do the same work beside.

    Args:
        folder: The folder; it is created if it is missing.
        name: What is worked on in the folder. Work on something else is free.
        kind: What may be done at the same time: a digest of all that decides the result.
        what: As for `only_one`.
        beside: Further names that no work of another kind may hold.

    Raises:
        AutoliverError: Another process does work of another kind; the message says which.
        MachineError: The folder cannot be written.
    """
    with only_one(folder / f".{name}.{kind}.{secrets.token_hex(4)}.lock", what):
        # Of two that begin at once, at least one sees the lock of the other.
        for other in entries(folder, ".*.lock"):
            held = _KINDS.fullmatch(other.name)
            if held and held["name"] in {name, *beside}:
                if held["kind"] != kind:
                    check_free(other, what)
                remove_if_stale(other)
        yield


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the same folder, for a moment's work.

    Disks that cannot lock a folder, and systems other than Unix, let all in at once.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def remove_if_stale(path: Path) -> None:
    """Removes the lock of a process that was killed; one that is held stays.

    Args:
        path: The lock's file.
    """
    with contextlib.suppress(OSError):  # another process may be doing the same
        if not path.exists():
            return
        lock = filelock.FileLock(path)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return
        try:  # while it is held: a process that has opened it sees that it is gone
            _holder(path).unlink(missing_ok=True)
            path.unlink()
        finally:
            lock.release()


def check_free(path: Path, what: str) -> None:
    """Refuses work that another process is doing.

    Args:
        path: The lock's file.
        what: As for `only_one`.

    Raises:
        AutoliverError: Another process holds the lock.
    """
    if is_held(path):
        raise _taken(path, what)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock."""
    if not path.exists():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def holder_of(path: Path) -> Holder | None:
    """Who holds a lock, or has held it until killed; None if nobody does or it is not known."""
    try:
        return Holder.load(_holder(path))
    except AutoliverError:  # it has not been written yet, or not any more
        return None


def _holder(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _taken(path: Path, what: str) -> Taken:
    holder = holder_of(path)
    who = " by another process" if holder is None else f" by {holder}"
    return Taken(
        f"{path.parent}: {what}{who}.",
        hint="Wait until it has ended, or stop it.",
    )
