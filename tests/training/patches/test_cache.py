"""Where cases lie: what fits where, and that batches do not depend on it."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from autoliver.datasets.cases import CaseFacts, Labels
from autoliver.errors import AutoliverError, OptionError
from autoliver.io.volume import Geometry
from autoliver.machine import CacheChoice, Machine
from autoliver.networks.spec import UNetSpec
from autoliver.parallel import Limits
from autoliver.planning.plan import Configuration
from autoliver.preprocessing.case import CaseProperties, Preprocessed
from autoliver.preprocessing.previous import with_previous
from autoliver.preprocessing.store import StoredCase, compress, read_case, write_case
from autoliver.training import fold
from autoliver.training.augment.batch import augmentation
from autoliver.training.fold import FoldTask, open_patches, patch_stream
from autoliver.training.loop import train_fold
from autoliver.training.options import TrainingOptions
from autoliver.training.patches.cache import (
    CacheKind,
    DeviceStream,
    Need,
    Room,
    choose_cache,
    in_memory,
    measure_need,
    measure_room,
)
from autoliver.training.patches.stream import Patches, TrainingBatch
from autoliver.training.step import Stepper

SHAPES = [(9, 30, 26), (14, 20, 40), (10, 33, 33)]
# Values that are not their classes.
LABELS = Labels(values={"background": (0,), "liver": (3,), "tumour": (7,)}, ignore=9)
CPU = torch.device("cpu")
FACTS = CaseFacts(
    name="",
    patient="",
    modality="MR",
    origin="pseudo",
    annotated={"tumour": "absent"},
    lesion_classes={"1": "HCC"},
)


def write(folder: Path, name: str, seed: int, shape: tuple[int, int, int]) -> StoredCase:
    rng = np.random.default_rng(seed)
    properties = CaseProperties(
        name=name,
        modality="MR",
        geometry=Geometry(shape_zyx=shape, spacing_mm=(3.0, 1.0, 1.0)),
        transpose_forward=(0, 1, 2),
        box=((0, shape[0]), (0, shape[1]), (0, shape[2])),
        shape_zyx=shape,
        spacing_mm=(3.0, 1.0, 1.0),
    )
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    label = rng.choice([-1, 0, 3, 7, 9], size=(1, *shape)).astype(np.int16)
    locations = {v: np.argwhere(label[0] == v).astype(np.int32)[:99] for v in (3, 7)}
    locations[-1] = np.argwhere(label[0] != 9).astype(np.int32)[:99]
    case = Preprocessed(image=image, label=label, properties=properties)
    write_case(folder, case, locations, patch_shape=(8, 16, 16))
    return read_case(folder, name, FACTS.replace(name=name, patient=f"patient of {name}"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[StoredCase]:
    folder = tmp_path_factory.mktemp("store")
    return [write(folder, f"case_{n}", n, shape) for n, shape in enumerate(SHAPES)]


def make_task(
    cases: list[StoredCase], folder: Path, patch: tuple[int, ...], machine: Machine
) -> FoldTask:
    axes = len(patch)
    network = UNetSpec(
        in_channels=2,
        out_channels=LABELS.out_channels,
        features=(4, 8),
        strides=((1,) * axes, (2,) * axes),
        kernels=((3,) * axes,) * 2,
        blocks_encoder=(1, 1),
        blocks_decoder=(1,),
    )
    configuration = Configuration(
        spacing_mm=(1.0,) * axes,
        median_shape=(20.0,) * axes,
        patch_shape=patch,
        batch_size=3,
        batch_dice=False,
        normalization=("zscore", "zscore"),
        mask_norm=(True, False),
        network=network,
    )
    return FoldTask(
        configuration=configuration,
        labels=LABELS,
        train=cases[:2],
        validation=cases[2:],
        options=TrainingOptions(epochs=2, iterations=2, schedule="short"),
        folder=folder,
        device=CPU,
        title="Toy",
        machine=machine,
    )


def batches(
    cases: list[StoredCase], patch: tuple[int, ...], kind: CacheKind, *, augmented: bool
) -> list[TrainingBatch]:
    task = make_task(cases, Path(), patch, Machine())
    spec = augmentation(task.configuration, "default", mirror=True) if augmented else None
    stream = patch_stream(task, cases, spec, number=0)
    patches = Patches(stream, kind, CPU, workers=1)
    return list(patches.batches(range(3, 7), patch_shape=patch, spec=spec))


@pytest.mark.parametrize(
    ("patch", "augmented"), [((16, 24), False), ((8, 24, 24), True)], ids=["2d", "3d"]
)
def test_batches_are_the_same_wherever_cases_lie(
    patch: tuple[int, ...], augmented: bool, cases: list[StoredCase]
) -> None:
    found = {k: batches(cases, patch, k, augmented=augmented) for k in ("gpu", "ram", "disk")}
    assert [batch.number for batch in found["disk"]] == [3, 4, 5, 6]
    for batch in found["disk"]:
        assert batch.image.shape == (3, 2, *patch)
        assert batch.target.shape == (3, 1, *patch)
        assert 0 <= batch.waited <= batch.seconds
    # Classes, not values: 0, liver, tumour, ignored.
    # What is known of a case comes with its patches, through every cache and worker process.
    for case in (case for batch in found["disk"] for case in batch.cases):
        assert case == FACTS.replace(name=case.name, patient=f"patient of {case.name}")
    assert {int(v) for batch in found["disk"] for v in batch.target.unique()} == {0, 1, 2, 3}
    for one, other in itertools.pairwise(found.values()):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.target, b.target)
            assert a.target.dtype == b.target.dtype
            assert a.cases == b.cases


def test_a_cascade_s_batches_are_the_same_wherever_cases_lie(
    cases: list[StoredCase], tmp_path: Path
) -> None:
    for case in cases:
        content = compress(case.label[:], (8, 16, 16))  # type: ignore[index]
        (tmp_path / f"{case.name}.b2nd").write_bytes(content)
    own = [with_previous(case, tmp_path) for case in cases]
    found = []
    for kind in ("gpu", "ram", "disk"):
        task = make_task(own, Path(), (8, 24, 24), Machine())
        configuration = task.configuration.replace(previous_stage="3d_lowres")
        task = replace(task, configuration=configuration)
        spec = augmentation(configuration, "default", mirror=True)
        patches = Patches(patch_stream(task, own, spec, number=0), kind, CPU, workers=1)
        found.append(list(patches.batches(range(2), patch_shape=(8, 24, 24), spec=spec)))
        # Without augmentations, what the first stage found lies where the label does: it is it.
        patches = Patches(patch_stream(task, own, None, number=0), kind, CPU)
        (plain,) = patches.batches(range(1), patch_shape=(8, 24, 24), spec=None)
        assert plain.image.shape == (3, 4, 8, 24, 24)
        for number in (1, 2):
            assert torch.equal(plain.image[:, 1 + number] == 1, plain.target[:, 0] == number)
    for one, other in itertools.pairwise(found):
        for a, b in zip(one, other, strict=True):
            assert a.image.shape == (3, 4, 8, 24, 24)
            assert a.target.shape == (3, 1, 8, 24, 24)
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.target, b.target)


def test_a_training_begun_with_one_cache_goes_on_with_another(
    cases: list[StoredCase], tmp_path: Path
) -> None:
    def task(folder: str, kind: CacheChoice) -> FoldTask:
        options = Machine(cache=kind, limits=Limits(workers=1, memory_gb=1.0))
        return make_task(cases, tmp_path / folder, (16, 16), options)

    whole = train_fold(task("whole", "ram"))
    asked = itertools.count(1)
    train_fold(task("parts", "auto"), stop=lambda: next(asked) >= 1)
    rest = train_fold(task("parts", "disk"))
    assert rest.finished
    assert [log.train_loss for log in rest.logs] == [log.train_loss for log in whole.logs]
    for name, weights in whole.weights.items():
        assert torch.equal(weights, rest.weights[name])
    assert all(0 <= log.data_wait <= 1 for log in rest.logs)


class CountingArray:
    """Counts how often it is read."""

    def __init__(self, values: npt.NDArray[np.generic]) -> None:
        self.values, self.shape, self.reads = values, values.shape, 0

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[np.generic]:
        self.reads += 1
        return self.values[key]


class CountingCase:
    def __init__(self, case: StoredCase) -> None:
        assert case.label is not None
        self.facts, self.locations = case.facts, case.locations
        self.spacing_mm = case.spacing_mm
        self.image, self.label = CountingArray(case.image[:]), CountingArray(case.label[:])
        self.previous = None


def test_a_case_in_memory_is_read_once_and_when_it_is_needed(cases: list[StoredCase]) -> None:
    source = CountingCase(cases[0])
    (kept,) = in_memory([source])
    assert kept.image.shape == source.image.shape
    assert source.image.reads == 0
    for first in range(3):
        box = (slice(None), slice(first, 5), slice(2, 9), slice(4, 7))
        assert np.array_equal(kept.image[box], source.image.values[box])
    assert (source.image.reads, source.label.reads) == (1, 0)


def test_what_cases_take_is_what_their_arrays_take(cases: list[StoredCase]) -> None:
    held = [CountingCase(case) for case in cases]
    size = sum(c.image.values.nbytes + c.label.values.nbytes for c in held)
    voxels = sum(c.label.values.size for c in held)
    need = measure_need(cases)
    assert (need.gpu_gb, need.ram_gb) == pytest.approx((size / 2**30,) * 2)
    marked = measure_need(cases, outside=True)
    # In memory a map has one bit per voxel, on the device it is a label.
    assert marked.ram_gb - need.ram_gb == pytest.approx(voxels / 8 / 2**30)
    assert marked.gpu_gb - need.gpu_gb == pytest.approx(voxels * 2 / 2**30)


@pytest.mark.parametrize(
    ("gpu_gb", "ram_gb", "expected"),
    [(10.0, 1.0, "gpu"), (4.9, 5.1, "ram"), (None, 9.0, "ram"), (1.0, 1.0, "disk")],
)
def test_auto_takes_the_first_place_that_fits_and_says_why(
    gpu_gb: float | None, ram_gb: float, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    need = Need(gpu_gb=5.0, ram_gb=5.0)
    assert choose_cache("auto", need, Room(gpu_gb=gpu_gb, ram_gb=ram_gb)) == expected
    (line,) = caplog.messages
    assert f"--cache auto: {expected}" in line
    assert "need 5.0 GB" in line
    assert f"{ram_gb:.1f} GB of memory" in line


def test_what_does_not_fit_is_refused_with_the_sizes() -> None:
    room, need = Room(gpu_gb=3.0, ram_gb=4.0), Need(gpu_gb=6.0, ram_gb=5.0)
    with pytest.raises(OptionError, match=r"--cache gpu: .*need 6\.0 GB; there are 3\.0") as gpu:
        choose_cache("gpu", need, room)
    assert "--cache ram or disk" in gpu.value.hint
    with pytest.raises(OptionError, match=r"--cache ram: .*need 5\.0 GB; there are 4\.0") as ram:
        choose_cache("ram", need, room)
    assert "--memory-gb" in ram.value.hint
    assert choose_cache("disk", need, room) == "disk"


def test_the_gpu_cache_needs_a_gpu(cases: list[StoredCase], tmp_path: Path) -> None:
    task = make_task(cases, tmp_path, (16, 16), Machine(cache="gpu"))
    with pytest.raises(OptionError, match=r"--cache gpu: .*not run on a CUDA device") as caught:
        train_fold(task)
    assert "--cache auto, ram or disk" in caught.value.hint


def test_the_memory_limit_bounds_what_is_kept() -> None:
    room = measure_room(Machine(limits=Limits(memory_gb=8.0)), CPU)
    assert room.gpu_gb is None
    assert room.ram_gb == 4.0


GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu_of_80_gb(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A pretended GPU, of whose memory as much is free as the list says."""
    free = [79.0]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0] * 2**30, 80 * 2**30))
    return free


@pytest.mark.parametrize(
    ("sharing", "free_gb", "expected"),
    [
        (1, 79.0, 79.0 - 10.0 - 2.0),
        (2, 79.0, 40.0 - 10.0 - 2.0),  # the other fold may not have begun yet
        (2, 30.0, 30.0 - 10.0 - 2.0),  # or it has taken its part and more
        (4, 79.0, 20.0 - 10.0 - 2.0),
        (8, 79.0, 0.0),
    ],
)
def test_folds_that_share_a_gpu_share_what_is_left_of_it(
    sharing: int, free_gb: float, expected: float, gpu_of_80_gb: list[float]
) -> None:
    gpu_of_80_gb[0] = free_gb
    machine = Machine(gpus=(0,) * sharing, limits=Limits(workers=1, memory_gb=8.0))
    own = machine.share(sharing, device="cuda:0", sharing=sharing)
    assert measure_room(own, GPU, network_gb=10.0).gpu_gb == pytest.approx(expected)


@pytest.mark.parametrize(("augment", "views"), [("default", 1), ("gin", 1), ("gin-ipa", 3)])
def test_every_view_of_a_patch_takes_memory(
    augment: str,
    views: int,
    cases: list[StoredCase],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    asked: list[float] = []

    def room(_machine: Machine, _device: torch.device, *, network_gb: float) -> Room:
        asked.append(network_gb)
        return Room(gpu_gb=None, ram_gb=100.0)

    monkeypatch.setattr(fold, "measure_room", room)
    task = make_task(cases, tmp_path, (16, 16), Machine())
    options = task.options.replace(augment=augment)
    patches, _ = open_patches(replace(task, options=options, network_gb=8.0))
    assert asked == [pytest.approx(8.0 * views, abs=0.01)]
    # Three batches of three patches, as large as they are cut out at most.
    voxels = np.prod(patches.stream.sampler.box_shape)
    assert asked[0] - 8.0 * views == pytest.approx(3 * 3 * voxels * (2 * 4 + 2) / 2**30)


class Full:
    """Runs out of memory, once or whenever the cases lie on the GPU, when a step is taken."""

    def __init__(self, after: int, error: RuntimeError, kinds: tuple[str, ...]) -> None:
        self.after, self.error, self.kinds = after, error, kinds
        self.taken: list[tuple[str, int]] = []

    def take(self, stepper: Stepper, batch: TrainingBatch) -> None:
        kind = stepper.train.cache
        if kind in self.kinds and batch.number >= self.after:
            raise self.error
        self.taken.append((kind, batch.number))
        _TAKE(stepper, batch)


_TAKE = Stepper.take
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pretended GPU (the CPU) with room for all cases beside any network that is known."""

    def room(_machine: Machine, _device: torch.device, *, network_gb: float) -> Room:
        return Room(gpu_gb=max(0.0, 80.0 - network_gb), ram_gb=100.0)

    monkeypatch.setattr(fold, "measure_room", room)
    monkeypatch.setattr(fold, "check_device", lambda *_: None)


AUTO = Machine(limits=Limits(workers=1, memory_gb=1.0))


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_gpu_that_is_full_moves_its_cases_to_memory_and_the_result_stays(
    after: int,
    cases: list[StoredCase],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    whole = train_fold(make_task(cases, tmp_path / "whole", (16, 16), AUTO))
    full = Full(after, FULL, ("gpu",))
    monkeypatch.setattr(Stepper, "take", lambda *args: full.take(*args))
    moved = train_fold(make_task(cases, tmp_path / "moved", (16, 16), AUTO))
    # It goes on after the last epoch that was saved; an epoch has two steps.
    first = after // 2 * 2
    expected = [("gpu", n) for n in range(after)] + [("ram", n) for n in range(first, 4)]
    assert full.taken == expected
    assert caplog.text.count("too little memory for the cases beside the training") == 1
    assert [log.train_loss for log in moved.logs] == [log.train_loss for log in whole.logs]
    for name, weights in whole.weights.items():
        assert torch.equal(weights, moved.weights[name])


@pytest.mark.usefixtures("roomy")
def test_cases_that_do_not_fit_while_they_are_copied_are_kept_in_memory(
    cases: list[StoredCase], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(DeviceStream, "_upload", full)
    assert train_fold(make_task(cases, tmp_path, (16, 16), AUTO)).finished


@pytest.mark.usefixtures("roomy")
@pytest.mark.parametrize(
    ("choice", "kinds", "error", "told"),
    [
        ("gpu", ("gpu",), FULL, "the GPU has too little memory for batches of 3 patches"),
        ("auto", ("gpu", "ram"), FULL, "the GPU has too little memory for batches of 3 patches"),
        ("auto", ("gpu",), RuntimeError("size mismatch"), "size mismatch"),
    ],
)
def test_what_moving_cases_does_not_help_ends_the_training(
    choice: CacheChoice,
    kinds: tuple[str, ...],
    error: RuntimeError,
    told: str,
    cases: list[StoredCase],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    full = Full(0, error, kinds)
    monkeypatch.setattr(Stepper, "take", lambda *args: full.take(*args))
    with pytest.raises((AutoliverError, RuntimeError), match=told):
        train_fold(make_task(cases, tmp_path, (16, 16), AUTO.replace(cache=choice)))


@pytest.mark.gpu
def test_the_gpu_gives_what_the_network_leaves() -> None:
    free = torch.cuda.mem_get_info()[0] / 2**30
    device = torch.device("cuda")
    rooms = [measure_room(Machine(), device, network_gb=gb).gpu_gb for gb in (0.0, 1.0, 9999.0)]
    assert rooms[0] is not None
    assert rooms[0] < free
    assert rooms[1] == pytest.approx(rooms[0] - 1.0, abs=0.5)
    assert rooms[2] == 0.0


@pytest.mark.gpu
@pytest.mark.parametrize("patch", [(16, 24), (8, 24, 24)], ids=["2d", "3d"])
def test_patches_cut_on_the_gpu_are_those_of_the_cpu(
    patch: tuple[int, ...], cases: list[StoredCase]
) -> None:
    task = make_task(cases, Path(), patch, Machine())
    stream = patch_stream(task, cases, None, number=0)
    expected = batches(cases, patch, "ram", augmented=False)
    for kind in ("gpu", "ram"):
        patches = Patches(stream, kind, torch.device("cuda"))
        found = patches.batches(range(3, 7), patch_shape=patch, spec=None)
        for one, other in zip(found, expected, strict=True):
            assert one.image.is_cuda
            assert torch.equal(one.image.cpu(), other.image)
            assert torch.equal(one.target.cpu(), other.target)
