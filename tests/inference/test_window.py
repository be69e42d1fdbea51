import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from autoliver.inference import window
from autoliver.inference.window import (
    Scan,
    gaussian_weight,
    sliding_window,
    windows_of,
)


class Pointwise(nn.Module):
    """Logits that depend on each voxel alone: any window must give the same."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image, -2 * image + 1], dim=1)


class Ramp(nn.Module):
    """Logits that depend on the place in the window: weights and flips show."""

    def forward(self, image: Tensor) -> Tensor:
        line = torch.arange(image.shape[-1], dtype=image.dtype)
        return (image * 0 + line) ** 2


@pytest.mark.parametrize("shape", [(5, 9, 7), (16, 16, 16), (3, 20, 11)])
@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8)])
def test_a_voxelwise_network_gives_its_own_values(
    shape: tuple[int, int, int], patch: tuple[int, ...]
) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    axes = tuple(range(len(patch)))
    out = sliding_window(image, [Pointwise()], Scan(patch_shape=patch, mirror_axes=axes))
    assert torch.allclose(out, Pointwise()(image[None])[0], atol=1e-5)


def test_one_window_equals_a_plain_forward() -> None:
    network = nn.Conv3d(1, 3, 3, padding=1)
    image = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        out = sliding_window(image, [network], Scan(patch_shape=(8, 8, 8)))
        assert torch.allclose(out, network(image[None])[0], atol=1e-5)


def test_mirroring_averages_over_all_flips_and_networks() -> None:
    networks = [nn.Conv3d(1, 2, 3, padding=1) for _ in range(2)]
    image = torch.randn(1, 6, 8, 7)
    with torch.no_grad():
        out = sliding_window(image, networks, Scan(patch_shape=(6, 8, 7), mirror_axes=(0, 1, 2)))
        outs = []
        for network in networks:
            for number in range(4):
                for flip in itertools.combinations((1, 2, 3), number):
                    outs.append(network(image.flip(flip)[None])[0].flip(flip))
    assert len(outs) == 16
    assert torch.allclose(out, torch.stack(outs).mean(0), atol=1e-5)


def test_overlapping_windows_are_averaged_by_weight() -> None:
    image = torch.zeros(1, 1, 1, 6)
    out = sliding_window(image, [Ramp()], Scan(patch_shape=(1, 1, 4)))
    weight = gaussian_weight((1, 1, 4))[0, 0].numpy()
    total, norm = np.zeros(6), np.zeros(6)
    for start in (0, 2):
        total[start : start + 4] += weight * np.arange(4) ** 2
        norm[start : start + 4] += weight
    assert np.allclose(out[0, 0, 0].numpy(), total / norm, atol=1e-5)


@pytest.mark.parametrize("patch", [(8, 12, 10), (7, 9)])
def test_weight_is_a_gaussian_without_zeros(patch: tuple[int, ...]) -> None:
    impulse = np.zeros(patch)
    impulse[tuple(p // 2 for p in patch)] = 1
    expected = gaussian_filter(impulse, [p / 8 for p in patch], mode="constant")
    expected /= expected.max()
    expected[expected == 0] = expected[expected > 0].min()
    assert np.allclose(gaussian_weight(patch).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("shape", "patch"), [((30, 20, 9), (8, 8, 8)), ((4, 20, 9), (8, 8))])
def test_windows_are_counted_as_they_are_visited(
    shape: tuple[int, int, int], patch: tuple[int, ...]
) -> None:
    seen: list[int] = []
    sliding_window(
        torch.zeros(1, *shape),
        [Pointwise()],
        Scan(patch_shape=patch),
        on_window=lambda: seen.append(1),
    )
    assert len(seen) == len(windows_of(shape, patch, 0.5))


class Counting(nn.Module):
    """A small network with instance norm that counts the windows it is given."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        torch.manual_seed(axes)
        convolution = nn.Conv3d if axes == 3 else nn.Conv2d
        norm = nn.InstanceNorm3d if axes == 3 else nn.InstanceNorm2d
        self.layers = nn.Sequential(
            convolution(2, 4, 3, padding=1), norm(4), nn.LeakyReLU(), convolution(4, 3, 3)
        )
        self.windows = 0

    def forward(self, image: Tensor) -> Tensor:
        self.windows += len(image)
        out: Tensor = self.layers(nn.functional.pad(image, [1, 1] * (image.ndim - 2)))
        return out


@pytest.mark.parametrize(("at_once", "mirror"), [(1, False), (3, True)])
@pytest.mark.parametrize(("slices", "patch"), [(14, (8, 12, 10)), (3, (12, 10))])
def test_windows_of_air_are_computed_once_and_change_no_bit(
    monkeypatch: pytest.MonkeyPatch,
    slices: int,
    patch: tuple[int, ...],
    at_once: int,
    mirror: bool,
) -> None:
    flips = 2 ** len(patch) if mirror else 1
    monkeypatch.setattr(window, "_BATCH_VOXELS", at_once * flips * int(np.prod(patch)))
    image = torch.full((2, slices, 38, 33), -1.25)
    image[1] = 0.5
    image[:, 1:3, 28:32, 24:] = torch.randn(2, 2, 4, 9)
    networks = [Counting(len(patch))]

    def run() -> Tensor:
        with torch.inference_mode():
            axes = tuple(range(len(patch))) if mirror else ()
            return sliding_window(image, networks, Scan(patch_shape=patch, mirror_axes=axes))

    skipped = run()
    few = networks[0].windows
    monkeypatch.setattr(window, "_ConstantsOnce", lambda compute: compute)
    whole = run()
    assert few < 0.8 * (networks[0].windows - few)
    assert torch.equal(skipped, whole)


def test_windows_of_different_air_are_told_apart() -> None:
    image = torch.zeros(1, 4, 4, 40)
    for part in range(5):
        image[..., 8 * part : 8 * part + 8] = part
    out = sliding_window(image, [Pointwise()], Scan(patch_shape=(4, 4, 4)))
    assert torch.allclose(out, Pointwise()(image[None])[0], atol=1e-5)
