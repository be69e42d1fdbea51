"""verify --fix: errors are mended in copies, or named, and the originals stay as they are."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk
from abdomen_trees import GRID, grey, organs
from commands import run
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.datasets.cases import read_dataset
from autoliver.errors import AutoliverError, DatasetError, OptionError
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.io.grids import compare_grids
from autoliver.io.regrid import nearest_on
from autoliver.io.volume import Geometry
from autoliver.pipeline.mending.mend import MendRequest, Repaired, mend
from autoliver.pipeline.mending.values import parse_values, scaled_values, with_values
from autoliver.planning import findings
from autoliver.workspace import Workspace

CASES = ("a", "b", "c", "d")
BAD = "b"
TURNED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def write_data(folder: Path, labels: int = 2, channels: int = 1) -> Path:
    """A dataset of four cases without an error."""
    for seed, name in enumerate(CASES):
        array = organs(seed, labels)
        for channel in range(channels):
            image = grey(array, 10 * seed + channel)[None].astype(np.float32)
            write_image(folder / f"imagesTr/{name}_{channel:04d}.nii.gz", image, GRID)
        write_label(folder / f"labelsTr/{name}.nii.gz", array, GRID)
    description = {
        "channel_names": {str(n): ("CT", "CT late")[n] for n in range(channels)},
        "labels": {"background": 0} | {f"organ_{n}": n for n in range(1, labels + 1)},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
        "patients": {name: f"patient {name}" for name in CASES},
        "codes": {"organ_1": {"type": ["1", "99LAB", "First"]}},
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def label_of(folder: Path) -> Path:
    return folder / f"labelsTr/{BAD}.nii.gz"


def image_of(folder: Path, channel: int = 0) -> Path:
    return folder / f"imagesTr/{BAD}_{channel:04d}.nii.gz"


def change_label(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Writes changed labels as they are, fractions included."""
    image = sitk.ReadImage(str(label_of(folder)))
    changed = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(label_of(folder)))


def moved_label(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        label = read_label(label_of(folder))
        write_label(label_of(folder), label.array[0], label.geometry.replace(**changes))

    return change


def finer_label(folder: Path) -> None:
    """Labels on a grid of half the spacing, that begins elsewhere and covers the labels."""
    z, y, x = GRID.spacing_mm
    fine = Geometry(
        shape_zyx=(16, 44, 52),
        spacing_mm=(z / 2, y / 2, x / 2),
        origin_xyz=(GRID.origin_xyz[0] - x, GRID.origin_xyz[1] - y, GRID.origin_xyz[2] - z / 2),
    )
    array = nearest_on(read_label(label_of(folder)).array[0], GRID, fine)
    write_label(label_of(folder), array, fine)


def shifted_label(folder: Path) -> None:
    """Labels in an array of the same size that really lies two slices higher."""
    higher = GRID.replace(origin_xyz=(*GRID.origin_xyz[:2], GRID.origin_xyz[2] - 6.0))
    array = nearest_on(read_label(label_of(folder)).array[0], GRID, higher)
    write_label(label_of(folder), array, higher)


def cropped_label(folder: Path) -> None:
    label = read_label(label_of(folder))
    far = GRID.replace(shape_zyx=(3, 20, 24), origin_xyz=(500.0, 0.0, 0.0))
    write_label(label_of(folder), label.array[0, 1:4], far)


def upside_down(folder: Path) -> None:
    label = read_label(label_of(folder))
    far = GRID.replace(origin_xyz=(900.0, 0.0, 0.0))
    write_label(label_of(folder), np.ascontiguousarray(label.array[0, ::-1, ::-1]), far)


def not_finite(folder: Path) -> None:
    image = read_image([image_of(folder)])
    image.array[0, 0, :2, :3] = np.nan
    image.array[0, 1, 0, 0] = -np.inf
    write_image(image_of(folder), image.array, GRID)


def no_number(folder: Path) -> None:
    write_image(image_of(folder), np.full((1, *GRID.shape_zyx), np.nan, np.float32), GRID)


def moved_channel(mm: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        image = read_image([image_of(folder, 1)])
        moved = GRID.replace(origin_xyz=(GRID.origin_xyz[0] + mm, *GRID.origin_xyz[1:]))
        write_image(image_of(folder, 1), image.array, moved)

    return change


def all_labels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: change_label(folder, change)


class Defect(NamedTuple):
    """What is wrong, and what is said of its repair, or why there is none."""

    break_it: Callable[[Path], None]
    said: str
    values: tuple[str, ...] = ()
    channels: int = 1


def in_noise(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """The organs are noisier than all around them, so that any other place seems to fit better."""

    def break_it(folder: Path) -> None:
        label = read_label(label_of(folder)).array[0]
        noise = np.random.default_rng(0).normal(0, 50, label.shape)
        image = np.where(label > 0, noise, 0.0).astype(np.float32)[None]
        write_image(image_of(folder), image, GRID)
        change(folder)

    return break_it


MENDED = {
    "label_grid, origin": Defect(moved_label(origin_xyz=(-5.0, 9.0, 31.5)), "header of the image"),
    "label_grid, sign": Defect(moved_label(direction=TURNED), "header of the image"),
    "label_grid, spacing": Defect(moved_label(spacing_mm=(1.0, 1.0, 1.0)), "header of the image"),
    "label_grid, spacing in noise": Defect(
        in_noise(moved_label(spacing_mm=(1.0, 1.0, 1.0))), "header of the image"
    ),
    "label_grid, finer": Defect(finer_label, "resampled onto the image (100% of the volume)"),
    "label_grid, shifted": Defect(shifted_label, "resampled onto the image, which it fits so"),
    "channel_grid": Defect(moved_channel(0.5), "header of the first channel", channels=2),
    "not_finite": Defect(not_finite, "7 voxels without a number set to "),
    "label_values, scaled": Defect(all_labels(lambda a: a * 100), "values 100 to 1, 200 to 2"),
    "label_values, 8 bit": Defect(
        all_labels(lambda a: np.array([0, 127, 255], np.uint8)[a]), "values 127 to 1, 255 to 2"
    ),
    "label_fractions, scaled": Defect(
        all_labels(lambda a: a * np.float32(127.5)), "values 127.5 to 1, 255 to 2"
    ),
    "label_values, said": Defect(
        all_labels(lambda a: np.where(a == 2, 7, a).astype(np.uint8)), "values 7 to 2", ("7=2",)
    ),
    "label_fractions, said": Defect(
        all_labels(lambda a: np.where(a == 0, np.nan, a).astype(np.float32)),
        "values nan to 0",
        ("nan=0",),
    ),
}  # fmt: skip
NOT_MENDED = {
    "missing_label": Defect(lambda f: label_of(f).unlink(), "no label file"),
    "unreadable": Defect(lambda f: label_of(f).write_bytes(b"no image"), "b.nii.gz"),
    "channels": Defect(
        lambda f: write_image(image_of(f), np.zeros((2, *GRID.shape_zyx), np.float32), GRID),
        "2 channels",
    ),
    "channel_grid, far": Defect(moved_channel(40.0), "elsewhere than the first", channels=2),
    "label_grid, elsewhere": Defect(cropped_label, "only 0% of its volume"),
    "label_grid, upside down": Defect(upside_down, "fits it only with slices and rows reversed"),
    "label_values, unknown": Defect(
        all_labels(lambda a: np.where(a == 2, 7, a).astype(np.uint8)), "7 ("
    ),
    "label_values, said of no label": Defect(
        all_labels(lambda a: np.where(a == 2, 7, a).astype(np.uint8)), "7 (", ("7=9",)
    ),
    "label_fractions, interpolated": Defect(
        all_labels(lambda a: a * np.float32(0.5) + np.float32(0.25)), "nothing says which labels"
    ),
    "not_finite, everywhere": Defect(no_number, "no number at all"),
}  # fmt: skip


def mended(folder: Path, **asked: object) -> Repaired:
    request = MendRequest(**asked)  # type: ignore[arg-type]
    ws = Workspace(folder.parent / "ws")
    return mend(ws, str(folder), folder.parent / "out", request=request)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", MENDED)
def test_what_can_be_mended_is_mended_in_a_copy(name: str, tmp_path: Path) -> None:
    defect = MENDED[name]
    folder = write_data(tmp_path / "data", channels=defect.channels)
    defect.break_it(folder)
    before = hashes(folder)
    wrong = autoliver.verify(folder, workspace=tmp_path / "ws")
    assert name.split(",")[0] in {error.code for error in wrong.errors}
    done = mended(folder, values=defect.values)
    assert hashes(folder) == before
    assert [fix.case for fix in done.fixes] == [BAD]
    assert defect.said in done.fixes[0].done
    out = tmp_path / "out"
    assert sorted(path.name for path in out.rglob("*.png")) == [f"{BAD}.png"]
    found = autoliver.verify(out, workspace=tmp_path / "ws2")
    assert found.errors == ()
    dataset = read_dataset(out)
    assert dataset.codes == read_dataset(folder).codes != {}
    assert [case.name for case in dataset.cases] == list(CASES)
    assert {case.patient for case in dataset.cases} == {f"patient {name}" for name in CASES}
    for seed, case in enumerate(dataset.cases):
        label = read_label(str(case.label))
        assert np.array_equal(label.array[0], organs(seed, 2)), case.name
        assert not compare_grids(label.geometry, GRID)
        own = {Path(path) for path in (*case.images, str(case.label))}
        inside = [path for path in own if path.is_relative_to(out)]
        assert len(inside) == (case.name == BAD)
        assert len(read_image(case.images).array) == defect.channels
    fixes = json.loads((out / "fixes.json").read_text())
    assert [fix["file"] for fix in fixes["fixes"]] == [fix.file for fix in done.fixes]
    assert fixes["left_out"] == {}


@pytest.mark.parametrize("name", NOT_MENDED)
def test_what_cannot_be_mended_is_named_or_left_out(name: str, tmp_path: Path) -> None:
    defect = NOT_MENDED[name]
    folder = write_data(tmp_path / "data", channels=defect.channels)
    defect.break_it(folder)
    before = hashes(folder)
    with pytest.raises(DatasetError) as caught:
        mended(folder, values=defect.values)
    assert "Nothing was written: 1 case cannot be repaired: b: " in caught.value.problem
    assert defect.said in caught.value.problem
    assert "--leave-out" in caught.value.hint
    assert not (tmp_path / "out").exists()
    done = mended(folder, values=defect.values, leave_out=True)
    assert list(done.left_out) == [BAD]
    assert defect.said in done.left_out[BAD]
    assert [case.name for case in read_dataset(tmp_path / "out").cases] == ["a", "c", "d"]
    assert autoliver.verify(tmp_path / "out", workspace=tmp_path / "ws2").errors == ()
    assert hashes(folder) == before
    assert not list((tmp_path / "out").rglob("*b*"))


def test_the_lowest_number_of_a_channel_takes_the_place_of_what_is_none(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    not_finite(folder)
    low = read_image([image_of(folder)]).array
    low = low[np.isfinite(low)].min()
    done = mended(folder)
    image = read_image([tmp_path / "out" / done.fixes[0].file]).array
    assert (image[0, 0, :2, :3] == low).all()
    assert image[0, 1, 0, 0] == low
    assert done.fixes[0].done.endswith(f"set to {low:g}")


def test_nothing_is_written_where_nothing_is_wrong(tmp_path: Path) -> None:
    done = mended(write_data(tmp_path / "data"))
    assert done.folder is None
    assert not (tmp_path / "out").exists()


def test_splits_are_kept_without_what_was_left_out(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    splits = [{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a", "b"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    label_of(folder).write_bytes(b"no image")
    mended(folder, leave_out=True)
    kept = json.loads((tmp_path / "out/splits_final.json").read_text())
    assert kept == [{"train": ["a"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a"]}]


def test_every_kind_of_finding_says_how_it_is_mended() -> None:
    package = Path(findings.__file__).parents[1]
    codes = set()
    for path in [*package.glob("planning/*.py"), package / "pipeline/describe.py"]:
        text = path.read_text()
        codes |= set(re.findall(r'"(?:error|warning|note)",\s*"([a-z_]+)"', text))
        codes |= set(re.findall(r'code="([a-z_]+)"', text))
    assert codes - {"error", "warning", "note"} - set(findings.REPAIRS) == set()
    assert len(codes) > 20
    told = str(findings.Finding.__doc__).partition("code:")[2].partition("problem:")[0]
    assert set(re.findall(r"[a-z_]+", told)) >= set(findings.REPAIRS)
    mendable = {code for code, repair in findings.REPAIRS.items() if repair}
    assert mendable == {name.split(",")[0] for name in MENDED}


SCALES: list[tuple[tuple[float, ...], tuple[int, ...], tuple[tuple[float, int], ...]]] = [
    ((0, 255), (0, 1), ((0, 0), (255, 1))),
    ((255,), (0, 1), ((0, 0), (255, 1))),
    ((0, 127.5, 255), (0, 1, 2), ((0, 0), (127.5, 1), (255, 2))),
    ((0, 63, 126, 189, 252), (0, 1, 2, 3, 4), ((0, 0), (63, 1), (126, 2), (189, 3), (252, 4))),
    ((0, 0.5, 1), (0, 1, 2), ((0, 0), (0.5, 1), (1, 2))),
    ((0, 255), (0, 1, 2), ()),  # which of the two?
    ((0, 100, 255), (0, 1, 2), ()),
    ((0, 1, 2, 3), (0, 1, 2), ()),
    ((-5, 0, 5), (0, 1, 2), ()),
    ((0, float("nan"), 255), (0, 1, 2), ()),
]


@pytest.mark.parametrize(("levels", "allowed", "wanted"), SCALES)
def test_scales_are_taken_only_where_they_leave_no_doubt(
    levels: tuple[float, ...], allowed: tuple[int, ...], wanted: tuple[tuple[float, int], ...]
) -> None:
    assert scaled_values(levels, allowed) == wanted


@pytest.mark.parametrize("text", ["7", "=1", "7=", "x=1", "7=-1", "7=1.5", "inf=0"])
def test_values_have_one_form(text: str) -> None:
    with pytest.raises(OptionError):
        parse_values([text])
    with pytest.raises(OptionError, match="twice"):
        parse_values(["7=0", "7.0=1"])


def test_all_unknown_values_are_named() -> None:
    array = np.array([[[0, 1, 5, 6]]])
    with pytest.raises(DatasetError, match=r"5 \(1 voxels\), 6 \(1 voxels\)"):
        with_values(array, (), (0, 1))


def test_the_command_and_the_function_tell_the_same(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    finer_label(folder)
    words = ["verify", str(folder), "-w", str(tmp_path / "ws")]
    shown = CliRunner().invoke(app, [*words, "--fix", str(tmp_path / "one")])
    assert shown.exit_code == 0, shown.output
    assert "resampled onto the image" in shown.stdout
    facts = run(*words, "--fix", tmp_path / "two")
    done = autoliver.mend(folder, tmp_path / "three", workspace=tmp_path / "ws")
    places = {"dataset", "next"}
    assert {k: v for k, v in facts.items() if k not in places} == {
        k: v for k, v in done.facts.items() if k not in places
    }
    assert CliRunner().invoke(app, [*words, "--leave-out"]).exit_code == 2
    with pytest.raises(AutoliverError, match="exists already"):
        autoliver.mend(folder, tmp_path / "one", workspace=tmp_path / "ws")
