"""Every ending: in capitals, as a label map that comes back as it was, and in several files."""

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import skimage.io

from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.io.header import (
    ENDINGS,
    SEGMENTATION,
    fraction_ending,
    label_ending,
    label_name,
    split_ending,
)
from autoliver.io.volume import Geometry

FLAT = (".png", ".bmp", ".jpg", ".jpeg")
Image = npt.NDArray[np.int16]


def save(folder: Path, ending: str, *, stem: str = "a", colour: bool = False) -> Image:
    """Writes an image with SimpleITK and returns what it reads again, (z, y, x) or (c, z, y, x)."""
    rng = np.random.default_rng(0)
    path = folder / f"{stem}{ending}"
    if ending in FLAT:
        shape = (7, 8, 3) if colour else (7, 8)
        image = sitk.GetImageFromArray(rng.integers(0, 255, shape).astype("uint8"), isVector=colour)
        sitk.WriteImage(image, str(path))
        # Decoders of JPEG round in their own ways.
        jpeg = ending.startswith(".j")
        again = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(path))) if jpeg else skimage.io.imread(path)
        )
        return np.moveaxis(again, -1, 0)[:, None] if colour else again[None]
    image = sitk.GetImageFromArray(rng.integers(-900, 900, (6, 7, 8)).astype("int16"))
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetOrigin((5.0, -6.0, 7.0))
    if ending != ".gipl":  # which does not store directions
        image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(path))
    return sitk.GetArrayFromImage(image)  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_may_be_in_capitals(ending: str, tmp_path: Path) -> None:
    array = save(tmp_path, ending)
    for spelt in (ending.upper(), ending.title()):
        target = tmp_path / f"B{spelt}"
        shutil.copy(tmp_path / f"a{ending}", target)
        if (tmp_path / "a.img").exists():
            shutil.copy(tmp_path / "a.img", tmp_path / ("B.IMG" if spelt.isupper() else "B.img"))
        found = read_image([target])
        assert np.array_equal(found.array[0], array)
        assert found.geometry == read_image([tmp_path / f"a{ending}"]).geometry
        assert split_ending(target.name) == ("B", spelt)


@pytest.mark.parametrize("most", [3, 255, 256, 40_000, 70_000])
@pytest.mark.parametrize("capitals", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_label_map_for_an_image_comes_back_as_it_was(
    ending: str, capitals: bool, most: int, tmp_path: Path
) -> None:
    save(tmp_path, ending)
    image = tmp_path / f"a{ending.upper() if capitals else ending}"
    if capitals:
        (tmp_path / f"a{ending}").rename(image)
    grid = read_image([image]).geometry
    labels = np.zeros(grid.shape_zyx, dtype=np.int64)
    labels[0, 1:3, 2:5], labels[0, 5, 6] = 1, most

    path = tmp_path / "out" / label_name("a", image)
    if most > 65_535 and label_ending(ending) == ".png":
        pytest.skip("PNG holds 16 bits; such a label map is refused (below)")
    write_label(path, labels, grid)

    found = read_label(path)
    assert np.array_equal(found.array[0], labels)
    assert np.allclose(found.geometry.direction, grid.direction)
    assert np.allclose(found.geometry.spacing_mm, grid.spacing_mm, rtol=1e-4)
    assert np.allclose(found.geometry.origin_xyz, grid.origin_xyz)
    assert len(list(path.parent.iterdir())) == 1


def test_labels_beyond_what_a_png_holds_are_refused(tmp_path: Path) -> None:
    grid = Geometry(shape_zyx=(1, 4, 4), spacing_mm=(999.0, 1.0, 1.0))
    labels = np.full((1, 4, 4), 70_000)
    with pytest.raises(AutoliverError, match="cannot be written"):
        write_label(tmp_path / "a.png", labels, grid)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".png", ".bmp", ".jpg"])
@pytest.mark.parametrize("colour", [False, True])
def test_grey_and_colour_pictures_have_one_and_three_channels(
    ending: str, colour: bool, tmp_path: Path
) -> None:
    array = save(tmp_path, ending, colour=colour)
    found = read_image([tmp_path / f"a{ending}"]).array
    assert np.array_equal(found, array if colour else array[None])
    assert found.shape == ((3 if colour else 1), 1, 7, 8)


def test_a_segmentation_of_3d_slicer_is_a_label_map(tmp_path: Path) -> None:
    labels = np.zeros((6, 7, 8), dtype=np.uint8)
    labels[2:4, 2:5, 3:6] = 2
    image = sitk.GetImageFromArray(labels)
    image.SetMetaData("Segment0_LabelValue", "2")
    sitk.WriteImage(image, str(tmp_path / "a.seg.nrrd"))
    found = read_label(tmp_path / "a.seg.nrrd")
    assert np.array_equal(found.array[0], labels)
    assert split_ending("a.b.seg.nrrd") == ("a.b", SEGMENTATION)
    assert label_name("a", "a.nrrd") == "a.nrrd"


def test_segments_that_overlap_are_refused_with_slicer_s_remedy(tmp_path: Path) -> None:
    layers = sitk.GetImageFromArray(np.zeros((6, 7, 8, 2), dtype=np.uint8), isVector=True)
    sitk.WriteImage(layers, str(tmp_path / "a.seg.nrrd"))
    with pytest.raises(DatasetError, match="2 channels") as caught:
        read_label(tmp_path / "a.seg.nrrd")
    assert "3D Slicer" in caught.value.hint


# --- voxels in a file of their own


def pair(folder: Path, kind: str) -> tuple[Path, Path, npt.NDArray[np.int16]]:
    """A header, its voxels and the array (z, y, x) they hold."""
    array = np.random.default_rng(0).integers(-900, 900, (8, 7, 6)).astype(np.int16)
    affine = np.diag([-1.5, -2.0, 3.0, 1.0])
    kinds = {"nifti": nibabel.Nifti1Pair, "analyze": nibabel.AnalyzeImage}
    if kind in kinds:
        header, voxels = folder / "a.hdr", folder / "a.img"
        nibabel.save(kinds[kind](array, affine), header)
    else:
        ending, raw = {"meta": (".mhd", ".raw"), "nrrd": (".nhdr", ".raw")}[kind]
        header, voxels = folder / f"a{ending}", folder / f"a{raw}"
        sitk.WriteImage(sitk.GetImageFromArray(array.T), str(header), False)
    return header, voxels, array.T


@pytest.mark.parametrize("kind", ["nifti", "analyze", "meta", "nrrd"])
@pytest.mark.parametrize("change", ["whole", "cut", "empty", "missing", "dangling"])
def test_voxels_beside_a_header_are_whole_or_an_error(
    kind: str, change: str, tmp_path: Path
) -> None:
    header, voxels, array = pair(tmp_path, kind)
    match change:
        case "whole":
            assert np.array_equal(read_image([header]).array[0], array)
            return
        case "cut":
            voxels.write_bytes(voxels.read_bytes()[:300])
        case "empty":
            voxels.write_bytes(b"")
        case "missing":
            voxels.unlink()
        case "dangling":
            voxels.unlink()
            voxels.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_image([header])


@pytest.mark.parametrize("voxels", ["a.img.gz", "a.IMG", "A.img"])
def test_the_voxels_of_a_pair_are_found_by_any_of_their_names(voxels: str, tmp_path: Path) -> None:
    header, plain, array = pair(tmp_path, "nifti")
    content = plain.read_bytes()
    plain.unlink()
    (tmp_path / voxels).write_bytes(gzip.compress(content) if voxels.endswith("gz") else content)
    assert np.array_equal(read_image([header]).array[0], array)


@pytest.mark.parametrize("ending", ENDINGS)
def test_fractions_beside_every_label_map_can_be_written(ending: str, tmp_path: Path) -> None:
    values = np.linspace(0, 1, 30, dtype=np.float32).reshape(1, 1, 5, 6)
    geometry = Geometry(shape_zyx=(1, 5, 6), spacing_mm=(999.0, 1.0, 1.0))
    path = tmp_path / f"case{fraction_ending(label_ending(ending))}"
    write_image(path, values, geometry)
    assert np.array_equal(read_image([path]).array, values)
