"""The tree in README.md has a line on every file of the package, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tree_of(text: str) -> dict[str, str]:
    """Path -> what is said of it, of a tree whose folders are indented by two blanks."""
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in text.splitlines():
        indent, name, said = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()  # type: ignore[union-attr]
        folders = folders[: len(indent) // 2]
        path = "/".join([*folders, name.rstrip("/")])
        found[path] = said
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
    return found


TREE = tree_of((ROOT / "README.md").read_text().split("```")[1].strip("\n"))


def test_the_tree_has_every_file_of_the_package_by_its_path() -> None:
    files = (path.relative_to(ROOT) for path in (ROOT / "autoliver").rglob("*.py"))
    package = {str(path) for path in files if path.name not in ("__init__.py", "__main__.py")}
    assert {path for path in TREE if path.startswith("autoliver/") and ".py" in path} == package


def test_the_tree_has_every_document() -> None:
    assert {path for path in TREE if path.endswith(".md")} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")
    }


def test_every_path_of_the_tree_is_there_and_something_is_said_of_each_file() -> None:
    assert [path for path in TREE if not (ROOT / path).exists()] == []
    assert [path for path, said in TREE.items() if (ROOT / path).is_file() and not said] == []


def test_a_tree_is_read_by_its_indentation() -> None:
    text = "a/\n  one.py   first\n  b/\n    two.py  second\n  three.py third\nc/  folder"
    assert tree_of(text) == {
        "a": "",
        "a/one.py": "first",
        "a/b": "",
        "a/b/two.py": "second",
        "a/three.py": "third",
        "c": "folder",
    }
