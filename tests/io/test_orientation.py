"""Orders of axes against nibabel, on grids of every order, anisotropic and oblique."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from autoliver.io.files import read_image, write_image
from autoliver.io.orientation import (
    Reorientation,
    axis_codes,
    commonest,
    reorientation,
    reorientation_to,
)
from autoliver.io.volume import Geometry

ORDERS = [
    "".join(letters)
    for axes in itertools.permutations(("LR", "PA", "SI"))
    for letters in itertools.product(*axes)
]
# RAS+ axes turned by less than 45 degrees about all three.
_A, _B, _C = 0.35, -0.25, 0.3
OBLIQUE = (
    np.array([[np.cos(_A), -np.sin(_A), 0], [np.sin(_A), np.cos(_A), 0], [0, 0, 1]])
    @ np.array([[np.cos(_B), 0, np.sin(_B)], [0, 1, 0], [-np.sin(_B), 0, np.cos(_B)]])
    @ np.array([[1, 0, 0], [0, np.cos(_C), -np.sin(_C)], [0, np.sin(_C), np.cos(_C)]])
)


def scan(order, *, oblique):
    """An anisotropic scan in that order, by nibabel alone."""
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    affine = np.eye(4)
    affine[:3, :3] = (OBLIQUE if oblique else np.eye(3)) * [0.7, 1.3, 4.0]
    affine[:3, 3] = 12, -7, 30
    image = nib.Nifti1Image(array, affine)
    target = nib.orientations.axcodes2ornt(order)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target)
    return image.as_reoriented(turn)


@pytest.fixture(params=ORDERS, scope="module")
def order(request):
    return request.param


def test_there_are_48_orders():
    assert len(set(ORDERS)) == 48


@pytest.mark.parametrize("oblique", [False, True])
def test_codes_and_reorientation_agree_with_nibabel(tmp_path, order, oblique):
    stored = scan(order, oblique=oblique)
    nib.save(stored, tmp_path / "a.nii.gz")
    nib.save(scan("LPS", oblique=oblique), tmp_path / "lps.nii.gz")
    volume, usual = read_image([tmp_path / "a.nii.gz"]), read_image([tmp_path / "lps.nii.gz"])
    assert axis_codes(volume.geometry) == "".join(nib.aff2axcodes(stored.affine)) == order
    turn = reorientation(order, "LPS")
    assert turn == reorientation_to(volume.geometry, "LPS")
    assert np.array_equal(turn.array(volume.array), usual.array)
    there = turn.geometry(volume.geometry)
    assert there.spacing_mm == pytest.approx(usual.geometry.spacing_mm, rel=1e-5)
    assert there.origin_xyz == pytest.approx(usual.geometry.origin_xyz, abs=1e-4)
    assert there.direction == pytest.approx(usual.geometry.direction, abs=1e-5)
    back = turn.inverse
    assert turn.then(back) == back.then(turn) == Reorientation()
    assert np.array_equal(back.array(turn.array(volume.array)), volume.array)
    again = back.geometry(there)
    assert again.shape_zyx == volume.geometry.shape_zyx
    assert again.spacing_mm == volume.geometry.spacing_mm
    assert again.origin_xyz == pytest.approx(volume.geometry.origin_xyz, abs=1e-9)
    assert np.array_equal(again.direction, volume.geometry.direction)


def test_bounds_hold_the_same_voxels(order):
    turn = reorientation(order, "PSR")
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    bounds = ((1, 3), (0, 4), (2, 6))
    cut = array[tuple(slice(*ends) for ends in bounds)]
    turned = turn.array(array)[tuple(slice(*e) for e in turn.bounds(bounds, (4, 5, 6)))]
    assert np.array_equal(turned, turn.array(cut))


def test_two_after_one_another_are_one(order):
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    one, two = reorientation("LPS", order), reorientation(order, "SAR")
    assert np.array_equal(one.then(two).array(array), two.array(one.array(array)))
    assert one.then(two) == reorientation("LPS", "SAR")


def test_a_flat_image_has_no_order(tmp_path):
    flat = Geometry(shape_zyx=(1, 5, 6), spacing_mm=(999.0, 1.0, 1.0))
    assert axis_codes(flat) == ""
    write_image(tmp_path / "a.png", np.zeros((1, 1, 5, 6), np.uint8), flat)
    assert axis_codes(read_image([tmp_path / "a.png"]).geometry) == ""
    assert reorientation("", "LPS") == reorientation("LPS", "") == Reorientation()


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], ""),
        (["", ""], ""),
        (["RAS"], "RAS"),
        (["RAS", "LPS"], "LPS"),
        (["RAS", "LPS", "RAS"], "RAS"),
        (["RAS", "PSR", "", ""], "PSR"),
    ],
)
def test_the_commonest_order(codes, expected):
    assert commonest(codes) == expected
