"""The import order of DESIGN.md section 6: later may import earlier, never the reverse."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ORDER = [
    "errors",
    "artifacts",
    "memory",
    "parallel",
    "io",
    "description",
    "layouts",
    "dataset",
    "networks",
    "planning",
    "preprocessing",
    "transfer",
    "training",
    "inference",
    "evaluation",
    "synthesis",
    "needs",
    "workspace",
    "pipeline",
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
    "dataset",
    "description",
    "layouts",
    "io",
    "planning",
    "preprocessing",
    "workspace",
)


def layer(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_imports_a_later_layer(path: Path) -> None:
    own = layer(path.relative_to(PACKAGE).parts)
    for name in imports(path):
        if name.startswith("autoliver.") and name.split(".")[1] in ORDER:
            other = name.split(".")[1]
            assert ORDER.index(other) <= ORDER.index(own), f"{own} imports {name}"


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
