"""Many samples changed at once: equal to one after the other, and with few operations."""

import numpy as np
import per_sample
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.utils._python_dispatch import TorchDispatchMode

from autoliver.training.augment import rows, spatial
from autoliver.training.augment.batch import (
    AugmentSpec,
    augment_batch,
    default_augment_spec,
    initial_patch_shape,
)
from autoliver.training.augment.intensity import INTENSITY, default_steps
from autoliver.training.augment.lines import coarsened
from autoliver.training.augment.placement import (
    Placement,
    first_draws,
    make_placements,
    needed_shape,
)
from autoliver.training.share import Part

CPU = torch.device("cpu")
# 2D; 3D; 3D with slices that are transformed alike.
PATCHES = [(24, 30), (16, 20, 18), (6, 24, 28)]


class Counted(TorchDispatchMode):
    """Counts the operations that a device would have to launch; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not (function.is_view or "lift_fresh" in str(function))
        return function(*args, **(kwargs or {}))


def batch_of(
    patch: tuple[int, ...], count: int, channels: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (count, channels, *initial_patch_shape(patch, default_augment_spec(patch)))
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.normal(size=shape), (0, 0, *[1] * len(patch))) * 5
    label = np.digitize(image[:, :1], [-0.5, 0.5, 1.5]).astype(np.int16) - 1
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label)


def busy(spec: AugmentSpec) -> AugmentSpec:
    """The spec with about half of all changes."""
    steps = tuple(s.replace(probability=0.6, channel_probability=0.7) for s in spec.intensity)
    turned = spec.spatial.replace(rotation_probability=0.4, scaling_probability=0.4)
    return spec.replace(spatial=turned, intensity=steps, masked_channels=(1,))


@pytest.fixture(params=["as on a CPU", "as on a GPU", "one by one"])
def grouping(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "as on a CPU":
        as_on_a_gpu(monkeypatch, most=2**22 if request.param == "as on a GPU" else 1)
    return str(request.param)


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, *, most: int = 2**22) -> None:
    """Takes the branches of a GPU on CPU tensors."""
    monkeypatch.setattr(rows, "_AT_ONCE_CPU", most)
    monkeypatch.setattr(spatial, "_on_cpu", lambda _: False)


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.usefixtures("grouping")
def test_a_batch_is_what_its_samples_are_one_by_one(patch: tuple[int, ...]) -> None:
    spec = busy(default_augment_spec(patch))
    image, label = batch_of(patch, 9)
    found = augment_batch(
        image, label, patch_shape=patch, spec=spec, generator=torch.Generator().manual_seed(3)
    )
    expected = per_sample.augment(image, label, patch, spec, torch.Generator().manual_seed(3))
    assert torch.allclose(found[0], expected[0], atol=2e-4)
    # A share that is one half but for rounding.
    assert (found[1] != expected[1]).float().mean() < 1e-4
    assert found[1].dtype == label.dtype


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.usefixtures("grouping")
def test_a_part_of_a_batch_is_what_it_is_within_it(patch: tuple[int, ...]) -> None:
    spec = busy(default_augment_spec(patch))
    image, label = batch_of(patch, 7)
    whole = augment_batch(
        image, label, patch_shape=patch, spec=spec, generator=torch.Generator().manual_seed(3)
    )
    part = Part(start=2, stop=6, whole=7)
    found = augment_batch(
        image[2:6],
        label[2:6],
        patch_shape=patch,
        spec=spec,
        generator=torch.Generator().manual_seed(3),
        part=part,
    )
    assert torch.allclose(found[0], whole[0][2:6], atol=1e-5)
    assert torch.equal(found[1], whole[1][2:6])


@pytest.mark.parametrize("shape", [(3, 2, 9, 12, 10), (5, 3, 14, 11), (9, 1, 1, 8)])
@pytest.mark.parametrize("step", default_steps(skip_axes=(0,)), ids=lambda step: step.name)
@pytest.mark.usefixtures("grouping")
def test_each_transform_changes_channels_as_alone(step, shape) -> None:
    step = step.replace(probability=0.7, channel_probability=0.7)
    image = torch.from_numpy(np.random.default_rng(3).normal(2, 3, shape).astype(np.float32))
    expected = image.clone()
    sample, apply = INTENSITY[step.name]
    apply(image, sample(step, shape, torch.Generator().manual_seed(8)))
    drawn = per_sample.draws(step, shape, torch.Generator().manual_seed(8))
    for index, channel, values, seed in drawn:
        view = expected[index, channel]
        view.copy_(per_sample.changed(step.name, view, values, seed))
    assert len(drawn) > 1
    assert torch.allclose(image, expected, atol=2e-5)


def test_every_coarse_size_keeps_the_voxels_that_torch_keeps() -> None:
    for size in (1, 2, 7, 40, 56, 128, 301, 512):
        line = torch.from_numpy(np.random.default_rng(size).normal(size=size).astype(np.float32))
        scales = np.linspace(0.55, 1.0, 2 * size + 1)
        found = coarsened(line.expand(len(scales), size).contiguous(), [scales])
        for row, scale in zip(found, scales, strict=True):
            coarse = torch.nn.functional.interpolate(
                line[None, None], round(size * scale), mode="nearest-exact"
            )
            expected = torch.nn.functional.interpolate(coarse, size, mode="linear")[0, 0]
            assert torch.allclose(row, expected, atol=1e-4), (size, scale)


def operations(patch: tuple[int, ...], count: int) -> int:
    """Operations on a batch with the default changes; the most of three seeds."""
    image, label = batch_of(patch, count, 1)
    found = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        with Counted() as counted:
            augment_batch(
                image,
                label,
                patch_shape=patch,
                spec=default_augment_spec(patch),
                generator=generator,
            )
        found.append(counted.count)
    return max(found)


@pytest.mark.parametrize(
    ("patch", "count", "most"), [((56, 40), 366, 400), ((32, 32, 32), 2, 200)], ids=["2d", "3d"]
)
def test_few_operations_are_launched_for_a_batch(
    patch: tuple[int, ...], count: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    assert operations(patch, count) <= most


def test_operations_do_not_grow_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    few, many = operations((16, 16), 100), operations((16, 16), 200)
    # White noise is drawn field by field, from the seed of each.
    assert many - few < 2.5 * 0.1 * 100 + 20


@pytest.mark.parametrize("patch", [(8, 8), (8, 8, 8), (4, 16, 16)])
def test_the_first_draws_are_those_of_torch(patch: tuple[int, ...]) -> None:
    spec = default_augment_spec(patch).spatial
    for seed in (0, 1, 2**32 - 1, 2**32, 2**62 - 1, 123456789012345678):
        generator = torch.Generator().manual_seed(seed)
        expected = spatial.sample_spatial(40, spec, generator)
        assert make_placements(first_draws(seed, 40, spec), spec) == expected
        assert {each is None for each in expected} == {True, False}


@pytest.mark.parametrize("patch", [(24, 30), (21, 30), (16, 21, 18), (6, 24, 28)])
@pytest.mark.usefixtures("grouping")
def test_a_part_of_the_source_is_enough(patch: tuple[int, ...]) -> None:
    spec = default_augment_spec(patch).spatial
    image, label = batch_of(patch, 1)
    source = image.shape[2:]
    seeds = torch.Generator().manual_seed(5)
    drawn = [each for each in spatial.sample_spatial(60, spec, seeds) if each is not None]
    assert len(drawn) > 10
    smaller = 0
    for each in drawn:
        shape = needed_shape([each], patch, source)
        smaller += shape != tuple(source)
        cut = tuple(
            slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(source, shape, strict=True)
        )
        assert all((n - m) % 2 == 0 for n, m in zip(source, shape, strict=True))
        results = []
        for i, k in ((image, label), (image[(..., *cut)], label[(..., *cut)])):
            into = (torch.empty(1, 2, *patch), torch.empty(1, 1, *patch, dtype=torch.int16))
            spatial.place_turned(i, k, samples=[0], placements=[each], into=into)
            results.append(into)
        assert torch.allclose(results[0][0], results[1][0], atol=2e-4)
        assert (results[0][1] != results[1][1]).float().mean() < 2e-3
    assert smaller > len(drawn) / 5


def test_the_needed_part_holds_both_neighbours_of_each_position() -> None:
    # Patch 5 doubled: positions from -4 to 4 about the middle of 15 voxels (7): 3 to 11, and one
    # voxel more for rounding.
    assert needed_shape([Placement((0.0,), 2.0)], (5, 5), (15, 15)) == (13, 13)
    # A quarter of a turn exchanges the axes; 2 voxels less at each end than of 15 and of 30.
    turned = Placement((np.pi / 2,), 1.0)
    assert needed_shape([turned], (5, 9), (15, 30)) == (13, 8)
    # The largest of several counts, and no more than there is.
    assert needed_shape([turned, Placement((0.0,), 9.0)], (5, 9), (15, 30)) == (15, 30)
