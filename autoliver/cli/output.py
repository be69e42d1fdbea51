"""What a command prints: a table for people, or one JSON object."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def start(*, verbose: bool) -> None:
    """Sets up logging to stderr for one command."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(message)s"
    )


def emit(result: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Prints the result on stdout."""
    typer.echo(json.dumps(result, allow_nan=False) if as_json else text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two blanks apart, with a line under the header."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
