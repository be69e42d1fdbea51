"""Three small MR images to predict, a model of one fold, and a request that gives equal bits."""

from pathlib import Path

import numpy as np
import pytest
from small_models import SaveFold

from autoliver.io.files import write_image
from autoliver.io.volume import Geometry
from autoliver.machine import Machine
from autoliver.pipeline.prediction import PredictRequest

GRID = Geometry(shape_zyx=(9, 8, 8), spacing_mm=(2.0, 2.0, 2.0))
ASKED = PredictRequest(mirror=False, exact=True, machine=Machine(device="cpu"))


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 500, (1, *GRID.shape_zyx)).astype("float32")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three MR images."""
    for number in range(3):
        write_image(tmp_path / f"in/case_{number}.nii.gz", image(number), GRID)
    return tmp_path / "in"


@pytest.fixture
def run(save: SaveFold) -> Path:
    return save("fold_0").parent
