"""Checks the arguments of the library's functions, and words errors in terms of arguments."""

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from autoliver.errors import AutoliverError, OptionError
from autoliver.system import in_words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from autoliver.machine import Machine
    from autoliver.workspace import Workspace

P = ParamSpec("P")
R = TypeVar("R")

_LIMITS = ("workers", "memory_gb")


@contextlib.contextmanager
def as_arguments() -> Iterator[None]:
    """Rewrites errors raised in the block to name arguments instead of command-line options.

    --batch-size becomes batch_size, for example. Texts that name a command stay unchanged. Errors
    of the system become an `AutoliverError` as well (see `autoliver.system`).
    """
    try:
        with in_words():
            yield
    except AutoliverError as error:
        error.problem, error.hint = _respelled(error.problem), _respelled(error.hint)
        error.args = (error.problem,)
        raise


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function of the library refuse calls that do not fit it, as it refuses wrong values.

    An argument that is missing, surplus or given twice becomes an `OptionError` instead of a
    TypeError. Names that are not known are left to `taken`.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            signature.bind(*arguments, **options)
        except TypeError as error:
            names = ", ".join(_named(function))
            raise OptionError(
                f"{function.__name__}: {error}.", hint=f"Its arguments are {names}."
            ) from None
        return function(*arguments, **options)

    return call


def _respelled(text: str) -> str:
    if "autoliver " in text:  # a command to type
        return text
    text = re.sub(r"(?<![\w-])--no-([a-z][a-z-]*)", r"--\1=False", text)
    text = re.sub(r"(?<![\w-])--fold\b(?!-)", "folds", text)
    text = re.sub(r"(?<![\w-])--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), text)
    for short, name in {"-m": "model", "-o": "output", "-w": "workspace"}.items():
        text = re.sub(rf"(?<![\w-]){short}\b", name, text)
    return text


def taken(
    options: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    of: Callable[..., object],
    machine: Sequence[str] | None = (),
) -> dict[str, Any]:
    """Maps keyword options to the fields they set; those of the machine are put into `machine`.

    Args:
        options: The options as given.
        names: Maps every name that an option may have to the field it sets.
        of: The function that was called.
        machine: Fields of `Machine` that the function accepts besides workers and memory_gb; None
            if it accepts no such option.

    Returns:
        Maps the names of fields to values; "machine" is a `Machine` unless `machine` is None.

    Raises:
        OptionError: An option is unknown, was given under two names, or is invalid.
    """
    from autoliver.values import check_known

    of_machine = () if machine is None else (*machine, *_LIMITS, "limits")
    known = {**names, **{name: name for name in of_machine}}
    named = _named(of)
    first = {field: name for name, field in reversed(known.items())}
    aliases = [n for n, field in known.items() if first[field] != n or f"{n}s" in named]
    check_known(options, [*known, *named], of=of.__name__, aliases=aliases)
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if known[name] in fields:
            raise OptionError(
                f"{name} was given twice, by another name as well.", hint="Give it once."
            )
        fields[known[name]] = value
    if machine is not None:
        parts = {name: fields.pop(name) for name in of_machine if name in fields}
        fields["machine"] = _machine(parts)
    return fields


def _machine(given: dict[str, Any]) -> "Machine":
    from autoliver.machine import Machine
    from autoliver.parallel import Limits

    parts = {name: given.pop(name) for name in _LIMITS if name in given}
    limits = given.pop("limits") if "limits" in given else Limits(**parts)
    if not isinstance(limits, Limits) or (parts and limits != Limits(**parts)):
        raise OptionError(
            f"limits is {limits!r}; it must be an `autoliver.parallel.Limits`, without workers and "
            "memory_gb beside it.",
            hint="Give workers=2 and memory_gb=8 instead.",
        )
    return Machine(**given, limits=limits)


def _named(function: Callable[..., object]) -> list[str]:
    """Returns the names of a function's parameters, without that of **options."""
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]


def workspace_at(place: object) -> "Workspace":
    """Returns the workspace at a path.

    Raises:
        OptionError: The value is empty or not a path.
    """
    from autoliver.workspace import Workspace

    return Workspace(path_of("workspace", place))


def dataset_name(dataset: object) -> str:
    """Checks the folder or name of a dataset and returns it as text.

    Raises:
        OptionError: The value is empty, or neither a path nor a name.
    """
    return name_of("dataset", dataset, "a folder or the name of a planned dataset")


def once(names: Sequence[str], *values: object) -> None:
    """Refuses an argument that was given under both of its names.

    Args:
        names: The two names.
        values: What was given under each; empty or None if it was not.

    Raises:
        OptionError: Both were given.
    """
    if not any(value is None or (isinstance(value, tuple) and not value) for value in values):
        raise OptionError(
            f"{' and '.join(names)} are the same argument.", hint=f"Give {names[0]} alone."
        )


def path_of(argument: str, value: object) -> Path:
    """Checks the path of a file or folder.

    Args:
        argument: Name of the argument, for the error.
        value: The value that was given.

    Raises:
        OptionError: The value is empty or not a path.
    """
    return Path(name_of(argument, value, "the path of a file or folder"))


def paths_of(argument: str, value: object) -> list[Path]:
    """Checks a path, or a list of paths.

    Args:
        argument: Name of the argument, for the error.
        value: The value that was given.

    Raises:
        OptionError: As for `path_of`.
    """
    several = value if isinstance(value, list | tuple) else [value]
    return [path_of(argument, each) for each in several]


def name_of(option: str, value: object, expected: str = "the name of a dataset or model") -> str:
    """Checks a name or a path and returns it as text.

    Args:
        option: Name of the option, for the error.
        value: The value that was given.
        expected: What the value should be, for the error.

    Raises:
        OptionError: The value is empty, or neither a path nor a name.
        DatasetError: It holds bytes that are no text, or control characters.
    """
    from autoliver.io.paths import check_printable
    from autoliver.values import check_text

    text = check_text(option, value, expected)
    check_printable(text)
    return text


def channels_of(array: object) -> "npt.NDArray[np.floating]":
    """Converts an image to float32 (channels, z, y, x).

    Args:
        array: (z, y, x) or (channels, z, y, x).

    Raises:
        OptionError: The array has other axes, no voxels, or does not hold numbers.
    """
    import numpy as np

    given = np.asarray(array)
    if given.ndim not in (3, 4) or given.dtype.kind not in "biuf" or not given.size:
        raise OptionError(
            f"array has the shape {given.shape} and holds {given.dtype}; it must hold numbers, as "
            "(z, y, x) or (channels, z, y, x).",
            hint="For one slice of an image give array[None].",
        )
    return given.astype(np.float32, copy=False).reshape(-1, *given.shape[-3:])


def spacing_of(spacing_mm: object) -> tuple[float, float, float]:
    """Checks the spacing of an image, (z, y, x) in mm.

    Raises:
        OptionError: The spacing is not three lengths above zero.
    """
    from autoliver.values import check_number, check_type

    z, y, x = check_type("spacing_mm", spacing_mm, tuple[float, float, float])
    for mm in (z, y, x):
        check_number("spacing_mm", mm, above=0)
    return z, y, x
