"""`python -m autoliver`."""

from autoliver.cli.main import run

run()
