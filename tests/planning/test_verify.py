import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from autoliver.datasets.cases import Dataset, read_dataset
from autoliver.errors import DatasetError
from autoliver.io.files import write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.planning.findings import Finding
from autoliver.planning.verify import CaseCheck, Verification, placeless, raise_on_errors, verify

SHARED = Path(__file__).parents[2] / "../shared/data"
GRID = Geometry(shape_zyx=(6, 8, 10), spacing_mm=(3.0, 0.7, 0.7), origin_xyz=(-5.0, 9.5, 100.0))


def image(name: str) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(sum(name.encode()))
    return rng.normal(size=(1, *GRID.shape_zyx)).astype(np.float32)


def label() -> npt.NDArray[np.uint8]:
    array = np.zeros(GRID.shape_zyx, np.uint8)
    array[2:4, 2:6, 2:6] = 1
    array[3, 3, 3] = 2
    return array


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset001_Random"
    for name in ("a", "b", "c"):
        write_image(folder / f"imagesTr/{name}_0000.nii.gz", image(name), GRID)
        write_label(folder / f"labelsTr/{name}.nii.gz", label(), GRID)
    describe(folder)
    return folder


def describe(folder: Path, **changes: Any) -> None:
    raw = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(raw | changes))


def only(folder: Path | Dataset) -> Finding:
    dataset = folder if isinstance(folder, Dataset) else read_dataset(folder)
    findings = verify(dataset).findings
    assert len(findings) == 1, findings
    assert findings[0].hint or findings[0].severity == "note"
    return findings[0]


def expect(finding: Finding, case: str | None, severity: str, code: str, *words: str) -> None:
    assert (finding.case, finding.severity, finding.code) == (case, severity, code)
    for word in words:
        assert word in finding.problem


def test_clean_dataset_gives_no_findings(folder: Path, tmp_path: Path) -> None:
    found = verify(read_dataset(folder))
    assert found.findings == ()
    raise_on_errors(found)
    found.save(tmp_path / "verify.json")
    assert Verification.load(tmp_path / "verify.json") == found


def test_truncated_image(folder: Path) -> None:
    path = folder / "imagesTr/b_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    expect(only(folder), "b", "error", "unreadable", str(path), "cut short")


def test_truncated_label(folder: Path) -> None:
    path = folder / "labelsTr/b.nii.gz"
    path.write_bytes(path.read_bytes()[:-10])
    expect(only(folder), "b", "error", "unreadable", str(path), "cut short")


def test_foreign_file(folder: Path) -> None:
    (folder / "labelsTr/c.nii.gz").write_bytes(b"<html>404</html>")
    expect(only(folder), "c", "error", "unreadable", "c.nii.gz", "no known image format")


def test_file_gone_since_the_dataset_was_read(folder: Path) -> None:
    dataset = read_dataset(folder)
    (folder / "labelsTr/a.nii.gz").unlink()
    expect(only(dataset), "a", "error", "missing_file", "labelsTr/a.nii.gz")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([np.nan] * 3, "3 NaN and 0 infinite voxels of 480"),
        ([np.inf, -np.inf, np.nan], "1 NaN and 2"),
    ],
)
def test_not_finite(values: list[float], words: str, folder: Path) -> None:
    array = image("a")
    array[0, 1, 2, :3] = values
    write_image(folder / "imagesTr/a_0000.nii.gz", array, GRID)
    expect(only(folder), "a", "error", "not_finite", "a_0000.nii.gz", words)


def test_constant_image(folder: Path) -> None:
    write_image(folder / "imagesTr/a_0000.nii.gz", image("a") * 0 - 1000, GRID)
    expect(only(folder), "a", "warning", "constant", "-1000")


@pytest.mark.parametrize(
    ("changes", "what", "severity", "words"),
    [
        ({"spacing_mm": (2.5, 0.7, 0.7)}, "spacing", "error", "(2.5, 0.7, 0.7)"),
        ({"spacing_mm": (3.0005, 0.7, 0.7)}, "spacing", "note", "rounding"),
        ({"origin_xyz": (-5.0, 9.5, 90.0)}, "origin", "error", "(-5, 9.5, 90)"),
        ({"origin_xyz": (-5.0, 9.5, 100.01)}, "origin", "note", "rounding"),
        ({"direction": (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)}, "direction", "error", "-1"),
    ],
)
def test_label_lies_elsewhere(
    changes: dict[str, Any], what: str, severity: str, words: str, folder: Path
) -> None:
    write_label(folder / "labelsTr/b.nii.gz", label(), GRID.replace(**changes))
    expect(only(folder), "b", severity, "label_grid", f"differ in {what}", words, "b.nii.gz")


def test_label_of_another_size(folder: Path) -> None:
    smaller = GRID.replace(shape_zyx=(5, 8, 10))
    write_label(folder / "labelsTr/b.nii.gz", label()[1:], smaller)
    expect(only(folder), "b", "error", "label_grid", "in size", "(6, 8, 10)", "(5, 8, 10)")


def test_channels_on_two_grids(folder: Path) -> None:
    describe(folder, channel_names={"0": "T1", "1": "T2"})
    for name in "abc":
        grid = GRID.replace(spacing_mm=(3.0, 0.7, 0.8)) if name == "c" else GRID
        write_image(folder / f"imagesTr/{name}_0001.nii.gz", image(name + "2"), grid)
    expect(only(folder), "c", "error", "channel_grid", "two channels differ in spacing", "c_0001")


def test_same_image_as_two_channels(folder: Path) -> None:
    describe(folder, channel_names={"0": "T1", "1": "T2"})
    for name in "abc":
        other = image(name) if name == "a" else image(name + "2")
        write_image(folder / f"imagesTr/{name}_0001.nii.gz", other, GRID)
    findings = verify(read_dataset(folder)).findings
    assert [(f.case, f.severity, f.code) for f in findings] == [
        ("a", "warning", "duplicate_channel")
    ]


def test_wrong_number_of_channels(folder: Path) -> None:
    array = np.concatenate([image("a"), image("a2")])
    write_image(folder / "imagesTr/a_0000.nii.gz", array, GRID)
    expect(only(folder), "a", "error", "channels", "2 channels in a_0000.nii.gz, expected 1")


def test_unexpected_label_values_are_counted(folder: Path) -> None:
    array = label()
    array[0, 0, :4] = 7
    array[0, 1, 0] = 9
    write_label(folder / "labelsTr/c.nii.gz", array, GRID)
    expect(only(folder), "c", "error", "label_values", "7 (4 voxels), 9 (1 voxels)", "has 0, 1, 2")


def test_negative_label_values(folder: Path) -> None:
    array = label().astype(np.int16)[None]
    array[0, 0, 0, 0] = -1
    write_image(folder / "labelsTr/c.nii.gz", array, GRID)
    expect(only(folder), "c", "error", "label_values", "-1 (1 voxels)")


def test_interpolated_labels(folder: Path) -> None:
    array = label().astype(np.float32)[None]
    array[0, 0, 0, :2] = 0.25
    write_image(folder / "labelsTr/c.nii.gz", array, GRID)
    expect(only(folder), "c", "error", "label_fractions", "2 voxels", "0.25")


def test_ignored_voxels_are_allowed_but_no_label(folder: Path) -> None:
    describe(folder, labels={"background": 0, "liver": 1, "tumour": 2, "ignore": 3})
    write_label(folder / "labelsTr/c.nii.gz", np.full(GRID.shape_zyx, 3), GRID)
    expect(only(folder), "c", "warning", "label_empty", "c.nii.gz")


def test_empty_label_is_a_warning_unless_known(folder: Path) -> None:
    write_label(folder / "labelsTr/c.nii.gz", np.zeros(GRID.shape_zyx, np.uint8), GRID)
    expect(only(folder), "c", "warning", "label_empty", "c.nii.gz")
    describe(folder, annotated={"c": {"liver": "absent", "tumour": "absent"}})
    assert verify(read_dataset(folder)).findings == ()


def test_label_in_no_case(folder: Path) -> None:
    describe(folder, labels={"background": 0, "liver": 1, "tumour": 2, "spleen": 3})
    expect(only(folder), None, "warning", "label_unused", "'spleen' (3)")


def test_labels_that_nobody_has_annotated(folder: Path) -> None:
    cases = [case.name for case in read_dataset(folder).labelled]
    describe(folder, annotated={case: {"tumour": "none"} for case in cases})
    expect(only(folder), None, "warning", "label_unused", "'tumour' is annotated in no case")
    nothing = {"liver": "none", "tumour": "none"}
    describe(folder, annotated=dict.fromkeys(cases, nothing))
    expect(only(folder), None, "error", "label_unused", "no label is annotated in any case")


def test_same_image_under_two_names(folder: Path) -> None:
    # Compressed otherwise: the voxels count, not the bytes of the file.
    (folder / "imagesTr/c_0000.nii.gz").unlink()
    write_image(folder / "imagesTr/c_0000.nii", image("a"), GRID)
    nibabel.save(nibabel.load(folder / "imagesTr/c_0000.nii"), folder / "imagesTr/c_0000.nii.gz")
    (folder / "imagesTr/c_0000.nii").unlink()
    expect(only(folder), "c", "warning", "duplicate_image", "same as that of a")


def test_extra_files(folder: Path) -> None:
    write_label(folder / "labelsTr/a.nrrd", label(), GRID)
    expect(only(folder), None, "warning", "extra_file", "labelsTr", "a.nrrd")


def test_number_of_cases(folder: Path) -> None:
    describe(folder, numTraining=4)
    expect(only(folder), None, "note", "num_training", "4", "3 cases")


def test_one_case_without_a_label_is_an_error(folder: Path) -> None:
    (folder / "labelsTr/c.nii.gz").unlink()
    expect(only(folder), "c", "error", "missing_label", "no label file", "2 other cases")


def test_cases_without_labels_are_fine_where_all_are_or_dataset_json_says_so(folder: Path) -> None:
    (folder / "labelsTr/c.nii.gz").unlink()
    dataset = read_dataset(folder)
    name = next(iter(dataset.labels.foreground))
    known = [
        case.replace(annotated={name: "none"}) if case.label is None else case
        for case in dataset.cases
    ]
    assert verify(dataset.replace(cases=tuple(known))).findings == ()
    nothing = [case.replace(label=None) for case in dataset.cases]
    codes = {f.code for f in verify(dataset.replace(cases=tuple(nothing))).findings}
    assert "missing_label" not in codes


def test_sheared_header_is_noted(folder: Path) -> None:
    for path in (folder / "imagesTr/a_0000.nii.gz", folder / "labelsTr/a.nii.gz"):
        old = nibabel.load(path)
        affine = old.affine.copy()
        affine[0, 1] += 0.01
        new = nibabel.Nifti1Image(np.asarray(old.dataobj), affine)
        new.set_sform(affine, code=1)
        new.set_qform(None, code=0)
        nibabel.save(new, path)
    findings = verify(read_dataset(folder)).findings
    assert [(f.case, f.severity, f.code) for f in findings] == [("a", "note", "direction")] * 2
    assert "not orthonormal" in findings[0].problem


def test_errors_are_raised_with_their_number(folder: Path) -> None:
    for name in "abc":
        write_label(folder / f"labelsTr/{name}.nii.gz", label() * 5, GRID)
    write_image(folder / "imagesTr/a_0000.nii.gz", image("a") * np.nan, GRID)
    found = verify(read_dataset(folder))
    assert len(found.errors) == 4
    with pytest.raises(DatasetError) as error:
        raise_on_errors(found)
    text = error.value.problem
    assert "4 errors" in text
    assert "a: " in text
    assert "and 1 more" in text
    assert text.count("dataset.json has 0, 1, 2") == 2  # the others say the same
    assert "autoliver verify" in error.value.hint


@pytest.mark.parametrize("listed", [False, True])
def test_each_kind_of_error_shows_its_hint_once(folder: Path, listed: bool) -> None:
    for name in "abc":
        write_label(folder / f"labelsTr/{name}.nii.gz", label() * 5, GRID)
    write_image(folder / "imagesTr/c_0000.nii.gz", image("c") * np.nan, GRID)
    with pytest.raises(DatasetError) as error:
        raise_on_errors(verify(read_dataset(folder)), listed=listed)
    hints = error.value.hint.splitlines()
    assert hints[0].startswith("a, b, c: Correct the label file")
    assert hints[1].startswith("c: Replace them by the value of air")
    assert ("To see every finding" in error.value.hint) is not listed
    assert "verify DATASET --fix OUT" in hints[2]
    assert len(hints) == (3 if listed else 4)
    # All problems stand in the table of `verify` already; elsewhere each kind is shown.
    assert ("c: " in error.value.problem and "NaN" in error.value.problem) is not listed


def test_findings_that_are_kept_hold_no_place(folder: Path) -> None:
    (folder / "imagesTr/a_0000.nii.gz").write_bytes(b"")
    found = verify(read_dataset(folder))
    assert str(folder) in found.errors[0].problem
    kept = placeless(found, folder).errors[0]
    assert kept.problem.startswith("imagesTr/a_0000.nii.gz: cannot be read")
    assert (kept.case, kept.code) == ("a", "unreadable")


def test_processes_give_the_same_in_the_same_order(folder: Path) -> None:
    for name in "ac":
        write_label(folder / f"labelsTr/{name}.nii.gz", label() * 5, GRID)
    (folder / "imagesTr/b_0000.nii.gz").write_bytes(b"")
    dataset = read_dataset(folder)
    seen: list[str] = []

    def progress(results: Iterable[CaseCheck]) -> Iterator[CaseCheck]:
        for result in results:
            seen.append(result.case)
            yield result

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        found = verify(dataset, executor=executor, progress=progress)
    assert found == verify(dataset)
    assert seen == ["a", "b", "c"]
    assert [f.case for f in found.errors] == ["a", "b", "c"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
@pytest.mark.parametrize("name", ["Dataset101_AbdomenCT", "Dataset104_BrainMR4"])
def test_real_datasets_have_no_errors(name: str) -> None:
    assert verify(read_dataset(SHARED / name)).errors == ()


def test_a_label_that_is_said_to_be_absent_may_not_be_there(folder: Path) -> None:
    describe(folder, annotated={"c": {"tumour": "absent"}})
    found = only(folder)
    expect(found, "c", "error", "label_absent", "c.nii.gz", "of 'tumour'")


def test_a_label_map_of_unknown_labels_may_be_empty(folder: Path) -> None:
    write_label(folder / "labelsTr/c.nii.gz", np.zeros(GRID.shape_zyx, np.uint8), GRID)
    describe(folder, annotated={"c": {"liver": "absent", "tumour": "none"}})
    assert verify(read_dataset(folder)).findings == ()


def test_a_connected_lesion_with_several_classes_is_warned_of(folder: Path) -> None:
    array = label()
    array[3, 3, 4:6] = 3
    array[5, 7, 9] = 3
    write_label(folder / "labelsTr/b.nii.gz", array, GRID)
    labels = {"background": 0, "liver": 1, "tumour": 2, "late": 3}
    describe(folder, labels=labels)
    assert verify(read_dataset(folder)).findings == ()  # perhaps parts of one lesion
    describe(folder, labels=labels, lesion_class_names=["tumour", "late"])
    words = ("b.nii.gz: 1 connected lesion", "1 voxel of tumour and 2 voxels of late", "(4, 3, 3)")
    expect(only(folder), "b", "warning", "lesion_classes", *words)
    array[3, 3, 4:6] = 1
    write_label(folder / "labelsTr/b.nii.gz", array, GRID)
    assert verify(read_dataset(folder)).findings == ()
