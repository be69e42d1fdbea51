"""Spacings, forms and numbers of headers, a table of what may be wrong with them."""

import gzip
import math
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from autoliver.errors import DatasetError
from autoliver.io.files import read_header, read_image, write_label

AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])
OTHER = np.diag([-2.0, -2.0, 5.0, 1.0])
NAN, INF = math.nan, math.inf
# Offsets in a NIfTI-1 header.
PIXDIM_Z, SLOPE, INTERCEPT, CODES, QUATERN, OFFSET, SROW = 88, 112, 116, 252, 256, 268, 280
VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def nifti(path, *edits, q=AFFINE, s=AFFINE, codes=(1, 1), name="a.nii.gz"):
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(q, codes[0])
    image.set_sform(s, codes[1])
    file = path / name
    nib.save(image, file)
    packed = name.endswith(".gz")
    raw = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
    for offset, *values in edits:
        struct.pack_into(f"<{len(values)}f", raw, offset, *values)
    file.write_bytes(gzip.compress(raw) if packed else raw)
    return file


def meta(path, name="a.mha", **changes):
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "1.5 1.5 3",
        "DimSize": "4 5 6",
        "ElementType": "MET_SHORT",
    } | changes
    local = name.endswith(".mha")
    text = "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)
    text += f"ElementDataFile = {'LOCAL' if local else 'a.raw'}\n"
    voxels = VOXELS.T.tobytes()
    (path / name).write_bytes(text.encode() + (voxels if local else b""))
    if not local:
        (path / "a.raw").write_bytes(voxels)
    return path / name


def nrrd(path, spacing="", directions="(1.5,0,0) (0,1.5,0) (0,0,3)", origin="(0,0,0)"):
    place = spacing or (
        f"space: left-posterior-superior\nspace origin: {origin}\nspace directions: {directions}"
    )
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n"
    (path / "a.nrrd").write_bytes(f"{head}{place}\n\n".encode() + VOXELS.T.tobytes())
    return path / "a.nrrd"


def bad_values():
    return (0.0, NAN, INF, -INF)


ERRORS = [
    *(
        (f"nifti {codes} pixdim {value}", "pixdim", nifti, [(PIXDIM_Z, value)], {"codes": codes})
        for value in bad_values()
        for codes in ((0, 0), (1, 0))
    ),
    *(
        (f"nifti {name} {value}", field, nifti, [(offset, value)], {"codes": codes})
        for value in (NAN, INF)
        for name, field, offset, codes in (
            ("slope", "scl_slope", SLOPE, (1, 1)),
            ("intercept", "scl_inter", INTERCEPT, (1, 1)),
            ("sform", "srow_x", SROW, (0, 1)),
            ("sform's origin", "srow_x", SROW + 12, (0, 2)),
            ("quaternion", "quatern_b", QUATERN, (1, 0)),
            ("offset", "qoffset_x", OFFSET, (1, 0)),
        )
    ),
    ("nifti, no volume", "srow_x", nifti, [(SROW, 0, 0, 0)], {"codes": (0, 1)}),
    ("nii", "pixdim", nifti, [(PIXDIM_Z, 0.0)], {"codes": (0, 0), "name": "a.nii"}),
    *(
        (f"meta {field} {value}", field, meta, [], {field: value})
        for field, value in (
            ("ElementSpacing", "1.5 1.5 0"),
            ("ElementSpacing", "1.5 nan 3"),
            ("ElementSpacing", "1.5 1.5 inf"),
            ("Offset", "0 nan 0"),
            ("TransformMatrix", "1 0 0 0 nan 0 0 0 1"),
        )
    ),
    ("meta, no volume", "direction", meta, [], {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}),
    ("mhd", "ElementSpacing", meta, [], {"name": "a.mhd", "ElementSpacing": "1.5 1.5 0"}),
    *(
        (f"nrrd {settings}", field, nrrd, [], settings)
        for field, settings in (
            ("spacings", {"spacing": "spacings: 1.5 1.5 0"}),
            ("spacings", {"spacing": "spacings: 1.5 1.5 nan"}),
            ("spacings", {"spacing": "spacings: 1.5 inf 3"}),
            ("space directions", {"directions": "(1.5,0,0) (0,1.5,0) (0,0,0)"}),
            ("space directions", {"directions": "(1.5,0,0) (0,1.5,0) (0,0,nan)"}),
            ("space directions", {"directions": "(1.5,0,0) (0,inf,0) (0,0,3)"}),
            ("space origin", {"origin": "(0,nan,0)"}),
        )
    ),
]


@pytest.mark.parametrize(
    ("field", "make", "edits", "settings"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS]
)
def test_numbers_that_cannot_be_used_are_one_error(tmp_path, capfd, field, make, edits, settings):
    file = make(tmp_path, *edits, **settings)
    with pytest.raises(DatasetError) as found:
        read_image([file])
    assert str(file) in found.value.problem
    assert field in found.value.problem
    assert found.value.hint
    assert capfd.readouterr().err == ""


MENDED = [
    *(
        (f"nifti, sform valid, pixdim {value}, codes {codes}", nifti, [(PIXDIM_Z, value)], codes)
        for value in (*bad_values(), -3.0)
        for codes in ((0, 1), (1, 1), (1, 2))
    ),
    ("sform alone beside pixdim of 1", nifti, [(80, 1.0, 1.0, 1.0)], (0, 1)),
    ("sform NaN, qform valid", nifti, [(SROW, NAN)], (1, 1)),
    ("sform without volume, qform valid", nifti, [(SROW, 0.0, 0.0, 0.0)], (1, 1)),
    ("quaternion NaN, sform valid", nifti, [(QUATERN, NAN)], (1, 1)),
    ("quaternion infinite, sform valid", nifti, [(QUATERN, INF)], (1, 4)),
]


@pytest.mark.parametrize(
    ("make", "edits", "codes"), [e[1:] for e in MENDED], ids=[e[0] for e in MENDED]
)
def test_another_form_gives_a_valid_grid(tmp_path, capfd, make, edits, codes):
    file = make(tmp_path, *edits, codes=codes)
    header, volume = read_header(file), read_image([file])
    assert header.geometry.spacing_mm == pytest.approx((3.0, 1.5, 1.5))
    assert header.geometry.direction == pytest.approx(np.eye(3).ravel())
    assert header.doubtful
    assert "used" in header.note
    assert volume.geometry == header.geometry
    assert np.array_equal(volume.array[0], VOXELS.T)
    assert len(volume.notes) == 1
    assert capfd.readouterr().err == ""


NEGATIVE = [
    ("nifti without forms", nifti, [(PIXDIM_Z, -3.0)], {"codes": (0, 0)}),
    ("nifti with a qform", nifti, [(PIXDIM_Z, -3.0)], {"codes": (1, 0)}),
    ("mha", meta, [], {"ElementSpacing": "1.5 1.5 -3"}),
    ("mhd", meta, [], {"name": "a.mhd", "ElementSpacing": "1.5 1.5 -3"}),
    ("mha, size alone", meta, [], {"ElementSpacing": None, "ElementSize": "1.5 1.5 -3"}),
    ("nrrd", nrrd, [], {"spacing": "spacings: 1.5 1.5 -3"}),
]


@pytest.mark.parametrize(
    ("make", "edits", "settings"), [e[1:] for e in NEGATIVE], ids=[e[0] for e in NEGATIVE]
)
def test_a_negative_spacing_flips_the_direction(tmp_path, capfd, make, edits, settings):
    file = make(tmp_path, *edits, **settings)
    header, volume = read_header(file), read_image([file])
    assert header.geometry.shape_zyx == (6, 5, 4)
    assert header.geometry.spacing_mm == pytest.approx((3.0, 1.5, 1.5))
    assert header.geometry.direction == pytest.approx([1, 0, 0, 0, 1, 0, 0, 0, -1])
    assert "-3" in header.note
    assert header.doubtful
    assert np.array_equal(volume.array[0], VOXELS.T)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (1, 4), (4, 2)])
def test_forms_that_contradict_each_other_are_shown_with_all_values(tmp_path, codes):
    file = nifti(tmp_path, s=OTHER, codes=codes)
    header = read_header(file)
    for value in ("(5, 2, 2)", "(3, 1.5, 1.5)", f"code {codes[0]}", f"code {codes[1]}"):
        assert value in header.note
    assert header.doubtful
    by_itk = sitk.ReadImage(str(file))
    assert header.geometry.spacing_mm == pytest.approx(by_itk.GetSpacing()[::-1])
    assert header.geometry.origin_xyz == pytest.approx(by_itk.GetOrigin())


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (1, 1), (2, 4), (4, 2)])
def test_healthy_headers_have_no_note_and_itk_s_grid(tmp_path, codes):
    file = nifti(tmp_path, codes=codes)
    header, by_itk = read_header(file), sitk.ReadImage(str(file))
    assert header.note == ""
    assert header.geometry.spacing_mm == by_itk.GetSpacing()[::-1]
    assert header.geometry.direction == by_itk.GetDirection()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (1, 1), (1, 4), (2, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("sform", [AFFINE, OTHER])
def test_label_maps_keep_both_forms(tmp_path, ending, codes, sform):
    image = read_image([nifti(tmp_path, s=sform, codes=codes, name=f"a{ending}")])
    write_label(tmp_path / f"b{ending}", np.ones((6, 5, 4), np.uint8), image.geometry)
    one, two = (nib.load(tmp_path / f"{name}{ending}") for name in "ab")
    for name in ("qform_code", "sform_code"):
        assert int(one.header[name]) == int(two.header[name])
    assert np.allclose(one.header["pixdim"][:4], two.header["pixdim"][:4])
    assert np.allclose(one.affine, two.affine)
    if codes[0]:
        assert np.allclose(one.get_qform(), two.get_qform(), atol=1e-5)
    if codes[1]:
        assert np.allclose(one.get_sform(), two.get_sform(), atol=1e-5)
    assert (two.get_fdata() == 1).all()
