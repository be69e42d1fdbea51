"""Patches are cut as large as their rotation and scaling needs, and batches stay what they were."""

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from autoliver.datasets.cases import CaseFacts
from autoliver.training.augment.batch import (
    AugmentSpec,
    augment_batch,
    default_augment_spec,
    initial_patch_shape,
)
from autoliver.training.patches import ahead
from autoliver.training.patches.cache import CacheKind
from autoliver.training.patches.sampling import Allocate, Batch, PatchSampler, PatchStream
from autoliver.training.patches.stream import Patches, TrainingBatch
from autoliver.training.share import Part

CPU = torch.device("cpu")
# 2D; three slices of 2D; 3D; 3D whose slices are transformed alike.
KINDS = [((24, 30), 1), ((24, 30), 3), ((20, 28, 24), 1), ((6, 24, 28), 1)]


@dataclass
class ArrayCase:
    """A case in memory that counts how often it is read."""

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int16]
    reads: list[int] = field(default_factory=list)
    previous: None = None
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    facts: CaseFacts = field(default_factory=lambda: CaseFacts.named("case"))

    @property
    def locations(self) -> dict[int, npt.NDArray[np.int32]]:
        return {1: np.argwhere(self.label[0] == 1).astype(np.int32)[:99]}


def case(seed: int, shape: tuple[int, int, int] = (30, 44, 40)) -> ArrayCase:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    return ArrayCase(image, rng.integers(0, 3, (1, *shape)).astype(np.int16))


def spec_of(patch: tuple[int, ...], slices: int) -> AugmentSpec:
    spec = default_augment_spec(patch)
    if slices > 1:
        spec = spec.replace(mirror_axes=(1, 2))
    turned = spec.spatial.replace(rotation_probability=0.3, scaling_probability=0.3)
    return spec.replace(spatial=turned)


def stream_of(
    patch: tuple[int, ...], slices: int = 1, *, batch: int = 5, classes: bool = True
) -> PatchStream:
    """A stream that does not know yet how patches will be rotated."""
    drawn = initial_patch_shape(patch, spec_of(patch, slices))
    sampler = PatchSampler(
        cases=[case(seed) for seed in range(3)],
        patch_shape=drawn,
        margin=tuple(d - p for d, p in zip(drawn, patch, strict=True)),
        batch_size=batch,
        foreground=0.4,
        classes=np.array([-1, 0, 2, 1], np.int16) if classes else None,
        slices=slices,
    )
    return PatchStream(sampler=sampler, seed=(7, 0))


def made(
    stream: PatchStream, patch: tuple[int, ...], slices: int, cache: CacheKind = "ram"
) -> list[TrainingBatch]:
    spec = spec_of(patch, slices)
    shape = (slices,) * (slices > 1) + patch
    batches = Patches(stream, cache, CPU).batches(range(4), patch_shape=shape, spec=spec)
    return list(batches)


@pytest.mark.parametrize("cache", ["ram", "gpu"])
@pytest.mark.parametrize(("patch", "slices"), KINDS)
def test_batches_are_those_of_patches_that_are_cut_out_large(
    patch: tuple[int, ...], slices: int, cache: CacheKind
) -> None:
    stream = stream_of(patch, slices)
    told = replace(stream, spatial=spec_of(patch, slices).spatial)
    expected, found = made(stream, patch, slices, cache), made(told, patch, slices, cache)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.image, other.image, atol=5e-4)
        # White noise has labels of equal shares everywhere.
        assert (one.target != other.target).float().mean() < 2e-3
        assert one.cases == other.cases


def test_a_part_of_a_batch_is_cut_as_within_it() -> None:
    patch = (20, 28, 24)
    whole = replace(stream_of(patch), spatial=spec_of(patch, 1).spatial)
    parts = [replace(whole, part=Part(start=s, stop=e, whole=5)) for s, e in ((0, 2), (2, 5))]
    for batches in zip(*(made(each, patch, 1) for each in (whole, *parts)), strict=True):
        image = torch.cat([batch.image for batch in batches[1:]])
        assert torch.allclose(batches[0].image, image, atol=5e-4)


def bytes_of(batch: Batch) -> int:
    """Bytes that were cut out: patches that will be rotated have values in `wide` alone."""
    turned = sum(len(image) for image, _ in batch.wide)
    share = 1 - turned / len(batch.image)
    patches = batch.image.nbytes + batch.label.nbytes
    return round(share * patches) + sum(array.nbytes for pair in batch.wide for array in pair)


@pytest.mark.parametrize(("patch", "batch"), [((32, 32, 32), 2), ((40, 56, 40), 4)])
def test_less_than_half_is_cut_out(patch: tuple[int, ...], batch: int) -> None:
    spec = default_augment_spec(patch)
    stream = stream_of(patch, batch=batch, classes=False)
    told = replace(stream, spatial=spec.spatial)
    numbers = range(40)
    before = sum(bytes_of(stream.draw(number)) for number in numbers)
    assert sum(bytes_of(told.draw(number)) for number in numbers) <= 0.5 * before


def test_a_stream_for_other_rotations_is_refused() -> None:
    patch = (24, 30)
    spatial = spec_of(patch, 1).spatial.replace(scaling_probability=0.1)
    with pytest.raises(ValueError, match="another rotation"):
        made(replace(stream_of(patch), spatial=spatial), patch, 1)


def test_what_reads_patches_needs_no_torch() -> None:
    code = "import sys, autoliver.training.patches.loader; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_kept_batches_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, drawn = stream_of((24, 30)), []
    original = PatchStream.draw

    def draw(self: PatchStream, number: int, allocate: Allocate = np.empty) -> Batch:
        drawn.append(number)
        return original(self, number, allocate)

    monkeypatch.setattr(PatchStream, "draw", draw)
    shape = stream.sampler.patch_shape
    rounds = []
    each = stream.draw(0)
    size = each.image.nbytes + each.label.nbytes
    drawn.clear()
    patches = Patches(stream, "disk", CPU, keep_gb=3 * size / 2**30)
    for _ in range(3):
        rounds.append(list(patches.batches(range(4), patch_shape=shape, spec=None)))
    # There is room for three of the four.
    assert drawn == [0, 1, 2, 3, 3, 3]
    for one, other in itertools.combinations(rounds, 2):
        assert all(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))


def test_augmentation_counts_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoliver.training.patches import stream as module

    original = module.augment_placed

    def slow(*args, **kwargs):
        time.sleep(0.05)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "augment_placed", slow)
    patch = (24, 30)
    for batch in made(replace(stream_of(patch), spatial=spec_of(patch, 1).spatial), patch, 1):
        assert batch.waited == batch.seconds >= 0.05


def test_send_buffers_are_used_again_and_only_after_their_copies() -> None:
    buffers = ahead.SendBuffers(pinned=False)
    waited: list[int] = []
    addresses = []
    for batch in range(4):
        number = buffers.begin()
        arrays = [buffers.allocate((4 - batch, 3), np.float32), buffers.allocate((5,), np.int16)]
        assert [a.dtype for a in arrays] == [np.float32, np.int16]
        assert [a.shape for a in arrays] == [(4 - batch, 3), (5,)]
        for array in arrays:
            array.fill(batch)
        addresses.append([array.ctypes.data for array in arrays])
        event = SimpleNamespace(synchronize=lambda batch=batch: waited.append(batch))
        buffers._copied[number] = event
    assert addresses[0] == addresses[2]
    assert addresses[1] == addresses[3]
    assert not set(addresses[0]) & set(addresses[1])
    assert waited == [0, 1]
    # A larger batch gets larger buffers.
    buffers.begin()
    assert buffers.allocate((100, 3), np.float32).shape == (100, 3)


class PretendedCuda:
    """Streams and events that note in which order they are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.notes: list[str] = []
        self.current = "main"

        cuda = self

        class Event:
            def __init__(self, *, enable_timing: bool = False) -> None:
                self.enable_timing = enable_timing

            def record(self, stream: "Stream") -> None:
                if not self.enable_timing:
                    cuda.notes.append(f"{stream.name} done")

            def query(self) -> bool:
                return True

            def elapsed_time(self, other: "Event") -> float:
                assert other.enable_timing
                return 500.0

        class Stream:
            def __init__(self, _device: torch.device, name: str = "side") -> None:
                self.name = name

            def wait_event(self, _event: Event) -> None:
                cuda.notes.append(f"{self.name} waits")

        @contextmanager
        def stream(side: Stream) -> Iterator[None]:
            cuda.current = side.name
            yield
            cuda.current = "main"

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))


def test_on_a_gpu_the_next_item_is_made_on_a_side_stream_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = PretendedCuda(monkeypatch)
    recorded = []

    def items() -> Iterator[int]:
        for number in range(3):
            assert cuda.current == "side"
            cuda.notes.append(f"make {number}")
            yield number

    def tensors(item: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(record_stream=lambda stream: recorded.append((item, stream.name)))]

    found = []
    for item, seconds, stalled in ahead.timed(items(), torch.device("cuda"), tensors):
        time.sleep(0.05)
        # The next one is there before this one's step ends.
        assert f"make {min(item + 1, 2)}" in cuda.notes
        found.append(item)
        assert stalled == 0.5
        assert seconds < 10
    assert found == [0, 1, 2]
    assert recorded == [(0, "main"), (1, "main"), (2, "main")]
    assert cuda.notes.count("main waits") == 3
    assert cuda.notes.index("side done") < cuda.notes.index("main waits")


def test_an_error_while_a_batch_is_made_reaches_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PretendedCuda(monkeypatch)

    def items() -> Iterator[int]:
        yield 0
        raise OSError("no such chunk")

    with closing(ahead.timed(items(), torch.device("cuda"), lambda _: [])) as ready:
        next(ready)
        with pytest.raises(OSError, match="no such chunk"):
            next(ready)


def test_the_public_function_gives_the_same_batch() -> None:
    patch = (20, 28, 24)
    stream, spec = stream_of(patch), spec_of(patch, 1)
    (batch,) = made(replace(stream, spatial=spec.spatial), patch, 1)[:1]
    drawn = stream.draw(0)
    seed = stream.augment_seed(0)
    image, label = augment_batch(
        torch.from_numpy(drawn.image),
        torch.from_numpy(drawn.label),
        patch_shape=patch,
        spec=spec,
        generator=torch.Generator().manual_seed(seed),
    )
    assert torch.allclose(batch.image, image, atol=5e-4)
    assert (batch.target != label).float().mean() < 2e-3
