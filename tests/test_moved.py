"""Datasets and workspaces that were moved, copied or touched go on; those that changed do not."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import run, told
from safetensors.numpy import load_file

from autoliver.errors import ArtifactError, DatasetError
from autoliver.models.files import FoldModel
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.progress import EpochLog, read_progress

NAME = "Dataset001_Phantom"
NEVER = 946684800 * 10**9  # the year 2000, in nanoseconds


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset and a workspace in which it is planned and preprocessed for 2d."""
    disk = tmp_path_factory.mktemp("disk")
    options = PhantomOptions(contrast="CT", shape_zyx=(20, 40, 40), spacing_mm=(6.0, 5.0, 5.0))
    data = write_phantom_dataset(disk / "data", name=NAME, cases=5, seed=1, options=options)
    run("plan", data, "--preset", "tiny", "-w", disk / "workspace")
    run("preprocess", NAME, "2d", "-w", disk / "workspace")
    return disk


@pytest.fixture
def place(disk: Path, tmp_path: Path) -> Path:
    """The place of both, which they can be moved away from: as if planned there."""
    place = Path(shutil.copytree(disk, tmp_path / "place"))
    seen = place / "workspace" / NAME / "dataset.json"
    seen.write_text(seen.read_text().replace(str(disk), str(place)))
    return place


def touch(folder: Path) -> None:
    """Gives every file a time of its own."""
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, ns=(NEVER + number, NEVER + number))


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


def train(place: str | Path, workspace: Path) -> list[str]:
    options = ["--fold", "all", "--epochs", "5", "--iterations", "3", "-w", str(workspace)]
    return [sys.executable, "-m", "autoliver", "train", str(place), "2d", *options]


def wait_for_epochs(progress: Path, epochs: int) -> None:
    deadline = time.monotonic() + 120
    while len(read_progress(progress)) < epochs:
        assert time.monotonic() < deadline, "the training did not get going"
        time.sleep(0.05)


def without_times(fold: Path) -> list[EpochLog]:
    logs = read_progress(fold / "progress.jsonl")
    return [log.replace(seconds=0.0, data_wait=0.0) for log in logs]


def test_a_run_goes_on_where_workspace_and_dataset_were_moved_to(
    place: Path, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(place, tmp_path / "whole"))
    subprocess.run(train(whole / "data" / NAME, whole / "workspace"), check=True)
    process = subprocess.Popen(train(NAME, place / "workspace"), stderr=subprocess.DEVNULL)
    wait_for_epochs(place / "workspace" / NAME / "runs/2d/fold_all/progress.jsonl", 2)
    process.send_signal(signal.SIGKILL)
    process.wait()

    workspace, data = tmp_path / "a/b/workspace", tmp_path / "elsewhere" / NAME
    workspace.parent.mkdir(parents=True)
    data.parent.mkdir()
    shutil.move(place / "workspace", workspace)
    shutil.move(place / "data" / NAME, data)
    shutil.rmtree(place)
    touch(data)
    touch(workspace)
    stored = times(workspace / NAME / "store")
    done = len(read_progress(workspace / NAME / "runs/2d/fold_all/progress.jsonl"))
    assert 2 <= done < 5
    subprocess.run(train(data, workspace), check=True)

    assert times(workspace / NAME / "store") == stored
    folds = [w / NAME / "runs/2d/fold_all" for w in (whole / "workspace", workspace)]
    one, other = (load_file(fold / "weights.safetensors") for fold in folds)
    assert one.keys() == other.keys()
    for name, weights in one.items():
        assert np.array_equal(weights, other[name]), name
    assert without_times(folds[0]) == without_times(folds[1])
    assert len(without_times(folds[0])) == 5
    assert read_model(folds[0]) == read_model(folds[1])

    # The new place is known by now, so that the name will do.
    assert run(*train(NAME, workspace)[3:])["folds"]


def read_model(fold: Path) -> FoldModel:
    # safetensors writes the same weights with its header in another order each time.
    return FoldModel.load(fold / "model.json").replace(weights_sha256="")


def test_both_on_a_disk_that_is_mounted_elsewhere_need_not_a_word(
    place: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.move(place, tmp_path / "mounted"))
    stored = times(moved / "workspace" / NAME / "store")
    assert told("preprocess", NAME, "2d", "-w", moved / "workspace") == ""
    assert times(moved / "workspace" / NAME / "store") == stored


def test_a_copied_disk_is_its_own(place: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    edit_label(copy / "data" / NAME)
    for data in (NAME, copy / "data" / NAME):
        with pytest.raises(ArtifactError, match="label of Phantom_002 has changed"):
            run("preprocess", data, "2d", "-w", copy / "workspace")
    run("plan", NAME, "--preset", "tiny", "-w", copy / "workspace")
    run("preprocess", NAME, "2d", "-w", copy / "workspace")
    run("preprocess", NAME, "2d", "-w", place / "workspace")


def test_a_dataset_alone_is_asked_for_once(place: Path, tmp_path: Path) -> None:
    workspace, data = place / "workspace", tmp_path / "elsewhere" / NAME
    data.parent.mkdir()
    shutil.move(place / "data" / NAME, data)
    with pytest.raises(DatasetError, match="does not exist any more"):
        run("preprocess", NAME, "2d", "-w", workspace)
    stored = times(workspace / NAME / "store")
    run("preprocess", data, "2d", "-w", workspace)
    run("preprocess", NAME, "2d", "-w", workspace)
    assert times(workspace / NAME / "store") == stored


@pytest.mark.parametrize("original_stays_alike", [True, False])
def test_a_copy_is_the_dataset_only_as_long_as_it_holds_the_same(
    place: Path, tmp_path: Path, *, original_stays_alike: bool
) -> None:
    copy = tmp_path / "copy" / NAME
    shutil.copytree(place / "data" / NAME, copy, copy_function=shutil.copyfile)
    if not original_stays_alike:
        edit_label(copy)
    stored = times(place / "workspace" / NAME / "store")
    words = ("preprocess", copy, "2d", "-w", place / "workspace")
    if original_stays_alike:
        run(*words)
    else:
        with pytest.raises(
            DatasetError, match=r"already belongs to .*label of Phantom_002 has chang"
        ):
            run(*words)
    assert times(place / "workspace" / NAME / "store") == stored


def test_a_dataset_that_was_touched_is_the_same(place: Path) -> None:
    touch(place / "data")
    stored = times(place / "workspace" / NAME / "store")
    assert told("preprocess", NAME, "2d", "-w", place / "workspace") == ""
    assert times(place / "workspace" / NAME / "store") == stored
    # Nor is anything hashed again by the next command: its index is left as it is.
    index = place / "workspace" / NAME / "files.json"
    before = index.stat().st_mtime_ns
    run("preprocess", NAME, "2d", "-w", place / "workspace")
    assert index.stat().st_mtime_ns == before


def edit_label(data: Path) -> None:
    edit(data / "labelsTr/Phantom_002.nii.gz")


def edit_image(data: Path) -> None:
    edit(data / "imagesTr/Phantom_002_0000.nii.gz")


def edit(path: Path) -> None:
    """Other content of the same size and another time, which can still be read."""
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the time in gzip's header
    path.write_bytes(content)
    os.utime(path, ns=(NEVER, NEVER))


def add_case(data: Path) -> None:
    for kind in ("imagesTr", "labelsTr"):
        for path in (data / kind).glob("Phantom_002*"):
            shutil.copy(path, path.with_name(path.name.replace("Phantom_002", "Phantom_007")))


def remove_case(data: Path) -> None:
    for path in [*data.glob("*Tr/Phantom_002*")]:
        path.unlink()


def rename_case(data: Path) -> None:
    for path in [*data.glob("*Tr/Phantom_002*")]:
        path.rename(path.with_name(path.name.replace("Phantom_002", "Phantom_009")))


def edit_description(data: Path, key: str, value: object) -> None:
    path = data / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (edit_label, "label of Phantom_002 has changed"),
    (edit_image, "image of Phantom_002 has changed"),
    (add_case, "6 cases, 5 when planned: Phantom_007 is new"),
    (remove_case, "4 cases, 5 when planned: Phantom_002 is gone"),
    (rename_case, "Phantom_002 is now called Phantom_009"),
    (
        lambda data: edit_description(data, "patients", {"Phantom_002": "anna"}),
        "patient of Phantom_002: anna; when planned: Phantom_002",
    ),
    (
        lambda data: edit_description(data, "channel_names", {"0": "MRI"}),
        "channel_names: MRI; when planned: CT",
    ),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[words for _, words in CHANGES])
@pytest.mark.parametrize("moved", [False, True])
def test_a_dataset_that_changed_is_refused_in_words(
    place: Path, tmp_path: Path, change: Callable[[Path], None], words: str, *, moved: bool
) -> None:
    data: Path | str = NAME
    change(place / "data" / NAME)
    if moved:
        (tmp_path / "elsewhere").mkdir()
        data = shutil.move(place / "data" / NAME, tmp_path / "elsewhere" / NAME)
    # However often it is asked for, and though `verify` has seen it as it is.
    for command in ("preprocess", "verify", "preprocess"):
        if command == "verify":
            run("verify", data, "-w", place / "workspace")
            continue
        with pytest.raises(ArtifactError) as caught:
            run(command, data, "2d", "-w", place / "workspace")
        assert caught.value.problem == (
            f"The plan of {NAME} was made from another dataset: {words}."
        )
        assert re.search(rf"autoliver plan \S*{NAME} --preset tiny -w ", caught.value.hint)


def test_no_artefact_needs_the_old_place(place: Path, tmp_path: Path) -> None:
    """Only the place of the dataset is kept as a path, and that is brought up to date."""
    moved = Path(shutil.move(place, tmp_path / "mounted"))
    run("plan", NAME, "--preset", "tiny", "-w", moved / "workspace")
    found = [p for p in (moved / "workspace").rglob("*.json") if str(place) in p.read_text()]
    assert found == []
