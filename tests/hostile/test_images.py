"""Malformed images, label maps, folders and names end in the right result or in one error."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hostile.images import Member, corpus, image_voxels, label_voxels, nifti_bytes
from hostile.runner import Runner

from autoliver.datasets.cases import read_dataset
from autoliver.errors import AutoliverError, DatasetError
from autoliver.io.files import read_image, read_label

CORPUS = {member.name: member for member in corpus()}
# One of each kind of fault, for the commands; the slow test runs all.
SAMPLE = (
    "nifti.nii.gz/sizeof_hdr 0",
    "nifti.nii.gz/big-endian",
    "nifti.nii.gz/slope 3e+38",
    "nifti.nii.gz/spacing 1000, no sform",
    "bomb/4 GB behind a small header",
    "values label/an intensity image",
    "values label/RGB",
    "values label/random among 60",
    "hdr/half of an .img",
    "mha/NDims -1",
    "mhd/voxels in a pipe",
    "nrrd/a bomb of 64 GB",
    "tif/a directory that leads to itself",
    "irregular/dataset.json is a pipe",
    "name/a line break",
    "dataset/equal names in several folders",
    "dicom/a gap",
)
# Faults of values are told by `verify`, not where files are read.
READ = [
    member
    for member in CORPUS.values()
    if member.role in ("image", "pair")
    and member.expected == "refused"
    and not member.name.startswith(("values ", "bomb/"))
    and "slope" not in member.name
]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    made = Runner(tmp_path_factory.mktemp("hostile"))
    yield made
    made.close()


def check(runner: Runner, member: Member) -> None:
    bad = [outcome for outcome in runner.run(member) if not outcome.good]
    assert not bad, "\n".join(f"{one.command}: {one.verdict}\n{one.output}" for one in bad)


@pytest.mark.parametrize("name", SAMPLE)
def test_commands_end_in_a_result_or_one_error(runner: Runner, name: str) -> None:
    check(runner, CORPUS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPUS)
def test_commands_end_well_on_every_member(runner: Runner, name: str) -> None:
    check(runner, CORPUS[name])


@pytest.mark.parametrize("member", READ[::5], ids=lambda member: member.name)
def test_readers_refuse(member: Member, tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    path = tmp_path / f"imagesTr/c_0000{member.ending}"
    member.make(tmp_path if member.role == "pair" else path.with_name("c_0000"))
    with pytest.raises(AutoliverError) as refused:
        read_image([path])
    # A file of voxels that cannot be named on the screen is told by what can be shown of it.
    assert "c_0000" in str(refused.value) or "\\xff.raw" in str(refused.value)
    assert refused.value.hint


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_both_byte_orders_give_the_same_voxels(ending: str, tmp_path: Path) -> None:
    CORPUS[f"nifti{ending}/big-endian"].make(_folders(tmp_path))
    image = read_image([tmp_path / f"imagesTr/c_0000{ending}"])
    label = read_label(tmp_path / f"labelsTr/c{ending}")
    assert np.array_equal(image.array[0], image_voxels(7))
    assert np.array_equal(label.array[0], label_voxels())
    assert image.geometry.spacing_mm == (3.0, 1.5, 1.5)


def test_voxels_behind_the_bytes_that_the_header_tells_of_are_not_unpacked(tmp_path: Path) -> None:
    CORPUS["bomb/4 GB behind a small header"].make(tmp_path / "c")
    with pytest.raises(DatasetError, match="unpacks to more than the"):
        read_image([tmp_path / "c.nii.gz"])


def test_a_label_map_of_one_value_is_no_bomb(tmp_path: Path) -> None:
    # It packs as well as deflate can.
    empty = np.zeros((200, 256, 256), dtype=np.uint8)
    import gzip

    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(nifti_bytes(empty), 9))
    assert read_label(tmp_path / "c.nii.gz").array.shape == (1, 200, 256, 256)


def test_cases_of_equal_names_are_not_dropped(tmp_path: Path) -> None:
    CORPUS["dataset/equal names in several folders"].make(_folders(tmp_path))
    with pytest.raises(DatasetError, match="two images are named scan"):
        read_dataset(tmp_path)


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(CORPUS) == len(corpus()) >= 300


def _folders(folder: Path) -> Path:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
    return folder
