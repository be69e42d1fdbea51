"""Output of the commands: text with tables for people, or one JSON object."""

import json
import logging
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from autoliver.system import in_words


def start(*, verbose: bool) -> None:
    """Sets up logging to stderr for one command."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s"
    )


def emit(result: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Prints a result on stdout: `result` as one JSON object, or else `text`."""
    with in_words("standard output", verb="written"):
        try:
            typer.echo(json.dumps(result, allow_nan=False) if as_json else text)
            sys.stdout.flush()
        except OSError:
            # What is still buffered would fail once more at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, wrap: int | None = None) -> str:
    """Formats a table: left-aligned columns, two spaces apart, with a line under the header.

    Args:
        header: Names of the columns.
        rows: Rows with one text per column.
        wrap: Line width in characters: the last column is wrapped to stay within it, but is not
            made narrower than 30. None: nothing is wrapped.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    if wrap is not None:
        widths[-1] = min(widths[-1], max(30, wrap - sum(widths[:-1]) - 2 * (len(widths) - 1)))
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for row in lines
        for line in _broken(row, widths[-1])
    )


def _broken(row: Sequence[str], width: int) -> list[list[str]]:
    """Splits a row into lines by wrapping its last cell to `width` characters."""
    pieces = textwrap.wrap(row[-1], width) or [""]
    first = [*row[:-1], pieces[0]]
    return [first, *([*[""] * (len(row) - 1), piece] for piece in pieces[1:])]


def number(value: float | None, digits: int = 3) -> str:
    """Formats a number for a table; None becomes a dash."""
    return "-" if value is None else f"{value:.{digits}f}"
