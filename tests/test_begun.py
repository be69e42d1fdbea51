"""A run that has begun keeps its source, options and cases; two processes do not train one fold."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run, told

from autoliver.errors import ArtifactError, AutoliverError, OptionError
from autoliver.io.files import read_image, read_label, write_image, write_label
from autoliver.locks import Holder, check_free, is_held, only_one
from autoliver.models.files import FoldModel
from autoliver.pipeline.run import train as train_stage
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.options import TrainingOptions
from autoliver.workspace import RunFolder

CT, MR = "Dataset001_PhantomCT", "Dataset002_PhantomMR"
SHORT = ("--epochs", 1, "--iterations", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    ct = PhantomOptions(contrast="CT", shape_zyx=(16, 40, 40), spacing_mm=(8.0, 6.0, 6.0))
    mr = PhantomOptions(contrast="T2", shape_zyx=(8, 44, 44), spacing_mm=(18.0, 5.0, 5.0))
    write_phantom_dataset(folder, name=CT, cases=5, seed=1, options=ct)
    write_phantom_dataset(folder, name=MR, cases=3, seed=2, options=mr)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT fold all -> MR fold all -> CT fold 0, and CT fold 0 from random weights."""
    work = tmp_path_factory.mktemp("workspace")
    run("plan", data / CT, "--preset", "tiny", "-w", work)
    run("train", CT, "2d", "--fold", "all", *SHORT, "-w", work)
    run("train", data / MR, "2d", "--fold", "all", "--pretrained", CT, *SHORT, "-w", work)
    return work


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "workspace"))


# --- what has seen the held-out cases


def test_held_out_cases_that_any_ancestor_has_seen_are_told_and_not_ranked(
    own: Path,
) -> None:
    words = told("train", CT, "2d", "--fold", 0, "--pretrained", MR, *SHORT, "-w", own)
    found = re.search(r"trained on (\d) of the (\d) cases? held out", words)
    assert found is not None
    assert found[1] == found[2]
    back = own / CT / "runs/2d@PhantomMR/fold_0/model.json"
    model = FoldModel.load(back)
    first = FoldModel.load(own / CT / "runs/2d/fold_all/model.json")
    second = FoldModel.load(own / MR / "runs/2d@PhantomCT/fold_all/model.json")
    assert set(first.trained_on) | set(second.trained_on) == set(model.seen_before)
    assert len(model.seen_before) == 8
    assert model.ancestors == (second.weights_sha256[:12], first.weights_sha256[:12])

    run("train", CT, "2d", "--fold", 0, *SHORT, "-w", own)
    chosen = run("select", CT, "-w", own)
    assert [member["run"] for member in chosen["members"]] == ["2d"]
    assert "2d@PhantomMR, fold 0, is left out" in str(chosen["left_out"])
    assert "had seen" in str(chosen["left_out"])


def test_cases_are_recognised_under_other_names(own: Path, data: Path, tmp_path: Path) -> None:
    """The dataset was renamed, and so were its cases: their images are the same."""
    other = tmp_path / "Dataset009_Other"
    shutil.copytree(data / CT, other)
    for path in sorted(other.glob("*/*.nii.gz")):
        path.rename(path.with_name(path.name.replace("PhantomCT", "patient")))
    head = json.loads((other / "dataset.json").read_text())
    for key, value in list(head.items()):
        if isinstance(value, dict) and any("PhantomCT_" in name for name in value):
            head[key] = {name.replace("PhantomCT", "patient"): v for name, v in value.items()}
    (other / "dataset.json").write_text(json.dumps(head))
    words = told("train", other, "2d", "--fold", 0, "--pretrained", CT, *SHORT, "-w", own)
    assert "case held out (patient_" in words


# --- the source of a run that has begun


def begin(own: Path, data: Path, *more: object) -> tuple[object, ...]:
    command = ("train", data / MR, "2d", "--fold", 0, "--pretrained", "PhantomCT", *more)
    run(*command, *SHORT, "--tag", "x", "-w", own)
    return (*command, "--tag", "x", "-w", own)


@pytest.mark.parametrize("change", ["nothing", "later run", "trained again", "gone"])
def test_a_begun_run_keeps_its_source(change: str, own: Path, data: Path) -> None:
    command = begin(own, data)
    folder = own / MR / "runs/2d@PhantomCT+x"
    begun = TrainingOptions.load(folder / "options.json")
    match change:
        case "later run":  # which is chosen for the name from now on, as it is planned like MR
            run("train", CT, "2d", "--fold", "all", "--pretrained", MR, *SHORT, "-w", own)
        case "trained again":
            again = (*SHORT, "--seed", 7, "--fresh", "-w", own)
            run("train", CT, "2d", "--fold", "all", *again)
        case "gone":
            shutil.rmtree(own / CT / "runs")
    words = told(*command, "--extend", 1)
    assert ("with which it was begun" in words) == (change != "nothing")
    assert TrainingOptions.load(folder / "options.json").pretrained == begun.pretrained
    assert FoldModel.load(folder / "fold_0/model.json").epochs == 2


@pytest.mark.parametrize("begun", [False, True])
def test_a_source_of_one_fold_is_told_only_where_it_is_used(
    begun: bool, own: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ("train", data / MR, "2d", "--fold", 0, "--pretrained", "PhantomCT", "--tag", "x")
    if begun:
        begin(own, data)
    shutil.rmtree(own / CT / "runs/2d")
    run("train", CT, "2d", "--fold", 1, *SHORT, "-w", own)
    caplog.clear()
    words = told(*command, "-w", own, *(["--extend", 1] if begun else SHORT))
    warned = "PhantomCT/2d: fold 1 is used" in caplog.text
    assert warned != begun == ("2d/fold_all, with which it was begun" in words)


def test_another_source_that_is_named_in_full_is_refused(own: Path, data: Path) -> None:
    command = [*begin(own, data)]
    run("train", CT, "2d", "--fold", "all", "--tag", "y", *SHORT, "-w", own)
    command[command.index("PhantomCT")] = "PhantomCT/2d+y"
    with pytest.raises(OptionError, match="was started with --pretrained"):
        run(*command)


def test_a_circle_is_refused(own: Path, data: Path) -> None:
    run("train", CT, "2d", "--fold", "all", "--pretrained", MR, *SHORT, "-w", own)
    with pytest.raises(OptionError, match=r"started from .*2d@PhantomCT/fold_all") as caught:
        run(
            *("train", data / MR, "2d", "--fold", "all", "--fresh", *SHORT, "-w", own),
            *("--pretrained", f"{CT}/2d@PhantomMR"),
        )
    assert "--tag" in caught.value.hint
    assert (own / MR / "runs/2d@PhantomCT/fold_all/model.json").exists()


# --- options bind from the first saved step


@pytest.mark.parametrize("state", ["untouched", "used", "stepped"])
def test_options_bind_from_the_first_saved_step(state: str, own: Path) -> None:
    folder = own / CT / "runs/2d+new"
    run("train", CT, "2d", "--fold", 0, "--tag", "new", *SHORT, "-w", own)
    if state != "stepped":
        for name in ("resume.pt", "model.json"):
            (folder / "fold_0" / name).unlink()
    other = ("train", CT, "2d", "--fold", 0, "--tag", "new", "--epochs", 2, "-w", own)
    if state == "untouched":
        run(*other, "--iterations", 3)
        assert FoldModel.load(folder / "fold_0/model.json").epochs == 2
        return
    with contextlib.ExitStack() as held:
        if state == "used":
            held.enter_context(only_one(folder / ".used-by-elsewhere-1.lock", "x"))
        held.enter_context(pytest.raises(OptionError, match="was started with --epochs 1"))
        run(*other)


# --- locks


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from autoliver.locks import only_one\n"
        "with only_one(Path(sys.argv[1]), 'x'):\n print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process_however_that_ends(
    how: signal.Signals, other_process: subprocess.Popen[str], tmp_path: Path
) -> None:
    path = tmp_path / "a.lock"
    assert is_held(path)
    who = f"process {other_process.pid} on .*, since 20"
    with pytest.raises(AutoliverError, match=f"fold 0 is being trained by {who}") as caught:
        check_free(path, "fold 0 is being trained")
    assert "Wait" in caught.value.hint
    with pytest.raises(AutoliverError, match=who), only_one(path, "x"):
        raise AssertionError("the lock is not held by one")
    other_process.send_signal(how)
    other_process.wait()
    check_free(path, "x")
    with only_one(path, "x"):
        assert Holder.load(tmp_path / "a.lock.json").process == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_two_trainings_of_one_fold_do_not_meet(own: Path, tmp_path: Path) -> None:
    words = [
        "train",
        CT,
        "2d",
        "--fold",
        "1",
        "--epochs",
        "400",
        "--iterations",
        "3",
        "--tag",
        "two",
        "-w",
    ]
    command = [sys.executable, "-m", "autoliver", *words, str(own)]
    lock = own / CT / "runs/2d+two/.fold_1.lock"
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as first,
    ):
        until = time.monotonic() + 120
        while not lock.with_name(".fold_1.lock.json").exists() and time.monotonic() < until:
            time.sleep(0.1)
        try:
            for more in ((), ("--fresh",)):
                second = subprocess.run([*command, *more], capture_output=True, text=True)
                assert second.returncode == 1, second.stderr
                assert f"fold 1 is being trained by process {first.pid} on" in second.stderr
                assert "Traceback" not in second.stderr
        finally:
            first.terminate()
    assert (own / CT / "runs/2d+two/fold_1/resume.pt").exists()
    assert not is_held(lock)


def test_two_selections_do_not_meet(own: Path) -> None:
    run("train", CT, "2d", "--fold", 0, *SHORT, "-w", own)
    with (
        only_one(own / CT / ".select.lock", "x"),
        pytest.raises(AutoliverError, match="its runs are being compared by process"),
    ):
        run("select", CT, "-w", own)
    run("select", CT, "-w", own)


# --- cases that were added


def test_a_run_goes_on_without_cases_that_were_added(
    own: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ct = tmp_path / CT
    shutil.copytree(data / CT, ct)
    command = ("train", ct, "2d", "--fold", 0, "-w", own)
    run(*command, *SHORT)
    image = read_image([ct / "imagesTr/PhantomCT_000_0000.nii.gz"])
    label = read_label(ct / "labelsTr/PhantomCT_000.nii.gz")
    write_image(ct / "imagesTr/PhantomCT_900_0000.nii.gz", image.array + 1, image.geometry)
    write_label(ct / "labelsTr/PhantomCT_900.nii.gz", label.array[0], label.geometry)
    with pytest.raises(ArtifactError, match="PhantomCT_900 is new") as caught:
        run(*command, "--extend", 1)
    assert "--accept-changes" in caught.value.hint
    run(*command, "--extend", 1, "--accept-changes")
    assert "left out, since added after planning: PhantomCT_900" in caplog.text
    model = FoldModel.load(own / CT / "runs/2d/fold_0/model.json")
    assert model.epochs == 2
    assert "PhantomCT_900" not in model.cases
    run("select", CT, "--accept-changes", "-w", own)

    (ct / "labelsTr/PhantomCT_001.nii.gz").unlink()
    (ct / "imagesTr/PhantomCT_001_0000.nii.gz").unlink()
    with pytest.raises(ArtifactError, match="nothing but cases was added"):
        run(*command, "--extend", 1, "--accept-changes")


def test_another_extension_beside_a_training_is_told_to_wait(own: Path) -> None:
    folder = RunFolder(own / CT / "runs/2d")
    options = TrainingOptions.load(folder.options)
    options.replace(extensions=(5,)).save(folder.options)
    words = ("train", CT, "2d", "--fold", "all", "--extend", 2, "-w", own)
    with pytest.raises(OptionError, match="is not finished yet"):
        run(*words)
    busy = only_one(folder.lock("all"), "fold all is being trained")
    with busy, pytest.raises(AutoliverError, match="fold all is being trained by process") as told:
        run(*words)
    assert "Wait" in told.value.hint


def test_a_run_that_another_process_extends_meanwhile_is_not_extended_twice(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second command has looked at the run when the first one extends it."""
    command = ("train", CT, "2d", "--fold", "all", "--extend", 1, "-w", own)
    before = FoldModel.load(own / CT / "runs/2d/fold_all/model.json").epochs
    looked = train_stage.current_length

    def look(folder: RunFolder) -> int:
        length = looked(folder)
        monkeypatch.setattr(train_stage, "current_length", looked)
        run(*command)
        return length

    monkeypatch.setattr(train_stage, "current_length", look)
    with pytest.raises(AutoliverError, match=f"had {before} epochs .* to {before + 1} mean"):
        run(*command)
    assert FoldModel.load(own / CT / "runs/2d/fold_all/model.json").epochs == before + 1
    run(*command)
    assert FoldModel.load(own / CT / "runs/2d/fold_all/model.json").epochs == before + 2
