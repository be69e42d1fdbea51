import math

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter

from autoliver.training.augment.placement import Placement, SpatialSpec
from autoliver.training.augment.spatial import (
    apply_mirror,
    apply_spatial,
    sample_mirror,
    sample_spatial,
)

# source, patch, angles; the last two have slices that are transformed alike.
CASES = [
    ((30, 34, 38), (24, 20, 26), (0.3, -0.4, 0.2)),
    ((40, 44), (31, 36), (2.1,)),
    ((5, 40, 44), (5, 30, 36), (-1.1,)),
    ((1, 41, 43), (1, 31, 30), (0.4,)),
]


def image_of(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    values = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    return torch.from_numpy(values.astype(np.float32))[None, None]


def label_of(shape: tuple[int, ...], values: list[int]) -> torch.Tensor:
    rng = np.random.default_rng(1)
    fields = np.stack([gaussian_filter(rng.normal(size=shape), 2.0) for _ in values])
    return torch.from_numpy(np.array(values, dtype=np.int16)[fields.argmax(0)])[None, None]


def scipy_resample(
    volume: np.ndarray, patch: tuple[int, ...], placement: Placement, fill: float
) -> np.ndarray:
    """Linear interpolation about the centres; zero padding enters half a voxel out, as in torch."""
    matrix = placement.matrix()
    axes, pad = len(matrix), 8
    padded = np.pad(volume, pad, constant_values=fill)
    slices = volume.ndim - axes
    padded = padded[(slice(pad, -pad),) * slices]
    full = np.eye(volume.ndim)
    full[slices:, slices:] = matrix
    centre_in = (np.array(padded.shape) - 1) / 2
    centre_out = (np.array(patch) - 1) / 2
    return affine_transform(
        padded,
        full,
        offset=centre_in - full @ centre_out,
        output_shape=patch,
        order=1,
        mode="constant",
        cval=fill,
    )


@pytest.mark.parametrize(("source", "patch", "angles"), CASES)
@pytest.mark.parametrize("scale", [0.75, 1.3])
def test_images_are_resampled_as_by_scipy(source, patch, angles, scale):
    image = image_of(source)
    placement = Placement(angles, scale)
    label = torch.zeros(1, 1, *source, dtype=torch.int16)
    found, _ = apply_spatial(image, label, patch_shape=patch, placements=[placement])
    expected = scipy_resample(image[0, 0].double().numpy(), patch, placement, 0.0)
    assert np.abs(found[0, 0].numpy() - expected).max() < 2e-5


@pytest.mark.parametrize(("source", "patch", "angles"), CASES)
@pytest.mark.parametrize("values", [[0, 1], [0, 1, 2, 5], [-1, 0, 3], list(range(11))])
@pytest.mark.parametrize("scale", [0.75, 1.3])
def test_the_label_with_the_highest_interpolated_indicator_wins(
    source, patch, angles, values, scale
):
    label = label_of(source, values)
    placement = Placement(angles, scale)
    image = torch.zeros(1, 1, *source)
    _, found = apply_spatial(image, label, patch_shape=patch, placements=[placement])
    everything = sorted({-1, *values})
    scores = np.stack(
        [
            scipy_resample((label[0, 0].numpy() == v).astype(float), patch, placement, float(v < 0))
            for v in everything
        ]
    )
    assert found.dtype == torch.int16
    ordered = np.sort(scores, axis=0)
    clear = ordered[-1] - ordered[-2] > 2e-3
    assert clear.mean() > 0.9
    expected = np.array(everything)[scores.argmax(0)]
    assert np.array_equal(found[0, 0].numpy()[clear], expected[clear])
    # Where it is not clear it is one of the highest all the same.
    rows = np.searchsorted(everything, found[0, 0].numpy())
    own = np.take_along_axis(scores, rows[None], axis=0)[0]
    assert (ordered[-1] - own).max() < 2e-3


def test_a_tie_goes_to_the_nearest_voxel_whatever_its_label():
    # An odd patch in an even line samples exactly between two voxels; rounding goes to the even.
    line = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1], dtype=torch.int16)
    label = line.expand(1, 1, 8, 8).contiguous()
    image = torch.zeros(1, 1, 8, 8)
    turned = Placement((0.0,), 1.0)
    for values in (label, 1 - label):
        _, found = apply_spatial(image, values, patch_shape=(8, 5), placements=[turned])
        # Positions 1.5, 2.5, 3.5, 4.5, 5.5.
        expected = values[0, 0, 0, [2, 2, 4, 4, 6]]
        assert torch.equal(found[0, 0, 3], expected)


def test_a_tie_never_invents_or_picks_a_losing_label():
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(0, 4, (1, 1, 9, 9, 9)).astype(np.int16) * 3)
    image = torch.zeros(1, 1, 9, 9, 9)
    # Half-voxel positions on every axis: ties of up to eight voxels everywhere.
    placement = Placement((0.0, 0.0, 0.0), 1.0)
    _, found = apply_spatial(image, label, patch_shape=(6, 6, 6), placements=[placement])
    cells = label[0, 0].unfold(0, 2, 1).unfold(1, 2, 1).unfold(2, 2, 1)[1:7, 1:7, 1:7].flatten(3)
    counts = torch.stack([(cells == value).sum(-1) for value in (0, 3, 6, 9)])
    own = counts.gather(0, (found[0, 0] // 3).long()[None])[0]
    assert torch.equal(own, counts.amax(0))


def test_a_single_label_stays_and_the_outside_is_marked():
    label = torch.full((1, 1, 20, 20), 7, dtype=torch.int16)
    image = torch.ones(1, 1, 20, 20)
    _, inside = apply_spatial(
        image, label, patch_shape=(10, 10), placements=[Placement((0.7,), 1.0)]
    )
    assert (inside == 7).all()
    resampled, beyond = apply_spatial(
        image, label, patch_shape=(20, 20), placements=[Placement((math.pi / 4,), 1.0)]
    )
    assert sorted(beyond.unique().tolist()) == [-1, 7]
    assert beyond[0, 0, 0, 0] == -1
    # The label ends where the image has fallen to one half.
    clear = (resampled - 0.5).abs() > 1e-3
    assert torch.equal((beyond == 7)[clear], (resampled > 0.5)[clear])


@pytest.mark.parametrize("angle", [math.pi / 2, math.pi, -math.pi / 2])
def test_quarter_turns_move_voxels_exactly(angle):
    image, label = image_of((12, 12)), label_of((12, 12), [0, 1, 2])
    found, found_label = apply_spatial(
        image, label, patch_shape=(12, 12), placements=[Placement((angle,), 1.0)]
    )
    # The patch looks at the source turned from axis 0 to 1, so the content turns the other way.
    turns = -round(angle / (math.pi / 2))
    expected = torch.rot90(image, turns, (2, 3))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found_label, torch.rot90(label, turns, (2, 3)))


def test_the_order_of_turns_is_nnunets():
    # batchgeneratorsv2's create_affine_matrix_3d((0.3, -0.4, 0.2), (1.3, 1.3, 1.3)).
    golden = [
        [1.1735114, -0.393358, -0.3976687],
        [0.2378825, 1.1874594, -0.4726014],
        [0.5062438, 0.3538498, 1.1439001],
    ]
    found = Placement((0.3, -0.4, 0.2), 1.3).matrix()
    assert found == pytest.approx(np.array(golden), abs=1e-6)


def test_each_angle_turns_about_its_own_axis():
    image = image_of((9, 9, 9))
    label = torch.zeros(1, 1, 9, 9, 9, dtype=torch.int16)
    for axis, plane in enumerate([(3, 4), (4, 2), (2, 3)]):
        angles = tuple(math.pi / 2 if other == axis else 0.0 for other in range(3))
        found, _ = apply_spatial(
            image, label, patch_shape=(9, 9, 9), placements=[Placement(angles, 1.0)]
        )
        assert torch.allclose(found, torch.rot90(image, -1, plane), atol=1e-5)


@pytest.mark.parametrize(("source", "patch"), [((11, 12), (6, 7)), ((9, 10, 12), (9, 5, 8))])
def test_without_placement_the_centre_is_cut_out_bit_by_bit(source, patch):
    image, label = image_of(source), label_of(source, [-1, 0, 4])
    found, found_label = apply_spatial(image, label, patch_shape=patch, placements=[None])
    centre = tuple(
        slice(s // 2 - p // 2, s // 2 - p // 2 + p) for s, p in zip(source, patch, strict=True)
    )
    assert torch.equal(found, image[(..., *centre)])
    assert torch.equal(found_label, label[(..., *centre)])


def test_samples_and_label_channels_do_not_touch_each_other():
    image = torch.cat([image_of((20, 22), seed) for seed in range(3)])
    label = label_of((20, 22), [0, 1, 2])
    label = torch.cat([label, label.flip(2)], dim=1).repeat(3, 1, 1, 1)
    placements = [Placement((0.4,), 0.8), None, Placement((-2.0,), 1.2)]
    found, found_label = apply_spatial(image, label, patch_shape=(14, 15), placements=placements)
    for sample in range(3):
        for channel in range(2):
            alone, alone_label = apply_spatial(
                image[sample : sample + 1],
                label[sample : sample + 1, channel : channel + 1],
                patch_shape=(14, 15),
                placements=[placements[sample]],
            )
            assert torch.equal(found[sample], alone[0])
            assert torch.equal(found_label[sample, channel], alone_label[0, 0])


def test_a_patch_larger_than_its_source_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        apply_spatial(
            torch.zeros(1, 1, 4, 4),
            torch.zeros(1, 1, 4, 4, dtype=torch.int16),
            patch_shape=(4, 5),
            placements=[None],
        )


@pytest.mark.parametrize("dimension", [2, 3])
def test_placements_have_the_probabilities_and_ranges_of_the_spec(dimension):
    spec = SpatialSpec(dimension=dimension, rotation_rad=(-0.5, 0.5))
    trials = 8000
    placements = sample_spatial(trials, spec, torch.Generator().manual_seed(0))
    drawn = [p for p in placements if p is not None]
    turned = np.array([p.angles_rad for p in drawn if any(p.angles_rad)])
    scaled = np.array([p.scale for p in drawn if p.scale != 1])
    assert len(drawn) / trials == pytest.approx(1 - 0.8**2, abs=0.02)
    assert len(turned) / trials == pytest.approx(0.2, abs=0.015)
    assert len(scaled) / trials == pytest.approx(0.2, abs=0.015)
    assert turned.shape[1] == (1 if dimension == 2 else 3)
    assert np.abs(turned).max() <= 0.5
    assert turned.std(axis=0) == pytest.approx(1 / math.sqrt(12), abs=0.02)
    if dimension == 3:
        assert np.abs(np.corrcoef(turned.T) - np.eye(3)).max() < 0.1
    assert scaled.min() >= 0.7
    assert scaled.max() <= 1.4
    assert scaled.mean() == pytest.approx(1.05, abs=0.02)


def test_mirroring_flips_each_axis_half_of_the_time():
    flips = sample_mirror(4000, (0, 2), torch.Generator().manual_seed(0))
    assert set(flips) == {(), (0,), (2,), (0, 2)}
    for kind in set(flips):
        assert flips.count(kind) / 4000 == pytest.approx(0.25, abs=0.03)


def test_mirroring_flips_the_samples_that_drew_it():
    original = torch.arange(3 * 2 * 3 * 4).reshape(3, 2, 3, 4)
    batch = original.clone()
    apply_mirror(batch, [(), (1,), (0, 1)])
    assert torch.equal(batch[0], original[0])
    assert np.array_equal(batch[1], original[1].numpy()[:, :, ::-1])
    assert np.array_equal(batch[2], original[2].numpy()[:, ::-1, ::-1])
