"""Classes told lesion by lesion become class-valued label maps."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from commands import run
from scipy import ndimage
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.datasets.cases import Dataset, read_dataset
from autoliver.datasets.folds import make_folds
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.dicom.codes import Concept, SegmentCodes
from autoliver.io.files import read_label, write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.pipeline.conversion.convert import ConvertRequest, convert
from autoliver.pipeline.conversion.result import Converted
from autoliver.workspace import Workspace

# x points to the patient's right, and y to the front.
TURNED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
GRID = Geometry(
    shape_zyx=(6, 12, 14),
    spacing_mm=(5.0, 1.0, 2.0),
    origin_xyz=(10.0, -20.0, 30.0),
    direction=TURNED,
)
# Lesions by their first voxel (z, y, x), in the order of the array; "b" has none, "c" no label.
LESIONS = {"a": [(1, 2, 2), (1, 2, 8), (3, 7, 3)], "b": [], "d": [(2, 3, 3), (2, 5, 5)]}
TOLD = {"a": {"1": "cyst", "2": "hemangioma", "3": "cyst"}, "d": {"*": "metastasis"}}


def label(case: str, liver: int = 1, lesion: int = 2) -> npt.NDArray[np.uint8]:
    array = np.zeros(GRID.shape_zyx, np.uint8)
    array[1:5, 1:11, 1:13] = liver
    for z, y, x in LESIONS[case]:
        array[z, y : y + 2, x : x + 2] = lesion
    return array


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset001_Told"
    rng = np.random.default_rng(1)
    for name in "abcd":
        image = rng.normal(size=(1, *GRID.shape_zyx)).astype(np.float32)
        write_image(folder / f"imagesTr/{name}_0000.nii.gz", image, GRID)
        if name in LESIONS:
            write_label(folder / f"labelsTr/{name}.nii.gz", label(name), GRID)
    describe(folder, lesion_classes=TOLD)
    return folder


def describe(folder: Path, **changes: Any) -> None:
    raw = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
        "patients": {"a": "P", "b": "P", "d": "Q"},
        "origin": {"d": "pseudo"},
        "sources": {"a": "here"},
    }
    (folder / "dataset.json").write_text(json.dumps(raw | changes))


def table(folder: Path, *lines: str, head: str = "case,lesion,class") -> Path:
    path = folder.parent / "classes.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def converted(source: Path, **options: Any) -> Converted:
    request = ConvertRequest(**options)
    place = source.parent
    return convert(
        Workspace(place / "ws"), "lesion-classes", source, place / "out", request=request
    )


def arrays(dataset: Dataset) -> dict[str, npt.NDArray[Any]]:
    return {case.name: read_label(str(case.label)).array[0] for case in dataset.labelled}


def expected(values: Mapping[str, list[int]]) -> dict[str, npt.NDArray[Any]]:
    found = {}
    for case, classes in values.items():
        found[case] = label(case)
        for (z, y, x), value in zip(LESIONS[case], classes, strict=True):
            found[case][z, y : y + 2, x : x + 2] = value
    return found


def test_classes_of_dataset_json_take_the_place_of_the_lesions(source: Path) -> None:
    codes = {name: {"type": ["1", "99LAB", name]} for name in ("liver", "tumour")}
    describe(source, lesion_classes=TOLD, codes=codes)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    done = converted(source)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    dataset = read_dataset(source.parent / "out")
    assert dataset.labels.foreground == {
        **{"liver": (1,), "cyst": (2,), "hemangioma": (3,), "metastasis": (4,)}
    }
    assert dataset.lesion_class_names == ("cyst", "hemangioma", "metastasis")
    assert dataset.codes == {"liver": SegmentCodes(type=Concept("1", "99LAB", "liver"))}
    # Lesions that touch at a corner are one lesion: those of d are.
    wanted = expected({"a": [2, 3, 2], "b": [], "d": [4, 4]})
    for case, array in arrays(dataset).items():
        assert np.array_equal(array, wanted[case]), case
        assert read_label(str(source / f"labelsTr/{case}.nii.gz")).geometry == GRID
    assert done.lesions == {"cyst": 2, "hemangioma": 1, "metastasis": 1}
    assert (done.cases, done.patients, done.unlabelled, done.rewritten) == (3, 2, ("c",), 2)
    facts = {case.name: (case.patient, case.origin, case.source) for case in dataset.cases}
    assert facts == {"a": ("P", "real", "here"), "b": ("P", "real", ""), "d": ("Q", "pseudo", "")}
    assert {case.modality for case in dataset.cases} == {"CT"}
    assert dataset.cases[1].label == str(source / "labelsTr/b.nii.gz")


SPREADSHEETS = {
    "commas": b"case,lesion,class\na,1,cyst\na,2,HCC\na,3,cyst\nd,*,HCC\n",
    "semicolons": b"Case;Lesion;Class\r\na;1;cyst\r\na;2;HCC\r\na;3;cyst\r\nd;;HCC\r\n",
    "tabs in UTF-16": "case\tlesion\tclass\na\t1\tcyst\na\t2\tHCC\na\t3\tcyst\nd\t1\tHCC".encode(
        "utf-16"
    ),
    "mark": "case,lesion,class\na,1,cyst\na,2,HCC\na,3,cyst\nd,1,HCC\n".encode("utf-8-sig"),
    "other columns": (
        b'note,class,case,lesion\n"x,\ny",cyst,a,1\n,HCC,a,2.0\n,,,\n,cyst,a, 3 \n,HCC,d,1\n'
    ),
}


@pytest.mark.parametrize("content", SPREADSHEETS.values(), ids=SPREADSHEETS)
def test_tables_are_read_as_spreadsheets_save_them(
    content: bytes, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = source.parent / "classes.csv"
    path.write_bytes(content)
    converted(source, classes=path)
    wanted = expected({"a": [3, 2, 3], "b": [], "d": [2, 2]})  # HCC is before cyst
    for case, array in arrays(read_dataset(source.parent / "out")).items():
        assert np.array_equal(array, wanted[case]), case
    assert ["is not used beside" in message for message in caplog.messages] == [True]


def test_a_template_tells_lesions_by_number_and_place(source: Path) -> None:
    file = source.parent / "fill in.csv"
    done = run("convert", "lesion-classes", source, "--template", file)
    assert (done["lesions"], done["cases"]) == (4, 2)
    assert f"lesion-classes {source} OUT --classes '{file}'" in str(done["next"])
    with file.open() as text:
        rows = list(csv.DictReader(text))
    assert [(row["case"], row["lesion"], row["class"]) for row in rows] == [
        *(("a", "1", "cyst"), ("a", "2", "hemangioma"), ("a", "3", "cyst")),
        ("d", "1", "metastasis"),
    ]
    assert float(rows[0]["volume_ml"]) == pytest.approx(4 * 10 / 1000)
    for row in rows:
        numbers, _ = ndimage.label(label(row["case"]) == 2, structure=np.ones((3, 3, 3)))
        z, y, x = np.argwhere(numbers == int(row["lesion"])).mean(0)
        place = (10.0 - 2.0 * x, -20.0 - 1.0 * y, 30.0 + 5.0 * z)
        assert [float(row[f"centroid_{axis}_lps_mm"]) for axis in "xyz"] == pytest.approx(
            place, abs=0.06
        )
    with pytest.raises(OptionError, match="exists already"):
        run("convert", "lesion-classes", source, "--template", file)
    # As it was written, it is read again.
    again = converted(source, classes=file)
    assert again.lesions == {"cyst": 2, "hemangioma": 1, "metastasis": 1}


def test_names_that_a_spreadsheet_would_run_are_text_and_read_again(source: Path) -> None:
    for part in ("imagesTr/a_0000", "labelsTr/a"):
        old = source / f"{part}.nii.gz"
        old.rename(old.with_name(f"=1+{old.name}"))
    describe(source, patients={}, origin={}, sources={})
    file = source.parent / "t.csv"
    run("convert", "lesion-classes", source, "--template", file)
    text = file.read_text()
    assert "\n'=1+a,1,," in text
    file.write_text(text.replace(",,", ",@cyst,"))
    assert converted(source, classes=file).lesions == {"@cyst": 4}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a,1,cyst", "a,3,cyst", "d,1,cyst"], ["a: lesion 2 without a class", "3 lesions"]),
        (["a,*,cyst"], ["d: lesion 1 without a class", "1 lesion"]),
        (["a,*,cyst", "d,1,cyst", "d,2,HCC"], ["d: lesion 2 is HCC", "line 4", "has 1 lesion"]),
        (["a,*,cyst", "d,1,cyst", "b,1,HCC"], ["b: lesion 1 is HCC", "has 0 lesions"]),
        (["a,*,cyst", "d,1,cyst", "b,*,HCC"], ["b: every lesion is HCC", "has 0 lesions"]),
        (["a,1,cyst", "a,1,cyst"], ["line 3", "a, lesion 1 is cyst", "already", "line 2"]),
        (["a,1,cyst", "a,1,HCC"], ["a, lesion 1 is HCC, but a, lesion 1 is cyst", "one class"]),
        (["a,1,cyst", "a,*,HCC"], ["a, every lesion is HCC, but a, lesion 1 is cyst"]),
        (["a,*,cyst", "a,2,HCC"], ["a, lesion 2 is HCC, but a, every lesion is cyst"]),
        (["a,1,"], ["line 2", "a, lesion 1: the class is missing"]),
        (["a,1, "], ["line 2", "a, lesion 1: the class is missing"]),
        ([",1,cyst"], ["line 2", "the case is missing"]),
        (["a,1"], ["line 2", "2 cells"]),
        (["a,x,cyst"], ["line 2: a", "'x'", "expected 1, 2, ... or *"]),
        (["a,0,cyst"], ["line 2: a", "'0'"]),
        (["a,1.5,cyst"], ["line 2: a", "'1.5'"]),
        (["c,1,cyst"], ["line 2", "no case c with a label map"]),
        (["e,1,cyst"], ["line 2", "no case e"]),
        (["a,1,Liver"], ["line 2", "a, lesion 1", "'Liver'", "background, liver, tumour"]),
        (["a,1,background"], ["'background'"]),
        (["a,1,ignore"], ["'ignore'"]),
        (["a,1,?"], ["'?'", "no name"]),
        (["a,1,cyst", "a,2,Cyst"], ["a, lesion 1 is 'cyst'", "lesion 2 is 'Cyst'", "spellings"]),
        (["a,1,met a", "a,2,met_a"], ["'met a'", "'met_a'", "spellings"]),
        (["a,1,cyst", "a,2,cysts"], ["'cyst'", "'cysts'", "line 3", "spellings"]),
        (['a,1,"cyst', "a,2,cyst"], ["line 2", "unexpected end of data"]),
        (['a,1,"cy\nst"', "a,2,cyst"], ["line 2: a, lesion 1", r"'cy\nst'", "line breaks"]),
        (['a,1,"cyst, large"'], ["line 2", "'cyst, large'", "a comma"]),
        (["a,1,hemangioma", "a,2,haemangioma"], ["'hemangioma'", "'haemangioma'", "line 3"]),
    ],
    ids=" ".join,
)
def test_classes_and_lesions_that_do_not_fit_are_refused(
    lines: list[str], words: list[str], source: Path
) -> None:
    path = table(source, *lines)
    with pytest.raises(DatasetError) as caught:
        converted(source, classes=path)
    assert [word for word in words if word not in caught.value.problem] == [], caught.value.problem
    assert caught.value.hint
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["no column case", "nothing"]),
        (b"case,class\na,cyst\n", ["no column lesion", "case, class"]),
        (b"case,lesion,class,Class\na,1,cyst,HCC\n", ["column class is there 2 times"]),
        ("case,lesion,class\na,1,zyst\nd,1,h\xe4\n".encode("latin-1"), ["line 3", "not UTF-8"]),
        (None, ["classes.csv", "no such file"]),
    ],
)
def test_files_that_are_no_table_are_refused(
    content: bytes | None, words: list[str], source: Path
) -> None:
    path = source.parent / "classes.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AutoliverError) as caught:
        converted(source, classes=path)
    assert [word for word in words if word not in caught.value.problem] == [], caught.value.problem
    assert caught.value.hint


def test_a_number_without_its_zeros_is_taken_for_the_case_that_was_meant(source: Path) -> None:
    for old in (source / "imagesTr/a_0000.nii.gz", source / "labelsTr/a.nii.gz"):
        old.rename(old.with_name(f"007{old.name[1:]}"))
    describe(source, patients={}, origin={}, sources={})
    with pytest.raises(DatasetError, match="no case 7") as caught:
        converted(source, classes=table(source, "7,1,cyst"))
    assert caught.value.hint == "Did you mean 007?"


def test_listed_names_are_the_classes_and_their_order(source: Path) -> None:
    names = ["metastasis", "Hemangioma", "haemangioma", "cyst"]
    describe(source, lesion_class_names=names)
    path = table(source, "a,*,cyst", "d,*,Cyst")
    with pytest.raises(DatasetError, match="d, every lesion: there is no class 'Cyst'") as caught:
        converted(source, classes=path)
    assert caught.value.hint == "Did you mean cyst?"
    done = converted(source, classes=table(source, "a,*,cyst", "d,*,haemangioma"))
    assert done.lesions == {"metastasis": 0, "Hemangioma": 0, "haemangioma": 1, "cyst": 3}
    assert done.labels == {"background": 0, "liver": 1} | {n: v for v, n in enumerate(names, 2)}


def test_regions_around_lesions_ignored_voxels_and_states_are_kept(source: Path) -> None:
    array = label("a")
    array[5, 0, 0] = 3
    write_label(source / "labelsTr/a.nii.gz", array, GRID)
    describe(
        source,
        labels={"background": 0, "liver": [1, 2], "tumour": 2, "ignore": 3},
        regions_class_order=[1, 2],
        annotated={"b": {"tumour": "absent", "liver": "pseudo"}},
        lesion_classes=TOLD,
    )
    (source / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    converted(source)
    out = source.parent / "out"
    dataset = read_dataset(out)
    assert dataset.labels.foreground == {
        "liver": (1, 2, 3, 4),
        **{"cyst": (2,), "hemangioma": (3,), "metastasis": (4,)},
    }
    assert dataset.labels.ignore == 5
    held = arrays(dataset)["a"]
    assert held[5, 0, 0] == 5
    assert (held == 3).sum() == 4
    assert dataset.cases[1].annotated == {
        **dict.fromkeys(["cyst", "hemangioma", "metastasis"], "absent"),
        "liver": "pseudo",
    }
    assert (out / "splits_final.json").read_bytes() == (source / "splits_final.json").read_bytes()
    assert autoliver.verify(out, workspace=source.parent / "ws").errors == ()


def test_the_label_of_the_lesions_is_found_or_named(source: Path) -> None:
    describe(source, labels={"background": 0, "liver": 1, "nodules": 2}, lesion_classes=TOLD)
    with pytest.raises(DatasetError, match="no label named like lesions among liver, nodules"):
        converted(source)
    assert converted(source, label="nodules").lesions["cyst"] == 2
    describe(source, labels={"background": 0, "cyst": 1, "HCC": 2}, lesion_classes=TOLD)
    with pytest.raises(DatasetError, match="have classes of lesions already: cyst, HCC"):
        convert(Workspace(source.parent / "ws"), "lesion-classes", source, source.parent / "o")
    request = ConvertRequest(label="Hcc2")
    with pytest.raises(OptionError, match="--label is 'Hcc2'") as caught:
        convert(
            *(Workspace(source.parent / "ws"), "lesion-classes", source, source.parent / "o"),
            request=request,
        )
    assert caught.value.hint == "Did you mean HCC?"


def test_options_of_one_kind_are_refused_by_others(source: Path) -> None:
    place = Workspace(source.parent / "ws"), source, source.parent / "out"
    for kind, options, words in [
        ("lesion-classes", {"rater": 1}, "--rater is for published data"),
        ("atlas", {"label": "tumour"}, "--label is for lesion-classes"),
        ("atlas", {"classes": source}, "--classes is for lesion-classes"),
    ]:
        with pytest.raises(OptionError, match=words):
            convert(place[0], kind, *place[1:], request=ConvertRequest(**options))
    describe(source)
    with pytest.raises(DatasetError, match="no lesion_classes, and no table") as caught:
        converted(source)
    assert "--template" in caught.value.hint
    for words in (
        ("convert", "lesion-classes", str(source)),
        ("convert", "atlas", str(source), "--template", "t.csv"),
        ("convert", "lesion-classes", str(source), "out", "--template", "t.csv"),
    ):
        assert CliRunner().invoke(app, words).exit_code == 2


def test_the_command_shows_what_the_function_returns(source: Path) -> None:
    path = table(source, "a,*,cyst", "d,*,metastasis")
    words = ["convert", "lesion-classes", source, source.parent / "x", "--classes", path]
    shown = CliRunner().invoke(app, [*map(str, words)])
    assert "Classes: 3 lesions cyst, 1 lesion metastasis." in shown.stdout, shown.output
    done = autoliver.convert(
        "lesion-classes", source, source.parent / "y", classes=path, label="tumour"
    )
    assert done.facts["lesions"] == {"cyst": 3, "metastasis": 1}


def test_folds_of_a_planned_dataset_spread_its_classes(tmp_path: Path) -> None:
    folder, workspace = tmp_path / "Dataset002_Classes", tmp_path / "ws"
    grid = Geometry(shape_zyx=(4, 16, 16), spacing_mm=(5.0, 2.0, 2.0))
    rng = np.random.default_rng(2)
    held = {f"case_{n:02d}": n // 5 for n in range(20)}  # none, and three classes
    for name, value in held.items():
        array = np.zeros(grid.shape_zyx, np.uint8)
        array[:, 2:14, 2:14] = 1
        if value:
            array[1:3, 5:9, 5:9] = 1 + value
        image = (60 * array + rng.normal(size=array.shape)).astype(np.float32)
        write_image(folder / f"imagesTr/{name}_0000.nii.gz", image[None], grid)
        write_label(folder / f"labelsTr/{name}.nii.gz", array, grid)
    raw = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "cyst": 2, "HCC": 3, "metastasis": 4},
        "numTraining": 20,
        "file_ending": ".nii.gz",
    }

    def folds() -> list[list[int]]:
        autoliver.plan(folder, preset="tiny", workspace=workspace)
        saved = json.loads((workspace / folder.name / "folds.json").read_text())
        return [sorted(held[name] for name in split["validation"]) for split in saved["splits"]]

    (folder / "dataset.json").write_text(json.dumps(raw))
    spread = folds()
    assert spread == [[0, 1, 2, 3]] * 5
    # A fingerprint of a version that did not look at classes is made anew.
    path = workspace / folder.name / "fingerprint.json"
    old = json.loads(path.read_text())
    for case in old["cases"]:
        del case["label_values"]
    path.write_text(json.dumps(old))
    assert folds() == spread
    # An empty list of classes asks for the folds of nnU-Net.
    (folder / "dataset.json").write_text(json.dumps(raw | {"lesion_class_names": []}))
    plain = make_folds(read_dataset(folder).labelled)
    assert folds() == [sorted(held[name] for name in split.validation) for split in plain]
    assert folds() != spread


@pytest.mark.parametrize("value", [7, 60000])
def test_a_value_that_no_label_has_is_refused(source: Path, tmp_path: Path, value: int) -> None:
    path = source / "labelsTr/a.nii.gz"
    array = read_label(path).array[0].astype(np.uint16)
    array[0, 0, 0] = value
    write_label(path, array, GRID)
    with pytest.raises(DatasetError, match=rf"a\.nii\.gz.* {value}, expected values of labels: 0"):
        run("convert", "lesion-classes", source, "--template", tmp_path / "t.csv")
    with pytest.raises(DatasetError, match=rf"a\.nii\.gz.* {value}, expected values of labels: 0"):
        run("convert", "lesion-classes", source, tmp_path / "OUT", "-w", tmp_path / "ws")
    assert not (tmp_path / "t.csv").exists()
    assert not (tmp_path / "OUT").exists()
