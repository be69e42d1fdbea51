import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Generator

from autoliver.training.augment.synth import (
    class_texture,
    group_bins,
    smooth_field,
    split_background,
    synthesise,
)

SHAPES = [(96, 80), (24, 40, 32)]


def scene(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A body of smooth intensities in dark air, with an organ that looks like its surroundings."""
    rng = np.random.default_rng(0)
    body = gaussian_filter(rng.normal(size=shape), 3.0)
    body = body / body.std()
    label = np.zeros(shape, np.int16)
    middle = tuple(slice(n // 3, 2 * n // 3) for n in shape)
    label[middle] = 1
    air = tuple([slice(None)] * (len(shape) - 1) + [slice(0, shape[-1] // 4)])
    body[air] = -6.0 + 0.05 * rng.normal(size=body[air].shape)
    label[(*air[:-1], slice(0, 3))] = -1
    body[(*air[:-1], slice(0, 3))] = 0.0
    return torch.from_numpy(body.astype(np.float32)), torch.from_numpy(label)


def distance(counts: np.ndarray, group: np.ndarray) -> float:
    """The sum of squared distances to the means of the groups."""
    total = 0.0
    for number in np.unique(group):
        values = np.repeat(np.arange(len(counts)), counts * (group == number))
        total += float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    return total


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_groups_are_the_best_there_are(groups, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, size=10) * (rng.random(10) < 0.8)
    counts[[0, 3, 5, 9]] += 1
    found = group_bins(counts.astype(np.int64), groups)
    assert (np.diff(found) >= 0).all()
    assert set(found[counts > 0]) == set(range(groups))
    best = min(
        distance(counts, np.searchsorted(cuts, np.arange(10), side="right"))
        for cuts in itertools.combinations(range(1, 10), groups - 1)
    )
    assert distance(counts, found) == pytest.approx(best)


def test_there_are_no_more_groups_than_bins_with_something_in_them():
    assert group_bins(np.array([0, 5, 0, 2]), 6).tolist() == [0, 0, 0, 1]
    assert group_bins(np.zeros(4, np.int64), 3).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parts", [4, 8])
def test_the_background_is_split_from_dark_to_bright(shape, parts):
    image, label = scene(shape)
    before = image.clone(), label.clone()
    classes = split_background(image, label, parts=parts)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])
    assert set(classes.unique().tolist()) == set(range(parts + 2))
    assert torch.equal(classes == parts + 1, label == 1)
    assert (classes[label < 0] == 0).all()
    # Air is found, but for the seam between it and the body.
    seam = shape[-1] // 4
    assert (classes[..., : seam - 2] == 0).all()
    assert (classes[..., seam + 2 :] > 0).all()
    body = label == 0
    body[..., : seam + 2] = False
    parts_here = [int(part) for part in classes[body].unique()]
    means = [float(image[body & (classes == part)].mean()) for part in parts_here]
    assert means == sorted(means)
    assert len(means) >= 3


@pytest.mark.parametrize("shape", SHAPES)
def test_classes_have_their_own_grey_values(shape):
    image, label = scene(shape)
    differences = []
    for seed in range(12):
        made = synthesise(image[None], label, torch.Generator().manual_seed(seed))[0]
        assert made.shape == image.shape
        assert torch.isfinite(made).all()
        parts = int(torch.randint(4, 9, (1,), generator=torch.Generator().manual_seed(seed)))
        classes = split_background(image, label, parts=parts)
        means = [float(made[classes == c].mean()) for c in range(parts + 2)]
        assert len(set(means)) == parts + 2
        # Air is dark; within the body grey values have nothing to do with the image's.
        assert means[0] < np.mean(means[1:])
        differences.append(means[-1] - np.mean(means[1:-1]))
        # More between classes than within them.
        within = np.mean([float(made[classes == c].var()) for c in range(parts + 2)])
        assert within < float(made.var())
    assert min(differences) < 0 < max(differences)


def test_borders_of_labels_can_be_seen():
    image, label = torch.zeros(64, 64), torch.zeros(64, 64, dtype=torch.int16)
    image += torch.linspace(-1, 1, 64)
    label[16:48, 16:48] = 1
    label[28:36, 28:36] = 3
    steps = []
    for seed in range(20):
        made = synthesise(image[None], label, torch.Generator().manual_seed(seed))[0]
        steps.append(abs(float(made[22:26, 22:42].mean() - made[30:34, 30:34].mean())))
    assert np.median(steps) > 0.1


def test_every_channel_has_grey_values_of_its_own_and_they_come_from_the_generator():
    image, label = scene((40, 48))
    both = torch.stack([image, -image])
    one = synthesise(both, label, torch.Generator().manual_seed(1))
    assert torch.equal(one, synthesise(both, label, torch.Generator().manual_seed(1)))
    other = synthesise(both, label, torch.Generator().manual_seed(2))
    assert not torch.allclose(one, other, atol=0.05)
    assert abs(np.corrcoef(one.flatten(1).numpy())[0, 1]) < 0.98


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_patches_of_one_class_are_finite(value):
    label = torch.full((12, 10), value, dtype=torch.int16)
    made = synthesise(torch.full((1, 12, 10), 2.0), label, torch.Generator().manual_seed(0))
    assert torch.isfinite(made).all()


def test_images_that_are_not_finite_do_not_end_in_an_error():
    image, label = scene((32, 32))
    image[3, 20] = torch.nan
    image[4, 20] = torch.inf
    assert torch.isfinite(synthesise(image[None], label, torch.Generator().manual_seed(0))).all()


def test_fields_are_smooth():
    field = smooth_field((64, 64), torch.Generator().manual_seed(0))
    assert float(field.diff(dim=0).abs().max()) < 0.3
    assert float(field.std()) > 0.2


def test_texture_is_what_is_left_of_each_class():
    rng = np.random.default_rng(0)
    channel = rng.normal(size=(20, 30)).astype(np.float32)
    classes = rng.integers(0, 3, (20, 30))
    channel += 10 * classes
    found = class_texture(torch.from_numpy(channel), torch.from_numpy(classes), count=4).numpy()
    for number in range(3):
        own = channel[classes == number]
        expected = np.clip((own - own.mean()) / own.std(), -4, 4)
        np.testing.assert_allclose(found[classes == number], expected, rtol=1e-4, atol=1e-5)


def test_vessels_of_a_label_can_be_seen_or_not():
    """Two thirds of the images keep some of the texture of a label, bright or inverted."""
    image, label = torch.zeros(1, 32, 32), torch.ones(32, 32, dtype=torch.int16)
    image[:, ::4] = 1.0  # every fourth line is a vessel
    label[:2] = 0
    signs = []
    for seed in range(60):
        made = synthesise(image, label, Generator().manual_seed(seed))[0, 4:-4]
        lines = made[(torch.arange(len(made)) + 4) % 4 == 0].mean() - made.mean()
        signs.append(float(lines / made.std()))
    assert np.mean(np.array(signs) > 0.1) > 0.15
    assert np.mean(np.array(signs) < -0.1) > 0.15
    assert np.mean(np.abs(signs) < 0.1) > 0.15
