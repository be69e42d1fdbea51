from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest

from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.errors import DatasetError
from autoliver.planning.fingerprint import fingerprint_case, make_fingerprint, summarise

SPACING = (3.0, 0.8, 0.7)
DRAWS = 5000


def arrays(seed: int, channels: int = 2, shape=(6, 9, 8)):
    """An image that is zero outside a box, and a label inside and a little outside it."""
    rng = np.random.default_rng(seed)
    image = np.zeros((channels, *shape), dtype=np.float32)
    inside = (slice(1, 5), slice(2, 9), slice(1, 7))
    image[(slice(None), *inside)] = rng.normal(50, 20, size=(channels, 4, 7, 6))
    label = np.zeros((1, *shape), dtype=np.int16)
    label[0, 2:6, 3:6, 2:6] = rng.integers(0, 3, size=(4, 3, 4))
    return image, label, inside


def case_of(seed: int, **changes):
    image, label, _ = arrays(seed, **changes)
    return fingerprint_case(image, label, spacing_mm=SPACING, name=f"case_{seed}", draws=DRAWS)


def drawn(seed: int):
    """What nnU-Net keeps of a case: values drawn from one channel after the other."""
    image, label, inside = arrays(seed)
    foreground = label[0][inside] > 0
    rng = np.random.RandomState(1234)
    return [rng.choice(channel[inside][foreground], DRAWS, replace=True) for channel in image]


def test_case_is_cropped_and_its_foreground_gathered():
    summary = case_of(1)
    assert summary.grid.shape == (6, 9, 8)
    assert summary.grid.shape_after_crop == (4, 7, 6)
    assert summary.grid.spacing_mm == SPACING
    assert summary.relative_size_after_crop == pytest.approx(4 * 7 * 6 / (6 * 9 * 8))
    for values, found in zip(drawn(1), summary.foreground, strict=True):
        assert found is not None
        np.testing.assert_array_equal(np.repeat(found.values, found.counts), np.sort(values))
        assert found.values.dtype == np.float32


def test_statistics_are_those_of_all_values_drawn():
    fingerprint = summarise([case_of(seed) for seed in range(3)])
    assert [case.name for case in fingerprint.cases] == ["case_0", "case_1", "case_2"]
    channels = zip(*(drawn(seed) for seed in range(3)), strict=True)
    for channel, stats in zip(channels, fingerprint.intensities, strict=True):
        values = np.concatenate(channel).astype(np.float64)
        assert stats.mean == pytest.approx(values.mean(), rel=1e-9)
        assert stats.std == pytest.approx(values.std(), rel=1e-9)
        assert (stats.min, stats.max) == (values.min(), values.max())
        low, median, high = np.percentile(values, (0.5, 50, 99.5))
        assert stats.percentile_00_5 == pytest.approx(low, rel=1e-9)
        assert stats.median == pytest.approx(median, rel=1e-9)
        assert stats.percentile_99_5 == pytest.approx(high, rel=1e-9)


def test_a_case_without_foreground_contributes_its_grid_only():
    image, label, _ = arrays(0)
    empty = fingerprint_case(image, np.zeros_like(label), spacing_mm=SPACING, name="empty", draws=9)
    assert empty.foreground == (None, None)
    both = summarise([case_of(0), empty])
    assert both.intensities == summarise([case_of(0)]).intensities
    assert len(both.cases) == 2
    with pytest.raises(DatasetError, match="foreground"):
        summarise([empty])


def test_label_grid_must_match_image():
    image, label, _ = arrays(0)
    with pytest.raises(DatasetError, match=r"bad: image and label differ in size: image \(6, 9, 8"):
        fingerprint_case(image, label[:, 1:], spacing_mm=SPACING, name="bad", draws=9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_intensities_must_be_finite(value):
    image, label, _ = arrays(0)
    image[1, 0, 0, 0] = value
    with pytest.raises(DatasetError, match="bad: channel 1"):
        fingerprint_case(image, label, spacing_mm=SPACING, name="bad", draws=9)


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

    fingerprint = make_fingerprint(dataset, progress=progress, draws=3 * DRAWS + 2)
    assert seen == ["case_0", "case_1", "case_2"]
    expected = summarise([case_of(seed) for seed in range(3)])
    assert fingerprint.intensities == expected.intensities
    assert fingerprint.made_from == {"dataset": dataset.digest()}
    for ours, theirs in zip(fingerprint.cases, expected.cases, strict=True):
        assert ours.shape_after_crop == theirs.shape_after_crop
        assert ours.spacing_mm == pytest.approx(theirs.spacing_mm)
    with ThreadPoolExecutor(2) as executor:
        again = make_fingerprint(dataset, executor=executor, draws=3 * DRAWS)
    assert again == fingerprint
    path = tmp_path / "fingerprint.json"
    fingerprint.save(path)
    assert type(fingerprint).load(path) == fingerprint


def test_a_dataset_needs_a_label(tmp_path):
    with pytest.raises(DatasetError, match="none of 1 case has a label"):
        make_fingerprint(write_dataset(tmp_path, []))


def test_intensities_of_unknown_labels_do_not_count(tmp_path):
    dataset = write_dataset(tmp_path, range(2))
    cases = tuple(case.replace(annotated={"tumour": "none"}) for case in dataset.cases)
    partial = make_fingerprint(dataset.replace(cases=cases), draws=2 * DRAWS)
    for case in dataset.labelled:
        label = nibabel.load(case.label)
        values = np.asarray(label.dataobj)
        assert 2 in values
        nibabel.save(
            nibabel.Nifti1Image(np.where(values == 2, 0, values), label.affine), case.label
        )
    without = make_fingerprint(dataset, draws=2 * DRAWS)
    assert partial.intensities == without.intensities
