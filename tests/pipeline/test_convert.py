"""Published data in layouts of their own, as miniature trees."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from commands import run
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.datasets.cases import read_dataset
from autoliver.datasets.folds import make_folds
from autoliver.datasets.regions import painted, painting_problem
from autoliver.errors import AutoliverError, DatasetError, OptionError, WrongValue
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.pipeline.conversion.convert import convert
from autoliver.pipeline.conversion.result import Converted
from autoliver.workspace import Workspace

BRAIN = Geometry(shape_zyx=(6, 8, 10), spacing_mm=(1.0, 1.0, 1.0))
OLD = ("t1", "t1ce", "t2", "flair")
NEW = ("t1n", "t1c", "t2w", "t2f")


def flat(path: Path, array: np.ndarray) -> None:
    """A NIfTI file of two axes, as CAMUS has it."""
    nib.save(nib.Nifti1Image(array.T, np.diag([0.5, 0.3, 1.0, 1.0])), path)


def write_camus(source: Path, patients: Iterable[int] = (1, 2), ending: str = ".nii.gz") -> Path:
    for number in patients:
        folder = source / f"patient{number:04d}"
        folder.mkdir(parents=True)
        rng = np.random.default_rng(number)
        for view in ("2CH", "4CH"):
            (folder / f"Info_{view}.cfg").write_text("ED: 1\nES: 18\n")
            for frame in ("ED", "ES", "half_sequence", "sequence"):
                name = f"{folder.name}_{view}_{frame}"
                label = np.zeros((1, 24, 20), np.uint8)
                label[:, 4:20, 4:16], label[:, 6:14, 6:14], label[:, 15:18, 6:14] = 2, 1, 3
                image = (40 * label + rng.integers(0, 60, label.shape)).astype(np.uint8)
                for stem, array in ((name, image), (f"{name}_gt", label)):
                    if ending == ".nii.gz":
                        flat(folder / f"{stem}{ending}", array[0])
                    else:
                        slice_ = sitk.GetImageFromArray(array)
                        slice_.SetSpacing((0.5, 0.3, 1.0))
                        sitk.WriteImage(slice_, str(folder / f"{stem}{ending}"))
    return source


def write_brats(source: Path, *names: str, at: str = "") -> Path:
    """Cases of the older file names, or of the newer ones if a name begins with BraTS-."""
    for seed, name in enumerate(names):
        sign, channels, high = ("-", NEW, 3) if name.startswith("BraTS-") else ("_", OLD, 4)
        folder = source / at / name
        rng = np.random.default_rng(seed)
        for channel in channels:
            image = rng.normal(100, 20, (1, *BRAIN.shape_zyx)).astype(np.float32)
            write_image(folder / f"{name}{sign}{channel}.nii.gz", image, BRAIN)
        label = np.zeros(BRAIN.shape_zyx, np.uint8)
        label[1:5, 1:7, 1:9], label[2:4, 2:5, 2:6], label[2:3, 2:4, 2:4] = 2, 1, high
        write_label(folder / f"{name}{sign}seg.nii.gz", label, BRAIN)
    return source


def converted(kind: str, source: Path, output: Path) -> Converted:
    return convert(Workspace(output.parent / "ws"), kind, source, output)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", [".nii.gz", ".mhd"])
def test_camus_frames_are_cases_and_sequences_are_not(ending: str, tmp_path: Path) -> None:
    source = write_camus(tmp_path / "CAMUS", ending=ending)
    before = contents(source)
    out = tmp_path / "Dataset040_CAMUS"
    done = converted("camus", source, out)
    assert contents(source) == before
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["dataset.json"]
    dataset = read_dataset(out)
    names = [f"patient{n}_{v}_{f}" for n in ("0001", "0002") for v in ("2CH", "4CH") for f in "DS"]
    assert [c.name for c in dataset.cases] == [f"{n[:-1]}E{n[-1]}" for n in names]
    assert (done.cases, done.patients, done.unlabelled, done.rewritten) == (8, 2, (), 0)
    assert {c.patient for c in dataset.cases} == {"patient0001", "patient0002"}
    assert {c.modality for c in dataset.cases} == {"other"}
    assert dataset.labels.foreground == {"endocardium": (1,), "myocardium": (2,), "atrium": (3,)}
    for case in dataset.cases:
        image, label = read_image(case.images), read_label(str(case.label))
        assert image.geometry == label.geometry
        assert image.geometry.shape_zyx == (1, 24, 20)
        assert image.geometry.spacing_mm[1:] == pytest.approx((0.3, 0.5))
        # The middle of the ventricle, its wall, the atrium.
        assert [label.array[0, 0, y, 10] for y in (10, 5, 16)] == [1, 2, 3]


def test_a_patient_is_on_one_side_of_every_fold(tmp_path: Path) -> None:
    camus = write_camus(tmp_path / "CAMUS", range(1, 8))
    visits = [f"BraTS-GLI-{n:05d}-{time:03d}" for n in range(6) for time in range(2)]
    brats = write_brats(tmp_path / "BraTS", *visits)
    for kind, source, patients in (("camus", camus, 7), ("brats", brats, 6)):
        converted(kind, source, tmp_path / f"{kind}_out")
        dataset = read_dataset(tmp_path / f"{kind}_out")
        patient = {case.name: case.patient for case in dataset.cases}
        assert len(set(patient.values())) == patients
        for split in make_folds(dataset.labelled):
            held, learnt = ({patient[n] for n in side} for side in (split.validation, split.train))
            assert not held & learnt


def test_brats_has_four_channels_and_regions_that_painting_gives_back(tmp_path: Path) -> None:
    old, new = "BraTS20_Training_001", "BraTS-GLI-00000-000"
    source = write_brats(tmp_path / "BraTS", old, new)
    write_brats(source, "Brats18_CBICA_AAB_1", at="HGG")
    before = contents(source)
    out = tmp_path / "Dataset041_BraTS"
    done = converted("brats", source, out)
    assert contents(source) == before
    assert (done.cases, done.patients, done.rewritten) == (3, 3, 2)
    dataset = read_dataset(out)
    assert dataset.channel_names == ("T1", "T1ce", "T2", "FLAIR")
    assert {case.modality for case in dataset.cases} == {"MR"}
    ends = {case.name: [Path(i).name.split(".")[0] for i in case.images] for case in dataset.cases}
    assert ends[old] == [f"{old}_{channel}" for channel in OLD]
    assert ends[new] == [f"{new}-{channel}" for channel in NEW]
    regions, order = dataset.labels.foreground, dataset.labels.regions_class_order
    assert regions == {
        "whole tumor": (1, 2, 3),
        "tumor core": (1, 3),
        "enhancing tumor": (3,),
    }
    assert order is not None
    assert painting_problem(regions, order) == ("", "")
    assert painted(regions, order) == {1: 1, 2: 2, 3: 3}
    labels = {case.name: Path(str(case.label)) for case in dataset.cases}
    # The values of the newer files are those of the dataset.
    assert labels[new].is_relative_to(source)
    assert labels[old].is_relative_to(out)
    arrays = [read_label(path).array for path in labels.values()]
    assert all(np.array_equal(array, arrays[0]) for array in arrays)
    assert np.unique(arrays[0]).tolist() == [0, 1, 2, 3]
    assert read_label(labels[old]).geometry == BRAIN


def remove(text: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        (path,) = source.rglob(text)
        path.unlink()

    return change


def relabel(text: str, value: int) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        (path,) = source.rglob(text)
        label = read_label(path)
        array = label.array[0].copy()
        array[0, 0, 0] = value
        path.unlink()
        write_label(path, array, label.geometry)

    return change


def regrid(text: str, **changes: Any) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        (path,) = source.rglob(text)
        image = read_image([path])
        geometry = image.geometry.replace(**changes)
        path.unlink()
        write_image(path, image.array.astype(np.uint8), geometry)

    return change


def damage(text: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        (path,) = source.rglob(text)
        path.write_bytes(path.read_bytes()[:60])

    return change


def interpolate(text: str) -> Callable[[Path], None]:
    """Makes the values of a label map halves, as linear resampling does."""

    def change(source: Path) -> None:
        (path,) = source.rglob(text)
        label = read_label(path)
        path.unlink()
        write_image(path, label.array.astype(np.float32) / 2, label.geometry)

    return change


def copied(name: str, to: str) -> Callable[[Path], None]:
    return lambda source: shutil.copytree(source / name, source / to) and None


def capitals(source: Path) -> None:
    """A second copy of a patient, whose files and folder begin with a capital."""
    folder = source / "Patient0001"
    shutil.copytree(source / "patient0001", folder)
    for path in folder.iterdir():
        path.rename(folder / path.name.capitalize().replace("ch_e", "CH_E"))


CASE = "BraTS20_Training_001"
FRAME_NAME = "patient0002_4CH_ES"


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("brats", remove(f"{CASE}_t1ce*"), [CASE, "T1ce image is missing", f"{CASE}_t1ce.nii.gz"]),
        ("brats", remove("*00000-000-t2f*"), ["BraTS-GLI-00000-000", "FLAIR", "-t2f.nii.gz"]),
        ("brats", relabel(f"{CASE}_seg*", 3), [CASE, "the value 3", "0, 1, 2, 4"]),
        ("brats", relabel("*00000-000-seg*", 4), ["GLI-00000-000", "the value 4", "0, 1, 2, 3"]),
        ("brats", regrid(f"{CASE}_t2.*", spacing_mm=(2.0, 1.0, 1.0)), [CASE, "spacing", "_t2."]),
        ("brats", regrid(f"{CASE}_seg*", origin_xyz=(9.0, 0.0, 0.0)), [CASE, "origin", "_seg."]),
        ("brats", damage(f"{CASE}_seg*"), [f"{CASE}_seg"]),
        ("brats", copied(CASE, f"HGG/{CASE}"), [CASE, "twice", "HGG"]),
        ("brats", interpolate(f"{CASE}_seg*"), ["Nothing was written", f"{CASE}: ", "0.5"]),
        ("camus", interpolate(f"{FRAME_NAME}_gt*"), ["Nothing was written", f"{FRAME_NAME}: "]),
        ("camus", copied("patient0001", "extra/patient0001"), ["patient0001", "twice", "extra"]),
        ("camus", copied("patient0001", "Again"), ["patient0001", "twice", "Again"]),
        ("camus", capitals, ["Patient0001", "twice", "/patient0001/"]),
        ("camus", remove(f"{FRAME_NAME}.nii.gz"), [FRAME_NAME, "label map without an image"]),
        ("camus", relabel(f"{FRAME_NAME}_gt*", 4), [FRAME_NAME, "the value 4", "0, 1, 2, 3"]),
        ("camus", regrid(f"{FRAME_NAME}_gt*", spacing_mm=(1.0, 0.6, 0.5)), [FRAME_NAME, "spacing"]),
    ],
)
def test_what_does_not_fit_is_refused_by_its_case_and_nothing_is_written(
    kind: str, change: Callable[[Path], None], words: list[str], tmp_path: Path
) -> None:
    source = tmp_path / "data"
    if kind == "camus":
        write_camus(source)
    else:
        write_brats(source, CASE, "BraTS-GLI-00000-000", "BraTS-GLI-00001-000")
    change(source)
    with pytest.raises(DatasetError) as caught:
        converted(kind, source, tmp_path / "out")
    assert [word for word in words if word not in caught.value.problem] == [], caught.value.problem
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_case_without_a_label_map_is_left_out_and_told(tmp_path: Path) -> None:
    source = write_camus(tmp_path / "CAMUS")
    remove(f"{FRAME_NAME}_gt*")(source)
    done = converted("camus", source, tmp_path / "out")
    assert (done.cases, done.unlabelled) == (7, (FRAME_NAME,))
    names = [case.name for case in read_dataset(tmp_path / "out").cases]
    assert len(names) == 7
    assert FRAME_NAME not in names
    for path in source.rglob("*_gt.nii.gz"):
        path.unlink()
    with pytest.raises(DatasetError, match="none of the 8 cases has a label map") as caught:
        converted("camus", source, tmp_path / "other")
    assert "training" in caught.value.hint


@pytest.mark.parametrize("kind", ["camus", "brats"])
def test_the_wrong_folder_is_refused_with_the_right_one(kind: str, tmp_path: Path) -> None:
    right = tmp_path / "data/training"
    source = write_camus(right) if kind == "camus" else write_brats(right, CASE)
    inner = next(source.iterdir())
    with pytest.raises(DatasetError, match="there is no case of") as caught:
        converted(kind, inner, tmp_path / "out")
    assert f"Did you mean {right}?" in caught.value.hint
    (tmp_path / "empty").mkdir()
    other = write_brats(tmp_path / "b", CASE) if kind == "camus" else write_camus(tmp_path / "c")
    for wrong in (tmp_path / "empty", other):
        with pytest.raises(DatasetError, match=r"expected .*/.*nii\.gz"):
            converted(kind, wrong, tmp_path / "out")
    with pytest.raises(DatasetError, match="no such folder"):
        converted(kind, tmp_path / "nothing", tmp_path / "out")


def test_folders_are_cases_in_any_spelling_and_others_are_named(tmp_path: Path) -> None:
    source = write_camus(tmp_path / "CAMUS")
    (source / "patient0001").rename(source / "Patient0001")
    (source / "more").mkdir()
    (source / "patient0002").rename(source / "more/0002")
    (source / "split/old").mkdir(parents=True)
    shutil.copytree(write_brats(tmp_path / "b", CASE) / CASE, source / f"more/{CASE}")
    done = converted("camus", source, tmp_path / "out")
    assert (done.cases, done.patients) == (8, 2)
    assert done.passed_over == (source / "split", source / f"more/{CASE}")
    words = ["convert", "camus", str(source), str(tmp_path / "two"), "-w", str(tmp_path / "ws")]
    shown = " ".join(CliRunner().invoke(app, words).stdout.split())
    assert f"Passed over, since without a case: 2 folders: split, {CASE}." in shown


def test_outputs_that_are_there_or_in_the_source_are_refused(tmp_path: Path) -> None:
    source = write_camus(tmp_path / "CAMUS")
    before = contents(tmp_path)
    with pytest.raises(OptionError, match="lies in the source"):
        converted("camus", source, source / "out")
    with pytest.raises(OptionError, match="exists already"):
        converted("camus", source, source)
    with pytest.raises(WrongValue, match="must be one of camus, brats, ") as caught:
        converted("camu", source, tmp_path / "out")
    assert caught.value.hint == "Did you mean camus?"
    assert contents(tmp_path) == before


def test_the_command_and_the_function_tell_the_same(tmp_path: Path) -> None:
    source = write_brats(tmp_path / "BraTS", CASE, "BraTS-GLI-00000-000")
    remove("*00000-000-seg*")(source)
    words = ["convert", "brats", str(source), str(tmp_path / "one"), "-w", str(tmp_path / "ws")]
    shown = CliRunner().invoke(app, words).stdout
    assert "BraTS: 1 case of 1 patient." in shown
    assert "Written anew: 1 label map." in shown
    assert "BraTS-GLI-00000-000" in shown
    assert f"Next: autoliver plan {tmp_path}/one" in shown
    done = autoliver.convert("brats", source, tmp_path / "two", workspace=tmp_path / "ws")
    told = run("convert", "brats", source, tmp_path / "three", "-w", tmp_path / "ws")
    assert told == {**done.facts, "dataset": str(tmp_path / "three"), "next": told["next"]}
    with pytest.raises(AutoliverError, match="exists already"):
        autoliver.convert("brats", source, tmp_path / "two", workspace=tmp_path / "ws")
