import gzip
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.files import (
    read_header,
    read_image,
    read_label,
    write_image,
    write_label,
)
from autoliver.io.grids import compare_grids
from autoliver.io.header import label_ending, split_ending
from autoliver.io.volume import Geometry

SHARED = Path(__file__).parents[2] / "../shared/data"
OBLIQUE = Rotation.from_euler("xyz", [20, -10, 35], degrees=True).as_matrix()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def geometry() -> Geometry:
    return Geometry(
        shape_zyx=(5, 6, 7),
        spacing_mm=(3.0, 0.75, 0.5),
        origin_xyz=(-12.5, 40.25, 7.0),
        direction=tuple(OBLIQUE.ravel().tolist()),
    )


def save_nifti(
    path: Path,
    array_xyz: npt.NDArray[np.generic],
    affine: npt.NDArray[np.float64],
    *,
    qform: bool = False,
) -> None:
    image = nibabel.Nifti1Image(array_xyz, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine if qform else None, code=int(qform))
    nibabel.save(image, path)


def sheared(shear: float) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag([1.0, 1.0, 3.0])
    affine[0, 1] += shear
    affine[:3, 3] = (5.0, -6.0, 7.0)
    return affine


# --- round trips


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_oblique_anisotropic_image_comes_back(
    ending: str, tmp_path: Path, rng: np.random.Generator, geometry: Geometry
) -> None:
    array = rng.normal(size=(1, 5, 6, 7)).astype(np.float32)
    write_image(tmp_path / f"new/case{ending}", array, geometry)

    volume = read_image([str(tmp_path / f"new/case{ending}")])

    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.float32
    assert compare_grids(geometry, volume.geometry) == ()
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"case{ending}"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_same_values_and_grid_as_simpleitk(
    ending: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    image = sitk.GetImageFromArray(rng.integers(-900, 900, (5, 6, 7)).astype(np.int16))
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    image.SetDirection(OBLIQUE.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))

    volume = read_image([tmp_path / f"a{ending}"])
    header = read_header(tmp_path / f"a{ending}")

    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    assert volume.geometry.spacing_mm == pytest.approx((3.0, 0.75, 0.5))
    assert volume.geometry.origin_xyz == pytest.approx((1.0, 2.0, 3.0), abs=1e-5)
    assert volume.geometry.direction == pytest.approx(tuple(OBLIQUE.ravel()), abs=1e-6)
    assert header.geometry == volume.geometry
    assert (header.channels, header.integer, header.note) == (1, True, "")


def test_scaled_nifti_gives_scaled_values(tmp_path: Path, rng: np.random.Generator) -> None:
    image = nibabel.Nifti1Image(rng.integers(0, 99, (4, 5, 6)).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.25, -3.0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii.gz")))

    np.testing.assert_allclose(read_image([tmp_path / "a.nii.gz"]).array[0], truth, rtol=1e-6)
    assert not read_header(tmp_path / "a.nii.gz").integer


def test_big_endian_nifti(tmp_path: Path) -> None:
    array = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4), header), tmp_path / "a.nii")

    np.testing.assert_array_equal(read_image([tmp_path / "a.nii"]).array[0], array.T)


def test_uncompressed_nifti_named_gz_is_read(tmp_path: Path, geometry: Geometry) -> None:
    write_label(tmp_path / "a.nii", np.ones((5, 6, 7), np.uint8), geometry)
    (tmp_path / "a.nii").rename(tmp_path / "b.nii.gz")
    assert read_label(tmp_path / "b.nii.gz").array.all()


# --- channels


def test_fourth_dimension_is_channels(tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.normal(size=(4, 5, 6, 3)).astype(np.float32)  # x, y, z, c
    save_nifti(tmp_path / "a.nii.gz", array, np.diag([2.0, 1.0, 1.5, 1.0]))

    volume = read_image([tmp_path / "a.nii.gz"])

    np.testing.assert_array_equal(volume.array, array.transpose(3, 2, 1, 0))
    assert volume.geometry.spacing_mm == (1.5, 1.0, 2.0)
    assert read_header(tmp_path / "a.nii.gz").channels == 3


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_several_channels_are_written_as_4d(
    ending: str, tmp_path: Path, rng: np.random.Generator, geometry: Geometry
) -> None:
    array = rng.normal(size=(3, 5, 6, 7)).astype(np.float32)
    write_image(tmp_path / f"a{ending}", array, geometry)
    volume = read_image([tmp_path / f"a{ending}"])
    np.testing.assert_array_equal(volume.array, array)
    assert compare_grids(volume.geometry, geometry) == ()
    assert sitk.ReadImage(str(tmp_path / f"a{ending}")).GetDimension() == 4


def test_files_are_concatenated_in_order(
    tmp_path: Path, rng: np.random.Generator, geometry: Geometry
) -> None:
    array = rng.normal(size=(3, 5, 6, 7)).astype(np.float32)
    write_image(tmp_path / "two.nii.gz", array[:2], geometry)
    write_image(tmp_path / "one.nrrd", array[2:], geometry)
    volume = read_image([tmp_path / "two.nii.gz", tmp_path / "one.nrrd"])
    np.testing.assert_array_equal(volume.array, array)


def test_rgb_png_has_three_channels_and_one_slice(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 255, (6, 9, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"))
    volume = read_image([tmp_path / "a.png"])
    np.testing.assert_array_equal(volume.array[:, 0], np.moveaxis(pixels, -1, 0))
    assert volume.geometry.spacing_mm == (999.0, 1.0, 1.0)


@pytest.mark.parametrize("ending", [".png", ".nii.gz", ".nrrd", ".tif"])
def test_2d_image_stays_2d_when_its_label_is_written(ending: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(54, dtype=np.uint8).reshape(6, 9))
    image.SetSpacing((0.5, 0.7))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    volume = read_image([tmp_path / f"a{ending}"])
    label = (volume.array[0] > 20).astype(np.int64)

    write_label(tmp_path / f"b{ending}", label, volume.geometry)

    written = sitk.ReadImage(str(tmp_path / f"b{ending}"))
    assert written.GetDimension() == 2
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), label[0])
    assert compare_grids(read_header(tmp_path / f"b{ending}").geometry, volume.geometry) == ()


def test_channels_on_other_grids_are_refused(tmp_path: Path, geometry: Geometry) -> None:
    write_image(tmp_path / "a.nii.gz", np.zeros((1, 5, 6, 7), np.float32), geometry)
    other = geometry.replace(shape_zyx=(4, 6, 7))
    write_image(tmp_path / "b.nii.gz", np.zeros((1, 4, 6, 7), np.float32), other)
    with pytest.raises(DatasetError) as error:
        read_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])
    for text in ("a.nii.gz has (5, 6, 7)", "b.nii.gz has (4, 6, 7)", "size"):
        assert text in error.value.problem
    assert error.value.hint


# --- labels


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0, 1], "u1"), ([0, 255], "u1"), ([0, 256], "u2"), ([0, 70000], "u4"), ([-1, 3], "i1")],
)
@pytest.mark.parametrize("stored", [np.float64, np.int32])
def test_labels_are_exact_in_the_smallest_type(
    values: list[int], dtype: str, stored: type, tmp_path: Path
) -> None:
    array = np.resize(np.array(values, dtype=stored), (3, 4, 5))
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii.gz"))
    label = read_label(tmp_path / "a.nii.gz").array
    assert label.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(label[0], array)


@pytest.mark.parametrize("bad", [0.5, np.nan, np.inf])
def test_label_values_must_be_whole(bad: float, tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 1, :2] = bad
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii.gz"))
    with pytest.raises(DatasetError, match=rf"2 voxels .* e\.g\. {bad:g}"):
        read_label(tmp_path / "a.nii.gz")


def test_label_with_channels_is_refused(tmp_path: Path, geometry: Geometry) -> None:
    write_image(tmp_path / "a.nii.gz", np.zeros((2, 5, 6, 7), np.float32), geometry)
    with pytest.raises(DatasetError, match="2 channels"):
        read_label(tmp_path / "a.nii.gz")


def test_labels_are_written_in_the_smallest_unsigned_type(
    tmp_path: Path, geometry: Geometry
) -> None:
    array = np.zeros((5, 6, 7), np.int64)
    array[0, 0, 0] = 300
    write_label(tmp_path / "a.nii.gz", array, geometry)
    assert read_header(tmp_path / "a.nii.gz").pixel_type == "16-bit unsigned integer"
    with pytest.raises(ValueError, match=">= 0"):
        write_label(tmp_path / "a.nii.gz", array - 1, geometry)


@pytest.mark.parametrize("name", ["a.jpg", "a.mhd", "a.nhdr", "a.what", "a.png"])
def test_unfit_endings_are_refused_with_a_better_one(
    name: str, tmp_path: Path, geometry: Geometry
) -> None:
    with pytest.raises(AutoliverError) as error:
        write_label(tmp_path / name, np.zeros((5, 6, 7), np.uint8), geometry)
    assert "Choose ." in error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_endings() -> None:
    assert split_ending("case.1_0000.NII.GZ") == ("case.1_0000", ".NII.GZ")
    assert split_ending("notes.txt") == ("notes.txt", "")
    assert [label_ending(e) for e in (".nii.gz", ".mhd", ".jpg")] == [".nii.gz", ".mha", ".png"]


# --- directions that are not orthonormal


@pytest.mark.parametrize("shear", [0.003, 0.05, 0.3])
def test_sheared_nifti_gets_the_nearest_orthonormal_direction(
    shear: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    array = rng.normal(size=(4, 5, 6)).astype(np.float32)
    affine = sheared(shear)
    save_nifti(tmp_path / "a.nii.gz", array, affine)

    volume = read_image([tmp_path / "a.nii.gz"])
    header = read_header(tmp_path / "a.nii.gz")

    cosines = np.diag([-1, -1, 1]) @ affine[:3, :3]
    cosines /= np.linalg.norm(cosines, axis=0)
    nearest = Rotation.from_matrix(cosines).as_matrix()  # scipy's is the nearest one, too
    np.testing.assert_allclose(np.reshape(header.geometry.direction, (3, 3)), nearest, atol=1e-6)
    assert header.geometry.origin_xyz == pytest.approx((-5.0, 6.0, 7.0))
    assert header.geometry.spacing_mm[0] == pytest.approx(3.0)
    assert "not orthonormal (largest deviation" in header.note
    assert volume.geometry == header.geometry
    np.testing.assert_array_equal(volume.array[0], array.T)


def test_rounding_of_the_affine_is_left_alone(tmp_path: Path) -> None:
    save_nifti(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.float32), sheared(1e-5))
    assert read_header(tmp_path / "a.nii.gz").note == ""


def test_qform_in_place_of_a_sheared_sform_is_noted(tmp_path: Path) -> None:
    save_nifti(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.float32), sheared(0.05), qform=True)
    header = read_header(tmp_path / "a.nii.gz")
    assert "qform used" in header.note
    direction = np.reshape(header.geometry.direction, (3, 3))
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-5)


def test_labels_on_a_sheared_grid_can_be_written_back(tmp_path: Path) -> None:
    save_nifti(tmp_path / "a.nii.gz", np.zeros((4, 5, 6), np.float32), sheared(0.05))
    geometry = read_header(tmp_path / "a.nii.gz").geometry
    write_label(tmp_path / "b.nii.gz", np.ones((6, 5, 4), np.uint8), geometry)
    assert compare_grids(read_header(tmp_path / "b.nii.gz").geometry, geometry) == ()


def test_affine_of_zeros_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    affine = np.diag([0.0, 1.0, 1.0, 1.0])
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), None)
    image.set_sform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    capfd.readouterr()
    with pytest.raises(DatasetError, match="affine is not valid"):
        read_header(tmp_path / "a.nii.gz")
    assert capfd.readouterr() == ("", "")


# --- files that are not whole


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png"])
def test_truncated_files_are_errors_without_noise(
    ending: str, tmp_path: Path, rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = rng.integers(0, 255, (40, 50) if ending == ".png" else (20, 40, 50)).astype(np.uint8)
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path), True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(DatasetError) as error:
        read_image([path])
    assert str(path) in error.value.problem
    assert "cannot be read" in error.value.problem
    assert error.value.hint
    assert capfd.readouterr() == ("", "")


def test_flipped_bits_are_found_by_the_checksum(
    tmp_path: Path, rng: np.random.Generator, geometry: Geometry
) -> None:
    geometry = geometry.replace(shape_zyx=(20, 40, 50))
    array = rng.normal(size=(1, 20, 40, 50)).astype(np.float32)
    write_image(tmp_path / "a.nii.gz", array, geometry)
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.nii.gz").write_bytes(bytes(content))
    with pytest.raises(DatasetError, match="damaged"):
        read_image([tmp_path / "a.nii.gz"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", b""),
        ("a.nii.gz", b"hello" * 99),
        ("a.nii.gz", gzip.compress(b"hello" * 99, mtime=0)),
        ("a.nrrd", b"hello" * 99),
        ("a.mha", b"hello" * 99),
        ("a.png", b"hello" * 99),
        ("a.txt", b"hello" * 99),
    ],
)
def test_foreign_files_are_errors_without_noise(
    name: str, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be read") as error:
        read_header(tmp_path / name)
    assert error.value.hint
    assert capfd.readouterr() == ("", "")


def test_missing_files_and_folders_are_errors(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        read_header(tmp_path / "a.nii.gz")
    with pytest.raises(DatasetError, match="a folder") as error:
        read_image([tmp_path])
    assert "DICOM" in error.value.hint
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def small_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".tif"])
def test_failed_write_is_an_error_and_leaves_the_old_file(
    ending: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"old")
    geometry = Geometry(shape_zyx=(20, 40, 50), spacing_mm=(1.0, 1.0, 1.0))
    array = rng.normal(size=(1, 20, 40, 50)).astype(np.float32)
    with pytest.raises(AutoliverError, match="cannot be written"):
        write_image(path, array, geometry)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_threads_may_read_and_write_at_once(tmp_path: Path, geometry: Geometry) -> None:
    def there_and_back(value: int) -> bool:
        array = np.full((5, 6, 7), value, np.uint8)
        write_label(tmp_path / f"{value}.mha", array, geometry)
        return bool((read_label(tmp_path / f"{value}.mha").array == value).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, range(20)))


# --- grids


def test_grid_differences_tell_rounding_from_mistakes(geometry: Geometry) -> None:
    def what(**changes: object) -> list[tuple[str, bool]]:
        return [(d.what, d.rounding) for d in compare_grids(geometry, geometry.replace(**changes))]

    assert what() == []
    assert what(spacing_mm=(3.0, 0.75, 0.5 * (1 + 1e-7))) == []
    assert what(spacing_mm=(3.0, 0.75, 0.5002)) == [("spacing", True)]
    assert what(spacing_mm=(2.5, 0.75, 0.5)) == [("spacing", False)]
    assert what(origin_xyz=(-12.51, 40.25, 7.0)) == [("origin", True)]
    assert what(origin_xyz=(-12.75, 40.25, 7.0)) == [("origin", False)]
    turned = (Rotation.from_euler("z", 1, degrees=True).as_matrix() @ OBLIQUE).ravel()
    assert what(direction=tuple(turned)) == [("direction", False)]
    assert what(shape_zyx=(6, 5, 7)) == [("size", False)]


def test_grid_differences_print_enough_digits(geometry: Geometry) -> None:
    other = geometry.replace(spacing_mm=(3.0, 0.75, 0.50001))
    one, two = compare_grids(geometry, other)[0].values()
    assert (one, two) == ("(3, 0.75, 0.5)", "(3, 0.75, 0.50001)")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize("folder", ["Dataset103_LiverTumourCT", "Dataset102_AbdomenMR"])
def test_real_image_equals_simpleitk(folder: str) -> None:
    path = min((SHARED / folder / "imagesTr").iterdir())
    image = sitk.ReadImage(str(path))
    volume = read_image([path])
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image).astype(np.float32))
    assert volume.geometry.spacing_mm == image.GetSpacing()[::-1]
    assert volume.geometry.origin_xyz == image.GetOrigin()
    assert volume.geometry.direction == image.GetDirection()
