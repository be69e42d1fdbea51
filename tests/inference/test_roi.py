import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter

from autoliver.inference.roi import BoxRegion, find_region, near_windows, spanned_box
from autoliver.inference.window import Scan, box_of, padded_shape, sliding_window, windows_of

SPACING = (3.0, 2.0, 2.0)


def some_mask(shape=(14, 20, 17), density=0.002, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    mask[tuple(size // 3 for size in shape)] = True
    return mask


def all_of(windows, shape):
    covered = np.zeros(shape, dtype=bool)
    for window in windows:
        covered[window] = True
    return covered


@pytest.mark.parametrize("seed", range(4))
def test_a_box_touches_what_lies_in_the_mask_grown_by_the_margin(seed):
    mask = some_mask(seed=seed)
    region = find_region(mask, SPACING, margin_mm=6.0)
    grown = maximum_filter(mask, size=(5, 7, 7))
    rng = np.random.default_rng(seed)
    found = set()
    for _ in range(200):
        ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in mask.shape]
        box = tuple(slice(*end) for end in ends)
        shares = [(a / n, b / n) for (a, b), n in zip(ends, mask.shape, strict=True)]
        inside = bool(grown[box].any())
        # Rounding errors may add a voxel at the margin; they never take one away.
        wider = maximum_filter(mask, size=(7, 9, 9))
        assert region.touches(shares) in {inside, bool(wider[box].any())}
        found.add(inside)
    assert found == {True, False}


def test_without_foreground_there_is_no_region():
    assert find_region(np.zeros((4, 5, 6), dtype=bool), SPACING) is None


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_a_transposed_region_is_that_of_the_transposed_mask(axes):
    mask = some_mask()
    turned = find_region(mask, SPACING).transposed(axes)
    direct = find_region(mask.transpose(axes), [SPACING[axis] for axis in axes])
    assert np.array_equal(turned.counts, direct.counts)
    assert turned.reach == direct.reach
    assert turned.share == pytest.approx(mask.mean())


@pytest.mark.parametrize(("step", "patch"), [(0.5, (8, 8, 8)), (1.0, (8, 8, 8)), (0.5, (8, 10))])
@pytest.mark.parametrize("fine", [(28, 60, 51), (5, 60, 51)])
def test_every_voxel_of_the_region_is_seen_by_its_most_central_window(fine, patch, step):
    mask = some_mask()
    windows = windows_of(fine, patch, step)
    region = find_region(mask, SPACING, margin_mm=0.0)
    near = near_windows(windows, padded_shape(fine, patch), region, step=step)
    assert 0 < len(near) < len(windows)
    centres = np.array(
        [
            [(w, w) if isinstance(w, int) else (w.start, w.stop - 1) for w in window]
            for window in windows
        ]
    ).mean(axis=2)
    pad = [p - s for p, s in zip(padded_shape(fine, patch), fine, strict=True)]
    where = [
        ((np.arange(n) + 0.5) / n * m).astype(int) for n, m in zip(fine, mask.shape, strict=True)
    ]
    chosen = {windows.index(window) for window in near}
    for voxel in np.argwhere(mask[np.ix_(*where)])[::7]:
        distance = np.abs(centres - voxel - [p // 2 for p in pad]).max(axis=1)
        closest = set(np.flatnonzero(distance <= distance.min() + 1e-9))
        assert closest & chosen


@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 10)])
@pytest.mark.parametrize("shape", [(20, 33, 40), (5, 7, 40)])
def test_what_all_windows_of_a_voxel_saw_is_as_without_a_region(shape, patch):
    mask = np.zeros((10, 11, 10), dtype=bool)
    mask[4:6, 5:7, 2:4] = True
    torch.manual_seed(0)
    layer = torch.nn.Conv3d if len(patch) == 3 else torch.nn.Conv2d
    network = torch.nn.Sequential(layer(1, 4, 3, padding=1), torch.nn.GELU(), layer(4, 2, 1))
    image = torch.randn(1, *shape)
    windows = windows_of(shape, patch, 0.5)
    region = find_region(mask, (2.0, 3.0, 4.0), margin_mm=1.0)
    near = near_windows(windows, padded_shape(shape, patch), region, step=0.5)
    with torch.no_grad():
        whole = sliding_window(image, [network], Scan(patch_shape=patch), windows=windows)
        part = sliding_window(image, [network], Scan(patch_shape=patch), windows=near)
    box = box_of(near, shape, patch)
    pad = [p - s for p, s in zip(padded_shape(shape, patch), shape, strict=True)]
    inner = tuple(slice(p // 2, p // 2 + s) for p, s in zip(pad, shape, strict=True))
    grid = padded_shape(shape, patch)
    seen, others = all_of(near, grid), all_of([w for w in windows if w not in near], grid)
    assert 0 < len(near) < len(windows)
    assert part.shape == (2, *(b.stop - b.start for b in box))
    only, seen = (seen & ~others)[inner][box], seen[inner][box]
    assert only.any()
    assert torch.allclose(part[:, only], whole[:, *box][:, only], atol=1e-5)
    assert torch.equal(part[0].isnan(), torch.from_numpy(~seen))


def test_the_box_spans_windows_of_slices_and_of_volumes():
    assert spanned_box([(3, slice(0, 4), slice(2, 6)), (5, slice(4, 8), slice(0, 4))]) == (
        slice(3, 6),
        slice(0, 8),
        slice(0, 6),
    )


@pytest.mark.parametrize("patch", [(6, 8, 8), (20, 24, 20), (8, 8)])
@pytest.mark.parametrize("step", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("box", [(slice(3, 6), slice(0, 4), slice(9, 10)), (slice(0, 1),) * 3])
def test_windows_near_a_box_cover_it_each_voxel_by_its_most_central_one(patch, step, box):
    shape = (14, 20, 17)
    windows, padded = windows_of(shape, patch, step), padded_shape(shape, patch)
    before = [(wide - size) // 2 for wide, size in zip(padded, shape, strict=True)]
    near = near_windows(windows, padded, BoxRegion.of(box, padded, before=before), step=step)
    place = tuple(
        slice(part.start + more, part.stop + more) for part, more in zip(box, before, strict=True)
    )
    assert all_of(near, padded)[place].all()

    def distance(window, voxel):
        return max(
            abs(v + 0.5 - (w.start + w.stop) / 2) / (w.stop - w.start)
            for w, v in zip(window, voxel, strict=True)
            if isinstance(w, slice)
        )

    for voxel in np.argwhere(all_of([place], padded)):
        holding = [w for w in windows if all_of([w], padded)[tuple(voxel)]]
        best = min(distance(w, voxel) for w in holding)
        assert min(distance(w, voxel) for w in near if w in holding) == pytest.approx(best)
