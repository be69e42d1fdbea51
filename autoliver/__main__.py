"""`autoliver` and `python -m autoliver`."""

import sys

from autoliver.cli.stop import (
    INTERRUPTED,
    STOPPED,
    answer_signals,
    ignore_requests,
    say_stopped,
    stop_again,
)


def main() -> None:
    """Runs the command line and exits; signals are answered while its modules are imported, too."""
    stop_again()
    try:
        answer_signals()
        try:
            from autoliver.cli.main import run
        except SystemExit as done:
            if done.code in STOPPED:
                say_stopped()
            raise
        run()
    except KeyboardInterrupt:
        say_stopped()
        sys.exit(INTERRUPTED)
    finally:
        ignore_requests()


if __name__ == "__main__":
    main()
