import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoliver.datasets.cases import Case
from autoliver.errors import OptionError
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.needs import read_need, score_need
from autoliver.parallel import Limits, Need, refuse_over_budget

SHAPE = (64, 128, 128)
IMAGE_GB = 64 * 128 * 128 * 4 / 2**30


@pytest.fixture
def case(tmp_path: Path) -> Case:
    geometry = Geometry(shape_zyx=SHAPE, spacing_mm=(2.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    image = rng.normal(0, 100, (1, *SHAPE)).astype(np.float32)
    write_image(tmp_path / "a_0000.nii.gz", image, geometry)
    write_label(tmp_path / "a.nii.gz", (image[0] > 0).astype(np.uint8), geometry)
    return Case(
        name="a",
        images=(str(tmp_path / "a_0000.nii.gz"),),
        label=str(tmp_path / "a.nii.gz"),
        patient="a",
    )


def test_needs_are_known_from_headers(case: Case) -> None:
    assert read_need(case).gb == pytest.approx(1.35 * IMAGE_GB)
    assert read_need(case.replace(images=case.images * 3)).gb == pytest.approx(3 * 1.35 * IMAGE_GB)
    pair = (Path(str(case.label)), Path(str(case.label)))
    assert score_need(("a", pair)).gb == score_need(pair[0]).gb == pytest.approx(1.25 * IMAGE_GB)


def test_a_file_that_cannot_be_read_needs_nothing(case: Case, tmp_path: Path) -> None:
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    bad = case.replace(images=(str(tmp_path / "b.nii.gz"), str(tmp_path / "none.nii.gz")))
    assert read_need(bad).gb == 0


MEASURE = """
import resource, sys
from pathlib import Path
import nibabel, SimpleITK
from autoliver.datasets.cases import Case, Labels
from autoliver.planning.fingerprint import _read_case

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
labels = Labels(values={"background": (0,), "liver": (1,)})
case = Case(name="a", images=(sys.argv[1],), label=sys.argv[2], patient="a")
_read_case(case, draws=10**6, most_values=1 << 22, labels=labels)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux tells it")
def test_the_estimate_covers_what_reading_takes(case: Case) -> None:
    command = [sys.executable, "-c", MEASURE, case.images[0], str(case.label)]
    taken = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert taken / 2**30 <= 1.2 * read_need(case).gb


@pytest.mark.parametrize(
    ("memory_gb", "needed", "refused"),
    [(1.0, 0.5, False), (1.0, 1.0, False), (1.0, 1.5, True), (None, 1.0, False), (None, 1e6, True)],
)
def test_a_case_far_over_the_budget_is_refused(
    memory_gb: float | None, needed: float, refused: bool
) -> None:
    needs = [Need(name="small", gb=0.01), Need(name="large", gb=needed)]
    limits = Limits(memory_gb=memory_gb)
    if not refused:
        refuse_over_budget(needs, limits, "predict")
        return
    with pytest.raises(OptionError, match=f"large: to predict it needs about {needed:.1f} GB"):
        refuse_over_budget(needs, limits, "predict")
