"""What `verify` says of intensities, and what becomes of those that cannot be measurements."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from autoliver.datasets.cases import read_dataset
from autoliver.planning.findings import Finding
from autoliver.planning.fingerprint import make_fingerprint
from autoliver.planning.outliers import find_outliers, without_impossible
from autoliver.planning.verify import verify
from autoliver.preprocessing.crop import crop_to_nonzero

SHAPE = (12, 14, 16)
LABEL = np.zeros(SHAPE, np.uint8)
LABEL[4:9, 4:9, 4:9] = 1
BORDER = (0, 0, slice(0, 12))
INSIDE = (5, 5, slice(4, 9))


def ct() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.round(np.where(LABEL, 100, -1000) + rng.normal(0, 12, SHAPE))


def mr() -> np.ndarray:
    return np.abs(np.random.default_rng(2).normal(400, 100, SHAPE))


def changed(array: np.ndarray, where: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[where] = value
    return array


def dataset(
    folder: Path, image: np.ndarray, *, channel: str, label: np.ndarray = LABEL, **labels: int
) -> Path:
    for name, array in (("imagesTr/a_0000", image), ("labelsTr/a", label)):
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)
    raw = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, "liver": 1, **labels},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(raw))
    return folder


def findings(folder: Path) -> list[Finding]:
    return list(verify(read_dataset(folder)).findings)


F32, F64, I16, I32, U32, I64 = np.float32, np.float64, np.int16, np.int32, np.uint32, np.int64
MOST = float(np.finfo(F32).max)


@pytest.mark.parametrize(
    ("image", "kind", "channel", "severity", "code", "words"),
    [
        (changed(mr(), (5, 5, 5), MOST), F32, "MRI", "warning", "outliers", ("1 of 2688", "3.4")),
        (changed(mr(), (5, 5, 5), -MOST), F32, "MRI", "warning", "outliers", ("-3.4", "1 of")),
        (changed(mr(), INSIDE, 1e12), F32, "MRI", "warning", "outliers", ("5 of 2688", "1e+12")),
        (changed(mr(), INSIDE, 1e9), F64, "MRI", "warning", "outliers", ("5 of 2688", "1e+09")),
        (changed(mr() * 1e-12, (1, 1, 1), 1), F32, "ADC", "warning", "outliers", ("up to 1;",)),
        (changed(ct(), (0, 0, 0), 3e10), F32, "CT", "warning", "outliers", ("1 of 2688", "3e+10")),
        (changed(mr(), (5, 5, 5), 1e300), F64, "MRI", "error", "not_finite", ("1e+300", "1 infin")),
        (changed(mr(), (5, 5, 5), np.nan), F32, "MRI", "error", "not_finite", ("1 NaN and 0 inf",)),
        (changed(mr(), INSIDE, np.inf), F32, "MRI", "error", "not_finite", ("5 infinite",)),
        (changed(mr(), INSIDE, -np.inf), F64, "MRI", "error", "not_finite", ("5 infinite",)),
        (mr() + 2**25, I32, "MRI", "warning", "precision", ("beyond 2^24", "rounds")),
        (-mr() - 2**25, I32, "MRI", "warning", "precision", ("beyond 2^24", "-33")),
        (changed(mr(), INSIDE, 2**24 + 1), U32, "MRI", "warning", "precision", ("16777217 to 1",)),
        (changed(mr(), INSIDE, 2**24 + 1), I64, "MRI", "warning", "precision", ("5 of 2688",)),
        (mr() * 1e-60, F64, "MRI", "warning", "precision", ("become 0",)),
        (changed(ct(), BORDER, -2000), I16, "CT", "note", "padding", ("12 of 2688", "-2000")),
        (changed(ct(), BORDER, -32768), I16, "CT", "note", "padding", ("-32768", "clips")),
        (changed(ct(), BORDER, -3024), F32, "CT", "note", "padding", ("-3024", "below air")),
        (
            changed(ct(), (slice(4, 6), 5, slice(None)), -2000),
            *(I16, "CT", "warning", "padding"),
            ("32 of", "10 of them are labelled"),
        ),
        (changed(mr(), BORDER, -32768), I16, "MRI", "warning", "padding", ("12", "-32768", "mean")),
        (changed(mr(), BORDER, -2000), F32, "PET", "warning", "padding", ("-2000", "deviations")),
    ],
)
def test_values_that_are_named(
    tmp_path: Path,
    image: np.ndarray,
    kind: type,
    channel: str,
    severity: str,
    code: str,
    words: tuple[str, ...],
) -> None:
    found = [
        finding
        for finding in findings(dataset(tmp_path, image.astype(kind), channel=channel))
        if finding.code != "constant"  # a few of these are as well
    ]
    assert [(f.case, f.severity, f.code) for f in found] == [("a", severity, code)]
    for word in (*words, "a_0000.nii.gz"):
        assert word in found[0].problem
    assert found[0].hint or severity == "note"


@pytest.mark.parametrize(
    ("image", "kind", "channel"),
    [
        (ct(), I16, "CT"),
        (changed(ct(), (5, 5, 5), 30000), I16, "CT"),  # metal
        (changed(ct(), BORDER, -1024), I16, "CT"),
        (mr(), F32, "MRI"),
        (mr() * 1e25, F32, "MRI"),
        (mr() * 1e-12, F32, "ADC"),
        (mr() - 400, F32, "MRI"),
        (changed(mr(), (5, 5, 5), 1e7), F32, "PET"),  # a hot bladder
        (changed(np.zeros(SHAPE), (5, 5, 5), 1), F32, "mask"),
        (changed(mr(), INSIDE, 2**24), I32, "MRI"),
        (changed(mr(), (slice(0, 3),), 0), F32, "MRI"),
    ],
)
def test_values_that_are_as_they_should_be(
    tmp_path: Path, image: np.ndarray, kind: type, channel: str
) -> None:
    assert findings(dataset(tmp_path, image.astype(kind), channel=channel)) == []


@pytest.mark.parametrize("value", [MOST, -MOST, 1e13, 1e25])
def test_impossible_values_take_the_nearest_possible_one(value: float) -> None:
    before = mr()[None].astype(np.float32)
    image = changed(before, (0, 5, 5, 5), value)
    kept = image.copy()
    result = without_impossible(image, name="a")
    np.testing.assert_array_equal(image, kept)
    rest = np.delete(before.ravel(), np.ravel_multi_index((5, 5, 5), SHAPE))
    expected = changed(before, (0, 5, 5, 5), rest.max() if value > 0 else rest.min())
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e12, 1e25, 1e30])
def test_large_units_are_no_outliers(scale: float) -> None:
    image = (mr()[None] * scale).astype(np.float32)
    assert find_outliers(image[0]) is None
    assert without_impossible(image, name="a") is image


def test_the_ignore_label_is_no_foreground_of_the_fingerprint(tmp_path: Path) -> None:
    label = LABEL.copy()
    label[0:3] = 2  # air
    image = ct().astype(np.int16)
    stats = [
        make_fingerprint(read_dataset(folder), draws=50_000).intensities[0]
        for folder in (
            dataset(tmp_path / "ignore", image, channel="CT", label=label, ignore=2),
            dataset(tmp_path / "plain", image, channel="CT"),
            dataset(tmp_path / "meant", image, channel="CT", label=label, air=2),
        )
    ]
    assert stats[0] == stats[1]
    assert stats[0].mean == pytest.approx(100, abs=3)
    assert stats[2].mean < -500


def test_the_ignore_label_does_not_widen_the_mask_of_normalisation() -> None:
    image = np.zeros((1, *SHAPE), np.float32)
    image[0, 1:11, 1:11, 1:11] = 5
    image[0, 0, 0, 0] = image[0, 11, 13, 15] = 5  # so that nothing is cropped
    label = np.full((1, *SHAPE), 2, np.uint8)
    label[0, 2:5] = 1
    unlabelled = crop_to_nonzero(image)
    ignored = crop_to_nonzero(image, label, ignore=2)
    np.testing.assert_array_equal(ignored.mask, unlabelled.mask | (label[0] == 1))
    assert crop_to_nonzero(image, label).mask.all()
