"""`autoliver` and `python -m autoliver`."""

import sys

from autoliver.cli.stop import INTERRUPTED, say_stopped


def main() -> None:
    """Runs the command line and exits; Ctrl-C is answered while its modules are imported, too."""
    try:
        from autoliver.cli.main import run
    except KeyboardInterrupt:
        say_stopped()
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
