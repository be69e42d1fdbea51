"""Commands and options that texts name, tried on the real command line without running anything."""

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from autoliver.cli.main import app
from autoliver.planning.names import CONFIGURATION_NAMES

HOLE = "\ue000"  # an expression in an f-string
DOTS = "\ue001"  # "...", which stands for words left out

# Words that follow the name of the program, or of the package, in a sentence.
PROSE = {"as", "do", "exported", "instead", "is", "make", "makes", "nor", "on", "wrote"}
# Options of other programs, and of benchmarks, that messages and documents name.
FOREIGN_OPTIONS = {
    *("--force-reinstall", "--index-url", "--upgrade", "--shm-size", "--ipc"),
    *("--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id"),
    *("--rdzv-conf", "--local-addr", "--max-restarts", "--nthreads"),
    *("--array", "--dependency", "--gres", "--open-mode", "--parsable", "--signal"),
    *("--every", "--plain", "--shape"),  # of our benchmarks
    *(
        "--c",
        "--chill",
        "--disable_tta",
        "--npz",
        "--save_probabilities",
        "--verify_dataset_integrity",
    ),
}
FOREIGN_TOOL = re.compile(r"(nnUNetv2_|torchrun|pip |python|pytest|bash|ruff|tensorboard|rm )")

UsageError = typer.BadParameter.__mro__[1]
GROUP: Any = typer.main.get_command(app)
# Name -> command; those of a group are called by two words.
COMMANDS: dict[str, Any] = {
    f"{name} {inner}".strip(): command
    for name, each in GROUP.commands.items()
    for inner, command in getattr(each, "commands", {"": each}).items()
}
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}

_COMMAND = re.compile(r"\bautoliver +([a-z][a-z_-]*)")
_END = re.compile(r"[`';)\n]| \(|[,:](?= |$)|\.(?= |$)| && | \|")
_GLUED = (".", ",", ":", ";")
_SPAN = re.compile(r"`([^`]+)`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
_OF_COMMAND = re.compile(rf"(?<![\w-])({'|'.join(COMMANDS)}) +(--?[a-zA-Z][a-z0-9-]*)")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_/.@,:|]*|\d\.\.\d")
_FITS_ARGUMENTS = "3d_fullres"


@dataclass(frozen=True)
class Text:
    """A text and where it stands."""

    where: str
    text: str


def texts_of_python(source: str, *, where: str) -> Iterator[Text]:
    """The strings of a module but for regular expressions.

    f-strings come with holes, and what `+` puts together comes as one.
    """
    tree = ast.parse(source)
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }

    patterns = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re.") and node.args
    }

    def walk(node: ast.AST) -> Iterator[Text]:
        if id(node) in patterns:
            return
        text = _text(node)
        if text is None:
            children: Sequence[ast.AST] = list(ast.iter_child_nodes(node))
        else:
            if id(node) in documentation:
                text = " ".join(text.split())
            yield Text(where=f"{where}:{getattr(node, 'lineno', 0)}", text=text)
            children = list(_holes(node))
        for child in children:
            yield from walk(child)

    yield from walk(tree)


def _text(node: ast.AST) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(HOLE if (text := _text(part)) is None else text for part in parts)
        case ast.Call(func=ast.Name(id="command"), args=words, keywords=keywords):
            given = {keyword.arg: keyword.value for keyword in keywords}
            options = [_word(ast.Starred(given["options"]))] if "options" in given else []
            place = [f"-w {HOLE}"] if "workspace" in given else []
            return " ".join(["autoliver", *(_word(word) for word in words), *options, *place])
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            texts = [_text(left), _text(right)]
            if texts == [None, None]:
                return None
            return "".join(f" {DOTS} " if text is None else text for text in texts)
    return None


def _word(node: ast.AST) -> str:
    """A word of a command, or several."""
    match node:
        case ast.Starred(value=ast.Tuple(elts=words) | ast.List(elts=words)):
            return " ".join(map(_word, words))
        case ast.Starred():
            return DOTS
    return _text(node) or HOLE


def _holes(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a text that have no text of their own."""
    for child in ast.iter_child_nodes(node):
        if _text(child) is None:
            yield child
        else:
            yield from _holes(child)


def texts_of_markdown(source: str, *, where: str, skipped_cells: int = 0) -> Iterator[Text]:
    """The lines of code blocks, and what stands in backticks.

    Args:
        source: The document.
        where: Its name.
        skipped_cells: Cells at the beginning of a table's rows that are about another program.
    """
    prose, fence = [], ""
    for number, line in enumerate(source.splitlines(), 1):
        if line.startswith("```"):
            fence = "" if fence else line
        elif fence.startswith("```python"):
            continue
        elif fence or line.startswith("    "):
            code = re.sub(r"(^|\s)#.*", "", line).strip()
            yield from _of_ours(code.split(" && "), f"{where}:{number}")
        else:
            cells = re.split(r"(?<!\\)\|", line) if line.startswith("|") else [line]
            prose.append(" ".join(cells[1 + skipped_cells :] if len(cells) > 1 else cells))
    spans = [" ".join(span.split()) for span in _SPAN.findall("\n".join(prose))]
    yield from _of_ours([f"`{span.replace(chr(92) + '|', '|')}`" for span in spans], where)


def _of_ours(pieces: Sequence[str], where: str) -> Iterator[Text]:
    for piece in pieces:
        if FOREIGN_TOOL.match(piece.lstrip("`")):
            _, found, rest = piece.partition("-m autoliver ")
            if found:
                yield Text(where=where, text=f"`autoliver {rest}")
        else:
            yield Text(where=where, text=piece)


def problems(text: str) -> list[str]:
    """What is wrong with the commands and options that a text names."""
    text = text.replace("...", DOTS)
    found = [*_commands(text), *_spans(text)]
    for name, option in _OF_COMMAND.findall(text):
        if option not in {*_options(COMMANDS[name]), "--help"}:
            found.append(f"{name} has no option {option}")
    known = {option for command in COMMANDS.values() for option in _options(command)}
    known |= FOREIGN_OPTIONS | _options(GROUP).keys() | {"--help"}
    for match in _OPTION.finditer(text):
        option, following = match[0], text[match.end() : match.end() + 1]
        fits = option in known
        if following == HOLE:
            fits = any(each.startswith(option) for each in known)
        if not fits:
            found.append(f"no command has an option {option}")
    return list(dict.fromkeys(found))


def _commands(text: str) -> Iterator[str]:
    """Problems of "autoliver COMMAND ...", which must be a whole command line.

    In quotes a command may be named alone, or with an option alone.
    """
    for match in _COMMAND.finditer(text):
        name, end = match[1], _END.search(text, match.end())
        if name not in COMMANDS and name not in GROUPS:
            if name not in PROSE:
                yield f"there is no command 'autoliver {name}'"
            continue
        words = shlex.split(text[match.end() : end.start() if end else len(text)])
        if name in GROUPS:
            name = " ".join([name, *words[:1]])
            words = words[1:]
            if name not in COMMANDS:
                yield f"there is no command 'autoliver {name}'"
                continue
        quoted = text[: match.start()].endswith(("`", "'"))
        if words and not quoted and end and end[0] in _GLUED:
            yield f"autoliver {shlex.join([name, *words])}: '{end[0]}' would be pasted with it"
        named = quoted and (not words or words[-1].startswith("-"))
        problem = misuse(name, words, whole=not named)
        if problem:
            yield f"autoliver {shlex.join([name, *words])}: {problem}"


def commands_in(text: str) -> list[list[str]]:
    """The words of each command that a text tells people to type, without the program's name."""
    found = []
    for match in _COMMAND.finditer(text):
        end = _END.search(text, match.end())
        words = shlex.split(text[match.end() : end.start() if end else len(text)])
        found.append([match[1], *words])
    return found


def _spans(text: str) -> Iterator[str]:
    """Problems of `COMMAND ...` and `--option VALUE`, where words may be left out."""
    for span in _SPAN.findall(text):
        words = span.split()
        if " ".join(words[:2]) in COMMANDS:
            words = [" ".join(words[:2]), *words[2:]]
        names = [words[0]] if words and words[0] in COMMANDS else []
        if words and re.match(r"--?[a-zA-Z]", words[0]):
            names = [name for name, each in COMMANDS.items() if words[0] in _options(each)]
        else:
            words = words[1:]
        # Without a name the words of several options in a row may be of any command.
        found = [misuse(name, words, whole=False) for name in names]
        if found and None not in found:
            yield f"`{span}`: {found[0]}"


def misuse(name: str, words: Sequence[str], *, whole: bool = True) -> str | None:
    """Why a command refuses its words; None: it takes them.

    Args:
        name: The command.
        words: What follows it; placeholders (NAME, an f-string's hole) get values that fit.
        whole: Whether all that it needs must be there.
    """
    command, options = COMMANDS[name], _options(COMMANDS[name])
    given, rest = [], [word for word in words if word != DOTS]
    whole = whole and len(rest) == len(words)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--?[a-zA-Z]", word):
            given.append(_FITS_ARGUMENTS if _stands_for_another(word) else word)
            continue
        option = options.get(word)
        if word == "--help":
            return None
        if option is None:
            return f"{name} has no option {word}"
        number = 0 if option.is_flag else option.nargs
        if number and not rest and not whole:
            return None  # named, without a value
        given.append(word)
        values, rest = rest[:number], rest[number:]
        given += [_value(name, word, value) for value in values]
    return _refusal(command, given, whole=whole)


def _refusal(command: Any, words: Sequence[str], *, whole: bool) -> str | None:
    """Why a command refuses words without placeholders; if not `whole`, what it lacks is added."""
    words = list(words)
    while True:
        try:
            context = command.make_context(command.name, list(words), resilient_parsing=False)
        except UsageError as error:
            lacks = type(error).__name__ == "MissingParameter" and getattr(error, "param", None)
            if whole or not lacks:
                return str(error)
            words += [*lacks.opts[:1], _FITS_ARGUMENTS] if lacks.opts[0][:1] == "-" else []
            words += [_FITS_ARGUMENTS] if lacks.opts[0][:1] != "-" else []
        except typer.Exit:  # --help
            return None
        else:
            break
    given = context.params
    names = [given.get("configuration"), *(given.get("configurations") or ())]
    wrong = [name for name in names if name not in (None, *CONFIGURATION_NAMES)]
    return f"there is no configuration {wrong[0]}" if wrong else None


def _value(name: str, option: str, word: str) -> str:
    """The word, or a value that the option takes where the word stands for one."""
    if not _stands_for_another(word):
        return word
    if HOLE not in word and _takes(name, option, word):
        return word  # M, XL, CT
    choices = [choice for choice in word.split("|") if not _stands_for_another(choice)]
    if len(choices) > 1:
        return next((each for each in choices if not _takes(name, option, each)), choices[0])
    return _sample(name, option) or word


def _stands_for_another(word: str) -> bool:
    return HOLE in word or DOTS in word or "|" in word or bool(_PLACEHOLDER.fullmatch(word))


@cache
def _sample(name: str, option: str) -> str | None:
    """A value that an option takes."""
    number = _options(COMMANDS[name])[option].nargs
    tried = ["1", _FITS_ARGUMENTS]
    refusal = _refusal(COMMANDS[name], [option, *tried[1:] * number], whole=False)
    tried += re.findall(r"'([^']+)'", refusal or "")  # a refusal names the choices
    return next((value for value in tried if _takes(name, option, value)), None)


def _takes(name: str, option: str, value: str) -> bool:
    number = _options(COMMANDS[name])[option].nargs
    return _refusal(COMMANDS[name], [option, *[value] * number], whole=False) is None


def _options(command: Any) -> dict[str, Any]:
    """Spelling -> option."""
    return {
        spelling: parameter
        for parameter in command.params
        for spelling in (*parameter.opts, *parameter.secondary_opts)
        if spelling.startswith("-")
    }


def texts_of_project(root: Path) -> Iterator[Text]:
    """The texts of the package, the README and the documents."""
    for path in sorted((root / "autoliver").rglob("*.py")):
        yield from texts_of_python(path.read_text(), where=str(path.relative_to(root)))
    scripts = "".join(path.read_text() for path in (root / "benchmarks").rglob("*.py"))
    of_scripts = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', scripts))
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        theirs = 1 if path.name == "nnunet.md" else 0
        where = str(path.relative_to(root))
        for text in texts_of_markdown(path.read_text(), where=where, skipped_cells=theirs):
            named = set(_OPTION.findall(text.text))
            if path.name == "RESULTS.md" and named and named <= of_scripts:
                continue  # about a script of benchmarks/
            yield text
