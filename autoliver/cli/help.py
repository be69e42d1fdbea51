"""Help pages: options in named groups, values in words, and an example."""

import inspect
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from autoliver.cli.options import GENERAL
from autoliver.commands import command, completed
from autoliver.errors import AutoliverError
from autoliver.values import counted, meant, spelled

# Wrong usage of the command line; typer may bring its own copy of the class, without a public name.
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

# The words of the command line that is being run, without the program's name.
given_words: ContextVar[tuple[str, ...]] = ContextVar("given_words", default=())
# The workspace, if it was named by the variable and not by an option.
workspace_of_variable: ContextVar[str | None] = ContextVar("workspace_of_variable", default=None)
# The command that names a finder, as it stands where nobody knows what was typed.
_WITH_FINDER = re.compile(
    r"autoliver predict -i IN -o OUT -m ('[^']*'|\S+) --roi-from MODEL( -w ('[^']*'|\S+))?"
)
# The command that starts a fold over, as it stands there.
_FOLD_ANEW = re.compile(r"autoliver train DATASET CONFIG(?: --fold N)? --fresh\b")
# What a value is called where the option gives it no name.
_VALUES = {"int": "N", "float": "F", "str": "TEXT", "path": "PATH", "file": "FILE"}


class HelpfulCommand(TyperCommand):
    """A command whose help has a group for each `rich_help_panel`; its epilog is an example."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.params:
            # What cannot be read is an error of the system, with its remedy, not of usage.
            kind: Any = getattr(parameter, "type", None)
            if hasattr(kind, "readable"):
                kind.readable = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the command line; what is wrong with it is said in plain words."""
        given = list(map(str, args))  # reading them takes them out
        _refuse_unprintable(given)
        given_words.set((*_names(ctx), *given))
        self._refuse_empty(given)
        choices = self._choices()
        try:
            words = _spelled_out(_with_values(given), choices)
            rest = list(super().parse_args(ctx, _with_lists(words, self._lists())))
            source = ctx.get_parameter_source("workspace")
            by_variable = source is not None and source.name == "ENVIRONMENT"
            workspace_of_variable.set(str(ctx.params["workspace"]) if by_variable else None)
            return rest
        except typer.BadParameter as error:
            error.message = _in_plain_words(error)
            known = choices.get(max(getattr(error.param, "opts", None) or [""], key=len), ())
            wrong = re.match(r"'(.*)' is not one of ", error.message)
            if wrong and known:
                error.message = f"{error.message} {meant(wrong[1], known)}".rstrip()
            raise
        except USAGE_ERROR as error:
            files = [word for word in given if Path(word).is_file()]
            if "unexpected extra argument" in error.message and len(files) > 1:
                error.message = (
                    f"{counted(len(files), 'file')} in place of one: a shell makes them of a "
                    "pattern such as *.nii.gz. Give the folder that holds them instead."
                )
            raise

    def _lists(self) -> set[str]:
        """The options that take several numbers, such as [Z] Y X."""
        return {
            option
            for each in self.params
            if " " in (getattr(each, "metavar", None) or "") and each.nargs == 1
            for option in each.opts
        }

    def _choices(self) -> dict[str, tuple[str, ...]]:
        """Maps each spelling of an option that takes one of some words to these words."""
        kinds = get_type_hints(inspect.unwrap(self.callback)) if self.callback else {}
        words = {name: _words_of(kind) for name, kind in kinds.items()}
        return {
            option: words[each.name]
            for each in self.params
            if words.get(each.name or "")
            for option in each.opts
        }

    def _refuse_empty(self, given: list[str]) -> None:
        """Refuses values that are empty or blank, as of a shell's variable that is not set."""
        names = {word: max(each.opts, key=len) for each in self.params for word in each.opts}
        for before, value in zip(["", *given], given, strict=False):
            option = value.removesuffix("=") if value.startswith("--") else before
            if not value.strip() or (value.endswith("=") and option in names):
                arguments = [
                    each.name or "" for each in self.params if each.param_type_name == "argument"
                ]
                raise typer.BadParameter(
                    f"{names.get(option) or ' or '.join(arguments) or 'an argument'} is empty. Was "
                    "a variable of the shell meant that is not set?"
                )

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; its errors name the dataset and the workspace in their commands."""
        try:
            return super().invoke(ctx)
        except AutoliverError as error:
            given, names = ctx.params, [each.name for each in self.params]
            named = (given.get("dataset") or "") if "dataset" in names else None
            place = given.get("workspace")
            error.hint = _as_typed(error.hint, ctx)
            error.problem = completed(error.problem, dataset=named, workspace=place)
            error.hint = completed(error.hint, dataset=named, workspace=place)
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The parts of the usage line: [OPTIONS] and the names of the arguments."""
        return [re.sub(r"^\{(.*)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments and options, group by group."""
        _write_groups(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - of the base class
        """Writes the example as it can be typed, without wrapping it."""
        if self.epilog:
            with formatter.section("Example"):
                formatter.write(f"{'':{formatter.current_indent}}{self.epilog}\n")


class HelpfulGroup(TyperGroup):
    """The program itself: its options and the commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options, and then the commands."""
        _write_groups(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def words_without(option: str) -> tuple[str, ...]:
    """The words of the command line that is being run, without an option and its value."""
    given = list(given_words.get())
    kept: list[str] = []
    while given:
        word = given.pop(0)
        if word == "--":  # what follows are no options
            return (*kept, word, *given)
        if word == option:
            del given[:1]
        elif not word.startswith(f"{option}="):
            kept.append(word)
    return tuple(kept)


def typed(without: str = "", *, more: Sequence[str] = ()) -> str:
    """The command line that is being run, for a shell in which no variable is set.

    Args:
        without: An option that is left out with its value; empty for none.
        more: Further options with their values.
    """
    words = list(words_without(without) if without else given_words.get())
    place = workspace_of_variable.get()
    at = words.index("--") if "--" in words else len(words)
    words[at:at] = [*more, *(["-w", place] if place is not None else [])]
    return shlex.join(["autoliver", *words])


def _as_typed(hint: str, ctx: Any) -> str:
    """A hint in which the running command is suggested with the words that were typed."""
    if ctx.info_name == "predict":
        again = typed("--roi-from", more=["--roi-from", "MODEL"])
        return _WITH_FINDER.sub(lambda _: again, hint)
    fold = str(ctx.params.get("fold"))
    if ctx.info_name == "train" and (fold.isdigit() or fold == "all"):
        again = typed(more=["--fresh"])
        return _FOLD_ANEW.sub(lambda _: again, hint)
    return hint


def _names(ctx: Any) -> Iterator[str]:
    """The names of a command and of the group that it is in, without that of the program."""
    if ctx.parent is not None:
        yield from _names(ctx.parent)
        yield str(ctx.info_name)


def show_help(ctx: typer.Context, names: Sequence[str]) -> str:
    """The help of a command, such as `synthesize fit`, or of the program if none is named.

    Raises:
        typer.BadParameter: There is no such command.
    """
    place: Any = ctx.find_root()
    for name in names:
        inside = getattr(place.command, "commands", {})
        if name not in inside:
            near = meant(name, [each.name for each in inside.values() if not each.hidden])
            path = " ".join([*_names(place), name])
            raise typer.BadParameter(f"there is no command '{path}'. {near}".rstrip())
        place = type(place)(inside[name], info_name=name, parent=place)
    with place:
        return str(place.get_help())


def help_hint(error: Any) -> str:
    """Names the command that explains what was used wrongly."""
    context = error.ctx
    if context is None or context.parent is None:
        return f"Commands and options: {command('--help')}"
    return f"Its options: {command('help', *_names(context))}"


def _refuse_unprintable(given: list[str]) -> None:
    """Refuses words that no message, table or JSON file can hold, most of them names of files.

    Raises:
        DatasetError: A word holds bytes that are no text, or control characters.
    """
    for word in given:
        if not word.isprintable():
            from autoliver.io.paths import check_printable

            check_printable(word)


def _words_of(kind: Any) -> tuple[str, ...]:
    """The words of a literal type, or of those in a union or a list."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in _words_of(part))


def _with_values(given: list[str]) -> list[str]:
    """Gives its usual value to an option that may stand without one."""
    words = []
    for word, after in zip(given, [*given, ""][1:], strict=True):
        words.append(word)
        if word in _USUAL and re.fullmatch(r"-?[\d.]+", after) is None:
            words.append(_USUAL[word])
    return words


# Option -> its value where none follows; such values are numbers.
_USUAL = {"--watch": "5"}


def _with_lists(given: list[str], lists: set[str]) -> list[str]:
    """Joins the numbers after options that take several of them: 64 96 is 64,96."""
    words: list[str] = []
    inside = False
    for before, word in zip(["", *given], given, strict=False):
        number = word.isascii() and word.isdigit()
        if inside and number:
            words[-1] += f",{word}"
            continue
        inside = before in lists and number
        words.append(word)
    return words


def _spelled_out(given: list[str], choices: Mapping[str, Sequence[str]]) -> list[str]:
    """Spells values of options as they are listed: Omnia is omnia, EfficientNet-B0 its name."""
    words = []
    for before, word in zip(["", *given], given, strict=False):
        option, sign, value = word.partition("=")
        if sign and option in choices:
            words.append(f"{option}={spelled(value, choices[option])}")
        else:
            words.append(str(spelled(word, choices.get(before, ()))))
    return words


def _in_plain_words(error: typer.BadParameter) -> str:
    """Rewords what typer passes on from pydantic: which value it is, and what it must be."""
    message = error.message.removeprefix("Value error, ")
    found = re.fullmatch(r"Input should be ((?:a valid )?\w+(?: than or equal to)?)(.*)", message)
    details = getattr(error.__context__, "errors", None)
    if found is None or found[1] not in _EXPECTED or details is None:
        return message
    rest = found[2] if found[2].startswith(" ") else ""  # the bound
    return f"it is {details()[0]['input']!r}; it must be {_EXPECTED[found[1]]}{rest}."


_EXPECTED = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}


def _write_groups(command: Any, ctx: Any, formatter: Any) -> None:
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if parameter.name == "help" and GENERAL in groups:
                kind = GENERAL
            group = getattr(parameter, "rich_help_panel", None) or kind
            groups.setdefault(group, []).append((_name(record[0]), _text(record[1])))
    for group, records in groups.items():
        with formatter.section(group):
            formatter.write_dl(records, col_max=_NAMES)


_NAMES = 26  # columns for the names of options; a longer name has a line of its own


def _name(spelling: str) -> str:
    """The spelling of an option with its value, or of an argument, without names of types."""
    if not spelling.startswith("-"):
        return spelling.partition(" ")[0]

    def value(found: re.Match[str]) -> str:
        kind = found[1]
        return kind if "|" in kind else _VALUES.get(kind.partition(" ")[0], "VALUE")

    return re.sub(r"<([^<>]+)>", value, spelling)


def _text(text: str) -> str:
    """The explanation, with default and bounds in words and in one pair of brackets."""
    text = re.sub(r"([-\d.]+)<=x<=([-\d.]+)", r"from \1 to \2", text)
    text = re.sub(r"\bx>=([-\d.]+)", r"at least \1", text)
    text = re.sub(r"\bx<=([-\d.]+)", r"at most \1", text)
    text = re.sub(r"\]\s+\[", "; ", text)
    return re.sub(r"\s+\[", " [", text)
