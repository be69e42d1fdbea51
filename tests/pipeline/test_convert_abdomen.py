"""Published data of abdomens becomes datasets: CHAOS, LiTS, MSD, DLDS, BTCV, AMOS."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from abdomen_trees import (
    GRID,
    HEAD_FIRST,
    OBLIQUE,
    SHAPE,
    TILTED,
    as_one_bit,
    organs,
    write_amos,
    write_btcv,
    write_chaos_ct,
    write_chaos_mr,
    write_dlds,
    write_lits,
    write_msd,
    write_pair,
    write_pngs,
    write_series,
)
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.datasets.cases import Case, Dataset, read_dataset
from autoliver.datasets.folds import make_folds
from autoliver.errors import AutoliverError, OptionError
from autoliver.io.files import read_image, read_label, write_label
from autoliver.io.grids import compare_grids
from autoliver.pipeline.conversion.convert import ConvertRequest, convert
from autoliver.pipeline.conversion.result import Converted
from autoliver.workspace import Workspace

ORGANS = {"background": 0, "liver": 1, "right_kidney": 2, "left_kidney": 3, "spleen": 4}


@dataclass(frozen=True)
class Tree:
    """A kind, what writes its tree, and what is expected of it."""

    kind: str
    write: Callable[[Path], Path]
    cases: dict[str, str]  # case -> modality
    part: str | None = None
    labels: tuple[int, ...] = (1, 2, 3, 4)
    unlabelled: tuple[str, ...] = ()


CT, MR = {"CT_1": "CT", "CT_5": "CT"}, {"T1_1": "MR", "T1_2": "MR"}
DLDS = {"0001_1": "MR", "0002_3": "MR"}


def one_bit(source: Path) -> Path:
    return as_one_bit(write_chaos_ct(source))


T2 = {"T2_1": "MR", "T2_2": "MR"}
AMOS = {"amos_0001": "CT", "amos_0040": "CT", "amos_0507": "MR"}
FIVE = (1, 2, 3, 4, 5)
FAR = ("amos_0600",)
upwards = partial(write_chaos_ct, downwards=False)
short_names = partial(write_chaos_ct, padded=False)
tilted = partial(write_chaos_ct, orientation=TILTED)
oblique = partial(write_chaos_mr, orientation=OBLIQUE)
downwards = partial(write_chaos_mr, downwards=True)
negated = partial(write_chaos_mr, orientation=HEAD_FIRST)
turned_dlds = partial(write_dlds, orientation=OBLIQUE, downwards=True, placed=True)
TREES = {
    "chaos ct": Tree("chaos", write_chaos_ct, CT, labels=(1,)),
    "chaos ct, values 1": Tree("chaos", partial(write_chaos_ct, value=1), CT, "ct", (1,)),
    "chaos ct, one bit": Tree("chaos", one_bit, CT, labels=(1,)),
    "chaos ct, upwards": Tree("chaos", upwards, CT, labels=(1,)),
    "chaos ct, names not padded": Tree("chaos", short_names, CT, labels=(1,)),
    "chaos ct, tilted": Tree("chaos", tilted, CT, labels=(1,)),
    "chaos t1": Tree("chaos", write_chaos_mr, MR, "t1-dual"),
    "chaos t1, oblique": Tree("chaos", oblique, MR, "t1-dual"),
    "chaos t1, downwards": Tree("chaos", downwards, MR, "t1-dual"),
    "chaos t2": Tree("chaos", write_chaos_mr, T2, "t2-spir"),
    "chaos t2, negated": Tree("chaos", negated, T2, "t2-spir"),
    "lits": Tree(
        "lits",
        write_lits,
        {"volume-0": "CT", "volume-28": "CT"},
        labels=(1, 2),
        unlabelled=("test-volume-3",),
    ),
    "msd": Tree("msd", write_msd, {"liver_0": "CT", "liver_11": "CT"}, labels=(1, 2)),
    "dlds": Tree("dlds", write_dlds, DLDS, None, (1,), ("0001_12",)),
    "dlds, placed": Tree("dlds", partial(write_dlds, placed=True), DLDS, None, (1,), ("0001_12",)),
    "dlds, oblique": Tree("dlds", turned_dlds, DLDS, None, (1,), ("0001_12",)),
    "btcv": Tree("btcv", write_btcv, {"img0001": "CT", "img0021": "CT"}, labels=FIVE),
    "amos": Tree("amos", write_amos, AMOS, None, FIVE, FAR),
    "amos mr": Tree("amos", write_amos, {"amos_0507": "MR"}, "mr", FIVE, FAR),
}


def converted(kind: str, source: Path, part: str | None = None) -> tuple[Converted, Dataset]:
    out = source.parent / "out"
    request = ConvertRequest(part=part)
    done = convert(Workspace(source.parent / "ws"), kind, source, out, request=request)
    return done, read_dataset(out)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bright(case: Case) -> npt.NDArray[np.int64]:
    """The label map that the first channel shows, as `abdomen_trees.grey` drew it."""
    image = read_image(case.images[:1]).array[0].astype(np.float64)
    return np.rint((image - 25) / 400).astype(np.int64)


@pytest.mark.parametrize("name", TREES)
def test_labels_lie_over_the_structures_they_belong_to(name: str, tmp_path: Path) -> None:
    tree = TREES[name]
    source = tree.write(tmp_path / "data")
    before = contents(source)
    done, dataset = converted(tree.kind, source, tree.part)
    assert contents(source) == before
    assert {case.name: case.modality for case in dataset.cases} == tree.cases
    assert done.unlabelled == tree.unlabelled
    assert done.told == {}
    for case in dataset.cases:
        label = read_label(str(case.label))
        assert np.array_equal(bright(case), label.array[0])
        assert set(np.unique(label.array)) == {0, *tree.labels}
        assert label.geometry == read_image(case.images).geometry
    assert autoliver.verify(tmp_path / "out", workspace=tmp_path / "ws").errors == ()


def test_the_series_lies_where_its_headers_say(tmp_path: Path) -> None:
    source = write_chaos_mr(tmp_path / "data", orientation=OBLIQUE, downwards=True)
    dataset = converted("chaos", source, "t2-spir")[1]
    image = sitk.ReadImage(dataset.cases[0].images[0])
    folder = source / "Train_Sets/MR/1/T2SPIR/DICOM_anon"
    for path in folder.iterdir():
        plane = sitk.ReadImage(str(path))
        point = plane.TransformIndexToPhysicalPoint((2, 3, 0))
        at = image.TransformPhysicalPointToIndex(point)
        assert np.allclose(image.TransformIndexToPhysicalPoint(at), point, atol=1e-3)
        assert image[at] == plane[2, 3, 0]


def test_phases_are_channels_and_patients_stay_together(tmp_path: Path) -> None:
    source = write_chaos_mr(tmp_path / "data", (1, 2, 3))
    done, dataset = converted("chaos", source, "t1-dual")
    assert dataset.channel_names == ("T1 in phase", "T1 out of phase")
    assert done.series == 6
    assert {name: value[0] for name, value in dataset.labels.values.items()} == ORGANS
    assert [case.patient for case in dataset.cases] == ["1", "2", "3"]
    for case in dataset.cases:
        one, two = read_image(case.images).array
        assert not np.array_equal(one, two)


def test_dlds_patients_are_not_split(tmp_path: Path) -> None:
    source = write_dlds(tmp_path / "data")
    shutil.copytree(source / "Segmentation/0001/1", source / "Segmentation/0001/7")
    dataset = converted("dlds", source)[1]
    patients = {case.name: case.patient for case in dataset.cases}
    assert patients["0001_1"] == patients["0001_7"] == "0001"
    for split in make_folds(dataset.labelled):
        held, learnt = ({patients[n] for n in side} for side in (split.validation, split.train))
        assert not held & learnt


TURNS = {
    "slices": lambda label: label[::-1],
    "rows": lambda label: label[:, ::-1],
    "slices and rows": lambda label: label[::-1, ::-1],
}


@pytest.mark.parametrize("turn", TURNS)
def test_label_maps_the_other_way_round_are_turned_and_told(turn: str, tmp_path: Path) -> None:
    source = write_chaos_ct(tmp_path / "data")
    label = TURNS[turn](organs(5, 1))
    names = [f"liver_GT_{n:03d}.png" for n in range(len(label))]
    write_pngs(source / "Train_Sets/CT/5/Ground", label * np.uint8(255), names)
    done, dataset = converted("chaos", source)
    assert list(done.told) == ["CT_5"]
    assert done.told["CT_5"].startswith(f"{turn} of the label map reversed")
    for case in dataset.cases:
        assert np.array_equal(bright(case), read_label(str(case.label)).array[0])


def moved(path: Path, **changes: object) -> None:
    label = read_label(path)
    write_label(path, label.array[0], label.geometry.replace(**changes))


def test_lits_headers_that_differ_are_those_of_the_volume_and_told(tmp_path: Path) -> None:
    source = write_lits(tmp_path / "data")
    flipped = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    moved(source / "batch2/segmentation-28.nii", direction=flipped, origin_xyz=(0.0, 0.0, 0.0))
    done, dataset = converted("lits", source)
    assert list(done.told) == ["volume-28"]
    assert "header" in done.told["volume-28"]
    assert done.rewritten == 1
    case = dataset.cases[1]
    assert np.array_equal(bright(case), read_label(str(case.label)).array[0])
    assert not compare_grids(read_label(str(case.label)).geometry, GRID)


def test_lits_label_maps_that_fit_only_when_turned_are_refused(tmp_path: Path) -> None:
    source = write_lits(tmp_path / "data")
    path = source / "batch1/segmentation-0.nii"
    write_label(path, organs(1, 2)[::-1], GRID.replace(origin_xyz=(0.0, 0.0, 0.0)))
    with pytest.raises(AutoliverError, match="fits it only with slices reversed"):
        converted("lits", source)
    assert not (tmp_path / "out").exists()


def test_nothing_is_copied_that_can_be_linked(tmp_path: Path) -> None:
    for kind, write in (("lits", write_lits), ("msd", write_msd), ("btcv", write_btcv)):
        source = write(tmp_path / kind / "data")
        done, dataset = converted(kind, source)
        assert done.rewritten == done.series == 0
        files = [p for c in dataset.cases for p in (*c.images, str(c.label))]
        assert all(Path(path).is_relative_to(source) for path in files)


def test_msd_says_that_it_is_read_in_place(tmp_path: Path) -> None:
    source = write_msd(tmp_path / "data")
    words = ["convert", "msd", str(source), str(tmp_path / "out"), "-w", str(tmp_path / "ws")]
    assert "read in place" in CliRunner().invoke(app, words).stdout


def test_parts_have_to_be_chosen_only_where_there_are_several(tmp_path: Path) -> None:
    source = write_chaos_mr(write_chaos_ct(tmp_path / "data"))
    with pytest.raises(OptionError) as caught:
        converted("chaos", source)
    assert "ct, t1-dual, t2-spir" in caught.value.problem
    assert "--part ct" in caught.value.hint
    assert len(converted("chaos", source / "Train_Sets/CT")[1].cases) == 2
    with pytest.raises(OptionError, match="--part is for data that are several datasets"):
        converted("lits", write_lits(tmp_path / "lits"), "ct")


def remove(pattern: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        found = sorted(source.rglob(pattern))
        assert found
        shutil.rmtree(found[0]) if found[0].is_dir() else found[0].unlink()

    return change


def odd_value(source: Path) -> None:
    folder = source / "Train_Sets/MR/2/T2SPIR/Ground"
    label = np.zeros((1, *SHAPE[1:]), np.uint8)
    label[0, 0, :3] = 90, 63, 210
    write_pngs(folder, label, ["IMG-0002-00003.png"])


def other_size(source: Path) -> None:
    folder = source / "Train_Sets/CT/5/Ground"
    names = [path.name for path in sorted(folder.iterdir())]
    write_pngs(folder, np.zeros((len(names), 9, 9), np.uint8), names)


def one_of_another_size(source: Path) -> None:
    folder = source / "Train_Sets/CT/5/Ground"
    write_pngs(folder, np.zeros((1, 9, 9), np.uint8), ["liver_GT_003.png"])


def twice(source: Path) -> None:
    folder = source / "Train_Sets/CT/5/DICOM_anon"
    shutil.copy(folder / "i0002,0000b.dcm", folder / "i0099,0000b.dcm")


def damaged(source: Path) -> None:
    (source / "Train_Sets/CT/1/DICOM_anon/i0002,0000b.dcm").write_bytes(b"no DICOM")


def unplaced(source: Path) -> None:
    folder = source / "Train_Sets/CT/1/DICOM_anon"
    write_series(folder, np.zeros((1, *SHAPE[1:]), np.int16), ["i0002,0000b.dcm"], placed=False)


def both_batches(source: Path) -> None:
    shutil.copy(source / "batch1/volume-0.nii", source / "batch2/volume-0.nii")


def other_grid(source: Path) -> None:
    moved(source / "label/label0021.nii.gz", spacing_mm=(5.0, 1.0, 1.0))


def elsewhere(source: Path) -> None:
    for path in source.iterdir():
        shutil.rmtree(path)
    write_pair(source / "a/b.nii.gz", None, 1, 1)


REFUSALS: dict[str, tuple[str, Callable[[Path], Path], Callable[[Path], None], list[str]]] = {
    "png missing": ("chaos", write_chaos_ct, remove("liver_GT_003.png"), ["CT_1", "6", "7"]),
    "slice missing": ("chaos", write_chaos_ct, remove("i0003*"), ["CT_1", "6 mm", "3 mm"]),
    "slice twice": ("chaos", write_chaos_ct, twice, ["CT_5", "i0002", "i0099", "at one place"]),
    "damaged slice": (
        "chaos",
        write_chaos_ct,
        damaged,
        ["CT_1", "i0002,0000b.dcm", "cannot be read"],
    ),
    "no place": ("chaos", write_chaos_ct, unplaced, ["CT_1", "i0002", "osition"]),
    "unknown values": ("chaos", write_chaos_mr, odd_value, ["T2_2", "90, 210", "55 to 70"]),
    "size": ("chaos", write_chaos_ct, other_size, ["CT_5", "9x9", "24x20"]),
    "sizes": ("chaos", write_chaos_ct, one_of_another_size, ["CT_5", "9x9", "24x20"]),
    "no label maps": ("chaos", partial(write_chaos_ct, patients=[1]), remove("Ground"), ["none"]),
    "no image": ("chaos", write_chaos_ct, remove("DICOM_anon"), ["CT_1", "DICOM_anon"]),
    "nothing": (
        "chaos",
        write_chaos_ct,
        elsewhere,
        ["no case of CHAOS", "Train_Sets/CT/1", "found a."],
    ),
    "lits orphan": ("lits", write_lits, remove("volume-28.nii"), ["volume-28", "segmentation-28"]),
    "lits twice": ("lits", write_lits, both_batches, ["volume-0", "twice", "batch1", "batch2"]),
    "dlds orphan": ("dlds", write_dlds, remove("images"), ["0001_1", "masks"]),
    "dlds count": ("dlds", write_dlds, remove("masks/3.dicom"), ["0001_1", "6", "7"]),
    "btcv grid": ("btcv", write_btcv, other_grid, ["img0021", "spacing", "5"]),
    "btcv orphan": ("btcv", write_btcv, remove("img0001*"), ["label0001"]),
    "amos orphan": ("amos", write_amos, remove("imagesTr/amos_0507*"), ["amos_0507"]),
    "msd": ("msd", write_msd, remove("dataset.json"), ["Decathlon", "dataset.json"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    kind, write, change, words = REFUSALS[name]
    source = write(tmp_path / "data")
    change(source)
    part = "t2-spir" if write is write_chaos_mr else None
    with pytest.raises(AutoliverError) as caught:
        converted(kind, source, part)
    said = caught.value.problem
    assert [word for word in words if word not in said] == [], said
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_wrong_level_names_the_right_one(tmp_path: Path) -> None:
    source = write_btcv(tmp_path / "RawData/Training/sub/deep")
    with pytest.raises(AutoliverError) as caught:
        converted("btcv", source / "img")
    assert str(source) in caught.value.hint
