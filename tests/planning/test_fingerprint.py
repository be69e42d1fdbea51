from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from autoliver.dataset import Case, Dataset, Labels
from autoliver.errors import DatasetError
from autoliver.planning.fingerprint import fingerprint_case, make_fingerprint, summarise

SPACING = (3.0, 0.8, 0.7)


def arrays(seed: int, channels: int = 2, shape=(6, 9, 8)):
    """An image that is zero outside a box, and a label inside and a little outside it."""
    rng = np.random.default_rng(seed)
    image = np.zeros((channels, *shape), dtype=np.float32)
    inside = (slice(1, 5), slice(2, 9), slice(1, 7))
    image[(slice(None), *inside)] = rng.normal(50, 20, size=(channels, 4, 7, 6))
    label = np.zeros((1, *shape), dtype=np.int16)
    label[0, 2:6, 3:6, 2:6] = rng.integers(0, 3, size=(4, 3, 4))
    return image, label, inside


def case_of(seed: int, count: int = 500, **changes):
    image, label, _ = arrays(seed, **changes)
    name = f"case_{seed}"
    return fingerprint_case(image, label, spacing_mm=SPACING, name=name, foreground_voxels=count)


def test_case_is_cropped_and_its_foreground_drawn_with_replacement():
    image, label, inside = arrays(1)
    summary = case_of(1)
    assert summary.grid.shape == (6, 9, 8)
    assert summary.grid.shape_after_crop == (4, 7, 6)
    assert summary.grid.spacing_mm == SPACING
    assert summary.relative_size_after_crop == pytest.approx(4 * 7 * 6 / (6 * 9 * 8))
    random = np.random.RandomState(1234)
    foreground = label[0][inside] > 0
    for channel, drawn in zip(image, summary.foreground, strict=True):
        expected = random.choice(channel[inside][foreground], 500, replace=True)
        np.testing.assert_array_equal(drawn, expected)
        assert drawn.dtype == np.float32


def test_large_samples_are_drawn_in_parts_with_the_same_numbers():
    image, label, inside = arrays(2, channels=1)
    drawn = case_of(2, count=4_000_010, channels=1).foreground[0]
    values = image[0][inside][label[0][inside] > 0]
    np.testing.assert_array_equal(
        drawn, np.random.RandomState(1234).choice(values, 4_000_010, replace=True)
    )


def test_statistics_are_those_of_all_samples():
    cases = [case_of(seed) for seed in range(3)]
    fingerprint = summarise(cases)
    assert [case.name for case in fingerprint.cases] == ["case_0", "case_1", "case_2"]
    for channel, stats in enumerate(fingerprint.intensities):
        values = np.sort(np.concatenate([case.foreground[channel] for case in cases]))
        values = values.astype(np.float64)
        assert stats.mean == pytest.approx(values.mean(), rel=1e-6)
        assert stats.std == pytest.approx(values.std(), rel=1e-6)
        assert (stats.min, stats.max) == (values[0], values[-1])
        assert stats.median == pytest.approx((values[749] + values[750]) / 2, rel=1e-6)
        # 0.5 % of 1499 intervals: between the 8th and the 9th value.
        low = values[7] + (0.005 * 1499 - 7) * (values[8] - values[7])
        assert stats.percentile_00_5 == pytest.approx(low, rel=1e-6)
        high = values[1491] + (0.995 * 1499 - 1491) * (values[1492] - values[1491])
        assert stats.percentile_99_5 == pytest.approx(high, rel=1e-6)


def test_a_case_without_foreground_contributes_its_grid_only():
    image, label, _ = arrays(0)
    empty = fingerprint_case(
        image, np.zeros_like(label), spacing_mm=SPACING, name="empty", foreground_voxels=500
    )
    assert all(drawn.size == 0 for drawn in empty.foreground)
    both = summarise([case_of(0), empty])
    assert both.intensities == summarise([case_of(0)]).intensities
    assert len(both.cases) == 2
    with pytest.raises(DatasetError, match="foreground"):
        summarise([empty])


def test_label_grid_must_match_image():
    image, label, _ = arrays(0)
    with pytest.raises(DatasetError, match=r"bad: image and label differ in size: image \(6, 9, 8"):
        fingerprint_case(image, label[:, 1:], spacing_mm=SPACING, name="bad", foreground_voxels=10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_intensities_must_be_finite(value):
    image, label, _ = arrays(0)
    image[1, 0, 0, 0] = value
    with pytest.raises(DatasetError, match="bad: channel 1"):
        fingerprint_case(image, label, spacing_mm=SPACING, name="bad", foreground_voxels=10)


def write_dataset(folder, seeds):
    cases = []
    for seed in seeds:
        image, label, _ = arrays(seed)
        name = f"case_{seed}"
        affine = np.diag([*SPACING[::-1], 1.0])
        paths = []
        for index, channel in enumerate(image):
            paths.append(str(folder / f"{name}_{index:04d}.nii.gz"))
            nibabel.save(nibabel.Nifti1Image(channel.T, affine), paths[-1])
        labelled = str(folder / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label[0].T, affine), labelled)
        cases.append(Case(name=name, images=tuple(paths), label=labelled, patient=name))
    cases.append(Case(name="z_unlabelled", images=("nowhere.nii.gz",), patient="z"))
    return Dataset(
        name="Dataset900_Test",
        folder=str(folder),
        channel_names=("T1", "T2"),
        labels=Labels(values={"background": (0,), "liver": (1,), "tumour": (2,)}),
        cases=tuple(cases),
    )


def test_files_to_fingerprint(tmp_path):
    dataset = write_dataset(tmp_path, range(3))
    seen = []

    def progress(results):
        for result in results:
            seen.append(result.grid.name)
            yield result

    fingerprint = make_fingerprint(dataset, progress=progress, foreground_voxels=1500)
    assert seen == ["case_0", "case_1", "case_2"]
    expected = summarise([case_of(seed) for seed in range(3)])
    assert fingerprint.intensities == expected.intensities
    assert fingerprint.made_from == {"dataset": dataset.digest()}
    for ours, theirs in zip(fingerprint.cases, expected.cases, strict=True):
        assert ours.shape_after_crop == theirs.shape_after_crop
        assert ours.spacing_mm == pytest.approx(theirs.spacing_mm)
    with ThreadPoolExecutor(2) as executor:
        again = make_fingerprint(dataset, executor=executor, foreground_voxels=1500)
    assert again == fingerprint
    path = tmp_path / "fingerprint.json"
    fingerprint.save(path)
    assert type(fingerprint).load(path) == fingerprint


def test_a_dataset_needs_a_label(tmp_path):
    with pytest.raises(DatasetError, match="none of 1 cases has a label"):
        make_fingerprint(write_dataset(tmp_path, []))
