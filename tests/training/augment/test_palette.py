"""Regional remapping, against plain numpy."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from autoliver.training.augment import palette
from autoliver.training.augment.palette import Recipe, remap

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(1, 40, 36), (2, 12, 20, 16)]


def scene(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A body with smooth texture, air around it, two labels in it, and a border outside."""
    rng = np.random.default_rng(3)
    smooth = gaussian_filter(rng.normal(size=shape), (0, *[2] * (len(shape) - 1)))
    image = 100 + 40 * smooth / smooth.std()
    label = np.zeros(shape[1:], np.int16)
    label[..., 8:14, 8:14], label[..., 8:14, 2:6] = 1, 2
    image[..., :3] = -900
    label[..., -2:] = -1
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(label)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def sharp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(palette, "_BLURS", (0.0,))


@pytest.mark.usefixtures("sharp")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(6))
def test_a_region_keeps_its_texture_up_to_a_factor(shape: tuple[int, ...], seed: int) -> None:
    """Of a single group without cells and labels, the result is one straight line of the input."""
    image, label = scene(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(palette, "_ONE_GROUP", 1.0)
        found = remap(image, label, seeded(seed), Recipe(cells=False, labels=False))
    body = ((label >= 0) & (image[0] > -900)).numpy()
    for before, after in zip(image.numpy(), found.numpy(), strict=True):
        slope, _ = np.polyfit(before[body], after[body], 1)
        inside = before[label.numpy() >= 0]
        factor = abs(slope) * (inside.max() - inside.min())
        assert 0.5 <= factor <= 2.0
        assert abs(np.corrcoef(before[body], after[body])[0, 1]) > 0.99999
        assert 0.0 <= after[body].mean() <= 1.0


@pytest.mark.usefixtures("sharp")
@pytest.mark.parametrize("shape", SHAPES)
def test_groups_are_runs_of_grey_values_and_each_is_remapped(shape: tuple[int, ...]) -> None:
    image, label = scene(shape)
    x, body = palette._scaled(image[0], label >= 0)
    for seed in range(8):
        regions = palette._regions(x, body, seeded(seed), cells=False)
        assert not regions[~body].any()
        numbers = sorted(set(regions[body].tolist()))
        assert numbers == list(range(1, len(numbers) + 1))
        limits = [(float(x[regions == n].min()), float(x[regions == n].max())) for n in numbers]
        assert all(a[1] < b[0] for a, b in itertools.pairwise(limits))


@pytest.mark.parametrize("shape", SHAPES)
def test_cells_are_those_of_the_nearest_point(shape: tuple[int, ...]) -> None:
    like = torch.zeros(shape[1:])
    points = torch.rand(5, like.ndim, generator=seeded(1))
    grid = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n for n in like.shape], indexing="ij"), -1)
    distance = np.linalg.norm(grid[..., None, :] - points.numpy(), axis=-1)
    assert np.array_equal(palette._nearest(points, like).numpy(), distance.argmin(-1))


@pytest.mark.usefixtures("sharp")
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_are_remapped_on_their_own(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(palette, "_LABEL", 1.0)
    image, label = scene(shape)
    with_labels = remap(image, label, seeded(4))
    without = remap(image, label, seeded(4), Recipe(labels=False))
    same = (label < 1) | (image[0] <= -900)
    assert torch.equal(with_labels[0][same], without[0][same])
    for value in (1, 2):
        inside = (label == value) & (image[0] > -900)
        before, after = without[0][inside].numpy(), with_labels[0][inside].numpy()
        assert abs(np.corrcoef(before, after)[0, 1]) > 0.99999
        assert not np.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(texture=False), Recipe(cells=False)])
@pytest.mark.parametrize("shape", SHAPES)
def test_equal_seeds_are_equal_images_and_air_stays(shape: tuple[int, ...], recipe: Recipe) -> None:
    image, label = scene(shape)
    before = image.clone()
    one, two, other = (remap(image, label, seeded(seed), recipe) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(image, before)
    assert torch.isfinite(one).all()
    assert not one[:, (label < 0) | (image[0] == -900)].any()


@pytest.mark.parametrize("value", [0.0, 5.0, torch.nan])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_without_contrast_stays_so(shape: tuple[int, ...], value: float) -> None:
    image = torch.full(shape, value)
    label = torch.zeros(shape[1:], dtype=torch.int16)
    for at in (label, label - 1, label + 1):
        assert not remap(image, at, seeded(0)).any()


def test_organs_change_places_in_the_order_of_grey_values() -> None:
    """What global curves of one sign cannot do: both orders of two labels come up."""
    image, label = scene((1, 40, 36))
    image[0][label == 1] += 30
    orders = set()
    for seed in range(20):
        found = remap(image, label, seeded(seed))[0]
        orders.add(bool(found[label == 1].mean() > found[label == 2].mean()))
    assert orders == {True, False}
