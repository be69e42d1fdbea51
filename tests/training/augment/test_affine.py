import numpy as np
import pytest
import torch
from per_sample import resample_grid
from scipy.ndimage import affine_transform, gaussian_filter

from autoliver.preprocessing.crop import OUTSIDE
from autoliver.training.augment.affine import resample_affine
from autoliver.training.augment.placement import Placement

# The patch takes two blocks along each axis, the last of them small.
SOURCE, PATCH = (58, 66, 90), (35, 40, 71)
PLACEMENTS = [
    Placement((0.4, -0.3, 0.5), 1.0),
    Placement((-0.5, 0.5, 0.2), 1.38),
    Placement((0.0, 0.0, 0.0), 0.71),
    Placement((0.0, 0.0, 0.0), 1.37),
    Placement((0.1, 0.0, 0.0), 0.8),
]


def white(count: int = 1) -> torch.Tensor:
    values = np.random.default_rng(0).standard_normal((count, *SOURCE), dtype=np.float32)
    return torch.from_numpy(values)


def labels(values: list[int], *, sigma: float = 3.0, dtype: type = np.int16) -> torch.Tensor:
    rng = np.random.default_rng(1)
    fields = np.stack([gaussian_filter(rng.normal(size=SOURCE), sigma) for _ in values])
    return torch.from_numpy(np.array(values, dtype=dtype)[fields.argmax(0)])[None]


def run(function, image, label, placement):
    into = (torch.empty(len(image), *PATCH), label.new_empty(len(label), *PATCH))
    function(image, label, matrix=torch.from_numpy(placement.matrix()), into=into)
    return into


def transformed(volume: np.ndarray, placement: Placement, fill: float) -> np.ndarray:
    matrix, pad = placement.matrix(), 30
    padded = np.pad(volume.astype(np.float64), pad, constant_values=fill)
    offset = (np.array(padded.shape) - 1) / 2 - matrix @ ((np.array(PATCH) - 1) / 2)
    return affine_transform(padded, matrix, offset, output_shape=PATCH, order=1)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_white_noise_is_interpolated_as_by_scipy(placement):
    image = white(2)
    found, _ = run(resample_affine, image, labels([0]), placement)
    for channel, source in zip(found.numpy(), image.numpy(), strict=True):
        assert np.abs(channel - transformed(source, placement, 0.0)).max() < 1e-4


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("values", [[0, 1], [0, 7], [0, 1, 2, 3, 4], [-1, 0, 5], [0, 300, 9000]])
def test_the_largest_share_wins_as_weighed_by_scipy(placement, values):
    label = labels(values)
    _, found = run(resample_affine, white(), label, placement)
    everything = np.array(sorted({OUTSIDE, *values}))
    shares = np.stack(
        [
            transformed(label[0].numpy() == value, placement, float(value == OUTSIDE))
            for value in everything
        ]
    )
    ordered = np.sort(shares, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-3
    assert clear.mean() > 0.95
    expected = everything[shares.argmax(0)]
    assert found.dtype == torch.int16
    assert np.array_equal(found[0].numpy()[clear], expected[clear])
    own = np.take_along_axis(shares, np.searchsorted(everything, found[0].numpy())[None], axis=0)
    assert (ordered[-1] - own).max() < 2e-3


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_torchs_sampling_gives_the_same(placement, sigma):
    # White labels have up to eight in a cell; smooth ones hardly ever three.
    image, label = white(), labels([-1, 0, 1, 2, 4, 11], sigma=sigma)
    ours, other = (run(each, image, label, placement) for each in (resample_affine, resample_grid))
    assert (ours[0] - other[0]).abs().max() < 1e-4
    assert (ours[1] != other[1]).float().mean() < 1e-3


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_labels_of_any_type_and_size_keep_theirs(dtype):
    limit = np.iinfo(dtype)
    label = labels([0, 1, int(limit.max), int(limit.max) - 2], dtype=dtype)
    _, found = run(resample_affine, white(), label, PLACEMENTS[0])
    _, small = run(resample_affine, white(), labels([0, 1, 4, 3]), PLACEMENTS[0])
    assert found.dtype == label.dtype
    names = {limit.max: 4, limit.max - 2: 3}
    renamed = np.vectorize(lambda value: names.get(value, value))(found.numpy())
    assert (renamed != small.numpy()).mean() < 1e-5


def test_exactly_half_way_the_winner_is_one_of_the_largest():
    label = labels([0, 1, 2, 5], sigma=0.0)
    # Straight and of the same scale, even source and odd patch: half a voxel off along the rows.
    _, found = run(resample_affine, white(), label, Placement((0.0, 0.0, 0.0), 1.0))
    starts = [(size - patch) // 2 for size, patch in zip(SOURCE, PATCH, strict=True)]
    size = [patch + 1 if (s - patch) % 2 else patch for s, patch in zip(SOURCE, PATCH, strict=True)]
    cut = label[0][tuple(slice(a, a + n) for a, n in zip(starts, size, strict=True))]
    for axis, (n, patch) in enumerate(zip(size, PATCH, strict=True)):
        cut = cut.unfold(axis, 2 if n > patch else 1, 1)
    counts = torch.stack([(cut == value).flatten(3).sum(-1) for value in (0, 1, 2, 5)])
    place = torch.searchsorted(torch.tensor([0, 1, 2, 5]), found[0].long())
    assert torch.equal(counts.gather(0, place[None])[0], counts.amax(0))


def test_half_precision_images_and_views_are_taken():
    image = white().half()
    label = labels([0, 1, 2])
    found = run(resample_affine, image, label, PLACEMENTS[0])
    turned = run(
        resample_affine,
        image.movedim(1, 3).contiguous().movedim(3, 1),
        label.movedim(1, 3).contiguous().movedim(3, 1),
        PLACEMENTS[0],
    )
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], turned[0])
    assert torch.equal(found[1], turned[1])
    exact = run(resample_affine, image.float(), label, PLACEMENTS[0])
    assert torch.equal(found[0], exact[0])
