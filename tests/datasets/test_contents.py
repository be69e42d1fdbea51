import hashlib
import os
from pathlib import Path

import pytest

from autoliver.datasets.cases import Case, Dataset, Labels
from autoliver.datasets.contents import FileIndex, FileState, identify

LATER = 1_000_000_000 * 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a_0000.nii", "a_0001.nii", "a.nrrd", "b_0000.nii", "b_0001.nii"):
        (folder / name).write_bytes(name.encode())
    return folder


def dataset(folder: Path, **changes: object) -> Dataset:
    cases = [
        Case(
            name=name,
            images=tuple(str(folder / f"{name}_000{channel}.nii") for channel in (0, 1)),
            label=label,
            patient=name,
        )
        for name, label in (("a", str(folder / "a.nrrd")), ("b", None))
    ]
    return Dataset(
        name=folder.name,
        folder=str(folder),
        channel_names=("T1", "T2"),
        labels=Labels(values={"background": (0,), "liver": (1,)}),
        cases=(cases[0].replace(**changes), cases[1]),
    )


def identified(folder: Path, known: FileIndex | None = None) -> tuple[Dataset, FileIndex]:
    return identify(dataset(folder), known or FileIndex())


def test_each_file_has_its_name_size_and_hash(folder: Path) -> None:
    found, index = identified(folder)
    assert [(c.kind, c.name, c.size) for c in found.cases[0].contents] == [
        ("image", "a_0000.nii", 10),
        ("image", "a_0001.nii", 10),
        ("label", "a.nrrd", 6),
    ]
    assert found.cases[0].contents[2].hash == hashlib.blake2b(b"a.nrrd", digest_size=20).hexdigest()
    assert sorted(index.files) == sorted(path.name for path in folder.iterdir())
    assert len({case.files for case in found.cases}) == 2


def test_only_what_seems_to_differ_is_hashed(folder: Path) -> None:
    _, index = identified(folder)
    # Hashes that no file has show which were taken from the index.
    made_up = {name: state.replace(hash="kept") for name, state in index.files.items()}
    (folder / "a_0000.nii").write_bytes(b"longer than before")
    os.utime(folder / "a_0001.nii", ns=(LATER, LATER))
    found, now = identify(dataset(folder), FileIndex(files=made_up))
    kept = {name for name, state in now.files.items() if state.hash == "kept"}
    assert kept == {"a.nrrd", "b_0000.nii", "b_0001.nii"}
    assert found.cases[0].contents[2].hash == "kept"
    assert now.files["a_0001.nii"].mtime_ns == LATER


@pytest.mark.parametrize(
    ("content", "alike"), [(b"a.nrrd", True), (b"A.nrrd", False), (b"longer", False)]
)
def test_the_content_counts_and_not_the_time(folder: Path, content: bytes, *, alike: bool) -> None:
    before, index = identified(folder)
    (folder / "a.nrrd").write_bytes(content)
    os.utime(folder / "a.nrrd", ns=(LATER, LATER))
    after, _ = identified(folder, index)
    assert (after.digest() == before.digest()) is alike
    assert (after.cases[0].files == before.cases[0].files) is alike
    assert after.cases[1].files == before.cases[1].files


def test_neither_place_nor_folder_name_counts(folder: Path, tmp_path: Path) -> None:
    before, index = identified(folder)
    moved = folder.rename(tmp_path / "other")
    after, same = identified(moved, index)
    assert same == index
    assert after.digest() == before.digest()
    assert after.cases[0].files == before.cases[0].files
    assert after.cases[0].images[0] == str(moved / "a_0000.nii")


def test_files_outside_of_the_folder_go_by_name_and_content(folder: Path, tmp_path: Path) -> None:
    digests = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        label = tmp_path / place / "label.nrrd"
        label.write_bytes(b"label")
        found, index = identify(dataset(folder, label=str(label)), FileIndex())
        assert f"../{place}/label.nrrd" in index.files
        digests.append(found.digest())
    assert digests[0] == digests[1]


def test_what_cannot_be_read_is_left_to_verify(folder: Path) -> None:
    (folder / "a.nrrd").unlink()
    found, index = identified(folder)
    assert found.cases[0].contents[2].hash == ""
    assert "a.nrrd" not in index.files


@pytest.mark.parametrize(
    ("header", "text", "voxels"),
    [
        ("x.mhd", "NDims = 3\nElementDataFile = x.raw\n", "x.raw"),
        ("x.mhd", "ElementDataFile = LIST\nx1.raw\n", "x1.raw"),
        ("x.nhdr", "NRRD0004\ndata file: ./x.raw.gz\n", "x.raw.gz"),
        ("x.hdr", "\0\0", "x.img"),
    ],
)
def test_voxels_beside_a_header_count(folder: Path, header: str, text: str, voxels: str) -> None:
    (folder / header).write_text(text)
    (folder / voxels).write_bytes(b"\1\2\3")
    described = dataset(folder, label=str(folder / header))
    before, index = identify(described, FileIndex())
    assert voxels in index.files
    (folder / voxels).write_bytes(b"\1\2\4")
    os.utime(folder / voxels, ns=(LATER, LATER))
    after, _ = identify(described, index)
    assert after.digest() != before.digest()


def test_the_index_survives_its_file(tmp_path: Path) -> None:
    index = FileIndex(files={"a": FileState(size=1, mtime_ns=2, hash="3")})
    index.save(tmp_path / "files.json")
    assert FileIndex.load(tmp_path / "files.json") == index
