"""RECIST diameters against a brute force over all pairs of points, and by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from autoliver.inference.lesions.diameters import axial_axis, diameters, outline_diameters
from autoliver.io.volume import FLAT_SPACING, Geometry


def corners(pixels: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
    """All four corners of all pixels, in mm."""
    halves = [(a, b) for a in (-0.5, 0.5) for b in (-0.5, 0.5)]
    return np.unique(np.concatenate([(pixels + half) for half in halves]), axis=0) * spacing


def longest_by_all_pairs(points: np.ndarray) -> float:
    return max(math.dist(a, b) for a, b in itertools.combinations(points, 2))


def chord_by_all_edges(points: np.ndarray) -> float:
    """The longest perpendicular chord: at every corner the hull, as all pairs of points, is cut."""
    lengths = np.linalg.norm(points[:, None] - points[None], axis=2)
    best = 0.0
    for a, b in np.argwhere(np.triu(lengths >= lengths.max() * (1 - 1e-9))):
        along = (points[b] - points[a]) / lengths[a, b]
        place, height = points @ along, points @ np.array([-along[1], along[0]])
        for cut in np.unique(place):
            # Where the segments between all pairs of points cross the line at `cut`.
            left, right = place <= cut + 1e-12, place >= cut - 1e-12
            p, q = place[left][:, None], place[right][None]
            h, k = height[left][:, None], height[right][None]
            with np.errstate(invalid="ignore", divide="ignore"):
                share = np.where(q - p > 1e-12, (cut - p) / (q - p), 0.0)
            crossed = h + share * (k - h)
            both = height[left & right]
            best = max(best, np.ptp(np.append(crossed.ravel(), both)))
    return float(best)


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    numbers, count = label(noise > 0.08, np.ones((3,) * len(shape)))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    return numbers == 1 + int(sizes.argmax())


def by_force(mask: np.ndarray, spacing: tuple[float, float]) -> tuple[float, float]:
    """The longest diameter over the pieces of all slices (first axis), and its perpendicular."""
    best = (0.0, 0.0)
    for plane in mask:
        numbers, count = label(plane, np.ones((3, 3)))
        for number in range(1, count + 1):
            points = corners(np.argwhere(numbers == number), spacing)
            found = longest_by_all_pairs(points), chord_by_all_edges(points)
            if found[0] > best[0] + 1e-9 or (found[0] > best[0] - 1e-9 and found[1] > best[1]):
                best = found
    return best


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.8), (0.9, 3.1, 1.3)])
@pytest.mark.parametrize("seed", range(3))
def test_a_blob_measures_what_all_pairs_of_its_corners_say(seed, spacing, axis) -> None:
    mask = blobs((5, 9, 8), seed)
    found = diameters(mask, spacing, axis=axis)
    across = tuple(mm for a, mm in enumerate(spacing) if a != axis)
    expected = by_force(np.moveaxis(mask, axis, 0), across)
    assert found[:2] == pytest.approx(expected, rel=1e-9)
    assert mask.take(found.slice, axis=axis).any()


@pytest.mark.parametrize("seed", range(10))
def test_points_anywhere_measure_what_all_pairs_say(seed: int) -> None:
    points = np.random.default_rng(seed).normal(size=(25, 2)) * (3.0, 1.0)
    found = outline_diameters(points)
    expected = longest_by_all_pairs(points), chord_by_all_edges(points)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        # One voxel of 3 x 4 mm: the rectangle's diagonal; the chord through a corner.
        ([(0, 0)], (5.0, 3.75)),
        # Two, three and ten in a row, along either axis.
        ([(0, 0), (1, 0)], (math.hypot(6, 4), math.hypot(6, 4) * 4 / 6)),
        ([(0, n) for n in range(3)], (math.hypot(3, 12), math.hypot(3, 12) * 3 / 12)),
        ([(n, 0) for n in range(10)], (math.hypot(30, 4), math.hypot(30, 4) * 4 / 30)),
    ],
)
def test_single_voxels_and_lines_have_a_width(pixels, expected) -> None:
    mask = np.zeros((1, 12, 12), bool)
    for row, column in pixels:
        mask[0, row, column] = True
    # In a rectangle a x b with diagonal d, the longest chord at a right angle to it is d * a / b.
    box = np.ones((1, *(np.max(pixels, axis=0) + 1)), bool)
    for lesion in (mask, box):  # with and without background around it
        assert diameters(lesion, (2.0, 3.0, 4.0))[:2] == pytest.approx(expected)


def test_a_diagonal_line_connected_through_corners_is_one_piece() -> None:
    mask = np.eye(4, dtype=bool)[None]
    longest, perpendicular, _ = diameters(mask, (1.0, 1.0, 1.0))
    assert longest == pytest.approx(4 * math.sqrt(2))
    assert perpendicular == pytest.approx(math.sqrt(2))


def test_pieces_of_a_slice_are_measured_one_by_one() -> None:
    mask = np.zeros((2, 3, 20), bool)
    mask[0] = True  # what joins them is shorter in no direction, but lies in another slice
    mask[0, :, 3:] = False
    mask[1, 1, :3] = mask[1, 1, 10:16] = True
    assert diameters(mask, (1.0, 1.0, 1.0))[0] == pytest.approx(math.hypot(6, 1))
    assert diameters(mask, (1.0, 1.0, 1.0)).slice == 1


def test_of_equal_slices_the_first_counts_unless_another_is_wider() -> None:
    mask = np.zeros((3, 4, 8), bool)
    mask[:, 1, 2:6] = True
    assert diameters(mask, (1.0, 1.0, 1.0)).slice == 0
    thin, wide = np.zeros((2, 30, 30), bool), np.zeros((2, 30, 30), bool)
    thin[0, 0, :10] = thin[1, 0, :10] = True
    wide[:] = thin
    wide[1, 0, :10] = True
    wide[1, 1, 4:6] = True  # as long from corner to corner, and wider in the middle
    assert diameters(thin, (1.0, 1.0, 1.0)).slice == 0
    assert diameters(wide, (1.0, 1.0, 1.0)).slice == 1


def test_mirrored_and_turned_lesions_measure_the_same() -> None:
    mask = blobs((4, 9, 9), 5)
    expected = diameters(mask, (3.0, 0.8, 0.8))[:2]
    for other in (mask[::-1], mask[:, ::-1], mask[:, :, ::-1], mask.transpose(0, 2, 1)):
        assert diameters(other, (3.0, 0.8, 0.8))[:2] == pytest.approx(expected, rel=1e-9)


TILT = math.cos(0.3), math.sin(0.3)
DIRECTIONS = {
    "axial": ((1, 0, 0, 0, 1, 0, 0, 0, 1), 0),
    "upside down": ((-1, 0, 0, 0, 1, 0, 0, 0, -1), 0),
    # Columns are the directions of x, y and z of the file: of coronal scans y runs down, z back.
    "coronal": ((1, 0, 0, 0, 0, 1, 0, -1, 0), 1),
    "sagittal": ((0, 0, 1, 1, 0, 0, 0, -1, 0), 1),
    "x is up": ((0, 1, 0, 0, 0, 1, 1, 0, 0), 2),
    "oblique": ((1, 0, 0, 0, TILT[0], -TILT[1], 0, TILT[1], TILT[0]), 0),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_axial_slices_are_those_across_the_patient_s_long_axis(name: str) -> None:
    direction, axis = DIRECTIONS[name]
    geometry = Geometry(
        shape_zyx=(4, 5, 6), spacing_mm=(1.0, 1.0, 1.0), direction=tuple(map(float, direction))
    )
    assert axial_axis(geometry) == axis


def test_a_2d_file_is_its_own_slice() -> None:
    flat = Geometry(shape_zyx=(1, 5, 6), spacing_mm=(FLAT_SPACING, 1.0, 1.0))
    assert axial_axis(flat) == 0
