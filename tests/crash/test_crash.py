"""A sample of the faults of faults.py; `python -m benchmarks.crash` does as many as are wanted."""

import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from crash.faults import KINDS, SCENARIOS, Laboratory, Outcome
from crash.scenarios import build, build_small

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None,
    reason="needs Linux and a C compiler",
)
# Of each kind one fault or two, whose later stages the long test runs.
QUICK = {
    "preprocess": ("kill", "kill", "two", "full", "failing", "vanish", "cut"),
    "predict": ("kill", "clock ahead", "full", "read-only", "cut"),
    "import over": ("kill", "two", "full", "failing"),
    "import over, NFS": ("kill", "kill", "clock back", "read-only"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """A workspace with a model."""
    laboratory = Laboratory(tmp_path_factory.mktemp("crash"), build_small)
    yield laboratory
    laboratory.close()


@pytest.mark.parametrize("name", QUICK)
def test_a_command_that_is_disturbed(name: str, small: Laboratory) -> None:
    rng = random.Random(0)
    scenario = replace(SCENARIOS[name], later=())
    faults = [fault for kind in QUICK[name] for fault in small.faults(scenario, kind, 1, rng)]
    assert len(faults) == len(QUICK[name])
    assert wrong([small.judge(scenario, fault) for fault in faults]) == []


def test_what_is_wrong_is_seen(small: Laboratory) -> None:
    """The judge itself: a command that leaves another file than expected."""
    scenario = replace(SCENARIOS["import over"], later=())
    reference = small.reference(scenario)
    [fault] = small.faults(scenario, "kill", 1, random.Random(1))
    name = next(name for name in reference.final if name.endswith("weights.safetensors"))
    right = reference.final[name]
    reference.final[name] = "another"
    try:
        assert any(name in what for what in small.judge(scenario, fault).bad)
    finally:
        reference.final[name] = right


@pytest.mark.slow
def test_all_commands_that_are_disturbed(tmp_path: Path) -> None:
    rng = random.Random(7)
    laboratory = Laboratory(tmp_path, build)
    try:
        outcomes = [
            laboratory.judge(scenario, fault)
            for scenario in SCENARIOS.values()
            for kind in KINDS
            for fault in laboratory.faults(scenario, kind, 1, rng)
        ]
    finally:
        laboratory.close()
    assert wrong(outcomes) == []


def wrong(outcomes: list[Outcome]) -> list[str]:
    return [f"{o.scenario}: {o.fault} ({o.where}): {o.bad}\n{o.told}" for o in outcomes if o.bad]
