"""What several tests share: one phantom dataset, and where the real data would be."""

import os
from pathlib import Path

import pytest

# Two tests run at a time. With another number of threads, the last bits of sums are others, and
# commands of which a test compares the bits would choose by how busy the machine is. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # noqa: TID251

import torch

SHARED = Path(__file__).parents[1].parent / "shared"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out `slow` unless asked for, and `gpu` where there is none."""
    slow_wanted = "slow" in config.getoption("-m")
    for item in items:
        if item.get_closest_marker("slow") and not slow_wanted:
            item.add_marker(pytest.mark.skip(reason="slow; run with -m slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden values; skips where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"needs real data in {SHARED}")
    return SHARED
