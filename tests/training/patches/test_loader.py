"""Worker processes that draw patches from a store, and what happens when one dies."""

import os
import signal
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from autoliver.errors import ArtifactError, AutoliverError
from autoliver.io.volume import Geometry
from autoliver.preprocessing.case import CaseProperties, Preprocessed
from autoliver.preprocessing.store import read_case, write_case
from autoliver.training.augment.batch import augment_batch, default_augment_spec
from autoliver.training.patches.loader import PatchLoader, drawn_by_workers
from autoliver.training.patches.sampling import Batch, PatchSampler, PatchStream

SHAPE = (40, 48, 56)


def write(folder: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    properties = CaseProperties(
        name=name,
        modality="CT",
        geometry=Geometry(shape_zyx=SHAPE, spacing_mm=(1.0, 1.0, 1.0)),
        transpose_forward=(0, 1, 2),
        box=((0, SHAPE[0]), (0, SHAPE[1]), (0, SHAPE[2])),
        shape_zyx=SHAPE,
        spacing_mm=(1.0, 1.0, 1.0),
    )
    image = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    label = rng.integers(-1, 3, (1, *SHAPE)).astype(np.int16)
    case = Preprocessed(image=image, label=label, properties=properties)
    locations = {1: np.argwhere(label[0] == 1).astype(np.int32)[:50]}
    write_case(folder, case, locations, patch_shape=(16, 16, 16))


def make_stream(folder: Path, patch: tuple[int, ...] = (24, 40, 16)) -> PatchStream:
    names = ["case_0", "case_1", "case_2"]
    for seed, name in enumerate(names):
        write(folder, name, seed)
    sampler = PatchSampler(
        cases=[read_case(folder, name) for name in names],
        patch_shape=patch,
        margin=(0,) * len(patch),
        batch_size=2,
        foreground=0.5,
    )
    return PatchStream(sampler=sampler, seed=(3, 0))


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.cases == other.cases
    assert np.array_equal(one.image, other.image)
    assert np.array_equal(one.label, other.label)
    assert (one.image.dtype, one.label.dtype) == (other.image.dtype, other.label.dtype)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> PatchStream:
    return make_stream(tmp_path_factory.mktemp("store"))


def test_batches_of_workers_are_those_of_this_process(stream: PatchStream) -> None:
    before = set(active_children())
    drawn = list(drawn_by_workers(stream, range(5, 10), 2))
    for number, batch in zip(range(5, 10), drawn, strict=True):
        assert_equal(batch, stream.draw(number))
    assert set(active_children()) == before


def test_slices_come_as_in_this_process(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, (20, 24))
    (batch,) = drawn_by_workers(stream, range(1), 1)
    assert_equal(batch, stream.draw(0))
    assert batch.image.shape == (2, 1, 20, 24)


def test_a_killed_worker_is_replaced_and_nothing_changes(
    stream: PatchStream, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(active_children())
    drawn = drawn_by_workers(stream, range(8), 2)
    assert_equal(next(drawn), stream.draw(0))
    workers = set(active_children()) - before
    assert len(workers) == 2
    # Both are in the middle of writing a batch, which is larger than a pipe holds.
    time.sleep(1.0)
    for worker in workers:
        worker.kill()
    for number, batch in zip(range(1, 8), drawn, strict=True):
        assert_equal(batch, stream.draw(number))
    assert caplog.text.count("was killed, most likely by the kernel for want of memory") == 2


class DeadlyStream(PatchStream):
    """Kills the process that draws batch 1, as the kernel would."""

    def draw(self, number: int) -> Batch:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().draw(number)


def test_a_worker_that_dies_again_is_an_error(
    stream: PatchStream, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For the process to find the class by its module's name, as pytest gives it.
    monkeypatch.syspath_prepend(Path(__file__).parents[3])
    deadly = DeadlyStream(sampler=stream.sampler, seed=stream.seed)
    drawn = drawn_by_workers(deadly, range(4), 1)
    assert_equal(next(drawn), stream.draw(0))
    with pytest.raises(AutoliverError, match=r"was killed.*patches of case_.*2 times") as caught:
        next(drawn)
    assert "--cache ram" in caught.value.hint
    assert caplog.text.count("another worker replaces it") == 1


def test_what_a_worker_cannot_read_is_named_in_the_training(tmp_path: Path) -> None:
    stream = make_stream(tmp_path)
    for path in tmp_path.glob("case_?.image.b2nd"):
        path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ArtifactError, match="is damaged") as caught:
        next(drawn_by_workers(stream, range(2), 1))
    assert "autoliver preprocess" in caught.value.hint


def test_workers_end_with_the_batches(stream: PatchStream) -> None:
    before = set(active_children())
    drawn = drawn_by_workers(stream, range(100), 1)
    next(drawn)
    drawn.close()
    assert set(active_children()) == before


def test_the_loader_speaks_the_protocol_of_batchgenerators(stream: PatchStream) -> None:
    numbers = range(4, 9)
    batches = {}
    for thread in range(2):
        loader = PatchLoader(stream, numbers, threads=2)
        loader.set_thread_id(thread)
        batches |= dict(zip(numbers[thread::2], SingleThreadedAugmenter(loader, None), strict=True))
    for number in numbers:
        expected = stream.draw(number)
        assert np.array_equal(batches[number]["data"], expected.image)
        assert np.array_equal(batches[number]["target"], expected.label)
        assert batches[number]["keys"] == expected.cases


def test_the_example_of_the_docs_gives_augmented_patches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_stream(tmp_path)
    pages = (Path(__file__).parents[3] / "docs" / "python.md").read_text()
    (example,) = (part for part in pages.split("```python\n")[1:] if "PatchLoader" in part)
    example = example.split("```")[0]
    for shown, here in (
        (
            'Path("/data/work/Dataset003_LiTS/store/KEY"), (128, 128, 128)',
            f"Path({str(tmp_path)!r}), (12, 16, 8)",
        ),
        ("range(250)", "range(2)"),
    ):
        assert shown in example
        example = example.replace(shown, here)
    found: dict[str, object] = {}
    exec(example, found)
    stream = PatchStream(sampler=found["sampler"], seed=(0,))
    generator = torch.Generator().manual_seed(0)
    for drawn in map(stream.draw, range(2)):
        image, label = augment_batch(
            torch.from_numpy(drawn.image),
            torch.from_numpy(drawn.label),
            patch_shape=(12, 16, 8),
            spec=default_augment_spec((12, 16, 8)),
            generator=generator,
        )
    assert torch.equal(found["batch"]["data"], image)
    assert torch.equal(found["batch"]["target"], label)
    assert found["batch"]["keys"] == drawn.cases
    assert image.shape == (2, 1, 12, 16, 8)
    assert capsys.readouterr().out.count("torch.Size([2, 1, 12, 16, 8])") == 2
