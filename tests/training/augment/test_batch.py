import math

import msgspec
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from autoliver.artifacts import to_record
from autoliver.training.augment.batch import (
    AugmentSpec,
    augment_batch,
    default_augment_spec,
    initial_patch_shape,
)
from autoliver.training.augment.intensity import IntensityStep

PATCHES = [(16, 20, 18), (6, 24, 28), (24, 28)]


def batch_of(patch: tuple[int, ...], count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (count, 2, *initial_patch_shape(patch, default_augment_spec(patch)))
    rng = np.random.default_rng(0)
    image = gaussian_filter(rng.normal(size=shape), (0, 0, *[1] * len(patch))) * 5
    label = np.digitize(image[:, :1], [-0.5, 0.5, 1.5]).astype(np.int16) - 1
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label)


def run(
    patch: tuple[int, ...], spec: AugmentSpec, seed: int = 0, count: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    image, label = batch_of(patch, count)
    generator = torch.Generator().manual_seed(seed)
    return augment_batch(image, label, patch_shape=patch, spec=spec, generator=generator)


def still(spec: AugmentSpec) -> AugmentSpec:
    """The spec with nothing but mirroring left."""
    spatial = spec.spatial.replace(rotation_probability=0.0, scaling_probability=0.0)
    return spec.replace(spatial=spatial, intensity=())


# nnU-Net 2.8.1: configure_rotation_dummyDA_mirroring_and_inital_patch_size.
@pytest.mark.parametrize(
    ("patch", "degrees", "slicewise", "initial"),
    [
        ((128, 128, 128), 30, False, (205, 205, 205)),
        ((64, 192, 160), 30, False, (178, 289, 200)),
        ((20, 320, 256), 180, True, (20, 376, 376)),
        ((48, 192, 192), 180, True, (48, 225, 225)),
        ((96, 160, 160), 30, False, (191, 257, 219)),
        ((40, 224, 192), 180, True, (40, 263, 263)),
        ((28, 256, 256), 180, True, (28, 301, 301)),
        ((112, 160, 128), 30, False, (208, 238, 196)),
        ((32, 32, 32), 30, False, (51, 51, 51)),
        ((16, 48, 48), 30, False, (44, 77, 58)),
        ((512, 512), 180, False, (602, 602)),
        ((320, 256), 180, False, (376, 376)),
        ((448, 256), 15, False, (587, 301)),
        ((256, 256), 180, False, (301, 301)),
    ],
)
def test_angles_and_initial_patch_are_nnunets(patch, degrees, slicewise, initial):
    spec = default_augment_spec(patch)
    assert spec.spatial.rotation_rad == pytest.approx(
        (-math.radians(degrees), math.radians(degrees))
    )
    assert spec.spatial.dimension == (2 if slicewise else len(patch))
    assert spec.mirror_axes == tuple(range(len(patch)))
    (low,) = [step for step in spec.intensity if step.name == "low_resolution"]
    assert low.skip_axes == ((0,) if slicewise else ())
    assert initial_patch_shape(patch, spec) == initial


def test_without_mirroring_no_axis_is_flipped():
    assert default_augment_spec((32, 32, 32), mirror=False).mirror_axes == ()


@pytest.mark.parametrize("patch", PATCHES)
def test_the_same_state_gives_the_same_batch_and_the_input_stays(patch):
    spec = default_augment_spec(patch)
    image, label = batch_of(patch)
    before, label_before = image.clone(), label.clone()
    results = [
        augment_batch(
            image, label, patch_shape=patch, spec=spec, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    ]
    assert torch.equal(image, before)
    assert torch.equal(label, label_before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], run(patch, spec, seed=2)[0])
    assert results[0][0].shape == (4, 2, *patch)
    assert results[0][1].shape == (4, 1, *patch)
    assert results[0][0].dtype == torch.float32
    assert results[0][1].dtype == torch.int16


@pytest.mark.parametrize("patch", PATCHES)
def test_labels_are_never_invented_and_images_stay_finite(patch):
    spec = default_augment_spec(patch)
    spatial = spec.spatial.replace(rotation_probability=1.0, scaling_probability=1.0)
    steps = tuple(s.replace(probability=1.0, channel_probability=1.0) for s in spec.intensity)
    for seed in range(3):
        image, label = run(patch, spec.replace(spatial=spatial, intensity=steps), seed)
        assert set(label.unique().tolist()) <= {0, 1, 2}
        assert torch.isfinite(image).all()


@pytest.mark.parametrize("patch", PATCHES)
def test_untouched_samples_are_the_centre_of_the_input(patch):
    spec = still(default_augment_spec(patch, mirror=False))
    image, label = batch_of(patch)
    found, found_label = run(patch, spec)
    centre = tuple(
        slice(s // 2 - p // 2, s // 2 - p // 2 + p)
        for s, p in zip(image.shape[2:], patch, strict=True)
    )
    assert torch.equal(found, image[(..., *centre)])
    assert torch.equal(found_label, label[(..., *centre)].clamp_min(0))


@pytest.mark.parametrize("patch", PATCHES)
def test_image_and_label_stay_aligned(patch):
    # An image that is its own label can be compared after rotation, scaling and mirroring.
    spec = default_augment_spec(patch)
    spatial = spec.spatial.replace(rotation_probability=1.0, scaling_probability=1.0)
    # Twice the patch, so that no corner leaves it.
    shape = (6, 1, *(math.ceil(2.1 * n) for n in patch))
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=shape), (0, 0, *[3] * len(patch)))
    label = torch.from_numpy((blobs > 0).astype(np.int16))
    found, found_label = augment_batch(
        label.float(),
        label,
        patch_shape=patch,
        spec=spec.replace(spatial=spatial, intensity=()),
        generator=torch.Generator().manual_seed(0),
    )
    clear = (found - 0.5).abs() > 1e-3
    assert torch.equal((found_label == 1)[clear], (found > 0.5)[clear])
    assert clear.float().mean() > 0.9


def test_slices_of_anisotropic_patches_stay_apart():
    patch = (6, 24, 28)
    spec = default_augment_spec(patch, mirror=False)
    spatial = spec.spatial.replace(rotation_probability=1.0, scaling_probability=1.0)
    initial = initial_patch_shape(patch, spec)
    image, label = torch.zeros(2, 1, *initial), torch.zeros(2, 1, *initial, dtype=torch.int16)
    image[:, :, 2], label[:, :, 2] = 1, 1
    found, found_label = augment_batch(
        image,
        label,
        patch_shape=patch,
        spec=spec.replace(spatial=spatial, intensity=()),
        generator=torch.Generator().manual_seed(0),
    )
    others = [0, 1, 3, 4, 5]
    assert found[:, :, others].abs().max() == 0
    assert found_label[:, :, others].abs().max() == 0
    assert (found_label[:, :, 2] == 1).float().mean() > 0.5


@pytest.mark.parametrize("patch", PATCHES)
def test_masked_channels_are_zero_outside_and_the_mark_is_removed(patch):
    spec = still(default_augment_spec(patch, masked_channels=(1,))).replace(mirror_axes=())
    image, label = batch_of(patch)
    found, found_label = run(patch, spec)
    centre = tuple(
        slice(s // 2 - p // 2, s // 2 - p // 2 + p)
        for s, p in zip(image.shape[2:], patch, strict=True)
    )
    outside = label[(..., *centre)][:, 0] < 0
    assert outside.any()
    assert (found[:, 1][outside] == 0).all()
    assert torch.equal(found[:, 1][~outside], image[(..., *centre)][:, 1][~outside])
    assert torch.equal(found[:, 0], image[(..., *centre)][:, 0])
    assert found_label.min() == 0


def test_the_default_steps_are_nnunets():
    steps = [
        (s.name, s.probability, s.strength, s.channel_probability)
        for s in default_augment_spec((32, 32)).intensity
    ]
    assert steps == [
        ("noise", 0.1, (0.0, 0.1), 1.0),
        ("blur", 0.2, (0.5, 1.0), 0.5),
        ("brightness", 0.15, (0.75, 1.25), 1.0),
        ("contrast", 0.15, (0.75, 1.25), 1.0),
        ("low_resolution", 0.25, (0.5, 1.0), 0.5),
        ("gamma_inverted", 0.1, (0.7, 1.5), 1.0),
        ("gamma", 0.3, (0.7, 1.5), 1.0),
    ]


def test_the_spec_survives_json():
    spec = default_augment_spec((20, 320, 256), masked_channels=(0,))
    assert to_record(msgspec.to_builtins(spec), AugmentSpec, where="spec") == spec


def test_steps_can_be_put_together_otherwise():
    spec = still(default_augment_spec((24, 28))).replace(
        mirror_axes=(),
        intensity=(IntensityStep(name="brightness", probability=1.0, strength=(0.5, 2.0)),) * 2,
    )
    image, _ = run((24, 28), spec)
    plain, _ = run((24, 28), spec.replace(intensity=()))
    ratio = (image / plain).flatten(2)
    assert float(ratio.std(dim=2).max()) < 1e-4
    assert float(ratio.mean(dim=2).std()) > 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("patch", PATCHES)
def test_the_device_changes_nothing_but_the_noise(patch):
    spec = default_augment_spec(patch)
    spec = spec.replace(intensity=tuple(s for s in spec.intensity if s.name != "noise"))
    image, label = batch_of(patch)
    results = [
        augment_batch(
            image.to(device),
            label.to(device),
            patch_shape=patch,
            spec=spec,
            generator=torch.Generator().manual_seed(4),
        )
        for device in ("cpu", "cuda")
    ]
    assert torch.allclose(results[0][0], results[1][0].cpu(), atol=1e-3)
    assert (results[0][1] != results[1][1].cpu()).float().mean() < 1e-3
