"""Which files make up a dataset whatever they are called, and what is said of those that do not."""

import codecs
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import skimage.io
from commands import run

from autoliver.datasets.cases import Dataset, find_case_images, read_dataset
from autoliver.errors import AutoliverError, DatasetError
from autoliver.evaluation.pairs import find_pairs
from autoliver.io.files import read_image, read_label
from autoliver.planning.verify import verify
from autoliver.preprocessing.store import finished_cases, open_store
from autoliver.workspace import Workspace

CT: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}


def image(path: Path, number: int = 0, *, shape: tuple[int, ...] = (10, 12, 14)) -> None:
    """Writes noise that is different for every number, whatever case the name is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(number).integers(-900, 900, shape).astype("int16")
    _save(path, array)


def label(path: Path) -> None:
    """Writes a box of 1 among 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((10, 12, 14), dtype="uint8")
    array[2:6, 2:6, 2:6] = 1
    _save(path, array)


def _save(path: Path, array: np.ndarray) -> None:
    plain = path.with_name(path.name.lower())
    sitk.WriteImage(sitk.GetImageFromArray(array), str(plain))
    plain.rename(path)


def dataset(folder: Path, *files: str, **changes: Any) -> Path:
    """A dataset of three cases a, b, c in .nii.gz, but for the files that are named."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({**CT, **changes}))
    for number, name in enumerate("abc"):
        if not any(Path(f).name.startswith((f"{name}_", f"{name}.")) and "Tr" in f for f in files):
            image(folder / f"imagesTr/{name}_0000.nii.gz", number)
            label(folder / f"labelsTr/{name}.nii.gz")
    for number, name in enumerate(files):
        path = folder / name
        image(path, 10 + number) if "images" in name else label(path)
    return folder


def names(found: Dataset) -> dict[str, tuple[list[str], str | None]]:
    return {
        case.name: (
            [Path(path).name for path in case.images],
            None if case.label is None else Path(case.label).name,
        )
        for case in found.cases
    }


# --- files that belong to a case


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["imagesTr/b_0000.NII.GZ", "labelsTr/b.NII.GZ"], ["b_0000.NII.GZ", "b.NII.GZ"]),
        (["imagesTr/b_0000.nii.gz", "labelsTr/b.NII.GZ"], ["b_0000.nii.gz", "b.NII.GZ"]),
        (["imagesTr/b_0000.Nii.Gz", "labelsTr/b.nii.gz"], ["b_0000.Nii.Gz", "b.nii.gz"]),
        (["imagesTr/b_0000.nii", "labelsTr/b.nii.gz"], ["b_0000.nii", "b.nii.gz"]),
        (["imagesTr/b_0000.nii.gz", "labelsTr/b.nii"], ["b_0000.nii.gz", "b.nii"]),
        (["imagesTr/b_0000.mha", "labelsTr/b.nrrd"], ["b_0000.mha", "b.nrrd"]),
        (["imagesTr/b_0000.MHA", "labelsTr/b.seg.nrrd"], ["b_0000.MHA", "b.seg.nrrd"]),
        (["imagesTr/b.nii", "labelsTr/b.nii.gz"], ["b.nii", "b.nii.gz"]),
        (["imagesTr/b_0000.nii.gz", "labelsTr/b.Seg.NRRD"], ["b_0000.nii.gz", "b.Seg.NRRD"]),
        # Files that belong to no case stay out.
        (["imagesTr/b_0000.nii.gz", "labelsTr/b_uncertainty.nii.gz", "labelsTr/b.nii.gz"], None),
        (["imagesTr/b_0000.nii.gz", "imagesTr/b_0000.png", "labelsTr/b.nii.gz"], None),
        (["imagesTr/b_0000.nii.gz", "imagesTr/overview.mha", "labelsTr/b.nii.gz"], None),
        (["imagesTr/b_0000.nii.gz", "imagesTr/b.seg.nrrd", "labelsTr/b.nii.gz"], None),
        (["imagesTr/b_0000.nii.gz", "imagesTr/._b_0000.nii.gz", "labelsTr/b.nii.gz"], None),
    ],
)
def test_a_case_s_files_may_have_another_ending_than_the_others(
    files: list[str], wanted: list[str] | None, tmp_path: Path
) -> None:
    slice_only = [name for name in files if name.endswith(".png")]
    folder = dataset(tmp_path, *(name for name in files if name not in slice_only))
    for name in slice_only:
        skimage.io.imsave(folder / name, np.zeros((8, 8), dtype="uint8"), check_contrast=False)
    found = read_dataset(folder)
    expected = {name: ([f"{name}_0000.nii.gz"], f"{name}.nii.gz") for name in "abc"}
    if wanted is not None:
        expected["b"] = ([wanted[0]], wanted[1])
    assert names(found) == expected
    assert not verify(found).errors
    case = found.cases[1]
    assert case.label is not None
    assert read_image(case.images).array.shape == (1, 10, 12, 14)
    assert read_label(case.label).array.sum() == 64


@pytest.mark.parametrize("stated", [".nii.gz", ".NII.GZ", ".Nii.gz", None])
@pytest.mark.parametrize("stored", [".nii.gz", ".NII.GZ"])
def test_capitals_of_the_stated_ending_do_not_matter(
    stated: str | None, stored: str, tmp_path: Path
) -> None:
    files = [f"imagesTr/{name}_0000{stored}" for name in "abc"]
    files += [f"labelsTr/{name}{stored}" for name in "abc"]
    found = read_dataset(dataset(tmp_path, *files, file_ending=stated))
    assert found.file_ending == ".nii.gz"
    assert names(found) == {n: ([f"{n}_0000{stored}"], f"{n}{stored}") for n in "abc"}


def test_one_of_two_channels_may_have_another_ending(tmp_path: Path) -> None:
    channels = {"0": "T1", "1": "T2"}
    files = [f"imagesTr/{name}_000{i}.nii.gz" for name in "ac" for i in range(2)]
    files += ["imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nrrd"]
    files += [f"labelsTr/{name}.nii.gz" for name in "abc"]
    found = read_dataset(dataset(tmp_path, *files, channel_names=channels))
    assert names(found)["b"] == (["b_0000.nii.gz", "b_0001.nrrd"], "b.nii.gz")


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_the_colours_of_one_file_are_channels_as_in_nnu_net(ending: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        for folder, shape in {"imagesTr": (32, 36, 3), "labelsTr": (32, 36)}.items():
            (tmp_path / folder).mkdir(exist_ok=True)
            most = 255 if len(shape) == 3 else 2
            array = rng.integers(0, most, shape).astype("uint8")
            stem = f"{name}_0000" if len(shape) == 3 else name
            skimage.io.imsave(tmp_path / folder / f"{stem}{ending}", array, check_contrast=False)
    head = {**CT, "channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ending}
    (tmp_path / "dataset.json").write_text(json.dumps(head))
    found = read_dataset(tmp_path)
    assert names(found)["b"] == ([f"b_0000{ending}"], f"b{ending}")
    assert not verify(found).errors
    assert read_image(found.cases[1].images).array.shape == (3, 1, 32, 36)
    to_predict = find_case_images(tmp_path / "imagesTr", channels=3, file_ending=None)
    assert list(to_predict) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name",
    [
        *("liver_label", "x.label", "x.image", "b_uncertainty", "store ", "two words", "a.b.c"),
        *("50%", "{0}", "$HOME", "a'b", 'a"b', "ä ö", "肝臓", "-m", "x" * 228, "[1]", "*", "a;b"),
        *("predict", "model", "x.json", "x.npz", "CON"),
    ],
)
def test_a_case_may_have_any_name(name: str, tmp_path: Path) -> None:
    files = [f"imagesTr/{n}_0000.nii.gz" for n in (name, "b")]
    files += [f"labelsTr/{n}.nii.gz" for n in (name, "b")]
    folder = dataset(tmp_path / "Dataset001_X", *files)
    for case in "ac":
        for path in folder.glob(f"*/{case}[_.]*"):
            if not path.name.startswith(name):
                path.unlink()
    assert sorted(names(read_dataset(folder))) == sorted({name, "b"})
    stores = run("preprocess", folder, "2d", "--workers", 1, "-w", tmp_path / "w")["stores"]
    assert isinstance(stores, dict)
    assert set(finished_cases(Path(stores["2d"]))) == {name, "b"}
    assert open_store(Path(stores["2d"]), key=Path(stores["2d"]).name, dataset=folder.name)
    found = find_case_images(folder / "imagesTr", channels=1, file_ending=None)
    assert sorted(found) == sorted({name, "b"})


# --- files that are refused


def test_a_link_to_nothing_is_named_with_its_target(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    for path in (folder / "imagesTr/b_0000.nii.gz", folder / "labelsTr/b.nii.gz"):
        path.unlink()
        path.symlink_to(f"/not-mounted/{path.name}")
    found = read_dataset(folder)
    assert sorted(names(found)) == ["a", "b", "c"]
    errors = verify(found).errors
    assert [error.code for error in errors] == ["missing_file", "missing_file"]
    for error, name in zip(errors, ("b_0000.nii.gz", "b.nii.gz"), strict=True):
        assert f"{name}: it is a link to /not-mounted/{name}, which does not exist" in error.problem
    cases = find_case_images(folder / "imagesTr", channels=1, file_ending=None)
    with pytest.raises(DatasetError, match="link to /not-mounted/b_0000"):
        read_image(cases["b"])


@pytest.mark.parametrize("kind", ["link", "loop", "folder", "pipe", "device", "empty", "gone"])
def test_what_is_no_file_is_said(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    match kind:
        case "link":
            path.symlink_to("/not-mounted/a.nii.gz")
        case "loop":
            path.symlink_to(path)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "empty":
            path.touch()
    words = {
        "link": "link to /not-mounted",
        "loop": "Too many levels of symbolic links",
        "folder": "found a folder",
        "pipe": "found a device or a pipe",
        "device": "found a device or a pipe",
        "empty": "the file is empty",
        "gone": "there is no such file",
    }
    for read in (lambda: read_image([path]), lambda: read_label(path)):
        with pytest.raises(AutoliverError, match=words[kind]) as caught:
            read()
        assert caught.value.hint


def test_names_that_are_no_text_are_named(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "x")
    odd = os.fsencode(folder / "imagesTr") + b"/d\xe4_0000.nii.gz"
    Path(os.fsdecode(odd)).write_bytes((folder / "imagesTr/a_0000.nii.gz").read_bytes())
    for look in (
        lambda: read_dataset(folder),
        lambda: find_case_images(folder / "imagesTr", channels=1, file_ending=None),
        lambda: read_image([os.fsdecode(odd)]),
        lambda: find_pairs(folder / "imagesTr", folder / "imagesTr"),
    ):
        with pytest.raises(DatasetError, match=r"d\\xe4_0000.*not UTF-8") as caught:
            look()
        caught.value.problem.encode()
    parent = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    (tmp_path / "x").rename(parent)
    with pytest.raises(DatasetError, match="not UTF-8"):
        Workspace(tmp_path / "w").source(str(parent))


def test_files_that_are_scored_against_themselves_are_warned_of(tmp_path: Path) -> None:
    label(tmp_path / "a/x.nii.gz")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for other in ("a", "b"):
        scores = run("evaluate", "-p", tmp_path / "a", "-r", tmp_path / other, "--overwrite")
        assert "same file (1): x" in str(scores["warnings"])


# --- dataset.json as editors save it


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        *((b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), (b"", "utf-16-le"), (b"", "utf-16-be")),
        *((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")),
        *((codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be")),
    ],
)
def test_dataset_json_may_be_in_any_unicode(mark: bytes, encoding: str, tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    text = json.dumps({**CT, "labels": {"background": 0, "Leber ä": 1}}, ensure_ascii=False)
    (folder / "dataset.json").write_bytes(mark + text.encode(encoding))
    assert list(read_dataset(folder).labels.foreground) == ["Leber ä"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"{\xe4}", b"\xff\xfe{\x00\xd8", "{}}".encode("utf-16"), b"[" * 100_000],
)
def test_a_dataset_json_that_is_none_is_named(content: bytes, tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    (folder / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"dataset\.json: (not valid JSON|nested|expected)"):
        read_dataset(folder)


# --- names in other letters, and names that break lines


@pytest.mark.parametrize("described", [False, True])
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (("Images", "Labels"), ("images", "labels")),
        (("IMAGES", "LABELS"), ("images", "labels")),
        (("images", "Labels"), ("images", "labels")),
        (("imagestr", "labelstr"), ("imagesTr", "labelsTr")),
        (("ImagesTr", "labelsTr"), ("imagesTr", "labelsTr")),
    ],
)
def test_folders_in_other_capitals_are_named_with_what_is_expected(
    found: tuple[str, str], expected: tuple[str, str], described: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "Liver"
    image(folder / found[0] / "a.nii.gz")
    label(folder / found[1] / "a.nii.gz")
    if (folder / expected[0]).is_dir() and (folder / expected[1]).is_dir():
        pytest.skip("this disk takes capitals for small letters")
    if described:
        (folder / "dataset.json").write_text(json.dumps({**CT, "numTraining": 1}))
    with pytest.raises(DatasetError, match="only the capitals differ") as caught:
        run("verify", folder, "-w", tmp_path / "w")
    for name, wanted in zip(found, expected, strict=True):
        assert (f"{name}/" in caught.value.problem.partition("found ")[2]) is (name != wanted)
        assert (f"{folder / name} {folder / wanted}" in caught.value.hint) is (name != wanted)
    commands = caught.value.hint.partition(": ")[2].split(" && ")
    for one in commands:
        _, before, after = one.split()
        Path(before).rename(after)
    if described or expected[0] == "images":
        assert [case.name for case in read_dataset(folder).cases] == ["a"]


@pytest.mark.parametrize("command", ["verify", "plan"])
@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\tb", r"a\tb"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\rb", r"a\rb"),
        ("a\x85b", r"a\x85b"),
        ("a\u2028b", r"a\u2028b"),
    ],
)
@pytest.mark.parametrize("place", ["files", "table", "labels", "channels", "folder"])
def test_names_with_control_characters_are_refused_where_they_enter(
    place: str, odd: str, shown: str, command: str, tmp_path: Path
) -> None:
    folder = dataset(tmp_path / (odd if place == "folder" else "Liver"))
    if place == "files":
        image(folder / f"imagesTr/{odd}_0000.nii.gz")
        label(folder / f"labelsTr/{odd}.nii.gz")
    files = {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    changes: dict[str, Any] = {
        "table": {"dataset": {odd: files}},
        "labels": {"labels": {"background": 0, odd: 1}},
        "channels": {"channel_names": {"0": odd}},
    }.get(place, {})
    (folder / "dataset.json").write_text(json.dumps({**CT, **changes}))
    with pytest.raises(DatasetError, match="control characters") as caught:
        run(command, folder, "-w", tmp_path / "w")
    assert shown in caught.value.problem
    assert odd not in caught.value.problem
    assert len(caught.value.problem.splitlines()) == 1


def test_an_image_to_predict_with_a_line_break_in_its_name_leaves_the_others(
    tmp_path: Path,
) -> None:
    for name in ("a", "b\nc"):
        image(tmp_path / f"{name}.nii.gz")
    failed: dict[str, str] = {}
    found = find_case_images(
        tmp_path,
        channels=1,
        file_ending=None,
        on_problem=lambda name, error: failed.update({name: error.problem}),
    )
    assert list(found) == ["a"]
    assert list(failed) == [r"b\nc"]
    with pytest.raises(DatasetError, match="line breaks"):
        find_case_images(tmp_path / "b\nc.nii.gz", channels=1, file_ending=None)
