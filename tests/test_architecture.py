"""docs/architecture.md says what is so: its paths, types, import order and proofs."""

import ast
import re
from pathlib import Path

import pytest
import typer
from test_layers import ORDER

from autoliver.cli.main import app
from autoliver.machine import Machine
from autoliver.training.options import TrainingOptions

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()
ROWS = [line.split("|")[1:-1] for line in PAGE.splitlines() if re.match(r"\| an? ", line)]

# How options are spelt that are not called like their field.
SPELT = {
    "limits": ("--workers", "--memory-gb"),
    "heads": ("--reset-heads",),
    "replay_warmup": ("--synthetic-warmup",),
}
# Fields that are no option of a training: what it is made from, what --extend adds to, whether its
# folds have seeds of their own, which those of earlier versions have not, and the number of folds
# that --gpus puts on the same GPU.
KEPT = {"made_from", "extensions", "fold_seeds", "sharing"}


def defined(path: Path) -> set[str]:
    """The names that a module defines at its top."""
    names = set[str]()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_every_path_is_there() -> None:
    paths = re.findall(r"`((?:autoliver|tests|docs)/[\w/.]*)`", PAGE)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\(([^)#]+)", PAGE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_types_are_where_it_says() -> None:
    named = re.findall(r"((?:`\w+`(?:\*\*)?(?: and \*\*)?)+) \(`(autoliver/[\w/]+\.py)`\)", PAGE)
    assert len(named) >= 6
    for names, path in named:
        for name in re.findall(r"`(\w+)`", names):
            assert name in defined(ROOT / path), f"{path} does not define {name}"


def test_the_import_order_is_the_tested_one() -> None:
    block = re.search(r"^    errors < .*?\n\n", PAGE, re.M | re.S)
    assert block is not None
    assert re.findall(r"\w+", block[0]) == ORDER


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_every_extension_has_a_proof(row: list[str]) -> None:
    _, change, proof = row
    assert re.search(r"`autoliver/", change)
    (link,) = re.findall(r"\]\(\.\./(tests/[\w/.]+)\)", proof)
    assert "def test_" in (ROOT / link).read_text()


def test_the_page_has_the_extensions() -> None:
    assert len(ROWS) >= 6


@pytest.mark.parametrize(
    "field",
    sorted({*Machine.__struct_fields__, *TrainingOptions.__struct_fields__} - KEPT),
)
def test_every_field_is_an_option_of_train(field: str) -> None:
    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    options = {word for parameter in train.params for word in parameter.opts}
    assert set(SPELT.get(field, (f"--{field.replace('_', '-')}",))) <= options
