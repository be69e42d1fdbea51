"""Errors of the operating system, said in words: which path, what the system says, what to do.

Files are read and written in many places. Only `in_words` decides which of the system's errors
belong to the user's machine (a full disk, a missing permission, a share that is gone) and which are
bugs of this package. It is entered once around every command and every function of the library, and
inside where more is known, such as the file that was about to be written.
"""

import contextlib
import ctypes
import errno
import fnmatch
import io
import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from autoliver.errors import MachineError

_BLOCK_BYTES = 1 << 24

_AGAIN = "then run the same command again: finished work is kept."
_RIGHTS = "Check the permissions of the file and its folders (ls -ld), or ask their owner."
_SHARE = f"Check that the disk or network share is connected, {_AGAIN}"
_ROOM = f"Free some space, or choose another disk with --workspace or -o; {_AGAIN}"

_NOWHERE = (
    "Nothing can be made there: choose another folder, e.g. with --workspace. If its folder was "
    f"moved or its disk disconnected, put it back, {_AGAIN}"
)

# What asks a process to end: a scheduler or user, the loss of the terminal, and a scheduler that
# will start the same command again (the latter two not on Windows).
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
# The exit code that asks a scheduler to start the same command again: EX_TEMPFAIL of sysexits.h.
TRY_AGAIN = 75

# Errors that point to a bug of this package, or that end a command quietly (EPIPE).
_BUGS = (errno.EBADF, errno.EFAULT, errno.EPIPE)
_ANY = f"The system refuses this: check the disk, share and limits, {_AGAIN}"
# What to do about each error; about others, `_ANY`.
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: f"Raise the limit on the size of files (ulimit -f), or choose a disk whose files "
    f"may be larger; {_AGAIN}",
    errno.EROFS: "Choose a folder on a disk that may be written to, with --workspace or -o.",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: f"Was it moved or deleted, or its disk disconnected? Put it back, {_AGAIN}",
    errno.ENOTDIR: "A file is where a folder is expected: move it away, or choose another folder, "
    "with --workspace or -o.",
    errno.EISDIR: "A folder is where a file is expected: move it away, or choose another path.",
    errno.EEXIST: "Something of this name is in the way: move it, or choose another folder.",
    errno.ENOTEMPTY: "Something of this name is in the way: move it, or choose another folder.",
    errno.ENAMETOOLONG: "Shorten the name of the case, dataset or folder; most disks take 255 "
    "bytes for a name.",
    errno.EINVAL: "This disk does not take such a name or file; choose another name or disk.",
    errno.EILSEQ: "This disk does not take such a name; choose another name or disk.",
    errno.ELOOP: "Links point in a circle: replace them with the files they stand for.",
    errno.EIO: "The disk or network share reports a failure: check it, and copy the file from "
    "another place if there is one.",
    errno.ESTALE: f"The share was changed on its server: connect it again, {_AGAIN}",
    errno.ETIMEDOUT: _SHARE,
    errno.ENOTCONN: _SHARE,
    errno.EHOSTDOWN: _SHARE,
    errno.EHOSTUNREACH: _SHARE,
    errno.ENODEV: _SHARE,
    errno.ENXIO: _SHARE,
    errno.EBUSY: f"Something else uses it: wait or close that, {_AGAIN}",
    errno.ETXTBSY: f"Something else uses it: wait or close that, {_AGAIN}",
    errno.EMFILE: f"Raise the limit on open files (ulimit -n 4096), or use --workers 1; {_AGAIN}",
    errno.ENFILE: f"All programs together have too many files open: close some, {_AGAIN}",
    errno.ENOMEM: "Close other programs, use fewer processes (--workers 1), or a machine with more "
    "memory.",
    errno.EAGAIN: f"Raise the limit on processes (ulimit -u), or use --workers 1; {_AGAIN}",
}


def say_if_slow(text: str, *, seconds: float = 1.0) -> threading.Timer:
    """Prints a line on stderr if this process still runs after a moment.

    Args:
        text: The line.
        seconds: How long a moment is.

    Returns:
        What waits; `cancel` keeps it from saying anything.
    """

    def say() -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    waiting = threading.Timer(seconds, say)
    waiting.daemon = True
    waiting.start()
    return waiting


def code_after(number: int) -> int:
    """Returns the exit code of a command that a signal has stopped: 75 after SIGUSR1, else 128 + n.

    Args:
        number: The signal's number.
    """
    asked_again = number == getattr(signal, "SIGUSR1", None)
    return TRY_AGAIN if asked_again else 128 + number


@contextlib.contextmanager
def stops_later() -> Iterator[None]:
    """Lets what asks this process to stop wait until the block has ended.

    A process that is being started in the block is then known to whoever has to end it. A second
    request does not wait. Only the main thread answers signals; in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: dict[int, None] = {}
    before: dict[int, Callable[[int, FrameType | None], Any]] = {
        number: handler
        for number in (signal.SIGINT, *STOP_SIGNALS)
        if callable(handler := signal.getsignal(number))
    }

    def note(number: int, frame: FrameType | None) -> None:
        if number in noted:
            before[number](number, frame)
        noted[number] = None

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for each in noted:
            signal.raise_signal(each)


def stop_with_parent(number: int = signal.SIGTERM, *, parent: int | None = None) -> None:
    """Sends a signal to this process once the one that started it has died, where that is possible.

    Linux does so when the thread that started this process ends.

    Args:
        number: The signal.
        parent: Number of the process that has started this one, if it is known: it may have died
            before this was called.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), number)


def system_error(
    error: OSError, path: str | Path | None = None, *, verb: str = "used"
) -> MachineError | None:
    """Returns the error to show for an error of the system; None if it may be a bug.

    Args:
        error: The system's error.
        path: What could not be used; None for the file that the error itself names.
        verb: "read", "written" or "used".
    """
    if error.errno is None or error.errno in _BUGS:
        return None
    where = path if path is not None else error.filename
    reason = os.strerror(error.errno)
    if where is None:  # the error's own text, e.g. of a folder for temporary files
        detail = error.strerror or reason
        problem = detail if reason in detail else f"{detail} ({reason})"
    else:
        problem = f"{os.fsdecode(where)}: cannot be {verb}: {reason}"
    nowhere = error.errno == errno.ENOENT and verb == "written"
    return MachineError(
        f"{problem}.", hint=_NOWHERE if nowhere else _REMEDIES.get(error.errno, _ANY)
    )


def entries(folder: Path, pattern: str = "*") -> list[Path]:
    """Returns what a folder holds, sorted; nothing if there is no such folder.

    Unlike `Path.glob`, it does not take a folder that may not be listed for an empty one.

    Args:
        folder: The folder.
        pattern: What the names must match, as in a shell.

    Raises:
        MachineError: The system refuses to list the folder.
    """
    with in_words(folder, verb="read"):
        try:
            with os.scandir(folder) as found:
                names = [entry.name for entry in found]
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [folder / name for name in sorted(names) if fnmatch.fnmatchcase(name, pattern)]


def open_file(path: Path) -> io.BufferedReader:
    """Opens a file for reading.

    Raises:
        OSError: The system refuses to open it.
        MachineError: It is a pipe, a socket or a device, whose reading may never end.
    """
    refuse_special(path)
    return path.open("rb")


def refuse_special(path: Path) -> None:
    """Refuses a pipe, a socket or a device; files and folders pass, and what is not there.

    Raises:
        MachineError: It is one.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise MachineError(
            f"{path}: found a device or a pipe, expected a file.",
            hint="Put a file there, or choose another path.",
        )


def refuse_no_folder(option: str, path: Path) -> None:
    """Refuses what is there and is no folder; a folder passes, and what is not there.

    Args:
        option: The option that names it, for the message.
        path: The folder.

    Raises:
        MachineError: It is a file, a device or a pipe, or cannot be looked at.
    """
    with in_words(path):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            return
    if not stat.S_ISDIR(mode):
        found = "a file" if stat.S_ISREG(mode) else "a device or a pipe"
        raise MachineError(
            f"{option} {path}: found {found}, expected a folder.",
            hint=f"Choose another folder with {option}.",
        )


def read_whole(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        FileNotFoundError: There is no such file.
        MachineError: The system refuses to read it, or it is a pipe or a device; the error names
            the file.
    """
    try:
        with open_file(path) as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        raise
    except OSError as error:
        raise system_error(error, path, verb="read") or error from error


def read_blocks(path: Path, size: int, *, start: int = 0) -> Iterator[bytes]:
    """Yields the content of a file block by block.

    Args:
        path: The file.
        size: Bytes of a block.
        start: The byte to begin with.

    Raises:
        FileNotFoundError: There is no such file.
        MachineError: The system refuses to read it, or it is a pipe or a device; the error names
            the file.
    """
    try:
        with open_file(path) as file:
            file.seek(start)
            while block := file.read(size):
                yield block
    except (FileNotFoundError, IsADirectoryError):
        raise
    except OSError as error:
        raise system_error(error, path, verb="read") or error from error


def raise_refusal(path: Path, error: BaseException) -> None:
    """Raises the system's error if that is why a reader calls a file damaged.

    Readers hide it behind errors of their own. If it cannot be found behind them, the file is read
    to its end, which fails if the disk still does.

    Args:
        path: The file.
        error: The reader's error.

    Raises:
        MachineError: The system refuses to read the file.
    """
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and not is_damage(behind):
            raise system_error(behind, path, verb="read") or behind from error
        behind = behind.__cause__ or behind.__context__
    with in_words(path, verb="read"), open_file(path) as file:
        while file.read(_BLOCK_BYTES):
            pass


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two files or folders in one step; False if the system cannot do so.

    A process that is killed meanwhile leaves both at one place or at the other.
    """
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    rename = getattr(library, "renameat2", None)
    if rename is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


def is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine; True where that cannot be told."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)  # it is not sent, only asked for
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or no number of a process
        return True
    return True


def is_damage(error: OSError) -> bool:
    """Whether an error is about what a file holds, not about the system.

    Readers raise such errors without a number of the system's, or with that of a position in the
    file that is not valid.
    """
    return error.errno in (None, errno.EINVAL)


@contextlib.contextmanager
def in_words(path: str | Path | None = None, *, verb: str = "used") -> Iterator[None]:
    """Replaces errors of the system that are raised in the block by errors with a remedy.

    Args:
        path: As in `system_error`.
        verb: As in `system_error`.

    Raises:
        MachineError: The system refused something that the user can mend.
    """
    try:
        yield
    except OSError as error:
        told = system_error(error, path, verb=verb)
        if told is None:
            raise
        raise told from error
    except RuntimeError as error:
        # What pathlib makes of links in a circle before Python 3.13.
        loop = re.fullmatch(r"Symlink loop from '(.*)'", str(error))
        told = loop and system_error(OSError(errno.ELOOP, "", loop[1]), path, verb=verb)
        if not told:
            raise
        raise told from error
