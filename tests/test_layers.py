"""The import order of docs/architecture.md: later may import earlier, never the reverse."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ORDER = [
    "errors",
    "system",
    "commands",
    "values",
    "memory",
    "artifacts",
    "locks",
    "parallel",
    "shards",
    "machine",
    "io",
    "networks",
    "datasets",
    "planning",
    "preprocessing",
    "transfer",
    "models",
    "nnunet",
    "training",
    "inference",
    "evaluation",
    "synthesis",
    "needs",
    "workspace",
    "pipeline",
    "arguments",
    "api",
    "cli",
]
PACKAGE = Path(__file__).parents[1] / "autoliver"
MODULES = sorted(
    p
    for p in PACKAGE.rglob("*.py")
    if p.stem not in ("__init__", "__main__") or p.parent != PACKAGE
)
TORCH_FREE = (
    "artifacts",
    "datasets",
    "io",
    "machine",
    "planning",
    "preprocessing",
    "values",
    "workspace",
)


def layer(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Every module, or name in one, that a file imports, for typing alone as well."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The ways that lead back to where they began, each once."""
    found, done = [], set[str]()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
            return
        if name in done:
            return
        for other in sorted(graph[name]):
            walk(other, [*way, name])
        done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_imports_a_later_layer(path: Path) -> None:
    own = layer(path.relative_to(PACKAGE).parts)
    for name in imports(path):
        if name.startswith("autoliver.") and name.split(".")[1] in ORDER:
            other = name.split(".")[1]
            assert ORDER.index(other) <= ORDER.index(own), f"{own} imports {name}"


def test_imports_do_not_go_in_circles() -> None:
    files = {module_name(path): path for path in MODULES}
    graph = {name: {n for n in imports(path) if n in files} for name, path in files.items()}
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}
    assert circles(graph) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_only_where_they_belong(path: Path) -> None:
    own = layer(path.relative_to(PACKAGE).parts)
    top = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    everywhere = {name.split(".")[0] for name in imports(path)}
    assert "SimpleITK" not in top, "SimpleITK is imported late"
    if own != "io":
        assert not everywhere & {"SimpleITK", "nibabel"}
    if own in TORCH_FREE or path.name == "spec.py":
        assert "torch" not in everywhere


def test_every_module_is_in_a_known_layer() -> None:
    assert {layer(p.relative_to(PACKAGE).parts) for p in MODULES} <= set(ORDER)
