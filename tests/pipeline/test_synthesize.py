"""synthesize fit and apply, and training with what they make, on phantoms."""

import csv
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from commands import run
from ct_and_mr import CT, MR, write_ct_and_mr
from typer.testing import CliRunner

import autoliver
from autoliver.cli.main import app
from autoliver.datasets.cases import read_dataset
from autoliver.errors import AutoliverError, DatasetError, ModelError, OptionError
from autoliver.io.files import read_image, read_label, write_image
from autoliver.io.grids import compare_grids
from autoliver.io.orientation import reorientation
from autoliver.io.volume import Geometry
from autoliver.models.files import FoldModel
from autoliver.networks.checkpoint import load_training_state
from autoliver.pipeline.translation.apply import ApplyRequest, _far_slices, _Files, apply
from autoliver.pipeline.translation.fit import FitRequest, SynthesisFolder, fit
from autoliver.synthesis.translation.apply import Fidelity
from autoliver.synthesis.translation.options import TranslationOptions
from autoliver.workspace import Workspace

SHORT = TranslationOptions(
    features=4, blocks=1, batch_size=2, epochs=2, iterations=2, patch=(32, 32), lr=1e-3
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT and MR phantoms, planned, and a translation that has learnt four steps."""
    root = tmp_path_factory.mktemp("synthesize")
    write_ct_and_mr(root, cases=3)
    for name in (CT, MR):
        autoliver.plan(root / name, preset="tiny", workspace=root / "ws")
    learn(root, "toy")
    return root


def learn(
    root: Path, name: str, *, options: TranslationOptions = SHORT, **given
) -> SynthesisFolder:
    request = FitRequest(source=CT, target=MR, name=name, options=options, **given)
    return fit(Workspace(root / "ws"), request)


def weights(root: Path, name: str) -> dict:
    state = load_training_state(root / "ws/synthesis" / name / "resume.pt")
    return {**state["networks"], "step": state["step"]}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_the_same_seed_learns_the_same_and_another_does_not(place):
    learn(place, "again")
    learn(place, "other", options=SHORT.replace(seed=1))
    assert equal(weights(place, "toy"), weights(place, "again"))
    assert not equal(weights(place, "toy"), weights(place, "other"))


def test_a_stopped_translation_goes_on_as_if_it_had_not_stopped(place, monkeypatch):
    from autoliver.pipeline.translation import fit as module
    from autoliver.training.stop import Stopped, StopRequest

    class SecondTime(StopRequest):
        asked = 0

        def __call__(self):
            self.asked += 1
            if self.asked == 3:
                self.note(signal.SIGUSR1)
            return super().__call__()

    class Stopping:
        def __enter__(self):
            return SecondTime()

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(module, "stop_on_signal", Stopping)
    with pytest.raises(Stopped, match="1 epoch; the state is saved") as caught:
        learn(place, "stopped")
    assert caught.value.exit_code == 75
    monkeypatch.undo()
    with pytest.raises(ModelError, match="not finished"):
        apply(Workspace(place / "ws"), "stopped", place / "no", ApplyRequest())
    learn(place, "stopped")
    assert equal(weights(place, "toy"), weights(place, "stopped"))


def test_losses_and_samples_are_drawn(place):
    for name in ("losses.png", "samples.png"):
        assert (place / "ws/synthesis/toy" / name).read_bytes()[:4] == b"\x89PNG"


def test_a_diverging_translation_ends_and_keeps_its_last_state(place):
    with pytest.raises(AutoliverError, match="diverged") as caught:
        learn(place, "wild", options=SHORT.replace(lr=1e30, epochs=3))
    assert "--lr" in caught.value.hint
    assert not (place / "ws/synthesis/wild/generator.safetensors").exists()


def test_translated_cases_have_the_grid_and_labels_of_their_sources(place):
    out = place / "Dataset933_All"
    found = run("synthesize", "apply", "toy", out, "--qc-min-dice", 0, "-w", place / "ws")
    source, made = read_dataset(place / CT), read_dataset(out)
    assert [case.name for case in made.cases] == [case.name for case in source.cases]
    for before, after in zip(source.cases, made.cases, strict=True):
        old, new = (read_image([Path(case.images[0])]) for case in (before, after))
        assert not [d for d in compare_grids(old.geometry, new.geometry) if not d.rounding]
        assert not np.array_equal(new.array, old.array)
        assert 0 <= new.array.min() < new.array.max() <= 1000
        labels = [read_label(Path(str(case.label))).array for case in (before, after)]
        np.testing.assert_array_equal(*labels)
        assert (after.origin, after.modality, after.patient) == ("synthetic", "MR", before.patient)
    rows = list(csv.DictReader((out / "fidelity.csv").read_text().splitlines()))
    assert {row["case"]: float(row["mean_dice"]) for row in rows} == pytest.approx(
        found["cases"], abs=1e-4
    )
    assert (out / "fidelity.png").read_bytes()[:4] == b"\x89PNG"
    run("verify", out, "-w", place / "ws")


def test_cases_whose_labels_do_not_fit_are_left_out(place):
    every = apply(Workspace(place / "ws"), "toy", place / "Every", ApplyRequest(min_dice=0.0))
    means = sorted(each.mean for each in every.cases)
    assert means[-1] > 0, "the segmentor finds nothing, so that the test shows nothing"
    between = (means[0] + means[-1]) / 2
    done = apply(Workspace(place / "ws"), "toy", place / "Some", ApplyRequest(min_dice=between))
    left = {each.case for each in done.cases if each.mean < between}
    assert set(done.left_out) == left != set()
    assert {case.name for case in read_dataset(done.folder).cases} == {
        each.case for each in done.cases
    } - left
    ignore = read_dataset(done.folder).labels.ignore
    for each in done.cases:
        if each.case in left:
            continue
        label = read_label(done.folder / f"labelsTr/{each.case}.nii.gz").array[0]
        wrong = [z for z, dice in enumerate(each.slices) if dice is not None and dice < between]
        assert {z for z in range(len(label)) if (label[z] == ignore).any()} == set(wrong)
    with pytest.raises(DatasetError, match="fit none of 3"):
        apply(Workspace(place / "ws"), "toy", place / "None", ApplyRequest(min_dice=1.0))
    assert not (place / "None").exists()


def test_the_segmentor_predicts_as_any_model(place):
    model = place / "ws/synthesis/toy/segmentor/2d"
    info = FoldModel.load(model / "fold_all/model.json")
    assert info.plan.modality == "MR"
    run(
        "predict", "-i", place / MR / "imagesTr", "-o", place / "p", "-m", model, "-w", place / "ws"
    )
    assert len(list((place / "p").glob("*.nii.gz"))) == 3
    run("export", model, place / "s.autoliver", "-w", place / "ws")
    run("import", place / "s.autoliver", "--name", "Seg", "-w", place / "ws")


def test_training_with_synthetic_cases(place):
    out = place / "Dataset934_Syn"
    run("synthesize", "apply", "toy", out, "--qc-min-dice", 0, "-w", place / "ws")
    run("plan", out, "-w", place / "ws")
    given = ("--synthetic", "Syn", "--synthetic-warmup", 1, "--epochs", 2, "--iterations", 1)
    run("train", MR, "2d", "--fold", 0, "--tag", "syn", *given, "-w", place / "ws")
    fold = place / "ws" / MR / "runs/2d+syn/fold_0"
    info = FoldModel.load(fold / "model.json")
    assert (info.replay, info.replay_share) == ("Dataset934_Syn", 0.5)
    held_out = {
        p.name for p in (place / "ws" / MR / "runs/2d+syn/fold_0/validation").glob("*.nii.gz")
    }
    assert held_out
    assert held_out <= {p.name for p in (place / MR / "labelsTr").iterdir()}


@pytest.mark.parametrize(("name", "problem"), [(CT, "3 real cases"), ("Nope", "--synthetic Nope")])
def test_only_synthetic_cases_are_taken_for_synthetic(place, name, problem):
    words = ["train", MR, "2d", "--synthetic", name, "--tag", "no", "-w", str(place / "ws")]
    done = CliRunner().invoke(app, words)
    assert problem in str(done.exception)
    assert not (place / "ws" / MR / "runs/2d+no").exists()


def test_held_out_cases_that_a_translation_has_seen_are_named(place, caplog):
    out = place / "Dataset937_Seen"
    run("synthesize", "apply", "toy", out, "--qc-min-dice", 0, "-w", place / "ws")
    run("plan", out, "-w", place / "ws")
    short = {"epochs": 1, "iterations": 1, "replay": "Seen", "workspace": place / "ws"}
    caplog.set_level("INFO")
    (result,) = autoliver.train(place / MR, "2d", folds=(1,), tag="seen", **short)
    assert "fold 1: the translation that made Seen has seen 1 of the 1 case held out" in caplog.text
    info = FoldModel.load(result.folder / "model.json")
    assert len(info.seen_before) == 3
    caplog.clear()
    (out / "synthesizer.json").unlink()
    autoliver.train(place / MR, "2d", folds=(1,), tag="lost", **short)
    assert "Seen has synthetic cases but no synthesizer.json" in caplog.text


def test_slices_lie_along_the_axis_that_was_translated(place):
    """The same scan, stored with its axes in another order, is judged alike."""
    turned = place / "Dataset938_Turned"
    for folder in ("imagesTr", "labelsTr"):
        for path in (place / CT / folder).iterdir():
            (turned / folder).mkdir(parents=True, exist_ok=True)
            image = SimpleITK.ReadImage(str(path))
            SimpleITK.WriteImage(
                SimpleITK.PermuteAxes(image, (2, 0, 1)), str(turned / folder / path.name)
            )
    shutil.copyfile(place / CT / "dataset.json", turned / "dataset.json")
    autoliver.plan(turned, preset="tiny", workspace=place / "ws")
    request = ApplyRequest(judge=str(place / "ws/synthesis/toy/segmentor/2d"), min_dice=0.0)
    found = []
    for name, source in (("a", CT), ("b", turned.name)):
        options = TranslationOptions(model="labels")
        fit(
            Workspace(place / "ws"),
            FitRequest(source=source, target=MR, name=name, options=options),
        )
        done = apply(Workspace(place / "ws"), name, place / f"Turned{name}", request)
        found.append({each.case: len(each.slices) for each in done.cases})
    assert found[0] == found[1]


def test_labels_that_have_changed_since_are_refused(place, tmp_path):
    root = tmp_path / "moved"
    shutil.copytree(place, root)
    text = (root / CT / "dataset.json").read_text()
    swapped = text.replace('"liver": 1', '"liver": 3').replace('"spleen": 3', '"spleen": 1')
    assert swapped != text
    (root / CT / "dataset.json").write_text(swapped)
    with pytest.raises(AutoliverError):
        apply(Workspace(root / "ws"), "toy", root / "Out", ApplyRequest(min_dice=0.0))
    autoliver.plan(root / CT, workspace=root / "ws")
    with pytest.raises(AutoliverError, match="other cases or labels than when toy was learnt"):
        apply(Workspace(root / "ws"), "toy", root / "Out", ApplyRequest(min_dice=0.0))
    with pytest.raises(OptionError, match="begun with other data"):
        learn(root, "toy")
    assert not (root / "Out").exists()


def test_what_cannot_be_learnt_is_refused(place):
    for given, problem in (
        ({"source": MR}, "both name"),
        ({"source": MR, "target": CT}, "HU"),
        ({"held_out": ("MR_00",)}, "MR_00"),
        ({"name": "../out"}, "cannot be the name"),
        ({"name": ""}, "cannot be the name"),
        ({"options": SHORT.replace(patch=(30, 32))}, "multiples of 4"),
        ({"options": SHORT.replace(patch=(64, 64))}, "smallest image has 40 x 44"),
        ({"held_out": tuple(case.name for case in read_dataset(place / MR).cases)}, "names all"),
    ):
        values = {"source": CT, "target": MR, "name": "x", "options": SHORT, **given}
        with pytest.raises(AutoliverError, match=problem):
            fit(Workspace(place / "ws"), FitRequest(**values))
    with pytest.raises(OptionError, match="at least 24"):
        SHORT.replace(patch=(16, 16))
    with pytest.raises(OptionError, match=r"begun with --seed 0, not --seed 7\."):
        learn(place, "toy", options=SHORT.replace(seed=7))
    with pytest.raises(ModelError, match="there is no such translation; there is"):
        apply(Workspace(place / "ws"), "tox", place / "no", ApplyRequest())
    learn(place, "cycle", options=SHORT.replace(model="cyclegan"))
    with pytest.raises(OptionError, match="--judge"):
        apply(Workspace(place / "ws"), "cycle", place / "no", ApplyRequest())


def test_images_are_made_of_labels_alone(place):
    learn(place, "labels", options=TranslationOptions(model="labels"))
    assert not (place / "ws/synthesis/labels/generator.safetensors").exists()
    request = ApplyRequest(judge=str(place / "ws/synthesis/toy/segmentor/2d"), min_dice=0.0)
    made = [
        apply(Workspace(place / "ws"), "labels", place / name, request).folder
        for name in ("Dataset935_One", "Dataset936_Again")
    ]
    source = read_dataset(place / CT)
    for case in source.cases:
        files = [folder / f"imagesTr/{case.name}_0000.nii.gz" for folder in made]
        image, again = (read_image([file]).array[0] for file in files)
        np.testing.assert_array_equal(image, again)
        label = read_label(Path(str(case.label))).array[0]
        before = read_image([Path(case.images[0])]).array[0]
        liver, spleen = image[label == 1], image[label == 3]
        assert abs(np.corrcoef(image.ravel(), before.ravel())[0, 1]) < 0.95
        # Each label has grey values of its own.
        assert abs(liver.mean() - spleen.mean()) > 0.1 * min(liver.std(), spleen.std())


def test_fit_on_the_command_line(place):
    words = "synthesize fit --from CT --to MR -o cli --features 4 --blocks 1 --epochs 1"
    more = f"--iterations 1 --batch-size 1 --patch 32 32 -w {place / 'ws'}"
    done = CliRunner().invoke(app, f"{words} {more}".split())
    assert done.exit_code == 0, done.output
    assert "Next: autoliver synthesize apply cli OUT" in done.stdout


@pytest.mark.parametrize("codes", ["LPS", "RAI", "LAS", "SLP"])
def test_slices_are_shown_front_up_and_right_on_the_left(codes: str, tmp_path: Path) -> None:
    whole = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)  # z up, y back, x left
    grid = Geometry(shape_zyx=whole.shape, spacing_mm=(3.0, 2.0, 1.0))
    turn = reorientation("LPS", codes)
    files = _Files(
        image=tmp_path / "i.nii.gz",
        label=tmp_path / "l.nii.gz",
        found=tmp_path / "f.nii.gz",
        axis=turn.axes.index(0),
    )
    for path in (files.image, files.label, files.found):
        write_image(path, turn.array(whole)[None], turn.geometry(grid))
    along = turn.flips[files.axis]
    for z in range(4):
        slices, spacing_mm = files.shown(z)
        assert spacing_mm == (2.0, 1.0)
        for each in slices:
            assert np.array_equal(each, whole[3 - z if along else z])


def test_slices_far_from_the_labels_are_not_learnt_from() -> None:
    dice = (None,) * 5 + (0.9,) * 9 + (None, 0.8) + (None,) * 4
    # Eleven slices from the first label to the last: one more counts on either side.
    fidelity = Fidelity(case="a", dice={"liver": 0.9}, slices=dice)
    assert _far_slices(fidelity) == [0, 1, 2, 3, 17, 18, 19]
    assert _far_slices(fidelity.replace(slices=(None,) * 4)) == []
