"""A sample of the wrong artefacts of artefacts.py, and the kinds of them that were found.

`python -m benchmarks.hostile` tries all of them; `-m slow` tries every 200th.
"""

import hashlib
import json
import os
import random
import tracemalloc
from pathlib import Path

import pytest
import torch
from hostile.artefacts import (
    DEEP,
    RULES,
    SENSELESS,
    TARGETS,
    WEIGHTS,
    Arena,
    Mutant,
    Twice,
    as_text,
    corpus,
    headers,
    replaced,
    tensors_of,
)
from safetensors.torch import save_file
from small_models import SaveFold, plan, save

from autoliver.artifacts import Artifact
from autoliver.datasets.cases import Dataset
from autoliver.datasets.folds import Folds
from autoliver.datasets.pool import Pool
from autoliver.errors import ArtifactError, ModelError
from autoliver.inference.model import load_model
from autoliver.models.archive import write_archive
from autoliver.models.files import FoldModel, MemberFiles, ModelFiles
from autoliver.models.selection import CleaningRule, Selection
from autoliver.networks.checkpoint import load_network
from autoliver.planning.plan import Fingerprint, Plan

__all__ = ["plan", "save"]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena(tmp_path_factory.mktemp("hostile"))


def bad(arena: Arena, mutants: list[Mutant]) -> list[str]:
    """Those that end neither in a result nor in one error."""
    judged = ((mutant, arena.judge(mutant)) for mutant in mutants)
    return [f"{mutant}: {o.kind}: {o.told[-400:]}" for mutant, o in judged if not o.good]


@needs_fork
def test_a_sample_ends_in_a_result_or_in_one_error(arena: Arena) -> None:
    mutants = corpus(arena.root)
    assert len(mutants) > 100_000
    assert bad(arena, random.Random(20261126).sample(mutants, 8)) == []


@needs_fork
@pytest.mark.slow
def test_what_was_made_is_not_refused(arena: Arena) -> None:
    commands = {(command, target.remove) for target in TARGETS for command in target.commands}
    for command, remove in commands:
        outcome = arena.judge(Mutant("", "", lambda _: None, command, remove))
        assert outcome.kind == "result", (command, outcome)


@needs_fork
@pytest.mark.slow
def test_every_200th_ends_in_a_result_or_in_one_error(arena: Arena) -> None:
    mutants = corpus(arena.root)
    random.Random(0).shuffle(mutants)
    assert bad(arena, mutants[::200]) == []


def changed(path: Path, values: dict[str, object]) -> Path:
    """Sets fields of a model.json, named by their path."""
    raw = json.loads(path.read_text())
    for name, new in values.items():
        full = name.replace("configuration__", "plan__configurations__3d_fullres__")
        at = [int(part) if part.isdigit() else part for part in full.split("__")]
        raw = replaced(raw, tuple(at), new)
    path.write_text(as_text(raw))
    return path


# What has no bearing on what this model predicts; weights of another configuration do not fit.
HARMLESS = (
    *("fold of another name", "equal channels", "no intensities", "another configuration"),
    *("dataset with a path", "no ending", "unknown ending", "deviation of 0"),
)


@pytest.mark.parametrize("name", [name for name in SENSELESS if name not in HARMLESS])
def test_a_model_that_makes_no_sense_is_refused_by_file_and_field(
    save: SaveFold, name: str
) -> None:
    path = changed(save("fold_0") / "model.json", SENSELESS[name])
    with pytest.raises(ArtifactError) as caught:
        FoldModel.load(path)
    assert caught.value.problem.startswith(f"{path}: ")
    assert "xpected" in caught.value.problem


# All folds that there are; and what only those can tell who know the labels.
RIGHT = ("no folds", "unknown labels")


@pytest.mark.parametrize("name", [name for name in RULES if name not in RIGHT])
def test_a_selection_that_makes_no_sense_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.json"
    Selection(dataset="x", members=()).save(path)
    changed(path, {"members": [{"run": "a", "folds": ["0"]}], **RULES[name]})
    with pytest.raises(ArtifactError, match=r"expected|found more than"):
        Selection.load(path)


def test_a_rule_for_a_label_that_the_model_lacks(save: SaveFold, tmp_path: Path) -> None:
    files = ModelFiles(
        name="x",
        members=(MemberFiles(folds=(save("fold_0"),)),),
        cleaning=(CleaningRule(labels=("spleen",), keep="largest"),),
    )
    with pytest.raises(ModelError, match=r"'spleen', expected a label of the model"):
        write_archive(tmp_path / "a.autoliver", files)


@pytest.mark.parametrize("kind", [FoldModel, Selection, Plan, Fingerprint, Folds, Dataset, Pool])
def test_every_artefact_refuses_depth_and_keys_that_repeat(
    tmp_path: Path, kind: type[Artifact]
) -> None:
    head = {"kind": kind.KIND, "schema": 1, "autoliver": "0"}
    path = tmp_path / "x.json"
    for content, problem in (
        (as_text({**head, "made_from": DEEP}), "nested too deeply"),
        (as_text({**head, "made_from": Twice({})}), "'made_from' is there twice"),
    ):
        path.write_text(content)
        with pytest.raises(ArtifactError, match=rf"x\.json: .*{problem}"):
            kind.load(path)


# Weights that a network can have, though nobody trains such.
VALUES_ALONE = ("zeros", "huge")


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name not in VALUES_ALONE])
def test_weights_that_no_network_has(save: SaveFold, name: str) -> None:
    path = save("fold_0") / "weights.safetensors"
    tensors, metadata = tensors_of(path)
    tensors = {name: tensors[name] for name in sorted(tensors, reverse=True)}  # a weight first
    save_file({n: t.contiguous() for n, t in WEIGHTS[name](tensors).items()}, path, metadata)
    with pytest.raises(ModelError) as caught:
        load_network(path)
    assert caught.value.problem.startswith(f"{path}: ")


def test_a_header_that_lies_is_refused_before_memory_is_taken(save: SaveFold) -> None:
    path = save("fold_0") / "weights.safetensors"
    wrong = dict(headers(path))
    assert len(wrong) > 30
    for name, content in wrong.items():
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(ModelError) as caught:
            load_network(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert caught.value.problem.startswith(f"{path}: "), name
        assert peak < 50 * 2**20, name


def test_weights_of_another_network_than_the_description(save: SaveFold) -> None:
    one = save("fold_0")
    two = save("fold_all", configuration="2d")
    content = (two / "weights.safetensors").read_bytes()
    (one / "weights.safetensors").write_bytes(content)
    path = one / "model.json"
    FoldModel.load(path).replace(weights_sha256=hashlib.sha256(content).hexdigest()).save(path)
    files = ModelFiles(name="x", members=(MemberFiles(folds=(one,)),))
    with pytest.raises(ModelError, match="a network whose strides is"):
        load_model(files, device=torch.device("cpu"))
    with pytest.raises(ModelError, match="a network whose strides is"):
        write_archive(one / "a.autoliver", files)
