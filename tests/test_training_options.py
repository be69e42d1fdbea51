"""Options of `train` from the command line to model.json, on phantoms."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run
from safetensors.numpy import load_file
from typer.testing import CliRunner

from autoliver.cli.main import app
from autoliver.errors import OptionError
from autoliver.inference import fastest
from autoliver.models.files import FoldModel
from autoliver.networks.checkpoint import load_training_state
from autoliver.pipeline.run.request import TrainRequest
from autoliver.pipeline.run.train import train
from autoliver.planning.plan import Plan
from autoliver.synthesis.phantom import PhantomOptions, write_phantom_dataset
from autoliver.training.options import TrainingOptions
from autoliver.training.progress import read_progress
from autoliver.workspace import Workspace

NAME = "Dataset001_Phantom"
SHORT = ("--epochs", 2, "--iterations", 2, "--fold", "all")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a planned dataset of five small phantoms."""
    options = PhantomOptions(contrast="CT", shape_zyx=(12, 40, 40), spacing_mm=(8.0, 5.0, 5.0))
    data = tmp_path_factory.mktemp("data")
    source = write_phantom_dataset(data, name=NAME, cases=5, seed=1, options=options)
    workspace = tmp_path_factory.mktemp("workspace")
    run("plan", source, "--preset", "tiny", "-w", workspace)
    return workspace


def fold(workspace: Path, tag: str, number: int | str = "all") -> Path:
    return workspace / NAME / f"runs/2d+{tag}/fold_{number}"


def test_given_options_are_kept_and_reach_the_model(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planned = Plan.load(workspace / NAME / "plan.json").configurations["2d"]
    stores = set((workspace / NAME / "store").glob("*"))
    patch = tuple(2 * s for s in planned.network.total_stride)
    given = ("--patch", ",".join(map(str, patch)), "--batch-size", 3, "--loss", "dice-focal")
    given += ("--lr", 0.002, "--optimiser", "sgd", "--mirror", "--seed", 4)
    with caplog.at_level("INFO"):
        run("train", NAME, "2d", *SHORT, *given, "--tag", "given", "-w", workspace)
    assert "Batches of 3 patches" in caplog.text
    options = TrainingOptions.load(fold(workspace, "given").parent / "options.json")
    assert (options.patch, options.batch_size, options.loss) == (patch, 3, "dice-focal")
    assert (options.lr, options.optimiser, options.mirror) == (0.002, "sgd", True)
    model = FoldModel.load(fold(workspace, "given") / "model.json")
    used = model.plan.configurations["2d"]
    assert (used.patch_shape, used.batch_size) == (patch, 3)
    assert used.network == planned.network
    assert model.mirror_axes == (0, 1)
    assert Plan.load(workspace / NAME / "plan.json").configurations["2d"] == planned
    # Without the options the store is the same one.
    run("train", NAME, "2d", *SHORT, "--no-mirror", "--tag", "plain", "-w", workspace)
    assert len(set((workspace / NAME / "store").glob("*")) - stores) <= 1
    assert FoldModel.load(fold(workspace, "plain") / "model.json").mirror_axes == ()
    run("train", NAME, "2d", *SHORT, "--augment", "none", "--tag", "bare", "-w", workspace)
    assert FoldModel.load(fold(workspace, "bare") / "model.json").augment == "none"
    # Others than it was started with are refused by name.
    with pytest.raises(OptionError, match="started with --no-mirror, not --mirror"):
        run("train", NAME, "2d", *SHORT, "--mirror", "--tag", "plain", "-w", workspace)
    with pytest.raises(OptionError, match=r"the default --lr, not --lr 0\.1"):
        run("train", NAME, "2d", *SHORT, "--lr", 0.1, "--tag", "plain", "-w", workspace)


def test_the_running_mean_is_the_model_and_both_are_kept_for_resuming(workspace: Path) -> None:
    given = ("--schedule", "nnunet", "--ema", 0.9, "--tag", "mean", "-w", workspace)
    run("train", NAME, "2d", *SHORT, *given)
    made = fold(workspace, "mean")
    saved = load_training_state(made / "resume.pt")
    weights = load_file(made / "weights.safetensors")
    for name, value in weights.items():
        assert np.array_equal(value, saved["averaged"][name].numpy())
    assert any(not np.array_equal(v, saved["network"][n].numpy()) for n, v in weights.items())
    with pytest.raises(OptionError, match=r"started with --ema 0\.9, not --ema 0\.99"):
        run("train", NAME, "2d", *SHORT, *given[:2], "--ema", 0.99, *given[4:])


def test_a_patch_that_does_not_fit_is_refused_before_anything_is_made(workspace: Path) -> None:
    with pytest.raises(OptionError, match="--patch 7,9"):
        run("train", NAME, "2d", "--patch", "7,9", "--tag", "odd", "-w", workspace)
    assert not fold(workspace, "odd").parent.exists()
    result = CliRunner().invoke(app, ["train", NAME, "2d", "--patch", "7x9"])
    assert result.exit_code == 2
    assert "'7x9' is not a list of sizes" in result.stderr


def test_what_keeps_weights_needs_weights_worth_keeping(workspace: Path) -> None:
    for given in (("--freeze", "encoder"), ("--encoder-factor", 0.1), ("--reset-heads",)):
        with pytest.raises(OptionError, match=f"^{' '.join(map(str, given))} is for weights"):
            run("train", NAME, "2d", *given, "--tag", "drawn", "-w", workspace)
    with pytest.raises(OptionError, match=r"^--unfreeze encoder@3 is for weights"):
        run("train", NAME, "2d", "--unfreeze", "encoder@3", "--tag", "drawn", "-w", workspace)
    assert not fold(workspace, "drawn").parent.exists()


def test_options_from_python_are_checked(workspace: Path) -> None:
    request = TrainRequest(configuration="2d", changes={"loss": "dice_topkk"}, tag="python")
    with pytest.raises(OptionError, match="dice_topkk"):
        train(Workspace(workspace), NAME, request)


def test_deterministic_runs_are_equal(workspace: Path) -> None:
    weights = []
    for tag in ("one", "other"):
        given = ("--seed", 7, "--deterministic", "--tag", tag)
        run("train", NAME, "2d", *SHORT, *given, "-w", workspace)
        weights.append(load_file(fold(workspace, tag) / "weights.safetensors"))
    one, other = weights
    assert one.keys() == other.keys()
    assert all(values.tobytes() == other[name].tobytes() for name, values in one.items())


def test_held_out_cases_of_deterministic_runs_are_predicted_exactly(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: object) -> None:
        raise AssertionError("something is timed")

    monkeypatch.setattr(fastest, "_timed", timed)
    short = ("--epochs", 1, "--iterations", 1, "--fold", 0, "-w", workspace)
    run("train", NAME, "2d", *short, "--deterministic", "--tag", "exact")
    validation = fold(workspace, "exact", 0) / "validation"
    (gone,) = validation.glob("*.nii.gz")
    content = gone.read_bytes()
    gone.unlink()
    run("select", NAME, "2d+exact", "-w", workspace)
    assert gone.read_bytes() == content
    with pytest.raises(AssertionError, match="something is timed"):
        run("train", NAME, "2d", *short, "--tag", "timed")


def test_a_finished_run_is_extended(workspace: Path, tmp_path: Path) -> None:
    train_it = ("train", NAME, "2d", "--tag", "longer", "-w", workspace)
    with pytest.raises(OptionError, match="was not started"):
        run(*train_it, "--extend", 1)
    run(*train_it, "--fold", 0, "--epochs", 2, "--iterations", 2)
    folder = fold(workspace, "longer", 0)
    before = FoldModel.load(folder / "model.json")
    with pytest.raises(OptionError, match=r"fold 1 of .* is not finished yet"):
        run(*train_it, "--fold", 1, "--extend", 3)
    with pytest.raises(OptionError, match="--fresh starts over"):
        run(*train_it, "--fold", 0, "--extend", 3, "--fresh")
    resume = shutil.copy(folder / "resume.pt", tmp_path)
    (folder / "resume.pt").unlink()
    with pytest.raises(OptionError, match=r"resume\.pt, which is gone"):
        run(*train_it, "--fold", 0, "--extend", 3)
    shutil.copy(resume, folder / "resume.pt")

    old = folder / "validation/scores.json"
    written = old.stat().st_mtime_ns
    run(*train_it, "--fold", 0, "--extend", 3)
    after = FoldModel.load(folder / "model.json")
    assert (before.epochs, after.epochs, after.extended) == (2, 5, 1)
    assert after.weights_sha256 != before.weights_sha256
    assert old.stat().st_mtime_ns > written
    assert [log.epoch for log in read_progress(folder / "progress.jsonl")] == [0, 1, 2, 3, 4]
    run(*train_it, "--fold", 0)
    assert FoldModel.load(folder / "model.json") == after

    # A command that was killed is given once more: the same extension, not another one.
    run_options = TrainingOptions.load(folder.parent / "options.json")
    run_options.replace(extensions=(3, 1)).save(folder.parent / "options.json")
    with pytest.raises(OptionError, match=r"--extend 2: fold 0 .* is not finished yet"):
        run(*train_it, "--fold", 0, "--extend", 2)
    run(*train_it, "--fold", 0, "--extend", 1)
    assert FoldModel.load(folder / "model.json").epochs == 6
    assert TrainingOptions.load(folder.parent / "options.json").extensions == (3, 1)


def test_a_run_keeps_the_mixture_that_it_began_with(workspace, tmp_path):
    """A word for a mixture is stored as the mixture, since a later version may mean another."""
    command = ("train", NAME, "2d", *SHORT, "--tag", "mixed", "-w", workspace)
    run(*command, "--augment", "cross-modality")
    place = fold(workspace, "mixed").parent / "options.json"
    assert json.loads(place.read_text())["augment"] == "gin"
    # Versions until November 2026 stored the word, and meant this by it.
    older = tmp_path / "options.json"
    older.write_text(place.read_text().replace('"gin"', '"cross-modality"'))
    assert TrainingOptions.load(older).augment == "gin:0.6,bezier:0.1,synthseg:0.1"


def test_folds_begin_with_weights_of_their_own_unless_the_run_is_an_old_one(
    workspace: Path,
) -> None:
    still = ("--epochs", 1, "--iterations", 1, "--lr", 1e-30, "--schedule", "nnunet")

    def weights(*folds: int) -> list[dict[str, np.ndarray]]:
        for number in folds:
            run("train", NAME, "2d", "--fold", number, *still, "--tag", "folds", "-w", workspace)
        return [load_file(fold(workspace, "folds", n) / "weights.safetensors") for n in folds]

    def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
        return all(np.allclose(one[name], other[name], atol=1e-12) for name in one)

    zero, first, second = weights(0, 1, 2)
    assert not equal(zero, first)
    assert not equal(first, second)
    path = fold(workspace, "folds").parent / "options.json"
    options = TrainingOptions.load(path)
    assert options.fold_seeds
    seeds = {options.of_fold(n).seed for n in (0, 1, 2, 3, 4, "all")}
    assert len(seeds) == 5
    assert options.of_fold(0) == options.of_fold("all") == options
    # What an earlier version has written says nothing of it.
    content = json.loads(path.read_text())
    del content["fold_seeds"]
    path.write_text(json.dumps(content))
    for number in (3, 4):
        assert equal(zero, weights(number)[0])
    assert TrainingOptions.load(path).of_fold(3).seed == options.seed
