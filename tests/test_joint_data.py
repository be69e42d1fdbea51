"""The data of the joint benchmark: versions of a patient stay together, both sets stay apart."""

import json
from pathlib import Path

import numpy as np
import pytest

from autoliver.datasets.cases import read_dataset
from autoliver.io.files import read_image, read_label
from autoliver.synthesis.phantom import PhantomOptions
from autoliver.synthesis.phantom_lesions import LesionOptions
from benchmarks.joint_data import Patients, phantom_patients, split_patients, write_joint_data

SCAN = PhantomOptions(shape_zyx=(20, 48, 48), spacing_mm=(8.0, 7.0, 7.0), lesions=(0, 0))
LESIONS = LesionOptions(count=(2, 3), diameter_mm=(16, 40))


@pytest.fixture(scope="module")
def patients() -> Patients:
    return phantom_patients(3, seed=1, options=SCAN)


@pytest.fixture(scope="module")
def written(patients: Patients, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("joint")
    return write_joint_data(folder, patients, number=7, versions=(2, 3), options=LESIONS)


def test_no_patient_is_in_both_sets(written: tuple[Path, Path], patients: Patients) -> None:
    named, plain = ({case.patient for case in read_dataset(folder).cases} for folder in written)
    assert named | plain == set(patients)
    assert not named & plain
    assert (named, plain) == tuple(map(set, split_patients(patients)))


def test_each_patient_has_its_versions_and_they_differ(written: tuple[Path, Path]) -> None:
    for folder, versions in zip(written, (2, 3), strict=True):
        owners = json.loads((folder / "dataset.json").read_text())["patients"]
        for patient in set(owners.values()):
            cases = [case for case, owner in owners.items() if owner == patient]
            assert len(cases) == versions
            labels = [read_label(folder / f"labelsTr/{case}.nii.gz").array for case in cases]
            assert any((labels[0] != other).any() for other in labels[1:])


@pytest.mark.parametrize(("which", "most"), [(0, 4), (1, 2)])
def test_one_set_tells_classes_apart_the_other_does_not(
    written: tuple[Path, Path], which: int, most: int
) -> None:
    dataset = read_dataset(written[which])
    values = {value for label in dataset.labels.values.values() for value in label}
    files = sorted((written[which] / "labelsTr").iterdir())
    found = {int(v) for file in files for v in np.unique(read_label(file).array)}
    assert values == set(range(most + 1))
    assert {0, 1, 2} <= found | {2} <= values
    assert max(found) > 1


def test_outside_the_liver_the_scan_is_as_it_was(
    written: tuple[Path, Path], patients: Patients
) -> None:
    for case, owner in json.loads((written[0] / "dataset.json").read_text())["patients"].items():
        image = read_image([written[0] / f"imagesTr/{case}_0000.nii.gz"]).array[0]
        original = patients[owner]()
        assert (image[~original.liver] == original.image[~original.liver]).all()
        label = read_label(written[0] / f"labelsTr/{case}.nii.gz").array[0]
        assert ((label > 0) == original.liver).all()
