"""What a command says when it is stopped; it imports nothing slow, so that it is there at once."""

import contextlib
import json
import signal
import sys

_AGAIN = "Run the same command again to continue."

# The exit code after Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT


def say_stopped() -> None:
    """Says on stderr that the command was stopped, and as an object on stdout with --json."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"error": "Stopped.", "hint": _AGAIN}) + "\n")
        sys.stderr.write(f"Stopped. {_AGAIN}\n")
