"""Published data of livers becomes datasets: LLD-MMRI, MCT-LTDiag, ATLAS, LiverHccSeg, CirrMRI."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import run
from liver_trees import (
    GRID,
    LLD_NAMES,
    PHASES,
    box,
    image,
    write_atlas,
    write_cirrmri,
    write_hccseg,
    write_lld,
    write_mct,
)

import autoliver
from autoliver.datasets.cases import Dataset, read_dataset
from autoliver.datasets.folds import make_folds
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.files import read_label, write_label
from autoliver.pipeline.conversion.convert import ConvertRequest, convert
from autoliver.pipeline.conversion.result import Converted
from autoliver.workspace import Workspace

WRITERS: dict[str, Callable[[Path], Path]] = {
    "lld-mmri": write_lld,
    "mct-ltdiag": write_mct,
    "atlas": write_atlas,
    "liverhccseg": write_hccseg,
    "cirrmri": write_cirrmri,
}
CLASSES = ["hemangioma", "ICC", "abscess", "metastasis", "cyst", "FNH", "HCC"]


def converted(kind: str, source: Path, rater: int | None = None) -> tuple[Converted, Dataset]:
    out = source.parent / "out"
    request = ConvertRequest(rater=rater)
    done = convert(Workspace(source.parent / "ws"), kind, source, out, request=request)
    return done, read_dataset(out)


def values(dataset: Dataset) -> dict[str, list[int]]:
    return {
        case.name: np.unique(read_label(str(case.label)).array).tolist()
        for case in dataset.labelled
    }


@pytest.mark.parametrize("kind", WRITERS)
def test_a_tree_becomes_a_dataset_and_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    source = WRITERS[kind](tmp_path / "data")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    done, dataset = converted(kind, source)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    assert len(dataset.cases) == len(dataset.labelled) == done.cases
    assert len({case.patient for case in dataset.cases}) == done.patients
    assert {case.modality for case in dataset.cases} == {"CT" if kind == "mct-ltdiag" else "MR"}
    for case in dataset.cases:
        assert Path(case.images[0]).is_relative_to(source)
        assert read_label(str(case.label)).geometry == GRID
    patients = {case.name: case.patient for case in dataset.cases}
    for split in make_folds(dataset.labelled):
        held, learnt = ({patients[n] for n in side} for side in (split.validation, split.train))
        assert not held & learnt
    assert autoliver.verify(tmp_path / "out", workspace=tmp_path / "ws").errors == ()


@pytest.mark.parametrize("names", [LLD_NAMES, None], ids=["named", "assumed"])
@pytest.mark.parametrize("as_text", [False, True])
def test_lld_phases_have_the_class_of_their_patient(
    names: dict[str, int] | None, tmp_path: Path, *, as_text: bool
) -> None:
    given = {f"MR{n}": str(n) if as_text else n for n in range(7)}
    done, dataset = converted("lld-mmri", write_lld(tmp_path / "data", given, names=names))
    assert (done.cases, done.patients, done.passed_over) == (28, 7, ())
    assert list(dataset.labels.foreground) == CLASSES
    held = values(dataset)
    for number in range(7):
        for phase in PHASES:
            assert held[f"MR{number}_1_{phase}"] == [0, number + 1]
    assert json.loads((tmp_path / "out/dataset.json").read_text())["lesion_class_names"] == CLASSES


def test_lld_takes_names_of_classes_other_numbers_and_other_dashes(tmp_path: Path) -> None:
    given = {"MR-1": "Hepatic cysts", "MR2": "HCC", "MR3": 0, "MR4": "liver metastases"}
    source = write_lld(tmp_path / "data", given, names={"Hepatic_cyst": 0}, file=FILE)
    content = (source / FILE).read_text()
    (source / FILE).write_text(content.replace("MR-1", "MR 1").replace("MR2", "mr-2"))
    held = values(converted("lld-mmri", source)[1])
    found = {name.partition("_")[0]: CLASSES[v[1] - 1] for name, v in held.items()}
    assert found == {"MR-1": "cyst", "MR2": "HCC", "MR3": "cyst", "MR4": "metastasis"}


FILE = "LLD_MMRI_Annotation.json"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"MR1": 9}, ["MR1", "category 9", "0 (", "6 ("]),
        ({"MR1": "lump"}, ["MR1", "'lump'"]),
        ({"MR1": "cyst or metastasis"}, ["MR1", "'cyst or metastasis'"]),
        ({"MR1": None}, [FILE, "category"]),
    ],
)
def test_lld_classes_that_are_not_understood_are_refused(
    given: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    source = write_lld(tmp_path / "data", given, file=FILE)
    with pytest.raises(DatasetError) as caught:
        converted("lld-mmri", source)
    assert [word for word in words if word not in caught.value.problem] == [], caught.value.problem
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def edited(old: str, new: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        (path,) = source.glob("*.json")
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def gone(pattern: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        for path in list(source.rglob(pattern)):
            path.unlink()

    return change


def relabelled(name: str, value: int) -> Callable[[Path], None]:
    return lambda source: box(source / name, at=3, value=value)


def moved(name: str, to: str) -> Callable[[Path], None]:
    return lambda source: (source / name).rename(source / to) and None


def smaller(name: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        geometry = GRID.replace(shape_zyx=(6, 12, 12))
        write_label(source / name, np.zeros(geometry.shape_zyx, np.uint8), geometry)

    return change


TCGA = "TCGA-BC-4073/1999-12-30"


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("lld-mmri", edited('"MR1002"', '"MR7"'), ["MR1002_1_", "says no class", "MR1002"]),
        ("lld-mmri", edited('"category": 4', '"category": 3'), ["MR1001", "cyst, metastasis"]),
        ("lld-mmri", edited("Annotation_info", "Annotations"), ["Annotation_info"]),
        ("lld-mmri", edited("{", "{{"), ["JSON"]),
        ("lld-mmri", gone("*.json"), ["classes of the lesions are missing", "LLD_MMRI_Annot"]),
        ("lld-mmri", gone("MR1002_1_T2WI_0000*"), ["MR1002_1_T2WI", "without an image"]),
        ("lld-mmri", relabelled("labels/MR1001_1_C+A.nii.gz", 2), ["MR1001_1_C+A", "value 2"]),
        ("mct-ltdiag", moved("volume/HH", "volume/HG"), ["HH_004", "without an image"]),
        ("mct-ltdiag", gone("volume/ICC/001/PVP*"), ["ICC_001", "PVP image is missing", "DP.nii"]),
        ("mct-ltdiag", relabelled("mask/HCC/000/mask_pvp.nii.gz", 7), ["HCC_000", "value 7"]),
        ("atlas", gone("im1.nii.gz"), ["im1", "lb1.nii.gz", "without an image"]),
        ("atlas", relabelled("train/labelsTr/lb1.nii.gz", 3), ["im1", "value 3", "0, 1, 2"]),
        ("liverhccseg", gone("TCGA-BC*/*/art*"), ["TCGA-BC-4073_1999-12-30", "art.nii.gz"]),
        ("liverhccseg", gone("TCGA-BC*/*/rater1_liver*"), ["TCGA-BC-4073", "rater1_tumor1", "no"]),
        ("liverhccseg", smaller(f"{TCGA}/rater1_tumor2.nii.gz"), ["TCGA-BC-4073", "size"]),
        ("cirrmri", gone("Cirrhosis_T1_3D/*_images/3*"), ["3_T1", "without an image"]),
        ("cirrmri", relabelled("Cirrhosis_T2_3D/train_masks/1.nii.gz", 2), ["1_T2", "value 2"]),
    ],
)
def test_what_does_not_fit_is_refused_by_its_case(
    kind: str, change: Callable[[Path], None], words: list[str], tmp_path: Path
) -> None:
    source = WRITERS[kind](tmp_path / "data")
    change(source)
    with pytest.raises(DatasetError) as caught:
        converted(kind, source)
    assert [word for word in words if word not in caught.value.problem] == [], caught.value.problem
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_mct_labels_the_phase_of_the_mask_alone(tmp_path: Path) -> None:
    source = write_mct(tmp_path / "data")
    gone("mask/CRLM/003/*")(source)
    done, dataset = converted("mct-ltdiag", source)
    assert done.unlabelled == ("CRLM_003",)
    assert {Path(image).name for case in dataset.cases for image in case.images} == {"PVP.nii.gz"}
    assert values(dataset) == {"HCC_000": [0, 1], "ICC_001": [0, 2], "BCLM_002": [0, 3]} | {
        "HH_004": [0, 5]
    }
    assert dataset.labels.foreground["hemangioma"] == (5,)
    (source / "volume/HH").rename(source / "volume/Cyst")
    (source / "mask/HH").rename(source / "mask/Cyst")
    with pytest.raises(DatasetError, match="Cyst is no known class of tumours; expected one of"):
        convert(Workspace(tmp_path / "ws"), "mct-ltdiag", source, tmp_path / "other")


@pytest.mark.parametrize(("rater", "tumours"), [(None, (2, 6)), (1, (2, 6)), (2, (3,))])
def test_masks_of_one_rater_are_painted_over_its_liver(
    rater: int | None, tumours: tuple[int, ...], tmp_path: Path
) -> None:
    dataset = converted("liverhccseg", write_hccseg(tmp_path / "data"), rater)[1]
    expected = np.zeros(GRID.shape_zyx, np.uint8)
    expected[1:3, 1:9, 1:9] = 1
    with_tumours = expected.copy()
    for at in tumours:
        with_tumours[1:3, at : at + 2, at : at + 2] = 2
    first, second = (read_label(str(case.label)).array[0] for case in dataset.cases)
    assert np.array_equal(first, with_tumours)
    assert np.array_equal(second, expected)
    assert {Path(case.images[0]).name for case in dataset.cases} == {"art.nii.gz"}


def test_other_raters_and_raters_of_other_data_are_refused(tmp_path: Path) -> None:
    source = write_hccseg(tmp_path / "data")
    with pytest.raises(OptionError, match="--rater is 3; it must be at most 2"):
        converted("liverhccseg", source, 3)
    with pytest.raises(OptionError, match="--rater is for data with several raters: liverhccseg"):
        converted("atlas", write_atlas(tmp_path / "atlas"), 1)
    told = run("convert", "liverhccseg", source, tmp_path / "a", "--rater", 2)
    done = autoliver.convert("liverhccseg", source, tmp_path / "b", rater=2)
    assert told["labels"] == done.facts["labels"]
    arrays = [
        read_label(str(read_dataset(tmp_path / name).cases[0].label)).array for name in ("a", "b")
    ]
    assert np.array_equal(*arrays)
    with pytest.raises(AutoliverError, match="rater is 'two'"):
        autoliver.convert("liverhccseg", source, tmp_path / "c", rater="two")


def test_sequences_of_a_cirrhotic_patient_belong_together(tmp_path: Path) -> None:
    source = write_cirrmri(tmp_path / "data")
    image(source / "Cirrhosis_T1_3D/train_images/7.nii.gz")
    done, dataset = converted("cirrmri", source)
    assert (done.cases, done.patients, done.unlabelled) == (12, 6, ("7_T1",))
    assert [folder.name for folder in done.passed_over] == ["Cirrhosis_T2_2D"]
    assert {case.name: case.patient for case in dataset.cases} == {
        f"{n}_T{sequence}": str(n) for n in range(1, 7) for sequence in (1, 2)
    }


@pytest.mark.parametrize(
    ("kind", "wrong", "right"),
    [
        ("lld-mmri", "images", "."),
        ("mct-ltdiag", "volume", "."),
        ("mct-ltdiag", "..", "."),
        ("atlas", "train/imagesTr", "train"),
        ("liverhccseg", TCGA, "TCGA-BC-4073"),
        ("cirrmri", "Cirrhosis_T2_2D", "."),
    ],
)
def test_the_wrong_folder_is_refused_with_the_right_one(
    kind: str, wrong: str, right: str, tmp_path: Path
) -> None:
    source = WRITERS[kind](tmp_path / "all/data")
    with pytest.raises(DatasetError, match="there is no case of") as caught:
        convert(Workspace(tmp_path), kind, (source / wrong).resolve(), tmp_path / "out")
    assert caught.value.hint == f"Did you mean {(source / right).resolve()}?"
