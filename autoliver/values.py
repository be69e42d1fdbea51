"""Checks of values that users give: the option, what was found, what it may be, what was meant.

A check stands beside the definition of its value and names the option as the command line spells it
(`--batch-size`); `autoliver.api` respells it for callers of the library (`batch_size`).
"""

import difflib
import math
import os
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from autoliver.errors import OptionError

# Counts beyond it are typing errors, and too large for some of the libraries.
MOST = 2**31 - 1

_SHOWN = 80  # characters of a value
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
}


def refused(option: str, value: object, expected: str, *, hint: str = "") -> OptionError:
    """The error for a value that cannot be.

    Args:
        option: As the command line spells it.
        value: What was given.
        expected: What it must be, as in "at least 1".
        hint: What to do.
    """
    return OptionError(f"{option} is {_shown(value)}; it must be {expected}.", hint=hint)


def flag_of(field: str) -> str:
    """How the command line spells the option that sets a field: --batch-size."""
    return f"--{field.replace('_', '-')}"


def meant(name: object, known: Iterable[str]) -> str:
    """The question whether a known name was meant that is nearly the given one; empty for none."""
    forms = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(name).casefold().replace("-", "_"), forms, n=1)
    near = near or difflib.get_close_matches(str(name).casefold(), forms, n=1)
    return f"Did you mean {forms[near[0]]}?" if near else ""


def check_choice(option: str, value: object, choices: Sequence[str]) -> str:
    """One of some words.

    Raises:
        OptionError: It is none of them.
    """
    if isinstance(value, str) and value in choices:
        return value
    raise refused(option, value, f"one of {', '.join(choices)}", hint=meant(value, choices))


def check_whole(option: str, value: object, *, least: int, most: int = MOST) -> int:
    """A whole number within bounds.

    Raises:
        OptionError: It is another thing, or out of bounds.
    """
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise refused(option, value, "a whole number")
    if number < least:
        raise refused(option, value, f"at least {least}")
    if number > most:
        raise refused(option, value, f"at most {most}")
    return number


def natural(value: object) -> int | None:
    """A number from 0, given as such or by its digits; None for anything else."""
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else None
    number = _plain(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        return None
    return number


def check_number(
    option: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float | None = None,
    most: float = math.inf,
) -> float:
    """A finite number within bounds.

    Args:
        option: As the command line spells it.
        value: What was given.
        above: A bound that the value must exceed.
        least: The smallest value allowed, instead of `above`.
        most: The largest value allowed.

    Raises:
        OptionError: It is another thing, NaN, infinite or out of bounds.
    """
    number = _plain(value)
    low = above if least is None else least
    if least is not None and most < math.inf:
        expected = f"a number from {least:g} to {most:g}"
    elif low > -math.inf:
        expected = f"a number {'above' if least is None else 'of at least'} {low:g}"
    else:
        expected = "a finite number"
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise refused(option, value, expected)
    inside = number > above if least is None else number >= least
    if not (math.isfinite(number) and inside and number <= most):
        raise refused(option, value, expected)
    return float(number)


def check_flag(option: str, value: object) -> bool:
    """True or False.

    Raises:
        OptionError: It is neither.
    """
    if isinstance(value, bool):
        return value
    raise refused(option, value, "True or False")


def check_text(option: str, value: object, expected: str = "a name") -> str:
    """A text, or a path as text, that is not empty.

    Raises:
        OptionError: It is empty or another thing.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if isinstance(text, str) and text.strip() and "\0" not in text:
        return text
    raise refused(option, value, expected)


def check_texts(
    option: str, value: object, expected: str = "a name or a list of names"
) -> tuple[str, ...]:
    """Several texts, or a single one.

    Raises:
        OptionError: One of them is empty or another thing.
    """
    if isinstance(value, str | os.PathLike):
        return (check_text(option, value, expected),)
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise refused(option, value, expected)
    return tuple(check_text(option, each, expected) for each in value)


def check_known(given: Iterable[str], known: Iterable[str], *, of: str) -> None:
    """Refuses names of options that there are not.

    Raises:
        OptionError: Naming the first, and the known ones or the one that was meant.
    """
    names = list(dict.fromkeys(known))
    for name in given:
        if name not in names:
            hint = meant(name, names) or f"It takes {', '.join(names)}."
            raise OptionError(f"{of} has no option '{name}'.", hint=hint)


def check_types(values: object, *, flags: Mapping[str, str] | None = None) -> None:
    """Compares the fields of a frozen record or dataclass with their annotations, in __post_init__.

    Lists become the tuples and whole numbers the floats that are annotated. Fields of other types
    than numbers, words, texts and tuples of them are passed over.

    Args:
        values: The record; its fields are set to what they were converted to.
        flags: Field -> how the command line spells it, where that is not the field's name.

    Raises:
        OptionError: Naming the option, its value and what it may be.
    """
    for name, kind in _fields(type(values)).items():
        found = getattr(values, name)
        if not _is_plain(kind):
            continue
        option = (flags or {}).get(name, flag_of(name))
        set_field(values, name, check_type(option, found, kind))


def set_field(values: object, name: str, value: object) -> None:
    """Sets a field of a frozen record or dataclass while it is made."""
    if isinstance(values, msgspec.Struct):
        msgspec.structs.force_setattr(values, name, value)
    else:
        object.__setattr__(values, name, value)


def check_type(option: str, value: object, kind: Any) -> Any:
    """A value as its annotation has it.

    Raises:
        OptionError: It is of another type.
    """
    try:
        return msgspec.convert(_plain(value), kind)
    except msgspec.ValidationError:
        words = [word for each in _union(kind) for word in _words_of(each)]
        raise refused(option, value, _expected(kind), hint=meant(value, words)) from None


def spelled(value: object, choices: Sequence[str]) -> object:
    """A word in the spelling of the choices, whatever its capitals; anything else as it is."""
    if not isinstance(value, str):
        return value
    return {choice.casefold(): choice for choice in choices}.get(value.casefold(), value)


def _fields(kind: type) -> dict[str, Any]:
    if issubclass(kind, msgspec.Struct):
        return {field.name: field.type for field in msgspec.structs.fields(kind)}
    hints = get_type_hints(kind)
    # Of a dataclass these are the annotated attributes of the class itself.
    return {name: hints[name] for name in getattr(kind, "__dataclass_fields__", {})}


def _union(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_plain(kind: Any) -> bool:
    """Whether an annotation is of numbers, words, texts, and tuples of them."""
    parts = [part for part in _union(kind) if part is not type(None)]
    for part in parts:
        inner = [each for each in get_args(part) if each is not ...]
        is_tuple = get_origin(part) is tuple and all(_is_plain(each) for each in inner)
        if part not in _WORDS and get_origin(part) is not Literal and not is_tuple:
            return False
    return True


def _expected(kind: Any) -> str:
    every = [_in_words(part) for part in _union(kind) if part is not type(None)]
    return " or ".join([*every, "left out"] if type(None) in _union(kind) else every)


def _in_words(kind: Any) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if get_origin(kind) is tuple:
        of = {int: "whole numbers", float: "numbers", str: "names"}[arguments[0]]
        return f"a list of {of}" if arguments[-1] is ... else f"{len(arguments)} {of}"
    return _WORDS[kind]


def _words_of(kind: Any) -> list[str]:
    return list(map(str, get_args(kind))) if get_origin(kind) is Literal else []


def _plain(value: object) -> object:
    """Numbers and arrays of numpy as numbers and lists of Python."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    as_list = getattr(value, "tolist", None)
    return as_list() if callable(as_list) else value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
