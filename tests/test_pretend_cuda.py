"""What a GPU would be asked to do, counted on a pretended one; and limits on it.

The limits are what is measured: whoever makes the product wait or launch less lowers them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

# Configuration, figure, limit (what is measured, rounded up), target (issue 19; None: none).
LIMITS: list[tuple[str, str, float, float | None]] = [
    ("step tiny 2d", "syncs", 1, 1),
    ("step 3d", "syncs", 1, 1),
    ("train 3d", "syncs", 1, 1),
    ("augment 3d", "syncs", 0, 0),
    ("augment 2d of 366", "syncs", 0, 0),
    ("step tiny 2d", "launches", 430, None),
    ("step 3d", "launches", 295, None),
    ("augment 3d", "launches", 115, 200),
    ("augment 2d of 366", "launches", 400, 400),
]
# Program -> its result; syncs, launches, bytes read and written, to the device and to the host.
# Each row is counted by hand: float32 takes 4 bytes, truth values 1, int64 8.
PROGRAMS: dict[str, tuple[object, tuple[int, ...]]] = {
    "add": ("cuda", (0, 1, 16, 16, 0, 0)),
    "item": (4.0, (1, 1, 16, 4, 0, 4)),
    "truth": (True, (1, 1, 4, 1, 0, 1)),
    "to_list": ([1.0] * 4, (1, 1, 16, 0, 0, 16)),
    # A comparison, a selection that needs the number of voxels, a copy.
    "mask": ([1.0] * 4, (2, 3, 16 + 16 + 4 + 16, 4 + 16, 0, 16)),
    # A comparison, a value made on the device, and its filling in: nothing to count, so no wait.
    "filled_by_mask": ([3.0] * 4, (1, 4, 16 + 24 + 16, 4 + 4 + 16, 0, 16)),
    "nonzero": (4, (1, 1, 16, 32, 0, 0)),
    "indexed_by_list": ([2], (1, 2, 16 + 16, 16 + 8, 16, 0)),
    "views": (True, (0, 0, 0, 0, 0, 0)),
    "pageable": (True, (1, 1, 0, 16, 16, 0)),
    "pinned": (True, (0, 1, 0, 8, 8, 0)),
    "pinned_but_blocking": (True, (1, 1, 0, 16, 16, 0)),
    "made_from_list": (True, (1, 1, 0, 8, 8, 0)),
    "where_it_is": (True, (0, 0, 0, 0, 0, 0)),
    "to_pinned": ([1.0] * 4, (0, 1, 16, 0, 0, 16)),
    "synchronize": (True, (1, 0, 0, 0, 0, 0)),
    "single_number_of_host": ([2.0] * 4, (1, 2, 20 + 16, 16, 0, 16)),
    "generator_of_device": (True, (1, 2, 12, 12, 0, 12)),
    # Beside what the tensors take: nothing is held; two kilobytes less than before.
    "memory": ([0, 2000], (0, 2, 4000 + 2000, 4000 + 2000, 0, 0)),
    "waits_in_a_thread": (True, (0, 2, 16, 16, 0, 16)),
    "pinned_array": (True, (0, 1, 0, 8, 8, 0)),
    "in_a_thread": (True, (0, 2, 16, 16 + 16, 0, 0)),
}


@pytest.fixture(scope="module")
def programs() -> dict[str, Any]:
    return _output("tests/pretended_programs.py")


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    found = _output("-m", "benchmarks.pretend_cuda", "--json", "--steps", "4")
    return {each["config"]: each for each in found}


def _output(*words: str) -> Any:
    # The device changes PyTorch for the whole process.
    command = ["env", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_cost_what_was_counted_by_hand(programs: dict[str, Any], name: str) -> None:
    result, counts = PROGRAMS[name]
    found = programs[name]
    assert found.pop("result") == result
    assert tuple(found.values()) == counts


def test_tensors_and_generators_of_the_host_are_refused(programs: dict[str, Any]) -> None:
    assert "tensors (4,) are on the CPU" in programs["mixed"]["result"]
    assert "generator is on the CPU" in programs["generator_of_host"]["result"]


def test_a_training_step_gives_the_numbers_of_the_cpu(programs: dict[str, Any]) -> None:
    found = programs["step_as_on_the_cpu"]
    assert found["result"] is True
    # Four weights and the image go there, four weights come back.
    assert found["syncs"] == 4 + 1 + 4


def test_autocast_and_copies_of_networks_are_as_on_cuda(programs: dict[str, Any]) -> None:
    halves = ["torch.bfloat16", "torch.float32", "torch.float32"]
    assert programs["autocast"]["result"] == halves
    assert programs["a_copy_of_a_network"]["result"] == ["Pretended", "Pretended"]


@pytest.mark.parametrize(("config", "figure", "limit", "target"), LIMITS)
def test_the_product_asks_for_no_more_than_before(
    reports: dict[str, dict[str, Any]],
    config: str,
    figure: str,
    limit: float,
    target: float | None,
) -> None:
    found = reports[config]
    assert found[figure] <= limit, (f"target {target}", found["places"], found["operations"])


def test_every_configuration_runs_without_mixing_devices(
    reports: dict[str, dict[str, Any]],
) -> None:
    assert {each["per"] for each in reports.values()} == {"step", "batch", "scan"}
    for each in reports.values():
        assert each["launches"] > 0
        assert each["peak_mb"] > 0
