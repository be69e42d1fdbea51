"""What is around a translation: status, clean, names, its model as a source, and what can fail."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run, told
from ct_and_mr import CT, MR, write_ct_and_mr
from typer.testing import CliRunner

import autoliver
from autoliver.artifacts import PARTIAL
from autoliver.cli.main import app
from autoliver.errors import AutoliverError, MachineError, ModelError
from autoliver.locks import only_one
from autoliver.models.files import FoldModel
from autoliver.pipeline.status import TranslationStatus, read_status
from autoliver.pipeline.translation import apply as applying
from autoliver.pipeline.translation.apply import ApplyRequest, _unjudged, apply
from autoliver.pipeline.translation.fit import FitRequest, fit
from autoliver.pipeline.translation.synthesizer import SynthesisFolder, Synthesizer
from autoliver.synthesis.translation.options import TranslationOptions
from autoliver.workspace import Workspace

SHORT = TranslationOptions(
    features=4, blocks=1, batch_size=2, epochs=2, iterations=1, patch=(32, 32), lr=1e-3
)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planned CT and MR phantoms, and a translation to the MR images without their labels."""
    root = tmp_path_factory.mktemp("around")
    write_ct_and_mr(root, cases=3)
    for name in (CT, MR):
        autoliver.plan(root / name, preset="tiny", workspace=root / "ws")
    learn(root, "toy")
    return root


@pytest.fixture
def place(learnt: Path, tmp_path: Path) -> Path:
    return shutil.copytree(learnt, tmp_path / "own")


def learn(root: Path, name: str, **given: object) -> SynthesisFolder:
    scans = root / "scans"
    if not scans.exists():
        shutil.copytree(root / MR / "imagesTr", scans)
    values = {"source": CT, "target": str(scans), "name": name, "options": SHORT, **given}
    return fit(Workspace(root / "ws"), FitRequest(**values))


def only(root: Path) -> TranslationStatus:
    (found,) = read_status(Workspace(root / "ws")).translations
    return found


def test_the_status_of_a_translation(place: Path) -> None:
    found = only(place)
    folder = SynthesisFolder(path=place / "ws/synthesis/toy")
    assert (found.name, found.model, found.source, found.target, found.state) == (
        *("toy", "essnet", CT, "scans", "finished"),
    )
    assert (found.epoch, found.epochs, found.folder) == (2, 2, folder.path)
    last = json.loads(folder.progress.read_text().splitlines()[-1])
    assert found.losses == last["losses"]

    Synthesizer.load(folder.info).replace(epochs=0).save(folder.info)
    folder.progress.write_text(folder.progress.read_text().splitlines()[0] + "\n")
    assert only(place).state == "interrupted"
    with only_one(folder.lock, "x"):
        running = only(place)
        assert read_status(Workspace(place / "ws")).at_work
    assert (running.state, running.epoch) == ("training", 1)
    assert running.seconds_left == pytest.approx(running.seconds_per_epoch, abs=2.0)
    with folder.log.open("a") as log:
        log.write("2026-11-26 10:00:00 failed: it diverged.\n")
    assert (only(place).state, only(place).problem) == ("failed", "it diverged.")
    assert read_status(Workspace(place / "ws"), CT).translations
    assert not read_status(Workspace(place / "ws"), MR).translations
    folder.info.write_text("{")
    (damaged,) = read_status(Workspace(place / "ws")).damaged
    assert "synthesizer.json" in damaged


def test_translations_are_shown_at_80_columns(place: Path) -> None:
    done = CliRunner().invoke(app, ["status", "-w", str(place / "ws")])
    lines = done.stdout.splitlines()
    table = lines[lines.index("Translations") + 1 :][:3]
    assert table[0].split() == ["name", "model", "from", "to", "state", "epoch", "s/epoch", "left"]
    assert table[2].split()[:6] == ["toy", "essnet", CT, "scans", "finished", "2/2"]
    assert max(map(len, table)) <= 80
    (found,) = run("status", "-w", place / "ws")["translations"]
    assert (found["name"], found["state"]) == ("toy", "finished")
    assert set(found["losses"]) == {"adversarial", "cycle", "segmentation", "discrimination"}


def test_why_a_translation_failed_is_in_its_log(place: Path) -> None:
    with pytest.raises(AutoliverError, match="diverged"):
        learn(place, "wild", options=SHORT.replace(lr=1e30, epochs=3))
    wild = next(t for t in read_status(Workspace(place / "ws")).translations if t.name == "wild")
    assert wild.state == "failed"
    assert "diverged" in wild.problem


def test_what_a_finished_translation_learnt_from_can_be_cleaned(place: Path) -> None:
    workspace = place / "ws"
    found = {Path(each["path"]) for each in run("clean", "-w", workspace)["leftovers"]}
    assert workspace / "synthesis/toy/target" in found
    run("clean", "--yes", "-w", workspace)
    assert not (workspace / "synthesis/toy/target").exists()
    apply(Workspace(workspace), "toy", place / "After", ApplyRequest(min_dice=0.0))
    learn(place, "toy")  # nothing but what was removed is made again

    info = SynthesisFolder(path=workspace / "synthesis/toy").info
    Synthesizer.load(info).replace(epochs=0).save(info)
    assert run("clean", "-w", workspace)["leftovers"] == []


def test_the_segmentor_is_where_another_training_starts(place: Path) -> None:
    """Its runs are named after the translation, beside those that start from the CT model."""
    workspace = place / "ws"
    segmentor = workspace / "synthesis/toy/segmentor/2d"
    words = ("train", MR, "2d", "--fold", 0, "--epochs", 1, "--iterations", 1, "-w", workspace)
    run("train", CT, "2d", "--fold", "all", "--epochs", 1, "--iterations", 1, "-w", workspace)
    run(*words, "--pretrained", "CT")
    said = " ".join(told(*words, "--pretrained", segmentor).split())
    assert "trained on 1 of the 1 case held out" in said
    runs = {path.name for path in (workspace / MR / "runs").iterdir()}
    assert runs == {"2d@CT", "2d@toy"}
    transfer = json.loads((workspace / MR / "runs/2d@toy/transfer.json").read_text())
    assert {row["action"] for row in transfer["table"]["weights"]} == {"loaded"}
    model = FoldModel.load(workspace / MR / "runs/2d@toy/fold_0/model.json")
    before = FoldModel.load(segmentor / "fold_all/model.json")
    assert model.ancestors == (before.weights_sha256[:12],)
    assert set(model.seen_before) >= {*before.trained_on, *before.seen_before}


@pytest.mark.parametrize("words", [("predict", "-i", "scans", "-o", "x", "-m", "toy"), ()])
def test_the_name_of_a_translation_leads_to_its_model(place: Path, words: tuple[str, ...]) -> None:
    words = words or ("train", MR, "2d", "--fold", "0", "--pretrained", "toy")
    given = [str(place / w) if w in ("scans", "x") else w for w in words]
    with pytest.raises(ModelError) as caught:
        run(*given, "-w", place / "ws")
    assert caught.value.hint.startswith("toy is a translation")
    assert str(place / "ws/synthesis/toy/segmentor/2d") in caught.value.hint


@pytest.mark.parametrize("name", ["CT", "ct", CT, "931", "Imported"])
def test_a_name_that_something_else_has(place: Path, name: str) -> None:
    segmentor = place / "ws/synthesis/toy/segmentor/2d"
    run("export", segmentor, place / "s.autoliver", "-w", place / "ws")
    run("import", place / "s.autoliver", "--name", "Imported", "-w", place / "ws")
    with pytest.raises(AutoliverError, match="is called that as well"):
        learn(place, name)
    assert not (place / "ws/synthesis" / name).exists()


def test_a_full_disk_leaves_nothing_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path for path in place.rglob("*") if "dicom" not in path.parts}
    written = []

    def full(path: Path, *_: object) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_bytes(b"x")

    monkeypatch.setattr(applying, "write_image", full)
    with pytest.raises(MachineError, match=r"Full: cannot be written: No space left") as caught:
        apply(Workspace(place / "ws"), "toy", place / "Full", ApplyRequest(min_dice=0.0))
    assert "Free some space" in caught.value.hint
    assert {path for path in place.rglob("*") if "dicom" not in path.parts} == before


def test_two_processes_do_not_write_one_output(place: Path) -> None:
    with (
        only_one(place / ".Out.lock", "x"),
        pytest.raises(AutoliverError, match="Out is being written by process"),
    ):
        apply(Workspace(place / "ws"), "toy", place / "Out", ApplyRequest(min_dice=0.0))
    assert not [path for path in place.iterdir() if PARTIAL.fullmatch(path.name)]


def test_slices_that_do_not_fit_together_are_told(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second slice of the translated images is turned upside down."""
    quiet = apply(Workspace(place / "ws"), "toy", place / "Quiet", ApplyRequest(min_dice=0.0))
    whole = applying.translate

    def jumping(*given: object, **more: object) -> np.ndarray:
        made = whole(*given, **more)  # type: ignore[arg-type]
        made[:, ::2] *= -1
        return made

    monkeypatch.setattr(applying, "translate", jumping)
    wild = apply(Workspace(place / "ws"), "toy", place / "Wild", ApplyRequest(min_dice=0.0))
    assert "times as much as in real scans" in wild.warning
    assert quiet.warning == ""
    for one, other in zip(quiet.cases, wild.cases, strict=True):
        assert other.jumps > 1.5 * one.jumps
        assert other.real_jumps == one.real_jumps


def test_labels_that_the_judge_does_not_know_are_told(place: Path) -> None:
    info = Synthesizer.load(SynthesisFolder(path=place / "ws/synthesis/toy").info)
    known = dict.fromkeys(info.labels.foreground, (1, 1))
    assert _unjudged(info, known) == ""
    known.pop("liver")
    assert _unjudged(info, known).startswith("The judge does not know liver: ")
