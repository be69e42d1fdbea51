"""Processes that have imported everything, and run the program in forks of themselves."""

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def start(script: Path, more: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Starts such a process, with pipes to and from it.

    Args:
        script: What it runs; it finds the package and the modules of the tests.
        more: Further variables of its environment.
    """
    tests = Path(__file__).parent
    before = os.environ.get("PYTHONPATH", "")  # noqa: TID251
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,  # noqa: TID251
            "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests), before]),
            "OMP_NUM_THREADS": "1",
            **(more or {}),
        },
    )


def become(
    arguments: Sequence[str], *, output: str, folder: str, program: Callable[[], object]
) -> None:
    """Ends this process, which is a fork, as the program with these arguments ends.

    Args:
        arguments: What follows the program's name.
        output: The file that stdout and stderr are written to.
        folder: The current folder.
        program: Prepares what is needed, and runs the program.
    """
    code = 1
    try:
        os.setsid()
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, out), (2, out)):
            os.dup2(source, target)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.argv = ["autoliver", *arguments]
        os.chdir(folder)
        program()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(bool(done.code))
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 99
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
