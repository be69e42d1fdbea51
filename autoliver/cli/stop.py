"""What a command says when it is stopped; it imports nothing slow, so that it is there at once."""

import contextlib
import json
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from autoliver.system import STOP_SIGNALS, code_after, say_if_slow

_AGAIN = "Run the same command again to continue."

# The exit code after Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT
# Exit codes after all that stops a command.
STOPPED = frozenset({INTERRUPTED, *map(code_after, STOP_SIGNALS)})


# Set once the command is known to end: from then on nothing is sent again.
_ending = threading.Event()


class _Asked:
    """What a signal is answered with; where it is dropped, the signal is sent again.

    Libraries have places that catch everything and go on. Python itself drops what is raised where
    nobody can catch it, as in the callback of a weak reference that is called while a module is
    imported. There it is freed before the command ends.
    """

    number: int

    def __del__(self) -> None:
        _send_again(self.number)


class _Exit(_Asked, SystemExit):
    """The end of the command."""


class _Interrupt(_Asked, KeyboardInterrupt):
    """Ctrl-C."""


def answer_signals() -> None:
    """Sees to it that the command ends by what asks it to, as by Ctrl-C, its processes included."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _stop)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def ignore_requests() -> None:
    """Lets a command that has done its work end with its own code, if SIGUSR1 comes that late.

    Python forgets its answers to signals before the process has ended.
    """
    _ending.set()
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _stop(number: int, _: object) -> None:
    say_if_slow(f"{signal.Signals(number).name}: stopping; what is finished is kept ...")
    _raise(_Exit(code_after(number)), number)


def _interrupt(number: int, _: FrameType | None) -> None:
    say_if_slow("Stopping; what is finished is kept ...")
    _raise(_Interrupt(), number)


def _raise(answer: _Exit | _Interrupt, number: int) -> NoReturn:
    answer.number = number
    try:
        raise answer
    finally:
        del answer  # its traceback holds this function's names, so that it would never be freed


def _send_again(number: int) -> None:
    """Sends a signal to this process a moment later, unless it is ending."""

    def send() -> None:
        main = threading.main_thread().ident
        if main is not None and not _ending.is_set():
            signal.pthread_kill(main, number)

    if not (_ending.is_set() or sys.is_finalizing()):
        again = threading.Timer(0.1, send)
        again.daemon = True
        again.start()


def stop_again() -> None:
    """Keeps Python from telling of an answer to a signal that it drops: it is sent again."""
    dropped = sys.unraisablehook

    def hook(what: "sys.UnraisableHookArgs", /) -> None:
        if not isinstance(what.exc_value, _Asked):
            dropped(what)

    sys.unraisablehook = hook


def say_stopped() -> None:
    """Says on stderr that the command was stopped, and as an object on stdout with --json."""
    _ending.set()
    with contextlib.suppress(OSError):  # the terminal may be gone
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": "Stopped.", "hint": _AGAIN}) + "\n")
        sys.stderr.write(f"Stopped. {_AGAIN}\n")
