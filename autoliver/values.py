"""Checks of the values of options, with errors that name the option and what it may be.

Each option is checked where its value is defined. Errors name the option as the command line spells
it (`--batch-size`); `autoliver.api` respells it for callers of the library (`batch_size`).
"""

import difflib
import math
import os
import re
import types
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from autoliver.errors import OptionError, WrongValue

# Larger counts are typing errors, and some libraries cannot hold them.
MOST = 2**31 - 1

# Bytes of a name: disks take 255, and a longest file has 19 more (_uncertainty.nii.gz).
LONGEST_NAME = 236
_MOST_DIGITS = 18
_SHOWN = 80  # characters of a value that are shown in a message
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
}


def refused(option: str, value: object, expected: str, *, hint: str = "") -> WrongValue:
    """Returns the error for an invalid value; it always says what to give.

    Args:
        option: The option as the command line spells it.
        value: The invalid value.
        expected: What the value must be, e.g. "at least 1".
        hint: What the user can do about it; empty to give what is expected.
    """
    return WrongValue(
        f"{option} is {_shown(value)}; it must be {expected}.",
        hint=hint or f"Give {expected.replace(' or left out', ', or leave it out')}.",
    )


def counted(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun: "1 case", "2 cases", "1,000 cases".

    Args:
        number: The number.
        noun: The noun in the singular.
        plural: Its plural; empty if it only takes an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def another(noun: str) -> str:
    """Returns a noun with the word for a different one: "another plan", "other folds"."""
    return f"other {noun}" if noun.endswith("s") else f"another {noun}"


def first_few(items: Sequence[object], most: int) -> str:
    """Returns the first items of a list with the number of the others: "a, b and 3 more"."""
    shown = ", ".join(str(item) for item in items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def hints_of(hints: Iterable[tuple[str, str]], most: int | None = None) -> str:
    """Returns several hints, each once, behind what it concerns: "case_1, case_2: Export both".

    Args:
        hints: Names, as of cases, with their hints; empty hints count for nothing. If all have the
            same hint, the names are left out.
        most: The number of names that are shown for a hint; None for all.
    """
    named: dict[str, dict[str, None]] = {}
    pairs = list(hints)
    for name, hint in pairs:
        named.setdefault(hint, {})[name] = None
    if len(named) == 1:
        return pairs[0][1]
    return "\n".join(
        f"{first_few(list(names), len(names) if most is None else most)}: {hint}"
        for hint, names in named.items()
        if hint
    )


def shortened(text: str, most: int, *, middle: bool = False) -> str:
    """Returns a text of at most so many characters; where it was cut, there are three dots.

    Args:
        text: The text.
        most: Characters that it may have, at least three.
        middle: Whether its middle is cut, where the ends tell texts apart, rather than its end.
    """
    if len(text) <= most:
        return text
    end = (most - 3) // 2 if middle else 0
    return f"{text[: most - 3 - end]}...{text[len(text) - end :]}"


def name_problem(name: str, *, longest: int = LONGEST_NAME) -> str:
    """Says what a name that data brought must be to become a part of a path; "" if it may.

    Every such name passes here: of cases, runs, folds, models and datasets.

    Args:
        name: The name.
        longest: The most bytes that it may have; that of a case leaves room for endings.
    """
    parts = re.split(r"[/\\\x00-\x1f\x7f]", name)
    if len(parts) > 1 or name.strip() in ("", ".", "..") or len(os.fsencode(name)) > longest:
        return f"a name of 1 to {longest} bytes without slashes, line breaks and control characters"
    return ""


def flag_of(field: str) -> str:
    """Returns the option that sets a field, as the command line spells it, e.g. --batch-size."""
    return f"--{field.replace('_', '-')}"


def meant(name: object, known: Iterable[str]) -> str:
    """Returns the question "Did you mean X?" for the closest known name; empty if none is close."""
    forms = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(name).casefold().replace("-", "_"), forms, n=1)
    near = near or difflib.get_close_matches(str(name).casefold(), forms, n=1)
    return f"Did you mean {forms[near[0]]}?" if near else ""


def check_choice(option: str, value: object, choices: Sequence[str]) -> str:
    """Checks that a value is one of the allowed words, and returns it.

    Raises:
        OptionError: The value is not one of them.
    """
    word = spelled(value, choices)
    if isinstance(word, str) and word in choices:
        return word
    raise refused(option, value, f"one of {', '.join(choices)}", hint=meant(value, choices))


def check_whole(option: str, value: object, *, least: int, most: int = MOST) -> int:
    """Checks that a value is a whole number from `least` to `most`, and returns it.

    Raises:
        OptionError: The value is not a whole number, or out of bounds.
    """
    number = _plain(value)
    nearest = _nearest(number, least, most)
    hint = f"The nearest value is {nearest:.0f}." if nearest is not None else ""
    if isinstance(number, bool) or not isinstance(number, int):
        raise refused(option, value, "a whole number", hint=hint)
    if number < least:
        raise refused(option, value, f"at least {least}", hint=hint)
    if number > most:
        raise refused(option, value, f"at most {most}", hint=hint)
    return number


def natural(value: object) -> int | None:
    """Converts a whole number >= 0, or a text of its digits; returns None for anything else.

    Among that are texts of more digits than any count has, which Python takes long to convert or
    refuses, and digits that are no numbers to it, such as a superscript 2.
    """
    if isinstance(value, str):
        digits = len(value) <= _MOST_DIGITS and value.isascii() and value.isdigit()
        return int(value) if digits else None
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
    """Checks that a value is a finite number within bounds, and returns it as a float.

    Args:
        option: The option as the command line spells it.
        value: The value to check.
        above: A bound that the value must exceed.
        least: The smallest value allowed; if given, it replaces `above`.
        most: The largest value allowed.

    Raises:
        OptionError: The value is not a number, is NaN or infinite, or is out of bounds.
    """
    number = _plain(value)
    low = above if least is None else least
    if least is not None and most < math.inf:
        expected = f"a number from {least:g} to {most:g}"
    elif low > -math.inf:
        expected = f"a finite number {'above' if least is None else 'of at least'} {low:g}"
        expected += f" and at most {most:g}" if most < math.inf else ""
    elif most < math.inf:
        expected = f"a finite number of at most {most:g}"
    else:
        expected = "a finite number"
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise refused(option, value, expected)
    inside = number > above if least is None else number >= least
    if not (math.isfinite(number) and inside and number <= most):
        # There is none above an open bound.
        open_below = least is None and number <= above
        nearest = None if open_below else _nearest(number, low, most)
        hint = f"The nearest value is {nearest:g}." if nearest is not None else ""
        raise refused(option, value, expected, hint=hint)
    return float(number)


def _nearest(number: object, least: float, most: float) -> float | None:
    """The number within bounds that is nearest to another one; None where there is none."""
    if isinstance(number, bool) or not isinstance(number, int | float) or number != number:
        return None
    nearest = min(max(number, least), most)
    return nearest if math.isfinite(nearest) else None


def check_flag(option: str, value: object) -> bool:
    """Checks that a value is True or False, and returns it.

    Raises:
        OptionError: The value is neither.
    """
    if isinstance(value, bool):
        return value
    raise refused(option, value, "True or False")


def check_text(option: str, value: object, expected: str = "a name") -> str:
    """Checks that a value is a text or a path that is not empty, and returns it as text.

    Raises:
        OptionError: The value is empty, or neither a text nor a path.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if isinstance(text, str) and text.strip() and "\0" not in text:
        return text
    raise refused(option, value, expected)


def check_texts(
    option: str, value: object, expected: str = "a name or a list of names"
) -> tuple[str, ...]:
    """Checks that a value is one text or several, as in `check_text`, and returns a tuple of them.

    Raises:
        OptionError: One of them is empty, or neither a text nor a path.
    """
    if isinstance(value, str | os.PathLike):
        return (check_text(option, value, expected),)
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise refused(option, value, expected)
    return tuple(check_text(option, each, expected) for each in value)


def check_known(
    given: Iterable[str], known: Iterable[str], *, of: str, aliases: Container[str] = ()
) -> None:
    """Checks that every given option exists.

    Args:
        given: The names of the options that were given.
        known: The names of the options that exist.
        of: The command that takes the options, for the message.
        aliases: Those among them that are second names, which are not proposed.

    Raises:
        OptionError: An option does not exist. The error names the first such option, and the
            closest known one or all known ones.
    """
    names = list(dict.fromkeys(known))
    for name in given:
        if name not in names:
            proposed = [each for each in names if each not in aliases]
            hint = meant(name, proposed) or f"It takes {', '.join(proposed)}."
            raise OptionError(f"{of} has no option '{name}'.", hint=hint)


def check_types(values: object, *, flags: Mapping[str, str] | None = None) -> None:
    """Checks the fields of a frozen record or dataclass against their annotations.

    It is meant to be called in `__post_init__`. Where the annotation asks for it, lists are
    converted to tuples and whole numbers to floats. Only numbers, literals, texts and tuples of
    these are checked; fields of other types are skipped.

    Args:
        values: The record; its fields are set to the converted values.
        flags: Field -> the option as the command line spells it, for options that are not spelled
            like their field.

    Raises:
        OptionError: A field has the wrong type. The error names the option, its value and what it
            may be.
    """
    for name, kind in _fields(type(values)).items():
        found = getattr(values, name)
        if not _is_plain(kind):
            continue
        option = (flags or {}).get(name, flag_of(name))
        set_field(values, name, check_type(option, found, kind))


def set_field(values: object, name: str, value: object) -> None:
    """Sets a field of a frozen record or dataclass; only for use while it is constructed."""
    if isinstance(values, msgspec.Struct):
        msgspec.structs.force_setattr(values, name, value)
    else:
        object.__setattr__(values, name, value)


def check_type(option: str, value: object, kind: Any) -> Any:
    """Converts a value to an annotated type.

    Raises:
        OptionError: The value does not have this type.
    """
    words = [word for each in _union(kind) for word in _words_of(each)]
    try:
        return msgspec.convert(spelled(_plain(value), words), kind)
    except msgspec.ValidationError:
        raise refused(option, value, _expected(kind), hint=meant(value, words)) from None


def spelled(value: object, choices: Sequence[str]) -> object:
    """Replaces a word by the choice that differs only in case, or in - and _.

    Other values are returned unchanged.
    """
    if not isinstance(value, str) or value in choices:
        return value
    return {_plain_word(choice): choice for choice in choices}.get(_plain_word(value), value)


def _plain_word(word: str) -> str:
    return word.casefold().replace("-", "_")


def _fields(kind: type) -> dict[str, Any]:
    if issubclass(kind, msgspec.Struct):
        return {field.name: field.type for field in msgspec.structs.fields(kind)}
    hints = get_type_hints(kind)
    # For a dataclass, these are the annotated attributes of the class itself.
    return {name: hints[name] for name in getattr(kind, "__dataclass_fields__", {})}


def _union(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_plain(kind: Any) -> bool:
    """Whether an annotation consists of numbers, literals, texts and tuples of these only."""
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
    """Converts numbers and arrays of numpy to numbers and lists of Python."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    as_list = getattr(value, "tolist", None)
    return as_list() if callable(as_list) else value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
