"""What a command says when it is stopped; it imports nothing slow, so that it is there at once."""

import contextlib
import json
import signal
import sys
import threading

_AGAIN = "Run the same command again to continue."

# The exit code after Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT


def stop_again() -> None:
    """Sees to it that a command which is asked to stop does so wherever it is at that moment.

    Python drops what is raised where nobody can catch it, as in the callback of a weak reference
    that is called while a module is imported. Ctrl-C, or the exit of another signal, that was
    dropped is sent again a moment later.
    """
    dropped = sys.unraisablehook

    def hook(what: "sys.UnraisableHookArgs", /) -> None:
        number = _signal_of(what.exc_value)
        if number is None:
            dropped(what)
        else:
            main = threading.main_thread().ident
            again = threading.Timer(0.1, signal.pthread_kill, [main, number])
            again.daemon = True
            again.start()

    sys.unraisablehook = hook


def _signal_of(error: BaseException | None) -> int | None:
    """Which signal was answered with this exception."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return error.code - 128
    return None


def say_stopped() -> None:
    """Says on stderr that the command was stopped, and as an object on stdout with --json."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": "Stopped.", "hint": _AGAIN}) + "\n")
        sys.stderr.write(f"Stopped. {_AGAIN}\n")
