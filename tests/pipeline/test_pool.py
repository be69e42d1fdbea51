"""Several datasets as one: labels, files, duplicates, and members that change."""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import run

from autoliver.datasets.cases import read_dataset
from autoliver.datasets.contents import FileIndex
from autoliver.datasets.pool import Pool
from autoliver.errors import AutoliverError, DatasetError, OptionError, WrongValue
from autoliver.evaluation.results import Scores
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.io.volume import Geometry
from autoliver.pipeline.pooling.pool import PoolRequest, pool
from autoliver.workspace import Workspace

GRID = Geometry(shape_zyx=(6, 8, 8), spacing_mm=(3.0, 2.0, 2.0))
LITS = {"background": 0, "liver": 1, "tumour": 2}
CHAOS = {"background": 0, "liver": 63, "spleen": 252}
MSD = {"background": 0, "Tumor": 1, "liver": 2}


def make(
    place: Path,
    name: str,
    labels: dict[str, int | list[int]],
    *,
    channel: str = "CT",
    cases: int = 2,
    seed: int = 0,
    **keys: object,
) -> Path:
    """Writes a dataset whose label maps hold each value in a block of its own."""
    folder = place / name
    values = sorted({v for group in labels.values() for v in np.atleast_1d(group).tolist()} - {0})
    for number in range(cases):
        rng = np.random.default_rng([seed, number])
        image = rng.normal(0, 100, (1, *GRID.shape_zyx)).astype("f4") + (-1000 * (channel == "CT"))
        write_image(folder / f"imagesTr/c{number}_0000.nii.gz", image, GRID)
        array = np.zeros(GRID.shape_zyx, np.uint16)
        for row, value in enumerate(values):
            array[1:4, row * 2 : row * 2 + 2, 2:6] = value
        write_label(folder / f"labelsTr/c{number}.nii.gz", array, GRID)
    description = {"channel_names": {"0": channel}, "labels": labels, "numTraining": cases,
                   "file_ending": ".nii.gz", **keys}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make(tmp_path, "Dataset001_LiTS", LITS, seed=1)
    make(tmp_path, "Dataset002_CHAOS", CHAOS, channel="MRI", seed=2)
    make(tmp_path, "Dataset003_MSD", MSD, seed=3)
    return tmp_path


def made(place: Path, *adds: str, **options: object) -> Path:
    """The pool OUT of datasets of the place."""
    texts = tuple(str(place / add) for add in adds)
    pool(Workspace(place / "ws"), place / "OUT", PoolRequest(add=texts, **options))
    return place / "OUT"


def values_of(folder: Path, case: str) -> list[int]:
    """The values of a case's label map, in the order of its blocks."""
    dataset = read_dataset(folder)
    label = next(each.label for each in dataset.cases if each.name == case)
    array = read_label(str(label)).array[0]
    return [int(array[2, row, 3]) for row in (0, 2, 4)]


def test_the_pool_refers_to_images_and_keeps_what_is_known(place: Path) -> None:
    make(place, "Dataset004_Own", LITS, seed=4, patients={"c0": "p", "c1": "p"})
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    out = made(place, "Dataset004_Own", "Dataset002_CHAOS:liver=real,spleen=drop,tumour=absent")
    assert {p: p.read_bytes() for p in before} == before
    dataset = read_dataset(out)
    assert [case.name for case in dataset.cases] == ["CHAOS_c0", "CHAOS_c1", "Own_c0", "Own_c1"]
    assert [case.modality for case in dataset.cases] == ["MR", "MR", "CT", "CT"]
    assert [case.patient for case in dataset.cases] == ["CHAOS/c0", "CHAOS/c1", "Own/p", "Own/p"]
    assert {Path(i).parent.parent.name for c in dataset.cases for i in c.images} == {
        "Dataset004_Own",
        "Dataset002_CHAOS",
    }
    assert dataset.cases[0].annotated == {"tumour": "absent"}
    assert dataset.cases[2].annotated == {}
    # Nothing is missing, so labels exclude one another.
    assert dataset.labels.values == {"background": (0,), "liver": (1,), "tumour": (2,)}
    # Label maps are copied only where values differ.
    assert Path(str(dataset.cases[2].label)).parent.parent.name == "Dataset004_Own"
    assert Path(str(dataset.cases[0].label)).is_relative_to(out)
    assert values_of(out, "CHAOS_c0") == [1, 0, 0]
    images = [read_image([Path(i) for i in c.images]).geometry for c in dataset.cases]
    labels = [read_label(str(c.label)).geometry for c in dataset.cases]
    assert images == labels


@pytest.mark.parametrize(
    ("adds", "labels", "values"),
    [
        # The label of the dataset whose numbers differ, and whose spelling does.
        (
            ("Dataset001_LiTS", "Dataset003_MSD"),
            {"liver": (1,), "tumour": (2,)},
            {"LiTS_c0": [1, 2, 0], "MSD_c0": [2, 1, 0]},
        ),
        # Both count as liver.
        (
            ("Dataset001_LiTS:liver+tumour=real", "Dataset002_CHAOS:liver,spleen=drop"),
            {"liver": (1,)},
            {"LiTS_c0": [1, 1, 0], "CHAOS_c0": [1, 0, 0]},
        ),
        # A label that is not annotated everywhere: the liver includes its tumours.
        (
            ("Dataset001_LiTS", "Dataset002_CHAOS:liver=real,spleen=drop,tumour=none"),
            {"liver": (1, 2), "tumour": (2,)},
            {"LiTS_c0": [1, 2, 0], "CHAOS_c0": [1, 0, 0]},
        ),
        # Labels that a dataset lacks and that nothing is said about are not annotated.
        (
            ("Dataset001_LiTS", "Dataset002_CHAOS"),
            {"liver": (1, 2), "tumour": (2,), "spleen": (3,)},
            {"LiTS_c0": [1, 2, 0], "CHAOS_c0": [1, 3, 0]},
        ),
        (
            ("Dataset001_LiTS:liver=pseudo,tumour=real", "Dataset003_MSD"),
            {"liver": (1, 2), "tumour": (2,)},
            {"LiTS_c0": [1, 2, 0], "MSD_c0": [2, 1, 0]},
        ),
    ],
)
def test_labels_by_name(
    adds: tuple[str, ...],
    labels: dict[str, tuple[int, ...]],
    values: dict[str, list[int]],
    place: Path,
) -> None:
    out = made(place, *adds)
    assert read_dataset(out).labels.foreground == labels
    assert {case: values_of(out, case) for case in values} == values


def test_states_of_members_and_of_cases(place: Path) -> None:
    make(place, "Dataset005_Part", LITS, seed=5, annotated={"c0": {"tumour": "none"}})
    out = made(place, "Dataset005_Part", "Dataset002_CHAOS:liver=pseudo,spleen=real")
    found = {case.name: case.annotated for case in read_dataset(out).cases}
    assert found == {
        "Part_c0": {"tumour": "none", "spleen": "none"},
        "Part_c1": {"spleen": "none"},
        "CHAOS_c0": {"liver": "pseudo", "tumour": "none"},
        "CHAOS_c1": {"liver": "pseudo", "tumour": "none"},
    }
    sources = json.loads((out / "dataset.json").read_text())["sources"]
    assert sources == {name: name.split("_")[0] for name in found}


def test_codes_are_those_of_the_first_member_that_has_the_label(place: Path) -> None:
    def codes(**labels: str) -> dict[str, object]:
        return {n.replace("_", " "): {"type": [code, "99LAB", code]} for n, code in labels.items()}

    made(place, "Dataset001_LiTS", "Dataset003_MSD:liver=real,Tumor=drop")
    assert "codes" not in json.loads((place / "OUT/dataset.json").read_text())
    shutil.rmtree(place / "OUT")
    make(place, "Dataset001_LiTS", LITS, seed=1, codes=codes(liver="A"))
    make(place, "Dataset003_MSD", MSD, seed=3, codes=codes(liver="B", Tumor="C"))
    folder = made(place, "Dataset001_LiTS", "Dataset003_MSD:liver=real,tumour+Tumor=real")
    found = {name: given.type.value for name, given in read_dataset(folder).codes.items()}
    assert found == {"liver": "A"}  # the pool has no label of the name Tumor


def test_inside_is_as_asked_for(place: Path) -> None:
    adds = ("Dataset001_LiTS", "Dataset003_MSD")
    out = made(place, *adds, inside={"tumour": "liver"})
    dataset = read_dataset(out)
    assert dataset.labels.foreground == {"liver": (1, 2), "tumour": (2,)}
    assert dataset.labels.regions_class_order == (1, 2)
    with pytest.raises(DatasetError, match="the pool has no label 'cyst'"):
        made(place, *adds, inside={"cyst": "liver"}, overwrite=True)


def test_the_same_image_is_found_whatever_its_file(place: Path) -> None:
    """In another packing, under another name, with another order of axes."""
    other = make(place, "Dataset006_Copy", LITS, seed=6, cases=3)
    image = read_image([place / "Dataset001_LiTS/imagesTr/c1_0000.nii.gz"])
    write_image(other / "imagesTr/c0_0000.nii.gz", image.array, image.geometry)
    turned = Geometry(
        shape_zyx=GRID.shape_zyx,
        spacing_mm=GRID.spacing_mm,
        direction=(-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
    )
    first = read_image([place / "Dataset001_LiTS/imagesTr/c0_0000.nii.gz"]).array
    write_image(other / "imagesTr/c2_0000.nii.gz", first[:, :, ::-1, ::-1], turned)
    (other / "labelsTr/c2.nii.gz").unlink()
    write_label(other / "labelsTr/c2.nii.gz", np.ones(GRID.shape_zyx, np.uint8), turned)
    adds = ("Dataset001_LiTS", "Dataset006_Copy")
    with pytest.raises(DatasetError, match=r"2 cases .* Copy/c0 = LiTS/c1, Copy/c2 = LiTS/c0") as e:
        made(place, *adds)
    assert "--drop-duplicates" in e.value.hint
    assert not (place / "OUT").exists()
    out = made(place, *adds, drop_duplicates=True)
    names = [case.name for case in read_dataset(out).cases]
    assert names == ["Copy_c1", "LiTS_c0", "LiTS_c1"]


def test_a_pool_notices_that_members_change(place: Path) -> None:
    adds = ("Dataset001_LiTS:liver+tumour=real", "Dataset002_CHAOS:liver=real,spleen=drop")
    out, work = made(place, *adds), place / "ws"
    run("plan", out, "--preset", "tiny", "-w", work)
    image = place / "Dataset002_CHAOS/imagesTr/c1_0000.nii.gz"
    label = place / "Dataset002_CHAOS/labelsTr/c0.nii.gz"  # written anew for the pool
    changes: dict[str, tuple[Path, Callable[[Path], None]]] = {
        "is not there any more": (image, Path.unlink),
        "has changed": (label, lambda p: write_label(p, np.ones(GRID.shape_zyx, "u1") * 63, GRID)),
    }
    for what, (file, change) in changes.items():
        kept = file.read_bytes()
        change(file)
        for command in (("plan", out), ("train", "OUT", "2d", "--epochs", "1")):
            with pytest.raises(DatasetError, match=rf"CHAOS, .*{file.name} {what}") as caught:
                run(*command, "-w", work)
            assert f"autoliver pool {out} --add" in caught.value.hint
        file.write_bytes(kept)
    image.touch()
    run("plan", out, "-w", work)  # the same content
    with pytest.raises(OptionError, match="this pool exists already"):
        made(place, *adds)
    made(place, *adds, overwrite=True)


def test_files_of_members_are_hashed_once(place: Path) -> None:
    adds = ("Dataset001_LiTS:liver+tumour=real", "Dataset002_CHAOS:liver=real,spleen=drop")
    out, work = made(place, *adds), Workspace(place / "ws")
    first = work.source(str(out))
    index = FileIndex.load(work.folder_for(first).files)
    assert len(index.files) == 4 + 4 + 4  # images, label maps of the pool, and of its members
    # An edit that keeps size and time is the one that is not noticed without reading the file.
    label = place / "Dataset002_CHAOS/labelsTr/c0.nii.gz"
    before, content = label.stat(), label.read_bytes()
    label.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(label, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert work.source(str(out)) == first
    label.touch()
    with pytest.raises(DatasetError, match="has changed"):
        work.source(str(out))


def test_cases_that_members_get_later_are_mentioned_once(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adds = ("Dataset001_LiTS", "Dataset002_CHAOS:liver=real,spleen=drop,tumour=absent")
    shutil.copytree(place / "Dataset001_LiTS/imagesTr", place / "Dataset001_LiTS/imagesTs")
    out, work = made(place, *adds), place / "ws"
    run("plan", out, "--preset", "tiny", "-w", work)
    assert "lacks" not in caplog.text
    make(place, "Dataset002_CHAOS", CHAOS, channel="MRI", seed=2, cases=4)
    for command in (("plan", out), ("train", "OUT", "2d", "--epochs", "1", "--iterations", "1")):
        caplog.clear()
        run(*command, "-w", work)
        (said,) = [r.getMessage() for r in caplog.records if "lacks" in r.getMessage()]
        assert "OUT lacks 2 labelled cases that its members have by now" in said
        assert "(CHAOS/c2, CHAOS/c3)" in said
    again = said[said.index("autoliver pool") :]
    run(*shlex.split(again)[1:], "-w", work)
    assert len(read_dataset(out).cases) == 6
    caplog.clear()
    run("plan", out, "-w", work)
    assert "lacks" not in caplog.text
    shutil.rmtree(place / "Dataset001_LiTS/labelsTr")  # a member that cannot be read
    with pytest.raises(DatasetError, match="not there any more"):
        run("plan", out, "-w", work)


def test_predictions_are_scored_against_a_pool_by_source(place: Path) -> None:
    states = "Dataset003_MSD:liver=real,Tumor=none"
    out = made(place, "Dataset001_LiTS", states, "Dataset002_CHAOS:liver,spleen=drop,tumour=absent")
    folder = place / "predictions"
    for case in read_dataset(out).cases:
        found = read_label(str(case.label))
        array = np.zeros_like(found.array[0]) if case.name == "MSD_c1" else found.array[0]
        write_label(folder / f"{case.name}.nii.gz", array, found.geometry)
    shown = run("evaluate", "-p", folder, "-r", out, "-w", place / "ws")
    scores = Scores.load(folder / "scores.json")
    assert len(scores.cases) == 6
    assert {"LiTS", "MSD", "CHAOS", "CT", "MR"} <= set(scores.groups)
    liver = {name: group["liver"].metrics["dice"].mean for name, group in scores.groups.items()}
    assert (liver["LiTS"], liver["MSD"], liver["CHAOS"]) == (1, 0.5, 1)
    assert scores.summary["tumour"].cases == 2 + 2  # it is not annotated in MSD
    assert shown
    named = run("evaluate", "-p", folder, "-r", out, "-d", out, "-w", place / "ws")
    assert named == shown


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"background": 0, "Liver": 1, "TUMOUR": 2}, ""),
        ({"background": 0, "liver": 1, "lesion": 2}, ""),
        ({"background": 0, "liver": [1, 2], "tumour": 2}, ""),
        (CHAOS, "there liver is 63, but in OUT liver is 1 and 2"),
        ({"background": 0, "tumour": 1}, "there tumour is 1, but in OUT tumour is 2"),
    ],
)
def test_another_dataset_names_the_labels_of_a_pool_if_it_has_them(
    labels: dict[str, int | list[int]], problem: str, place: Path
) -> None:
    out = made(place, "Dataset001_LiTS", "Dataset003_MSD:liver=real,Tumor=none")
    folder = place / "predictions"
    for case in read_dataset(out).cases:
        found = read_label(str(case.label))
        write_label(folder / f"{case.name}.nii.gz", found.array[0], found.geometry)
    regions = any(isinstance(values, list) for values in labels.values())
    keys = {"regions_class_order": [1, 2]} if regions else {}
    other = make(place, "Dataset007_Other", labels, seed=9, **keys)
    command = ("evaluate", "-p", folder, "-r", out, "-d", other, "-w", place / "ws")
    if problem:
        with pytest.raises(OptionError, match=problem) as caught:
            run(*command)
        assert "Leave -d out" in caught.value.hint
        return
    run(*command)
    scores = Scores.load(folder / "scores.json")
    liver, tumour = list(scores.summary)
    # What a pool says of its cases holds under any names: tumours are not annotated in MSD.
    assert (scores.summary[liver].cases, scores.summary[tumour].cases) == (4, 2)
    assert {"LiTS", "MSD"} <= set(scores.groups)


def test_what_a_reference_ignores_is_no_label_of_another_dataset(place: Path) -> None:
    labels = {"background": 0, "liver": 1, "tumour": 2}
    reference, other = (
        make(place, f"Dataset00{number}_{name}", LITS, seed=number)
        for number, name in ((7, "Reference"), (8, "Other"))
    )
    for folder, third in ((reference, "ignore"), (other, "spleen")):
        described = json.loads((folder / "dataset.json").read_text())
        described["labels"] = labels | {third: 3}
        (folder / "dataset.json").write_text(json.dumps(described))
    command = ("evaluate", "-p", reference / "labelsTr", "-r", reference, "-w", place / "ws")
    with pytest.raises(OptionError, match=r"spleen has the value 3, which .* ignores"):
        run(*command, "-o", place / "scores", "-d", other)
    run(*command, "-o", place / "scores", "-d", place / "Dataset001_LiTS")


@pytest.mark.parametrize("name", ["a:liver", "Data:a,b=c", "b:liver=real,x"])
def test_names_of_members_may_look_like_states(name: str, place: Path) -> None:
    make(place, name, LITS, seed=5)
    (place / name).rename(place / f"Dataset009_{name}")
    name = f"Dataset009_{name}"
    for spec, labels in (("", ["liver", "tumour"]), (":liver,tumour=drop", ["liver"])):
        out = made(place, name + spec, f"Dataset001_LiTS{spec}", overwrite=True)
        dataset = read_dataset(out)
        assert list(dataset.labels.foreground) == labels
        assert len(dataset.cases) == 4
        pool_file = Pool.load(out / "pool.json")
        made(place, *pool_file.added, overwrite=True)
        assert Pool.load(out / "pool.json") == pool_file


@pytest.mark.parametrize(
    ("adds", "kind", "problem", "hint"),
    [
        (("Dataset001_LiTS",), WrongValue, "1 dataset, expected at least two", "Repeat"),
        (("Dataset001_LiTS", "Dataset009_No"), AutoliverError, "Dataset009_No", ""),
        (("Dataset001_LiTS:liver=rael,tumour", "Dataset002_CHAOS"), WrongValue, "the state 'rael'",
         "Did you mean real?"),
        (("Dataset001_LiTS:liver=,tumour", "Dataset002_CHAOS"), WrongValue, "the state ''", "real"),
        (("Dataset001_LiTS:liver=real,liver=none", "Dataset002_CHAOS"), WrongValue, "twice",
         "once"),
        (("Dataset001_LiTS:liver=real", "Dataset002_CHAOS"), DatasetError,
         "nothing is said about the label 'tumour'", "liver+tumour=real to count it as liver"),
        (("Dataset001_LiTS:liver,tumour,cyst", "Dataset002_CHAOS"), DatasetError,
         "has no label 'cyst'", "cyst=none"),
        (("Dataset001_LiTS:liver,tumor,kidney=drop", "Dataset002_CHAOS"), DatasetError,
         "has no label 'kidney'", ""),
        (("Dataset001_LiTS:liver=real,tumour=absent", "Dataset002_CHAOS"), DatasetError,
         "said to be absent is in .*value 2", "what --add says"),
        (("Dataset001_LiTS", "Dataset001_LiTS"), DatasetError, "two of the datasets", "once"),
        (("Dataset001_LiTS:liver=real;tumour=real", "Dataset002_CHAOS"), WrongValue,
         "'liver=real;tumour=real' is no list of labels", "Dataset001_LiTS:liver=real,tumour"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    adds: tuple[str, ...], kind: type[AutoliverError], problem: str, hint: str, place: Path
) -> None:
    with pytest.raises(kind, match=problem) as caught:
        made(place, *adds)
    assert hint in caught.value.hint
    assert not (place / "OUT").exists()


def test_datasets_that_cannot_be_members(place: Path) -> None:
    two = make(place, "Dataset007_Two", LITS, seed=7)
    shutil.copy(two / "imagesTr/c0_0000.nii.gz", two / "imagesTr/c0_0001.nii.gz")
    shutil.copy(two / "imagesTr/c1_0000.nii.gz", two / "imagesTr/c1_0001.nii.gz")
    names = {"0": "CT", "1": "PET"}
    described = json.loads((two / "dataset.json").read_text()) | {"channel_names": names}
    (two / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(DatasetError, match=r"has 2 channels .*LiTS 1"):
        made(place, "Dataset001_LiTS", "Dataset007_Two")
    make(place, "Dataset008_What", LITS, channel="image", seed=8)
    with pytest.raises(DatasetError, match="not known whether c0 is CT or MR") as caught:
        made(place, "Dataset001_LiTS", "Dataset008_What")
    assert '"modality"' in caught.value.hint
    bare = make(place, "Dataset009_Bare", LITS, seed=9)
    shutil.rmtree(bare / "labelsTr")
    with pytest.raises(DatasetError, match=r"none of the cases .* has a label map"):
        made(place, "Dataset001_LiTS", "Dataset009_Bare")
    odd = make(place, "Dataset010_Odd", LITS, seed=10)
    write_label(odd / "labelsTr/c0.nii.gz", np.full(GRID.shape_zyx, 7, "u1"), GRID)
    with pytest.raises(DatasetError, match="holds the value 7"):
        made(place, "Dataset001_LiTS", "Dataset010_Odd")
    (place / "OUT").mkdir()
    (place / "OUT/x").touch()
    with pytest.raises(OptionError, match="exists already, and is no pool"):
        made(place, "Dataset001_LiTS", "Dataset003_MSD", overwrite=True)


REGION = {"background": 0, "liver": [1, 2], "tumour": 2}
KIDNEYS = {"background": 0, "kidneys": [1, 2], "right_kidney": 1}


@pytest.mark.parametrize(
    ("first", "second", "labels", "values"),
    [
        (REGION, REGION, {"liver": (1, 2), "tumour": (2,)}, [1, 2, 0]),
        (REGION, LITS, {"liver": (1, 2), "tumour": (2,)}, [1, 2, 0]),
        (LITS, REGION, {"liver": (1, 2), "tumour": (2,)}, [1, 2, 0]),
        (
            KIDNEYS,
            {"background": 0, "right_kidney": 1, "left_kidney": 2},
            {"kidneys": (1, 2), "right_kidney": (2,), "left_kidney": (3,)},
            [2, 1, 0],
        ),
        (
            {"background": 0, "body": [1, 2, 3], "liver": [2, 3], "tumour": 3},
            LITS,
            {"body": (1, 2, 3), "liver": (2, 3), "tumour": (3,)},
            [1, 2, 3],
        ),
    ],
)
def test_regions_of_members_stay(
    first: dict[str, int | list[int]],
    second: dict[str, int | list[int]],
    labels: dict[str, tuple[int, ...]],
    values: list[int],
    tmp_path: Path,
) -> None:
    for name, each, seed in (("Dataset011_A", first, 11), ("Dataset012_B", second, 12)):
        unions = [v[0] for v in each.values() if isinstance(v, list)]
        singles = [v for k, v in each.items() if k != "background" and not isinstance(v, list)]
        order = {"regions_class_order": unions + singles} if unions else {}
        if each is KIDNEYS:
            order = {"regions_class_order": [2, 1]}
        make(tmp_path, name, each, seed=seed, **order)
    out = made(tmp_path, "Dataset011_A", "Dataset012_B")
    dataset = read_dataset(out)
    assert dataset.labels.foreground == labels
    assert values_of(out, "A_c0") == values
    # A region has the same voxels as in the member.
    for name in ("A", "B"):
        member = read_dataset(tmp_path / f"Dataset01{'12'[name == 'B']}_{name}")
        own = {case.name: case.label for case in member.cases}["c0"]
        new = {case.name: case.label for case in dataset.cases}[f"{name}_c0"]
        for label, group in member.labels.foreground.items():
            mine = np.isin(read_label(str(new)).array, dataset.labels.values[label])
            theirs = np.isin(read_label(str(own)).array, group)
            if member.labels.has_unions:
                assert np.array_equal(mine, theirs), label
            else:
                assert (mine & ~theirs).sum() in (0, 24), label  # its tumours are in the liver
                assert (theirs & ~mine).sum() == 0, label


def test_a_pool_of_a_pool_keeps_its_regions_and_states(place: Path) -> None:
    first = place / "first"
    adds = (str(place / "Dataset001_LiTS"), f"{place / 'Dataset002_CHAOS'}:liver,spleen=drop")
    pool(Workspace(place / "ws"), first, PoolRequest(add=adds))
    assert read_dataset(first).labels.foreground == {"liver": (1, 2), "tumour": (2,)}
    out = made(place, "first", "Dataset003_MSD")
    dataset = read_dataset(out)
    assert dataset.labels.foreground == {"liver": (1, 2), "tumour": (2,)}
    states = {case.name: case.annotated for case in dataset.cases}
    assert states["first_CHAOS_c0"] == {"tumour": "none"}
    assert states["first_LiTS_c0"] == {}


@pytest.mark.parametrize(
    "adds",
    [
        ("Dataset001_LiTS:liver=drop,tumour=drop", "Dataset003_MSD"),
        ("Dataset001_LiTS", "Dataset002_CHAOS:liver=drop,spleen=drop"),
    ],
)
def test_a_member_without_a_label_is_refused(adds: tuple[str, ...], place: Path) -> None:
    with pytest.raises(DatasetError, match="no label is left of"):
        made(place, *adds)


def test_a_pool_is_not_written_over_its_members(place: Path) -> None:
    out = made(place, "Dataset001_LiTS", "Dataset003_MSD")
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    work = Workspace(place / "ws")
    for output, adds in (
        (out, (str(out), str(place / "Dataset002_CHAOS"))),
        (place / "Dataset001_LiTS/sub", (str(place / "Dataset001_LiTS"), str(out))),
    ):
        with pytest.raises(OptionError, match="which is a member, has files there"):
            pool(work, output, PoolRequest(add=adds, overwrite=True))
    copied = place / "copied"
    shutil.copytree(out, copied)
    request = PoolRequest(add=(str(copied), str(place / "Dataset002_CHAOS")), overwrite=True)
    with pytest.raises(OptionError, match="which is a member, has files there"):
        pool(work, copied, request)
    shutil.rmtree(copied)
    assert {p: p.read_bytes() for p in before} == before


def test_a_member_whose_cases_are_all_elsewhere_is_refused(place: Path) -> None:
    shutil.copytree(place / "Dataset001_LiTS", place / "Dataset013_Copy")
    with pytest.raises(DatasetError, match="no case of Copy is left"):
        made(place, "Dataset001_LiTS", "Dataset013_Copy", drop_duplicates=True)


def test_the_command_that_makes_a_pool_anew_works_anywhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    adds = ("Dataset001_LiTS", "Dataset003_MSD:Tumor=real,liver=real")
    pool(Workspace(place / "ws"), Path("OUT"), PoolRequest(add=adds))
    image = place / "Dataset003_MSD/imagesTr/c1_0000.nii.gz"
    image.rename(place / "c1.nii.gz")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    with pytest.raises(DatasetError, match="is not there any more") as caught:
        read_dataset(place / "OUT")
    words = shlex.split(caught.value.hint.splitlines()[0].partition("anew: ")[2])
    (place / "c1.nii.gz").rename(image)
    run(*words[1:], "-w", place / "ws")
    assert len(read_dataset(place / "OUT").cases) == 4


def test_labels_do_not_lie_in_themselves(place: Path) -> None:
    with pytest.raises(WrongValue, match="would lie in itself"):
        made(place, "Dataset001_LiTS", "Dataset003_MSD", inside={"a": "b", "b": "c", "c": "a"})


def test_cases_that_get_one_name_are_refused(place: Path) -> None:
    one = make(place, "Dataset004_A", LITS, seed=4)
    make(place, "Dataset005_A_B", LITS, seed=5)
    (one / "imagesTr/c0_0000.nii.gz").rename(one / "imagesTr/B_c0_0000.nii.gz")
    (one / "labelsTr/c0.nii.gz").rename(one / "labelsTr/B_c0.nii.gz")
    with pytest.raises(DatasetError, match=r"B_c0 of A and case c0 of A_B would both be A_B_c0"):
        made(place, "Dataset004_A", "Dataset005_A_B")
    assert not (place / "OUT").exists()
