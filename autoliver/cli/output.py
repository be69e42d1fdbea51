"""Output of the commands: text with tables for people, or one JSON object."""

import json
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import typer

from autoliver.system import in_words

# What is not broken: commands up to a bracket behind them, places, quoted words, paths with blanks
# between their slashes or in front of ": ".
_WHOLE = re.compile(
    r"\b(?:autoliver|rm|mv) \S.*?(?= \(|$)"
    r"|(?<=Written: ).*"
    r"|(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\")(?!\w)"
    r"|^(?:\w+:? )?(?:[\w.-]+: )?[~.]{0,2}/[^:\n]*(?=: )"
    r"|(?<!\S)[~.]{0,2}/\S*(?:(?: [^\s/:]+){0,3} [^\s/:]+/\S*)+"
)


class _Lines(logging.Formatter):
    """Wraps the messages of a log for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return wrapped(super().format(record), _columns(sys.stderr))


def start(*, verbose: bool) -> None:
    """Sets up logging to stderr for one command."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])


def say(text: str) -> None:
    """Prints a message on stderr; its lines are wrapped if that is a terminal."""
    typer.echo(wrapped(text, _columns(sys.stderr)), err=True)


def wrapped(text: str, width: int | None) -> str:
    """Wraps the long lines of a text between words, but neither tables nor what can be pasted.

    Commands, paths and quoted words stay whole, even if they are longer than a line.

    Args:
        text: The text. Lines with two blanks in a row, as in tables, stay as they are.
        width: Characters of a line; None: nothing is wrapped.
    """
    if width is None:
        return text
    lines = text.split("\n")
    return "\n".join(
        line if len(line) <= width or "  " in line or line.startswith(" ") else _filled(line, width)
        for line in lines
    )


def _filled(line: str, width: int) -> str:
    whole = _WHOLE.sub(lambda found: found[0].replace(" ", _BLANK), line)
    lines = [""]
    for word in whole.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if len(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines).replace(_BLANK, " ")


_BLANK = "\0"  # stands for a blank where a line is not broken


def _columns(stream: TextIO) -> int | None:
    """The width of a terminal; None for a stream that is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def emit(result: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Prints a result on stdout: `result` as one JSON object, or else `text`."""
    with in_words("standard output", verb="written"):
        try:
            shown = wrapped(text, _columns(sys.stdout))
            typer.echo(json.dumps(result, allow_nan=False) if as_json else shown)
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
