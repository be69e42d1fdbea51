"""Reads the plain pickles of nnU-Net v1 without running code that they may contain."""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autoliver.errors import ModelError
from autoliver.networks.torch_file import MALFORMED
from autoliver.system import read_whole

_NUMBERS = ("f", "i", "u", "b")
_MOST_BYTES = 64 * 2**20
# What puts a value into a numbered place of the table that a pickle keeps.
_PLACES = ("PUT", "BINPUT", "LONG_BINPUT")


class Dtype:
    """Replaces numpy.dtype when a pickle is read: it holds only a type code and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = str(code)
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    @property
    def of_numbers(self) -> str:
        """The type for numpy.

        Raises:
            UnpicklingError: The type is not one of plain numbers.
        """
        if self.code[:1] not in _NUMBERS or not self.code[1:].isdigit():
            raise pickle.UnpicklingError(f"a numpy value of type {self.code!r}")
        return self.order + self.code


def number(dtype: Dtype, data: bytes | str) -> float | int | bool:
    """Replaces the numpy function that makes a scalar from its bytes when a pickle is read."""
    value: float | int | bool = np.frombuffer(_raw(data), dtype.of_numbers, count=1)[0].item()
    return value


class _Array(list[Any]):
    """Replaces numpy.ndarray when a pickle is read: nested lists of plain numbers."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, data = state
        self._fill(data, dtype, shape, "F" if by_columns else "C")

    def _fill(self, data: bytes | str, dtype: Dtype, shape: Any, order: Any) -> None:
        values = np.frombuffer(_raw(data), dtype.of_numbers)
        found = values.reshape(shape, order="F" if order == "F" else "C")
        self[:] = found.tolist() if found.ndim else [found.item()]


def _empty_array(*_: object) -> _Array:
    return _Array()


def _array_of(data: bytes, dtype: Dtype, shape: Any, order: Any) -> _Array:
    array = _Array()
    array._fill(data, dtype, shape, order)
    return array


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Replaces _codecs.encode, which old pickles use for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _raw(data: bytes | str) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else data


# The names of modules in pickles that Python 2 can read, and today's.
_NOW = {"__builtin__": "builtins"}
_NUMPY = ("numpy.core", "numpy._core")  # the name until numpy 2, and since
_KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "_codecs.encode": _encoded,
    "numpy.dtype": Dtype,
    "numpy.ndarray": _Array,
    **{f"{package}.multiarray._reconstruct": _empty_array for package in _NUMPY},
    **{f"{package}.multiarray.scalar": number for package in _NUMPY},
    **{f"{package}.numeric._frombuffer": _array_of for package in _NUMPY},
}


class _Refused(Exception):
    """A pickle names something else than plain values and numpy's arrays and numbers."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Returns a replacement of our own, never what the pickle names.

        It is a new function each time: a pickle can set attributes of what it gets.
        """
        named = f"{_NOW.get(module, module)}.{name}"
        if named not in _KNOWN:
            raise _Refused(named)
        replacement = _KNOWN[named]
        return lambda *arguments: replacement(*arguments)

    def persistent_load(self, pid: Any) -> Any:
        """Refuses references to objects outside the pickle."""
        raise _Refused(f"an object outside the file ({pid!r})")


def _check_size(content: bytes) -> None:
    """Refuses a pickle that asks for more memory than its content can need.

    A few bytes can name the last place of a table of two thousand million, which would be made.

    Raises:
        UnpicklingError: It does.
        ValueError: It is cut short, or no pickle.
    """
    if len(content) > _MOST_BYTES:
        raise pickle.UnpicklingError(f"{len(content) / 1e6:.0f} MB; nnU-Net writes some kB")
    for operation, argument, _ in pickletools.genops(content):
        if operation.name in _PLACES and not 0 <= int(argument or 0) <= len(content):
            raise pickle.UnpicklingError(f"the place {argument} in a table of {len(content)} bytes")


def read_pickle(path: Path) -> Any:
    """Reads a pickle of plain values and numpy arrays; arrays become nested lists.

    Of all that a pickle can name, only containers, numbers and arrays are created, by functions of
    our own; a value of any other type is refused, and nothing in the file runs.

    Raises:
        ModelError: The file is missing or damaged, or names anything else.
    """
    try:
        content = read_whole(path)
        _check_size(content)
        return _Unpickler(io.BytesIO(content)).load()
    except FileNotFoundError:
        raise ModelError(
            f"{path}: there is no such file.", hint="Copy it from where the model was trained."
        ) from None
    except _Refused as refused:
        raise ModelError(
            f"{path}: reading it would have to run {refused}, which no file of nnU-Net v1 needs.",
            hint="Such a file can run any code with your rights when it is read, so it is not "
            "read. Get the model again from its first source.",
        ) from None
    except MALFORMED as error:
        what = str(error).partition("\n")[0].rstrip(".")
        raise ModelError(
            f"{path}: damaged, or not a pickle of nnU-Net v1: {what}.",
            hint="Copy the file again from its source.",
        ) from None
