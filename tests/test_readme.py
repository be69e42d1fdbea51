import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tree_names_every_module() -> None:
    tree = (ROOT / "README.md").read_text().split("```")[1]
    named = set(re.findall(r"[a-z0-9_]+\.py", tree))
    package = {p.name for p in (ROOT / "autoliver").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert package - named == set()
    assert {n for n in named if not list(ROOT.rglob(n))} == set()
