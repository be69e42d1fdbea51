"""`autoliver` and `python -m autoliver`."""

import sys

from autoliver.cli.stop import INTERRUPTED, say_stopped, stop_again


def main() -> None:
    """Runs the command line and exits; Ctrl-C is answered while its modules are imported, too."""
    stop_again()
    try:
        from autoliver.cli.main import run

        run()
    except KeyboardInterrupt:
        say_stopped()
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
