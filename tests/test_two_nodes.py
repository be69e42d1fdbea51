"""A training on two machines, one of which is killed; see benchmarks/two_nodes.py."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs addresses of the loopback device")
def test_a_node_that_is_killed_changes_no_bit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.two_nodes", "--epochs", "6", "--work", tmp_path]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if "No network namespaces here" in done.stdout and done.returncode:
        pytest.skip("needs network namespaces (root and ip)")
    assert done.returncode == 0, done.stdout
    assert "weights: the same bits" in done.stdout
