"""The measures of CONTRIBUTING.md: functions up to 60 lines of code, classes 200, modules 400."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autoliver"
MOST = {ast.FunctionDef: 60, ast.AsyncFunctionDef: 60, ast.ClassDef: 200, ast.Module: 400}
# Commands, every option of which is a parameter with its help.
COMMANDS = {
    *("cli/prediction.py predict", "cli/prediction.py evaluate", "cli/training.py train"),
    *("cli/adopt.py adopt", "cli/convert.py convert", "cli/pseudolabel.py pseudolabel"),
    "cli/synthesize.py fit",
    "cli/report.py report",
}


def code_lines(node: ast.AST, source: list[str]) -> int:
    """Lines of a node without docstrings, comments and blank lines."""
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", len(source))
    left_out: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, tuple(MOST)) and ast.get_docstring(inner) is not None:
            left_out |= {*range(inner.body[0].lineno, inner.body[0].end_lineno + 1)}
    lines = enumerate(source[first - 1 : last], first)
    return sum(
        bool(text.strip()) and not text.lstrip().startswith("#") and number not in left_out
        for number, text in lines
    )


def too_long(path: Path) -> Iterator[str]:
    text = path.read_text()
    source = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, tuple(MOST)):
            name = f"{path.relative_to(PACKAGE)} {getattr(node, 'name', '')}".strip()
            lines = code_lines(node, source)
            if lines > MOST[type(node)] and name not in COMMANDS:
                yield f"{name}: {lines} lines"


def test_nothing_is_too_long() -> None:
    assert [found for path in sorted(PACKAGE.rglob("*.py")) for found in too_long(path)] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_exceptions_say_why(name: str) -> None:
    file, function = name.split()
    source = (PACKAGE / file).read_text().splitlines()
    place = source.index(f"def {function}(")
    assert "because every option of the command is a parameter" in source[place - 1]


def test_lines_are_counted_without_documentation() -> None:
    text = '"""M."""\n\n\ndef f():\n    """D.\n\n    More.\n    """\n    # why\n'
    text += "    x = 1\n\n    return x\n"
    function = ast.parse(text).body[1]
    assert code_lines(function, text.splitlines()) == 3
