import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from autoliver.errors import DatasetError
from autoliver.io.files import write_label
from autoliver.io.volume import Geometry
from autoliver.preprocessing.case import CaseProperties, Preprocessed
from autoliver.preprocessing.previous import (
    PreviousTask,
    is_prepared,
    prepare_previous,
    with_previous,
)
from autoliver.preprocessing.resample import resample_labels
from autoliver.preprocessing.store import open_store, read_case, write_case

GEOMETRY = Geometry(shape_zyx=(14, 30, 28), spacing_mm=(3.0, 1.0, 1.0))
PROPERTIES = CaseProperties(
    name="case_1",
    modality="MR",
    geometry=GEOMETRY,
    transpose_forward=(1, 0, 2),
    box=((2, 30), (0, 14), (1, 25)),
    shape_zyx=(14, 21, 16),
    spacing_mm=(2.0, 2.0, 1.5),
)


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    open_store(folder, key="0", dataset="D")
    image = np.zeros((1, *PROPERTIES.shape_zyx), np.float32)
    case = Preprocessed(image=image, label=None, properties=PROPERTIES)
    write_case(folder, case, {}, patch_shape=(8, 8, 8))
    return folder


def test_a_label_map_comes_to_the_grid_of_the_stored_case(store, tmp_path):
    noise = gaussian_filter(np.random.default_rng(0).random(GEOMETRY.shape_zyx), 3)
    found = np.digitize(noise, np.quantile(noise, [0.6, 0.8])).astype(np.uint8)
    write_label(tmp_path / "found.nii.gz", found, GEOMETRY)
    task = PreviousTask(
        name="case_1",
        found=tmp_path / "found.nii.gz",
        store=store,
        folder=tmp_path / "previous",
        patch_shape=(8, 8, 8),
    )
    assert not is_prepared(task.folder, "case_1")
    assert prepare_previous(task) == "case_1"
    assert is_prepared(task.folder, "case_1")
    case = with_previous(read_case(store, "case_1"), task.folder)
    assert case.previous.shape == (1, *PROPERTIES.shape_zyx)
    part = case.previous[:, 2:9, :, 3:]
    assert np.array_equal(part, case.previous[:][:, 2:9, :, 3:])
    turned = found.transpose(1, 0, 2)[2:30, 0:14, 1:25]
    expected = resample_labels(turned[None], PROPERTIES.shape_zyx)
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(case.previous[:], expected)


def test_a_missing_label_map_is_named(store, tmp_path):
    task = PreviousTask(
        name="case_1",
        found=tmp_path / "none.nii.gz",
        store=store,
        folder=tmp_path / "previous",
        patch_shape=(8, 8, 8),
    )
    with pytest.raises(DatasetError, match=r"none\.nii\.gz"):
        prepare_previous(task)
    assert not task.folder.exists()
