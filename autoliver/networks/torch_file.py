"""Reads files that torch has saved, without running code that they may contain."""

import pickle
import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from autoliver.errors import ModelError
from autoliver.system import open_file, raise_refusal

# The exceptions that reading a malformed pickle can raise.
MALFORMED = (
    *(RuntimeError, ValueError, TypeError, LookupError, pickle.UnpicklingError),
    *(AttributeError, AssertionError, EOFError, MemoryError, OverflowError, struct.error),
)
_AGAIN = "Copy the file again from its source."
# How a file of PyTorch before 1.6 begins, which has no checksums: a pickled number.
_BEFORE_ZIP = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")


class UnsafeContent(Exception):
    """A file names objects that would have to run when it is read; the text names them."""


def read_torch_file(path: Path, *, allowed: Sequence[Any] = ()) -> Any:
    """Reads a file of torch.save; tensors are on the CPU and mapped from the file if possible.

    Of all objects that a pickle can name, only tensors, plain values and what is allowed are
    created.

    Args:
        path: The file.
        allowed: Further objects, as `torch.serialization.safe_globals` takes them.

    Raises:
        UnsafeContent: The file names other objects. Nothing in it has run.
        ModelError: The file is damaged, torch has not saved it, or it is a TorchScript archive.
    """
    check_intact(path)
    _refuse_script(path)
    with safe_globals([*allowed]):
        try:
            if path.suffix == ".safetensors":  # torch goes by the name of a path
                with open_file(path) as file:
                    return torch.load(file, "cpu", weights_only=True)
            return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            named = _named(path, error)
        except MALFORMED as error:
            raise damaged(path, error) from None
    raise UnsafeContent(named)


def check_intact(path: Path) -> None:
    """Verifies the checksums in a file of torch.save, which torch writes but does not check.

    Raises:
        ModelError: The file is damaged, or torch has not saved it.
    """
    try:
        with open_file(path) as file:
            if file.read(len(_BEFORE_ZIP)) == _BEFORE_ZIP:
                return
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise_refusal(path, error)
        raise damaged(path, error) from None
    if bad is not None:
        raise damaged(path, f"the checksum of {bad} does not match")


def is_torch_file(path: Path) -> bool:
    """Whether a file begins as those of torch.save do, whatever its name."""
    return _start(path).startswith((b"PK", _BEFORE_ZIP))


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as those of safetensors do, whatever its name."""
    return _start(path)[8:9] == b"{" and not is_torch_file(path)  # a length, then JSON


def _start(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(len(_BEFORE_ZIP))


def _refuse_script(path: Path) -> None:
    """Refuses an archive of TorchScript, which torch would hand to its compiler with a warning.

    Raises:
        ModelError: It is one.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        script = any(name.endswith("/constants.pkl") for name in archive.namelist())
    if script:
        raise ModelError(
            f"{path}: a program of TorchScript, not weights alone; nothing of it was run.",
            hint="Save a network's weights with: torch.save(model.state_dict(), FILE)",
        )


def damaged(path: Path, reason: object) -> ModelError:
    """Returns the error of a file of torch.save that cannot be read."""
    what = str(reason).partition("\n")[0].rstrip(".")
    return ModelError(f"{path}: damaged, or not a PyTorch checkpoint: {what}.", hint=_AGAIN)


def _named(path: Path, error: pickle.UnpicklingError) -> str:
    """What a refused file names, as far as that is known."""
    named = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else ()
    found = sorted(named) or re.findall(r"GLOBAL ([\w.]+)", str(error))
    return ", ".join(found) or str(error).partition("\n")[0]
