import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist, directed_hausdorff

from autoliver.evaluation import chaos, metrics

GOLDEN = Path(__file__).parents[2] / "../shared/oracle/chaos_metrics"
SPACING = (3.0, 1.5, 0.7)


def box(shape, *ranges):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def distances(prediction, reference, spacing_mm=SPACING, connectivity=6):
    return metrics.surface_distances(
        prediction, reference, spacing_mm=spacing_mm, connectivity=connectivity
    )


def brute_border(mask, connectivity):
    inside = set(map(tuple, np.argwhere(mask).tolist()))
    steps = [s for s in itertools.product((-1, 0, 1), repeat=mask.ndim) if any(s)]
    if connectivity == 6:
        steps = [s for s in steps if sum(map(abs, s)) == 1]
    border = []
    for voxel in sorted(inside):
        for step in steps:
            near = tuple(v + s for v, s in zip(voxel, step, strict=True))
            in_image = all(0 <= n < size for n, size in zip(near, mask.shape, strict=True))
            if in_image and near not in inside:
                border.append(voxel)
                break
    return border


def brute_directed(points, targets, spacing):
    return [
        min(math.dist(np.multiply(p, spacing), np.multiply(t, spacing)) for t in targets)
        for p in points
    ]


@pytest.mark.parametrize("connectivity", [6, 26])
@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 9, 8), (9, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_surface_distances_match_brute_force(shape, connectivity, seed):
    rng = np.random.default_rng(seed)
    prediction, reference = rng.random(shape) < 0.55, rng.random(shape) < 0.7
    spacing = SPACING[-len(shape) :]
    found = distances(prediction, reference, spacing, connectivity)
    ours, theirs = brute_border(prediction, connectivity), brute_border(reference, connectivity)
    there = brute_directed(ours, theirs, spacing)
    back = brute_directed(theirs, ours, spacing)
    np.testing.assert_allclose(np.sort(found.to_reference_mm), np.sort(there), atol=1e-12)
    np.testing.assert_allclose(np.sort(found.to_prediction_mm), np.sort(back), atol=1e-12)
    assert metrics.assd(found) == pytest.approx(sum(there + back) / len(there + back))
    assert metrics.mad(found) == pytest.approx((np.mean(there) + np.mean(back)) / 2)
    assert metrics.mssd(found) == pytest.approx(max(there + back))
    assert metrics.hd95(found) == pytest.approx(max(np.percentile(d, 95) for d in (there, back)))
    within = sum(d <= 0.7 for d in there + back)
    assert metrics.nsd(found, tolerance_mm=0.7) == pytest.approx(within / len(there + back))


@pytest.mark.parametrize("connectivity", [6, 26])
def test_border_is_what_scipys_erosion_removes(connectivity):
    mask = np.random.default_rng(4).random((12, 13, 14)) < 0.8
    structure = ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3)
    eroded = ndimage.binary_erosion(mask, structure, border_value=1)
    np.testing.assert_array_equal(metrics.border(mask, connectivity), mask & ~eroded)


def test_a_shifted_cube_by_hand():
    # 3 x 3 x 3 voxels moved by one along z (3 mm): 26 border voxels each.
    reference = box((9, 9, 9), (2, 5), (2, 5), (2, 5))
    prediction = box((9, 9, 9), (3, 6), (2, 5), (2, 5))
    found = distances(prediction, reference)
    # The prediction's far face (9 voxels) and the centre of its near face, which lies on the
    # reference's hollow centre, are 3 mm and one x-step (0.7 mm) away; all else coincides.
    assert sorted(found.to_reference_mm) == pytest.approx([0.0] * 16 + [0.7] + [3.0] * 9)
    assert sorted(found.to_prediction_mm) == pytest.approx([0.0] * 16 + [0.7] + [3.0] * 9)
    assert metrics.assd(found) == pytest.approx((0.7 + 27) / 26)
    assert metrics.mssd(found) == pytest.approx(3.0)
    assert metrics.hd95(found) == pytest.approx(3.0)
    assert metrics.nsd(found, tolerance_mm=1.0) == pytest.approx(17 / 26)
    assert metrics.dice(prediction, reference) == pytest.approx(2 / 3)
    assert metrics.iou(prediction, reference) == pytest.approx(1 / 2)
    assert metrics.ravd_percent(prediction, reference) == 0.0
    assert metrics.volume_ml(reference, SPACING) == pytest.approx(27 * 3.15 / 1000)


def test_ravd_is_a_share_of_the_reference():
    small, large = box((4, 4, 4), (0, 1), (0, 4), (0, 4)), box((4, 4, 4), (0, 2), (0, 4), (0, 4))
    assert metrics.ravd_percent(small, large) == 50.0
    assert metrics.ravd_percent(large, small) == 100.0


@pytest.mark.parametrize(
    ("ours", "theirs", "recall", "precision"),
    [
        ("##..", "##..", 1.0, 1.0),
        ("###.", "#...", 1.0, 1 / 3),
        (".###", "####", 3 / 4, 1.0),
        ("##..", ".###", 1 / 3, 1 / 2),
        ("##..", "..##", 0.0, 0.0),
        ("....", "..##", 0.0, math.nan),
        ("##..", "....", math.nan, 0.0),
        ("....", "....", math.nan, math.nan),
    ],
)
def test_recall_and_precision_by_hand(ours, theirs, recall, precision):
    masks = [np.array([[[c == "#" for c in text]]]) for text in (ours, theirs)]
    found = (metrics.recall(*masks), metrics.precision(*masks))
    assert found == pytest.approx((recall, precision), nan_ok=True)


def test_contour_distances_of_an_image_are_scipys():
    y, x = np.mgrid[:60, :50]
    shapes = [
        (y - a) ** 2 + (1.5 * (x - b)) ** 2 < r**2 for a, b, r in ((28, 24, 19), (31, 25, 12))
    ]
    contours = [np.argwhere(m & ~ndimage.binary_erosion(m)) * (0.3, 0.5) for m in shapes]
    each = cdist(*contours)
    found = distances(*shapes, spacing_mm=(0.3, 0.5))
    assert metrics.mad(found) == pytest.approx((each.min(1).mean() + each.min(0).mean()) / 2)
    hausdorff = max(directed_hausdorff(*contours)[0], directed_hausdorff(*contours[::-1])[0])
    assert metrics.mssd(found) == pytest.approx(hausdorff)
    assert metrics.mad(found) != pytest.approx(metrics.assd(found), rel=1e-3)


def test_mad_counts_both_contours_alike():
    # One pixel, and a line of three that begins there: 0 one way, (0 + 1 + 2) / 3 the other.
    one, line = box((3, 9), (1, 2), (2, 3)), box((3, 9), (1, 2), (2, 5))
    found = distances(one, line, (1.0, 1.0))
    assert metrics.mad(found) == pytest.approx((0 + 1) / 2)
    assert metrics.assd(found) == pytest.approx(3 / 4)


def test_hd95_takes_the_worse_direction():
    reference = box((1, 1, 200), (0, 1), (0, 1), (0, 1))
    prediction = box((1, 1, 200), (0, 1), (0, 1), (0, 1)) | box(
        (1, 1, 200), (0, 1), (0, 1), (100, 101)
    )
    found = distances(prediction, reference, (1.0, 1.0, 1.0))
    assert metrics.hd95(found) == pytest.approx(np.percentile([0, 100], 95))


def test_voxels_cut_by_the_image_edge_are_no_border():
    mask = box((6, 8, 8), (0, 3), (2, 6), (2, 6))
    edge = metrics.border(mask)
    assert not edge[0, 3:5, 3:5].any()
    assert edge[2, 2:6, 2:6].all()


def test_cropping_does_not_move_the_border():
    rng = np.random.default_rng(1)
    prediction, reference = rng.random((2, 6, 6, 6)) < 0.6
    alone = distances(prediction, reference)
    wide = [np.pad(m, ((0, 0), (0, 9), (0, 0))) for m in (prediction, reference)]
    # Padding one end only: the voxels there now have background beside them.
    padded = distances(*wide)
    whole = [metrics.border(m) for m in wide]
    assert len(padded.to_reference_mm) == np.count_nonzero(whole[0])
    assert len(padded.to_prediction_mm) == np.count_nonzero(whole[1])
    assert len(padded.to_reference_mm) > len(alone.to_reference_mm)


def test_two_masks_that_fill_the_image_agree():
    full = np.ones((3, 4, 5), dtype=bool)
    found = distances(full, full)
    assert metrics.assd(found) == 0.0
    assert metrics.nsd(found, tolerance_mm=0.0) == 1.0
    single = np.ones((1, 1, 1), dtype=bool)
    assert metrics.mssd(distances(single, single)) == 0.0


def test_a_slice_of_a_volume_is_measured_as_an_image():
    rng = np.random.default_rng(2)
    prediction, reference = rng.random((2, 12, 12)) < 0.6
    flat = distances(prediction, reference, (1.5, 0.7))
    slab = distances(prediction[None], reference[None], (5.0, 1.5, 0.7))
    assert metrics.assd(flat) == metrics.assd(slab)
    full = np.ones((12, 12), dtype=bool)
    assert metrics.assd(distances(full, reference, (1.5, 0.7))) == metrics.assd(
        distances(full[None], reference[None], (5.0, 1.5, 0.7))
    )


def test_empty_masks():
    empty, some = np.zeros((4, 4, 4), dtype=bool), box((4, 4, 4), (1, 3), (1, 3), (1, 3))
    neither = distances(empty, empty)
    values = [f(neither) for f in (metrics.assd, metrics.mad, metrics.mssd, metrics.hd95)]
    values += [metrics.nsd(neither, tolerance_mm=1), metrics.dice(empty, empty)]
    values += [metrics.iou(empty, empty), metrics.ravd_percent(some, empty)]
    assert all(math.isnan(v) for v in values)
    for one in (distances(some, empty), distances(empty, some)):
        assert metrics.assd(one) == metrics.mssd(one) == metrics.hd95(one) == math.inf
        assert metrics.nsd(one, tolerance_mm=1) == 0.0
    assert metrics.dice(some, empty) == metrics.iou(empty, some) == 0.0


def test_the_official_chaos_example():
    nibabel = pytest.importorskip("nibabel")
    if not GOLDEN.is_dir():
        pytest.skip(f"no reference data at {GOLDEN}")
    expected = json.loads((GOLDEN / "expected.json").read_text())
    masks = {}
    for name in ("segmentation", "reference"):
        image = nibabel.load(GOLDEN / f"{name}.nii.gz")
        masks[name] = np.asarray(image.dataobj).T > 0
        spacing = tuple(float(s) for s in image.header.get_zooms()[::-1])
    pair = (masks["segmentation"], masks["reference"])
    found = distances(*pair, spacing)
    values = {
        "dice": metrics.dice(*pair),
        "ravd_percent": metrics.ravd_percent(*pair),
        "assd_mm": metrics.assd(found),
        "mssd_mm": metrics.mssd(found),
    }
    for name, value in values.items():
        assert value == pytest.approx(expected[name], abs=1e-6), name
    # The organisers print three decimals.
    assert chaos.points(values)["chaos"] == pytest.approx(expected["chaos_score"], abs=5e-4)
