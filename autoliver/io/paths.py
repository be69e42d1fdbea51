"""Paths of image files: what is there, and whether it can be named."""

import os
import stat
import unicodedata
from pathlib import Path

from autoliver.commands import command
from autoliver.errors import DatasetError
from autoliver.io.header import unreadable
from autoliver.system import in_words


def check_path(path: Path) -> None:
    """Refuses a path that is no file with content, before any reader gets it.

    Raises:
        DatasetError: There is nothing, a link to nothing, a folder, a device, or an empty file; or
            the path cannot be named in a message or a file.
        MachineError: The system refuses to read it.
    """
    check_printable(path)
    with in_words(path, verb="read"):
        try:
            state = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise missing_file(path) from None
        if stat.S_ISDIR(state.st_mode):
            convert = command("convert", "dicom", str(path), "OUT")
            raise DatasetError(
                f"{path}: found a folder, expected an image file.",
                hint=f"If it holds DICOM series, make image files of them: {convert}",
            )
        if not stat.S_ISREG(state.st_mode):
            raise DatasetError(
                f"{path}: found a device or a pipe, expected an image file.",
                hint="Put the image itself there.",
            )
        with path.open("rb") as file:
            if not file.read(1):
                raise unreadable(path, "the file is empty")


def missing_file(path: Path) -> DatasetError:
    """Returns the error for a file that is not there, or is a link to such a file."""
    target = link_target(path)
    if target is None:
        return DatasetError(f"{path}: there is no such file.", hint="Check the path.")
    return DatasetError(
        f"{path}: it is a link to {target}, which does not exist.",
        hint="Connect the disk that the link leads to, or replace the link with the file.",
    )


def link_target(path: Path) -> str | None:
    """Returns where a link leads that leads to nothing; None if the path is something else."""
    return str(path.readlink()) if path.is_symlink() and not path.exists() else None


def check_printable(path: str | Path) -> None:
    """Refuses a path that no message, table or JSON file can hold.

    Raises:
        DatasetError: It holds bytes that are no text, or control characters such as line breaks;
            the error shows them.
    """
    text = os.fspath(path)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DatasetError(
            f"{printable(text)}: the name holds bytes that are not UTF-8 (shown as \\x..).",
            hint="Rename it with letters of UTF-8; the tool convmv does so for whole folders.",
        )
    if any(map(_is_control, text)):
        raise DatasetError(
            f"{printable(text)}: the name holds line breaks or other control characters (shown as "
            "\\n, \\x.., \\u....), which break tables and messages.",
            hint="Rename it without them.",
        )


def printable(text: str) -> str:
    """Returns a text with an escape for each byte that is no text and each control character."""
    shown = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(repr(letter)[1:-1] if _is_control(letter) else letter for letter in shown)


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Zl", "Zp")
