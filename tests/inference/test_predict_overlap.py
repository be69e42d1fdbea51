import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoliver.datasets.cases import Labels
from autoliver.errors import AutoliverError, DatasetError
from autoliver.inference.model import Member, Model
from autoliver.inference.outputs import PredictOptions
from autoliver.inference.predict import (
    Listener,
    PredictJob,
    make_jobs,
    predict_jobs,
    predict_volume,
)
from autoliver.io.files import read_image, read_label, write_image
from autoliver.io.volume import Geometry
from autoliver.networks.spec import UNetSpec
from autoliver.planning.plan import Configuration, IntensityStats, Plan

SHAPE = (12, 26, 24)
SPACING = (3.0, 1.0, 1.2)
STATS = IntensityStats(
    mean=0.0, median=0.0, std=1.0, min=0.0, max=9.0, percentile_00_5=0.0, percentile_99_5=9.0
)


class Network(nn.Module):
    """A random convolution; each case in turn may run something of the test's first."""

    def __init__(self, **first: Callable[[], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 3, 3, padding=1)
        self.first = first
        self.case = ""

    def forward(self, image: Tensor) -> Tensor:
        action = self.first.pop(self.case, None)
        if action is not None:
            action()
        result: Tensor = self.convolution(image)
        return result


def make_model(network: nn.Module) -> Model:
    configuration = Configuration(
        spacing_mm=(3.0, 1.1, 1.1),
        median_shape=(12.0, 24.0, 26.0),
        patch_shape=(8, 16, 16),
        batch_size=2,
        batch_dice=False,
        normalization=("zscore",),
        mask_norm=(False,),
        network=UNetSpec(
            in_channels=1,
            out_channels=3,
            features=(4, 8),
            strides=((1, 1, 1), (2, 2, 2)),
            kernels=((3, 3, 3), (3, 3, 3)),
            blocks_encoder=(2, 2),
            blocks_decoder=(2,),
        ),
    )
    plan = Plan(
        dataset="Dataset999_Test",
        preset="default",
        vram_gb=8.0,
        channel_names=("MR",),
        modality="MR",
        labels=Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)}),
        file_ending=".nii.gz",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        intensities=(STATS,),
        configurations={"3d_fullres": configuration},
    )
    member = Member(
        name="test model",
        plan=plan,
        configuration=configuration,
        mirror_axes=(),
        networks=(network.eval(),),
        device=torch.device("cpu"),
    )
    return Model(name="test model", members=(member,))


@pytest.fixture
def jobs(tmp_path: Path) -> list[PredictJob]:
    cases = {}
    for number in range(4):
        path = tmp_path / f"images/case_{number}_0000.nii.gz"
        rng = np.random.default_rng(number)
        image = rng.gamma(2, 50, (1, *SHAPE)).astype(np.float32)
        write_image(path, image, Geometry(shape_zyx=SHAPE, spacing_mm=SPACING))
        cases[f"case_{number}"] = [path]
    return make_jobs(cases, tmp_path / "out")


def predict(
    network: Network, jobs: list[PredictJob] | Iterator[PredictJob], *, overlap: bool = True
) -> None:
    def on_windows(name: str, windows: int) -> Callable[[], object]:
        assert windows > 1
        network.case = name
        return lambda: None

    options = PredictOptions(mirror=False, overlap=overlap)
    predict_jobs(make_model(network), jobs, options, listener=Listener(on_windows=on_windows))


def written(jobs: list[PredictJob]) -> list[str]:
    return [job.name for job in jobs if job.finished]


def test_overlap_changes_no_bit(jobs: list[PredictJob]) -> None:
    results = []
    for overlap in (True, False):
        predict(Network(), jobs, overlap=overlap)
        results.append([job.output.read_bytes() for job in jobs])
        alone = predict_volume(
            make_model(Network()),
            read_image(jobs[2].images),
            PredictOptions(mirror=False),
            name="case_2",
        )
        assert len(np.unique(alone)) > 1
        np.testing.assert_array_equal(read_label(jobs[2].output).array[0], alone)
        for job in jobs:
            job.output.unlink()
    assert results[0] == results[1]


class Watched(tuple[Path, ...]):
    """Files that tell when they are about to be read."""

    begun = threading.Event()

    def __iter__(self) -> Iterator[Path]:
        self.begun.set()
        return super().__iter__()


def test_the_next_case_is_read_while_one_is_on_the_device(jobs: list[PredictJob]) -> None:
    files = Watched(jobs[1].images)
    following = dataclasses.replace(jobs[1], images=files)
    files.begun.clear()
    begun: list[bool] = []
    predict(
        Network(case_0=lambda: begun.append(files.begun.wait(timeout=60))), [jobs[0], following]
    )
    assert begun == [True]
    assert written(jobs) == ["case_0", "case_1"]


def test_no_more_than_one_case_is_read_ahead(jobs: list[PredictJob]) -> None:
    begun: list[str] = []
    seen: list[tuple[str, ...]] = []

    def watched() -> Iterator[PredictJob]:
        for job in jobs:
            begun.append(job.name)
            yield job

    def look() -> None:
        seen.append(tuple(begun))

    predict(Network(case_0=look, case_1=look, case_2=look, case_3=look), watched())
    assert [len(names) for names in seen] == [2, 3, 4, 4]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_case_that_cannot_be_read_loses_no_other(jobs: list[PredictJob], overlap: bool) -> None:
    jobs[2].images[0].write_bytes(b"no image")
    with pytest.raises(DatasetError, match="case_2"):
        predict(Network(), jobs, overlap=overlap)
    assert written(jobs) == ["case_0", "case_1"]


def test_an_error_that_knows_no_case_is_given_its_name(
    jobs: list[PredictJob], tmp_path: Path
) -> None:
    (tmp_path / "other.nii.gz").write_bytes(b"no image")
    bad = PredictJob(name="case_x", images=(tmp_path / "other.nii.gz",), output=jobs[0].output)
    with pytest.raises(DatasetError, match=r"^case_x: .*other\.nii\.gz: cannot be read"):
        predict(Network(), [bad])


def test_a_case_that_cannot_be_written_loses_no_other(jobs: list[PredictJob]) -> None:
    jobs[1].output.parent.mkdir()
    bad = PredictJob(
        name="case_1", images=jobs[1].images, output=jobs[1].output.with_name("labels.nhdr")
    )
    with pytest.raises(AutoliverError, match=r"^case_1: .*cannot be written"):
        predict(Network(), [jobs[0], bad, jobs[2], jobs[3]])
    # The one that was on the device meanwhile is kept; no further one is begun.
    assert written(jobs) == ["case_0", "case_2"]


def test_a_network_that_fails_loses_no_finished_case(jobs: list[PredictJob]) -> None:
    def fail() -> None:
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost") as caught:
        predict(Network(case_2=fail), jobs)
    assert caught.value.__notes__ == ["This happened while case_2 was predicted."]
    assert written(jobs) == ["case_0", "case_1"]
